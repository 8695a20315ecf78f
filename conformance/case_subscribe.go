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

// subscribeCases are rows 35 to 48 of the checklist.
func subscribeCases(f *Fixture) []Case {
	t := f.topic()
	all := []Case{
		{ID: "RAW-35", Name: "subscribe and FIN, then publish", run: subscribeThenPublish},
		{ID: "RAW-37", Name: "a second subscribe and a publish after the first are discarded", run: secondSubscribe},
	}
	all = append(all, cases(
		exchange{id: "RAW-38a", name: "subscribe to an unknown stream", send: f.missing().subscribe(live), replies: []string{errorReply(f.missing().notFound())}, then: clean},
		exchange{id: "RAW-38b", name: "subscribe without permission", may: []string{"stream.publish:*", "cache.read:*"}, send: t.subscribe(live), replies: []string{errorReply("forbidden")}, then: ends},
		exchange{id: "RAW-38c", name: "subscribe without permission to an unknown stream", may: []string{"stream.publish:*"}, send: f.missing().subscribe(live), replies: []string{errorReply("forbidden")}, then: ends},
	)...)
	for i, from := range []string{"middle", "tail", "latest", "earliest"} {
		all = append(all, Case{ID: fmt.Sprintf("RAW-42%c", 'a'+i), Name: "start at " + from, run: func(p *probe) { startAt(p, from) }})
	}
	return append(all,
		Case{ID: "RAW-42e", Name: "start beyond the tail", run: startInFuture},
		Case{ID: "RAW-42f", Name: "start below the retained range", run: startTooOld},
		Case{ID: "RAW-43", Name: "replay larger than the client's stream window", run: largeReplay},
		Case{ID: "RAW-45", Name: "1000 items, 200 KiB, in one frame", run: thousandItems},
		Case{ID: "RAW-46", Name: "one of three event streams is stopped", run: stopOne},
		Case{ID: "RAW-46b", Name: "a stopped subscription is forgotten at once", run: stoppedIsForgotten},
		Case{ID: "RAW-47", Name: "a subscriber that does not read, others on another connection", run: func(p *probe) { slowSubscriber(p, false) }},
		Case{ID: "D13", Name: "a subscriber that does not read, others on the same connection", run: func(p *probe) { slowSubscriber(p, true) }},
		Case{ID: "RAW-48", Name: "150 subscriptions on one connection", run: func(p *probe) { manySubscriptions(p, false) }},
		Case{ID: "D36", Name: "an event reaches each of 150 subscriptions of one connection", run: func(p *probe) { manySubscriptions(p, true) }},
		Case{ID: "D11a", Name: "a duplicate subscription id is refused, the first goes on", run: duplicateID},
		Case{ID: "D11b", Name: "ids that the broker chooses skip those in use", run: chosenIDs},
		Case{ID: "D12", Name: "no credit for an event stream", run: noCredit},
		Case{ID: "D18", Name: "replayed and live events both have offsets or neither", run: offsetsAgree},
		Case{ID: "D21", Name: "a stream that did not exist is found as soon as it does", run: createdStream},
		Case{ID: "S9-02", Name: "one subscription more than a connection may have", run: tooManySubscriptions},
		Case{ID: "S7-01", Name: "the end of the control stream does not wait for the replay", run: finBeforeReplay},
	)
}

// publishAll publishes each payload as a batch of its own, pipelined, and waits for the acknowledgements.
func (s *control) publishAll(t topic, payloads ...string) {
	var frames []byte
	replies := make([]string, len(payloads))
	for i, payload := range payloads {
		frames = append(frames, t.acked(uint64(i), payload)...)
		replies[i] = fmt.Sprintf("ack %d ok", i)
	}
	s.send(frames)
	s.expect(replies...)
}

// payloads returns n payloads of at least size bytes.
func (p *probe) payloads(n, size int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = p.unique()
		all[i] += strings.Repeat(".", max(size-len(all[i]), 0))
	}
	return all
}

func subscribeThenPublish(p *probe) {
	c := p.dial(plain)
	s := c.authed()
	s.send(p.fx.topic().subscribe(live))
	s.finish()
	e := c.subscribed(s)
	items := p.payloads(3, 0)
	c.authed().publishAll(p.fx.topic(), items...)
	e.expect(items...)
}

func secondSubscribe(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	s := c.authed()
	s.send(t.subscribe(live), t.subscribe(live), t.acked(7, "discarded"))
	e := c.subscribed(s) // and then FIN
	marker := p.unique()
	c.authed().publishAll(t, marker)
	e.expect(marker)
}

// tail asks for the offset that the next event of the stream will get.
func (c *conn) tail(t topic) uint64 {
	s := c.authed()
	s.send(t.subscribe(codec.Start{Kind: codec.StartOffset, Offset: math.MaxUint64}))
	got := s.recv()
	var tail uint64
	format := fmt.Sprintf("subscribe_cursor_error in_future requested=%d available=%%d", uint64(math.MaxUint64))
	if _, err := fmt.Sscanf(got, format, &tail); err != nil {
		c.p.fail(strings.Replace(format, "%d", "TAIL", 1), got)
	}
	s.expectEnd()
	return tail
}

func startAt(p *probe, from string) {
	c := p.dial(plain)
	t := p.fx.topic()
	s := c.authed()
	before := p.payloads(10, 0)
	tail := c.tail(t)
	s.publishAll(t, before...)
	if got := c.tail(t); got != tail+10 {
		p.fail(fmt.Sprintf("a tail of %d after 10 events", tail+10), fmt.Sprint(got))
	}
	var start codec.Start
	switch from {
	case "middle":
		start = codec.Start{Kind: codec.StartOffset, Offset: tail + 4}
		before = before[4:]
	case "tail":
		start = codec.Start{Kind: codec.StartOffset, Offset: tail + 10}
		before = nil
	case "latest":
		start.Kind = codec.StartLatest
		before = nil
	case "earliest":
		start.Kind = codec.StartEarliest
	}
	e := c.subscribe(p.fx.Stream, start)
	if from == "earliest" {
		e.skipTo(before[0])
		before = before[1:]
	}
	e.expect(before...)
	after := p.payloads(3, 0)
	s.publishAll(t, after...)
	e.expect(after...)
}

// skipTo reads events until one has this payload, and returns how many came before it.
func (e *events) skipTo(payload string) int {
	for n := 0; ; n++ {
		ev, end := e.recv()
		if end != "" {
			e.p.fail("event "+short(payload), end)
		}
		if ev.payload == payload {
			return n
		}
	}
}

func startInFuture(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	tail := c.tail(t)
	s := c.authed()
	s.send(t.subscribe(codec.Start{Kind: codec.StartOffset, Offset: tail + 1}))
	s.expect(fmt.Sprintf("subscribe_cursor_error in_future requested=%d available=%d", tail+1, tail))
	s.expectEnd()
}

// startTooOld publishes more than the broker keeps.
func startTooOld(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	s := c.authed()
	const perBatch = 64
	size := 2*p.fx.ReplayBytes/p.fx.ReplayEvents + 1
	batch := p.payloads(perBatch, size)
	for sent := 0; sent <= p.fx.ReplayEvents; sent += perBatch {
		s.send(t.acked(uint64(sent), batch...))
		s.expect(fmt.Sprintf("ack %d ok", sent))
	}
	marker := p.unique()
	s.publishAll(t, marker)
	tail := c.tail(t)

	refused := func(offset uint64) (oldest uint64) {
		s := c.authed()
		s.send(t.subscribe(codec.Start{Kind: codec.StartOffset, Offset: offset}))
		format := fmt.Sprintf("subscribe_cursor_error too_old requested=%d available=%%d", offset)
		got := s.recv()
		if _, err := fmt.Sscanf(got, format, &oldest); err != nil || oldest <= offset || oldest >= tail {
			p.fail(strings.Replace(format, "%d", "OLDEST", 1), got)
		}
		s.expectEnd()
		return oldest
	}
	oldest := refused(0)
	if again := refused(oldest - 1); again != oldest {
		p.fail(fmt.Sprintf("oldest %d", oldest), fmt.Sprint(again))
	}
	e := c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: oldest})
	if n := e.skipTo(marker); uint64(n) != tail-1-oldest {
		p.fail(fmt.Sprintf("%d events from offset %d to the last at %d", tail-1-oldest, oldest, tail-1), fmt.Sprint(n))
	}
}

// replayable are payloads that a new subscription replays from the first of them on: a quarter of what the broker
// keeps, since it may charge more than the bytes of events.
func (p *probe) replayable() []string {
	const size = 8 << 10
	return p.payloads(min(p.fx.ReplayBytes/4/size, p.fx.ReplayEvents/2), size)
}

// largeReplay does not read the event stream before the control stream has said "subscribed".
func largeReplay(p *probe) {
	c := p.dial(quicx.Config{StreamWindow: 16 << 10})
	t := p.fx.topic()
	tail := c.tail(t)
	items := p.replayable()
	c.authed().publishAll(t, items...)
	e := c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: tail})
	e.expect(items...)
}

// finBeforeReplay reads nothing of a replay that does not fit into the stream's window, and still sees FIN.
func finBeforeReplay(p *probe) {
	c := p.dial(quicx.Config{StreamWindow: 16 << 10})
	t := p.fx.topic()
	tail := c.tail(t)
	c.authed().publishAll(t, p.replayable()...)
	s := c.authed()
	s.send(t.subscribe(codec.Start{Kind: codec.StartOffset, Offset: tail}))
	s.expect("subscribed …", "FIN")
}

func thousandItems(p *probe) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	items := p.payloads(1000, 205)
	s := c.authed()
	s.send(p.fx.topic().acked(7, items...))
	s.expect("ack 7 ok")
	e.expect(items...)
}

func stopOne(p *probe) {
	c := p.dial(plain)
	var subs []*events
	for range 3 {
		subs = append(subs, c.subscribe(p.fx.Stream, live))
	}
	s := c.authed()
	items := p.payloads(20, 0)
	s.publishAll(p.fx.topic(), items[0])
	for _, e := range subs {
		e.expect(items[0])
	}
	subs[1].stop()
	for _, item := range items[1:] {
		s.publishAll(p.fx.topic(), item)
		subs[0].expect(item)
		subs[2].expect(item)
	}
}

// stoppedIsForgotten takes the id of a stopped subscription again, which is a duplicate until the broker has forgotten.
func stoppedIsForgotten(p *probe) {
	const id uint64 = 1 << 50
	c := p.dial(plain)
	subscribe := func() *control {
		s := c.authed()
		s.send(p.fx.topic().subscribe(live, id))
		return s
	}
	s := subscribe()
	s.expect(fmt.Sprintf("subscribed %d", id))
	c.accept(id).stop()
	deadline := p.deadline()
	for {
		s := subscribe()
		switch got := s.recv(); {
		case got == fmt.Sprintf("subscribed %d", id):
			return
		case got != errorReply("duplicate subscription id") || time.Now().After(deadline):
			p.fail(fmt.Sprintf("subscribed %d", id), got)
		}
		s.expectEnd()
	}
}

// slowSubscriber publishes far more than a stream window and a queue hold, while one subscription reads nothing. The
// others get everything; afterwards the slow one catches up, in order, with gaps.
func slowSubscriber(p *probe, sameConn bool) {
	const batches, perBatch, size = 200, 50, 1 << 10
	c := p.dial(quicx.Config{StreamWindow: 64 << 10})
	slow := c.subscribe(p.fx.Stream, live)
	if !sameConn {
		c = p.dial(plain)
	}
	healthy := []*events{c.subscribe(p.fx.Stream, live), c.subscribe(p.fx.Stream, live)}
	s := p.authed()
	var sent []string
	for i := range uint64(batches) {
		items := p.payloads(perBatch, size)
		sent = append(sent, items...)
		s.send(p.fx.topic().acked(i, items...))
		s.expect(fmt.Sprintf("ack %d ok", i))
		for _, e := range healthy {
			e.expect(items...)
		}
	}
	// What it gets is a part of what was sent, in order. A marker after each batch that it reads lets it catch up: when
	// nothing waits for it any more, the next marker cannot be lost.
	all := len(sent)
	for at, got := 0, 1; ; got++ {
		ev, end := slow.recv()
		if end != "" {
			p.fail("events for the slow subscriber", end)
		}
		next := slices.Index(sent[at:], ev.payload)
		if next < 0 {
			p.fail("events of the slow subscriber in order", short(ev.payload))
		}
		if at += next + 1; at > all {
			break // a marker: it has caught up
		}
		if got%perBatch == 0 {
			sent = append(sent, p.unique())
			s.publishAll(p.fx.topic(), sent[len(sent)-1])
		}
	}
	s.expectServed()
}

// manySubscriptions makes 150 subscriptions, and publishes one event to all of them.
func manySubscriptions(p *probe, publish bool) {
	const n = 150
	c := p.dial(plain)
	subs := make([]*events, n)
	for i := range subs {
		subs[i] = c.subscribe(p.fx.Stream, live)
	}
	if !publish {
		return
	}
	marker := p.unique()
	c.authed().publishAll(p.fx.topic(), marker)
	for _, e := range subs {
		e.expect(marker)
	}
}

func duplicateID(p *probe) {
	const id uint64 = 1 << 50
	c := p.dial(plain)
	t := p.fx.topic()
	s := c.authed()
	s.send(t.subscribe(live, id))
	s.expect(fmt.Sprintf("subscribed %d", id))
	e := c.accept(id)

	s = c.authed()
	s.send(t.subscribe(live, id))
	s.expect(errorReply("duplicate subscription id"))
	s.expectEnd()

	other := p.dial(plain) // ids are those of a connection
	s = other.authed()
	s.send(t.subscribe(live, id))
	s.expect(fmt.Sprintf("subscribed %d", id))

	marker := p.unique()
	c.authed().publishAll(t, marker)
	e.expect(marker)
	other.accept(id).expect(marker)
}

func chosenIDs(p *probe) {
	c := p.dial(plain)
	first := c.subscribe(p.fx.Stream, live)
	taken := make(map[uint64]*events)
	for id := first.id + 1; id <= first.id+5; id++ { // the next ones that the broker would choose
		s := c.authed()
		s.send(p.fx.topic().subscribe(live, id))
		s.expect(fmt.Sprintf("subscribed %d", id))
		taken[id] = c.accept(id)
	}
	for range 3 {
		if e := c.subscribe(p.fx.Stream, live); taken[e.id] != nil {
			p.fail("an id that is not in use", fmt.Sprintf("subscribed %d, which is", e.id))
		}
	}
}

func noCredit(p *probe) {
	c := p.dial(quicx.Config{MaxStreams: -1})
	s := c.authed()
	s.send(p.fx.topic().subscribe(live))
	s.expect(errorReply("open uni stream"))
	s.expectEnd()
	c.authed().expectServed()
}

func offsetsAgree(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	s := c.authed()
	tail := c.tail(t)
	before, after := p.payloads(3, 0), p.payloads(3, 0)
	s.publishAll(t, before...)
	e := c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: tail})
	e.expect(before...)
	s.publishAll(t, after...)
	e.expect(after...)
	if e.offsets != 0 && e.offsets != e.frames {
		p.fail("offsets on all event frames or on none", fmt.Sprintf("on %d of %d", e.offsets, e.frames))
	}
}

// createdStream looks a stream up in vain on a control stream, makes it, and looks again on the same one.
func createdStream(p *probe) {
	t := p.fx.topic()
	t.stream = p.unique()
	s := p.authed()
	s.send(t.acked(1, "x"), t.publish(codec.AckPerMessage, 2))
	s.expect("ack 1 "+short(t.notFound()), "publish_error 2 "+short(t.notFound()))
	p.must("making a stream", p.o.CreateStream(t.stream))
	s.send(t.acked(3, "x"), t.publish(codec.AckPerMessage, 4))
	s.expect("ack 3 ok", "publish_ok 4")
}

func tooManySubscriptions(p *probe) {
	n := p.fx.MaxSubscriptions
	c := p.dial(quicx.Config{MaxStreams: int64(n) + 16})
	token := p.fx.token(allActions...)
	request := slices.Concat(codec.AppendAuth(nil, p.fx.Tenant, token, 0, false, 0), p.fx.topic().subscribe(live))
	subscribe := func() *control {
		s := c.open()
		s.send(request)
		s.expect("ok")
		return s
	}
	for range n {
		s := subscribe()
		s.expect("subscribed …", "FIN")
	}
	s := subscribe()
	s.expect(errorReply("max subscriptions per connection exceeded"))
	s.expectEnd()
	p.dial(plain).subscribe(p.fx.Stream, live) // the limit is one of a connection
}
