package broker

import "github.com/felix-mq/felix/internal/ledger"

// setCacheShare sets what the caches of a tenant may hold together, in bytes, now and later: guarantee is what the puts of
// other tenants never take away, and limit is the most. A guarantee of 0 or less is an equal part of half of what is not
// guaranteed to others; a limit of 0 is that of the broker. RemoveTenant of the store forgets them.
func (b *Broker) setCacheShare(tenant string, guarantee, limit int64) {
	if guarantee <= 0 {
		guarantee = ledger.Automatic
	}
	b.caches.SetTenant(tenant, guarantee, max(limit, 0))
}
