package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// quick makes a client that does not wait long between attempts.
func quick() client.Option { return client.WithBackoff(time.Millisecond, 10*time.Millisecond) }

// feedOf answers auth and subscribe on the next stream of the next connection, and returns what was asked for.
func (p *peer) feedOf(id uint64, ext bool) (*script.Request, *script.Conn, *script.Events) {
	p.tb.Helper()
	conn, ctl := p.acceptControl()
	if ext {
		expect(p, ctl, codec.MsgAuth)
		p.must(ctl.Send(codec.AppendAuthOK(nil, codec.KnownFlags, codec.ExtGaps, true)))
	} else {
		p.must(ctl.Auth(codec.KnownFlags))
	}
	r := expect(p, ctl, codec.MsgSubscribe)
	ev, err := conn.OpenEvents(id)
	p.must(err)
	p.must(ctl.Send(codec.AppendSubscribed(nil, id)))
	ctl.Finish()
	return r, conn, ev
}

// TestResume loses the event stream in each way, and looks at where the client subscribes again.
func TestResume(t *testing.T) {
	position := codec.AppendPosition(nil, codec.Position{Epoch: 7, Offset: 10})
	offsets := codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 10, batch("a", "b"))
	plain := codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("a", "b"))
	replayed := codec.AppendEventBatch(nil, codec.LayoutEventOffsets, 1, 10, batch("a", "b"))
	for _, tc := range []struct {
		name    string
		opts    []client.SubscribeOption
		ext     bool
		sent    []byte
		read    int // events before the loss
		epoch   uint64
		start   codec.Start
		wantGap bool
	}{
		{"extension gaps", nil, true, append(position, offsets...), 2, 7, codec.Start{Kind: codec.StartOffset, Offset: 12}, false},
		{"in the middle of a batch", nil, true, append(position, offsets...), 1, 7, codec.Start{Kind: codec.StartOffset, Offset: 12}, false},
		{"extension gaps, no event", nil, true, position, 0, 7, codec.Start{Kind: codec.StartOffset, Offset: 10}, false},
		{"durable stream", nil, false, offsets, 2, 0, codec.Start{Kind: codec.StartOffset, Offset: 12}, false},
		{"no offsets", nil, false, plain, 2, 0, codec.Start{}, true},
		{"offsets of a replay alone", []client.SubscribeOption{client.FromEarliest()}, false, replayed, 2, 0, codec.Start{}, true},
		{"nothing yet", nil, false, nil, 0, 0, codec.Start{}, true},
		{"nothing yet, from the earliest", []client.SubscribeOption{client.FromEarliest()}, false, nil, 0, 0, codec.Start{Kind: codec.StartEarliest}, false},
	} {
		for _, end := range []struct {
			name string
			do   func(conn *script.Conn, ev *script.Events)
		}{
			{"FIN", func(_ *script.Conn, ev *script.Events) { ev.Finish() }},
			{"RESET_STREAM", func(_ *script.Conn, ev *script.Events) { ev.Reset() }},
			{"connection closed", func(conn *script.Conn, _ *script.Events) { conn.ShutDown() }},
		} {
			if end.name != "FIN" && tc.sent != nil && tc.read == 0 {
				continue // QUIC may drop what was sent
			}
			t.Run(tc.name+"/"+end.name, func(t *testing.T) {
				p := newPeer(t)
				c, _, _ := p.dialogue(codec.KnownFlags, quick(), client.WithTransport(client.Transport{EventConns: 1}))
				wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo", tc.opts...) })
				_, conn, ev := p.feedOf(1, tc.ext)
				sub, err := wait()
				p.must(err)
				defer sub.Close()
				if tc.sent != nil {
					p.must(ev.Send(tc.sent))
				}
				want := batch("a", "b")
				for i := range tc.read {
					e, err := sub.Next(p.ctx)
					p.must(err)
					if string(e.Payload) != string(want[i]) || e.Gap != nil {
						t.Errorf("got %q, gap %v", e.Payload, e.Gap)
					}
				}
				end.do(conn, ev)
				// The rest of what was delivered, and then what follows.
				next := begin(p, func() (client.Event, error) {
					for range len(want) - tc.read {
						if tc.read == 0 {
							break
						}
						if _, err := sub.Next(p.ctx); err != nil {
							return client.Event{}, err
						}
					}
					return sub.Next(p.ctx)
				})
				var again *script.Request
				if end.name == "connection closed" {
					again, _, ev = p.feedOf(2, tc.ext)
				} else {
					again, ev = p.feedOn(conn, 2, tc.ext)
				}
				if again.Start != tc.start || again.Epoch != tc.epoch || again.HasEpoch != (tc.epoch != 0) {
					t.Errorf("subscribed again at %+v, epoch %d (%v), want %+v, %d", again.Start, again.Epoch, again.HasEpoch, tc.start, tc.epoch)
				}
				p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("c"))))
				e, err := next()
				p.must(err)
				if e.IsGap() != tc.wantGap || tc.wantGap && *e.Gap != (client.Gap{Reason: client.GapUnknown}) {
					t.Errorf("got %q, gap %+v", e.Payload, e.Gap)
				}
				if tc.wantGap {
					e, err = sub.Next(p.ctx)
					p.must(err)
				}
				if string(e.Payload) != "c" || e.Gap != nil {
					t.Errorf("got %q, gap %+v", e.Payload, e.Gap)
				}
				if sub.ID() != 2 {
					t.Errorf("id %d", sub.ID())
				}
			})
		}
	}
}

// feedOn is feedOf on a connection that is there.
func (p *peer) feedOn(conn *script.Conn, id uint64, ext bool) (*script.Request, *script.Events) {
	p.tb.Helper()
	ctl, err := conn.AcceptControl()
	p.must(err)
	if ext {
		expect(p, ctl, codec.MsgAuth)
		p.must(ctl.Send(codec.AppendAuthOK(nil, codec.KnownFlags, codec.ExtGaps, true)))
	} else {
		p.must(ctl.Auth(codec.KnownFlags))
	}
	r := expect(p, ctl, codec.MsgSubscribe)
	ev, err := conn.OpenEvents(id)
	p.must(err)
	p.must(ctl.Send(codec.AppendSubscribed(nil, id)))
	ctl.Finish()
	return r, ev
}

// TestResumeRefused answers the second subscribe with refusals.
func TestResumeRefused(t *testing.T) {
	type answer struct {
		frame []byte
		start codec.Start // of the subscribe after it
	}
	live := codec.Start{Kind: codec.StartOffset, Offset: 12}
	refusal := answer{codec.AppendError(nil, "stream not found"), live}
	for _, tc := range []struct {
		name    string
		answers []answer
		gap     *client.Gap
	}{
		{"too old", []answer{{
			codec.AppendSubscribeCursorError(nil, codec.CursorTooOld, 12, 20), codec.Start{Kind: codec.StartOffset, Offset: 20},
		}}, &client.Gap{Reason: client.GapExpired, Lost: 8}},
		{"in the future", []answer{{
			codec.AppendSubscribeCursorError(nil, codec.CursorInFuture, 12, 3), codec.Start{Kind: codec.StartEarliest},
		}}, &client.Gap{Reason: client.GapEpoch}},
		{"refused for a while", slices.Repeat([]answer{refusal}, 12), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags, quick(), client.WithTransport(client.Transport{EventConns: 1}))
			wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
			_, conn, ev := p.feedOf(1, false)
			sub, err := wait()
			p.must(err)
			defer sub.Close()
			p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 10, batch("a", "b"))))
			read(p, sub, 2)
			ev.Finish()
			next := begin(p, func() (client.Event, error) { return sub.Next(p.ctx) })
			want := live
			for _, a := range tc.answers {
				ctl, err := conn.AcceptControl()
				p.must(err)
				p.must(ctl.Auth(codec.KnownFlags))
				if r := expect(p, ctl, codec.MsgSubscribe); r.Start != want {
					t.Errorf("asked for %+v, want %+v", r.Start, want)
				}
				p.must(ctl.Send(a.frame))
				ctl.Finish()
				want = a.start
			}
			r, ev := p.feedOn(conn, 2, false)
			if r.Start != want {
				t.Errorf("asked for %+v, want %+v", r.Start, want)
			}
			p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, r.Start.Offset, batch("c"))))
			e, err := next()
			p.must(err)
			if e.IsGap() != (tc.gap != nil) || tc.gap != nil && *e.Gap != *tc.gap {
				t.Errorf("gap %+v, want %+v", e.Gap, tc.gap)
			}
		})
	}
}

func matchesRefusal(err error) bool {
	_, ok := errors.AsType[*client.BrokerError](err)
	return ok
}

// TestResumeEnds ends a subscription that subscribes again and gets no answer, in every way. The contexts of reads that
// are shorter than the exchange do not hold it up.
func TestResumeEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(c *client.Client, sub *client.Subscription)
	}{
		{"subscription closed", func(_ *client.Client, sub *client.Subscription) { sub.Close() }},
		{"client closed", func(c *client.Client, _ *client.Subscription) { c.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, _ := p.dialogue(codec.KnownFlags, quick(), client.WithTransport(client.Transport{EventConns: 1}))
			wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
			_, conn, ev := p.feedOf(1, false)
			sub, err := wait()
			p.must(err)
			defer sub.Close()
			ev.Finish()
			asked := make(chan struct{})
			p.Go(func() {
				if ctl, err := conn.AcceptControl(); err == nil {
					close(asked)
					_, _ = ctl.Next()
				}
			})
			for done := false; !done; {
				short, stop := context.WithTimeout(p.ctx, time.Millisecond)
				if _, err := sub.Next(short); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("got %v", err)
				}
				stop()
				select {
				case <-asked:
					done = true
				default:
				}
			}
			next := do(p, func() error { _, err := sub.Next(p.ctx); return err })
			tc.end(c, sub)
			if err := next(); !errors.Is(err, client.ErrClosed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestResumeUnderLoad lets a broker end streams and connections while subscribers read and publishers publish. Every
// acknowledged event is delivered once, in order, to each of them.
func TestResumeUnderLoad(t *testing.T) {
	const kills, subscribers = 20, 4
	p := newPeer(t)
	broker := script.NewNormal()
	p.serve(broker)
	c := p.connect(quick())
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var work sync.WaitGroup
	seen := make([]chan string, subscribers)
	for i := range subscribers {
		seen[i] = make(chan string, 1<<16)
		sub, err := c.Subscribe(ctx, "default", "demo", client.FromEarliest())
		p.must(err)
		defer sub.Close()
		work.Go(func() {
			next := uint64(0)
			for ev, err := range sub.Events(ctx) {
				if ctx.Err() != nil {
					return
				}
				if err != nil || ev.Gap != nil || ev.Offset != next {
					t.Errorf("offset %d, want %d, gap %v, %v", ev.Offset, next, ev.Gap, err)
					return
				}
				next++
				seen[i] <- string(ev.Payload)
			}
		})
	}
	pub := c.Publisher("default", "demo")
	rng := newRand(t)
	var acked []string
	for round := range kills {
		for i := range 20 {
			payload := fmt.Sprint(round, " ", i)
			err := pub.Publish(ctx, []byte(payload))
			switch {
			case err == nil:
				acked = append(acked, payload)
			case !errors.Is(err, client.ErrInDoubt) || !client.Retryable(err):
				t.Errorf("publish: %v", err)
			}
			if i == 10 {
				broker.Kill(rng)
			}
		}
	}
	for i := range subscribers {
		for _, want := range acked {
			for got := ""; got != want; {
				select {
				case got = <-seen[i]: // what is not wanted was in doubt
				case <-ctx.Done():
					t.Fatalf("subscriber %d: %q did not come", i, want)
				}
			}
		}
	}
	cancel()
	work.Wait()
}

// TestSubscriptionHook hears of a loss and of its outcome.
func TestSubscriptionHook(t *testing.T) {
	p := newPeer(t)
	n := script.NewNormal()
	p.serve(n)
	h := &stateHook{states: make(chan string, 100)}
	c := p.connect(quick(), client.WithHooks(h))
	sub, err := c.Subscribe(p.ctx, "default", "demo", client.FromEarliest())
	p.must(err)
	n.ShutDown()
	next := do(p, func() error { _, err := sub.Next(p.ctx); return err })
	for _, want := range []string{"resuming", "live"} {
		if got := <-h.states; got != want {
			t.Errorf("state %s, want %s", got, want)
		}
	}
	// The connection for requests ends too, perhaps with this publish on it.
	pub := c.Publisher("default", "demo")
	for err = pub.Publish(p.ctx, []byte("x")); errors.Is(err, client.ErrInDoubt); {
		err = pub.Publish(p.ctx, []byte("x"))
	}
	p.must(err)
	p.must(next())
	p.must(sub.Close())
	if got := <-h.states; got != "over" {
		t.Errorf("state %s", got)
	}
}

type stateHook struct{ states chan string }

func (h *stateHook) OnSubscription(_, _ string, state client.SubscriptionState, _ error) {
	h.states <- state.String()
}
