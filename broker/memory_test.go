package broker

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/quicx"
)

// unserved returns a connection of a tenant of a broker that does not serve: nobody takes note of what is refused.
func unserved(t *testing.T, limit int64) *conn {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	d, err := NewDev(cfg, DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	n := d.tenants.get(d.Tenant)
	c := &conn{b: d.Broker, held: ledger.NewAccount(0, n.shares[kindReads])}
	c.account = ledger.NewAccount(limit, c.held)
	c.tenant.Store(n)
	c.known.Store(true)
	return c
}

// needs are the ways in which a connection needs memory. Each finds none.
func needs(t *testing.T, c *conn) map[string]func() bool {
	t.Helper()
	control := func() *control {
		ctl := &control{w: quicx.NewFrameWriter(nil, 0)}
		ctl.c = c
		return ctl
	}
	values := c.b.caches.Add(cache.Scope{Tenant: "t1", Namespace: "default", Cache: "values"})
	if _, err := values.Put([]byte("k"), make([]byte, directValue), cache.NoExpiry); err != nil {
		t.Fatal(err)
	}
	return map[string]func() bool{
		"stream": c.openStream,
		"reply": func() bool {
			ctl := control()
			ctl.reply(make([]byte, 0, 1<<20))
			return !ctl.overdrawn
		},
		"values": func() bool {
			frame := codec.AppendCacheRequest(nil, &codec.CacheRequest{Op: codec.CacheGet}, "default", "values", "k")
			r, _, err := codec.ParseCacheRequest(frame[extensionAt:])
			if err != nil {
				t.Fatal(err)
			}
			ctl := control()
			ctl.cacheGetKeys(values, &r)
			return !ctl.overdrawn
		},
		"changes": func() bool {
			var lost atomic.Uint64
			w := &cacheWatch{c: c, log: &cacheLog{}}
			w.log.init(ledger.NewAccount(0, nil), 1<<16, 1<<12, &lost, new(atomic.Int64))
			w.log.joinLocked(&w.cursor)
			w.log.appendLocked(cache.Event{Kind: cache.Set, Version: 1, Key: []byte("k")})
			_, ok := w.takeRest()
			return ok
		},
	}
}

// TestPressOfEveryNeed: whatever a connection needs memory for, its tenant is relieved if others have used it up.
func TestPressOfEveryNeed(t *testing.T) {
	c := unserved(t, 0)
	n, budget := c.tenant.Load(), c.b.tenants.budgets[kindReads]
	c.b.tenants.get("other").shares[kindReads].Force(budget.Max())
	c.held.Force(n.shares[kindReads].Guarantee())
	for name, need := range needs(t, c) {
		t.Run(name, func(t *testing.T) {
			if need() {
				t.Error("there was memory")
			}
			if c.b.tenants.pressed.Swap(nil) != n {
				t.Error("the tenant is not to be relieved")
			}
		})
	}
}

// TestConnectionsOwnLimit: what is above the limit of a connection is not refused for a limit of its tenant.
func TestConnectionsOwnLimit(t *testing.T) {
	c := unserved(t, 1)
	n := c.tenant.Load()
	for name, need := range needs(t, c) {
		if name == "stream" { // is no part of what is limited
			continue
		}
		t.Run(name, func(t *testing.T) {
			if need() {
				t.Error("there was memory")
			}
			if n.refused.Load() != nil || c.b.tenants.pressed.Swap(nil) != nil {
				t.Error("refused for the tenant")
			}
		})
	}
}
