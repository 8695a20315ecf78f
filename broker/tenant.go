package broker

import (
	"container/list"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/ledger"
)

// tenants are those that the broker knows, and the budgets that they share.
type tenants struct {
	budgets   [counted]*ledger.Budget
	strangers *ledger.Budget // memory of connections on which nobody has authenticated; each of them has a share
	defaults  catalog.Limits
	refusals  refusals
	pressed   atomic.Pointer[tenant] // was refused memory for a request that others use above their guarantee

	mu     sync.RWMutex // guards byName; nothing else is locked under it but the ledger
	byName map[string]*tenant
}

// kind is a thing that a broker has a budget of, and each tenant a share.
type kind int

const (
	kindMemory kind = iota // bytes of queues, replay, writes under way and subscriptions
	kindReads              // bytes of unfinished requests, unread replies and open streams
	kindConns
	kindSubs
	kindWatches
	counted // how many there are
)

// tenantLimit is a limit of one tenant that a request has met. The first ones are those of each kind, in that order.
type tenantLimit int

const (
	tenantMemory tenantLimit = iota
	tenantReads
	tenantConns
	tenantSubs
	tenantWatches
	tenantPublishes
	tenantPublishBytes
	tenantSubscribes
	tenantAuths
	tenantLimits // how many there are
)

// String is the value of the metric's label.
func (l tenantLimit) String() string {
	return [tenantLimits]string{
		"memory", "read_bytes", "connections", "subscriptions", "watches",
		"publishes_per_second", "publish_bytes_per_second", "subscribes_per_second", "authentications_per_second",
	}[l]
}

// strangersPart is the part of Config.ReadBytes that connections have together on which nobody has authenticated, and
// reservedPart the least part of Config.MaxConns: without a place for it nobody could say that it is for another
// tenant.
const (
	strangersPart = 4
	reservedPart  = 8
)

func newTenants(cfg *Config) *tenants {
	strangers := cfg.ReadBytes / strangersPart
	reserved := min(cfg.MaxUnauthenticatedConns, max(cfg.MaxConns/reservedPart, 1))
	t := &tenants{strangers: ledger.New(strangers), defaults: cfg.Tenant, byName: make(map[string]*tenant)}
	t.budgets = [counted]*ledger.Budget{
		kindMemory:  ledger.New(cfg.RetainedBytes),
		kindReads:   ledger.New(cfg.ReadBytes - strangers),
		kindConns:   ledger.New(int64(max(cfg.MaxConns-reserved, 1))),
		kindSubs:    ledger.New(int64(cfg.MaxSubscriptions)),
		kindWatches: ledger.New(int64(cfg.MaxWatches)),
	}
	return t
}

// tenant is what the broker holds for one tenant, and how much that may be. Its methods may be called from any
// goroutine.
type tenant struct {
	name    string
	all     *tenants
	shares  [counted]*ledger.Share
	refused atomic.Pointer[refusalCounts] // nil as long as nothing was

	publishes, publishBytes, subscribes, auths bucket

	mu    sync.Mutex // guards all below, with the places of the connections in the list
	conns list.List  // that count for the tenant, the oldest first
	// All connections on which a token of the tenant is good. Its keys, with which a catalog replaces it, are nil if
	// there is no catalog.
	members map[*conn]struct{}
	keys    atomic.Pointer[auth.KeySet]
	gone    bool
}

// refusals are the counters of what was refused, of the first maxTenantLabels tenants for good, and of all others
// together.
type refusals struct {
	mu     sync.Mutex // guards byName
	byName map[string]*refusalCounts
	others refusalCounts
}

type refusalCounts [tenantLimits]atomic.Uint64

// maxTenantLabels bounds the series of a broker that has thousands of tenants.
const maxTenantLabels = 64

// of returns the counters of a tenant.
func (r *refusals) of(name string) *refusalCounts {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.byName[name]; c != nil {
		return c
	}
	if len(r.byName) >= maxTenantLabels {
		return &r.others
	}
	if r.byName == nil {
		r.byName = make(map[string]*refusalCounts)
	}
	c := new(refusalCounts)
	r.byName[name] = c
	return c
}

// each calls f with every series.
func (r *refusals) each(f func(name string, counts *refusalCounts)) {
	r.mu.Lock()
	all := maps.Clone(r.byName)
	r.mu.Unlock()
	for name, counts := range all {
		f(name, counts)
	}
	if len(all) >= maxTenantLabels {
		f(otherLabel, &r.others)
	}
}

// boundsOf returns guarantee and maximum of each kind. No limit is nil.
func boundsOf(l catalog.Limits) [counted][2]int64 {
	return [counted][2]int64{
		kindMemory:  {*l.MemoryGuarantee, *l.MemoryMax},
		kindReads:   {*l.ReadGuarantee, *l.ReadMax},
		kindConns:   {*l.ConnectionsGuarantee, *l.ConnectionsMax},
		kindSubs:    {*l.SubscriptionsGuarantee, *l.SubscriptionsMax},
		kindWatches: {*l.WatchesGuarantee, *l.WatchesMax},
	}
}

// find returns a tenant, or nil if there is none.
func (t *tenants) find(name string) *tenant {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byName[name]
}

// get returns a tenant, which it makes if there is none.
func (t *tenants) get(name string) *tenant {
	if n := t.find(name); n != nil {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.getLocked(name)
}

func (t *tenants) getLocked(name string) *tenant {
	n := t.byName[name]
	if n == nil {
		n = &tenant{name: name, all: t, members: make(map[*conn]struct{})}
		for k, b := range boundsOf(t.defaults) {
			n.shares[k] = t.budgets[k].Share(b[0], b[1])
		}
		n.shares[kindConns].Tag = n
		n.shares[kindReads].Tag = n
		n.setRates(t.defaults)
		t.byName[name] = n
	}
	return n
}

// put makes a tenant or changes its keys and limits. What was authenticated by a key that is gone ends.
func (t *tenants) put(name string, keys auth.KeySet, limits catalog.Limits) {
	t.mu.Lock()
	n := t.getLocked(name)
	limits = limits.Over(t.defaults)
	for k, b := range boundsOf(limits) {
		n.shares[k].Set(b[0], b[1])
	}
	n.setRates(limits)
	t.mu.Unlock()
	n.setKeys(keys, false)
}

// remove forgets a tenant, and ends what was authenticated for it: one that is made under its name later is another
// one.
func (t *tenants) remove(name string) {
	t.mu.Lock()
	n := t.byName[name]
	delete(t.byName, name)
	t.mu.Unlock()
	if n == nil {
		return
	}
	n.setKeys(nil, true)
	for _, s := range n.shares {
		s.Close()
	}
}

// setRates says how much may come per second. No limit is nil.
func (t *tenant) setRates(l catalog.Limits) {
	t.publishes.set(*l.PublishesPerSecond)
	t.publishBytes.set(*l.PublishBytesPerSecond)
	t.subscribes.set(*l.SubscribesPerSecond)
	t.auths.set(*l.AuthenticationsPerSecond)
}

// may takes one of a rate. It reports false, and counts, if there is none.
func (t *tenant) may(rate *bucket, l tenantLimit) bool {
	if rate.take(1) > 0 {
		t.refuse(l)
		return false
	}
	return true
}

// mayPublish takes a publish of n bytes of the rates, or returns for how long it has to wait, and for which.
func (t *tenant) mayPublish(n int) (wait time.Duration, why tenantLimit) {
	if wait = t.publishBytes.wait(); wait > 0 {
		return wait, tenantPublishBytes
	}
	if wait = t.publishes.take(1); wait > 0 {
		return wait, tenantPublishes
	}
	t.publishBytes.take(int64(n)) // if somebody has just taken the rest, it matters little
	return 0, 0
}

// setKeys says which keys are good from now on.
func (t *tenant) setKeys(keys auth.KeySet, gone bool) {
	t.keys.Store(&keys) // before the look at the members: who comes later looks at the keys
	t.mu.Lock()
	t.gone = gone
	members := slices.Collect(maps.Keys(t.members))
	t.mu.Unlock()
	for _, c := range members {
		c.revoke(t, keys)
	}
}

// trusts reports whether tokens that the key has verified are good.
func (t *tenant) trusts(key auth.Fingerprint) bool {
	keys := t.keys.Load()
	return keys == nil || keys.Has(key)
}

func (t *tenant) isGone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gone
}

// remember notes that a token of the tenant is good on the connection. conn.mu is held.
func (t *tenant) remember(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.members[c] = struct{}{}
}

// forget follows the end of a token of the tenant on the connection. conn.mu is held.
func (t *tenant) forget(c *conn) {
	for k := range c.tokens {
		if k.tenant == t {
			return
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.members, c)
}

// tenantOf returns the tenant of a token that is good; nil if it has been removed since.
func (b *Broker) tenantOf(id *auth.Identity) *tenant {
	if b.cfg.Catalog != nil {
		return b.tenants.find(id.Tenant)
	}
	return b.tenants.get(id.Tenant)
}

// memory is [fanout.Options.Share].
func (t *tenants) memory(name string) *ledger.Share { return t.get(name).shares[kindMemory] }

// readBytes is what unfinished requests, unread replies and open streams hold.
func (t *tenants) readBytes() int64 { return t.budgets[kindReads].Used() + t.strangers.Used() }

// refuse counts a request that is refused for a limit.
func (t *tenant) refuse(l tenantLimit) {
	counts := t.refused.Load()
	if counts == nil {
		counts = t.all.refusals.of(t.name)
		t.refused.Store(counts)
	}
	counts[l].Add(1)
}

// take charges the tenant for one of a kind. It reports false, and counts, if it may not have one more.
func (t *tenant) take(k kind, l tenantLimit) bool {
	if t.shares[k].Charge(1) != nil {
		t.refuse(l)
		return false
	}
	return true
}

// give gives back what take has charged.
func (t *tenant) give(k kind) { t.shares[k].Release(1) }

// admit gives a connection a place among the tenant's. If there is no place, because others use what they are not
// guaranteed, the newest connection of the tenant that is furthest above its guarantee has to go. It reports false if
// the connection itself is what is too much, and otherwise the connections to close.
func (t *tenant) admit(c *conn) (victims []*conn, ok bool) {
	budget, share := t.all.budgets[kindConns], t.shares[kindConns]
	for share.Charge(1) != nil {
		furthest := budget.Furthest(nil)
		if errors.Is(share.Refusal(1), ledger.ErrLimit) || furthest == nil || furthest.Above() <= share.Above()+1 {
			t.refuse(tenantConns)
			return victims, false
		}
		victim := furthest.Tag.(*tenant).newest()
		if victim == nil { // it has just ended
			continue
		}
		victims = append(victims, victim)
	}
	t.mu.Lock()
	c.tenant.Store(t)
	c.place = t.conns.PushBack(c)
	t.mu.Unlock()
	// Guarantees of tenants that came since may leave less in common than is used.
	for budget.Used() > budget.Max() {
		furthest := budget.Furthest(nil)
		if furthest == nil {
			break
		}
		if victim := furthest.Tag.(*tenant).newest(); victim != nil {
			victims = append(victims, victim)
		}
	}
	return victims, true
}

// newest takes the place of the tenant's newest connection, which is returned; nil if there is none.
func (t *tenant) newest() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.conns.Back()
	if last == nil {
		return nil
	}
	c := t.conns.Remove(last).(*conn)
	c.place = nil
	t.give(kindConns)
	t.refuse(tenantConns)
	return c
}

// relieveReads closes connections that hold memory for requests, when guarantees of tenants that came since leave less
// of it in common than is used, or a tenant needs some that has less: of the tenant that is furthest above its
// guarantee, the one that holds most. What they hold is free soon, so that it is called from time to time and closes
// one each time.
func (t *tenants) relieveReads() {
	budget := t.budgets[kindReads]
	used, size := budget.Common()
	pressed := t.pressed.Swap(nil)
	if used <= size && pressed == nil {
		return
	}
	furthest := budget.Furthest(nil)
	if furthest == nil {
		return
	}
	n, _ := furthest.Tag.(*tenant)
	if used <= size && (n == pressed || furthest.Above()-pressed.shares[kindReads].Above() < size/8) {
		return // they have about the same
	}
	if c := n.largest(); c != nil {
		n.refuse(tenantReads)
		c.closeLater(reasonTenantReads)
	}
}

// refuseRead notes that something of the connection found no memory and ends, and why.
func (c *conn) refuseRead(err error) {
	c.b.limited(limitConnMemory)
	if c.known.Load() {
		c.tenant.Load().refuseRead(err)
	}
}

// refuseRead notes that a request of the tenant found no memory, and why. The limit of a connection is none of its
// tenant.
func (t *tenant) refuseRead(err error) {
	if errors.Is(err, ledger.ErrAccountLimit) {
		return
	}
	t.refuse(tenantReads)
	t.press(err)
}

// press asks for relief of the tenant, if that is why it found no memory. The one that has least above its guarantee is
// remembered: one that has most would be told to give itself.
func (t *tenant) press(err error) {
	for errors.Is(err, ledger.ErrShort) {
		p := t.all.pressed.Load()
		if p != nil && p.shares[kindReads].Above() <= t.shares[kindReads].Above() || t.all.pressed.CompareAndSwap(p, t) {
			return
		}
	}
}

// largest returns the tenant's connection that holds most and is not being closed, or nil.
func (t *tenant) largest() (largest *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	most := int64(0)
	for e := t.conns.Front(); e != nil; e = e.Next() {
		if c, _ := e.Value.(*conn); c.ctx.Err() == nil && c.held.Used() > most {
			largest, most = c, c.held.Used()
		}
	}
	return largest
}

// leave gives the connection's place back, if it still has one.
func (t *tenant) leave(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.place != nil {
		t.conns.Remove(c.place)
		c.place = nil
		t.give(kindConns)
	}
}

// Reasons of closes of connections for which their tenant has no place, or no memory.
var (
	reasonTenantConns = codec.LimitReached("connections")
	reasonTenantReads = codec.LimitReached("read bytes")
)
