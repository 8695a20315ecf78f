package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

// found makes a miss an error.
func found(value []byte, hit bool, err error) ([]byte, error) {
	if err == nil && !hit {
		err = ErrMiss
	}
	return value, err
}

func (h *Cache) getRequest(key string) func(b []byte, id uint64) []byte {
	return func(b []byte, id uint64) []byte {
		return codec.AppendCacheGet(b, h.c.o.tenant, h.namespace, h.name, key, id, true)
	}
}

// do sends one request in JSON and waits for its reply.
func (h *Cache) do(ctx context.Context, at cacheRoute, want codec.MessageType, request func(b []byte, id uint64) []byte) (value []byte, hit bool, err error) {
	ctx, cancel := h.c.bound(ctx)
	defer cancel()
	c, err := h.begin(ctx, at, want, request)
	if err != nil {
		return nil, false, err
	}
	return c.wait(ctx)
}

// begin sends one request. Registering and writing are one step under the stream's turn, because replies without an id
// are matched by order.
func (h *Cache) begin(ctx context.Context, at cacheRoute, want codec.MessageType, request func(b []byte, id uint64) []byte) (*call, error) {
	deadline := h.c.deadline(ctx)
	for r := at.r; ; {
		// One for each attempt, and not pooled: the reader of a stream may meet it after its caller gave up.
		c := &call{done: make(chan struct{}, 1), want: want, route: at}
		err := h.send(ctx, r, c, request)
		if err == nil || errors.Is(err, ErrInDoubt) { // ctx has ended then, and the wait ends too
			return c, nil
		}
		if err = at.slot.again(ctx, r, err); err == nil {
			r, err = at.slot.get(ctx, deadline)
		}
		if err != nil {
			at.tell(err)
			return nil, err
		}
	}
}

// wait waits for the reply to a cache request.
func (c *call) wait(ctx context.Context) (value []byte, hit bool, err error) {
	select {
	case <-c.done:
		value, hit, err = c.value, c.hit, c.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if _, refused := errors.AsType[*BrokerError](err); err != nil && !refused && c.want == codec.MsgCacheOK {
		err = inDoubt(err)
	}
	c.route.tell(err)
	return value, hit, err
}

func (h *Cache) send(ctx context.Context, r *requestStream, c *call, request func(b []byte, id uint64) []byte) error {
	if err := r.writing.acquire(ctx); err != nil {
		return err
	}
	id := r.reserveID()
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	b.B = request(b.B, id)
	var err error
	c.id = id
	if n := len(b.B) - codec.HeaderLen; n > h.c.o.maxFrame {
		err = fmt.Errorf("%w: cache request of %d bytes, limit %d", ErrFrameTooLarge, n, h.c.o.maxFrame)
	} else {
		err = r.expectCache(c)
	}
	if err != nil {
		r.writing.release()
		return err
	}
	kept, err := r.writeInTurn(ctx, b.B, 0, nil)
	if kept {
		return err
	}
	defer r.writing.release()
	if err != nil && !errors.Is(err, ErrInDoubt) {
		r.unexpectCache(c)
	}
	return err
}
