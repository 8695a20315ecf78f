package client

import (
	"context"
	"fmt"
	"time"

	"github.com/felix-mq/felix/codec"
)

// NoExpiry is the lifetime of a cache entry that stays until it is replaced or evicted.
const NoExpiry time.Duration = 0

// Cache is a cheap handle for one cache of the client's tenant. Requests are spread over a few streams and pipelined
// on each.
type Cache struct {
	c               *Client
	namespace, name string
}

// Cache returns a handle for a cache. Nothing is sent: one that does not exist shows at the first request.
func (c *Client) Cache(namespace, cache string) *Cache {
	if !c.made() {
		return &Cache{}
	}
	return &Cache{c: c, namespace: namespace, name: cache}
}

// Put stores value under key for ttl, rounded up to a millisecond; with a ttl of 0, [NoExpiry], until it is replaced or
// evicted. It fails with [ErrInvalidTTL] if ttl is negative, as the time until a deadline that has passed is: nothing
// is sent then. When it returns nil, every client reads the new value. An error that matches [ErrInDoubt] means that
// the value may be stored, even after a later Put.
func (h *Cache) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := checkTTL(ttl); err != nil {
		return err
	}
	at, err := h.route(ctx, "put", key)
	if err != nil {
		return err
	}
	if at.binary() {
		_, err := h.request(ctx, at, codec.CacheRequest{Op: codec.CachePut, TTL: binaryTTL(ttl), Value: value}, key)
		return err
	}
	_, _, err = h.do(ctx, at, codec.MsgCacheOK, func(b []byte, id uint64) []byte {
		return codec.AppendCachePut(b, h.c.o.tenant, h.namespace, h.name, key, value, id, true, milliseconds(ttl), ttl != NoExpiry)
	})
	return err
}

func checkTTL(ttl time.Duration) error {
	if ttl < 0 {
		return fmt.Errorf("%w: %v", ErrInvalidTTL, ttl)
	}
	return nil
}

// milliseconds rounds a positive lifetime up.
func milliseconds(ttl time.Duration) uint64 { return uint64((ttl-1)/time.Millisecond) + 1 }

func binaryTTL(ttl time.Duration) uint64 {
	if ttl == NoExpiry {
		return codec.CacheForever
	}
	return milliseconds(ttl)
}

// Get returns the value stored under key, which is the caller's, or [ErrMiss]. An empty value is not a miss.
func (h *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	at, err := h.route(ctx, "get", key)
	if err != nil {
		return nil, err
	}
	if at.binary() {
		r := h.getBinary(ctx, at, key)
		return r[0].Value, r[0].Err
	}
	return found(h.do(ctx, at, codec.MsgCacheValue, h.getRequest(key)))
}

// CacheResult is what one key of [Cache.GetMany] came to.
type CacheResult struct {
	Value   []byte // the caller's; empty and not nil for an empty value
	Version uint64 // of the value, for [Cache.PutIf]; 0 from a broker without the extension cache
	Err     error  // ErrMiss if there is no value
}

// maxKeys is how many keys fit into one request.
const maxKeys = 1<<16 - 1

// GetMany returns what is stored under each key, in the order of the keys. A broker with the extension cache is asked
// in one request, and the values share memory: to keep one of many, copy it. To others the requests are sent without
// waiting for one another's replies. In both cases it takes about the time of one.
func (h *Cache) GetMany(ctx context.Context, keys ...string) []CacheResult {
	if len(keys) == 0 {
		return nil
	}
	if len(keys) > maxKeys {
		return append(h.GetMany(ctx, keys[:maxKeys]...), h.GetMany(ctx, keys[maxKeys:]...)...)
	}
	at, err := h.route(ctx, "get", keys...)
	if err != nil {
		results := make([]CacheResult, len(keys))
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	if at.binary() {
		return h.getBinary(ctx, at, keys...)
	}
	ctx, cancel := h.c.bound(ctx)
	defer cancel()
	results := make([]CacheResult, len(keys))
	calls := make([]*call, len(keys))
	for i, key := range keys {
		if i > 0 {
			at, results[i].Err = h.route(ctx, "get", key)
		}
		if results[i].Err == nil {
			calls[i], results[i].Err = h.begin(ctx, at, codec.MsgCacheValue, h.getRequest(key))
		}
	}
	for i, c := range calls {
		if c != nil {
			results[i].Value, results[i].Err = found(c.wait(ctx))
		}
	}
	return results
}

// getBinary asks for all keys in one request, and by itself for each value that did not fit together with the others.
func (h *Cache) getBinary(ctx context.Context, at cacheRoute, keys ...string) []CacheResult {
	results := make([]CacheResult, len(keys))
	a, err := h.request(ctx, at, codec.CacheRequest{Op: codec.CacheGet}, keys...)
	if err == nil && a.values.Len() != len(keys) {
		err = fmt.Errorf("%w: %d values for %d keys", ErrProtocol, a.values.Len(), len(keys))
	}
	for i := range results {
		if results[i].Err = err; err != nil {
			continue
		}
		switch version, value, _ := a.values.Next(); version {
		case 0:
			results[i].Err = ErrMiss
		case codec.CacheLeftOut:
			if len(keys) == 1 {
				results[i].Err = fmt.Errorf("%w: a value left out of its own reply", ErrProtocol)
			} else if at, results[i].Err = h.route(ctx, "get", keys[i]); results[i].Err == nil {
				results[i] = h.getBinary(ctx, at, keys[i])[0]
			}
		default:
			results[i].Value, results[i].Version = value, version
		}
	}
	return results
}

// PutIf is [Cache.Put] if the key's present version is the expected one; 0 means that there is no entry. It returns the
// version of the new entry, or the present one and [ErrVersion]. Versions of a key only grow. It fails with
// [ErrUnsupported] with a broker without the extension cache.
func (h *Cache) PutIf(ctx context.Context, key string, value []byte, ttl time.Duration, expected uint64) (version uint64, err error) {
	if err := checkTTL(ttl); err != nil {
		return 0, err
	}
	at, err := h.extended(ctx, "put_if", key)
	if err != nil {
		return 0, err
	}
	a, err := h.request(ctx, at, codec.CacheRequest{Op: codec.CachePutIf, TTL: binaryTTL(ttl), Expected: expected, Value: value}, key)
	if err == nil && a.status == codec.CacheNot {
		err = ErrVersion
	}
	return a.version, err
}

// Delete removes the entry and reports whether there was one. It fails with [ErrUnsupported] with a broker that has not
// the extension cache.
func (h *Cache) Delete(ctx context.Context, key string) (found bool, err error) {
	at, err := h.extended(ctx, "delete", key)
	if err != nil {
		return false, err
	}
	a, err := h.request(ctx, at, codec.CacheRequest{Op: codec.CacheDelete}, key)
	return err == nil && a.status == codec.CacheDone, err
}

// cacheRoute is where a request goes, and who wants to know its outcome.
type cacheRoute struct {
	slot *streamSlot
	r    *requestStream
	hook func(error) // may be nil
}

func (p cacheRoute) binary() bool { return p.r.ctl.ext&codec.ExtCache != 0 }

func (p cacheRoute) tell(err error) {
	if p.hook != nil {
		p.hook(err)
	}
}

// route returns the next stream for cache requests.
func (h *Cache) route(ctx context.Context, operation string, keys ...string) (cacheRoute, error) {
	if h == nil || h.c == nil {
		return cacheRoute{}, ErrNotMade
	}
	if err := checkNames(h.namespace, h.name); err != nil {
		return cacheRoute{}, err
	}
	if err := checkNames(keys...); err != nil {
		return cacheRoute{}, err
	}
	p := cacheRoute{hook: h.c.hooks.cache(ctx, h.namespace, h.name, operation)}
	p.slot = h.c.cachers[(h.c.nextCacher.Add(1)-1)%uint32(len(h.c.cachers))]
	var err error
	if p.r, err = p.slot.get(ctx, h.c.deadline(ctx)); err != nil {
		p.tell(err)
	}
	return p, err
}

// extended is route for operations that JSON has not.
func (h *Cache) extended(ctx context.Context, operation, key string) (cacheRoute, error) {
	p, err := h.route(ctx, operation, key)
	if err == nil && !p.binary() {
		err = ErrUnsupported
		p.tell(err)
	}
	return p, err
}
