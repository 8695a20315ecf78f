// Package cache holds values with a lifetime, in scopes that do not see each other: the store for felix-wire's
// cache requests (docs/protocol/session.md#cache) and their extension (docs/protocol/extensions.md#cache).
//
// A value is readable by everybody as soon as [Cache.Put] returns, a later put always wins, and an entry is gone at the
// instant its lifetime ends. The bytes of a scope, of a tenant and of all tenants together are bounded, and a tenant
// within its guarantee loses nothing to others (tenant.go). Which of a tenant's entries have to go is decided by
// ristretto (TinyLFU); what is true is decided by an index in front of it, because ristretto buffers its writes and may
// refuse them:
//
//	Put ──▶ tenant: bytes ──▶ index: key → entry ──▶ ristretto of the tenant: hash, cost     (policy.go)
//	                               │      ▲              │
//	                               ▼      └── remove ◀───┘ evicted, or refused
//	                          timing wheel ── expired                                        (wheel.go)
//
// The index has one entry for a 64-bit hash of scope and key, and compares both in full. Two keys with the same hash
// displace each other, which counts as an eviction.
//
// The lock order is in docs/design/README.md#lock-order. A value is retained under the lock of its shard, and released
// by the index after it was taken out under the same lock, so a reader cannot meet one that is being evicted.
//
// A store may keep its entries in a file for its next life: [Snapshots].
//
// The protocol, and who may use a scope, are left to others. Begin at [New], [Store.SetTenant] and [Store.Add].
package cache

import (
	"bytes"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
)

// NoExpiry is the lifetime of an entry that stays until it is replaced or evicted.
const NoExpiry time.Duration = -1

// entryOverhead is what an entry is charged in addition to its key and its buffer: the entry and the header of the
// buffer, and its places in the index and in ristretto's two maps.
const entryOverhead = 320

// Options configure a [Store].
type Options struct {
	// MaxBytes bounds keys, values and overhead of all entries; 0 means 256 MiB. A value is charged for the buffer that
	// it lies in, a power of two.
	MaxBytes int64
	// MaxScopeBytes bounds those of each scope; 0 means MaxBytes. Tenants have bounds of their own: [Store.SetTenant].
	MaxScopeBytes int64
	// Series is how many scopes are counted by themselves in [Store.Series]; 0 means none.
	Series int
	// Clock tells the time; nil means that of the machine.
	Clock Clock
}

// Scope names a cache.
type Scope struct{ Tenant, Namespace, Cache string }

// Store is a set of caches under one bound. Its methods may be called from any goroutine.
type Store struct {
	maxScope int64
	clock    Clock
	start    time.Time // what the store's nanoseconds count from
	hash     func(key []byte) uint64
	version  atomic.Uint64

	shards [1 << shardBits]shard
	wheel  *wheel

	budget *ledger.Budget
	making sync.Mutex             // held by who evicts to make space, so that nobody is made to give too much
	giver  atomic.Pointer[tenant] // that was furthest above its guarantee when somebody last looked

	policyFrom int64 // when a tenant gets a policy; not changed once there is a cache
	policyMu   sync.Mutex
	sketches   sketches // guarded by policyMu

	others counters // of the scopes that have no series

	mu        sync.RWMutex // guards all below
	caches    map[Scope]*Cache
	tenants   map[string]*tenant
	series    map[Scope]*counters // never removed
	maxSeries int
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
		o.Clock = realClock{}
	}
	seed := maphash.MakeSeed()
	s := &Store{
		maxScope: o.MaxScopeBytes, clock: o.Clock, start: o.Clock.Now(),
		hash:   func(key []byte) uint64 { return maphash.Bytes(seed, key) },
		budget: ledger.New(o.MaxBytes), policyFrom: policyFrom, sketches: newSketches(o.MaxBytes),
		caches: make(map[Scope]*Cache), tenants: make(map[string]*tenant),
		series: make(map[Scope]*counters), maxSeries: o.Series,
	}
	// A restarted store does not repeat the versions of its past life, which clients may still hold, unless the clock
	// was set back; see [Snapshots].
	s.version.Store(uint64(time.Now().UnixNano()))
	for i := range s.shards {
		s.shards[i].entries = make(map[uint64]*entry)
	}
	s.wheel = newWheel(s.clock, s.now, s.expire)
	return s
}

// Close ends the store's goroutines and forgets all entries. Nothing else may be called any more.
func (s *Store) Close() {
	s.wheel.close()
	for _, t := range s.tenants {
		t.close()
	}
	for i := range s.shards {
		sh := &s.shards[i]
		for _, e := range sh.entries {
			s.unlinkLocked(sh, e)
			e.cache.tenant.share.Release(e.cost)
		}
	}
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
	c := &Cache{store: s, scope: scope, tenant: s.tenantLocked(scope.Tenant), salt: maphash.Comparable(maphash.MakeSeed(), scope)}
	c.count(scope)
	c.hand.prev, c.hand.next = &c.hand, &c.hand
	s.caches[scope] = c
	c.tenant.mu.Lock()
	c.tenant.caches = append(c.tenant.caches, c)
	c.tenant.mu.Unlock()
	return c
}

// Remove forgets a cache and its entries. It reports whether there was one.
func (s *Store) Remove(scope Scope) bool {
	s.mu.Lock()
	c := s.caches[scope]
	if c == nil {
		s.mu.Unlock()
		return false
	}
	last := s.unlistLocked(c)
	s.mu.Unlock()
	c.clear()
	if last {
		c.tenant.close()
	}
	return true
}

// clear ends a cache that the store does not list any more, and its entries.
func (c *Cache) clear() {
	c.mu.Lock()
	c.removed.Store(true)
	c.mu.Unlock()
	for e := c.victim(0); e != nil; e = c.victim(0) {
		c.store.removeIf(e, Deleted, nil)
	}
	c.notify(Event{Kind: Removed})
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
func (s *Store) Bytes() int64 { return s.budget.Used() }

// Cache is one scope's entries. Its methods may be called from any goroutine.
type Cache struct {
	store  *Store
	scope  Scope
	tenant *tenant
	salt   uint64 // keeps equal keys of different scopes apart

	own      *counters                  // of the scope
	rest     *counters                  // counts as well what a scope without a series does; nil for one that has a series
	watchers atomic.Pointer[[]*watcher] // copied on write, under mu

	removed atomic.Bool  // set under mu
	bytes   atomic.Int64 // changed under mu

	mu      sync.Mutex // guards all below
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
	decided bool  // the policy has forgotten the entry already, guarded by shard.mu

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

// Cap returns the bytes of the buffer that the value lies in, which is what it costs while anybody holds it.
func (v Value) Cap() int { return v.chunk.Cap() }

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
	sh := s.shard(hash)
	sh.mu.RLock()
	if p := c.tenant.policy.Load(); p != nil {
		p.touch(hash)
	}
	e := sh.entries[hash]
	if e == nil || !e.is(c, key) || (e.expires != 0 && e.over(s.now())) {
		sh.mu.RUnlock()
		c.add(misses)
		return Value{}, false
	}
	v := e.value
	v.chunk.Retain()
	sh.mu.RUnlock()
	if !e.used.Load() {
		e.used.Store(true)
	}
	c.add(hits)
	return v, true
}

// Put stores a copy of value under a copy of key for ttl, replacing value and lifetime of an earlier entry, and returns
// its version. Versions of a key only grow. [NoExpiry] is a lifetime without end; one of 0 or any other negative one is
// over at once.
//
// The value is readable when Put returns. It may be evicted at any time after that, also because the policy refuses it,
// but not while its tenant is within its guarantee and its scope within its share. If the entry is larger than what
// scope or tenant may hold, Put changes nothing and returns [ErrLimit].
//
// Put may wait for the policy, and evicts entries of the tenant, or of another one, if there is no space.
func (c *Cache) Put(key, value []byte, ttl time.Duration) (version uint64, err error) {
	version, _, err = c.put(key, value, ttl, 0, false)
	return version, err
}

// PutIf is Put if the key's present version is the expected one, where 0 means that there is no entry. Otherwise it
// changes nothing, and returns the present version and false.
func (c *Cache) PutIf(key, value []byte, ttl time.Duration, expected uint64) (version uint64, stored bool, err error) {
	return c.put(key, value, ttl, expected, true)
}

func (c *Cache) put(key, value []byte, ttl time.Duration, expected uint64, conditional bool) (version uint64, stored bool, err error) {
	t := c.tenant
	u := update{
		c: c, hash: c.store.hash(key) ^ c.salt, key: key, value: newValue(value), ttl: ttl,
		expected: expected, conditional: conditional,
	}
	u.cost = int64(len(key) + u.value.chunk.Cap() + entryOverhead)
	if u.cost <= c.store.maxScope || u.ended() {
		if version, stored, err = u.run(); err != nil && t.charge(u.cost) {
			u.charged = u.cost
			version, stored, err = u.run()
		}
	} else {
		err = ErrLimit
	}
	if err != nil {
		u.value.Release()
		c.add(refused)
		return 0, false, ErrLimit
	}
	if stored {
		c.shrink(u.hash)
	}
	t.review()
	return version, stored, nil
}

// update is a put that is being carried out.
type update struct {
	c           *Cache
	hash        uint64
	key         []byte
	value       Value // owned until it is stored or released, which run does unless it returns an error
	cost        int64
	charged     int64 // of that, before run
	ttl         time.Duration
	expected    uint64
	conditional bool
	restored    uint64 // version of an entry that is older than the store; 0 for a new one
}

// next returns the version that the value is stored as.
func (u *update) next() uint64 {
	if u.restored != 0 {
		return u.restored
	}
	return u.c.store.version.Add(1)
}

// ended reports whether the value is over before it is stored.
func (u *update) ended() bool { return u.ttl <= 0 && u.ttl != NoExpiry }

// run carries the update out. With an error, which is one of the ledger's, nothing has changed.
//
//	condition fails     ──▶ nothing changes
//	lifetime is over    ──▶ the present entry, if there is one, is removed
//	entry of equal cost ──▶ its value is overwritten in place
//	otherwise           ──▶ the account is settled, then another entry takes its place
func (u *update) run() (version uint64, stored bool, err error) {
	s, t := u.c.store, u.c.tenant
	if p := t.policy.Load(); p != nil && t.share.Used()+u.cost > p.most.Load() && u.charged == 0 {
		t.press(p, u.cost)
	}
	p := t.begin()
	defer t.end()
	sh := s.shard(u.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if p != nil {
		p.touch(u.hash) // a new key was used once, or it could never displace another
	}
	now := s.now()
	old := u.presentLocked(sh, now)
	if u.conditional {
		present := uint64(0)
		if old != nil {
			present = old.value.version
		}
		if present != u.expected {
			u.drop()
			return present, false, nil
		}
	}
	if u.ended() {
		version = s.version.Add(1)
		if old != nil {
			version = s.removeLocked(sh, old, Deleted)
		}
		u.drop()
		return version, true, nil
	}
	expires := int64(0)
	if u.ttl > 0 {
		expires = max(0, now+int64(u.ttl)) // 0: beyond what the clock can tell
	}
	if old != nil && old.cost == u.cost {
		return u.overwriteLocked(old, expires), true, nil
	}
	if err := u.settle(old); err != nil {
		return 0, false, err
	}
	return u.replaceLocked(sh, p, old, expires), true, nil
}

// presentLocked returns the entry of the key, or nil. One that is over, or of another key with the same hash, is
// removed.
func (u *update) presentLocked(sh *shard, now int64) *entry {
	old := sh.entries[u.hash]
	switch {
	case old == nil:
		return nil
	case !old.is(u.c, u.key):
		u.c.store.removeLocked(sh, old, Evicted)
		return nil
	case old.over(now):
		u.c.store.removeLocked(sh, old, Expired)
		return nil
	}
	return old
}

// overwriteLocked puts the value into an entry that costs as much with it as before.
func (u *update) overwriteLocked(old *entry, expires int64) (version uint64) {
	u.giveBack()
	version = u.next()
	u.value.version = version
	old.value.Release()
	old.value, old.expires = u.value, expires
	old.used.Store(true)
	u.c.store.wheel.set(old, expires)
	u.c.notify(Event{Kind: Set, Key: u.key, Version: version})
	return version
}

// replaceLocked makes an entry for the value in place of old, which may be nil. It is charged for already. p is the
// tenant's policy, or nil.
func (u *update) replaceLocked(sh *shard, p *policy, old *entry, expires int64) (version uint64) {
	c, s := u.c, u.c.store
	version = u.next()
	u.value.version = version
	if old != nil {
		s.detach(old) // its place in the index is never empty, so that who goes through that meets the key
		if p != nil {
			p.del(u.hash)
		}
	}
	e := &entry{cache: c, key: bytes.Clone(u.key), hash: u.hash, cost: u.cost, value: u.value, expires: expires}
	if !c.link(e) { // the scope has been removed meanwhile
		delete(sh.entries, u.hash)
		c.tenant.share.Release(u.cost)
		u.value.Release()
		return version
	}
	sh.entries[u.hash] = e
	s.wheel.set(e, expires)
	c.notify(Event{Kind: Set, Key: u.key, Version: version})
	if p != nil && !p.set(e) {
		s.removeLocked(sh, e, Evicted)
	}
	return version
}

// settle makes the tenant's account right for the update in place of old, which may be nil: exactly u.cost is charged
// for both.
func (u *update) settle(old *entry) error {
	had := u.charged
	if old != nil {
		had += old.cost
	}
	if had > u.cost {
		u.c.tenant.share.Release(had - u.cost)
		return nil
	}
	return u.c.tenant.share.Charge(u.cost - had)
}

// drop gives the value back, and what was charged for it.
func (u *update) drop() {
	u.giveBack()
	u.value.Release()
}

func (u *update) giveBack() {
	if u.charged > 0 {
		u.c.tenant.share.Release(u.charged)
	}
}

// Delete removes an entry. It reports whether there was one, and the version of the deletion.
func (c *Cache) Delete(key []byte) (version uint64, found bool) {
	s := c.store
	hash := s.hash(key) ^ c.salt
	defer c.tenant.review()
	c.tenant.begin()
	defer c.tenant.end()
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
	return version, found
}

// removeLocked takes an entry out of the index and out of the policy, and says why. The entry's tenant is between begin
// and end, unless the policy has removed the entry itself.
func (s *Store) removeLocked(sh *shard, e *entry, why EventKind) (version uint64) {
	s.unlinkLocked(sh, e)
	c := e.cache
	version = s.version.Add(1)
	c.notify(Event{Kind: why, Key: e.key, Version: version})
	switch why { // what is counted has been announced
	case Evicted:
		c.add(evicted)
	case Expired:
		c.add(expired)
	case Set, Deleted, Removed:
	}
	// The policy hears of it before the bytes can be charged again: a new entry must not meet a policy that is full of
	// old ones.
	if p := c.tenant.policy.Load(); p != nil && !e.decided {
		p.del(e.hash)
	}
	c.tenant.share.Release(e.cost)
	return version
}

// unlinkLocked takes an entry out of every place but its tenant's account and policy.
func (s *Store) unlinkLocked(sh *shard, e *entry) {
	delete(sh.entries, e.hash)
	s.detach(e)
}

// detach is unlinkLocked for an entry whose place in the index another one takes.
func (s *Store) detach(e *entry) {
	s.wheel.set(e, 0)
	e.cache.unlink(e)
	e.value.Release()
}

// removeIf removes an entry that is still in the index, if that is still wanted. It reports whether it did.
func (s *Store) removeIf(e *entry, why EventKind, still func(*entry) bool) bool {
	t := e.cache.tenant
	defer t.review()
	t.begin()
	defer t.end()
	sh := s.shard(e.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.entries[e.hash] != e || still != nil && !still(e) {
		return false
	}
	s.removeLocked(sh, e, why)
	return true
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
		e.decided = true
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
	c.bytes.Add(e.cost)
	c.entries++
	c.own.size(e.cost, 1)
	if c.rest != nil {
		c.rest.size(e.cost, 1)
	}
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
	c.bytes.Add(-e.cost)
	c.entries--
	c.own.size(-e.cost, -1)
	if c.rest != nil {
		c.rest.size(-e.cost, -1)
	}
}

// shrink evicts entries of a scope that is above its share. The policy knows of no scopes, so this is the second-chance
// algorithm: the oldest entry goes unless it was used since its last turn. The one that has just been put is spared.
func (c *Cache) shrink(spare uint64) {
	for {
		if c.bytes.Load() <= c.store.maxScope {
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
// removed one is gone at once, and one that is made later under the same name is another one.
func (c *Cache) Removed() bool { return c.removed.Load() }
