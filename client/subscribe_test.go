package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// TestSubscribeRefused answers a subscribe with each refusal.
func TestSubscribeRefused(t *testing.T) {
	const text = "stream not found: tenant=t1 namespace=default stream=demo"
	for _, tc := range []struct {
		name  string
		reply []byte
		check func(err error) bool
	}{
		{"error", codec.AppendError(nil, text), func(err error) bool {
			e, ok := errors.AsType[*client.BrokerError](err)
			return ok && e.Message == text
		}},
		{"too_old", codec.AppendSubscribeCursorError(nil, codec.CursorTooOld, 3, 16), func(err error) bool {
			e, ok := errors.AsType[*client.CursorError](err)
			return ok && *e == client.CursorError{TooOld: true, Requested: 3, Available: 16} && strings.Contains(e.Error(), "too old")
		}},
		{"in_future", codec.AppendSubscribeCursorError(nil, codec.CursorInFuture, 1<<64-1, 0), func(err error) bool {
			e, ok := errors.AsType[*client.CursorError](err)
			return ok && *e == client.CursorError{Requested: 1<<64 - 1} && strings.Contains(e.Error(), "future")
		}},
		{"another message", codec.AppendPublishOK(nil, 1), func(err error) bool { return errors.Is(err, client.ErrProtocol) }},
		{"nothing but FIN", nil, func(err error) bool { return errors.Is(err, client.ErrDisconnected) }},
	} {
		for _, start := range []client.SubscribeOption{client.FromLatest(), client.FromOffset(3)} {
			t.Run(tc.name, func(t *testing.T) {
				p := newPeer(t)
				c, _, _ := p.dialogue(codec.KnownFlags)
				wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo", start) })
				_, ctl := p.acceptControl()
				p.must(ctl.Auth(codec.KnownFlags))
				expect(p, ctl, codec.MsgSubscribe)
				ctl.StopReading() // the reference does so before its reply
				if tc.reply != nil {
					p.must(ctl.Send(tc.reply))
				}
				ctl.Finish()
				if _, err := wait(); !tc.check(err) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// TestStartPositions looks at what the broker is asked, and asks nothing of one that knows no positions.
func TestStartPositions(t *testing.T) {
	for _, tc := range []struct {
		name       string
		opts       []client.SubscribeOption
		want       codec.Start
		positioned bool
	}{
		{"none", nil, codec.Start{}, false},
		{"latest", []client.SubscribeOption{client.FromLatest()}, codec.Start{Kind: codec.StartLatest}, false},
		{"earliest", []client.SubscribeOption{client.FromEarliest()}, codec.Start{Kind: codec.StartEarliest}, true},
		{"offset", []client.SubscribeOption{client.FromOffset(1<<64 - 1)}, codec.Start{Kind: codec.StartOffset, Offset: 1<<64 - 1}, true},
		{"offset 0", []client.SubscribeOption{client.FromOffset(0)}, codec.Start{Kind: codec.StartOffset}, true},
	} {
		for _, flags := range []codec.Flags{codec.KnownFlags, codec.KnownFlags &^ codec.FlagEventOffsets} {
			t.Run(fmt.Sprintf("%s, flags %d", tc.name, flags), func(t *testing.T) {
				p := newPeer(t)
				c, _, _ := p.dialogue(flags)
				wait := begin(p, func() (*client.Subscription, error) {
					return c.Subscribe(p.ctx, "default", "demo", tc.opts...)
				})
				conn, ctl := p.acceptControl()
				p.must(ctl.Auth(flags))
				if tc.positioned && flags&codec.FlagEventOffsets == 0 {
					if _, err := wait(); !errors.Is(err, client.ErrUnsupported) {
						t.Errorf("got %v", err)
					}
					p.must(ctl.ExpectEnd())
					return
				}
				r := expect(p, ctl, codec.MsgSubscribe)
				if r.Start != tc.want && (r.Start != codec.Start{} || tc.want.Kind != codec.StartLatest) {
					t.Errorf("the broker was asked for %+v, want %+v", r.Start, tc.want)
				}
				p.must(ctl.ExpectEnd())
				ev, err := conn.OpenEvents(9)
				p.must(err)
				p.must(ctl.Send(codec.AppendSubscribed(nil, 9)))
				sub, err := wait()
				p.must(err)
				if sub.ID() != 9 {
					t.Errorf("id %d, want 9", sub.ID())
				}
				p.must(sub.Close())
				p.await("the end of the event stream", ev.Done())
			})
		}
	}
}

// event is what a test compares.
type event struct {
	payload string
	offset  int64 // -1: none
}

func read(p *peer, sub *client.Subscription, n int) []event {
	p.tb.Helper()
	var got []event
	for range n {
		ev, err := sub.Next(p.ctx)
		p.must(err)
		e := event{string(ev.Payload), -1}
		if ev.HasOffset {
			e.offset = int64(ev.Offset)
		}
		got = append(got, e)
	}
	return got
}

// TestEventLayouts sends every form of an event frame, mixed, with what a broker may add to it.
func TestEventLayouts(t *testing.T) {
	const id = 1<<64 - 3
	var frames []byte
	var want []event
	add := func(f []byte, events ...event) {
		frames = append(frames, f...)
		want = append(want, events...)
	}
	trailing := func(f []byte) []byte {
		head := len(f) - codec.HeaderLen
		return append(append(codec.AppendHeader(nil, codec.LayoutSharedOffsets, head+3), f[codec.HeaderLen:]...), 1, 2, 3)
	}
	json := func(payload string) []byte {
		return append(codec.AppendHeader(nil, codec.LayoutJSON, len(payload)), payload...)
	}
	for range 2 {
		add(codec.AppendEventBatch(nil, codec.LayoutEvent, id, 0, batch("a", "")), event{"a", -1}, event{"", -1})
		add(codec.AppendEventBatch(nil, codec.LayoutEventOffsets, id, 40, batch("b", "c")), event{"b", 40}, event{"c", 41})
		add(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("d")), event{"d", -1})
		add(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, nil))
		add(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 50, nil))
		add(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 50, batch("e", strings.Repeat("f", 20_000))), event{"e", 50}, event{strings.Repeat("f", 20_000), 51})
		add(codec.AppendEvent(nil, "t1", "default", "demo", []byte("g"), 7, true), event{"g", 7})
		add(codec.AppendEvent(nil, "t1", "default", "demo", nil, 0, false), event{"", -1})
		add(json(`{"type":"event","tenant_id":"t1","namespace":"n","stream":"s","payload":"aA==","offset":null,"new":1}`), event{"h", -1})
		add(codec.AppendEventBatchJSON(nil, "t1", "default", "demo", batch("i", "j"), 8, true), event{"i", 8}, event{"j", 9})
		add(codec.AppendEventBatchJSON(nil, "t1", "default", "demo", nil, 8, true))
		add(trailing(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 60, batch("k"))), event{"k", 60})
	}
	for _, piece := range []int{len(frames), 7, 1000} {
		t.Run(fmt.Sprintf("in writes of %d bytes", piece), func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags)
			sub, _, ev := p.subscribe(c, id)
			sent := do(p, func() error { return ev.SendPieces(frames, piece) })
			if got := read(p, sub, len(want)); !slices.Equal(got, want) {
				t.Errorf("got %.500v\nwant %.500v", got, want)
			}
			p.must(sent())
		})
	}
}

// TestNextBatch reads the same frames as batches, and mixed with Next.
func TestNextBatch(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)
	next := func(want string, offset int64) {
		t.Helper()
		if got := read(p, sub, 1)[0]; got != (event{want, offset}) {
			t.Errorf("Next: got %v, want %q at %d", got, want, offset)
		}
	}
	nextBatch := func(want string, base int64) {
		t.Helper()
		b, err := sub.NextBatch(p.ctx)
		p.must(err)
		var got []string
		for i, payload := range b.Payloads() {
			if i != len(got) {
				t.Errorf("position %d of event %d", i, len(got))
			}
			got = append(got, string(payload))
		}
		if strings.Join(got, " ") != want || b.Len() != len(got) || b.HasOffset != (base >= 0) || base >= 0 && b.BaseOffset != uint64(base) {
			t.Errorf("NextBatch: got %q, Len %d, offset %d (%v), want %q at %d", got, b.Len(), b.BaseOffset, b.HasOffset, want, base)
		}
	}
	for range 2 {
		p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 10, batch("a", "b", "c"))))
		p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("d"))))
		p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutEventOffsets, 5, 20, batch("e", "f"))))
		p.must(ev.Send(codec.AppendEventBatchJSON(nil, "t1", "n", "s", batch("g", "h"), 30, true)))
	}
	nextBatch("a b c", 10)
	next("d", -1)
	next("e", 20)
	next("f", 21)
	nextBatch("g h", 30)
	next("a", 10)
	nextBatch("d", -1) // b and c are skipped
	next("e", 20)
	nextBatch("g h", 30) // and f
}

// TestViews holds what the documentation says: a payload lives until the next call, also after an empty frame, and its
// capacity ends with it.
func TestViews(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("aaaa", "bbbb"))))
	e, err := sub.Next(p.ctx)
	p.must(err)
	_ = append(e.Payload, "overwritten"...)
	// Much more arrives while the view is held.
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, [][]byte{bytes.Repeat([]byte("z"), 100_000)})))
	if string(e.Payload) != "aaaa" {
		t.Errorf("the view has become %q", e.Payload)
	}
	e, err = sub.Next(p.ctx)
	p.must(err)
	if string(e.Payload) != "bbbb" {
		t.Errorf("the next event is %q", e.Payload)
	}
}

// TestSubscriptionEnds ends a subscription in every way, with an event in front of it. The error stays.
func TestSubscriptionEnds(t *testing.T) {
	good := codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("good"))
	frame := func(flags codec.Flags, payload []byte) func(_ *script.Conn, ev *script.Events) error {
		return func(_ *script.Conn, ev *script.Events) error {
			f := append(codec.AppendHeader(nil, flags, len(payload)), payload...)
			return ev.Send(append(f, good...)) // what follows is not delivered
		}
	}
	items := codec.AppendItems(nil, batch("x"))
	for _, tc := range []struct {
		name string
		end  func(conn *script.Conn, ev *script.Events) error
		want error
	}{
		{"FIN", func(_ *script.Conn, ev *script.Events) error { ev.Finish(); return nil }, client.ErrEnded},
		{"RESET_STREAM", func(_ *script.Conn, ev *script.Events) error { ev.Reset(); return nil }, errReset},
		{"connection closed", func(conn *script.Conn, _ *script.Events) error { conn.ShutDown(); return nil }, net.ErrClosed},
		{"FIN in a header", func(_ *script.Conn, ev *script.Events) error {
			_ = ev.Send(good[:7])
			ev.Finish()
			return nil
		}, client.ErrProtocol},
		{"FIN in a payload", func(_ *script.Conn, ev *script.Events) error {
			_ = ev.Send(good[:20])
			ev.Finish()
			return nil
		}, client.ErrProtocol},
		{"RESET_STREAM in a frame", func(_ *script.Conn, ev *script.Events) error {
			_ = ev.Send(good[:20])
			ev.Reset()
			return nil
		}, errReset},
		{"wrong magic", func(_ *script.Conn, ev *script.Events) error { return ev.Send(make([]byte, 12)) }, client.ErrProtocol},
		{"oversized frame", func(_ *script.Conn, ev *script.Events) error {
			return ev.Send(codec.AppendHeader(nil, codec.LayoutShared, codec.DefaultMaxFrame+65))
		}, client.ErrProtocol},
		{"another subscription", frame(codec.LayoutEvent, append([]byte{0, 0, 0, 0, 0, 0, 0, 6}, items...)), client.ErrProtocol},
		{"another subscription, offsets", frame(codec.LayoutEventOffsets, append(make([]byte, 16), items...)), client.ErrProtocol},
		{"unknown flags", frame(0x0044, items), client.ErrProtocol},
		{"flags that do not go together", frame(0x0006, items), client.ErrProtocol},
		{"a publish", frame(codec.LayoutPublish, items), client.ErrProtocol},
		{"count too large", frame(codec.LayoutShared, []byte{255, 255, 255, 255}), client.ErrProtocol},
		{"item too long", frame(codec.LayoutShared, []byte{0, 0, 0, 1, 0, 0, 0, 9, 'x'}), client.ErrProtocol},
		{"no space for an offset", frame(codec.LayoutSharedOffsets, items[:9]), client.ErrProtocol},
		{"no payload", frame(codec.LayoutShared, nil), client.ErrProtocol},
		{"malformed JSON", frame(codec.LayoutJSON, []byte(`{"type":"event"`)), client.ErrProtocol},
		{"a second hello", func(_ *script.Conn, ev *script.Events) error {
			return ev.Send(append(codec.AppendEventStreamHello(nil, 5), good...))
		}, client.ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags)
			sub, conn, ev := p.subscribe(c, 5)
			p.must(ev.Send(good))
			if got := read(p, sub, 1)[0]; got.payload != "good" {
				t.Errorf("got %v", got)
			}
			p.must(tc.end(conn, ev))
			for i := range 3 {
				var err error
				if i == 1 {
					_, err = sub.NextBatch(p.ctx)
				} else {
					_, err = sub.Next(p.ctx)
				}
				if !matches(err, tc.want) {
					t.Errorf("read %d: got %v, want %v", i, err, tc.want)
				}
			}
			p.await("the end of the event stream", ev.Done())
			p.must(sub.Close())
			if _, err := sub.Next(p.ctx); !errors.Is(err, client.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// TestHellos sends event streams that do not begin as they should: next to one that does, which is not held up, and
// alone.
func TestHellos(t *testing.T) {
	event := codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("x"))
	for _, tc := range []struct {
		name string
		sent []byte
		late bool // it is refused when its time is over
	}{
		{"events in front of it", append(slices.Clone(event), codec.AppendEventStreamHello(nil, 5)...), false},
		{"another message", codec.AppendSubscribed(nil, 5), false},
		{"a binary frame of the right length", append(codec.AppendHeader(nil, codec.LayoutShared, 49), make([]byte, 49)...), false},
		{"wrong magic", []byte("hello, world"), false},
		{"incomplete", codec.AppendEventStreamHello(nil, 5)[:20], true},
		{"of another subscription", codec.AppendEventStreamHello(nil, 6), true},
		{"oversized", codec.AppendHeader(nil, 0, codec.DefaultMaxFrame+65), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags)
			wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
			conn, ctl := p.acceptControl()
			bad, err := conn.OpenBare()
			p.must(err)
			p.must(bad.Send(tc.sent))
			ev := p.subscribed(conn, ctl, 5)
			sub, err := wait()
			p.must(err)
			defer sub.Close()
			p.must(ev.Send(event))
			if got := read(p, sub, 1)[0]; got.payload != "x" {
				t.Errorf("got %v", got)
			}
		})
		t.Run(tc.name+", alone", func(t *testing.T) {
			p := newPeer(t)
			timeout := time.Hour
			if tc.late {
				timeout = 10 * time.Millisecond
			}
			_, conn, _ := p.dialogue(codec.KnownFlags, client.WithRequestTimeout(timeout))
			bad, err := conn.OpenBare()
			p.must(err)
			p.must(bad.Send(tc.sent))
			p.await("the refusal of the bad stream", bad.Done())
		})
	}

	t.Run("twice", func(t *testing.T) {
		p := newPeer(t)
		c, _, _ := p.dialogue(codec.KnownFlags)
		wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
		conn, ctl := p.acceptControl()
		first, err := conn.OpenEvents(5)
		p.must(err)
		second, err := conn.OpenEvents(5)
		p.must(err)
		// One of the two is refused at once. Which one is heard first is not said.
		select {
		case <-first.Done():
		case <-second.Done():
		case <-p.ctx.Done():
			t.Fatal("both streams were accepted")
		}
		p.must(ctl.Auth(codec.KnownFlags))
		p.must(ctl.Send(codec.AppendSubscribed(nil, 5)))
		sub, err := wait()
		p.must(err)
		sub.Close()
	})

	t.Run("never", func(t *testing.T) {
		patiently(t, 100*time.Millisecond, func(p *peer, limit time.Duration) bool {
			c, _, _ := p.dialogue(codec.KnownFlags, client.WithRequestTimeout(limit))
			answered := p.meanwhile(func(ctl *script.Control) error {
				if err := ctl.Auth(codec.KnownFlags); err != nil {
					return err
				}
				if _, err := ctl.Expect(codec.MsgSubscribe); err != nil {
					return err
				}
				return ctl.Send(codec.AppendSubscribed(nil, 5))
			})
			err := do(p, func() error { _, err := c.Subscribe(context.Background(), "default", "demo"); return err })()
			if !errors.Is(err, client.ErrTimeout) {
				p.tb.Errorf("got %v", err)
			}
			return answered()
		})
	})
}

// TestSubscribeGivenUp cancels a Subscribe at each step of the exchange. The event stream that the broker opens for it
// is refused as soon as its id is known.
func TestSubscribeGivenUp(t *testing.T) {
	reason := errors.New("reason")
	for _, tc := range []struct {
		name                   string
		helloFirst, subscribed bool // before the caller gives up
	}{
		{"before any answer", false, false},
		{"between hello and subscribed", true, false},
		{"between subscribed and hello", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags)
			ctx, cancel := context.WithCancelCause(p.ctx)
			wait := do(p, func() error { _, err := c.Subscribe(ctx, "default", "demo"); return err })
			conn, ctl := p.acceptControl()
			p.must(ctl.Auth(codec.KnownFlags))
			expect(p, ctl, codec.MsgSubscribe)
			var ev *script.Events
			var err error
			if tc.helloFirst {
				ev, err = conn.OpenEvents(5)
				p.must(err)
			}
			if tc.subscribed {
				p.must(ctl.Send(codec.AppendSubscribed(nil, 5)))
			}
			cancel(reason)
			if err := wait(); !errors.Is(err, reason) {
				t.Errorf("got %v", err)
			}
			if !tc.subscribed {
				p.must(ctl.Send(codec.AppendSubscribed(nil, 5)))
			}
			if !tc.helloFirst {
				ev, err = conn.OpenEvents(5)
				p.must(err)
			}
			p.await("the end of the event stream", ev.Done())
		})
	}
}

// TestNextEnds ends a read that waits. Unless the subscription is over, nothing is lost.
func TestNextEnds(t *testing.T) {
	reason := errors.New("reason")
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)

	canceled, cancel := context.WithCancelCause(p.ctx)
	cancel(reason)
	if _, err := sub.Next(canceled); !errors.Is(err, reason) {
		t.Errorf("canceled before: %v", err)
	}
	for i := range 20 {
		ctx, cancel := context.WithCancelCause(p.ctx)
		wait := do(p, func() error { _, err := sub.Next(ctx); return err })
		cancel(reason)
		if err := wait(); !errors.Is(err, reason) {
			t.Errorf("canceled: %v", err)
		}
		short, stop := context.WithTimeout(p.ctx, time.Millisecond)
		if _, err := sub.NextBatch(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
		stop()
		// A frame that arrives in two halves around a canceled read is whole for the next one.
		f := codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch(fmt.Sprint(i)))
		p.must(ev.Send(f[:15]))
		short, stop = context.WithTimeout(p.ctx, time.Millisecond)
		if _, err := sub.Next(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline inside a frame: %v", err)
		}
		stop()
		p.must(ev.Send(f[15:]))
		if got := read(p, sub, 1)[0].payload; got != fmt.Sprint(i) {
			t.Errorf("got %s, want %d", got, i)
		}
	}

	wait := do(p, func() error { _, err := sub.Next(p.ctx); return err })
	p.must(sub.Close())
	if err := wait(); !errors.Is(err, client.ErrClosed) {
		t.Errorf("subscription closed: %v", err)
	}
	p.await("the end of the event stream", ev.Done())
	p.must(sub.Close())
}

// TestNextAndClientClose closes the client under a read.
func TestNextAndClientClose(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, _ := p.subscribe(c, 5)
	wait := do(p, func() error { _, err := sub.Next(p.ctx); return err })
	p.must(c.Close())
	if err := wait(); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Subscribe(p.ctx, "default", "demo"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("Subscribe: %v", err)
	}
}

// oddContext is a context that cannot be compared.
type oddContext struct {
	context.Context
	values map[string]string
}

func TestContextThatCannotBeCompared(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)
	ctx := oddContext{p.ctx, map[string]string{}}
	for _, s := range []string{"a", "b"} {
		p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch(s))))
		if e, err := sub.Next(ctx); err != nil || string(e.Payload) != s {
			t.Errorf("got %q, %v", e.Payload, err)
		}
	}
}

// TestSlowReader does not read until the broker is stopped by flow control. Nothing is dropped, and another
// subscription on the same connection goes on meanwhile.
func TestSlowReader(t *testing.T) {
	const frames = 400
	payload := bytes.Repeat([]byte("p"), 4096)
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags, client.WithTransport(client.Transport{EventConns: 1, SubscriptionsPerConn: 2, StreamWindow: 64 << 10}))
	slow, conn, slowEvents := p.subscribe(c, 1)
	wait := begin(p, func() (*client.Subscription, error) {
		return c.Subscribe(p.ctx, "default", "demo", client.WithoutResume())
	})
	ctl, err := conn.AcceptControl()
	p.must(err)
	quickEvents := p.subscribed(conn, ctl, 2)
	quick, err := wait()
	p.must(err)
	defer quick.Close()

	send := func(ev *script.Events) func() error {
		return do(p, func() error {
			for i := range uint64(frames) {
				if err := ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, i, [][]byte{payload})); err != nil {
					return err
				}
			}
			ev.Finish()
			return nil
		})
	}
	check := func(name string, sub *client.Subscription) {
		for i := range uint64(frames) {
			e, err := sub.Next(p.ctx)
			p.must(err)
			if e.Offset != i || !bytes.Equal(e.Payload, payload) {
				t.Fatalf("%s: event %d has the offset %d and %d bytes", name, i, e.Offset, len(e.Payload))
			}
		}
		if _, err := sub.Next(p.ctx); !errors.Is(err, client.ErrEnded) {
			t.Errorf("%s: after the last event: %v", name, err)
		}
	}
	slowSent, quickSent := send(slowEvents), send(quickEvents)
	check("quick", quick)
	p.must(quickSent())
	check("slow", slow)
	p.must(slowSent())
}

// TestEventConnections counts the connections that subscriptions are spread over.
func TestEventConnections(t *testing.T) {
	p := newPeer(t)
	n := script.NewNormal()
	var mu sync.Mutex
	perConn := make(map[*script.Conn]int)
	n.Hook = func(conn *script.Conn, _ *script.Control, r *script.Request) (bool, error) {
		if r.Type == codec.MsgSubscribe {
			mu.Lock()
			perConn[conn]++
			mu.Unlock()
		}
		return false, nil
	}
	p.serve(n)
	c := p.connect(client.WithTransport(client.Transport{EventConns: 2, SubscriptionsPerConn: 3}))
	counts := func() []int {
		mu.Lock()
		defer mu.Unlock()
		var sorted []int
		for _, count := range perConn {
			sorted = append(sorted, count)
		}
		slices.Sort(sorted)
		return sorted
	}
	var subs []*client.Subscription
	subscribe := func(n int) {
		t.Helper()
		for range n {
			sub, err := c.Subscribe(p.ctx, "default", "demo")
			p.must(err)
			subs = append(subs, sub)
		}
	}
	for _, step := range []struct {
		add  int
		want []int
	}{
		{1, []int{1}},
		{1, []int{1, 1}},
		{2, []int{2, 2}},
		{2, []int{3, 3}},
		{1, []int{1, 3, 3}}, // past the bound
		{2, []int{3, 3, 3}},
	} {
		subscribe(step.add)
		if got := counts(); !slices.Equal(got, step.want) {
			t.Errorf("%d subscriptions: got %v, want %v", len(subs), got, step.want)
		}
	}
	// A place that was given back is taken again, and no connection is opened for it.
	p.must(subs[0].Close())
	subscribe(1)
	if got := counts(); len(got) != 3 {
		t.Errorf("after Close: got %v", got)
	}
	p.must(c.Publisher("default", "demo").Publish(p.ctx, []byte("to all")))
	for i, sub := range subs {
		if i == 0 {
			continue
		}
		if e, err := sub.Next(p.ctx); err != nil || string(e.Payload) != "to all" {
			t.Errorf("subscription %d: %q, %v", i, e.Payload, err)
		}
		p.must(sub.Close())
	}
}

// TestManySubscriptions puts more subscriptions on one connection than QUIC libraries grant by default.
func TestManySubscriptions(t *testing.T) {
	const subscriptions = 150
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect(client.WithTransport(client.Transport{EventConns: 1, SubscriptionsPerConn: subscriptions, StreamWindow: 32 << 10}))
	var subs [subscriptions]*client.Subscription
	var wg sync.WaitGroup
	for i := range subs {
		wg.Go(func() {
			sub, err := c.Subscribe(p.ctx, "default", "demo", client.FromEarliest())
			if err != nil {
				t.Error(err)
				return
			}
			subs[i] = sub
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	p.must(c.Publisher("default", "demo").Publish(p.ctx, []byte("x")))
	for _, sub := range subs {
		if got := read(p, sub, 1)[0]; got != (event{"x", 0}) {
			t.Errorf("got %v", got)
		}
		p.must(sub.Close())
	}
}
