"""A small Felix client, which needs no more than docs/protocol and testvectors.

It shows that these pages are enough to write a client in another language, and is no supported library: it has no
reconnection, no pools, no time limits and no compression. It follows docs/protocol/session.md and two extensions of
docs/protocol/extensions.md, gaps and cache. Frames are in felix_wire.py.
"""

import asyncio
import struct
from contextlib import asynccontextmanager

from aioquic.asyncio import QuicConnectionProtocol, connect as quic_connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived, StreamReset

from felix_wire import (
    ACK, ALL_FLAGS, DELETE, EVENT, EVENT_OFFSETS, EXTENSION, FOREVER, GAP, GET, HEADER, JSON, OFFSETS_BIT,
    ORIGINAL_FLAGS, POSITION, PUT_IF, SHARED, SHARED_OFFSETS, WATCH, Ack, CacheReply, Events, Gap, ProtocolError, Reader,
    acked_batch, b64, cache_request, message, parse_ack, parse_cache_reply, parse_changes, parse_events, parse_header,
    parse_message, publish_batch, u16_bytes, unb64,
)


class Refused(Exception):
    """The broker refused a request; the text says why."""


class Disconnected(Exception):
    """A stream or the connection ended without a reply. The request may have been carried out."""


class Ended(Exception):
    """A subscription or a watch has ended in good order."""


class Client(QuicConnectionProtocol):
    """A connection. Use connect() to make one."""

    tenant = token = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.incoming = {}  # stream id -> asyncio.StreamReader
        self.event_streams = {}  # subscription id -> future of (stream id, reader)
        self.tasks = set()
        self.gone = None

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            reader = self.reader(event.stream_id)
            reader.feed_data(event.data)
            if event.end_stream:
                reader.feed_eof()
        elif isinstance(event, StreamReset):
            self.reader(event.stream_id).set_exception(Disconnected("stream reset"))
        elif isinstance(event, ConnectionTerminated):
            self.gone = Disconnected(event.reason_phrase or "connection closed")
            for reader in self.incoming.values():
                reader.set_exception(self.gone)
            for future in self.event_streams.values():
                if not future.done():
                    future.set_exception(self.gone)

    def reader(self, stream_id):
        if stream_id not in self.incoming:
            self.incoming[stream_id] = reader = asyncio.StreamReader()
            if stream_id % 4 == 3:  # unidirectional, opened by the broker: an event stream
                self.spawn(self.hello(stream_id, reader))
        return self.incoming[stream_id]

    def spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def read_frame(self, reader):
        """The next frame as (flags, payload), or None at a clean end."""
        try:
            header = await reader.readexactly(HEADER.size)
        except asyncio.IncompleteReadError as e:
            if e.partial:
                raise ProtocolError("end inside a header") from e
            return None
        flags, length = parse_header(header)
        try:
            return flags, await reader.readexactly(length)
        except asyncio.IncompleteReadError as e:
            raise ProtocolError("end inside a payload") from e

    async def hello(self, stream_id, reader):
        try:
            f = await self.read_frame(reader)
            m = parse_message(f[1]) if f and f[0] == JSON else {}
            if m.get("type") != "event_stream_hello":
                raise ProtocolError("no hello")
            self.event_stream(m["subscription_id"]).set_result((stream_id, reader))
        except (ProtocolError, Disconnected):
            self.stop(stream_id)

    def event_stream(self, subscription_id):
        """The stream and its subscribed may come in any order."""
        return self.event_streams.setdefault(subscription_id, asyncio.get_running_loop().create_future())

    def stop(self, stream_id):
        if not self.gone:
            self._quic.stop_stream(stream_id, 0)
            self.transmit()

    def write(self, stream_id, data, fin=False):
        if self.gone:
            raise self.gone
        self._quic.send_stream_data(stream_id, data, fin)
        self.transmit()

    async def control(self):
        """Opens and authenticates a control stream."""
        c = Control(self)
        reply = await c.request(message(
            "auth", tenant_id=self.tenant, token=self.token, client_flags=ALL_FLAGS, ext=["gaps", "cache"]))
        c.flags = reply.get("server_flags", ORIGINAL_FLAGS)
        c.ext = set(reply.get("ext", []))
        return c

    def publish_stream(self):
        """Opens a stream for publishes without replies, and returns send(namespace, stream, items, fin)."""
        stream_id = self._quic.get_next_available_stream_id(is_unidirectional=True)
        self.write(stream_id, message("auth", tenant_id=self.tenant, token=self.token))

        def send(namespace, stream, items, fin=False):
            self.write(stream_id, publish_batch(self.tenant, namespace, stream, items), fin)

        return send

    async def subscribe(self, namespace, stream, start=None, epoch=None):
        c = await self.control()
        if start not in (None, "latest") and not c.flags & OFFSETS_BIT:
            raise Refused("the broker knows no start positions")
        reply = await c.request(message(
            "subscribe", tenant_id=self.tenant, namespace=namespace, stream=stream, start=start, epoch=epoch), fin=True)
        if reply["type"] == "subscribe_cursor_error":
            raise Refused(f"{reply['reason']}: {reply['requested']}, available {reply['available']}")
        subscription_id = reply["subscription_id"]
        return Subscription(self, subscription_id, await self.event_stream(subscription_id))


class Control:
    """A control stream. Requests may be made concurrently; they are sent in the order of the calls."""

    def __init__(self, client):
        self.client, self.flags, self.ext = client, ORIGINAL_FLAGS, set()
        self.id = client._quic.get_next_available_stream_id()
        self.next_id = 0
        self.waiting = {}  # key -> future, oldest first; the key is a request id, or negative for a request without one
        self.over = None
        client.spawn(self.read(client.reader(self.id)))

    def new_id(self):
        self.next_id += 1
        return self.next_id

    async def request(self, data, request_id=None, fin=False):
        if self.over:
            raise self.over
        key = -self.new_id() if request_id is None else request_id
        self.waiting[key] = future = asyncio.get_running_loop().create_future()
        self.client.write(self.id, data, fin)
        reply = await future
        if isinstance(reply, dict) and reply["type"] in ("error", "publish_error"):
            raise Refused(reply["message"])
        if isinstance(reply, Ack) and not reply.ok or isinstance(reply, CacheReply) and reply.status == 1:
            raise Refused(reply.message)
        return reply

    async def read(self, reader):
        try:
            while (f := await self.client.read_frame(reader)) is not None:
                flags, payload = f
                if flags == JSON:
                    reply = parse_message(payload)
                    request_id = reply.get("request_id")
                elif flags == ACK:
                    reply = parse_ack(payload)
                    request_id = reply.request_id
                elif flags == EXTENSION and "cache" in self.ext:
                    reply = parse_cache_reply(payload)
                    request_id = reply.request_id
                else:
                    raise ProtocolError(f"flags {flags:#06x} on a control stream")
                key = request_id if request_id in self.waiting else next(iter(self.waiting), None)
                if key is None or request_id is not None and key != request_id:
                    raise ProtocolError("a reply that nobody waits for")
                self.waiting.pop(key).set_result(reply)
            self.over = Disconnected("the broker ended the stream")
        except (ProtocolError, Disconnected) as e:
            self.over = e
            self.client.stop(self.id)
        for future in self.waiting.values():
            future.set_exception(self.over)

    def close(self):
        self.client.write(self.id, b"", True)

    async def publish(self, namespace, stream, items):
        """Publishes a batch and waits for the acknowledgement."""
        i, tenant = self.new_id(), self.client.tenant
        if self.flags & 0x0008:
            await self.request(acked_batch(i, 2, tenant, namespace, stream, items), i)
        else:
            await self.publish_json(namespace, stream, items, i)

    async def publish_json(self, namespace, stream, items, request_id=None):
        i = request_id or self.new_id()
        await self.request(message(
            "publish_batch", tenant_id=self.client.tenant, namespace=namespace, stream=stream,
            payloads=[b64(x) for x in items], request_id=i, ack="per_batch"), i)

    def send(self, namespace, stream, items):
        """Publishes a batch without an acknowledgement."""
        self.client.write(self.id, publish_batch(self.client.tenant, namespace, stream, items))

    async def cache_put(self, namespace, cache, key, value, ttl_ms=None):
        i = self.new_id()
        await self.request(message(
            "cache_put", tenant_id=self.client.tenant, namespace=namespace, cache=cache, key=key, value=b64(value),
            request_id=i, ttl_ms=ttl_ms), i)

    async def cache_get(self, namespace, cache, key):
        """The value, or None for a miss."""
        i = self.new_id()
        reply = await self.request(message(
            "cache_get", tenant_id=self.client.tenant, namespace=namespace, cache=cache, key=key, request_id=i), i)
        return None if reply["value"] is None else unb64(reply["value"])

    async def cache_binary(self, op, namespace, cache, rest=b""):
        """A request of the extension cache."""
        if "cache" not in self.ext:
            raise Refused("the broker has not the extension cache")
        i = self.new_id()
        return await self.request(cache_request(i, op, namespace, cache, rest), i)

    async def cache_get_many(self, namespace, cache, keys):
        """A list of (version, value); version 0 is a miss."""
        rest = struct.pack(">H", len(keys)) + b"".join(u16_bytes(k) for k in keys)
        return (await self.cache_binary(GET, namespace, cache, rest)).values

    async def cache_delete(self, namespace, cache, key):
        return (await self.cache_binary(DELETE, namespace, cache, u16_bytes(key))).status == 0

    async def cache_put_if(self, namespace, cache, key, value, expected, ttl_ms=FOREVER):
        """(stored, version of the entry)"""
        rest = struct.pack(">QQ", ttl_ms, expected) + u16_bytes(key) + value
        reply = await self.cache_binary(PUT_IF, namespace, cache, rest)
        return reply.status == 0, reply.version

    async def cache_watch(self, namespace, cache):
        reply = await self.cache_binary(WATCH, namespace, cache)
        return Watch(self.client, await self.client.event_stream(reply.version))


class Subscription:
    """next() returns Events and Gaps; epoch and offset are what a resume needs."""

    def __init__(self, client, subscription_id, stream):
        self.client, self.id, (self.stream_id, self.reader) = client, subscription_id, stream
        self.epoch = self.offset = None

    async def next(self):
        while (f := await self.client.read_frame(self.reader)) is not None:
            flags, payload = f
            if flags in (EVENT, EVENT_OFFSETS, SHARED, SHARED_OFFSETS):
                e = parse_events(flags, payload)
                if e.subscription_id not in (None, self.id):
                    raise ProtocolError("events of another subscription")
            elif flags == JSON:
                m = parse_message(payload)
                if m["type"] == "event":
                    e = Events(None, m.get("offset"), [unb64(m["payload"])])
                elif m["type"] == "event_batch":
                    e = Events(None, m.get("base_offset"), [unb64(p) for p in m["payloads"]])
                else:
                    raise ProtocolError("a message that is no event")
            elif flags == EXTENSION:
                r = Reader(payload)
                type_ = r.number(1)
                if type_ == POSITION:
                    self.epoch, self.offset = r.number(8), r.number(8)
                    continue
                if type_ != GAP:
                    raise ProtocolError("an extension that was not negotiated")
                gap = Gap(r.number(1), r.number(8), r.number(8))
                self.offset = gap.next
                return gap
            else:
                raise ProtocolError(f"flags {flags:#06x} on an event stream")
            if e.base_offset is not None:
                self.offset = e.base_offset + len(e.items)
            if e.items:
                return e
        raise Ended

    def stop(self):
        self.client.stop(self.stream_id)


class Watch:
    """next() returns a list of changes."""

    def __init__(self, client, stream):
        self.client, (self.stream_id, self.reader) = client, stream

    async def next(self):
        f = await self.client.read_frame(self.reader)
        if f is None:
            raise Ended
        if f[0] != EXTENSION:
            raise ProtocolError("no extension frame on the event stream of a watch")
        return parse_changes(f[1])


@asynccontextmanager
async def connect(host, port, *, ca_file, server_name, tenant, token):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=None, cafile=ca_file, server_name=server_name)
    async with quic_connect(host, port, configuration=configuration, create_protocol=Client) as client:
        client.tenant, client.token = tenant, token
        yield client
