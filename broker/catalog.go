package broker

import (
	"cmp"
	"context"
	"log/slog"
	"sync"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/fanout"
)

// tenantKeys are the keys of the catalog's tenants: an [auth.KeySource] that changes.
type tenantKeys struct {
	mu   sync.RWMutex
	keys auth.StaticKeys
}

// Keys implements [auth.KeySource].
func (t *tenantKeys) Keys(ctx context.Context, tenant string) (auth.KeySet, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.keys.Keys(ctx, tenant)
}

func (t *tenantKeys) put(tenant string, keys auth.KeySet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys[tenant] = keys
}

func (t *tenantKeys) remove(tenant string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, tenant)
}

// update carries out what the catalog's source has to say. What is in none of the changes is not touched. The
// subscriptions of a removed stream end cleanly once what was queued is written
// (docs/protocol/session.md#the-end-of-a-subscription), and publishes to it and requests to a removed cache are
// answered as if it had never been. What was authenticated by a key that is gone, or for a tenant that is, ends as if
// the token had expired.
func (b *Broker) update(changes []catalog.Change, err error) {
	end := b.cfg.Trace("catalog", slog.Int("felix.changes", len(changes)))
	defer func() { end(err) }()
	if err != nil {
		b.metrics.catalogErrors.Add(1)
		b.metrics.catalogStale.Store(true)
		b.log.Error("catalog not read", "error", err)
		return
	}
	for i := range changes {
		b.apply(&changes[i])
	}
	b.metrics.catalogChanges.Add(uint64(len(changes)))
	b.metrics.catalogStale.Store(false) // last: who sees it finds the changes made
	b.log.Info("catalog read", "changes", len(changes))
	b.warnOfCuts()
}

// warnOfCuts logs of which things tenants are guaranteed more than there is.
func (b *Broker) warnOfCuts() {
	for k, budget := range b.tenants.budgets {
		if n := budget.Cut(); n > 0 {
			b.log.Warn("guarantees are cut", "of", tenantLimit(k).String(), "tenants", n)
		}
	}
}

func (b *Broker) apply(c *catalog.Change) {
	switch c.Kind {
	case catalog.KindTenant:
		if c.Removed {
			b.keys.remove(c.Tenant)
			b.caches.RemoveTenant(c.Tenant)
			b.tenants.remove(c.Tenant)
		} else {
			b.keys.put(c.Tenant, c.Keys)
			b.tenants.put(c.Tenant, c.Keys, c.Limits)
			limits := c.Limits.Over(b.cfg.Tenant)
			b.caches.SetTenant(c.Tenant, *limits.CacheGuarantee, *limits.CacheMax)
		}
	case catalog.KindStream:
		key := fanout.Key{Tenant: c.Tenant, Namespace: c.Namespace, Stream: c.Name}
		if c.Removed {
			b.removeStream(key)
		} else {
			if err := b.putStream(key, c.Stream); err != nil { // the others are served all the same
				b.metrics.streamsFailed.Add(1)
				b.log.Error("stream not opened", "tenant", c.Tenant, "namespace", c.Namespace, "stream", c.Name, "error", err)
			}
		}
	case catalog.KindCache:
		scope := cache.Scope{Tenant: c.Tenant, Namespace: c.Namespace, Cache: c.Name}
		if c.Removed {
			b.caches.Remove(scope)
		} else {
			b.caches.Add(scope)
		}
	}
}

// policy is what the catalog says of a stream, and what the broker's settings say where it says nothing.
func (b *Broker) policy(s catalog.Stream) fanout.Policy {
	p := fanout.Policy{
		Overflow:    b.cfg.QueuePolicy,
		QueueBytes:  cmp.Or(s.QueueBytes, b.cfg.QueueBytes),
		QueueItems:  cmp.Or(s.QueueBatches, b.cfg.QueueCapacity),
		ReplayBytes: cmp.Or(s.ReplayBytes, b.cfg.ReplayBytes),
	}
	if s.Overflow != nil {
		p.Overflow = *s.Overflow
	}
	return p
}
