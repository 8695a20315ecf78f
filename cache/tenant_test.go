package cache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
)

// held is what a test knows of one tenant: what it has put and not deleted.
type held struct {
	name             string
	cache            *Cache
	guarantee, limit int64
	cost             int64
	keys             map[string]int // size of the value
	order            []string
}

func costOf(key string, size int) int64 {
	v := newValue(make([]byte, size))
	defer v.Release()
	return int64(len(key)+v.chunk.Cap()) + entryOverhead
}

func (h *held) put(t *testing.T, key string, size int) {
	t.Helper()
	if _, err := h.cache.Put([]byte(key), make([]byte, size), NoExpiry); err != nil {
		t.Fatalf("%s, with %d of %d bytes: %v", h.name, h.cost, h.guarantee, err)
	}
	if old, ok := h.keys[key]; ok {
		h.cost -= costOf(key, old)
	} else {
		h.order = append(h.order, key)
	}
	h.keys[key] = size
	h.cost += costOf(key, size)
}

// shed deletes the oldest keys, until n bytes more are within the guarantee.
func (h *held) shed(n int64) {
	for h.cost+n > h.guarantee {
		key := h.order[0]
		h.order = h.order[1:]
		h.cache.Delete([]byte(key))
		h.cost -= costOf(key, h.keys[key])
		delete(h.keys, key)
	}
}

// TestShares has tenants put, overwrite and delete at random, and compares what they have with what they must have: all
// that is within a guarantee, and nothing above a maximum. It is red without any of: the charge in update.settle, the
// lower bound in tenant.bounds that is the guarantee, "above" in tenant.evict, the order of del and Release in
// removeLocked.
func TestShares(t *testing.T) {
	for _, from := range []int64{1, 32 << 10, policyFrom} {
		for seed := range uint64(20) {
			t.Run(fmt.Sprintf("policy from %d, seed %d", from, seed), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, uint64(from)))
				s, _, _ := newTest(t, Options{MaxBytes: 256 << 10})
				s.policyFrom = from
				s.SetTenant(primary.Tenant, 0, 0) // nothing is set aside for it
				var modest, greedy []*held
				for i := range 6 {
					h := &held{name: fmt.Sprint("tenant-", i), keys: map[string]int{}, guarantee: 20 << 10}
					switch i {
					case 0, 1:
						modest = append(modest, h)
					case 2: // as much as it may have, exactly
						h.limit = h.guarantee
						modest = append(modest, h)
					case 3:
						h.guarantee, h.limit = 0, 16<<10
						greedy = append(greedy, h)
					default:
						greedy = append(greedy, h)
					}
					s.SetTenant(h.name, h.guarantee, h.limit)
					h.cache = s.Add(Scope{h.name, "default", "primary"})
				}
				for i := range 3000 {
					if rnd.IntN(3) == 0 {
						h := modest[rnd.IntN(len(modest))]
						key, size := fmt.Sprint("k", rnd.IntN(60)), rnd.IntN(1200)
						h.shed(costOf(key, size))
						h.put(t, key, size)
					} else {
						h := greedy[rnd.IntN(len(greedy))]
						_, err := h.cache.Put(fmt.Appendf(nil, "k%d", i%5000), make([]byte, rnd.IntN(4000)), NoExpiry)
						if err != nil {
							t.Fatalf("seed %d: %s, which can displace its own: %v", seed, h.name, err)
						}
					}
					if n := s.Bytes(); n > 256<<10 {
						t.Fatalf("seed %d: %d bytes in a store of %d", seed, n, 256<<10)
					}
					for _, h := range greedy {
						if n := s.TenantBytes(h.name); h.limit > 0 && n > h.limit {
							t.Fatalf("seed %d: %s holds %d bytes, its maximum is %d", seed, h.name, n, h.limit)
						}
					}
					if i%100 == 0 {
						settle(s)
						checkHeld(t, s, modest)
					}
				}
				settle(s)
				checkHeld(t, s, modest)
				if n := s.Bytes(); n < 256<<10*3/4 {
					t.Errorf("seed %d: %d bytes in use of %d, although more was put", seed, n, 256<<10)
				}
				if t.Failed() {
					t.Fatalf("policies from %d bytes on, seed %d", from, seed)
				}
			})
		}
	}
}

// checkHeld looks for everything that tenants within their guarantees have put.
func checkHeld(t *testing.T, s *Store, all []*held) {
	t.Helper()
	for _, h := range all {
		for key, size := range h.keys {
			if got, ok := get(h.cache, key); !ok || len(got) != size {
				t.Errorf("%s, within its guarantee, has lost %s", h.name, key)
			}
		}
		if st := h.cache.Stats(); st.Evicted != 0 || st.Bytes != h.cost || s.TenantBytes(h.name) != h.cost {
			t.Errorf("%s: %+v, want %d bytes and nothing evicted", h.name, st, h.cost)
		}
	}
}

// TestSharesUnderFlood puts new entries of a tenant within its guarantee while others fill the store from several
// goroutines, with limits that change and tenants that come and go.
func TestSharesUnderFlood(t *testing.T) {
	for _, from := range []int64{1, policyFrom} {
		t.Run(fmt.Sprint("policy from ", from), func(t *testing.T) {
			const bound = 4 << 20
			s, _, _ := newTest(t, Options{MaxBytes: bound})
			s.policyFrom = from
			s.SetTenant("quiet", 1<<20, 0)
			quiet := s.Add(Scope{"quiet", "default", "primary"})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for g := range 3 {
				c := s.Add(Scope{fmt.Sprint("loud-", g%2), "default", fmt.Sprint(g)})
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						if _, err := c.Put(fmt.Appendf(nil, "%d-%d", g, i), make([]byte, 100+i%3000), NoExpiry); err != nil {
							t.Errorf("a put that can displace others: %v", err)
							return
						}
						if n := s.Bytes(); n > bound {
							t.Errorf("%d bytes in a store of %d", n, bound)
							return
						}
					}
				})
			}
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					name := fmt.Sprint("passing-", i%3)
					s.SetTenant(name, ledger.Automatic, 64<<10)
					c := s.Add(Scope{name, "default", "primary"})
					for k := range 100 {
						if _, err := c.Put(fmt.Append(nil, k), make([]byte, 1000), NoExpiry); err != nil && !errors.Is(err, ErrLimit) {
							t.Error(err)
						}
					}
					s.RemoveTenant(name)
					if n := s.TenantBytes(name); n != 0 || !c.Removed() {
						t.Errorf("%d bytes of a tenant that is gone", n)
					}
				}
			})
			keys := make([]string, 600) // of 1.4 KiB
			for i := range keys {
				keys[i] = fmt.Sprint("key-", i)
				if _, err := quiet.Put([]byte(keys[i]), make([]byte, 1000), NoExpiry); err != nil {
					t.Error(err)
				}
				for n := range 3 { // fresh ones and old ones
					if key := keys[i*n/2]; true {
						if _, ok := get(quiet, key); !ok {
							t.Errorf("%s is gone, %d keys after it was put", key, i-i*n/2)
						}
					}
				}
				runtime.Gosched()
			}
			close(stop)
			wg.Wait()
			if n := quiet.Stats().Evicted; n != 0 {
				t.Errorf("%d entries within the guarantee evicted", n)
			}
		})
	}
}

// When the store is full, the tenant furthest above its guarantee gives, no matter who puts and which policies there
// are.
func TestFurthestGives(t *testing.T) {
	for _, from := range []int64{1, policyFrom} {
		t.Run(fmt.Sprint("policy from ", from), func(t *testing.T) {
			s, _, _ := newTest(t, Options{MaxBytes: 1 << 20})
			s.policyFrom = from
			s.SetTenant(primary.Tenant, 0, 0)
			fill := func(c *Cache, n int64) {
				for i := 0; i < 10_000 && c.bytes.Load() < n; i++ {
					if _, err := c.Put(fmt.Appendf(nil, "%d", i), make([]byte, 500), NoExpiry); err != nil {
						t.Fatal(err)
					}
				}
			}
			caches := map[string]*Cache{}
			for _, name := range []string{"near", "far", "new"} {
				s.SetTenant(name, 64<<10, 0)
				caches[name] = s.Add(Scope{name, "default", "primary"})
			}
			fill(caches["near"], 128<<10)
			fill(caches["far"], 700<<10)
			fill(caches["new"], 300<<10)
			settle(s)
			if n := caches["near"].Stats().Evicted; n != 0 {
				t.Errorf("%d entries of the tenant that is less far above its guarantee evicted", n)
			}
			if n := caches["far"].Stats().Evicted; n == 0 {
				t.Error("the tenant furthest above its guarantee gives nothing")
			}
			if caches["new"].bytes.Load() < 290<<10 {
				t.Errorf("%d bytes for the tenant that came last", caches["new"].bytes.Load())
			}
		})
	}
}

// A maximum is exact, its own entries make space, what can never fit is refused, and a lower one takes effect with the
// next put.
func TestTenantLimit(t *testing.T) {
	s, _, _ := newTest(t, Options{MaxBytes: 1 << 20})
	const limit = 32 << 10
	s.SetTenant("t2", ledger.Automatic, limit)
	first, second := s.Add(Scope{"t2", "a", "x"}), s.Add(Scope{"t2", "b", "x"})
	for i := range 200 {
		c := first
		if i%10 == 0 {
			c = second
		}
		if _, err := c.Put(fmt.Append(nil, i), make([]byte, 1000), NoExpiry); err != nil {
			t.Fatal(err)
		}
		wantValue(t, c, fmt.Sprint(i), strings.Repeat("\x00", 1000))
		if n := s.TenantBytes("t2"); n > limit {
			t.Fatalf("%d bytes, maximum %d", n, limit)
		}
	}
	settle(s)
	before := s.TenantBytes("t2")
	wantRefused(t, first, "huge", limit)
	if after := s.TenantBytes("t2"); after != before {
		t.Errorf("%d bytes after a put that was refused, %d before", after, before)
	}
	s.SetTenant("t2", 0, 8<<10)
	if _, err := second.Put([]byte("k"), nil, NoExpiry); err != nil {
		t.Error(err)
	}
	if n := s.TenantBytes("t2"); n > 8<<10 {
		t.Errorf("%d bytes, above a maximum that was lowered", n)
	}
	s.SetTenant("t2", 0, 0)
	if _, err := first.Put([]byte("large"), make([]byte, 64<<10), NoExpiry); err != nil {
		t.Errorf("after the maximum was taken away: %v", err)
	}
}

// A tenant that is removed leaves nothing, and one of its name gets nothing of it.
func TestTenantMadeAgain(t *testing.T) {
	s, _, _ := newTest(t, Options{MaxBytes: 1 << 20})
	s.SetTenant("t2", 0, 8<<10)
	scope := Scope{"t2", "default", "primary"}
	old := s.Add(scope)
	removed := 0
	old.Watch(func(e Event) {
		if e.Kind == Removed {
			removed++
		}
	})
	_, _ = old.Put([]byte("k"), []byte("of the old one"), NoExpiry)
	s.RemoveTenant("t2")
	s.RemoveTenant("t2")
	if !old.Removed() || removed != 1 || s.Bytes() != 0 || s.Lookup([]byte("t2"), []byte("default"), []byte("primary")) != nil {
		t.Errorf("removed %v, announced %d times, %d bytes", old.Removed(), removed, s.Bytes())
	}
	made := s.Add(scope)
	wantMiss(t, made, "k")
	_, _ = old.Put([]byte("k"), []byte("late"), NoExpiry)
	wantMiss(t, made, "k")
	if _, err := made.Put([]byte("large"), make([]byte, 64<<10), NoExpiry); err != nil {
		t.Errorf("a tenant made again is bound by the maximum of the old one: %v", err)
	}
	if n := s.TenantBytes("t2"); n < 64<<10 || n != s.Bytes() {
		t.Errorf("%d bytes, of %d", n, s.Bytes())
	}
	s.Remove(scope)
	if n := len(s.tenants); n != 1 {
		t.Errorf("%d tenants left, want the one that has a cache", n)
	}
}

// Tenants with little have no policy, and no goroutine; one that grows gets its entries ranked, and gives the policy
// back when it has shrunk.
func TestPolicyFollowsUse(t *testing.T) {
	s, c, clock := newTest(t, Options{MaxBytes: 64 << 20})
	s.policyFrom = policyFrom
	goroutines := runtime.NumGoroutine()
	for i := range 3000 {
		small := s.Add(Scope{fmt.Sprint("small-", i), "default", "primary"})
		_, _ = small.Put([]byte("k"), []byte("v"), NoExpiry)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines for small tenants", n-goroutines)
	}
	for round := range 3 {
		for i := range 5 << 10 {
			_, _ = c.Put(fmt.Append(nil, i), make([]byte, 1000), time.Second)
		}
		p := c.tenant.policy.Load()
		if p == nil || p.r.MaxCost() <= policyFrom {
			t.Fatalf("round %d: no policy with %d bytes", round, c.bytes.Load())
		}
		settle(s)
		checkIndex(t, s)
		if round == 2 {
			s.Remove(primary)
			break
		}
		clock.Advance(time.Second)
		waitFor(t, func() bool { return c.tenant.policy.Load() == nil && c.Stats().Entries == 0 })
	}
	if s.sketches != newSketches(64<<20) {
		t.Errorf("%d counters left of those of a new store", s.sketches.left)
	}
}

// Memory does not follow the bound: the largest one can be started, used and stopped.
func TestLargestBound(t *testing.T) {
	s, c, _ := newTest(t, Options{MaxBytes: 1 << 50})
	s.policyFrom = policyFrom
	_, _ = c.Put([]byte("k"), []byte("v"), NoExpiry)
	wantValue(t, c, "k", "v")
	total := int64(0)
	sketches := newSketches(1 << 50)
	for range 1000 {
		n := sketches.take(1 << 50)
		if n < minCounters || n > maxCounters {
			t.Fatalf("a sketch of %d counters", n)
		}
		total += n
	}
	if total > 2*maxCounters+1000*minCounters {
		t.Errorf("%d counters of 1000 tenants", total)
	}
}

// Series keep their scopes and only rise, whatever comes and goes.
func TestSeries(t *testing.T) {
	s, _, _ := newTest(t, Options{Series: 3}) // primary is the first
	scope := func(i int) Scope { return Scope{"t1", "default", fmt.Sprint("cache-", i)} }
	last := map[Scope]Stats{}
	var lastOthers Stats
	check := func(puts int) {
		t.Helper()
		others := s.Series(func(scope Scope, st Stats) {
			if st.Misses < last[scope].Misses {
				t.Errorf("%v fell from %+v to %+v", scope, last[scope], st)
			}
			last[scope] = st
		})
		if others.Misses != lastOthers.Misses+uint64(puts) {
			t.Errorf("others went from %+v to %+v with %d reads", lastOthers, others, puts)
		}
		lastOthers = others
	}
	for i := range 6 {
		c := s.Add(scope(i))
		get(c, "k")
		_, _ = c.Put([]byte("k"), nil, NoExpiry)
		check(max(0, min(1, i-1)))
	}
	if len(last) != 3 || lastOthers.Entries != 4 {
		t.Errorf("series %v, others %+v", last, lastOthers)
	}
	for _, i := range []int{0, 4, 5, 1} {
		s.Remove(scope(i))
		check(0)
	}
	get(s.Add(scope(7)), "k")
	check(1)
	get(s.Add(scope(0)), "k")
	check(0)
	if st := last[scope(0)]; st.Misses != 2 || st.Entries != 0 {
		t.Errorf("%+v for a cache that was made again, want both of its misses", st)
	}
}
