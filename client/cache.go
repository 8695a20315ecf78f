package client

import (
	"context"
	"fmt"
	"time"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

// NoExpiry is the lifetime of a cache entry that stays until it is replaced or evicted.
const NoExpiry time.Duration = -1

// Cache is a cheap handle for one cache of the client's tenant. Requests are spread over a few streams and pipelined
// on each.
type Cache struct {
	c               *Client
	namespace, name string
}

// Cache returns a handle for a cache. Nothing is sent: one that does not exist shows at the first request.
func (c *Client) Cache(namespace, cache string) *Cache {
	return &Cache{c: c, namespace: namespace, name: cache}
}

// Put stores value under key for ttl, rounded up to a millisecond; a ttl of 0 is over at once, [NoExpiry] never. When
// it returns nil, every client reads the new value. Unless an error is a [BrokerError], or one of those that say that
// nothing was sent, the value may still be stored, even after a later Put.
func (h *Cache) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	ms := uint64(0)
	if ttl > 0 {
		ms = uint64((ttl-1)/time.Millisecond) + 1
	}
	_, _, err := h.do(ctx, key, codec.MsgCacheOK, func(b []byte, id uint64) []byte {
		return codec.AppendCachePut(b, h.c.o.tenant, h.namespace, h.name, key, value, id, true, ms, ttl >= 0)
	})
	return err
}

// Get returns the value stored under key, which is the caller's, or [ErrMiss]. An empty value is not a miss.
func (h *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	value, hit, err := h.do(ctx, key, codec.MsgCacheValue, func(b []byte, id uint64) []byte {
		return codec.AppendCacheGet(b, h.c.o.tenant, h.namespace, h.name, key, id, true)
	})
	if err == nil && !hit {
		err = ErrMiss
	}
	return value, err
}

// do sends one request and waits for its reply. Registering and writing are one step under the stream's turn, because
// replies without an id are matched by order.
func (h *Cache) do(ctx context.Context, key string, want codec.MessageType, request func(b []byte, id uint64) []byte) (value []byte, hit bool, err error) {
	if err := checkNames(h.namespace, h.name, key); err != nil {
		return nil, false, err
	}
	ctx, cancel := h.c.bound(ctx)
	defer cancel()
	slot := h.c.cachers[int(h.c.nextCacher.Add(1)-1)%len(h.c.cachers)]
	r, err := slot.get(ctx)
	if err != nil {
		return nil, false, err
	}
	c := &call{done: make(chan struct{}, 1), want: want} // not pooled: the reader may meet it after its caller gave up
	if err := h.send(ctx, r, c, request); err != nil {
		return nil, false, err
	}
	select {
	case <-c.done:
		return c.value, c.hit, c.err
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

func (h *Cache) send(ctx context.Context, r *requests, c *call, request func(b []byte, id uint64) []byte) error {
	if err := r.writing.acquire(ctx); err != nil {
		return err
	}
	defer r.writing.release()
	id := r.reserveID()
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	b.B = request(b.B, id)
	if n := len(b.B) - codec.HeaderLen; n > h.c.o.maxFrame {
		return fmt.Errorf("%w: cache request of %d bytes, limit %d", ErrFrameTooLarge, n, h.c.o.maxFrame)
	}
	c.id = id
	if err := r.expectCache(c); err != nil {
		return err
	}
	err := r.write(ctx, b.B, 0)
	if err != nil {
		r.unexpectCache(c) // it was not sent
	}
	return err
}
