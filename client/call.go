package client

import (
	"context"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// call is a request that waits for its reply.
type call struct {
	id       uint64
	want     codec.MessageType // of a cache request: what answers it, unless error does
	done     chan struct{}     // capacity 1
	err      error
	answered bool // by the broker; otherwise err is why no reply will come
	unread   bool // by the broker: it has not been carried out
	expected telemetry.Time
	deadline int64       // by the client's clock; 0 if the context has one
	timer    *time.Timer // of a request without a deadline
	value    []byte      // cache_get: a copy
	hit      bool
	binary   cacheReply // of a binary cache request
	owner    *pending   // of an asynchronous publish
	route    cacheRoute // of a cache request in JSON
	publication
}

// finish notifies the waiter that the call is over.
func (c *call) finish() {
	if c.owner != nil {
		c.owner.over()
	} else {
		c.done <- struct{}{}
	}
}

// outcome returns what a publish that was sent came to.
func (c *call) outcome() error {
	if c.err != nil && (c.repeated || !c.answered && !c.unread) { // a refusal says nothing about what was sent before
		return inDoubt(c.err)
	}
	return c.err
}

var callPool = sync.Pool{New: func() any {
	c := &call{done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	return c
}}

// startCall returns a call for a request, whose timer runs if ctx has no deadline.
func (c *Client) startCall(ctx context.Context) *call {
	k, _ := callPool.Get().(*call)
	k.err, k.answered, k.unread, k.binary, k.publication = nil, false, false, cacheReply{}, publication{}
	if k.deadline = c.deadline(ctx); k.deadline > 0 {
		k.timer.Reset(c.o.requestTimeout)
	}
	return k
}

// deadline returns the time, by the client's clock, at which a call that begins now ends if ctx has no deadline, and 0
// if it has one.
func (c *Client) deadline(ctx context.Context) int64 {
	if _, ok := ctx.Deadline(); ok {
		return 0
	}
	return c.now() + int64(c.o.requestTimeout)
}

// release gives the call back.
func (c *call) release() {
	c.timer.Stop()
	c.publication = publication{}
	callPool.Put(c)
}
