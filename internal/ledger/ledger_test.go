package ledger

import (
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

var seed = flag.Uint64("ledger.seed", 0, "seed of the random tests; 0 chooses one")

// TestGuarantee: what is guaranteed to one share is there whatever the others use.
func TestGuarantee(t *testing.T) {
	b := New(1000)
	a, c := b.Share(200, 0), b.Share(300, 0)
	if err := a.Charge(701); !errors.Is(err, ErrShort) {
		t.Errorf("701 with 200 guaranteed and 500 in common: %v", err)
	}
	if err := a.Charge(700); err != nil {
		t.Fatalf("700 with 200 guaranteed and 500 in common: %v", err)
	}
	if err := c.Charge(300); err != nil {
		t.Errorf("the other's guarantee: %v", err)
	}
	if err := c.Charge(1); !errors.Is(err, ErrShort) {
		t.Errorf("beyond the guarantee with nothing in common: %v", err)
	}
	if b.Furthest(nil) != a || a.Above() != 500 {
		t.Errorf("the first share is %d above its guarantee", a.Above())
	}
	a.Release(100)
	if err := c.Charge(100); err != nil {
		t.Errorf("after a release: %v", err)
	}
	a.Release(600)
	c.Release(400)
	if used, size := b.Common(); b.Used() != 0 || used != 0 || size != 500 {
		t.Errorf("in the end %d used, common part %d of %d", b.Used(), used, size)
	}
}

// TestMaximum: a share's own maximum and an account's limit are refused as such, and nothing stays charged.
func TestMaximum(t *testing.T) {
	b := New(1000)
	s := b.Share(0, 100)
	conn := NewAccount(80, s)
	if err := conn.Charge(81); !errors.Is(err, ErrLimit) || !errors.Is(err, ErrAccountLimit) {
		t.Errorf("above the account's limit: %v", err)
	}
	if err := conn.Charge(80); err != nil {
		t.Fatal(err)
	}
	if err := NewAccount(0, s).Charge(21); !errors.Is(err, ErrLimit) || errors.Is(err, ErrAccountLimit) {
		t.Errorf("above the share's maximum: %v", err)
	}
	if s.Used() != 80 || b.Used() != 80 {
		t.Errorf("charged %d and %d, want 80", s.Used(), b.Used())
	}
	conn.Release(80)
}

// TestMove: an account takes what is charged along to another owner, even above its bound, and what it holds of others
// follows.
func TestMove(t *testing.T) {
	b := New(1000)
	from, to := b.Share(100, 0), b.Share(0, 50)
	conn := NewAccount(90, from)
	stream := NewAccount(0, conn)
	if err := stream.Charge(80); err != nil {
		t.Fatal(err)
	}
	conn.Move(to, 200)
	if from.Used() != 0 || to.Used() != 80 || conn.Used() != 80 || b.Used() != 80 {
		t.Errorf("moved: %d and %d used, %d by the account, %d of the budget", from.Used(), to.Used(), conn.Used(), b.Used())
	}
	if err := stream.Charge(1); !errors.Is(err, ErrLimit) {
		t.Errorf("above the new owner's maximum: %v", err)
	}
	stream.Release(80)
	if to.Used() != 0 || b.Used() != 0 {
		t.Errorf("released: %d and %d used", to.Used(), b.Used())
	}
}

// TestAutomatic: automatic shares have equal parts of what is not guaranteed otherwise, and the sum of all guarantees
// stays within the budget.
func TestAutomatic(t *testing.T) {
	b := New(1 << 20)
	first := b.Share(Automatic, 0)
	if first.Guarantee() != 1<<19 {
		t.Errorf("alone: %d guaranteed", first.Guarantee())
	}
	fixed := b.Share(1<<19, 0)
	var shares []*Share
	for range 100 {
		shares = append(shares, b.Share(Automatic, 0))
		if _, size := b.Common(); size < 0 {
			t.Fatalf("%d shares: the common part has %d", len(shares)+1, size)
		}
	}
	if want := int64(1 << 18 >> 7); first.Guarantee() != want || shares[99].Guarantee() != want || fixed.Guarantee() != 1<<19 {
		t.Errorf("among 101: %d and %d guaranteed, want %d", first.Guarantee(), shares[99].Guarantee(), want)
	}
	for _, s := range shares {
		s.Close()
	}
	fixed.Close()
	if first.Guarantee() != 1<<19 {
		t.Errorf("alone again: %d guaranteed", first.Guarantee())
	}
}

// TestCutGuarantee: a guarantee that was cut is raised as soon as others have less, in whatever order they are set.
func TestCutGuarantee(t *testing.T) {
	b := New(512)
	first, second, third := b.Share(100, 0), b.Share(400, 0), b.Share(Automatic, 0)
	want := func(when string, f, s, auto int64) {
		t.Helper()
		if first.Guarantee() != f || second.Guarantee() != s || third.Guarantee() != auto {
			t.Errorf("%s: %d, %d and %d guaranteed, want %d, %d and %d", when, first.Guarantee(), second.Guarantee(), third.Guarantee(), f, s, auto)
		}
		if cut := b.Cut() > 0; cut != (f+s == 512) {
			t.Errorf("%s: cut: %t", when, cut)
		}
		if _, size := b.Common(); size != 512-f-s-auto {
			t.Errorf("%s: the common part has %d", when, size)
		}
	}
	want("at first", 100, 400, 6)
	first.Set(400, 0)
	want("more than there is", 112, 400, 0)
	second.Set(300, 0)
	want("a part is free again", 212, 300, 0)
	second.Set(100, 0)
	want("all is free again", 400, 100, 6)
	second.Set(500, 0)
	want("the other one is cut", 400, 112, 0)
	first.Set(Automatic, 0)
	want("one becomes automatic", 3, 500, 3) // and 6 are common
	second.Set(0, 0)
	first.Set(512, 0)
	second.Set(200, 0)
	want("nothing is left", 512, 0, 0)
	first.Close()
	if second.Guarantee() != 200 || third.Guarantee() != 156 {
		t.Errorf("one is closed: %d and %d guaranteed", second.Guarantee(), third.Guarantee())
	}
}

// TestGuaranteeAboveTheMaximum: what a share could never use is not set aside for it.
func TestGuaranteeAboveTheMaximum(t *testing.T) {
	b := New(1000)
	s, automatic := b.Share(600, 100), b.Share(Automatic, 50)
	if _, size := b.Common(); s.Guarantee() != 100 || automatic.Guarantee() != 50 || size != 850 {
		t.Errorf("%d and %d guaranteed, %d in common", s.Guarantee(), automatic.Guarantee(), size)
	}
	s.Set(600, 0)
	automatic.Set(Automatic, 0)
	if _, size := b.Common(); s.Guarantee() != 600 || automatic.Guarantee() != 200 || size != 200 {
		t.Errorf("without maxima: %d and %d guaranteed, %d in common", s.Guarantee(), automatic.Guarantee(), size)
	}
	automatic.Set(Automatic, 10)
	s.Close()
	automatic.Close()
	if _, size := b.Common(); size != 1000 {
		t.Errorf("in the end %d in common", size)
	}
}

// TestRefusalDisturbsNobody: charges that are refused do not make others fail that fit.
func TestRefusalDisturbsNobody(t *testing.T) {
	b := New(512)
	full := b.Share(0, 0)
	if err := full.Charge(500); err != nil {
		t.Fatal(err)
	}
	bad, good := NewAccount(64, b.Share(0, 0)), b.Share(0, 0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if bad.Charge(16) == nil {
						panic("16 charged with 12 free")
					}
				}
			}
		})
	}
	for range 20000 {
		if err := good.Charge(10); err != nil {
			t.Errorf("10 with 12 free: %v", err)
			break
		}
		good.Release(10)
	}
	close(stop)
	wg.Wait()
}

// TestStress holds the counts of concurrent charges, releases and changes of guarantees against the invariants.
func TestStress(t *testing.T) {
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("-ledger.seed=%d", n)
	const limit = 1 << 16
	b := New(limit)
	shares := make([]*Share, 4)
	for i := range shares {
		shares[i] = b.Share(Automatic, 0)
	}
	const accounts = 8
	var wg sync.WaitGroup
	var moving atomic.Int32 // goroutines that move; what one of them moves is charged twice for a moment
	moving.Store(accounts)
	for w := range accounts {
		r := rand.New(rand.NewPCG(n, uint64(w)))
		wg.Go(func() {
			conn := NewAccount(limit/4, shares[w%len(shares)])
			stream := NewAccount(0, conn) // of which another goroutine may move the owner
			wg.Go(func() {
				defer moving.Add(-1)
				for i := range 200 {
					conn.Move(shares[(w+i)%len(shares)], limit/4)
				}
			})
			var held []int64
			for range 5000 {
				most := int64(limit)
				if moving.Load() > 0 {
					most += accounts * limit / 4
				}
				switch size := r.Int64N(512); {
				case r.IntN(2) == 0 && len(held) > 0:
					last := len(held) - 1
					stream.Release(held[last])
					held = held[:last]
				case stream.Charge(size) == nil:
					held = append(held, size)
				}
				if used := b.Used(); used > most {
					t.Errorf("%d of %d used", used, most)
					break
				}
			}
			for _, size := range held {
				stream.Release(size)
			}
		})
	}
	wg.Wait()
	for _, s := range shares {
		if s.Used() != 0 || s.Above() != 0 {
			t.Errorf("a share ends with %d used, %d above", s.Used(), s.Above())
		}
		s.Set(limit, 0)
		s.Set(Automatic, 0)
		s.Close()
	}
	if used, size := b.Common(); b.Used() != 0 || used != 0 || size != limit {
		t.Errorf("in the end %d used, common part %d of %d", b.Used(), used, size)
	}
}

// TestLine: waiters are woken in their order, by releases in their own share and by releases elsewhere that free some
// of the common part.
func TestLine(t *testing.T) {
	b := New(100)
	a, c := b.Share(0, 0), b.Share(0, 0)
	if err := a.Charge(100); err != nil {
		t.Fatal(err)
	}
	first, second := c.Join(), c.Join()
	if !c.First(first) || c.First(second) || c.Waiting() != 2 {
		t.Error("the line is not in order")
	}
	a.Release(10)
	select {
	case <-first.C:
	default:
		t.Error("the first was not woken by the release elsewhere")
	}
	c.Leave(first)
	select {
	case <-second.C:
	default:
		t.Error("the second was not woken when the first left")
	}
	c.Leave(second)
	if b.waiting.Load() != 0 {
		t.Error("the budget believes that somebody waits")
	}
	a.Release(90)
}

func TestAllocations(t *testing.T) {
	conn := NewAccount(1000, New(1000).Share(Automatic, 0))
	if n := testing.AllocsPerRun(100, func() {
		if conn.Charge(10) != nil {
			panic("refused")
		}
		conn.Release(10)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCharge(b *testing.B) {
	conn := NewAccount(1000, New(1000).Share(Automatic, 0))
	for b.Loop() {
		_ = conn.Charge(10)
		conn.Release(10)
	}
}
