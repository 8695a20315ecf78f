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

// TestFlushSendsWhatLingers flushes batchers that would wait for an hour: one by itself, one that is empty, the
// client's and the publisher's together, and those of a client that is drained.
func TestFlushSendsWhatLingers(t *testing.T) {
	p := newPeer(t)
	c := felixtest.Start(t).Connect(t)
	pub, other := c.Publisher(felixtest.Namespace, felixtest.Stream), c.Publisher(felixtest.Namespace, felixtest.Stream)
	var told atomic.Int64
	lingering := func(pub *client.Publisher) *client.Batcher {
		return pub.Batcher(client.BatcherOptions{Linger: time.Hour, Done: func(_ [][]byte, err error) {
			if err != nil {
				t.Error(err)
			}
			told.Add(1)
		}})
	}
	want := func(n int64) {
		t.Helper()
		if got := told.Load(); got != n {
			t.Errorf("%d batches have an outcome, want %d", got, n)
		}
	}
	a, b, empty, foreign := lingering(pub), lingering(pub), lingering(pub), lingering(other)
	add := func(all ...*client.Batcher) {
		for _, x := range all {
			p.must(x.Add(p.ctx, []byte("x")))
		}
	}
	add(a, b, foreign)
	p.must(empty.Flush(p.ctx))
	want(0)
	p.must(a.Flush(p.ctx))
	want(1)
	add(a)
	p.must(pub.Flush(p.ctx))
	want(3)
	add(a, b)
	p.must(c.Flush(p.ctx))
	want(6)
	add(a, b, foreign)
	p.must(c.Drain(p.ctx))
	want(9)
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

// TestDoneIsCalledForOneBatchAtATime has many batches time out together.
func TestDoneIsCalledForOneBatchAtATime(t *testing.T) {
	p := newPeer(t)
	n, _ := hold()
	p.serve(n)
	c := p.connect(client.WithRequestTimeout(100 * time.Millisecond))
	inside := 0 // guarded by nothing: the race detector looks
	b := c.Publisher("default", "demo").Batcher(client.BatcherOptions{MaxEvents: 1, Done: func([][]byte, error) { inside++ }})
	const events = 200
	for range events {
		p.must(b.Add(p.ctx, []byte("x")))
	}
	p.must(b.Flush(p.ctx))
	if inside != events {
		t.Errorf("%d calls", inside)
	}
}

// TestFlushWhileAdding flushes all batchers while events are added to one of them. The others make that take long.
func TestFlushWhileAdding(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect()
	pub := c.Publisher("default", "demo")
	for range 1000 {
		pub.Batcher(client.BatcherOptions{})
	}
	b := pub.Batcher(client.BatcherOptions{})
	const rounds = 200
	added := do(p, func() error {
		for range rounds {
			if err := b.Add(p.ctx, []byte("x")); err != nil {
				return err
			}
			if err := b.Flush(p.ctx); err != nil {
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
