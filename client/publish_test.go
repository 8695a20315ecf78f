package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// TestPublishForms looks at what the broker gets.
func TestPublishForms(t *testing.T) {
	const legacy codec.Flags = 0xffff // stands for a plain ok
	for _, tc := range []struct {
		name  string
		flags codec.Flags
		acked codec.Flags // the layout of acknowledged publishes
	}{
		{"binary acknowledgements", codec.KnownFlags, codec.LayoutPublishAcked},
		{"0x0008 not advertised", codec.OriginalV1Flags | codec.FlagEventOffsets, codec.LayoutJSON},
		{"nothing advertised", 0, codec.LayoutJSON},
		{"plain ok", legacy, codec.LayoutJSON},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			wait := begin(p, func() (*client.Client, error) { return client.Connect(p.ctx, p.Addr(), p.options()...) })
			_, ctl := p.acceptControl()
			if tc.flags == legacy {
				p.must(ctl.AuthLegacy())
			} else {
				p.must(ctl.Auth(tc.flags))
			}
			c, err := wait()
			p.must(err)
			defer c.Close()

			pub := c.Publisher("default", "demo")
			for _, call := range []struct {
				name     string
				do       func() error
				flags    codec.Flags
				ack      codec.AckMode
				payloads [][]byte
			}{
				{"Publish", func() error { return pub.Publish(p.ctx, []byte("one")) }, tc.acked, codec.AckPerMessage, batch("one")},
				{"PublishBatch", func() error { return pub.Publish(p.ctx, batch("", "two")...) }, tc.acked, codec.AckPerBatch, batch("", "two")},
				{"PublishBatch of nothing", func() error { return pub.Publish(p.ctx) }, tc.acked, codec.AckPerBatch, nil},
				{"Send", func() error { return pub.Send(p.ctx, []byte("three")) }, codec.LayoutPublish, codec.AckNone, batch("three")},
				{"SendBatch", func() error { return pub.Send(p.ctx, batch("four", "")...) }, codec.LayoutPublish, codec.AckNone, batch("four", "")},
			} {
				wait := do(p, call.do)
				r := expect(p, ctl, codec.MsgPublishBatch)
				p.must(ctl.Ack(r, ""))
				if err := wait(); err != nil {
					t.Errorf("%s: %v", call.name, err)
				}
				if r.Flags != call.flags || r.Ack != call.ack || r.HasID != (call.ack != codec.AckNone) {
					t.Errorf("%s: flags %#04x, ack %v, id %v", call.name, uint16(r.Flags), r.Ack, r.HasID)
				}
				if r.Tenant != "t1" || r.Namespace != "default" || r.Stream != "demo" || fmt.Sprint(r.Payloads) != fmt.Sprint(call.payloads) {
					t.Errorf("%s: the broker got %+v", call.name, r)
				}
			}
		})
	}
}

// TestPublishRefused refuses one publish among others, in both encodings.
func TestPublishRefused(t *testing.T) {
	for _, flags := range []codec.Flags{codec.KnownFlags, codec.OriginalV1Flags} {
		t.Run(fmt.Sprintf("flags %d", flags), func(t *testing.T) {
			p := newPeer(t)
			c, _, ctl := p.dialogue(flags)
			pub := c.Publisher("default", "demo")
			for i, text := range []string{"", "publish queue full", "", "stream not found: tenant=t1 namespace=default stream=demo", ""} {
				wait := do(p, func() error { return pub.Publish(p.ctx, []byte("x")) })
				p.must(ctl.Ack(expect(p, ctl, codec.MsgPublishBatch), text))
				err := wait()
				refused, ok := errors.AsType[*client.BrokerError](err)
				if ok != (text != "") || errors.Is(err, client.ErrInDoubt) {
					t.Fatalf("publish %d: got %v, want %q", i, err, text)
				}
				if ok && refused.Message != text {
					t.Errorf("publish %d: got %q, want %q", i, refused.Message, text)
				}
			}
		})
	}
}

// TestAcksInAnyOrder pipelines publishes and answers them from the last to the first, every third with an error. Ids
// that nobody waits for are no reason to fail.
func TestAcksInAnyOrder(t *testing.T) {
	const n = 200
	p := newPeer(t)
	c, _, ctl := p.dialogue(codec.KnownFlags)
	var waits [n]func() error
	for i := range n {
		waits[i] = do(p, func() error { return c.Publisher("default", "demo").Publish(p.ctx, fmt.Append(nil, i)) })
	}
	requests := make([]*script.Request, n)
	for i := range n {
		requests[i] = expect(p, ctl, codec.MsgPublishBatch)
	}
	refuse := func(payload string) string {
		if payload[len(payload)-1]%3 == 0 {
			return "refused " + payload
		}
		return ""
	}
	p.must(ctl.Send(codec.AppendPublishAckOK(nil, 1<<64-1)))
	for i := range n {
		r := requests[n-1-i]
		p.must(ctl.Ack(r, refuse(r.Payload())))
		p.must(ctl.Ack(r, "")) // twice
	}
	for i, wait := range waits {
		err, want := wait(), refuse(fmt.Sprint(i))
		refused, _ := errors.AsType[*client.BrokerError](err)
		if want == "" && err != nil || want != "" && (refused == nil || refused.Message != want) {
			t.Errorf("publish %d: got %v, want %q", i, err, want)
		}
	}
}

// TestPublishInDoubt ends a stream after the first of three publishes that were sent on it.
func TestPublishInDoubt(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(conn *script.Conn, ctl *script.Control)
	}{
		{"FIN", func(_ *script.Conn, ctl *script.Control) { ctl.Finish() }},
		{"FIN and STOP_SENDING", func(_ *script.Conn, ctl *script.Control) { ctl.End() }},
		{"error, FIN and STOP_SENDING", func(_ *script.Conn, ctl *script.Control) {
			_ = ctl.Send(codec.AppendError(nil, "forbidden"))
			ctl.End()
		}},
		{"connection closed", func(conn *script.Conn, _ *script.Control) { conn.ShutDown() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, conn, ctl := p.dialogue(codec.KnownFlags)
			pub := c.Publisher("default", "demo")
			var waits [3]func() error
			for i := range waits {
				waits[i] = do(p, func() error { return pub.Publish(p.ctx, []byte("x")) })
			}
			byID := map[uint64]*script.Request{}
			for range waits {
				r := expect(p, ctl, codec.MsgPublishBatch)
				byID[r.ID] = r
			}
			p.must(ctl.Ack(byID[1], ""))
			// The acknowledgement has to be through before the connection goes: one publish of the three returns.
			answered := make(chan error, 3)
			for _, wait := range waits {
				go func() { answered <- wait() }()
			}
			if err := <-answered; err != nil {
				t.Errorf("the publish that was acknowledged: %v", err)
			}
			tc.end(conn, ctl)
			for range 2 {
				if err := <-answered; !errors.Is(err, client.ErrInDoubt) {
					t.Errorf("a publish that was not answered: %v", err)
				}
			}

			// The next call opens another stream, on another connection if need be.
			wait := do(p, func() error { return pub.Publish(p.ctx, []byte("again")) })
			if tc.name == "connection closed" {
				_, ctl = p.acceptControl()
			} else {
				var err error
				ctl, err = conn.AcceptControl()
				p.must(err)
			}
			p.must(ctl.Auth(codec.KnownFlags))
			r := expect(p, ctl, codec.MsgPublishBatch)
			p.must(ctl.Ack(r, ""))
			p.must(wait())
		})
	}
}

// TestStopSendingIsNotTheEnd stops reading while a publish waits, and answers it afterwards
// (docs/protocol/session.md#the-end-of-a-stream).
func TestStopSendingIsNotTheEnd(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.dialogue(codec.KnownFlags, client.WithWhileDown(client.WhileDownFail))
	pub := c.Publisher("default", "demo")
	wait := do(p, func() error { return pub.Publish(p.ctx, []byte("first")) })
	first := expect(p, ctl, codec.MsgPublishBatch)
	ctl.StopReading()

	// The client learns of it with some write. That one was not sent, so it is not in doubt; those before it stay
	// without an answer.
	err := context.DeadlineExceeded
	for limit := time.Millisecond; errors.Is(err, context.DeadlineExceeded) && p.ctx.Err() == nil; limit *= 2 {
		ctx, cancel := context.WithTimeout(p.ctx, limit)
		err = pub.Publish(ctx, []byte("more"))
		cancel()
	}
	if !matches(err, errReset) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("the publish that met STOP_SENDING: %v", err)
	}

	// From then on there is a second stream. The first one is still read.
	p.publishAgain(pub, conn)
	p.must(ctl.Ack(first, ""))
	if err := wait(); err != nil {
		t.Errorf("a publish that was answered after STOP_SENDING: %v", err)
	}
}

// TestPublishBlocked publishes to a broker that does not read. A frame that has begun is finished even if its caller
// gives up, and later ones are sent on the same stream.
func TestPublishBlocked(t *testing.T) {
	big := make([]byte, 1<<20) // more than the broker's window
	reason := errors.New("reason")
	for _, tc := range []struct {
		name    string
		publish func(ctx context.Context, pub *client.Publisher) error
		end     func(c *client.Client, cancel context.CancelCauseFunc)
		want    error
	}{
		{
			name:    "Publish canceled",
			publish: func(ctx context.Context, pub *client.Publisher) error { return pub.Publish(ctx, big) },
			end:     func(_ *client.Client, cancel context.CancelCauseFunc) { cancel(reason) },
			want:    reason,
		},
		{
			name:    "Publish, client closed",
			publish: func(ctx context.Context, pub *client.Publisher) error { return pub.Publish(ctx, big) },
			end:     func(c *client.Client, _ context.CancelCauseFunc) { c.Close() },
			want:    client.ErrClosed,
		},
		{
			name:    "Send canceled",
			publish: func(ctx context.Context, pub *client.Publisher) error { return pub.Send(ctx, big) },
			end:     func(_ *client.Client, cancel context.CancelCauseFunc) { cancel(reason) },
			want:    reason,
		},
		{
			name: "Send without a deadline, client closed",
			publish: func(_ context.Context, pub *client.Publisher) error {
				return pub.Send(context.Background(), big)
			},
			end:  func(c *client.Client, _ context.CancelCauseFunc) { c.Close() },
			want: client.ErrClosed,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, _, ctl := p.dialogue(codec.KnownFlags, client.WithWhileDown(client.WhileDownFail))
			ctx, cancel := context.WithCancelCause(p.ctx)
			defer cancel(nil)
			pub := c.Publisher("default", "demo")
			wait := do(p, func() error { return tc.publish(ctx, pub) })
			p.awaitBlocked(c)
			// Another publish waits for its turn, and gives up alone.
			impatient, stop := context.WithTimeout(p.ctx, 20*time.Millisecond)
			if err := pub.Publish(impatient, nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
				t.Errorf("a publish after a blocked one: %v", err)
			}
			stop()
			closed := errors.Is(tc.want, client.ErrClosed)
			patient := func() error { return nil }
			if !closed {
				patient = do(p, func() error { return pub.Publish(p.ctx, []byte("patient")) })
			}
			tc.end(c, cancel)
			if err := wait(); !errors.Is(err, tc.want) || errors.Is(err, client.ErrInDoubt) == closed {
				t.Errorf("got %v, want %v, in doubt: %v", err, tc.want, !closed)
			}
			if closed {
				return
			}
			if r := expect(p, ctl, codec.MsgPublishBatch); r.Payload() != string(big) {
				t.Error("the frame that was given up halfway came otherwise")
			}
			p.must(ctl.Ack(expect(p, ctl, codec.MsgPublishBatch), ""))
			p.must(patient())
		})
	}
	t.Run("Publish, request timeout", func(t *testing.T) {
		patiently(t, 100*time.Millisecond, func(p *peer, limit time.Duration) bool {
			c, _, ctl := p.dialogue(codec.KnownFlags, client.WithRequestTimeout(limit))
			pub := c.Publisher("default", "demo")
			err := do(p, func() error { return pub.Publish(context.Background(), big) })()
			if !errors.Is(err, client.ErrTimeout) {
				p.tb.Errorf("got %v, want %v", err, client.ErrTimeout)
			}
			if !errors.Is(err, client.ErrInDoubt) {
				return false // nothing was written
			}
			expect(p, ctl, codec.MsgPublishBatch)
			wait := do(p, func() error { return pub.Publish(p.ctx, []byte("again")) })
			p.must(ctl.Ack(expect(p, ctl, codec.MsgPublishBatch), ""))
			p.must(wait())
			return true
		})
	})
}

// publishAgain publishes on a second stream of a connection.
func (p *peer) publishAgain(pub *client.Publisher, conn *script.Conn) {
	p.tb.Helper()
	wait := do(p, func() error { return pub.Publish(p.ctx, []byte("again")) })
	next, err := conn.AcceptControl()
	p.must(err)
	p.must(next.Auth(codec.KnownFlags))
	p.must(next.Ack(expect(p, next, codec.MsgPublishBatch), ""))
	p.must(wait())
}

// window is the broker's receive window.
const window = 256 << 10

// awaitBlocked waits until the client has filled the broker's receive window.
func (p *peer) awaitBlocked(c *client.Client) {
	p.tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for c.Stats().BytesSent < window {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			p.tb.Fatal("the window was not filled")
		}
	}
}

// TestStreamError sends an error that belongs to no request on a stream for publishes.
func TestStreamError(t *testing.T) {
	p := newPeer(t)
	c, _, ctl := p.dialogue(codec.KnownFlags)
	wait := do(p, func() error { return c.Publisher("default", "demo").Publish(p.ctx, nil) })
	expect(p, ctl, codec.MsgPublishBatch)
	p.must(ctl.Send(codec.AppendError(nil, "tenant mismatch")))
	err := wait()
	if refused, ok := errors.AsType[*client.BrokerError](err); !ok || refused.Message != "tenant mismatch" || !errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v, want the broker's words, and doubt", err)
	}
}

// TestPublishOrder publishes to many topics over several connections: each topic stays on one stream, in order.
func TestPublishOrder(t *testing.T) {
	p := newPeer(t)
	n := script.NewNormal()
	var mu sync.Mutex
	streams := make(map[string]*script.Control)
	next := make(map[string]int)
	used := make(map[*script.Control]bool)
	n.Hook = func(_ *script.Conn, ctl *script.Control, r *script.Request) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if other := streams[r.Stream]; other != nil && other != ctl {
			t.Errorf("%s moved to another stream", r.Stream)
		}
		streams[r.Stream], used[ctl] = ctl, true
		if want := fmt.Sprint(next[r.Stream]); r.Payload() != want {
			t.Errorf("%s: got %s, want %s", r.Stream, r.Payload(), want)
		}
		next[r.Stream]++
		return false, nil
	}
	p.serve(n)
	c := p.connect(client.WithTransport(client.Transport{PublishConns: 3}))
	var wg sync.WaitGroup
	for topic := range 20 {
		pub := c.Publisher("default", fmt.Sprint("topic ", topic))
		wg.Go(func() {
			for i := range 20 {
				var err error
				if i%2 == 0 {
					err = pub.Send(p.ctx, fmt.Append(nil, i))
				} else {
					err = pub.Publish(p.ctx, fmt.Append(nil, i))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(used) < 2 {
		t.Errorf("%d streams for 20 topics over 3 connections", len(used))
	}
}

// TestPayloadsAreTheCallers overwrites payloads as soon as a call has returned.
func TestPayloadsAreTheCallers(t *testing.T) {
	p := newPeer(t)
	n := script.NewNormal()
	n.Hook = func(_ *script.Conn, _ *script.Control, r *script.Request) (bool, error) {
		for _, payload := range r.Payloads {
			if bytes.Count(payload, []byte("a")) != len(payload) {
				t.Errorf("the broker got %.20q", payload)
			}
		}
		return false, nil
	}
	p.serve(n)
	c := p.connect()
	pub := c.Publisher("default", "demo")
	for _, size := range []int{1, 1000, 5000, 100_000} {
		payload := bytes.Repeat([]byte("a"), size)
		p.must(pub.Send(p.ctx, payload))
		clear(payload)
	}
	p.must(pub.Publish(p.ctx, []byte("a")))
}

// TestFallbackTooLarge meets the limit only after base64.
func TestFallbackTooLarge(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.OriginalV1Flags, client.WithTransport(client.Transport{MaxFrame: 1000}))
	err := c.Publisher("default", "demo").Publish(p.ctx, []byte(strings.Repeat("x", 800)))
	if !errors.Is(err, client.ErrFrameTooLarge) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v", err)
	}
}
