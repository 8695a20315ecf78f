package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/felix-mq/felix/codec"
)

// Future is the outcome of a publish that may not be known yet. It may be used from many goroutines.
type Future struct {
	mu      sync.Mutex // guards all below
	settled bool
	err     error
	done    chan struct{} // made when somebody asks for it
	waiter  chan struct{} // of the first that waits; from wakePool
}

// wakePool holds channels of capacity 1, so that waiting for a future allocates nothing.
var wakePool = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// outcome is told what an asynchronous publish came to, once.
type outcome interface{ settle(err error) }

type outcomeFunc func(error)

func (f outcomeFunc) settle(err error) { f(err) }

func (f *Future) settle(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled, f.err = true, err
	if f.done != nil {
		close(f.done)
	}
	if f.waiter != nil {
		f.waiter <- struct{}{}
	}
}

// Done returns a channel that is closed when the outcome is known.
func (f *Future) Done() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done == nil {
		f.done = make(chan struct{})
		if f.settled {
			close(f.done)
		}
	}
	return f.done
}

// Wait waits for the outcome and returns it, as [Publisher.PublishBatch] would. If ctx ends first it returns the reason;
// the publish goes on.
func (f *Future) Wait(ctx context.Context) error {
	f.mu.Lock()
	var wake chan struct{}
	first := !f.settled && f.waiter == nil
	if first {
		wake, _ = wakePool.Get().(chan struct{})
		f.waiter = wake
	}
	settled := f.settled
	f.mu.Unlock()
	switch {
	case settled:
	case first:
		select {
		case <-wake:
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.settled {
				<-wake
			}
			f.waiter = nil
			wakePool.Put(wake)
			return context.Cause(ctx)
		}
		wakePool.Put(wake)
	default:
		select {
		case <-f.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return f.err // no longer written
}

// PublishAsync is [Publisher.PublishBatchAsync] of one event.
func (p *Publisher) PublishAsync(ctx context.Context, payload []byte) *Future {
	return p.PublishBatchAsync(ctx, [][]byte{payload})
}

// PublishBatchAsync sends the events as one batch, like [Publisher.PublishBatch], but does not wait for the
// acknowledgement. It waits while as much is in flight as [WithInFlight] allows, while the broker pushes back, and, with
// [WhileDownBlock], for a connection; ctx ends that, not the publish that has been sent. The acknowledgement is waited for
// as long as [WithRequestTimeout] says. The payloads are the caller's again when it returns.
func (p *Publisher) PublishBatchAsync(ctx context.Context, payloads [][]byte) *Future {
	f := new(Future)
	p.beginAsync(ctx, payloads, f)
	return f
}

// PublishFunc is [Publisher.PublishBatchAsync] with a callback. done is called exactly once with the outcome, perhaps
// before PublishFunc returns, on a goroutine that other outcomes wait for: it must not block.
func (p *Publisher) PublishFunc(ctx context.Context, payloads [][]byte, done func(error)) {
	p.beginAsync(ctx, payloads, outcomeFunc(done))
}

func (p *Publisher) beginAsync(ctx context.Context, payloads [][]byte, done outcome) {
	span, err := p.c.publishes.begin()
	if err != nil {
		done.settle(err)
		return
	}
	p.publishAsync(ctx, payloads, span, done)
}

// publishAsync is beginAsync for a publish that has been counted: it ends span.
func (p *Publisher) publishAsync(ctx context.Context, payloads [][]byte, span *span, done outcome) {
	n, err := p.check(payloads)
	if err != nil {
		done.settle(err)
		span.end()
		return
	}
	q := getPending()
	q.p, q.slot, q.span, q.done = p, p.slot(), span, done
	q.hook = p.c.hooks.publish(ctx, p, payloads, true)
	if err := q.acquire(ctx, payloads); err != nil {
		q.settle(err)
		return
	}
	for {
		if q.slot.mustQueue() {
			if err := q.slot.enqueue(&queued{p: p, payloads: payloads, mode: codec.AckPerBatch, frameLen: n, pending: q}); err != nil {
				q.settle(err)
			}
			return
		}
		r, err := q.slot.get(ctx)
		if err == nil {
			if err = q.send(ctx, r, codec.AckPerBatch, payloads, n, 0); err == nil {
				return
			}
			if err = q.slot.again(ctx, r, err); err == nil {
				continue
			}
		}
		q.settle(err)
		return
	}
}

// pending is an asynchronous publish on its way. Its outcome is told when both of two parts are over: the write, and the
// wait for the acknowledgement. Whoever is the last of them is the last to touch it.
type pending struct {
	call   call
	p      *Publisher
	slot   *slot
	span   *span
	bytes  int64 // charged to the client's window, with a place in the slot's; 0 if neither is
	done   outcome
	hook   func(error)
	r      *requests
	expire *time.Timer // of the acknowledgement
	parts  atomic.Int32
	unsent error // why the broker cannot have read it
}

var pendingPool sync.Pool

func getPending() *pending {
	if q, ok := pendingPool.Get().(*pending); ok {
		return q
	}
	q := new(pending)
	q.call.owner = q
	q.expire = time.AfterFunc(time.Hour, q.expired)
	q.expire.Stop()
	return q
}

// acquire waits for room in the window.
func (q *pending) acquire(ctx context.Context, payloads [][]byte) error {
	n := 1
	for _, b := range payloads {
		n += len(b)
	}
	bytes := int64(min(n, q.p.c.o.inFlightBytes))
	if err := q.p.c.take(ctx, q.slot.window, 1); err != nil {
		return err
	}
	if err := q.p.c.take(ctx, q.p.c.window, bytes); err != nil {
		q.slot.window.Release(1)
		return err
	}
	q.bytes = bytes
	return nil
}

// take waits for n of a window.
func (c *Client) take(ctx context.Context, window *semaphore.Weighted, n int64) error {
	if ctx.Err() == nil && window.TryAcquire(n) {
		return nil
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if window.Acquire(ctx, n) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// send sends the batch, and leaves the rest to the acknowledgement. When it fails the broker cannot have read the batch,
// and q is the caller's again.
func (q *pending) send(ctx context.Context, r *requests, mode codec.AckMode, payloads [][]byte, frameLen int, limit time.Duration) error {
	q.r, q.unsent, q.call.err, q.call.answered = r, nil, nil, false
	q.parts.Store(2)
	if err := r.expectAck(&q.call); err != nil {
		return err
	}
	q.expire.Reset(q.p.c.o.requestTimeout)
	err := q.p.write(ctx, r, q.call.id, mode, payloads, frameLen, nil, limit)
	if err != nil {
		q.unsent = err
		if r.take(q.call.id) || q.parts.Add(-1) == 0 {
			q.expire.Stop()
			return err // what ended the stream has ended the wait too
		}
		return nil // the other part is about to be over
	}
	q.over()
	return nil
}

// over ends one part.
func (q *pending) over() {
	if q.parts.Add(-1) > 0 {
		return
	}
	if q.unsent != nil {
		q.settle(q.unsent)
	} else {
		q.settle(q.call.outcome())
	}
}

// expired ends the wait for an acknowledgement that did not come.
func (q *pending) expired() {
	if q.r.take(q.call.id) {
		q.call.err = ErrTimeout
		q.over()
	}
}

// settle tells the outcome. Nobody touches q any more.
func (q *pending) settle(err error) {
	if q.bytes > 0 {
		q.p.c.window.Release(q.bytes)
		q.slot.window.Release(1)
	}
	done, hook, span := q.done, q.hook, q.span
	reusable := q.r == nil || q.expire.Stop() // or else expired may still look at it
	q.p, q.slot, q.span, q.done, q.hook, q.r, q.bytes, q.unsent = nil, nil, nil, nil, nil, nil, 0, nil
	if reusable {
		pendingPool.Put(q)
	}
	if hook != nil {
		hook(err)
	}
	done.settle(err)
	span.end()
}
