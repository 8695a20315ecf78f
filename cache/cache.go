// Package cache holds values with a lifetime, in scopes that do not see each other: the store behind felix-wire's
// cache requests (session.md, section 8) and their extension (docs/wire-extensions.md, cache).
//
// A value is readable by everybody as soon as [Cache.Put] returns, a later put always wins, and an entry is gone at the
// instant its lifetime ends. The bytes of a scope and of all scopes together are bounded. Which entries have to go is
// decided by ristretto (TinyLFU); what is true is decided by an index of our own, because ristretto buffers its writes
// and may refuse them:
//
//	Put ──▶ index: key → entry ──▶ ristretto: hash, cost     (policy.go)
//	              │      ▲              │
//	              ▼      └── remove ◀───┘ evicted, or refused
//	         timing wheel ── expired                         (wheel.go)
//
// The index has one entry for a 64-bit hash of scope and key, and compares both in full. Two keys with the same hash
// displace each other, which counts as an eviction.
//
// Lock order: policy.feed, shard.mu, then Cache.mu or wheel.mu. A value is retained under the lock of its shard, and
// released by the index behind the same lock, so a reader cannot meet one that is being evicted.
//
// The protocol, and who may use a scope, are left to others. Begin at [New] and [Store.Add].
package cache

import (
	"bytes"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/clock"
)

// NoExpiry is the lifetime of an entry that stays until it is replaced or evicted.
const NoExpiry time.Duration = -1

// entryOverhead is what an entry is charged beside its key and its buffer: the entry and the header of the buffer, and
// its places in the index and in ristretto's two maps.
const entryOverhead = 320

// Options configure a [Store].
type Options struct {
	// MaxBytes bounds keys, values and overhead of all entries; 0 means 256 MiB. A value is charged for the buffer that
	// it lies in, a power of two.
	MaxBytes int64
	// MaxScopeBytes bounds those of each scope; 0 means MaxBytes.
	MaxScopeBytes int64
	// Clock tells the time; nil means that of the machine.
	Clock clock.Clock
}

// Scope names a cache.
type Scope struct{ Tenant, Namespace, Cache string }

// Store is a set of caches under one bound. Its methods may be called from any goroutine.
type Store struct {
	maxScope int64
	clock    clock.Clock
	start    time.Time // what the store's nanoseconds count from
	hash     func(key []byte) uint64
	version  atomic.Uint64
	used     atomic.Int64

	shards [1 << shardBits]shard
	policy *policy
	wheel  *wheel

	mu     sync.RWMutex
	caches map[Scope]*Cache
}

const shardBits = 6

// shard is a part of the index.
type shard struct {
	mu      sync.RWMutex
	entries map[uint64]*entry
	_       [32]byte // readers of neighbors do not share a cache line
}

// New returns a store without caches. Close it when it is no longer used.
func New(o Options) *Store {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 256 << 20
	}
	if o.MaxScopeBytes <= 0 {
		o.MaxScopeBytes = o.MaxBytes
	}
	if o.Clock == nil {
		o.Clock = clock.Real()
	}
	seed := maphash.MakeSeed()
	s := &Store{
		maxScope: o.MaxScopeBytes, clock: o.Clock, start: o.Clock.Now(),
		hash:   func(key []byte) uint64 { return maphash.Bytes(seed, key) },
		caches: make(map[Scope]*Cache),
	}
	// A restarted store does not repeat the versions of its past life, which clients may still hold.
	s.version.Store(uint64(time.Now().UnixNano()))
	for i := range s.shards {
		s.shards[i].entries = make(map[uint64]*entry)
	}
	s.policy = newPolicy(o.MaxBytes, s.refused)
	s.wheel = newWheel(s.clock, s.now, s.expire)
	return s
}

// Close ends the store's goroutines and forgets all entries. Nothing else may be called any more.
func (s *Store) Close() {
	s.wheel.close()
	s.policy.close()
}

func (s *Store) now() int64 { return int64(s.clock.Now().Sub(s.start)) }

func (s *Store) shard(hash uint64) *shard { return &s.shards[hash>>(64-shardBits)] }

// Add makes a cache, or returns the one that is there.
func (s *Store) Add(scope Scope) *Cache {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.caches[scope]; c != nil {
		return c
	}
	c := &Cache{store: s, salt: maphash.Comparable(maphash.MakeSeed(), scope)}
	c.hand.prev, c.hand.next = &c.hand, &c.hand
	s.caches[scope] = c
	return c
}

// Remove forgets a cache and its entries. It reports whether there was one.
func (s *Store) Remove(scope Scope) bool {
	s.mu.Lock()
	c := s.caches[scope]
	delete(s.caches, scope)
	s.mu.Unlock()
	if c == nil {
		return false
	}
	c.mu.Lock()
	c.removed.Store(true)
	c.mu.Unlock()
	for e := c.victim(0); e != nil; e = c.victim(0) {
		s.removeIf(e, Deleted, nil)
	}
	c.notify(Event{Kind: Removed})
	return true
}

// Lookup finds a cache by the bytes of its names, without allocating. It returns nil if there is none.
func (s *Store) Lookup(tenant, namespace, cache []byte) *Cache {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.caches[Scope{string(tenant), string(namespace), string(cache)}]
}

// All calls f with each cache, in no order.
func (s *Store) All(f func(Scope, *Cache)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for scope, c := range s.caches {
		f(scope, c)
	}
}

// Bytes returns what all entries are charged.
func (s *Store) Bytes() int64 { return s.used.Load() }

// Cache is one scope's entries. Its methods may be called from any goroutine.
type Cache struct {
	store *Store
	salt  uint64 // keeps equal keys of different scopes apart

	hits, misses, evicted, expired atomic.Uint64
	watchers                       atomic.Pointer[[]*watcher] // copied on write, under mu

	removed atomic.Bool // set under mu

	mu      sync.Mutex // guards all below
	bytes   int64
	entries int
	hand    entry // of the clock, between the newest entry (next) and the oldest (prev)
}

// entry is a key's place in the index. The same entry takes the key's next value if that costs as much, so that
// ristretto hears of a key again only when its cost changes.
type entry struct {
	cache *Cache
	key   []byte
	hash  uint64
	cost  int64

	value   Value // guarded by shard.mu, like version and expires
	expires int64 // on the store's clock; 0 for never

	used atomic.Bool // by somebody since the scope's hand passed

	prev, next *entry // in the scope's circle, guarded by Cache.mu

	slot          *slot // of the wheel, guarded by wheel.mu; nil if it is not there
	sooner, later *entry
	due           int64 // in ticks
}

func (e *entry) is(c *Cache, key []byte) bool { return e.cache == c && bytes.Equal(e.key, key) }

func (e *entry) over(now int64) bool { return e.expires != 0 && now >= e.expires }

// Value is a stored value. Its bytes are shared and must not be changed; they are valid until [Value.Release], which is
// called once.
type Value struct {
	chunk   *buf.Chunk
	n       int
	version uint64
}

// Bytes returns the value, which is not nil even if it is empty.
func (v Value) Bytes() []byte { return v.chunk.Bytes()[:v.n:v.n] }

// Version returns the version that the value was stored as.
func (v Value) Version() uint64 { return v.version }

// Release gives the value back.
func (v Value) Release() { v.chunk.Release() }

// newValue copies a value into a counted buffer.
func newValue(b []byte) Value {
	v := Value{chunk: buf.Get(len(b)), n: len(b)}
	copy(v.chunk.Bytes(), b)
	return v
}

// Get returns the value stored under key, which the caller releases. It does not allocate.
func (c *Cache) Get(key []byte) (Value, bool) {
	s := c.store
	hash := s.hash(key) ^ c.salt
	s.policy.touch(hash)
	sh := s.shard(hash)
	sh.mu.RLock()
	e := sh.entries[hash]
	if e == nil || !e.is(c, key) || (e.expires != 0 && e.over(s.now())) {
		sh.mu.RUnlock()
		c.misses.Add(1)
		return Value{}, false
	}
	v := e.value
	v.chunk.Retain()
	sh.mu.RUnlock()
	if !e.used.Load() {
		e.used.Store(true)
	}
	c.hits.Add(1)
	return v, true
}

// Put stores a copy of value under a copy of key for ttl, replacing value and lifetime of an earlier entry, and returns
// its version. Versions of a key only grow. A ttl of 0 is over at once; [NoExpiry] and any negative one never is.
//
// The value is readable when Put returns, unless it is larger than the scope's share. It may be evicted at any time after
// that, also because ristretto refuses it.
func (c *Cache) Put(key, value []byte, ttl time.Duration) (version uint64) {
	version, _ = c.put(key, value, ttl, 0, false)
	return version
}

// PutIf is Put if the key's present version is the expected one, where 0 means that there is no entry. Otherwise it
// changes nothing, and returns the present version and false.
func (c *Cache) PutIf(key, value []byte, ttl time.Duration, expected uint64) (version uint64, stored bool) {
	return c.put(key, value, ttl, expected, true)
}

func (c *Cache) put(key, value []byte, ttl time.Duration, expected uint64, conditional bool) (uint64, bool) {
	s := c.store
	hash := s.hash(key) ^ c.salt
	v := newValue(value)
	cost := int64(len(key) + v.chunk.Cap() + entryOverhead)
	s.policy.touch(hash) // a new key was used once, or it could never displace another
	s.policy.begin(cost)
	version, stored := c.putFed(hash, key, v, cost, ttl, expected, conditional)
	s.policy.end()
	if stored {
		c.shrink(hash)
	}
	return version, stored
}

// putFed is the part of put for which ristretto's buffer has room. It owns v.
func (c *Cache) putFed(hash uint64, key []byte, v Value, cost int64, ttl time.Duration, expected uint64, conditional bool) (uint64, bool) {
	s := c.store
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := s.now()
	old := sh.entries[hash]
	if old != nil && !old.is(c, key) {
		s.removeLocked(sh, old, Evicted) // another key with the same hash
		s.policy.del(hash)
		old = nil
	}
	if old != nil && old.over(now) {
		s.removeLocked(sh, old, Expired)
		s.policy.del(hash)
		old = nil
	}
	if conditional {
		present := uint64(0)
		if old != nil {
			present = old.value.version
		}
		if present != expected {
			v.Release()
			return present, false
		}
	}
	v.version = s.version.Add(1)
	if ttl == 0 {
		if old != nil {
			s.removeLocked(sh, old, Deleted)
			s.policy.del(hash)
		}
		v.Release()
		return v.version, true
	}
	expires := int64(0)
	if ttl > 0 {
		expires = max(0, now+int64(ttl)) // 0: beyond what the clock can tell
	}
	if old != nil && old.cost == cost {
		old.value.Release()
		old.value, old.expires = v, expires
		old.used.Store(true)
		s.wheel.set(old, expires)
		c.notify(Event{Kind: Set, Key: key, Version: v.version})
		return v.version, true
	}
	if old != nil {
		s.unlinkLocked(sh, old)
		s.policy.del(hash)
	}
	e := &entry{cache: c, key: bytes.Clone(key), hash: hash, cost: cost, value: v, expires: expires}
	if !c.link(e) {
		v.Release()
		return v.version, true // the scope has been removed meanwhile
	}
	sh.entries[hash] = e
	s.used.Add(cost)
	s.wheel.set(e, expires)
	c.notify(Event{Kind: Set, Key: key, Version: v.version})
	if cost > s.maxScope || !s.policy.set(e) {
		s.removeLocked(sh, e, Evicted)
	}
	return v.version, true
}

// Delete removes an entry. It reports whether there was one, and the version of the deletion.
func (c *Cache) Delete(key []byte) (version uint64, found bool) {
	s := c.store
	hash := s.hash(key) ^ c.salt
	s.policy.begin(0)
	defer s.policy.end()
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.entries[hash]
	if e == nil || !e.is(c, key) {
		return s.version.Add(1), false
	}
	found = !e.over(s.now())
	if found {
		version = s.removeLocked(sh, e, Deleted)
	} else {
		version = s.removeLocked(sh, e, Expired)
	}
	s.policy.del(hash)
	return version, found
}

// removeLocked takes an entry out of the index and says why. ristretto has still to be told, unless it was its doing.
func (s *Store) removeLocked(sh *shard, e *entry, why EventKind) (version uint64) {
	s.unlinkLocked(sh, e)
	c := e.cache
	version = s.version.Add(1)
	c.notify(Event{Kind: why, Key: e.key, Version: version})
	switch why { // what is counted has been told
	case Evicted:
		c.evicted.Add(1)
	case Expired:
		c.expired.Add(1)
	case Set, Deleted, Removed:
	}
	return version
}

// unlinkLocked takes an entry out of every place but ristretto.
func (s *Store) unlinkLocked(sh *shard, e *entry) {
	delete(sh.entries, e.hash)
	s.wheel.set(e, 0)
	e.cache.unlink(e)
	s.used.Add(-e.cost)
	e.value.Release()
}

// removeIf removes an entry that is still in the index, if that is still wanted.
func (s *Store) removeIf(e *entry, why EventKind, still func(*entry) bool) {
	s.policy.begin(0)
	defer s.policy.end()
	sh := s.shard(e.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.entries[e.hash] == e && (still == nil || still(e)) {
		s.removeLocked(sh, e, why)
		s.policy.del(e.hash)
	}
}

// expire is called by the wheel when an entry is due. It may have got a new lifetime meanwhile.
func (s *Store) expire(e *entry) {
	s.removeIf(e, Expired, func(e *entry) bool { return e.over(s.now()) })
}

// refused is called on ristretto's goroutine for an entry that it evicted or did not admit.
func (s *Store) refused(e *entry) {
	sh := s.shard(e.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.entries[e.hash] == e {
		s.removeLocked(sh, e, Evicted)
	}
}

// link charges an entry to its scope. It reports false if the scope has been removed.
func (c *Cache) link(e *entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed.Load() {
		return false
	}
	c.insert(e)
	c.bytes += e.cost
	c.entries++
	return true
}

func (c *Cache) insert(e *entry) {
	e.prev, e.next = &c.hand, c.hand.next
	e.prev.next, e.next.prev = e, e
}

func (c *Cache) unlink(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	c.bytes -= e.cost
	c.entries--
}

// shrink evicts entries of a scope that is above its share. ristretto knows of no scopes, so this is the second-chance
// algorithm: the oldest entry goes unless it was used since its last turn. The one that has just been put is spared.
func (c *Cache) shrink(spare uint64) {
	for {
		c.mu.Lock()
		over := c.bytes > c.store.maxScope
		c.mu.Unlock()
		if !over {
			return
		}
		e := c.victim(spare)
		if e == nil {
			return
		}
		c.store.removeIf(e, Evicted, nil)
	}
}

// victim returns the entry whose turn it is, or nil.
func (c *Cache) victim(spare uint64) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 2 * c.entries {
		e := c.hand.prev
		if c.removed.Load() || (!e.used.Swap(false) && e.hash != spare) {
			return e
		}
		e.prev.next, e.next.prev = e.next, e.prev
		c.insert(e)
	}
	return nil
}

// Removed reports whether the scope has been removed. Who holds on to a Cache looks before each use: what is put into a
// removed one is gone at once.
func (c *Cache) Removed() bool { return c.removed.Load() }

// Stats is a scope's state and what has happened in it.
type Stats struct {
	Entries int
	Bytes   int64 // charged: keys, buffers and overhead

	Hits, Misses uint64
	Evicted      uint64 // for lack of room, refused by the policy, or displaced by a key with the same hash
	Expired      uint64
}

// Stats returns the scope's counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Entries: c.entries, Bytes: c.bytes,
		Hits: c.hits.Load(), Misses: c.misses.Load(), Evicted: c.evicted.Load(), Expired: c.expired.Load(),
	}
}
