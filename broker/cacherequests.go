package broker

import (
	"context"
	"encoding/base64"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// cacheValueExtra is how much longer a cache_value can be than the cache_put it returns the value of: by its name, and
// by an id of 20 digits (docs/protocol/wire.md#maximum-frame-size).
const cacheValueExtra = 36

// cachePut carries a cache_put out; the caller has checked authentication and tenant (docs/protocol/session.md#cache).
// The value is readable by everybody before the reply is sent.
func (ctl *control) cachePut(m *codec.Message) outcome {
	if !ctl.identity.Allowed(auth.ActionCacheWrite, auth.KindCache, m.Tenant, m.Namespace, m.Cache) {
		return ctl.refuse(codec.Forbidden)
	}
	scope := ctl.c.b.caches.Lookup(m.Tenant, m.Namespace, m.Cache)
	if scope == nil {
		return ctl.cacheNotFound(m)
	}
	if ctl.payloadLen+cacheValueExtra > ctl.c.b.cfg.MaxFrameBytes {
		return ctl.refuse(codec.CacheEntryTooLarge) // it could not be read back
	}
	ctl.c.b.metrics.cachePuts.Add(1)
	start := telemetry.Start()
	lifetime := cache.NoExpiry
	if m.HasTTL {
		lifetime = ttl(m.TTL)
	}
	_, err := scope.Put(m.Key, m.Value, lifetime)
	telemetry.Observe(telemetry.StageCacheStore, start)
	if err != nil {
		return ctl.refuse(codec.CacheBytesReached)
	}
	if !m.HasRequestID {
		ctl.reply(codec.AppendOK(ctl.w.Buffer()))
		return cleanEnd
	}
	ctl.reply(codec.AppendCacheOK(ctl.w.Buffer(), m.RequestID))
	return keep
}

// ttl turns milliseconds on the wire into a duration, without overflow: what does not fit lives for ever in practice.
func ttl(ms uint64) time.Duration {
	const most = uint64(1<<63-1) / uint64(time.Millisecond)
	return time.Duration(min(ms, most)) * time.Millisecond
}

// cacheGet carries a cache_get out. A miss is a value of null.
func (ctl *control) cacheGet(m *codec.Message) outcome {
	if !ctl.identity.Allowed(auth.ActionCacheRead, auth.KindCache, m.Tenant, m.Namespace, m.Cache) {
		return ctl.refuse(codec.Forbidden)
	}
	scope := ctl.c.b.caches.Lookup(m.Tenant, m.Namespace, m.Cache)
	if scope == nil {
		return ctl.cacheNotFound(m)
	}
	start := telemetry.Start()
	value, hit := scope.Get(m.Key)
	start = telemetry.Observe(telemetry.StageCacheLookup, start)
	var b []byte
	if hit {
		defer value.Release()
		b = value.Bytes()
	}
	if len(b) >= heavyValue {
		head := len(codec.AppendCacheValue(nil, m.Tenant, m.Namespace, m.Cache, m.Key, nil, hit, m.RequestID, m.HasRequestID)) - codec.HeaderLen
		if head+base64.StdEncoding.EncodedLen(len(b)) > ctl.c.b.cfg.MaxFrameBytes {
			return ctl.refuse(codec.CacheEntryTooLarge) // it was put in binary
		}
		if !ctl.reserve(base64.StdEncoding.EncodedLen(len(b))) {
			return keep
		}
		_ = ctl.c.b.heavy.enter(context.Background(), ctl.identity.Tenant) // cannot fail, and waits for milliseconds
	}
	out := codec.AppendCacheValue(ctl.w.Buffer(), m.Tenant, m.Namespace, m.Cache, m.Key, b, hit, m.RequestID, m.HasRequestID)
	if len(b) >= heavyValue {
		ctl.c.b.heavy.leave() // the reply may have to wait for a durable publish, and for the peer
	}
	ctl.reply(out)
	telemetry.Observe(telemetry.StageCacheEncode, start)
	return ctl.idDecides(m)
}

// heavyValue is the length from which values take turns to become base64: a megabyte takes milliseconds.
const heavyValue = 64 << 10

func (ctl *control) cacheNotFound(m *codec.Message) outcome {
	return ctl.refuseWith(codec.CacheScopeNotFound, string(codec.AppendCacheScopeNotFound(nil, m.Tenant, m.Namespace, m.Cache)))
}

// idDecides: a cache request without an id is the last of its stream.
func (ctl *control) idDecides(m *codec.Message) outcome {
	if m.HasRequestID {
		return keep
	}
	return cleanEnd
}
