package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/internal/clienttest"
)

// publishHook is called when a publish begins.
type publishHook func(client.PublishInfo)

func (h publishHook) OnPublish(_ context.Context, p client.PublishInfo) func(error) {
	h(p)
	return nil
}

// answers takes the next request, which has to be a publish of the payload, and acknowledges it.
func (p *peer) answers(requests <-chan held, payload string) {
	p.tb.Helper()
	h := p.next(requests)
	if h.Payload() != payload {
		p.tb.Errorf("got %q, want %q", h.Payload(), payload)
	}
	p.must(h.ctl.Ack(h.Request, ""))
}

// TestBacklogTakesTheWindowInOrder loses the stream while one publish waits for the window, and another goes into the
// backlog before it.
func TestBacklogTakesTheWindowInOrder(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	began := make(chan struct{}, 10)
	c := p.connect(client.WithWhileDown(client.WhileDownBuffer), client.WithInFlight(1, 1<<20),
		client.WithHooks(publishHook(func(client.PublishInfo) { began <- struct{}{} })))
	pub := c.Publisher("default", "demo")
	first := clienttest.PublishAsync(p.ctx, pub, []byte("first"))
	p.await("the first publish", began)
	h := p.next(requests)
	late := clienttest.PublishAsync(p.ctx, pub, []byte("late"))
	p.await("the late publish", began)
	other := c.Publisher("default", "demo")
	p.must(other.Send(p.ctx, []byte("sent"))) // by the time it has come, the late one waits for the window
	if sent := p.next(requests); sent.Payload() != "sent" {
		t.Fatalf("got %q", sent.Payload())
	}
	client.Retire(pub)
	queued := clienttest.PublishAsync(p.ctx, other, []byte("queued"))
	p.until("the backlog", func() bool { return client.Flushing(pub) })
	p.must(h.ctl.Ack(h.Request, ""))
	p.must(first.Wait(p.ctx))
	p.answers(requests, "queued")
	p.must(queued.Wait(p.ctx))
	p.answers(requests, "late")
	p.must(late.Wait(p.ctx))
}

// TestFlushWaitsForTheBacklog flushes a publisher whose event waits in the backlog, where another publisher's comes
// first.
func TestFlushWaitsForTheBacklog(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect(client.WithWhileDown(client.WhileDownBuffer), client.WithInFlight(1, 1<<20))
	pub, other := c.Publisher("default", "demo"), c.Publisher("default", "demo")
	inFlight := clienttest.PublishAsync(p.ctx, other, []byte("in flight"))
	h := p.next(requests)
	client.Retire(other)
	head := clienttest.PublishAsync(p.ctx, other, []byte("head")) // waits for the window
	p.until("the backlog", func() bool { return client.Flushing(pub) })
	p.must(pub.Send(p.ctx, []byte("sent")))
	short, stop := context.WithTimeout(p.ctx, 5*time.Millisecond)
	defer stop()
	for _, flush := range []func(context.Context) error{pub.Flush, c.Flush} {
		if err := flush(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a flush while the event waits: %v", err)
		}
	}
	p.must(h.ctl.Ack(h.Request, ""))
	p.must(inFlight.Wait(p.ctx))
	flushed := do(p, func() error { return pub.Flush(p.ctx) })
	p.answers(requests, "head")
	p.must(head.Wait(p.ctx))
	p.answers(requests, "sent")
	p.answers(requests, "") // the batch of the flush
	p.must(flushed())
}

// TestRenewalIsNotDown publishes more than the buffer holds while the stream is being replaced: the publish waits, as
// it does for the window.
func TestRenewalIsNotDown(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	began := make(chan struct{}, 10)
	c := p.connect(client.WithWhileDown(client.WhileDownBuffer), client.WithWhileDownBytes(1),
		client.WithHooks(publishHook(func(client.PublishInfo) { began <- struct{}{} })))
	pub := c.Publisher("default", "demo")
	inFlight := clienttest.PublishAsync(p.ctx, pub, []byte("in flight"))
	p.await("the first publish", began)
	h := p.next(requests)
	renewed := do(p, func() error { return client.Renew(p.ctx, pub) })
	p.until("the renewal", func() bool { return client.Moving(pub) })
	publishes := map[string]func() error{
		"Publish":      func() error { return pub.Publish(p.ctx, []byte("event")) },
		"PublishAsync": func() error { return clienttest.PublishAsync(p.ctx, pub, []byte("event")).Wait(p.ctx) },
		"Send":         func() error { return pub.Send(p.ctx, []byte("event")) },
	}
	results := make(map[string]func() error)
	for name, publish := range publishes {
		results[name] = do(p, publish)
		p.await(name, began)
	}
	p.must(h.ctl.Ack(h.Request, ""))
	p.must(inFlight.Wait(p.ctx))
	p.must(renewed())
	for range results {
		p.answers(requests, "event")
	}
	for name, wait := range results {
		if err := wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
