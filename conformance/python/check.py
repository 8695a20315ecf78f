"""Runs the Python client against a broker, and its frames against the test vectors. make test-modules starts it.

    python3 check.py vectors DIR
    python3 check.py broker HOST:PORT CA_FILE TENANT TOKEN_FILE READER_TOKEN_FILE
"""

import asyncio
import json
import pathlib
import struct
import sys

import felix_wire as wire
from felix_client import Disconnected, Ended, Refused, connect
from felix_wire import Gap

# Test vectors, in the notation of testvectors/README.md.


def expand(b):
    if isinstance(b, str):
        return bytes.fromhex(b)
    return b"".join((bytes.fromhex(p["hex"]) if "hex" in p else p["text"].encode()) * p.get("count", 1) for p in b)


def text(t):
    return t if isinstance(t, str) else expand(t).decode()


def items(list_):
    out = []
    for e in list_:
        out += [expand(e["item"])] * e["count"] if isinstance(e, dict) else [expand(e)]
    return out


def names(f):
    return text(f["tenant_id"]), text(f["namespace"]), text(f["stream"])


def encode(kind, f):
    """The frame of a vector, or None if this client never sends such a frame."""
    if kind == "binary_publish_batch":
        return wire.publish_batch(*names(f), items(f["payloads"]))
    if kind == "binary_acked_publish_batch":
        mode = {"per_message": 1, "per_batch": 2}[f["ack"]]
        return wire.acked_batch(int(f["request_id"]), mode, *names(f), items(f["payloads"]))
    if kind in ("auth", "publish", "publish_batch", "subscribe", "cache_put", "cache_get"):
        f = dict(f)
        for k in ("payload", "value"):
            if k in f:
                f[k] = wire.b64(expand(f[k]))
        if "payloads" in f:
            f["payloads"] = [wire.b64(i) for i in items(f["payloads"])]
        for k in ("tenant_id", "namespace", "stream", "cache", "key", "token", "fence"):
            if k in f:
                f[k] = text(f[k])
        for k in ("request_id", "subscription_id", "ttl_ms", "epoch", "since"):
            if k in f:
                f[k] = int(f[k])
        if isinstance(f.get("start"), dict):
            f["start"] = {"offset": int(f["start"]["offset"])}
        if kind == "cache_put":
            f.setdefault("ttl_ms", None)
        order = ["tenant_id", "namespace", "stream", "cache", "key", "token", "payload", "payloads", "value",
                 "client_flags", "ext", "fence", "subscription_id", "start", "epoch", "since", "request_id", "ttl_ms", "ack"]
        return wire.message(kind, **{k: f[k] for k in order if k in f})
    if kind.startswith("extension_cache_") and kind not in ("extension_cache_reply", "extension_cache_events"):
        op = {"get": wire.GET, "put": wire.PUT, "delete": wire.DELETE, "put_if": wire.PUT_IF, "watch": wire.WATCH}
        op = op[kind.removeprefix("extension_cache_")]
        rest = b""
        if op == wire.GET:
            rest = struct.pack(">H", len(f["keys"])) + b"".join(wire.u16_bytes(k) for k in items(f["keys"]))
        elif op != wire.WATCH:
            rest = wire.u16_bytes(text(f["key"]))
            if op == wire.PUT_IF:
                rest = struct.pack(">Q", int(f["expected"])) + rest
            if op in (wire.PUT, wire.PUT_IF):
                rest = struct.pack(">Q", int(f["ttl_ms"])) + rest + expand(f["value"])
        return wire.cache_request(int(f["request_id"]), op, text(f["namespace"]), text(f["cache"]), rest)
    return None


def decoded(kind, flags, payload):
    """The values of a frame, in the form of values(), or None if this client never gets such a frame."""
    if kind == "binary_publish_ack":
        a = wire.parse_ack(payload)
        return {"request_id": a.request_id, "status": "ok" if a.ok else "error"} | ({} if a.ok else {"message": a.message})
    if kind in ("binary_event_batch", "binary_shared_event_batch"):
        e = wire.parse_events(flags, payload)
        both = {"subscription_id": e.subscription_id, "base_offset": e.base_offset, "payloads": e.items}
        return {k: v for k, v in both.items() if v is not None}
    if kind == "extension_cache_reply":
        r = wire.parse_cache_reply(payload)
        out = {"request_id": r.request_id, "reply_status": r.status, "version": r.version, "message": r.message}
        if r.values is not None:
            out |= {"versions": [v for v, _ in r.values], "values": [b for _, b in r.values]}
        return {k: v for k, v in out.items() if v is not None}
    if kind == "extension_cache_events":
        c = wire.parse_changes(payload)
        return {"event_kinds": [x.kind for x in c], "versions": [x.version for x in c], "keys": [x.key.encode() for x in c]}
    if flags == wire.JSON:
        m = wire.parse_message(payload)
        if m.pop("type") != kind:
            return {"type": "another"}
        out = {k: v for k, v in m.items() if k in MEMBERS[kind] and (v is not None or k == "value")}
        for k in ("payload", "value"):
            if out.get(k) is not None:
                out[k] = wire.unb64(out[k])
        if "payloads" in out:
            out["payloads"] = [wire.unb64(p) for p in out["payloads"]]
        return out
    return None


TOPIC, ENTRY = {"tenant_id", "namespace", "stream"}, {"tenant_id", "namespace", "cache", "key"}
MEMBERS = {
    "auth_ok": {"server_flags"}, "ok": set(), "error": {"message"}, "publish_ok": {"request_id"},
    "publish_error": {"request_id", "message"}, "subscribed": {"subscription_id"},
    "subscribe_cursor_error": {"reason", "requested", "available"}, "cache_ok": {"request_id"},
    "cache_value": ENTRY | {"value", "request_id"}, "event_stream_hello": {"subscription_id"},
    "event": TOPIC | {"payload", "offset"}, "event_batch": TOPIC | {"payloads", "base_offset"},
}
ENCODED_NUMBERS = ("request_id", "subscription_id", "offset", "base_offset", "requested", "available", "version")


def values(f):
    out = {}
    for k, v in f.items():
        if k in ENCODED_NUMBERS:
            out[k] = int(v)
        elif k == "versions":
            out[k] = [int(x) for x in v]
        elif k in ("payloads", "values", "keys"):
            out[k] = items(v)
        elif k in ("payload", "value"):
            out[k] = None if v is None else expand(v)
        elif k not in ("uncut_message", "ext"):
            out[k] = text(v) if isinstance(v, list) and v and isinstance(v[0], dict) else v
    return out


def vectors(directory):
    sent = received = 0
    for path in sorted(pathlib.Path(directory, "valid").glob("*.json")):
        for v in json.loads(path.read_text())["vectors"]:
            data = expand(v["frame"])
            if len(data) > 1 << 20:
                continue
            flags, length = wire.parse_header(data[:12])
            assert length == len(data) - 12, v["name"]
            if v["direction"] == "client_to_broker":
                mine = encode(v["kind"], v["fields"])
                if mine is None:
                    continue
                want = data if v["canonical"] else expand(v["canonical_frame"])
                if flags == wire.JSON:  # the order of members is free
                    assert json.loads(mine[12:]) == json.loads(want[12:]), (v["name"], mine, want)
                else:
                    assert mine == want, (v["name"], mine, want)
                sent += 1
            else:
                got = decoded(v["kind"], flags, data[12:])
                if got is None:
                    continue
                got.pop("ext", None)
                want = values(v["fields"])
                assert got == want, (v["name"], got, want)
                received += 1
    assert sent >= 80 and received >= 100, (sent, received)
    print(f"vectors: {sent} encoded, {received} decoded")


# A broker.

NS, STREAM, CACHE = "default", "demo", "primary"


async def refused(awaitable, beginning):
    try:
        await awaitable
    except Refused as e:
        assert str(e).startswith(beginning), (str(e), beginning)
    else:
        raise AssertionError(f"not refused: {beginning}")


async def take(sub, count):
    """The items of the next events, with their offsets."""
    out = []
    while len(out) < count:
        e = await sub.next()
        assert not isinstance(e, Gap), e
        out += [(e.base_offset + i, item) for i, item in enumerate(e.items)]
    assert len(out) == count, out
    return out


async def publishing(client):
    sub = await client.subscribe(NS, STREAM)
    c = await client.control()
    assert c.flags == wire.ALL_FLAGS and c.ext == {"gaps", "cache"}, (c.flags, c.ext)

    await c.publish(NS, STREAM, [b"hello", b""])
    first = await take(sub, 2)
    at = sub.offset - 2
    assert first == [(at, b"hello"), (at + 1, b"")], first
    await asyncio.gather(*(c.publish(NS, STREAM, [b"%d" % i, b"x"]) for i in range(200)))  # pipelined
    want = [b for i in range(200) for b in (b"%d" % i, b"x")]
    assert await take(sub, 400) == [(at + 2 + i, b) for i, b in enumerate(want)]

    c.send(NS, STREAM, [b"not acknowledged"])
    await c.publish_json(NS, STREAM, ["grüße".encode(), bytes(range(256))])
    assert [b for _, b in await take(sub, 3)] == [b"not acknowledged", "grüße".encode(), bytes(range(256))]
    send = client.publish_stream()
    send(NS, STREAM, [b"without"])
    send(NS, STREAM, [b"replies"], fin=True)
    assert [b for _, b in await take(sub, 2)] == [b"without", b"replies"]
    large = bytes(300_000) + b"end"  # larger than the windows of a stream
    await c.publish(NS, STREAM, [large])
    assert [b for _, b in await take(sub, 1)] == [large]
    await c.publish(NS, STREAM, [])  # acknowledged, and publishes nothing

    await refused(c.publish(NS, "nothing", [b""]), "stream not found: ")
    await c.publish(NS, STREAM, [b"the stream goes on"])
    assert [b for _, b in await take(sub, 1)] == [b"the stream goes on"]
    sub.stop()
    c.close()
    return sub


async def resuming(client, before):
    c = await client.control()
    await c.publish(NS, STREAM, [b"while away"])
    sub = await client.subscribe(NS, STREAM, start={"offset": before.offset}, epoch=before.epoch)
    assert await take(sub, 1) == [(before.offset, b"while away")]
    assert sub.epoch == before.epoch
    old = await client.subscribe(NS, STREAM, start={"offset": 1 << 40}, epoch=before.epoch + 1)
    gap = await old.next()
    assert gap.reason == 4 and gap.lost == 0, gap
    all_of_it = await client.subscribe(NS, STREAM, start="earliest")
    oldest = await all_of_it.next()
    assert oldest.base_offset <= before.offset
    await refused(client.subscribe(NS, STREAM, start={"offset": 1 << 40}), "in_future: ")
    await refused(client.subscribe(NS, "nothing"), "stream not found: ")


async def caching(client):
    c = await client.control()
    watch = await c.cache_watch(NS, CACHE)
    await c.cache_put(NS, CACHE, "k", b"value")
    assert await c.cache_get(NS, CACHE, "k") == b"value"
    assert await c.cache_get(NS, CACHE, "none") is None
    await c.cache_put(NS, CACHE, "empty", b"")
    assert await c.cache_get(NS, CACHE, "empty") == b""
    await c.cache_put(NS, CACHE, "over", b"x", ttl_ms=0)
    assert await c.cache_get(NS, CACHE, "over") is None
    (v, value), (miss, _), (_, empty) = await c.cache_get_many(NS, CACHE, ["k", "none", "empty"])
    assert v > 0 and value == b"value" and miss == 0 and empty == b""
    assert await c.cache_put_if(NS, CACHE, "k", b"new", v + 1) == (False, v)
    stored, newer = await c.cache_put_if(NS, CACHE, "k", b"new", v)
    assert stored and newer > v
    assert await c.cache_get(NS, CACHE, "k") == b"new"
    assert await c.cache_delete(NS, CACHE, "k") and not await c.cache_delete(NS, CACHE, "k")
    await c.cache_put(NS, CACHE, "short", b"x", ttl_ms=30)
    seen = []
    while (3, "short") not in seen:  # it expires
        seen += [(change.kind, change.key) for change in await watch.next()]
    assert [kind for kind, key in seen if key == "k"] == [1, 1, 2], seen
    assert await c.cache_get(NS, CACHE, "short") is None
    await refused(c.cache_get(NS, "nothing", "k"), "cache scope not found: ")
    await refused(c.cache_get_many(NS, "nothing", ["k"]), "cache scope not found: ")
    assert await c.cache_get(NS, CACHE, "empty") == b""  # the stream goes on


async def permissions(client, reader_token):
    whole, client.token = client.token, reader_token
    c = await client.control()
    await refused(c.publish(NS, STREAM, [b""]), "forbidden")
    await refused(c.publish(NS, STREAM, [b""]), "forbidden")  # the stream goes on
    await refused(c.publish_json(NS, STREAM, [b""]), "forbidden")
    try:
        await c.cache_get(NS, CACHE, "k")  # and now it does not
    except Disconnected:
        pass
    else:
        raise AssertionError("a stream goes on behind an error end")
    await client.subscribe(NS, STREAM)
    client.token = "no token"
    await refused(client.control(), "auth failed")
    client.token = whole


async def broker(address, ca_file, tenant, token_file, reader_file):
    host, port = address.rsplit(":", 1)
    token, reader_token = (pathlib.Path(f).read_text().strip() for f in (token_file, reader_file))
    async with connect(host, int(port), ca_file=ca_file, server_name="localhost", tenant=tenant, token=token) as client:
        before = await publishing(client)
        await resuming(client, before)
        await caching(client)
        await permissions(client, reader_token)
    print("broker: published, subscribed, resumed, cached and watched")


if __name__ == "__main__":
    if sys.argv[1] == "vectors":
        vectors(sys.argv[2])
    else:
        asyncio.run(asyncio.wait_for(broker(*sys.argv[2:]), 240))
