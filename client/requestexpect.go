package client

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/felix-mq/felix/telemetry"
)

// sweepEvery returns the period at which overdue acknowledgements are looked for.
func (c *Client) sweepEvery() time.Duration {
	return min(max(c.o.requestTimeout/8, 5*time.Millisecond), 250*time.Millisecond)
}

// sweep ends the asynchronous publishes whose acknowledgement is overdue. The goroutine that takes a call out of r.acks
// ends it, so it meets no acknowledgement of the same moment.
func (r *requestStream) sweep() {
	now := r.k.c.now()
	var overdue []*call
	r.mu.Lock()
	r.sweeps = false
	for id, c := range r.acks {
		switch {
		case c.owner == nil:
		case c.deadline <= now:
			delete(r.acks, id)
			overdue = append(overdue, c)
		default:
			r.sweeps = true
		}
	}
	if r.sweeps {
		r.sweeper.Reset(r.k.c.sweepEvery())
	}
	r.quietLocked()
	r.mu.Unlock()
	slices.SortFunc(overdue, func(a, b *call) int { return cmp.Compare(a.id, b.id) })
	finishAll(overdue, ErrTimeout)
}

// quietLocked tells who waits for it when no reply is owed any more.
func (r *requestStream) quietLocked() {
	if r.idle != nil && len(r.acks) == 0 && len(r.cache) == 0 {
		close(r.idle)
		r.idle = nil
	}
}

// awaitIdle waits until no reply is owed any more, because all have come or the stream has failed.
func (r *requestStream) awaitIdle(ctx context.Context) error {
	r.mu.Lock()
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	idle := r.idle
	r.quietLocked()
	r.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reserveID returns the next request id.
func (r *requestStream) reserveID() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextID++
	return r.nextID
}

// expectAck gives the call an id and expects its acknowledgement. It fails if the stream is broken.
func (r *requestStream) expectAck(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.nextID++
	c.id = r.nextID
	r.expectLocked(c)
	return nil
}

// expectAgain is expectAck for a call that has its id.
func (r *requestStream) expectAgain(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.expectLocked(c)
	return nil
}

func (r *requestStream) expectLocked(c *call) {
	c.err, c.answered, c.unread = nil, false, false // of an attempt before this
	c.expected = telemetry.Start()
	r.acks[c.id] = c
	if c.owner != nil && !r.sweeps {
		r.sweeps = true
		r.sweeper.Reset(r.k.c.sweepEvery())
	}
}

// expectCache expects the reply to a cache request after those that wait already. The caller holds r.writing, so that
// requests are written in that order.
func (r *requestStream) expectCache(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	c.expected = telemetry.Start()
	r.cache = append(r.cache, c)
	return nil
}

// unexpectCache takes back the newest expectation. The caller holds r.writing.
func (r *requestStream) unexpectCache(c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := len(r.cache) - 1; last >= 0 && r.cache[last] == c {
		r.cache = r.cache[:last]
		r.quietLocked()
	}
}

// takeOff is take of a call whose acknowledgement can come on this stream alone.
func (r *requestStream) takeOff(c *call) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, waiting := r.acks[c.id]
	delete(r.acks, c.id)
	r.quietLocked()
	return waiting
}

// forget gives up on an acknowledgement. It reports false if the reply has come meanwhile and is in the call.
func (r *requestStream) forget(c *call) bool {
	waiting := r.take(c)
	if !waiting {
		<-c.done
	}
	return waiting
}
