package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// durableCases are the rows of the checklist about durable streams, and others once more for a durable stream. They
// need one that nobody else uses.
func durableCases() []Case {
	all := []Case{
		{ID: "IB-39", Name: "two subscribers of a durable stream, one with offsets", run: onDurable(durableOffsets)},
		{ID: "IB-40", Name: "durable stream, resume over the replay/live boundary", run: onDurable(durableResume)},
		{ID: "IC-39", Name: "client: two subscribers of a durable stream, one without extensions", run: onDurable(clientDurableOffsets)},
		{ID: "IC-40", Name: "client: durable stream, resume over the replay/live boundary", run: onDurable(clientDurableResume)},
		{ID: "IC-41", Name: "client: durable stream, replayed and live events on one event stream", run: onDurable(clientReplayThenLive)},
		{ID: "IC-42b", Name: "client: durable stream, all start positions", run: onDurable(clientDurableStarts)},
		{ID: "IC-43", Name: "client: durable stream, replay larger than the client's stream window", run: onDurable(clientDurableReplay)},
	}
	for i, from := range []string{"middle", "tail", "latest", "earliest"} {
		all = append(all, Case{ID: fmt.Sprintf("RAW-42%c", 'g'+i), Name: "durable stream, start at " + from, run: onDurable(func(p *probe) { startAt(p, from) })})
	}
	return append(all,
		Case{ID: "RAW-42k", Name: "durable stream, start beyond the tail", run: onDurable(startInFuture)},
		Case{ID: "RAW-43b", Name: "durable stream, replay larger than the client's stream window", run: onDurable(durableReplay)},
		Case{ID: "RAW-45b", Name: "durable stream, 1000 items, 200 KiB, in one frame", run: onDurable(thousandItems)},
		Case{ID: "IB-59", Name: "durable stream, 15 MiB item, live and replayed", run: onDurable(largestItem)},
		Case{ID: "IC-59", Name: "client: durable stream, 15 MiB item, live and replayed", run: onDurable(clientLargestItem)},
		Case{ID: "EX-01", Name: "durable stream, extension producer: a repeated publish is stored once", run: onDurable(repeatedPublish)},
		Case{ID: "EX-02", Name: "durable stream, extension producer: numbers below the window are refused", run: onDurable(oldSequence)},
	)
}

// onDurable runs a case with the fixture's durable stream as its stream.
func onDurable(run func(*probe)) func(*probe) {
	return func(p *probe) {
		fx := *p.fx
		fx.Stream = fx.DurableStream
		p.fx = &fx
		run(p)
	}
}

// authedWith opens an authenticated stream that offers these flags alone.
func (c *conn) authedWith(flags codec.Flags) *control {
	s := c.open()
	s.send(codec.AppendAuth(nil, c.p.fx.Tenant, c.p.fx.token(allActions...), flags, true, 0))
	s.expect("auth_ok 63")
	s.authed = true
	return s
}

// durableOffsets has each frame of one subscription carry the offset, live and replayed, and none of the other.
func durableOffsets(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	tail := c.tail(t)
	c.authed().publishAll(t, "past")
	subscribe := func(flags codec.Flags) *events {
		s := c.authedWith(flags)
		s.send(t.subscribe(codec.Start{Kind: codec.StartOffset, Offset: tail}))
		return c.subscribed(s)
	}
	with, without := subscribe(codec.KnownFlags), subscribe(codec.KnownFlags&^codec.FlagEventOffsets)
	items := p.payloads(20, 0)
	c.authed().publishAll(t, items...)
	items = append([]string{"past"}, items...)
	without.expect(items...)
	for i, item := range items {
		ev, end := with.recv()
		if end != "" || ev.payload != item || !ev.hasOffset || ev.offset != tail+uint64(i) {
			p.fail(fmt.Sprintf("%s at offset %d", short(item), tail+uint64(i)), fmt.Sprintf("%s at offset %d %s", short(ev.payload), ev.offset, end))
		}
	}
	if with.offsets != with.frames || without.offsets != 0 {
		p.fail("offsets on all frames of one subscription and on none of the other", fmt.Sprintf("on %d of %d, and on %d of %d", with.offsets, with.frames, without.offsets, without.frames))
	}
}

// durableResume reads 5 events live, goes away, and comes back after 3000 more, while others are published.
func durableResume(p *probe) {
	t := p.fx.topic()
	pub := p.authed()
	items := p.payloads(5+3000+100, 100)
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	tail := c.tail(t)
	pub.publishAll(t, items[:5]...)
	e.expect(items[:5]...)
	_ = c.qc.Close(0, "")

	pub.publishAll(t, items[5:3005]...)
	c = p.dial(plain)
	e = c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: tail + 5})
	for i, item := range items[5:] {
		if k := 3005 + i/30; i%30 == 0 && k < len(items) { // the last of them is read when all others were
			pub.publishAll(t, items[k])
		}
		ev, end := e.recv()
		if want := tail + 5 + uint64(i); end != "" || ev.payload != item || ev.offset != want {
			p.fail(fmt.Sprintf("%s at offset %d", short(item), want), fmt.Sprintf("%s at offset %d %s", short(ev.payload), ev.offset, end))
		}
	}
}

// durableReplay replays 4 MiB into a window of 16 KiB. Nothing is read before the control stream has said "subscribed".
func durableReplay(p *probe) {
	c := p.dial(quicx.Config{StreamWindow: 16 << 10})
	t := p.fx.topic()
	tail := c.tail(t)
	items := p.payloads(512, 8<<10)
	s := p.authed()
	for i := range 8 {
		s.publishAll(t, items[i*64:(i+1)*64]...)
	}
	c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: tail}).expect(items...)
}

// largestItem publishes an item that leaves 1 MiB of the largest frame, 15 MiB by default.
func largestItem(p *probe) {
	c := p.dial(plain)
	t := p.fx.topic()
	tail := c.tail(t)
	e := c.subscribe(p.fx.Stream, live)
	item := p.unique()
	item += strings.Repeat("x", max(p.fx.MaxFrameBytes/16*15-len(item), 0))
	c.authed().publishAll(t, item)
	e.expect(item)
	c.subscribe(p.fx.Stream, codec.Start{Kind: codec.StartOffset, Offset: tail}).expect(item)
}

// producer opens an authenticated stream that offers the extension producer, and makes a function that publishes an
// item with an origin. It returns nil for both if the broker does not know the extension, which it need not.
func (p *probe) producer() (*control, func(sequence uint64, repeated bool, item string)) {
	s := p.dial(plain).open()
	s.send(codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, codec.ExtProducer))
	f, end := p.next(s.s.Recv(), s.fr)
	var m codec.Message
	if end != "" || codec.ParseMessage(f.Payload(), &m) != nil || m.Type != codec.MsgAuthOK {
		p.fail("auth_ok", "another reply "+end)
	}
	if s.authed = true; m.Ext&codec.ExtProducer == 0 {
		return nil, nil
	}
	t, id, request := p.fx.topic(), [16]byte([]byte(rand.Text())), uint64(0)
	return s, func(sequence uint64, repeated bool, item string) {
		request++
		o := codec.Origin{Producer: id, Sequence: sequence, Repeated: repeated}
		s.send(codec.AppendPublishFrom(nil, o, request, codec.AckPerBatch, t.tenant, t.namespace, t.stream, [][]byte{[]byte(item)}))
	}
}

// repeatedPublish sends batches again, early and late, on the same connection and on another, and gets each once.
func repeatedPublish(p *probe) {
	s, give := p.producer()
	if s == nil {
		return
	}
	e := p.dial(plain).subscribe(p.fx.Stream, live)
	items := p.payloads(5, 0)
	for i, step := range []struct {
		item     int
		repeated bool
	}{{0, false}, {0, true}, {1, false}, {3, false}, {0, true}, {3, true}, {2, true}, {2, true}, {4, false}} {
		give(uint64(step.item)+100, step.repeated, items[step.item])
		s.expect(fmt.Sprintf("ack %d ok", i+1))
	}
	e.expect(items[0], items[1], items[3], items[2], items[4])
}

// oldSequence repeats a batch that is 1024 numbers back, which the broker knows no more.
func oldSequence(p *probe) {
	s, give := p.producer()
	if s == nil {
		return
	}
	e := p.dial(plain).subscribe(p.fx.Stream, live)
	items := p.payloads(3, 0)
	give(1, false, items[0])
	give(1024, false, items[1])
	give(1, true, items[0])
	give(1025, false, items[2])
	give(1, true, items[0])
	s.expect("ack 1 ok", "ack 2 ok", "ack 3 ok", "ack 4 ok", "ack 5 "+short("sequence not known"))
	e.expect(items...)
}

// clientDurableResume is durableResume with package client, by a position.
func clientDurableResume(p *probe) {
	c := p.client()
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	items := p.payloads(5+3000+100, 100)
	tail := p.dial(plain).tail(p.fx.topic())
	s := p.clientSubscribe(c)
	p.must("Publish", pub.Publish(p.ctx, byteItems(items[:5])...))
	s.expect(items[:5]...)
	_ = s.s.Close()
	for at := 5; at < 3005; at += 500 {
		p.must("Publish", pub.Publish(p.ctx, byteItems(items[at:at+500])...))
	}
	s = p.clientSubscribe(c, client.FromOffset(tail+5))
	published := make(chan error, 1)
	go func() {
		var err error
		for _, item := range items[3005:] {
			if err == nil {
				err = pub.Publish(p.ctx, []byte(item))
			}
		}
		published <- err
	}()
	s.expect(items[5:]...)
	p.must("Publish", <-published)
	if _, err := c.Subscribe(p.ctx, p.fx.Namespace, p.fx.Stream, client.FromOffset(math.MaxUint64)); err == nil {
		p.fail("a start in the future is refused", "subscribed")
	}
}

// expectFrom reads events that have consecutive offsets from first on.
func (s clientSub) expectFrom(first uint64, payloads ...string) {
	for i, want := range payloads {
		ctx, cancel := context.WithTimeout(s.p.ctx, s.p.o.ReplyTimeout)
		ev, err := s.s.Next(ctx)
		cancel()
		offset := first + uint64(i)
		switch {
		case err != nil:
			s.p.fail(fmt.Sprintf("%s at offset %d", short(want), offset), s.p.waitText(err))
		case ev.Gap != nil || string(ev.Payload) != want || !ev.HasOffset || ev.Offset != offset:
			s.p.fail(fmt.Sprintf("%s at offset %d", short(want), offset), fmt.Sprintf("%s at offset %d, gap %v", short(string(ev.Payload)), ev.Offset, ev.Gap))
		}
	}
}

// clientDurableOffsets has two clients read the same events, one of which agrees on no extension.
func clientDurableOffsets(p *probe) {
	c := p.client()
	tail := p.dial(plain).tail(p.fx.topic())
	with, without := p.clientSubscribe(c), p.clientSubscribe(p.client(client.WithoutExtensions()))
	items := p.payloads(20, 0)
	p.must("Publish", c.Publisher(p.fx.Namespace, p.fx.Stream).Publish(p.ctx, byteItems(items)...))
	with.expectFrom(tail, items...)
	without.expect(items...)
}

// clientReplayThenLive begins in the past and goes on with what is published meanwhile, without a gap in the offsets.
func clientReplayThenLive(p *probe) {
	c := p.client()
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	tail := p.dial(plain).tail(p.fx.topic())
	items := p.payloads(20, 0)
	items[3] = ""
	p.must("Publish", pub.Publish(p.ctx, byteItems(items[:10])...))
	s := p.clientSubscribe(c, client.FromOffset(tail))
	s.expectFrom(tail, items[:10]...)
	for i := 10; i < len(items); i++ {
		p.must("Publish", pub.Publish(p.ctx, []byte(items[i])))
	}
	s.expectFrom(tail+10, items[10:]...)
}

// clientDurableStarts begins at each of the positions that there are.
func clientDurableStarts(p *probe) {
	c := p.client()
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	tail := p.dial(plain).tail(p.fx.topic())
	items := p.payloads(10, 0)
	p.must("Publish", pub.Publish(p.ctx, byteItems(items)...))
	middle := p.clientSubscribe(c, client.FromOffset(tail+4))
	end := p.clientSubscribe(c, client.FromOffset(tail+10))
	latest := p.clientSubscribe(c, client.FromLatest())
	earliest := p.clientSubscribe(c, client.FromEarliest())
	position := p.clientSubscribe(c, client.FromOffset(tail+2))
	position.expectFrom(tail+2, items[2:4]...)
	at, known := position.s.Position()
	after := p.payloads(3, 0)
	p.must("Publish", pub.Publish(p.ctx, byteItems(after)...))
	middle.expectFrom(tail+4, append(slices.Clone(items[4:]), after...)...)
	end.expectFrom(tail+10, after...)
	latest.expectFrom(tail+10, after...)
	for earliest.next() != items[0] {
	}
	earliest.expectFrom(tail+1, append(slices.Clone(items[1:]), after...)...)
	if known { // of a broker that tells positions
		p.clientSubscribe(c, client.FromPosition(at)).expectFrom(tail+4, append(slices.Clone(items[4:]), after...)...)
	}
	_, err := c.Subscribe(p.ctx, p.fx.Namespace, p.fx.Stream, client.FromOffset(tail+14))
	if e, ok := errors.AsType[*client.CursorError](err); !ok || e.TooOld || e.Available != tail+13 {
		p.fail(fmt.Sprintf("in the future, with %d available", tail+13), fmt.Sprint(err))
	}
}

// clientDurableReplay replays 4 MiB into a window of 16 KiB.
func clientDurableReplay(p *probe) {
	c := p.client(client.WithTransport(client.Transport{StreamWindow: 16 << 10}))
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	tail := p.dial(plain).tail(p.fx.topic())
	items := p.payloads(512, 8<<10)
	for i := range 8 {
		p.must("Publish", pub.Publish(p.ctx, byteItems(items[i*64:(i+1)*64])...))
	}
	p.clientSubscribe(c, client.FromOffset(tail)).expectFrom(tail, items...)
}

// clientLargestItem is largestItem with package client.
func clientLargestItem(p *probe) {
	c := p.client()
	tail := p.dial(plain).tail(p.fx.topic())
	s := p.clientSubscribe(c)
	item := p.unique()
	item += strings.Repeat("x", max(p.fx.MaxFrameBytes/16*15-len(item), 0))
	p.must("Publish", c.Publisher(p.fx.Namespace, p.fx.Stream).Publish(p.ctx, []byte(item)))
	s.expectFrom(tail, item)
	p.clientSubscribe(c, client.FromOffset(tail)).expectFrom(tail, item)
}
