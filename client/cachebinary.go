package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// cacheReply is a reply to a binary cache request. Its bytes are the call's own.
type cacheReply struct {
	status  codec.CacheStatus
	version uint64
	values  codec.CacheValueList
}

// request sends a binary cache request and waits for its reply.
func (h *Cache) request(ctx context.Context, at cacheRoute, q codec.CacheRequest, keys ...string) (cacheReply, error) {
	a, err := h.roundTrip(ctx, at, q, keys)
	at.tell(err)
	return a, err
}

func (h *Cache) roundTrip(ctx context.Context, at cacheRoute, q codec.CacheRequest, keys []string) (cacheReply, error) {
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
func (h *Cache) exchange(ctx context.Context, r *requestStream, c *call, size int, q codec.CacheRequest, keys []string) (a cacheReply, sent bool, err error) {
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
			return c.binary, !c.unread, c.err
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-c.timer.C:
			err = ErrTimeout
		}
	}
	if !r.forget(c) && sent {
		return c.binary, !c.unread, c.err
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
func (r *requestStream) cacheReply(payload []byte) error {
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
