package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// cacheReply is a reply to a binary cache request. Its bytes are the call's own.
type cacheReply struct {
	status  codec.CacheStatus
	version uint64
	values  codec.CacheValueList
}

// gather joins the requests of many callers into few writes: while one caller writes, the others leave their requests
// in gather, and it writes these too. Before it writes, it lets callers go first that are about to run. Replies come
// several to a packet and wake their callers together; without that, each caller would send a packet of its own, since
// the transport runs as soon as the first one waits. A packet costs more than all else that a small request does
// (docs/measure/notes/2026-11-28-cache.md).
type gather struct {
	mu      sync.Mutex
	frames  []byte // not written yet
	spare   []byte
	writing bool // somebody writes, and looks here again before it stops
}

// gatherMax is the size in bytes of a request that is still gathered, and of all that may wait. What is larger takes
// its turn alone, and waits for space.
const gatherMax = 64 << 10

// post sends a binary cache request without blocking, unless it is large or much waits already. One that asks for a
// packet or more does not wait for others to join it.
func (r *requests) post(ctx context.Context, size int, deadline int64, bulk bool, appendTo func([]byte) []byte) error {
	g := &r.gather
	g.mu.Lock()
	if len(g.frames)+size > gatherMax {
		g.mu.Unlock()
		frame := appendTo(make([]byte, 0, size))
		if err := r.turn(ctx, deadline); err != nil {
			return err
		}
		return r.write(ctx, frame, deadline, nil)
	}
	g.frames = appendTo(g.frames)
	if g.writing {
		g.mu.Unlock()
		return nil
	}
	g.writing = true
	g.mu.Unlock()
	if !bulk {
		runtime.Gosched()
	}
	if !r.flush() {
		if err := r.k.start(r.flushBlocking); err != nil {
			r.fail(err)
		}
	}
	return nil
}

// flush writes what is gathered as long as that does not block. It reports whether nothing is left for flushBlocking.
func (r *requests) flush() bool {
	if !r.writing.try() {
		return false
	}
	defer r.writing.release()
	return r.writeGathered(r.ctl.s.Send().TryWrite)
}

// flushBlocking writes what is gathered, whatever it takes.
func (r *requests) flushBlocking() {
	if r.writing.acquire(r.k.c.ctx) != nil {
		return // the client is being closed
	}
	defer r.writing.release()
	out := r.ctl.s.Send()
	r.writeGathered(func(b []byte) error {
		n, err := out.Write(b)
		return r.writeError(n, b, err)
	})
}

// writeGathered writes until nothing is gathered any more, or a write fails. The caller holds r.writing. What is not
// written then ends with the stream.
func (r *requests) writeGathered(write func([]byte) error) bool {
	g := &r.gather
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.frames) > 0 {
		frames := g.frames
		g.frames, g.spare = g.spare[:0], nil
		g.mu.Unlock()
		err := write(frames)
		g.mu.Lock()
		if err != nil { // back, in front
			frames = append(frames, g.frames...)
			g.frames, g.spare = frames, g.frames
			return false
		}
		g.spare = frames
	}
	g.writing = len(g.frames) > 0
	return true
}

// request sends a binary cache request and waits for its reply.
func (h *Cache) request(ctx context.Context, at place, q codec.CacheRequest, keys ...string) (cacheReply, error) {
	a, err := h.roundTrip(ctx, at, q, keys)
	at.tell(err)
	return a, err
}

func (h *Cache) roundTrip(ctx context.Context, at place, q codec.CacheRequest, keys []string) (cacheReply, error) {
	size := codec.HeaderLen + 64 + len(h.namespace) + len(h.name) + len(q.Value)
	for _, k := range keys {
		size += 2 + len(k)
	}
	if size > h.c.o.maxFrame {
		return cacheReply{}, fmt.Errorf("%w: cache request of %d bytes, limit %d", ErrFrameTooLarge, size, h.c.o.maxFrame)
	}
	c := h.c.startCall(ctx)
	defer c.release()
	for r := at.r; ; {
		a, sent, err := h.exchange(ctx, r, c, size, q, keys)
		switch {
		case sent && err != nil && !c.answered && q.Op != codec.CacheGet:
			return a, inDoubt(err)
		case sent:
			return a, err
		}
		if err = at.slot.again(ctx, r, err); err != nil {
			return a, err
		}
		if r, err = at.slot.get(ctx, c.deadline); err != nil {
			return a, err
		}
	}
}

// exchange makes one attempt on one stream. If the request was not sent, the broker cannot have read it.
func (h *Cache) exchange(ctx context.Context, r *requests, c *call, size int, q codec.CacheRequest, keys []string) (a cacheReply, sent bool, err error) {
	if err := r.expectAck(c); err != nil {
		return a, false, err
	}
	q.RequestID = c.id
	err = r.post(ctx, size, c.deadline, len(keys) > 1, func(b []byte) []byte {
		return codec.AppendCacheRequest(b, &q, h.namespace, h.name, keys...)
	})
	if sent = err == nil || errors.Is(err, ErrInDoubt); err == nil {
		select {
		case <-c.done:
			return c.binary, true, c.err
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-c.timer.C:
			err = ErrTimeout
		}
	}
	if !r.forget(c) && sent {
		return c.binary, true, c.err
	}
	return a, sent, err
}

// inDoubt marks the error of a request that may have been carried out.
func inDoubt(err error) error {
	if errors.Is(err, ErrInDoubt) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInDoubt, err)
}

// cacheReply ends the request that a binary reply names.
func (r *requests) cacheReply(payload []byte) error {
	typ, body, err := codec.ParseExtension(payload)
	if err != nil || typ != codec.ExtensionCacheReply || r.ctl.ext&codec.ExtCache == 0 {
		return fmt.Errorf("%w: extension frame in answer to a request", ErrProtocol)
	}
	a, err := codec.ParseCacheReply(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.mu.Lock()
	c := r.acks[a.RequestID]
	delete(r.acks, a.RequestID)
	r.quietLocked()
	r.mu.Unlock()
	if c == nil {
		return nil // its caller gave up
	}
	telemetry.Observe(telemetry.StageClientCacheWait, c.expected)
	c.answered = true
	c.binary = cacheReply{status: a.Status, version: a.Version, values: a.Values.Clone()}
	if a.Status == codec.CacheRefused {
		c.err = &BrokerError{string(a.Text)}
	}
	c.done <- struct{}{}
	return nil
}
