package cache

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
)

// ErrLimit means that an entry was not stored because it does not fit into what its cache or its tenant may hold. What
// was there before is untouched.
var ErrLimit = errors.New("cache: the bytes that the cache or its tenant may hold do not suffice")

// tenant is what one tenant has of the store. Its entries are charged to a share of the store's budget before they are
// stored. When a charge is refused, something has to go:
//
//   - if the tenant's own maximum is reached, entries of its own
//   - if the common part of the budget is spent, entries of the tenant that is furthest above its guarantee
//
// Which entries those are is up to the tenant's policy as far as it decides in time, and to the second-chance algorithm
// otherwise. A tenant within its guarantee is never refused and gives nothing. Its policy has to know that: its bound
// is never below the guarantee.
//
//	0 ├── guarantee ──┤── common part: in use by the tenant ──┤── free ──┤
//	  ├─ the policy's bound ─────────────────────────┤─ undecided ───────┤
//
// A policy decides late, so its bound is below what the tenant can have now, and what is pushed and not decided lies
// between.
type tenant struct {
	store    *Store
	name     string
	share    *ledger.Share
	declared bool // by SetTenant, guarded by Store.mu

	// feed is held shared by those who add or remove entries, and alone by who waits for the policy or changes it.
	feed   sync.RWMutex
	closed bool                   // guarded by feed
	policy atomic.Pointer[policy] // nil while the tenant uses little; changed under feed
	asked  atomic.Uint32          // how often the tenant was pressed and thought to be the one that gives

	mu     sync.Mutex // guards caches
	caches []*Cache
}

const (
	// undecidedPart is the part of what a tenant can have that is left to entries about which its policy has not
	// decided.
	undecidedPart = 16
	// roomPart and maxRoom bound what a tenant gives up at a time: the part of what it has above its guarantee, and
	// the bytes. Finding the tenant costs a look at all of them, so it should not give too little.
	roomPart = 64
	maxRoom  = 64 << 10
	// pressStep is by how many bytes a policy's bound is lowered for one put.
	pressStep = 256 << 10
	// askEvery is at how many puts a tenant that gives looks whether another one has to give now.
	askEvery = 32
	// A put may find nothing to evict, because other puts have charged their entries and not stored them yet. They
	// need only a processor for that, so the put tries again: quickTries times at once, and then up to maxTries times
	// with a pause before each. After that it is refused.
	quickTries = 20
	maxTries   = 520
	tryPause   = 4 * time.Millisecond
)

// SetTenant sets what a tenant's caches may hold in bytes, now and when it has some: guarantee is what other tenants
// never take away, or [ledger.Automatic], and limit is the most; 0 means that only the store's bound is. A tenant that
// is not declared has an automatic guarantee and no limit. Entries above a new limit go with the tenant's next puts.
func (s *Store) SetTenant(name string, guarantee, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenantLocked(name)
	t.declared = true
	t.share.Set(guarantee, limit)
}

// RemoveTenant removes all caches of a tenant with their entries, and its limits.
func (s *Store) RemoveTenant(name string) {
	s.mu.Lock()
	t := s.tenants[name]
	if t == nil {
		s.mu.Unlock()
		return
	}
	t.declared = false
	caches := t.list()
	for _, c := range caches {
		s.unlistLocked(c)
	}
	if len(caches) == 0 {
		delete(s.tenants, name)
	}
	s.mu.Unlock()
	for _, c := range caches {
		c.clear()
	}
	t.close()
}

// TenantBytes returns what a tenant's entries are charged.
func (s *Store) TenantBytes(name string) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t := s.tenants[name]; t != nil {
		return t.share.Used()
	}
	return 0
}

// tenantLocked returns a tenant, which it makes if there is none.
func (s *Store) tenantLocked(name string) *tenant {
	t := s.tenants[name]
	if t == nil {
		t = &tenant{store: s, name: name, share: s.budget.Share(ledger.Automatic, 0)}
		t.share.Tag = t
		s.tenants[name] = t
	}
	return t
}

// unlistLocked takes a cache from the store, and with its last cache a tenant that is not declared. It reports whether
// the tenant has to be closed.
func (s *Store) unlistLocked(c *Cache) (last bool) {
	t := c.tenant
	delete(s.caches, c.scope)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.caches = slices.DeleteFunc(t.caches, func(x *Cache) bool { return x == c })
	if len(t.caches) == 0 && !t.declared {
		delete(s.tenants, t.name)
		return true
	}
	return false
}

func (t *tenant) list() []*Cache {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.caches)
}

// close is called when the tenant has no caches and no way to get some.
func (t *tenant) close() {
	t.feed.Lock()
	t.closed = true
	t.dropLocked()
	t.feed.Unlock()
	t.share.Close()
}

// begin is called before an operation that adds or removes entries of the tenant, and before any lock is taken. It
// waits until the policy's buffer has space for it.
func (t *tenant) begin() *policy {
	for {
		t.feed.RLock()
		p := t.policy.Load()
		if p == nil || p.pushed.Add(1) <= maxPushed {
			return p
		}
		t.feed.RUnlock()
		t.settle()
	}
}

// end follows begin.
func (t *tenant) end() { t.feed.RUnlock() }

// settle waits until the policy has decided about all entries. Nothing is added meanwhile.
func (t *tenant) settle() {
	t.feed.Lock()
	defer t.feed.Unlock()
	if p := t.policy.Load(); p != nil {
		p.wait()
	}
}

// review gives the tenant a policy, or takes it away, when the time for that has come. It must not be called by the
// policy.
func (t *tenant) review() {
	from, used := t.store.policyFrom, t.share.Used()
	if p := t.policy.Load(); p == nil && used < from || p != nil && used >= from/2 {
		return
	}
	t.feed.Lock()
	defer t.feed.Unlock()
	p := t.policy.Load()
	used = t.share.Used()
	switch {
	case p == nil && used >= from && !t.closed:
		t.makeLocked()
	case p != nil && used < from/2:
		t.dropLocked()
	}
}

// makeLocked makes a policy of the entries that are there. They are few: see policyFrom.
func (t *tenant) makeLocked() {
	s := t.store
	var entries []*entry
	for _, c := range t.list() {
		c.mu.Lock()
		for e := c.hand.prev; e != &c.hand && !c.removed.Load(); e = e.prev {
			entries = append(entries, e)
		}
		c.mu.Unlock()
	}
	bound := s.budget.Max()
	if m := t.share.Max(); m > 0 {
		bound = min(bound, m)
	}
	s.policyMu.Lock()
	counters := s.sketches.take(bound)
	s.policyMu.Unlock()
	most, _ := t.bounds()
	p := newPolicy(counters, max(most, t.share.Used()), s.refused)
	for i, e := range entries {
		p.touch(e.hash)
		p.set(e)
		if i%maxPushed == maxPushed-1 {
			p.wait()
		}
	}
	p.wait()
	t.policy.Store(p)
}

// dropLocked takes the policy away and closes it. The entries stay.
func (t *tenant) dropLocked() {
	p := t.policy.Load()
	if p == nil {
		return
	}
	s := t.store
	p.wait() // what it has decided is carried out
	p.dead.Store(true)
	t.policy.Store(nil)
	for i := range s.shards { // readers that have found it are through
		s.shards[i].mu.Lock()
		s.shards[i].mu.Unlock() //nolint:staticcheck // the critical section is that of others
	}
	p.close()
	s.policyMu.Lock()
	s.sketches.give(p.counters)
	s.policyMu.Unlock()
}

// bounds returns where the policy should have its bound, and whether the tenant's own limit is the reason.
func (t *tenant) bounds() (most int64, limited bool) {
	used, size := t.store.budget.Common()
	guarantee := t.share.Guarantee()
	has := guarantee + t.share.Above() + max(size-used, 0)
	if limit := t.share.Max(); limit > 0 && limit <= has {
		has, limited = limit, true
	}
	return max(min(guarantee, has), has-has/undecidedPart), limited
}

// best returns the largest charge that the tenant could ever have.
func (t *tenant) best() int64 {
	_, size := t.store.budget.Common()
	best := t.share.Guarantee() + max(size, 0)
	if limit := t.share.Max(); limit > 0 {
		best = min(best, limit)
	}
	return best
}

// press is called before a put that would bring the tenant above its policy's bound. It sets that to what is right now,
// after the tenant that has to give has given something.
func (t *tenant) press(p *policy, cost int64) {
	used := t.share.Used()
	most, limited := t.bounds()
	if used+cost > most && !limited && !t.gives() {
		s := t.store
		s.making.Lock()
		if giver := s.furthest(); giver != nil && giver != t {
			giver.evict(cost, true)
		}
		s.making.Unlock()
		most, _ = t.bounds()
	}
	p.setMost(max(most, used-pressStep))
}

// gives reports whether the tenant is the one that is furthest above its guarantee, as of a few puts ago.
func (t *tenant) gives() bool {
	s := t.store
	if s.giver.Load() == t && t.asked.Add(1)%askEvery != 0 {
		return true
	}
	giver := s.furthest()
	s.giver.Store(giver)
	return giver == nil || giver == t
}

// furthest returns the tenant that is furthest above its guarantee, or nil if none is above.
func (s *Store) furthest() *tenant {
	if share := s.budget.Furthest(nil); share != nil {
		return share.Tag.(*tenant)
	}
	return nil
}

// charge charges the tenant with bytes for which there was no space, after it has made some. It reports false if there
// can be none.
func (t *tenant) charge(cost int64) bool {
	if cost > t.best() {
		return false
	}
	if p := t.policy.Load(); p != nil {
		t.press(p, cost)
		t.settle()
	}
	s := t.store
	s.making.Lock()
	defer s.making.Unlock()
	for try := range maxTries {
		err := t.share.Charge(cost)
		if err == nil {
			return true
		}
		giver, above := t, false
		if errors.Is(err, ledger.ErrShort) {
			if giver, above = s.furthest(), true; giver == nil {
				continue // somebody has released something
			}
			s.giver.Store(giver)
		}
		if giver.evict(cost, above) > 0 {
			continue
		}
		if try < quickTries {
			runtime.Gosched()
			continue
		}
		s.making.Unlock()
		time.Sleep(tryPause) //nolint:forbidigo // nothing tells when the other puts have had a processor
		s.making.Lock()
	}
	return false
}

// evict removes entries of the tenant's largest cache by the second-chance algorithm: of n bytes, or some more. If
// above is set, it stops where the tenant's guarantee begins. It returns the bytes of what it has removed. Store.making
// is held.
func (t *tenant) evict(n int64, above bool) (freed int64) {
	over := t.share.Used()
	if above {
		over = t.share.Above()
	}
	n = max(n, min(over/roomPart, maxRoom))
	var from *Cache
	for freed < n && (!above || t.share.Above() > 0) {
		e := (*entry)(nil)
		if from != nil {
			e = from.victim(0)
		}
		if e == nil {
			if from = t.largest(); from == nil {
				break
			}
			if e = from.victim(0); e == nil {
				break
			}
		}
		if t.store.removeIf(e, Evicted, nil) {
			freed += e.cost
		}
	}
	return freed
}

// largest returns the tenant's cache that holds the most, or nil if none holds anything.
func (t *tenant) largest() *Cache {
	t.mu.Lock()
	defer t.mu.Unlock()
	var largest *Cache
	most := int64(0)
	for _, c := range t.caches {
		if n := c.bytes.Load(); n > most {
			largest, most = c, n
		}
	}
	return largest
}
