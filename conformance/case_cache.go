package conformance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// cacheCases are rows 50 to 55 of the checklist.
func cacheCases(f *Fixture) []Case {
	c, none := f.store(), f.missingStore()
	readOnly, writeOnly := []string{"cache.read:*"}, []string{"cache.write:*", "stream.publish:*"}
	all := []Case{
		{ID: "RAW-50a", Name: "put, get, overwrite", run: func(p *probe) {
			s, key := p.authed(), p.unique()
			s.send(c.put(key, "one", 1), c.get(key, 2), c.put(key, "two", 3), c.get(key, 4))
			s.expect("cache_ok 1", c.value(key, "one", 2), "cache_ok 3", c.value(key, "two", 4))
		}},
		{ID: "RAW-50b", Name: "a miss is a value of null, present in the JSON", run: cacheMiss},
		{ID: "RAW-50c", Name: "the empty value is a hit", run: func(p *probe) { roundTrip(p, "") }},
		{ID: "RAW-50d", Name: "binary value of 100 000 bytes", run: func(p *probe) { roundTrip(p, strings.Repeat("\x00\xff\xfe\n\"", 20_000)) }},
		{ID: "RAW-50e", Name: "a put is visible to every reader before its reply", run: func(p *probe) {
			writer, reader, key := p.authed(), p.authed(), p.unique()
			for i := range uint64(50) {
				value := fmt.Sprint(i)
				writer.send(c.put(key, value, i))
				writer.expect(fmt.Sprintf("cache_ok %d", i))
				reader.send(c.get(key, i))
				reader.expect(c.value(key, value, i))
			}
		}},
		{ID: "RAW-50f", Name: "names and keys with any characters are echoed", run: func(p *probe) {
			key := p.unique() + " ü \"\\/\u2028<>&\x01"
			s := p.authed()
			s.send(c.put(key, "v", 1), c.get(key, 2), c.get("", 3))
			s.expect("cache_ok 1", c.value(key, "v", 2), "cache_value "+f.entry("")+" …")
		}},
		{ID: "RAW-51a", Name: "ttl_ms 100 expires", run: ttlExpires},
		{ID: "RAW-51b", Name: "ttl_ms null and absent stay", run: func(p *probe) {
			s, key := p.authed(), p.unique()
			s.send(message(`{"type":"cache_put","tenant_id":%q,"namespace":%q,"cache":%q,"key":%q,"value":"dg==","request_id":1}`, f.Tenant, f.Namespace, f.Cache, key))
			s.send(c.get(key, 2), c.put(key, "w", 3), c.get(key, 4)) // put writes null
			s.expect("cache_ok 1", c.value(key, "v", 2), "cache_ok 3", c.value(key, "w", 4))
		}},
		{ID: "RAW-51c", Name: "ttl_ms 0 is gone at once", run: func(p *probe) {
			s, key := p.authed(), p.unique()
			s.send(c.put(key, "old", 1), c.putTTL(key, "new", 0, 2), c.get(key, 3))
			s.expect("cache_ok 1", "cache_ok 2", c.miss(key, 3))
		}},
		{ID: "RAW-51d", Name: "ttl_ms 2^64-1 stays", run: func(p *probe) {
			s, key := p.authed(), p.unique()
			s.send(c.putTTL(key, "v", 1<<64-1, 1), c.get(key, 2))
			s.expect("cache_ok 1", c.value(key, "v", 2))
		}},
		{ID: "W1-01", Name: "no reply exceeds the frame limit that the broker sets itself", run: replyAtLimit},
		{ID: "RAW-54", Name: "50 pipelined gets, one for an unknown cache", run: pipelinedGets},
	}
	return append(all, cases(
		exchange{id: "RAW-52a", name: "put without request_id", send: c.put("conformance", "v"), replies: []string{"ok"}, then: clean},
		exchange{id: "RAW-52b", name: "get without request_id", send: c.get("conformance-none"), replies: []string{c.miss("conformance-none")}, then: clean},
		exchange{id: "RAW-53a", name: "get of an unknown cache with request_id", send: none.get("k", 7), replies: []string{errorReply(none.notFound())}},
		exchange{id: "RAW-53b", name: "get of an unknown cache without request_id", send: none.get("k"), replies: []string{errorReply(none.notFound())}, then: clean},
		exchange{id: "RAW-53c", name: "put to an unknown cache with request_id", send: none.put("k", "v", 7), replies: []string{errorReply(none.notFound())}},
		exchange{id: "RAW-53d", name: "put to an unknown cache without request_id", send: none.put("k", "v"), replies: []string{errorReply(none.notFound())}, then: clean},
		exchange{id: "RAW-55a", name: "put without cache.write", may: readOnly, send: c.put("k", "v", 7), replies: []string{errorReply("forbidden")}, then: ends},
		exchange{id: "RAW-55b", name: "get without cache.read", may: writeOnly, send: c.get("k", 7), replies: []string{errorReply("forbidden")}, then: ends},
	)...)
}

func roundTrip(p *probe, value string) {
	c, s, key := p.fx.store(), p.authed(), p.unique()
	s.send(c.put(key, value, 1), c.get(key, 2))
	s.expect("cache_ok 1", c.value(key, value, 2))
}

// cacheMiss looks at the bytes: our decoder might accept what the reference client does not.
func cacheMiss(p *probe) {
	s, key := p.authed(), p.unique()
	s.send(p.fx.store().get(key, 7))
	f, end := p.next(s.s.Recv(), s.fr)
	if end != "" {
		p.fail("a cache_value", end)
	}
	if !slices.Contains(strings.Split(strings.ReplaceAll(string(f.Payload()), " ", ""), ","), `"value":null`) {
		p.fail(`"value":null`, string(clip(f.Payload())))
	}
	if got, want := describe(f), p.fx.store().miss(key, 7); got != want {
		p.fail(want, got)
	}
}

// ttlExpires asks until the entry is gone. A miss is too early if the TTL has not passed yet by the clock of this side,
// which starts before the put is sent.
func ttlExpires(p *probe) {
	const ttl = 100 * time.Millisecond
	c, s, key := p.fx.store(), p.authed(), p.unique()
	start := time.Now()
	s.send(c.putTTL(key, "v", uint64(ttl/time.Millisecond), 1))
	s.expect("cache_ok 1")
	for id := uint64(2); ; id++ {
		s.send(c.get(key, id))
		got := s.recv()
		took := time.Since(start)
		switch {
		case got == c.value(key, "v", id):
			if took > p.o.ReplyTimeout {
				p.fail("a miss after 100 ms", fmt.Sprintf("a hit after %v", took))
			}
		case got != c.miss(key, id):
			p.fail(c.value(key, "v", id)+" or a miss", got)
		case took < ttl:
			p.fail("a hit for 100 ms", fmt.Sprintf("a miss %v after the put was sent", took))
		default:
			return
		}
	}
}

// replyAtLimit puts the largest entry that fits into a frame, in the shortest form, and gets it in the longest: 36
// bytes more (docs/protocol/wire.md#maximum-frame-size). The broker may refuse the put or the get, in whatever way it
// likes.
func replyAtLimit(p *probe) {
	f := p.fx
	form := fmt.Sprintf(`{"type":"cache_put","tenant_id":%q,"namespace":%q,"cache":%q,"key":%%q,"value":%%q}`, f.Tenant, f.Namespace, f.Cache)
	key := p.unique()
	room := f.MaxFrameBytes - len(fmt.Sprintf(form, key, ""))
	value := strings.Repeat("AAAA", room/4)
	key += strings.Repeat(".", room%4)
	c := p.dial(quicx.Config{StreamWindow: 1 << 20})
	s := c.authed()
	s.send(message(form, key, value))
	if got := s.recv(); got != "ok" {
		return // refused
	}
	s = c.authed()
	s.send(f.store().get(key, math.MaxUint64))
	r, end := p.next(s.s.Recv(), s.fr)
	if n := int(r.Header.Length); end == "" && n > f.MaxFrameBytes {
		p.fail(fmt.Sprintf("a frame of at most %d bytes, or a refusal", f.MaxFrameBytes), fmt.Sprintf("one of %d", n))
	}
}

func pipelinedGets(p *probe) {
	c, none, s := p.fx.store(), p.fx.missingStore(), p.authed()
	var frames []byte
	var replies []string
	for id := range uint64(50) {
		key := p.unique()
		switch {
		case id == 25:
			frames = append(frames, none.get(key, id)...)
			replies = append(replies, errorReply(none.notFound()))
		case id%2 == 0:
			value := fmt.Sprint(id)
			s.send(c.put(key, value, id))
			s.expect(fmt.Sprintf("cache_ok %d", id))
			frames = append(frames, c.get(key, id)...)
			replies = append(replies, c.value(key, value, id))
		default:
			frames = append(frames, c.get(key, id)...)
			replies = append(replies, c.miss(key, id))
		}
	}
	s.send(frames)
	s.expect(replies...)
	s.expectServed()
}

// errorCases are the rows of docs/protocol/errors.md that no row of the checklist has already, and row 57.
func errorCases(f *Fixture) []Case {
	t, foreign, foreignStore := f.topic(), f.foreign(), f.foreignStore()
	mismatch := []string{errorReply("tenant mismatch")}
	unsupported := []string{errorReply("unsupported frame flags")}
	good := string(t.publish(codec.AckPerMessage, 7)[codec.HeaderLen:])
	all := cases(
		exchange{id: "S9-01a", name: "other tenant: publish_batch", send: foreign.batch(codec.AckPerBatch, 7), replies: mismatch, then: ends},
		exchange{id: "S9-01b", name: "other tenant: subscribe", send: foreign.subscribe(live), replies: mismatch, then: ends},
		exchange{id: "S9-01c", name: "other tenant: cache_put", send: foreignStore.put("k", "v", 7), replies: mismatch, then: ends},
		exchange{id: "S9-01d", name: "other tenant: cache_get without request_id", send: foreignStore.get("k"), replies: mismatch, then: ends},
		exchange{id: "S9-01e", name: "other tenant comes before the missing request_id", send: foreign.publish(codec.AckUnset), replies: mismatch, then: ends},

		exchange{id: "D32a", name: "0x0008 with a JSON publish", send: frame(0x0008, good), replies: unsupported},
		exchange{id: "D32b", name: "0x0010 with a JSON publish", send: frame(0x0010, good), replies: unsupported},
		exchange{id: "D32c", name: "0x0003 with a publish batch", send: frame(0x0003, body(t.binary("x"))), replies: unsupported},
		exchange{id: "D32d", name: "0x0029 with a publish batch", send: frame(0x0029, body(t.acked(7, "x"))), replies: unsupported},
		exchange{id: "D32e", name: "0x0004, an event batch", send: codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, byteItems([]string{"x"})), replies: unsupported},
		exchange{id: "D32f", name: "0x0010, an acknowledgement, before auth", bare: true, send: codec.AppendPublishAckOK(nil, 7), replies: unsupported},
		exchange{id: "D32g", name: "0x8000, an extension frame that nobody negotiated", send: frame(0x8000, "\x01"), replies: unsupported},
	)
	payload := "eA=="
	names := fmt.Sprintf(`"tenant_id":%q,"namespace":%q,"stream":%q`, f.Tenant, f.Namespace, f.Stream)
	for i, x := range []struct{ name, members, reply string }{
		{"auth_ok", `"server_flags":63`, unexpectedMessage},
		{"subscribed", `"subscription_id":1`, unexpectedMessage},
		{"event_stream_hello", `"subscription_id":1`, unexpectedMessage},
		{"event", names + `,"payload":"` + payload + `"`, unexpectedMessage},
		{"event_batch", names + `,"payloads":["` + payload + `"]`, unexpectedMessage},
		{"cache_value", fmt.Sprintf(`"tenant_id":%q,"namespace":%q,"cache":%q,"key":"k","value":null`, f.Tenant, f.Namespace, f.Cache), unexpectedMessage},
		{"cache_ok", `"request_id":1`, unexpectedMessage},
		{"publish_ok", `"request_id":1`, unexpectedMessage},
		{"publish_error", `"request_id":1,"message":"x"`, unexpectedMessage},
		{"ok", "", unexpectedMessage},
		{"subscribe_cursor_error", `"reason":"too_old","requested":1,"available":2`, cursorErrorDirection},
		{"error", `"message":"x"`, ""},
	} {
		members := x.members
		if members != "" {
			members = "," + members
		}
		ex := exchange{
			id: fmt.Sprintf("RAW-57%c", 'a'+i), name: "client sends " + x.name, bare: true, then: ends,
			send: message(`{"type":%q%s}`, x.name, members),
		}
		if x.reply != "" {
			ex.replies = []string{errorReply(x.reply)}
		}
		all = append(all, ex.Case())
	}
	return append(all,
		Case{ID: "D05", Name: "50 error ends, none loses its text", run: func(p *probe) {
			c := p.dial(plain)
			for range 50 {
				s := c.open()
				s.send(t.publish(codec.AckPerMessage, 7))
				s.expect(errorReply("auth required"))
				s.expectEnd()
			}
		}},
		Case{ID: "S3-01", Name: "RESET_STREAM from the client ends the stream", run: func(p *probe) {
			s := p.authed()
			s.expectServed()
			s.s.Send().Cancel(0)
			s.done = true
			s.expectErrorEnd()
			s.expectOthersServed()
		}},
		Case{ID: "S3-02", Name: "replies that were queued come before an error end", run: func(p *probe) {
			s := p.authed()
			s.send(t.acked(1, "x"), t.publish(codec.AckPerMessage, 2), message(`{"type":"ok"}`), t.acked(3, "x"))
			s.expect("ack 1 ok", "publish_ok 2", errorReply(unexpectedMessage))
			s.expectEnd()
		}},
	)
}
