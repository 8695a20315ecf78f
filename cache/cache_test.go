package cache

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/race"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var primary = Scope{"t1", "default", "primary"}

// newTest returns a store with one cache, which the test has emptied without a buffer left at its end.
func newTest(t *testing.T, o Options) (*Store, *Cache, *manualClock) {
	t.Helper()
	live := buf.Live()
	manual := newManualClock(time.Unix(1_700_000_000, 0))
	o.Clock = manual
	s := New(o)
	s.policyFrom = 1 // or stores as small as those of tests would have none
	t.Cleanup(func() {
		settle(s)
		checkIndex(t, s)
		for scope := range s.caches {
			s.Remove(scope)
		}
		if used := s.Bytes(); used != 0 {
			t.Errorf("%d bytes charged to nothing", used)
		}
		s.Close()
		if n := buf.Live() - live; n != 0 {
			t.Errorf("%d buffers are still held", n)
		}
	})
	return s, s.Add(primary), manual
}

// settle waits until the policies have decided about all entries.
func settle(s *Store) {
	for _, t := range s.tenants {
		t.settle()
	}
}

// checkIndex compares what is charged with what is there, in the index, in ristretto and in the wheel. Nothing may be
// under way.
func checkIndex(t *testing.T, s *Store) {
	t.Helper()
	var used int64
	scopes, tenants := map[*Cache]int64{}, map[*tenant]int64{}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for hash, e := range sh.entries {
			used += e.cost
			scopes[e.cache] += e.cost
			tenants[e.cache.tenant] += e.cost
			if p := e.cache.tenant.policy.Load(); p != nil {
				if got, ok := p.r.Get(hash); !ok || got != e {
					t.Errorf("ristretto does not know the entry %q", e.key)
				}
			}
		}
		sh.mu.Unlock()
	}
	if used != s.Bytes() {
		t.Errorf("entries cost %d bytes; the store is charged %d", used, s.Bytes())
	}
	for name, tn := range s.tenants {
		if got := s.TenantBytes(name); got != tenants[tn] {
			t.Errorf("entries of %s cost %d bytes, it is charged %d", name, tenants[tn], got)
		}
		if p := tn.policy.Load(); p != nil {
			if costs := p.r.MaxCost() - p.r.RemainingCost(); costs != tenants[tn] {
				t.Errorf("entries of %s cost %d bytes, its ristretto counts %d", name, tenants[tn], costs)
			}
		}
	}
	s.All(func(scope Scope, c *Cache) {
		if st := c.Stats(); st.Bytes != scopes[c] || c.bytes.Load() != scopes[c] {
			t.Errorf("entries of %v cost %d bytes, it is charged %d", scope, scopes[c], st.Bytes)
		}
	})
	want := timed(s)
	s.wheel.mu.Lock()
	defer s.wheel.mu.Unlock()
	if s.wheel.n != want {
		t.Errorf("%d entries in the wheel, want %d", s.wheel.n, want)
	}
}

func get(c *Cache, key string) (string, bool) {
	v, ok := c.Get([]byte(key))
	if !ok {
		return "", false
	}
	defer v.Release()
	return string(v.Bytes()), true
}

func wantValue(t *testing.T, c *Cache, key, want string) {
	t.Helper()
	if got, ok := get(c, key); !ok || got != want {
		t.Errorf("get %q: %q, %v; want %q", key, got, ok, want)
	}
}

func wantMiss(t *testing.T, c *Cache, key string) {
	t.Helper()
	if got, ok := get(c, key); ok {
		t.Errorf("get %q: %q, want a miss", key, got)
	}
}

// wantRefused puts a value that is too large.
func wantRefused(t *testing.T, c *Cache, key string, size int) {
	t.Helper()
	before, had := get(c, key)
	if version, err := c.Put([]byte(key), make([]byte, size), NoExpiry); !errors.Is(err, ErrLimit) || version != 0 {
		t.Errorf("a put of %d bytes: version %d, %v; want it refused", size, version, err)
	}
	if after, has := get(c, key); has != had || after != before {
		t.Errorf("a put that is refused changes the entry %q", key)
	}
}

func TestPutGet(t *testing.T) {
	s, c, _ := newTest(t, Options{})
	wantMiss(t, c, "k")
	value := []byte("one")
	_, _ = c.Put([]byte("k"), value, NoExpiry)
	value[0] = 'X'
	wantValue(t, c, "k", "one")
	_, _ = c.Put([]byte("k"), []byte("two"), NoExpiry)
	wantValue(t, c, "k", "two")
	_, _ = c.Put([]byte("k"), bytes.Repeat([]byte("x"), 1000), NoExpiry) // of another cost
	wantValue(t, c, "k", string(bytes.Repeat([]byte("x"), 1000)))
	_, _ = c.Put([]byte("empty"), nil, NoExpiry)
	wantValue(t, c, "empty", "")
	_, _ = c.Put([]byte{0, 255}, []byte{1, 0, 2}, NoExpiry)
	wantValue(t, c, "\x00\xff", "\x01\x00\x02")
	_, _ = c.Put([]byte("large"), make([]byte, buf.MaxPooled+1), NoExpiry)
	if got, _ := get(c, "large"); len(got) != buf.MaxPooled+1 {
		t.Errorf("%d bytes of a large value", len(got))
	}

	other := s.Add(Scope{"t1", "default", "other"})
	wantMiss(t, other, "k")
	if s.Lookup([]byte("t1"), []byte("default"), []byte("other")) != other {
		t.Error("lookup by bytes does not find the cache")
	}
	if s.Lookup([]byte("t2"), []byte("default"), []byte("other")) != nil {
		t.Error("lookup finds a cache that does not exist")
	}
}

// A value that a reader holds outlives its entry.
func TestValueOutlivesEntry(t *testing.T) {
	_, c, _ := newTest(t, Options{})
	_, _ = c.Put([]byte("k"), []byte("one"), NoExpiry)
	v, _ := c.Get([]byte("k"))
	_, _ = c.Put([]byte("k"), []byte("two"), NoExpiry)
	c.Delete([]byte("k"))
	_, _ = c.Put([]byte("other"), []byte("xxx"), NoExpiry) // would take the buffer
	if string(v.Bytes()) != "one" {
		t.Errorf("the value is %q now", v.Bytes())
	}
	v.Release()
}

func TestTTL(t *testing.T) {
	s, c, clock := newTest(t, Options{})
	_, _ = c.Put([]byte("short"), []byte("v"), 100*time.Millisecond)
	_, _ = c.Put([]byte("never"), []byte("v"), NoExpiry)
	_, _ = c.Put([]byte("longest"), []byte("v"), 1<<63-1)
	_, _ = c.Put([]byte("over"), []byte("v"), NoExpiry)
	_, _ = c.Put([]byte("over"), []byte("v"), 0)
	wantMiss(t, c, "over")
	_, _ = c.Put([]byte("over"), []byte("v"), 0)
	wantMiss(t, c, "over")
	clock.Advance(100*time.Millisecond - 1)
	wantValue(t, c, "short", "v")
	clock.Advance(1)
	wantMiss(t, c, "short")
	wantValue(t, c, "never", "v")
	wantValue(t, c, "longest", "v")
	_, _ = c.Put([]byte("never"), []byte("v"), time.Second)
	clock.Advance(time.Second - 1)
	wantValue(t, c, "never", "v")
	_, _ = c.Put([]byte("never"), []byte("w"), time.Second) // a lifetime begins again
	clock.Advance(time.Second - 1)
	wantValue(t, c, "never", "w")
	clock.Advance(1)
	wantMiss(t, c, "never")
	s.Remove(primary)
	_, _ = c.Put([]byte("late"), []byte("v"), time.Hour)
	wantMiss(t, c, "late")
	if used := s.Bytes(); used != 0 {
		t.Errorf("a removed cache still grows: %d bytes", used)
	}
}

func TestDelete(t *testing.T) {
	_, c, clock := newTest(t, Options{})
	if _, found := c.Delete([]byte("k")); found {
		t.Error("deleted what was not there")
	}
	put, _ := c.Put([]byte("k"), []byte("v"), NoExpiry)
	deleted, found := c.Delete([]byte("k"))
	if !found || deleted <= put {
		t.Errorf("deleted as version %d, %v; put as %d", deleted, found, put)
	}
	wantMiss(t, c, "k")
	_, _ = c.Put([]byte("k"), []byte("v"), time.Nanosecond)
	clock.Advance(1)
	if _, found := c.Delete([]byte("k")); found {
		t.Error("deleted what had expired")
	}
}

func TestPutIf(t *testing.T) {
	_, c, clock := newTest(t, Options{})
	key := []byte("k")
	first, ok, _ := c.PutIf(key, []byte("one"), NoExpiry, 0)
	if !ok {
		t.Fatal("not stored although absent")
	}
	if present, ok, _ := c.PutIf(key, []byte("two"), NoExpiry, 0); ok || present != first {
		t.Errorf("put-if-absent over an entry: version %d, %v; want %d", present, ok, first)
	}
	second, ok, _ := c.PutIf(key, []byte("two"), time.Second, first)
	if !ok || second <= first {
		t.Errorf("compare-and-set: version %d, %v", second, ok)
	}
	if present, ok, _ := c.PutIf(key, []byte("three"), 0, first); ok || present != second {
		t.Errorf("compare-and-set with an old version: version %d, %v; want %d", present, ok, second)
	}
	wantValue(t, c, "k", "two")
	if v, _ := c.Get(key); v.Version() != second {
		t.Errorf("get says version %d, want %d", v.Version(), second)
	} else {
		v.Release()
	}
	clock.Advance(time.Second)
	if present, ok, _ := c.PutIf(key, []byte("three"), NoExpiry, second); ok || present != 0 {
		t.Errorf("compare-and-set with an expired version: version %d, %v", present, ok)
	}
	if _, ok, _ := c.PutIf(key, []byte("three"), NoExpiry, 0); !ok {
		t.Error("not stored although expired")
	}
}

// Puts are readable at once while the bound holds, whatever ristretto makes of them; the newest may be refused later,
// which counts as an eviction.
func TestByteBound(t *testing.T) {
	const bound = 64 << 10
	s, c, _ := newTest(t, Options{MaxBytes: bound})
	value := bytes.Repeat([]byte("x"), 1000)
	for i := range 1000 {
		key := fmt.Sprintf("key-%d", i)
		for range i % 3 { // some are wanted more than others
			get(c, key)
		}
		_, _ = c.Put([]byte(key), value, NoExpiry)
		if used := s.Bytes(); used > bound {
			t.Fatalf("%d bytes after put %d, bound %d", used, i, bound)
		}
	}
	settle(s)
	st := c.Stats()
	if st.Evicted+uint64(st.Entries) != 1000 || st.Entries < 30 {
		t.Errorf("%d evicted, %d left of 1000", st.Evicted, st.Entries)
	}
	// What is larger than the bound is refused, and displaces nothing.
	wantRefused(t, c, "huge", bound)
	settle(s)
	if now := c.Stats(); now.Entries != st.Entries || now.Evicted != st.Evicted || now.Refused != 1 {
		t.Errorf("%+v after a value that is too large, %+v before", now, st)
	}
}

// An overwrite that grows makes space, which ristretto's own update does not.
func TestOverwritesThatGrow(t *testing.T) {
	const bound = 64 << 10
	s, c, _ := newTest(t, Options{MaxBytes: bound})
	for size := 1; size <= 8<<10; size *= 2 {
		for i := range 50 {
			_, _ = c.Put(fmt.Appendf(nil, "key-%d", i), make([]byte, size), NoExpiry)
			settle(s)
			if used := s.Bytes(); used > bound {
				t.Fatalf("%d bytes with values of %d, bound %d", used, size, bound)
			}
		}
	}
	if c.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
}

func TestScopeShare(t *testing.T) {
	const share = 32 << 10
	s, c, _ := newTest(t, Options{MaxBytes: 1 << 20, MaxScopeBytes: share})
	other := s.Add(Scope{"t1", "default", "other"})
	_, _ = other.Put([]byte("kept"), []byte("v"), NoExpiry)
	_, _ = c.Put([]byte("used"), []byte("v"), NoExpiry)
	value := string(bytes.Repeat([]byte("x"), 512))
	for i := range 500 {
		key := fmt.Sprintf("key-%d", i)
		_, _ = c.Put([]byte(key), []byte(value), NoExpiry)
		if i%50 == 0 {
			wantValue(t, c, key, value)
		}
		if st := c.Stats(); st.Bytes > share {
			t.Fatalf("%d bytes in the scope, share %d", st.Bytes, share)
		}
		wantValue(t, c, "used", "v") // so it gets a second chance at each turn
	}
	wantValue(t, other, "kept", "v")
	before := c.Stats()
	wantRefused(t, c, "huge", share)
	wantRefused(t, c, "used", share)
	if st := c.Stats(); st.Evicted != before.Evicted || st.Entries != before.Entries {
		t.Errorf("%+v after a value larger than the share, %+v before", st, before)
	}
	if st := c.Stats(); st.Evicted < 400 {
		t.Errorf("%d evicted", st.Evicted)
	}
}

// Keys of different tenants with one hash never see each other's values: the later one displaces the other.
func TestHashCollisions(t *testing.T) {
	s, c, _ := newTest(t, Options{})
	s.hash = func([]byte) uint64 { return 7 }
	other := s.Add(Scope{"t2", "default", "primary"})
	other.salt = c.salt
	_, _ = c.Put([]byte("k"), []byte("of t1"), NoExpiry)
	wantMiss(t, other, "k")
	wantMiss(t, c, "another")
	if _, found := other.Delete([]byte("k")); found {
		t.Error("deleted another tenant's entry")
	}
	if _, ok, _ := other.PutIf([]byte("k"), []byte("of t2"), NoExpiry, 0); !ok {
		t.Error("put-if-absent sees another tenant's entry")
	}
	wantValue(t, other, "k", "of t2")
	wantMiss(t, c, "k")
	if st := c.Stats(); st.Evicted != 1 || st.Entries != 0 {
		t.Errorf("%+v, want one eviction", st)
	}
}

// More writes of new keys than ristretto's buffer holds, from more goroutines than there are processors: none is
// dropped silently. checkIndex at the end compares the accounts.
func TestNoWriteIsDropped(t *testing.T) {
	s, c, _ := newTest(t, Options{MaxBytes: 256 << 20})
	var wg sync.WaitGroup
	const writers, each = 8, 8000
	for g := range writers {
		wg.Go(func() {
			for i := range each {
				_, _ = c.Put(fmt.Appendf(nil, "%d-%d", g, i), nil, NoExpiry)
			}
		})
	}
	wg.Wait()
	settle(s)
	if st := c.Stats(); st.Entries != writers*each || st.Evicted != 0 {
		t.Errorf("%+v, want %d entries", st, writers*each)
	}
}

// TestConcurrent mixes everything on few keys, with values that name their key, and lets checkIndex judge.
func TestConcurrent(t *testing.T) {
	s, c, clock := newTest(t, Options{MaxBytes: 16 << 10, MaxScopeBytes: 12 << 10})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3000 {
				n := (i*7 + g*13) % 40
				key := fmt.Appendf(nil, "k%d", n)
				switch i % 5 {
				case 0:
					c.Delete(key)
				case 1:
					_, _, _ = c.PutIf(key, fmt.Appendf(nil, "%s-%d", key, g), time.Millisecond, 0)
				default:
					value := bytes.Repeat(append(key, '-'), 1+(i%3)*40)
					_, _ = c.Put(key, value, time.Duration(i%3-1)*time.Millisecond)
				}
				if v, ok := c.Get(key); ok {
					if !bytes.HasPrefix(v.Bytes(), append(key, '-')) {
						t.Errorf("key %s holds %s", key, v.Bytes())
					}
					v.Release()
				}
				if i%64 == 0 {
					clock.Advance(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	clock.Advance(time.Hour)
	waitFor(t, func() bool { return timed(s) == 0 })
}

// timed returns the number of entries that have a lifetime.
func timed(s *Store) int {
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, e := range sh.entries {
			if e.expires != 0 {
				n++
			}
		}
		sh.mu.Unlock()
	}
	return n
}

// waitFor waits until a condition holds that another goroutine brings about.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to that")
		}
	}
}

// TestSetAgain sets a key again at about the time that ristretto admits the entry before, whose deletion is still in
// the buffer.
func TestSetAgain(t *testing.T) {
	p := newPolicy(1<<14, 1<<20, func(e *entry) { t.Errorf("an entry of cost %d is refused", e.cost) })
	defer p.close()
	first, second := &entry{hash: 1, cost: 10}, &entry{hash: 1, cost: 20}
	for i := range 50_000 {
		p.set(first)
		p.del(1)
		for end := time.Now().Add(time.Duration(i%20) * 100); time.Now().Before(end); {
		}
		p.set(second)
		p.wait()
		if e, ok := p.r.Get(1); !ok || e != second {
			t.Fatalf("round %d: ristretto holds %v, %v", i, e, ok)
		}
		p.del(1)
		p.wait()
	}
}

func TestWatch(t *testing.T) {
	_, c, clock := newTest(t, Options{MaxBytes: 8 << 10})
	var mu sync.Mutex
	var events []string
	last := map[string]uint64{}
	watch := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, fmt.Sprintf("%d %s", e.Kind, e.Key))
		if e.Version <= last[string(e.Key)] {
			t.Errorf("version %d of %s after %d", e.Version, e.Key, last[string(e.Key)])
		}
		last[string(e.Key)] = e.Version
	}
	stop, _ := c.Watch(watch)
	_, _ = c.Put([]byte("a"), []byte("v"), NoExpiry)
	_, _ = c.Put([]byte("a"), []byte("w"), NoExpiry)
	_, _ = c.Put([]byte("a"), make([]byte, 500), NoExpiry)
	c.Delete([]byte("a"))
	c.Delete([]byte("a"))
	_, _ = c.Put([]byte("b"), []byte("v"), time.Second)
	_, _, _ = c.PutIf([]byte("b"), []byte("w"), time.Second, 0)
	clock.Advance(2 * time.Second)
	waitFor(t, func() bool { return c.Stats().Expired == 1 })
	_, _ = c.Put([]byte("large"), make([]byte, 4<<10), NoExpiry)
	_, _ = c.Put([]byte("displaces it"), make([]byte, 4<<10), NoExpiry)
	stop()
	_, _ = c.Put([]byte("a"), []byte("v"), NoExpiry)
	mu.Lock()
	defer mu.Unlock()
	want := []string{"1 a", "1 a", "1 a", "2 a", "1 b", "3 b", "1 large", "4 large", "1 displaces it"}
	if fmt.Sprint(events) != fmt.Sprint(want) {
		t.Errorf("events %q, want %q", events, want)
	}
}

// A watcher of a scope hears of its end after the end of its entries, even if others end entries meanwhile.
func TestWatchRemoved(t *testing.T) {
	s, c, _ := newTest(t, Options{})
	var mu sync.Mutex
	left := map[string]bool{}
	removed := false
	c.Watch(func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Kind {
		case Removed:
			removed = true
		case Set:
			left[string(e.Key)] = true
		case Deleted, Expired, Evicted:
			delete(left, string(e.Key))
		}
	})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				_, _ = c.Put(fmt.Appendf(nil, "%d-%d", g, i%50), []byte("v"), NoExpiry)
			}
		})
	}
	if c.Removed() || !s.Remove(primary) || !c.Removed() {
		t.Error("the scope does not say whether it was removed")
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if !removed || len(left) > 0 {
		t.Errorf("removed: %v, with %d entries", removed, len(left))
	}
	if _, ok := c.Watch(func(Event) {}); ok {
		t.Error("a removed scope can be watched")
	}
}

func TestAllocGet(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	s, c, _ := newTest(t, Options{})
	key, tenant, ns, name := []byte("key"), []byte("t1"), []byte("default"), []byte("primary")
	_, _ = c.Put(key, []byte("value"), time.Hour)
	if n := testing.AllocsPerRun(1000, func() {
		v, ok := s.Lookup(tenant, ns, name).Get(key)
		if !ok {
			t.Fatal("miss")
		}
		v.Release()
	}); n != 0 {
		t.Errorf("%v allocations on a hit", n)
	}
	if n := testing.AllocsPerRun(1000, func() { _, _ = c.Put(key, []byte("other"), time.Hour) }); n != 0 {
		t.Errorf("%v allocations on an overwrite of the same size", n)
	}
}

func benchmarkStore(b *testing.B) (*Cache, []byte) {
	b.Helper()
	s := New(Options{})
	b.Cleanup(s.Close)
	b.ReportAllocs()
	return s.Add(primary), []byte("some-key")
}

func BenchmarkGet(b *testing.B) {
	c, key := benchmarkStore(b)
	_, _ = c.Put(key, make([]byte, 1024), time.Hour)
	for b.Loop() {
		v, _ := c.Get(key)
		v.Release()
	}
}

func BenchmarkGetParallel(b *testing.B) {
	c, _ := benchmarkStore(b)
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%d", i)
		_, _ = c.Put(keys[i], make([]byte, 1024), time.Hour)
	}
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if v, ok := c.Get(keys[i%len(keys)]); ok {
				v.Release()
			}
		}
	})
}

func BenchmarkPut(b *testing.B) {
	c, key := benchmarkStore(b)
	value := make([]byte, 1024)
	for b.Loop() {
		_, _ = c.Put(key, value, time.Hour)
	}
}

func BenchmarkPutNew(b *testing.B) {
	c, key := benchmarkStore(b)
	value := make([]byte, 1024)
	for i := 0; b.Loop(); i++ {
		key = fmt.Appendf(key[:0], "key-%d", i)
		_, _ = c.Put(key, value, time.Hour)
	}
}
