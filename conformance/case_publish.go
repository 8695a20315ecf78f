package conformance

import (
	"fmt"
	"math"
	"slices"

	"github.com/felix-mq/felix/codec"
)

// publishCases are rows 19 to 34 of the checklist.
func publishCases(f *Fixture) []Case {
	t, none, foreign := f.topic(), f.missing(), f.foreign()
	most := uint64(math.MaxUint64)
	forbidden := []string{"stream.publish:stream:" + f.Tenant + "/" + f.Namespace + "/conformance-none", "cache.read:*"}
	all := []Case{
		{ID: "RAW-19a", Name: "0x0001 with 1 item", run: func(p *probe) { delivered(p, 1) }},
		{ID: "RAW-19b", Name: "0x0001 with 100 items, empty ones included", run: func(p *probe) { delivered(p, 100) }},
		{ID: "RAW-20", Name: "200 pipelined 0x0009, answered in order", run: pipelined},
		{ID: "RAW-21a", Name: "JSON publish with each ack mode", run: func(p *probe) { ackModes(p, f.topic().publish, "x") }},
		{ID: "RAW-21b", Name: "JSON publish_batch with each ack mode", run: func(p *probe) { ackModes(p, f.topic().batch, "x", "") }},
	}
	all = append(all, cases(
		exchange{id: "RAW-22a", name: "publish without ack and request_id", send: t.publish(codec.AckUnset), replies: []string{errorReply("missing request_id for acked publish")}},
		exchange{id: "RAW-22b", name: "publish_batch without ack and request_id", send: t.batch(codec.AckUnset), replies: []string{errorReply("missing request_id for acked publish batch")}},
		exchange{id: "RAW-22c", name: "publish with per_message and no request_id", send: t.publish(codec.AckPerMessage), replies: []string{errorReply("missing request_id for acked publish")}},

		exchange{
			id: "RAW-23", name: "0x0009 with a bad body, then a good one",
			send:    slices.Concat(rawAcked(7, 2, body(t.binary("x"))[:20]), t.acked(8, "x")),
			replies: []string{`ack 7 "malformed publish batch"`, "ack 8 ok"},
		},
		exchange{id: "RAW-24a", name: "0x0009 with ack mode 0", send: rawAcked(7, 0, body(t.binary("x"))), then: ends},
		exchange{id: "RAW-24b", name: "0x0009 with ack mode 3", send: rawAcked(7, 3, body(t.binary("x"))), then: ends},

		exchange{id: "RAW-25a", name: "unknown stream: publish", send: none.publish(codec.AckPerMessage, 7), replies: []string{"publish_error 7 " + short(none.notFound())}},
		exchange{id: "RAW-25b", name: "unknown stream: 0x0009", send: none.acked(7, "x"), replies: []string{"ack 7 " + short(none.notFound())}},
		exchange{id: "RAW-25c", name: "unknown stream: 0x0001", send: none.binary("x")},
		exchange{id: "RAW-25d", name: "unknown stream: publish with ack none", send: none.publish(codec.AckNone, 7)},
		exchange{id: "RAW-25e", name: "unknown stream: publish_batch", send: none.batch(codec.AckPerBatch, 7), replies: []string{"publish_error 7 " + short(none.notFound())}},
		exchange{id: "RAW-25f", name: "unknown namespace: 0x0009", send: topic{f.Tenant, noStream, f.Stream}.acked(7, "x"), replies: []string{"ack 7 " + short(topic{f.Tenant, noStream, f.Stream}.notFound())}},

		exchange{id: "RAW-26a", name: "forbidden: publish with request_id", may: forbidden, send: t.publish(codec.AckPerMessage, 7), replies: []string{`publish_error 7 "forbidden"`}, then: ends},
		exchange{id: "RAW-26b", name: "forbidden: publish without request_id", may: forbidden, send: t.publish(codec.AckPerMessage), replies: []string{errorReply("forbidden")}, then: ends},
		exchange{id: "RAW-26c", name: "forbidden: publish with ack none", may: forbidden, send: t.publish(codec.AckNone), replies: []string{errorReply("forbidden")}, then: ends},
		exchange{id: "RAW-26d", name: "forbidden: 0x0009", may: forbidden, send: t.acked(7, "x"), replies: []string{`ack 7 "forbidden"`}},
		exchange{id: "RAW-26e", name: "forbidden: 0x0001", may: forbidden, send: t.binary("x"), then: ends},
		exchange{id: "RAW-26f", name: "other tenant: publish with request_id", send: foreign.publish(codec.AckPerMessage, 7), replies: []string{errorReply("tenant mismatch")}, then: ends},
		exchange{id: "RAW-26g", name: "other tenant: 0x0009", send: foreign.acked(7, "x"), replies: []string{`ack 7 "tenant mismatch"`}},
		exchange{id: "RAW-26h", name: "other tenant: 0x0001", send: foreign.binary("x"), then: ends},
		exchange{id: "RAW-26i", name: "forbidden: publish_batch with request_id", may: forbidden, send: t.batch(codec.AckPerBatch, 7), replies: []string{`publish_error 7 "forbidden"`}, then: ends},

		exchange{id: "RAW-27a", name: "request_id 0 and 2^64-1 in JSON", send: slices.Concat(t.publish(codec.AckUnset, 0), t.batch(codec.AckUnset, most)), replies: []string{"publish_ok 0", fmt.Sprintf("publish_ok %d", most)}},
		exchange{id: "RAW-27b", name: "request_id 0 and 2^64-1 in 0x0009", send: slices.Concat(t.acked(0, "x"), t.acked(most, "x")), replies: []string{"ack 0 ok", fmt.Sprintf("ack %d ok", most)}},

		exchange{id: "RAW-28a", name: "0x0009 and FIN at once", send: t.acked(7, "x"), fin: true, replies: []string{"ack 7 ok"}, then: clean},
		exchange{id: "RAW-28b", name: "JSON publish and FIN at once", send: t.publish(codec.AckUnset, 7), fin: true, replies: []string{"publish_ok 7"}, then: clean},
	)...)
	all = append(all, uniCases(f)...)
	return append(all,
		exchange{id: "RAW-31", name: "FIN is answered by FIN", fin: true, then: clean}.Case(),
		Case{ID: "RAW-34", Name: "empty batches are acknowledged and publish nothing", run: emptyBatches},
		Case{ID: "RAW-60", Name: "bytes after a batch are not forwarded", run: trailingBytes},
		Case{ID: "D02", Name: "100 replies of every kind in request order", run: orderOfReplies},
		Case{ID: "D16", Name: "FIN after 500 acknowledged publishes loses no reply", run: finBehindMany},
	)
}

// delivered publishes a batch without acknowledgement whose every second item is empty.
func delivered(p *probe, n int) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	items := make([]string, n)
	for i := range items {
		if i%2 == 0 {
			items[i] = p.unique()
		}
	}
	s := c.authed()
	s.send(p.fx.topic().binary(items...))
	e.expect(items...)
	s.expectServed()
}

// pipelined writes 200 acknowledged batches before it reads a reply. The reference may refuse some; exactly those that
// it acknowledged are delivered.
func pipelined(p *probe) {
	const n = 200
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	s := c.authed()
	var frames []byte
	items := make([]string, n)
	for id := range n {
		items[id] = p.unique()
		frames = append(frames, p.fx.topic().acked(uint64(id), items[id])...)
	}
	s.send(frames)
	var accepted []string
	for id := range n {
		ok := fmt.Sprintf("ack %d ok", id)
		switch got := s.recv(); {
		case got == ok:
			accepted = append(accepted, items[id])
		case p.fx.Reference && got == fmt.Sprintf("ack %d %q", id, "publish queue full"):
		default:
			p.fail(ok, got)
		}
	}
	e.expect(accepted...)
}

// ackModes sends one kind of JSON publish with each ack mode: one JSON reply for each frame, none for none.
func ackModes(p *probe, request func(codec.AckMode, ...uint64) []byte, items ...string) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	s := c.authed()
	s.send(request(codec.AckPerMessage, 1))
	s.send(request(codec.AckPerBatch, 2))
	s.send(request(codec.AckNone, 3))
	s.send(request(codec.AckNone))
	s.send(request(codec.AckUnset, 4))
	s.expect("publish_ok 1", "publish_ok 2", "publish_ok 4")
	e.expect(slices.Repeat(items, 5)...)
	s.expectServed()
}

func emptyBatches(p *probe) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	s := c.authed()
	t := p.fx.topic()
	marker := p.unique()
	s.send(
		t.acked(1), t.binary(),
		codec.AppendPublishBatchJSON(nil, t.tenant, t.namespace, t.stream, nil, codec.AckPerBatch, 2, true),
		t.acked(3, marker),
	)
	s.expect("ack 1 ok", "publish_ok 2", "ack 3 ok")
	e.expect(marker)
}

// trailingBytes publishes batches with something after their last item; events.add looks for it.
func trailingBytes(p *probe) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	s := c.authed()
	t := p.fx.topic()
	items := []string{p.unique(), "", p.unique()}
	s.send(frame(0x0001, body(t.binary(items...))+"trailing"), rawAcked(7, 2, body(t.binary(items...))+"trailing"))
	s.expect("ack 7 ok")
	e.expect(slices.Repeat(items, 2)...)
}

// orderOfReplies mixes what is answered at once, what is published and what is refused, in both encodings.
func orderOfReplies(p *probe) {
	t, none, c := p.fx.topic(), p.fx.missing(), p.fx.store()
	s := p.authed()
	var frames []byte
	var replies []string
	add := func(reply string, f []byte) {
		frames = append(frames, f...)
		replies = append(replies, reply)
	}
	for id := uint64(0); id < 100; id += 10 {
		key := p.unique()
		add(fmt.Sprintf("ack %d ok", id), t.acked(id, "x"))
		add(fmt.Sprintf("publish_ok %d", id+1), t.publish(codec.AckPerMessage, id+1))
		add(fmt.Sprintf("ack %d %s", id+2, short(none.notFound())), none.acked(id+2, "x"))
		add(fmt.Sprintf("publish_error %d %s", id+3, short(none.notFound())), none.publish(codec.AckPerMessage, id+3))
		add(fmt.Sprintf("ack %d %q", id+4, "malformed publish batch"), rawAcked(id+4, 1, "\x00"))
		add(fmt.Sprintf("publish_ok %d", id+5), t.batch(codec.AckPerBatch, id+5))
		add(fmt.Sprintf("cache_ok %d", id+6), c.put(key, "v", id+6))
		add(c.value(key, "v", id+7), c.get(key, id+7))
		add(errorReply("unsupported frame flags"), frame(0x0100, ""))
		add(fmt.Sprintf("ack %d %q", id+9, "tenant mismatch"), p.fx.foreign().acked(id+9, "x"))
	}
	s.send(frames)
	s.expect(replies...)
}

func finBehindMany(p *probe) {
	s := p.authed()
	var frames []byte
	var replies []string
	for id := range uint64(500) {
		frames = append(frames, p.fx.topic().acked(id, "x")...)
		replies = append(replies, fmt.Sprintf("ack %d ok", id))
	}
	s.send(frames)
	s.finish()
	s.expect(replies...)
	s.expectEnd()
}

// uniCases are rows 29 and 30: publish streams without replies.
func uniCases(f *Fixture) []Case {
	t := f.topic()
	auth := func(p *probe) []byte {
		return codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, 0)
	}
	all := []Case{
		{ID: "RAW-29", Name: "publish stream: auth, 0x0001, JSON publish, FIN", run: func(p *probe) {
			c := p.dial(plain)
			e := c.subscribe(p.fx.Stream, live)
			u := c.openUni()
			a := p.unique()
			u.send(auth(p), t.binary(a, ""), t.publish(codec.AckUnset), t.batch(codec.AckPerBatch, 7))
			_ = u.s.Close()
			e.expect(a, "", "x", "x", "")
			c.authed().expectServed()
		}},
		{ID: "RAW-29b", Name: "publish stream: unknown streams are ignored", run: func(p *probe) {
			c := p.dial(plain)
			e := c.subscribe(p.fx.Stream, live)
			a := p.unique()
			c.openUni().send(auth(p), f.missing().binary("x"), f.missing().publish(codec.AckUnset), t.binary(a))
			e.expect(a)
		}},
	}
	for _, x := range []struct {
		id, name string
		bare     bool
		may      []string
		send     []byte
	}{
		{id: "RAW-30a", name: "publish without auth", bare: true, send: t.binary("x")},
		{id: "RAW-30b", name: "subscribe", send: t.subscribe(live)},
		{id: "RAW-30c", name: "JSON publish without auth", bare: true, send: t.publish(codec.AckNone)},
		{id: "RAW-30d", name: "second auth", send: codec.AppendAuth(nil, f.Tenant, "x", 0, false, 0)},
		{id: "RAW-30e", name: "failed auth", bare: true, send: codec.AppendAuth(nil, f.Tenant, "x.y.z", 0, false, 0)},
		{id: "RAW-30f", name: "0x0001 for another tenant", send: f.foreign().binary("x")},
		{id: "RAW-30g", name: "0x0001 without permission", may: []string{"stream.subscribe:*"}, send: t.binary("x")},
		{id: "RAW-30h", name: "cache_get", send: f.store().get("k", 7)},
		{id: "RAW-30i", name: "malformed 0x0001", send: frame(0x0001, "\x00")},
		{id: "RAW-30j", name: "wrong magic", send: []byte("felix-wire, or not")},
		{id: "D10a", name: "0x0009", send: t.acked(7, "x")},
		{id: "D10b", name: "unknown flags", send: frame(0x0041, body(t.binary("x")))},
	} {
		all = append(all, Case{ID: x.id, Name: "publish stream ends: " + x.name, run: func(p *probe) {
			c := p.dial(plain)
			e := c.subscribe(p.fx.Stream, live)
			u := c.openUni()
			if !x.bare {
				may := x.may
				if may == nil {
					may = allActions
				}
				u.send(codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(may...), codec.KnownFlags, true, 0))
			}
			u.send(x.send)
			p.expectStopped(u.s)
			// Nothing of it was published: the next event is this one.
			marker := p.unique()
			s := c.authed()
			s.send(t.acked(7, marker))
			s.expect("ack 7 ok")
			e.expect(marker)
		}})
	}
	return all
}
