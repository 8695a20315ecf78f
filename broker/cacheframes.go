package broker

import (
	"bytes"
	"time"
	"unsafe"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/telemetry"
)

// directValue is the size in bytes from which a value is written from where it lies. Below, a write of its own costs
// more than copying it after the replies that wait already.
const directValue = 16 << 10

// cacheScope remembers the cache that a stream used last, so that a repeat costs a comparison.
type cacheScope struct {
	namespace, name []byte
	cache           *cache.Cache
	read, write     bool
}

// cacheFrame carries a binary cache request out (docs/protocol/extensions.md#cache).
func (ctl *control) cacheFrame(f quicx.Frame) outcome {
	start := telemetry.Start()
	r, hasID, err := codec.ParseCacheRequest(f.Bytes[extensionAt:])
	if err != nil {
		ctl.c.b.countMalformed(err)
		if !hasID {
			return ctl.refuse(codec.Undecodable)
		}
		return ctl.refuseCache(r.RequestID, codec.Undecodable.Text)
	}
	if ctl.identity == nil {
		return ctl.refuse(codec.AuthRequired)
	}
	s := ctl.findCache(r.Namespace, r.Cache)
	allowed := s.write
	if r.Op == codec.CacheGet || r.Op == codec.CacheWatch {
		allowed = s.read
	}
	if !allowed {
		return ctl.refuseCache(r.RequestID, codec.Forbidden.Text)
	}
	if s.cache == nil {
		return ctl.cacheUnknown(&r)
	}
	start = telemetry.Observe(telemetry.StageCacheParse, start)
	switch r.Op {
	case codec.CacheGet:
		return ctl.cacheGetKeys(s.cache, &r)
	case codec.CacheDelete:
		version, found := s.cache.Delete(r.Key)
		ctl.cacheDone(r.RequestID, version, found)
	case codec.CachePut:
		ctl.c.b.metrics.cachePuts.Add(1)
		version, err := s.cache.Put(r.Key, r.Value, frameTTL(r.TTL))
		telemetry.Observe(telemetry.StageCacheStore, start)
		if err != nil {
			return ctl.refuseCache(r.RequestID, codec.CacheBytesReached.Text)
		}
		ctl.cacheDone(r.RequestID, version, true)
	case codec.CachePutIf:
		ctl.c.b.metrics.cachePuts.Add(1)
		version, stored, err := s.cache.PutIf(r.Key, r.Value, frameTTL(r.TTL), r.Expected)
		telemetry.Observe(telemetry.StageCacheStore, start)
		if err != nil {
			return ctl.refuseCache(r.RequestID, codec.CacheBytesReached.Text)
		}
		ctl.cacheDone(r.RequestID, version, stored)
	case codec.CacheWatch:
		return ctl.cacheWatch(s.cache, &r)
	}
	return keep
}

func (ctl *control) cacheUnknown(r *codec.CacheRequest) outcome {
	return ctl.refuseCache(r.RequestID, string(codec.AppendCacheScopeNotFound(nil, []byte(ctl.identity.Tenant), r.Namespace, r.Cache)))
}

func frameTTL(ms uint64) time.Duration {
	if ms == codec.CacheForever {
		return cache.NoExpiry
	}
	return ttl(ms)
}

func (ctl *control) cacheDone(id, version uint64, done bool) {
	status := codec.CacheDone
	if !done {
		status = codec.CacheNot
	}
	ctl.reply(codec.AppendCacheReply(ctl.w.Buffer(), id, status, version))
}

// refuseCache answers a request with a text. The stream goes on: replies have ids.
func (ctl *control) refuseCache(id uint64, text string) outcome {
	ctl.c.b.metrics.requestErrors.Add(1)
	ctl.reply(codec.AppendCacheRefused(ctl.w.Buffer(), id, text))
	return keep
}

// findCache returns the cache of these names, with what the stream may do to it.
func (ctl *control) findCache(namespace, name []byte) *cacheScope {
	s := &ctl.cache
	if s.cache != nil && !s.cache.Removed() && bytes.Equal(s.namespace, namespace) && bytes.Equal(s.name, name) {
		return s
	}
	tenant := []byte(ctl.identity.Tenant)
	s.cache = ctl.c.b.caches.Lookup(tenant, namespace, name)
	if s.cache != nil { // other names can be of any length, and an idle stream should hold little
		s.namespace, s.name = append(s.namespace[:0], namespace...), append(s.name[:0], name...)
	}
	s.read = ctl.identity.Allowed(auth.ActionCacheRead, auth.KindCache, tenant, namespace, name)
	s.write = ctl.identity.Allowed(auth.ActionCacheWrite, auth.KindCache, tenant, namespace, name)
	return s
}

// cacheGetKeys answers with the values of all keys. Those that would make the frame too large are left out, but never
// the only one: a put frame is never shorter than the reply with its value.
func (ctl *control) cacheGetKeys(c *cache.Cache, r *codec.CacheRequest) outcome {
	limit := ctl.c.b.cfg.MaxFrameBytes - codec.CacheValuesHead - r.Keys.Len()*codec.CacheValueHead
	ctl.found = ctl.found[:0]
	total, direct := 0, false
	held := max(int64(r.Keys.Len()-keptKeys), 0) * int64(unsafe.Sizeof(foundValue{})) // bytes that stay until the peer has read
	start := telemetry.Start()
	for key, ok := r.Keys.Next(); ok; key, ok = r.Keys.Next() {
		v, hit := c.Get(key)
		e := foundValue{value: v, hit: hit}
		if hit {
			if n := len(v.Bytes()); total+n <= limit || r.Keys.Len() == 0 && len(ctl.found) == 0 {
				total += n
				if direct = direct || n >= directValue; direct {
					held += int64(v.Cap()) // evicted or not: those that are copied come after one that is not
				}
			} else {
				v.Release()
				e = foundValue{leftOut: true}
			}
		}
		ctl.found = append(ctl.found, e)
	}
	start = telemetry.Observe(telemetry.StageCacheLookup, start)
	if err := ctl.c.account.Charge(held); err != nil {
		ctl.overdraw(err)
		for _, e := range ctl.found {
			if e.hit {
				e.value.Release()
			}
		}
		return keep
	}
	defer ctl.c.account.Release(held)
	ctl.reply(codec.AppendCacheValues(ctl.w.Buffer(), r.RequestID, len(ctl.found), total))
	for i := range ctl.found {
		switch e := &ctl.found[i]; {
		case e.hit:
			ctl.replyValue(e.value)
			e.value.Release()
		case e.leftOut:
			ctl.reply(codec.AppendCacheValueHead(ctl.w.Buffer(), codec.CacheLeftOut, 0))
		default:
			ctl.reply(codec.AppendCacheValueHead(ctl.w.Buffer(), 0, 0))
		}
		ctl.found[i] = foundValue{}
	}
	telemetry.Observe(telemetry.StageCacheEncode, start)
	if cap(ctl.found) > keptKeys {
		ctl.found = nil
	}
	return keep
}

// keptKeys is how long a list of values a stream keeps for its next request, without being charged: one may ask for
// 65 535 keys.
const keptKeys = 32

type foundValue struct {
	value        cache.Value
	hit, leftOut bool
}

func (ctl *control) replyValue(v cache.Value) {
	b := v.Bytes()
	if len(b) >= directValue && ctl.settle() != nil {
		return // the peer takes no replies, and the stream ends
	}
	out := codec.AppendCacheValueHead(ctl.w.Buffer(), v.Version(), len(b))
	if len(b) < directValue {
		ctl.reply(append(out, b...))
		return
	}
	ctl.reply(out)
	ctl.writing.Store(true)
	_ = ctl.w.WriteBatch([][]byte{b}) // a failure shows again at the next flush
	ctl.writing.Store(false)
	ctl.releaseReplies()
	ctl.c.moved.Add(1)
}
