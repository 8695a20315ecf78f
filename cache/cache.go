// Package cache holds values with a lifetime, in scopes that do not see each other: the store behind felix-wire's
// cache requests (session.md, section 8).
//
// A value is readable by everybody as soon as [Scope.Put] returns, a later put always wins, and an entry is gone at the
// instant its lifetime ends. The bytes of all scopes together are bounded; over the bound, entries of the scope that
// grew are evicted, expired ones first and then any, before those of other scopes.
//
// The protocol, and who may use a scope, are left to others. Begin at [New] and [Store.AddScope].
package cache

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// NoExpiry is the lifetime of an entry that stays until it is replaced or evicted.
const NoExpiry time.Duration = -1

// entryOverhead is what an entry is charged beside its key and value: map slot, headers, expiry.
const entryOverhead = 96

// evictionSample is how many entries an eviction looks at to find an expired one before it takes any.
const evictionSample = 8

// Options configure a [Store].
type Options struct {
	// MaxBytes bounds keys, values and overhead of all entries; 0 means 256 MiB.
	MaxBytes int64
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Scope names a cache.
type Scope struct{ Tenant, Namespace, Cache string }

// Store is a set of caches under one bound. Its methods may be called from any goroutine.
type Store struct {
	maxBytes int64
	now      func() time.Time
	used     atomic.Int64
	evicted  atomic.Uint64

	mu     sync.RWMutex
	caches map[Scope]*Cache
	list   []*Cache // the same, for evictions across scopes
}

// New returns a store without caches.
func New(o Options) *Store {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 256 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Store{maxBytes: o.MaxBytes, now: o.Now, caches: make(map[Scope]*Cache)}
}

// Add makes a cache, or returns the one that is there.
func (s *Store) Add(scope Scope) *Cache {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.caches[scope]; c != nil {
		return c
	}
	c := &Cache{store: s, entries: make(map[string]entry)}
	s.caches[scope] = c
	s.list = append(s.list, c)
	return c
}

// Remove forgets a cache and its entries. It reports whether there was one.
func (s *Store) Remove(scope Scope) bool {
	s.mu.Lock()
	c := s.caches[scope]
	delete(s.caches, scope)
	if c != nil {
		i := slices.Index(s.list, c)
		s.list = slices.Delete(s.list, i, i+1)
	}
	s.mu.Unlock()
	if c == nil {
		return false
	}
	c.clear()
	return true
}

// Lookup finds a cache by the bytes of its names, without allocating. It returns nil if there is none.
func (s *Store) Lookup(tenant, namespace, cache []byte) *Cache {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.caches[Scope{string(tenant), string(namespace), string(cache)}]
}

// Stats is a store's state at one moment.
type Stats struct {
	Bytes   int64
	Evicted uint64 // entries that made room for others, expired ones not counted
}

// Stats returns the store's state.
func (s *Store) Stats() Stats { return Stats{Bytes: s.used.Load(), Evicted: s.evicted.Load()} }

// Cache is one scope's entries. Its methods may be called from any goroutine.
type Cache struct {
	store *Store

	mu      sync.RWMutex
	entries map[string]entry
	removed bool
}

type entry struct {
	value   []byte
	expires int64 // Unix nanoseconds, or 0 for never
}

func (e entry) expired(now int64) bool { return e.expires != 0 && now >= e.expires }

func cost(key string, e entry) int64 { return int64(len(key) + len(e.value) + entryOverhead) }

// Put stores a copy of value under a copy of key for ttl, replacing value and lifetime of an earlier entry. A ttl of 0
// is over at once; [NoExpiry] and any negative one never is.
func (c *Cache) Put(key, value []byte, ttl time.Duration) {
	if ttl == 0 {
		c.delete(key)
		return
	}
	e := entry{value: append([]byte{}, value...)} // never nil: an empty value is a hit
	if ttl > 0 {
		e.expires = max(0, c.store.now().Add(ttl).UnixNano()) // 0: beyond what the clock can tell
	}
	k := string(key)
	c.mu.Lock()
	if c.removed {
		c.mu.Unlock()
		return
	}
	delta := cost(k, e)
	if old, ok := c.entries[k]; ok {
		delta -= cost(k, old)
	}
	c.entries[k] = e
	over := c.store.used.Add(delta) > c.store.maxBytes
	if over {
		c.evictLocked(k)
	}
	c.mu.Unlock()
	if over {
		c.store.evictOthers(c)
	}
}

// Get returns the value stored under key. The bytes are shared and must not be changed; they stay valid. It does not
// allocate.
func (c *Cache) Get(key []byte) (value []byte, ok bool) {
	c.mu.RLock()
	e, ok := c.entries[string(key)]
	c.mu.RUnlock()
	if !ok {
		return nil, false
	}
	if e.expires != 0 && e.expired(c.store.now().UnixNano()) {
		c.expire(key)
		return nil, false
	}
	return e.value, true
}

// expire removes an entry that is over, unless a put has replaced it meanwhile.
func (c *Cache) expire(key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[string(key)]; ok && e.expired(c.store.now().UnixNano()) {
		c.removeLocked(string(key), e)
	}
}

func (c *Cache) delete(key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[string(key)]; ok {
		c.removeLocked(string(key), e)
	}
}

func (c *Cache) removeLocked(key string, e entry) {
	delete(c.entries, key)
	c.store.used.Add(-cost(key, e))
}

// evictLocked makes room in this cache, sparing the entry that has just been put unless nothing else is left.
func (c *Cache) evictLocked(spare string) {
	now := c.store.now().UnixNano()
	for c.store.used.Load() > c.store.maxBytes {
		victim, found := "", false
		seen := 0
		for k, e := range c.entries { // map order is random: that is the policy
			if k == spare {
				continue
			}
			victim, found = k, true
			if seen++; e.expired(now) || seen == evictionSample {
				break
			}
		}
		if !found {
			return
		}
		e := c.entries[victim]
		if !e.expired(now) {
			c.store.evicted.Add(1)
		}
		c.removeLocked(victim, e)
	}
}

// evictOthers makes room in the other caches when the one that grew has nothing left to give but its newest entry.
func (s *Store) evictOthers(grew *Cache) {
	if s.used.Load() <= s.maxBytes {
		return
	}
	s.mu.RLock()
	list := slices.Clone(s.list)
	s.mu.RUnlock()
	for _, c := range list {
		if c != grew {
			c.mu.Lock()
			c.evictLocked("")
			c.mu.Unlock()
		}
	}
}

func (c *Cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed = true
	for k, e := range c.entries {
		c.removeLocked(k, e)
	}
}

// Len returns the number of entries, expired ones that nobody has asked for included.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries)
}
