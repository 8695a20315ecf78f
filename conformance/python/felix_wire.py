"""The frames of felix-wire, written from docs/protocol/wire.md and docs/protocol/extensions.md."""

import base64
import json
import struct
from collections import namedtuple

MAGIC, VERSION, HEADER = 0x464C5831, 1, struct.Struct(">IHHI")
MAX_FRAME = 16 << 20  # sent; 64 bytes more are accepted
JSON, PUBLISH, ACKED, ACK = 0x0000, 0x0001, 0x0009, 0x0010
EVENT, EVENT_OFFSETS, SHARED, SHARED_OFFSETS, EXTENSION = 0x0002, 0x0022, 0x0004, 0x0024, 0x8000
ALL_FLAGS, ORIGINAL_FLAGS, OFFSETS_BIT = 63, 7, 0x0020
POSITION, GAP, CACHE_REQUEST, CACHE_REPLY, CACHE_EVENTS = 1, 2, 6, 7, 8
GET, PUT, DELETE, PUT_IF, WATCH = 1, 2, 3, 4, 5
FOREVER = LEFT_OUT = 2**64 - 1


class ProtocolError(Exception):
    """The broker sent what the protocol does not allow."""


def frame(flags, payload):
    if len(payload) > MAX_FRAME:
        raise ValueError("frame is too large")
    return HEADER.pack(MAGIC, VERSION, flags, len(payload)) + payload


def parse_header(header):
    magic, version, flags, length = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION or length > MAX_FRAME + 64:
        raise ProtocolError("bad frame header")
    return flags, length


def message(type_, **members):
    """A JSON message. Members that are None are left out, but for ttl_ms."""
    body = {"type": type_}
    body.update((k, v) for k, v in members.items() if v is not None or k == "ttl_ms")
    return frame(JSON, json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())


def parse_message(payload):
    try:
        m = json.loads(payload)
    except ValueError as e:
        raise ProtocolError("malformed JSON") from e
    if not isinstance(m, dict) or not isinstance(m.get("type"), str):
        raise ProtocolError("no message")
    return m


def b64(b):
    return base64.b64encode(b).decode()


def unb64(s):
    return base64.b64decode(s, validate=True)


def u16_bytes(b):
    b = b.encode() if isinstance(b, str) else b
    return struct.pack(">H", len(b)) + b


def item_list(items):
    return struct.pack(">I", len(items)) + b"".join(struct.pack(">I", len(i)) + i for i in items)


def publish_batch(tenant, namespace, stream, items):
    return frame(PUBLISH, u16_bytes(tenant) + u16_bytes(namespace) + u16_bytes(stream) + item_list(items))


def acked_batch(request_id, mode, tenant, namespace, stream, items):
    body = u16_bytes(tenant) + u16_bytes(namespace) + u16_bytes(stream) + item_list(items)
    return frame(ACKED, struct.pack(">QB", request_id, mode) + body)


def cache_request(request_id, op, namespace, cache, rest=b""):
    head = struct.pack(">BQB", CACHE_REQUEST, request_id, op)
    return frame(EXTENSION, head + u16_bytes(namespace) + u16_bytes(cache) + rest)


class Reader:
    """Reads fields of a payload; what is missing is an error."""

    def __init__(self, b):
        self.b, self.i = b, 0

    def take(self, n):
        if len(self.b) - self.i < n:
            raise ProtocolError("payload is incomplete")
        self.i += n
        return self.b[self.i - n : self.i]

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def text(self):
        try:
            return self.take(self.number(2)).decode()
        except UnicodeDecodeError as e:
            raise ProtocolError("not UTF-8") from e

    def items(self):
        count = self.number(4)
        if count > (len(self.b) - self.i) // 4:
            raise ProtocolError("more items than bytes")
        return [self.take(self.number(4)) for _ in range(count)]

    def rest(self):
        return self.i < len(self.b)


Ack = namedtuple("Ack", "request_id ok message")
Events = namedtuple("Events", "subscription_id base_offset items")
Gap = namedtuple("Gap", "reason lost next")
CacheReply = namedtuple("CacheReply", "request_id status version message values")
Change = namedtuple("Change", "kind version key")


def parse_ack(payload):
    r = Reader(payload)
    status, request_id = r.number(1), r.number(8)
    text = r.take(r.number(2))
    if status > 1:
        raise ProtocolError("unknown status")
    return Ack(request_id, status == 0, "" if status == 0 else text.decode())


def parse_events(flags, payload):
    r = Reader(payload)
    subscription_id = r.number(8) if flags in (EVENT, EVENT_OFFSETS) else None
    base = r.number(8) if flags & OFFSETS_BIT else None
    return Events(subscription_id, base, r.items())


def parse_cache_reply(payload):
    r = Reader(payload)
    if r.number(1) != CACHE_REPLY:
        raise ProtocolError("no cache reply")
    request_id, status = r.number(8), r.number(1)
    if status in (0, 2):
        return CacheReply(request_id, status, r.number(8), None, None)
    if status == 1:
        return CacheReply(request_id, status, None, r.text(), None)
    if status == 3:
        values = []
        for _ in range(r.number(2)):
            version = r.number(8)
            values.append((version, r.take(r.number(4))))
        return CacheReply(request_id, status, None, None, values)
    raise ProtocolError("unknown status of a cache reply")


def parse_changes(payload):
    r, changes = Reader(payload), []
    if r.number(1) != CACHE_EVENTS:
        raise ProtocolError("no cache changes")
    while r.rest():
        changes.append(Change(r.number(1), r.number(8), r.text()))
    return changes
