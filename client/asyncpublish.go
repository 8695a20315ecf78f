package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/felix-mq/felix/codec"
)

// outcome receives the result of an asynchronous publish, once.
type outcome interface{ settle(err error) }

type outcomeFunc func(error)

func (f outcomeFunc) settle(err error) { f(err) }

// publishAsync publishes a batch, and waits for its place in the window, not for its outcome. It ends span.
func (p *Publisher) publishAsync(payloads [][]byte, span publishGroups, done outcome) {
	ctx := context.Background() // Close ends its waits; a context that could end would cost a registration for each write
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

// pending is an asynchronous publish on its way. Its outcome is settled when both parts are over: the write, and the
// wait for the acknowledgement. The part that ends last is the last to touch it.
//
//	send ──┬── write ────────────────────── over ──┐
//	       └── acknowledgement, sweep, fail ─ over ──┴──▶ settle (the second of them)
//
// Three writes end differently. In doubt: the side that takes the call out of requestStream.acks settles it. Not sent,
// and the wait not over: send takes the call back, and q is the caller's again. Not sent, although the stream has ended
// the wait: send waits on unsent until that side has let go.
type pending struct {
	call   call
	p      *Publisher
	slot   *streamSlot
	span   publishGroups
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

// acquire waits for space in the window.
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

// send sends the batch, and leaves the rest to the acknowledgement. When it fails the broker cannot have read the
// batch, and q is the caller's again. A deadline of 0 is none.
func (q *pending) send(ctx context.Context, r *requestStream, mode codec.AckMode, payloads [][]byte, frameLen int, deadline int64) error {
	c := q.p.c
	q.call.deadline = c.now() + int64(c.o.requestTimeout)
	q.parts.Store(2)
	q.p.prepare(r, &q.call, payloads, mode, frameLen)
	if err := r.expectAck(&q.call); err != nil {
		return err
	}
	err := q.p.write(ctx, r, &q.call, mode, payloads, frameLen, deadline)
	switch {
	case err == nil:
		q.over()
		return nil
	case errors.Is(err, ErrInDoubt):
		if r.take(&q.call) {
			q.settle(err)
		} else { // its outcome has come
			q.over()
		}
		return nil
	}
	switch mine, sent := r.reclaim(&q.call); {
	case mine:
		return err
	case sent:
		q.over()
		return nil
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
	q.p, q.slot, q.span, q.done, q.hook = nil, nil, publishGroups{}, nil, nil
	q.call.publication = publication{}
	pendingPool.Put(q)
	if hook != nil {
		hook(err)
	}
	done.settle(err)
	span.end()
}
