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
	_, _, err := h.do(ctx, "put", key, codec.MsgCacheOK, func(b []byte, id uint64) []byte {
		return codec.AppendCachePut(b, h.c.o.tenant, h.namespace, h.name, key, value, id, true, ms, ttl >= 0)
	})
	return err
}

// Get returns the value stored under key, which is the caller's, or [ErrMiss]. An empty value is not a miss.
func (h *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	return found(h.do(ctx, "get", key, codec.MsgCacheValue, h.getRequest(key)))
}

// CacheResult is what one key of [Cache.GetMany] came to.
type CacheResult struct {
	Value []byte // the caller's; empty and not nil for an empty value
	Err   error  // ErrMiss if there is no value
}

// GetMany returns what is stored under each key, in the order of the keys. The requests are sent without waiting for one
// another's replies, so that they take about the time of one.
func (h *Cache) GetMany(ctx context.Context, keys ...string) []CacheResult {
	ctx, cancel := h.c.bound(ctx)
	defer cancel()
	results := make([]CacheResult, len(keys))
	calls := make([]*call, len(keys))
	for i, key := range keys {
		calls[i], results[i].Err = h.begin(ctx, "get", key, codec.MsgCacheValue, h.getRequest(key))
	}
	for i, c := range calls {
		if c != nil {
			results[i].Value, results[i].Err = found(c.wait(ctx))
		}
	}
	return results
}

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

// do sends one request and waits for its reply.
func (h *Cache) do(ctx context.Context, operation, key string, want codec.MessageType, request func(b []byte, id uint64) []byte) (value []byte, hit bool, err error) {
	ctx, cancel := h.c.bound(ctx)
	defer cancel()
	c, err := h.begin(ctx, operation, key, want, request)
	if err != nil {
		return nil, false, err
	}
	return c.wait(ctx)
}

// begin sends one request. Registering and writing are one step under the stream's turn, because replies without an id are
// matched by order.
func (h *Cache) begin(ctx context.Context, operation, key string, want codec.MessageType, request func(b []byte, id uint64) []byte) (*call, error) {
	if err := checkNames(h.namespace, h.name, key); err != nil {
		return nil, err
	}
	// Not pooled: the reader may meet it after its caller gave up.
	c := &call{done: make(chan struct{}, 1), want: want, hook: h.c.hooks.cache(ctx, h.namespace, h.name, operation)}
	slot := h.c.cachers[int(h.c.nextCacher.Add(1)-1)%len(h.c.cachers)]
	r, err := slot.get(ctx)
	if err == nil {
		err = h.send(ctx, r, c, request)
	}
	if err != nil {
		c.tell(err)
		return nil, err
	}
	return c, nil
}

// wait waits for the reply to a cache request.
func (c *call) wait(ctx context.Context) (value []byte, hit bool, err error) {
	select {
	case <-c.done:
		value, hit, err = c.value, c.hit, c.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.tell(err)
	return value, hit, err
}

// tell tells the hook, if there is one, the outcome.
func (c *call) tell(err error) {
	if c.hook != nil {
		c.hook(err)
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
