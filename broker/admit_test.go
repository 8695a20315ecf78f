package broker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/quicx"
)

// admitting returns the tenants of a broker with so many places for connections.
func admitting(places int) *tenants {
	cfg := DefaultConfig()
	cfg.MaxConns, cfg.MaxUnauthenticatedConns = places+1, 1
	return newTenants(&cfg)
}

// TestAdmitNewcomer: a tenant that comes when another one has taken all places gets those that it is guaranteed now.
func TestAdmitNewcomer(t *testing.T) {
	all := admitting(64)
	old := all.get("old")
	var conns []*conn
	for range 64 {
		c := new(conn)
		if v, ok := old.admit(c); !ok || len(v) > 0 {
			t.Fatalf("alone: %t, %d victims", ok, len(v))
		}
		conns = append(conns, c)
	}
	if _, ok := old.admit(new(conn)); ok {
		t.Fatal("more than there are")
	}
	newcomer := all.get("newcomer")
	for i := range 16 {
		v, ok := newcomer.admit(new(conn))
		if !ok || len(v) != 1 || v[0] != conns[63-i] {
			t.Fatalf("connection %d of the newcomer: %t, victims %v", i, ok, v)
		}
	}
	if n := all.budgets[kindConns].Used(); n != 64 {
		t.Errorf("%d places are taken", n)
	}
	old.leave(conns[63]) // has no place any more
	old.leave(conns[0])
	if n := old.shares[kindConns].Used(); n != 64-16-1 {
		t.Errorf("%d places of the first tenant", n)
	}
}

// TestAdmitConcurrently: tenants that fight for places hold no more than there are, and all places are free in the end.
func TestAdmitConcurrently(t *testing.T) {
	const places = 32
	all := admitting(places)
	var wg sync.WaitGroup
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		all.get(name)
	}
	for w := range 8 {
		n := all.get(names[w%len(names)])
		r := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			var own []*conn
			for range 3000 {
				if r.IntN(3) == 0 && len(own) > 0 {
					n.leave(own[0])
					own = own[1:]
					continue
				}
				c := new(conn)
				if _, ok := n.admit(c); ok {
					own = append(own, c)
				}
				if used := all.budgets[kindConns].Used(); used > places {
					t.Errorf("%d of %d places are taken", used, places)
					return
				}
			}
			for _, c := range own {
				n.leave(c)
			}
		})
	}
	wg.Wait()
	if n := all.budgets[kindConns].Used(); n != 0 {
		t.Errorf("%d places are taken in the end", n)
	}
	for _, name := range names {
		if n := all.get(name).conns.Len(); n != 0 {
			t.Errorf("%s has %d connections in the end", name, n)
		}
	}
}

// TestRefusalSeries: the first tenants have series of their own, for good, and all others one together.
func TestRefusalSeries(t *testing.T) {
	all := admitting(1)
	for i := range maxTenantLabels + 10 {
		all.get(string(rune('A' + i))).refuse(tenantSubs)
	}
	all.remove("A")
	all.get("A").refuse(tenantSubs)
	series := make(map[string]uint64)
	all.refusals.each(func(name string, counts *refusalCounts) { series[name] = counts[tenantSubs].Load() })
	if len(series) != maxTenantLabels+1 || series["A"] != 2 || series[otherLabel] != 10 {
		t.Errorf("%d series, %d for the first, %d for all others", len(series), series["A"], series[otherLabel])
	}
}

// TestAdmitAgain: a connection counts for its tenant, and can be taken for others, after that was made again.
func TestAdmitAgain(t *testing.T) {
	d := startDev(t, nil)
	if _, err := dialDev(t, d, quicx.Config{})(authFrame(d)).Next(); err != nil {
		t.Fatal(err)
	}
	c := d.open()[0]
	c.authenticating.Lock()
	defer c.authenticating.Unlock()
	gone := c.tenant.Load()
	d.tenants.remove(d.Tenant)
	again := d.tenants.get(d.Tenant)
	if !c.authenticated(again) {
		t.Fatal("no place in the tenant that was made again")
	}
	if old, n := gone.conns.Len(), again.conns.Len(); old != 0 || n != 1 || c.place == nil {
		t.Errorf("%d connections of the tenant that is gone, %d of the other one, place %v", old, n, c.place)
	}
	if v := again.newest(); v != c || again.newest() != nil {
		t.Errorf("the newest connection is %p, want %p and then none", v, c)
	}
	c.tenant.Load().leave(c)
	if n := again.shares[kindConns].Used() + gone.shares[kindConns].Used(); n != 0 || again.conns.Len() != 0 {
		t.Errorf("%d places are taken in the end, and %d connections listed", n, again.conns.Len())
	}
}

// lineCounter is a log handler that counts the lines with a message.
type lineCounter struct {
	slog.Handler
	message string
	lines   atomic.Int64
}

func (l *lineCounter) Enabled(context.Context, slog.Level) bool { return true }

func (l *lineCounter) Handle(_ context.Context, r slog.Record) error {
	if r.Message == l.message {
		l.lines.Add(1)
	}
	return nil
}

// TestCutGuaranteesAreLogged: a broker says of which things its tenants are guaranteed more than there is.
func TestCutGuaranteesAreLogged(t *testing.T) {
	counter := &lineCounter{message: "guarantees are cut"}
	b := &Broker{tenants: admitting(64), log: slog.New(counter)}
	most := int64(1) << 40
	b.tenants.put("a", nil, catalog.Limits{MemoryGuarantee: &most, WatchesGuarantee: &most, WatchesMax: new(int64(1))})
	b.warnOfCuts()
	if n := counter.lines.Load(); n != 1 {
		t.Errorf("%d lines, want one about memory", n)
	}
	b.tenants.put("a", nil, catalog.Limits{})
	b.warnOfCuts()
	if n := counter.lines.Load(); n != 1 {
		t.Errorf("%d lines, want none for automatic guarantees", n-1)
	}
}

// TestPressed: of the tenants that find no memory for a request, the one that has least above its guarantee is
// relieved.
func TestPressed(t *testing.T) {
	all := admitting(64)
	large, small := all.get("large"), all.get("small")
	large.shares[kindReads].Force(large.shares[kindReads].Guarantee() + 1<<20)
	for _, order := range [][]*tenant{{small, large}, {large, small}} {
		for _, n := range order {
			n.refuseRead(ledger.ErrShort)
		}
		if p := all.pressed.Swap(nil); p != small {
			t.Errorf("%s is to be relieved", p.name)
		}
	}
	small.refuseRead(ledger.ErrLimit)
	if all.pressed.Load() != nil {
		t.Error("others are to give to a tenant that is at its own limit")
	}
}
