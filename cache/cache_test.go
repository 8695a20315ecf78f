package cache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/race"
)

type manualClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *manualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manualClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newTest(t *testing.T, maxBytes int64) (*Store, *Cache, *manualClock) {
	t.Helper()
	clock := &manualClock{now: time.Unix(1_700_000_000, 0)}
	s := New(Options{MaxBytes: maxBytes, Now: clock.Now})
	return s, s.Add(Scope{"t1", "default", "primary"}), clock
}

func wantValue(t *testing.T, c *Cache, key, want string) {
	t.Helper()
	got, ok := c.Get([]byte(key))
	if !ok || got == nil || string(got) != want {
		t.Errorf("get %q: %q, %v; want %q", key, got, ok, want)
	}
}

func wantMiss(t *testing.T, c *Cache, key string) {
	t.Helper()
	if got, ok := c.Get([]byte(key)); ok {
		t.Errorf("get %q: %q, want a miss", key, got)
	}
}

func TestPutGet(t *testing.T) {
	s, c, _ := newTest(t, 0)
	wantMiss(t, c, "k")
	value := []byte("one")
	c.Put([]byte("k"), value, NoExpiry)
	value[0] = 'X'
	wantValue(t, c, "k", "one")
	c.Put([]byte("k"), []byte("two"), NoExpiry)
	wantValue(t, c, "k", "two")
	c.Put([]byte("empty"), nil, NoExpiry)
	wantValue(t, c, "empty", "")
	c.Put([]byte{0, 255}, []byte{1, 0, 2}, NoExpiry)
	wantValue(t, c, "\x00\xff", "\x01\x00\x02")

	other := s.Add(Scope{"t1", "default", "other"})
	wantMiss(t, other, "k")
	if s.Lookup([]byte("t1"), []byte("default"), []byte("other")) != other {
		t.Error("lookup by bytes does not find the cache")
	}
	if s.Lookup([]byte("t2"), []byte("default"), []byte("other")) != nil {
		t.Error("lookup finds a cache that does not exist")
	}
}

func TestTTL(t *testing.T) {
	s, c, clock := newTest(t, 0)
	c.Put([]byte("short"), []byte("v"), 100*time.Millisecond)
	c.Put([]byte("never"), []byte("v"), NoExpiry)
	c.Put([]byte("longest"), []byte("v"), 1<<63-1)
	c.Put([]byte("over"), []byte("v"), NoExpiry)
	c.Put([]byte("over"), []byte("v"), 0)
	wantMiss(t, c, "over")
	clock.advance(100*time.Millisecond - 1)
	wantValue(t, c, "short", "v")
	clock.advance(1)
	wantMiss(t, c, "short")
	wantValue(t, c, "never", "v")
	wantValue(t, c, "longest", "v")
	if c.Len() != 2 {
		t.Errorf("%d entries left, want 2", c.Len())
	}
	c.Put([]byte("never"), []byte("v"), time.Second)
	clock.advance(time.Second)
	wantMiss(t, c, "never")
	s.Remove(Scope{"t1", "default", "primary"})
	if used := s.Stats().Bytes; used != 0 {
		t.Errorf("%d bytes charged to nothing", used)
	}
	c.Put([]byte("late"), []byte("v"), NoExpiry)
	if used := s.Stats().Bytes; used != 0 {
		t.Errorf("a removed cache still grows: %d bytes", used)
	}
}

func TestByteBound(t *testing.T) {
	const bound = 64 << 10
	s, c, clock := newTest(t, bound)
	other := s.Add(Scope{"t1", "default", "other"})
	other.Put([]byte("kept"), []byte("v"), NoExpiry)
	value := bytes.Repeat([]byte("x"), 1000)
	for i := range 1000 {
		c.Put(fmt.Appendf(nil, "key-%d", i), value, NoExpiry)
		if used := s.Stats().Bytes; used > bound {
			t.Fatalf("%d bytes after put %d, bound %d", used, i, bound)
		}
		wantValue(t, c, fmt.Sprintf("key-%d", i), string(value))
	}
	wantValue(t, other, "kept", "v")
	if s.Stats().Evicted == 0 {
		t.Error("nothing was counted as evicted")
	}
	// A value that takes the whole bound displaces the other scopes too.
	c.Put([]byte("huge"), make([]byte, bound), NoExpiry)
	wantMiss(t, other, "kept")
	if c.Len() != 1 {
		t.Errorf("%d entries beside one that fills the bound", c.Len())
	}
	clock.advance(time.Hour)
}

func TestConcurrent(t *testing.T) {
	s, c, _ := newTest(t, 32<<10)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				key := fmt.Appendf(nil, "k%d", i%50)
				c.Put(key, fmt.Appendf(nil, "%s-%d", key, g), time.Duration(i%3))
				if v, ok := c.Get(key); ok && !bytes.HasPrefix(v, append(key, '-')) {
					t.Errorf("key %s holds %s", key, v)
				}
			}
		})
	}
	wg.Wait()
	s.Remove(Scope{"t1", "default", "primary"})
	if used := s.Stats().Bytes; used != 0 {
		t.Errorf("%d bytes charged to nothing", used)
	}
}

func TestAllocGet(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	s, c, _ := newTest(t, 0)
	key, tenant, ns, name := []byte("key"), []byte("t1"), []byte("default"), []byte("primary")
	c.Put(key, []byte("value"), time.Hour)
	if n := testing.AllocsPerRun(1000, func() {
		if _, ok := s.Lookup(tenant, ns, name).Get(key); !ok {
			t.Fatal("miss")
		}
	}); n != 0 {
		t.Errorf("%v allocations on a hit", n)
	}
}

func BenchmarkGet(b *testing.B) {
	s := New(Options{})
	c := s.Add(Scope{"t1", "default", "primary"})
	key := []byte("some-key")
	c.Put(key, make([]byte, 1024), time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		c.Get(key)
	}
}

func BenchmarkPut(b *testing.B) {
	s := New(Options{})
	c := s.Add(Scope{"t1", "default", "primary"})
	key, value := []byte("some-key"), make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		c.Put(key, value, time.Hour)
	}
}
