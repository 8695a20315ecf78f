package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

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

func (f outcomeFunc) settle(err error) {
	if f != nil {
		f(err)
	}
}

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
	span, err := p.begin(nil)
	if err != nil {
		done.settle(err)
		return
	}
	p.publishAsync(ctx, payloads, span, done)
}

// publishAsync is beginAsync for a publish that has been counted: it ends span.
func (p *Publisher) publishAsync(ctx context.Context, payloads [][]byte, span spans, done outcome) {
	n, err := p.check(payloads)
	if err != nil {
		done.settle(err)
		span.end()
		return
	}
	q := getPending()
	q.p, q.slot, q.span, q.done = p, p.slot(), span, done
	q.hook = p.c.hooks.publish(ctx, p, payloads, true)
	deadline := p.c.deadline(ctx)
	for {
		if q.slot.mustQueue() { // the buffer bounds it, not the window, which goes to those before it
			q.giveBack()
			if err := q.slot.enqueue(&queued{p: p, payloads: payloads, mode: codec.AckPerBatch, frameLen: n, pending: q}); err != nil {
				q.settle(err)
			}
			return
		}
		if q.bytes == 0 {
			if err := q.acquire(ctx, payloads, deadline); err != nil {
				q.settle(err)
				return
			}
			continue // the connection may have been lost meanwhile
		}
		r, err := q.slot.get(ctx, deadline)
		if err == nil {
			if err = q.send(ctx, r, codec.AckPerBatch, payloads, n, deadline); err == nil {
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
	span   spans
	bytes  int64 // charged to the client's window, with a place in the slot's; 0 if neither is
	done   outcome
	hook   func(error)
	parts  atomic.Int32
	unsent chan struct{} // made if the broker cannot have read it, and closed when the wait is over too
}

var pendingPool = sync.Pool{New: func() any {
	q := new(pending)
	q.call.owner = q
	return q
}}

func getPending() *pending {
	q, _ := pendingPool.Get().(*pending)
	return q
}

// acquire waits for room in the window.
func (q *pending) acquire(ctx context.Context, payloads [][]byte, deadline int64) error {
	n := 1
	for _, b := range payloads {
		n += len(b)
	}
	bytes := int64(min(n, q.p.c.o.inFlightBytes))
	if err := q.p.c.take(ctx, deadline, q.slot.window, 1); err != nil {
		return err
	}
	if err := q.p.c.take(ctx, deadline, q.p.c.window, bytes); err != nil {
		q.slot.window.Release(1)
		return err
	}
	q.bytes = bytes
	return nil
}

// giveBack ends the charge to the window, if there is one.
func (q *pending) giveBack() {
	if q.bytes > 0 {
		q.p.c.window.Release(q.bytes)
		q.slot.window.Release(1)
		q.bytes = 0
	}
}

// take waits for n of a window.
func (c *Client) take(ctx context.Context, deadline int64, window *semaphore.Weighted, n int64) error {
	if ctx.Err() == nil && window.TryAcquire(n) {
		return nil
	}
	ctx, cancel := c.boundAt(ctx, deadline)
	defer cancel()
	if window.Acquire(ctx, n) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// send sends the batch, and leaves the rest to the acknowledgement. When it fails the broker cannot have read the batch,
// and q is the caller's again. A deadline of 0 is none.
func (q *pending) send(ctx context.Context, r *requests, mode codec.AckMode, payloads [][]byte, frameLen int, deadline int64) error {
	c := q.p.c
	q.call.deadline = c.now() + int64(c.o.requestTimeout)
	q.parts.Store(2)
	if err := r.expectAck(&q.call); err != nil {
		return err
	}
	id := q.call.id
	err := q.p.write(ctx, r, id, mode, payloads, frameLen, deadline)
	switch {
	case err == nil:
		q.over()
		return nil
	case errors.Is(err, ErrInDoubt):
		if r.take(id) {
			q.settle(err)
		} else { // its outcome has come
			q.over()
		}
		return nil
	case r.take(id):
		return err
	}
	q.unsent = make(chan struct{}) // what ended the stream is about to end the wait
	if unsent := q.unsent; q.parts.Add(-1) > 0 {
		<-unsent
	}
	q.unsent = nil
	return err
}

// over ends one part.
func (q *pending) over() {
	switch {
	case q.parts.Add(-1) > 0:
	case q.unsent != nil:
		close(q.unsent)
	default:
		q.settle(q.call.outcome())
	}
}

// settle tells the outcome. Nobody touches q any more.
func (q *pending) settle(err error) {
	q.giveBack()
	done, hook, span := q.done, q.hook, q.span
	q.p, q.slot, q.span, q.done, q.hook = nil, nil, spans{}, nil, nil
	pendingPool.Put(q)
	if hook != nil {
		hook(err)
	}
	done.settle(err)
	span.end()
}
