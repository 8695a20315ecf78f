package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/codec"
)

// failures gets the errors of a subscription while it subscribes again.
type failures struct{ seen chan error }

func (f failures) OnSubscription(_, _ string, state client.SubscriptionState, reason error) {
	if state == client.SubscriptionResuming {
		select {
		case f.seen <- reason:
		default:
		}
	}
}

// TestSubscriptionOutlives breaks what a subscription needs to subscribe again for a while. It tells the hook, and goes
// on.
func TestSubscriptionOutlives(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail func(b *felixtest.Broker, noToken, badCertificate *atomic.Bool, on bool)
	}{
		{"broker refuses", func(b *felixtest.Broker, _, _ *atomic.Bool, on bool) { b.Refuse(on) }},
		{"token source fails", func(_ *felixtest.Broker, noToken, _ *atomic.Bool, on bool) { noToken.Store(on) }},
		{"certificate is wrong", func(_ *felixtest.Broker, _, wrong *atomic.Bool, on bool) { wrong.Store(on) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			b := felixtest.Start(t)
			var noToken, badCertificate atomic.Bool
			conf := b.TLS()
			conf.VerifyConnection = func(tls.ConnectionState) error {
				if badCertificate.Load() {
					return errors.New("certificate has expired")
				}
				return nil
			}
			source := client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
				if noToken.Load() {
					return "", errors.New("no token at present")
				}
				return b.Token(time.Hour)
			})
			hook := failures{make(chan error, 1)}
			c := b.Connect(t, client.WithTLS(conf), source, client.WithHooks(hook), quick())
			sub, err := c.Subscribe(p.ctx, felixtest.Namespace, felixtest.Stream)
			p.must(err)
			defer sub.Close()
			watched := make(chan client.CacheEventKind, 1)
			go func() {
				for e, err := range c.Cache(felixtest.Namespace, felixtest.Cache).Watch(p.ctx) {
					if err != nil {
						close(watched)
						return
					}
					watched <- e.Kind
				}
			}()
			<-watched
			tc.fail(b, &noToken, &badCertificate, true)
			b.Kick()
			next := begin(p, func() (client.Event, error) { return sub.Next(p.ctx) })
			for range 12 {
				if err := <-hook.seen; err == nil {
					t.Error("a failure without a reason")
				}
			}
			tc.fail(b, &noToken, &badCertificate, false)
			p.must(b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream).Publish(p.ctx, []byte("x")))
			if ev, err := next(); err != nil || string(ev.Payload) != "x" {
				t.Errorf("%+v, %v", ev, err)
			}
			if _, ok := <-watched; !ok {
				t.Error("the watch is over")
			}
			c.Close()
			for range watched {
			}
		})
	}
}

// TestResumeFor bounds the time for which a subscription subscribes again.
func TestResumeFor(t *testing.T) {
	p := newPeer(t)
	b := felixtest.Start(t)
	sub, err := b.Connect(t, quick()).Subscribe(p.ctx, felixtest.Namespace, felixtest.Stream, client.ResumeFor(30*time.Millisecond))
	p.must(err)
	b.Refuse(true)
	b.Kick()
	for range 2 {
		if _, err := sub.Next(p.ctx); !errors.Is(err, client.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	}
}

// TestGapIsHandedOver receives a gap that no event follows. Next returns it, and the position moves then and not
// before.
func TestGapIsHandedOver(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags, quick(), client.WithTransport(client.Transport{EventConns: 1}))
	wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
	_, conn, ev := p.feedOf(1, true)
	sub, err := wait()
	p.must(err)
	defer sub.Close()
	at := func(want client.Position) {
		t.Helper()
		if got, ok := sub.Position(); !ok || got != want {
			t.Errorf("position %+v, %v, want %+v", got, ok, want)
		}
	}
	p.must(ev.Send(codec.AppendPosition(nil, codec.Position{Epoch: 7, Offset: 10})))
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 10, batch("a", ""))))
	read(p, sub, 1)
	at(client.Position{Epoch: 7, Offset: 11})
	if e, err := sub.Next(p.ctx); err != nil || e.IsGap() || e.Payload == nil || e.Clone().Payload == nil {
		t.Errorf("an empty event: %+v, %v", e, err)
	}
	p.must(ev.Send(codec.AppendGap(nil, codec.Gap{Reason: codec.GapQueueFull, Lost: 500, Next: 512})))
	if e, err := sub.Next(p.ctx); err != nil || !e.IsGap() || *e.Gap != (client.Gap{Reason: client.GapQueueFull, Lost: 500}) {
		t.Errorf("the gap: %+v, %v", e, err)
	}
	at(client.Position{Epoch: 7, Offset: 512})

	// Another life of the stream: the position of the old one stays until the gap between them is handed over.
	ev.Finish()
	next := begin(p, func() (client.Event, error) { return sub.Next(p.ctx) })
	again, ev := p.feedOn(conn, 2, true)
	if again.Epoch != 7 || again.Start.Offset != 512 {
		t.Errorf("subscribed again at %+v, epoch %d", again.Start, again.Epoch)
	}
	p.must(ev.Send(codec.AppendPosition(nil, codec.Position{Epoch: 8, Offset: 3})))
	ev.Finish() // before the gap
	again, ev = p.feedOn(conn, 3, true)
	if again.Epoch != 7 || again.Start.Offset != 512 {
		t.Errorf("subscribed again at %+v, epoch %d", again.Start, again.Epoch)
	}
	at(client.Position{Epoch: 7, Offset: 512})
	p.must(ev.Send(codec.AppendPosition(nil, codec.Position{Epoch: 8, Offset: 3})))
	p.must(ev.Send(codec.AppendGap(nil, codec.Gap{Reason: codec.GapEpoch, Next: 3})))
	if e, err := next(); err != nil || !e.IsGap() || e.Gap.Reason != client.GapEpoch {
		t.Errorf("the gap: %+v, %v", e, err)
	}
	at(client.Position{Epoch: 8, Offset: 3})
}

// TestPositionOfOneLife reads the position while lives of the stream follow each other.
func TestPositionOfOneLife(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags, quick(), client.WithTransport(client.Transport{EventConns: 1}))
	wait := begin(p, func() (*client.Subscription, error) { return c.Subscribe(p.ctx, "default", "demo") })
	_, _, ev := p.feedOf(1, true)
	sub, err := wait()
	p.must(err)
	defer sub.Close()
	const lives = 2000
	var frames []byte
	for i := range uint64(lives) { // offsets say which life they are of
		frames = codec.AppendPosition(frames, codec.Position{Epoch: i, Offset: i * 1000})
		frames = codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, i*1000, batch("x"))
	}
	sent := do(p, func() error { return ev.Send(frames) })
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if at, ok := sub.Position(); ok && at.Offset/1000 != at.Epoch {
				t.Errorf("position %+v", at)
				return
			}
		}
	}()
	read(p, sub, lives)
	p.must(sent())
	close(stop)
	<-watched
}

// TestCloseLeavesViews closes a subscription while what it has handed out is looked at and others receive.
func TestCloseLeavesViews(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	subscribe := func() *client.Subscription {
		sub, err := c.Subscribe(t.Context(), felixtest.Namespace, felixtest.Stream)
		if err != nil {
			t.Fatal(err)
		}
		return sub
	}
	closed, other := subscribe(), subscribe()
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	publish := func(s string) {
		if err := pub.Publish(t.Context(), bytes.Repeat([]byte(s), 2000)); err != nil {
			t.Fatal(err)
		}
	}
	publish("first ")
	ev, err := closed.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(ev.Payload)
	_ = closed.Close()
	for range 50 {
		publish("OTHER ")
		if _, err := other.NextBatch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(ev.Payload, want) {
		t.Error("the payload has changed")
	}
}
