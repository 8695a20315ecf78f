package buf

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

func TestGetSizes(t *testing.T) {
	for _, tc := range []struct{ n, want int }{
		{0, MinPooled},
		{1, MinPooled},
		{MinPooled, MinPooled},
		{MinPooled + 1, 2 * MinPooled},
		{3000, 4096},
		{MaxPooled - 1, MaxPooled},
		{MaxPooled, MaxPooled},
		{MaxPooled + 1, MaxPooled + 1},
		{5 << 20, 5 << 20},
	} {
		c := Get(tc.n)
		if c.Cap() != tc.want || len(c.Bytes()) != tc.want || cap(c.Bytes()) != tc.want {
			t.Errorf("Get(%d): Cap %d, %d bytes of %d, want %d", tc.n, c.Cap(), len(c.Bytes()), cap(c.Bytes()), tc.want)
		}
		if c.Refs() != 1 {
			t.Errorf("Get(%d): %d references", tc.n, c.Refs())
		}
		c.Release()
	}
}

func TestRetainRelease(t *testing.T) {
	live := Live()
	c := Get(100)
	if got := Live() - live; got != 1 {
		t.Errorf("%d chunks more, want 1", got)
	}
	copy(c.Bytes(), "kept")
	c.Retain()
	c.Retain()
	if c.Refs() != 3 {
		t.Errorf("%d references, want 3", c.Refs())
	}
	c.Release()
	c.Release()
	if got := string(c.Bytes()[:4]); got != "kept" || c.Refs() != 1 || Live() != live+1 {
		t.Errorf("with one holder left: %q, %d references, %d live", got, c.Refs(), Live()-live)
	}
	c.Release()
	if Live() != live {
		t.Errorf("%d chunks more after the last release", Live()-live)
	}
}

func TestMisusePanics(t *testing.T) {
	for name, misuse := range map[string]func(*Chunk){
		"release of a freed chunk": (*Chunk).Release,
		"retain of a freed chunk":  (*Chunk).Retain,
	} {
		t.Run(name, func(t *testing.T) {
			c := Get(MaxPooled + 1) // not pooled, so that no other test meets it
			c.Release()
			defer func() {
				if got := recover(); got != "buf: "+name {
					t.Errorf("recovered %v", got)
				}
			}()
			misuse(c)
		})
	}
}

// owner notes what is given back.
type owner struct{ released atomic.Int64 }

func (o *owner) Release(n int64) { o.released.Add(n) }

func TestOwnerIsGivenBackOnce(t *testing.T) {
	for _, n := range []int{1, 100, 4096, MaxPooled + 1} {
		var o owner
		c := Get(n)
		if c.Cap() != CapOf(n) {
			t.Errorf("%d bytes: capacity %d, CapOf says %d", n, c.Cap(), CapOf(n))
		}
		c.SetOwner(&o)
		c.Retain()
		c.Release()
		if o.released.Load() != 0 {
			t.Errorf("%d bytes: given back with a holder left", n)
		}
		c.Release()
		if got := o.released.Load(); got != int64(CapOf(n)) {
			t.Errorf("%d bytes: %d given back, want %d", n, got, CapOf(n))
		}
		again := Get(n) // most likely the same one
		again.Release()
		if got := o.released.Load(); got != int64(CapOf(n)) {
			t.Errorf("%d bytes: an owner was given back what the next one held", n)
		}
	}
}

// TestConcurrentHolders shares chunks between goroutines that read them and let them go in any order.
func TestConcurrentHolders(t *testing.T) {
	live := Live()
	var account owner
	const chunks, holders = 200, 8
	var wg sync.WaitGroup
	for i := range chunks {
		c := Get(2000)
		c.SetOwner(&account)
		for k := range c.Bytes() {
			c.Bytes()[k] = byte(i)
		}
		for range holders {
			c.Retain()
			wg.Go(func() {
				for _, b := range c.Bytes() {
					if b != byte(i) {
						t.Errorf("chunk %d was overwritten while it had holders", i)
						break
					}
				}
				c.Release()
			})
		}
		c.Release()
	}
	wg.Wait()
	if got := account.released.Load(); got != int64(chunks*CapOf(2000)) || Live() != live {
		t.Errorf("%d given back, want %d; %d chunks live", got, chunks*CapOf(2000), Live()-live)
	}
}

func TestAllocGetRelease(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	if n := testing.AllocsPerRun(1000, func() {
		c := Get(4096)
		c.Retain()
		c.Release()
		c.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGetRelease(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			Get(64 << 10).Release()
		}
	})
}
