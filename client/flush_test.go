package client_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/conformance/script"
)

// TestFlushSendsWhatLingers flushes events that would wait for an hour: those of one publisher, those of all, and those
// of a client that is drained.
func TestFlushSendsWhatLingers(t *testing.T) {
	p := newPeer(t)
	c := felixtest.Start(t).Connect(t, client.WithBatching(client.Batching{Linger: time.Hour}))
	pub, other := c.Publisher(felixtest.Namespace, felixtest.Stream), c.Publisher(felixtest.Namespace, felixtest.Stream)
	var told atomic.Int64
	add := func(all ...*client.Publisher) {
		for _, x := range all {
			x.PublishAsync(p.ctx, []byte("x"), func(err error) {
				if err != nil {
					t.Error(err)
				}
				told.Add(1)
			})
		}
	}
	want := func(n int64) {
		t.Helper()
		if got := told.Load(); got != n {
			t.Errorf("%d events have an outcome, want %d", got, n)
		}
	}
	p.must(pub.Flush(p.ctx)) // nothing
	add(pub, pub, other)
	p.must(pub.Flush(p.ctx))
	want(2)
	add(pub)
	p.must(c.Flush(p.ctx))
	want(4)
	add(pub, other)
	p.must(pub.Publish(p.ctx, []byte("x"))) // which must not overtake them
	want(5)
	p.must(c.Drain(p.ctx))
	want(6)
}

// TestLossesAreOnesOwn loses what one of two publishers has sent.
func TestLossesAreOnesOwn(t *testing.T) {
	p := newPeer(t)
	b := felixtest.Start(t)
	c := b.Connect(t, quick(), client.WithTransport(client.Transport{IdleTimeout: time.Second, KeepAlive: 300 * time.Millisecond}))
	pub, other := c.Publisher(felixtest.Namespace, felixtest.Stream), c.Publisher(felixtest.Namespace, felixtest.Stream)
	p.must(other.Send(p.ctx, []byte("x")))
	p.must(other.Flush(p.ctx))
	b.Pause()
	p.must(pub.Send(p.ctx, []byte("x")))
	b.Kill()
	b.Revive(t)
	for other.Publish(p.ctx, []byte("x")) != nil {
		p.must(p.ctx.Err())
	}
	p.must(other.Flush(p.ctx))
	for _, flush := range []func(context.Context) error{pub.Flush, c.Flush} {
		if err := flush(p.ctx); !errors.Is(err, client.ErrInDoubt) {
			t.Errorf("the first Flush: %v", err)
		}
		p.must(flush(p.ctx))
	}
}

// TestOneOutcomeAtATime has many batches time out together.
func TestOneOutcomeAtATime(t *testing.T) {
	p := newPeer(t)
	n, _ := hold()
	p.serve(n)
	pub := p.connect(client.WithRequestTimeout(100*time.Millisecond), alone()).Publisher("default", "demo")
	inside := 0 // guarded by nothing: the race detector looks
	const events = 200
	for range events {
		pub.PublishAsync(p.ctx, []byte("x"), func(error) { inside++ })
	}
	p.must(pub.Flush(p.ctx))
	if inside != events {
		t.Errorf("%d calls", inside)
	}
}

// TestFlushWhilePublishing flushes all publishers while events of one of them are gathered. The others make that take
// long.
func TestFlushWhilePublishing(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect()
	for range 100 {
		c.Publisher("default", "demo").PublishAsync(p.ctx, nil, nil)
	}
	pub := c.Publisher("default", "demo")
	const rounds = 200
	added := do(p, func() error {
		for range rounds {
			pub.PublishAsync(p.ctx, []byte("x"), nil)
			if err := pub.Flush(p.ctx); err != nil {
				return err
			}
		}
		return nil
	})
	flushed := do(p, func() error {
		for i := range rounds {
			flush := c.Flush
			if i%2 == 0 {
				flush = pub.Flush
			}
			if err := flush(p.ctx); err != nil {
				return err
			}
		}
		return nil
	})
	p.must(added())
	p.must(flushed())
}
