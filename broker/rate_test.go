package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/catalog"
)

// TestBucket takes what comes at a steady rate and a second's worth at once, and not more.
func TestBucket(t *testing.T) {
	const rate = 100
	second := int64(time.Second)
	var b bucket
	now := 5 * second
	for i := range rate {
		if wait := b.takeAt(1, rate, now); wait != 0 {
			t.Fatalf("%d of a second's worth: wait %v", i, wait)
		}
	}
	wait := b.takeAt(1, rate, now)
	if wait <= 0 || wait > time.Second/rate {
		t.Fatalf("wait %v for one of %d per second", wait, rate)
	}
	if b.takeAt(1, rate, now+int64(wait)) != 0 {
		t.Error("waited in vain")
	}
	now += 100 * second // a long pause is worth no more than a second
	taken := 0
	for b.takeAt(1, rate, now) == 0 {
		taken++
	}
	if taken != rate {
		t.Errorf("%d after a pause, want %d", taken, rate)
	}
	now += 100 * second
	if b.takeAt(10*rate, rate, now) != 0 {
		t.Error("what is larger than a second's worth is never taken")
	}
	if wait := b.takeAt(1, rate, now); wait < 8*time.Second || wait > 10*time.Second {
		t.Errorf("what is owed is paid for in %v", wait)
	}
}

// TestBucketConcurrently takes from many goroutines at one moment: together they get what there is.
func TestBucketConcurrently(t *testing.T) {
	var b bucket
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if b.takeAt(1, 500, int64(time.Hour)) == 0 {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 500 {
		t.Errorf("%d taken, want 500", n)
	}
}

// TestRateIsChanged: what is owed at one rate is not owed at another one, and a rate that is set again changes nothing.
func TestRateIsChanged(t *testing.T) {
	n := admitting(1).get("a")
	limits := func(rate int64) catalog.Limits { return catalog.Limits{PublishesPerSecond: &rate}.Over(n.all.defaults) }
	n.setRates(limits(1))
	if n.publishes.take(1<<20) != 0 || n.publishes.wait() < time.Hour {
		t.Fatal("nothing is owed")
	}
	n.setRates(limits(1))
	if n.publishes.wait() < time.Hour {
		t.Error("nothing is owed any more at the same rate")
	}
	n.setRates(limits(2))
	if wait := n.publishes.wait(); wait != 0 {
		t.Errorf("at another rate: wait %v", wait)
	}
}

// TestWaitIsNoRefusal: a publish that waits for its tenant's rate is not counted as refused, and one that does not wait
// is.
func TestWaitIsNoRefusal(t *testing.T) {
	c := unserved(t, 0)
	c.ctx = t.Context()
	n := c.tenant.Load()
	n.publishes.perSecond.Store(1 << 20)
	n.publishes.paidAt.Store(int64(time.Since(processStart) + time.Second + time.Millisecond))
	s := stream{c: c, tenant: n}
	if err := s.awaitRate(1, -1); err != nil || n.refused.Load() != nil {
		t.Errorf("one that waits: %v, refused %v", err, n.refused.Load())
	}
	n.publishes.paidAt.Store(int64(time.Since(processStart) + time.Hour))
	if err := s.awaitRate(1, 0); !errors.Is(err, rateError(tenantPublishes)) || n.refused.Load()[tenantPublishes].Load() != 1 {
		t.Errorf("one that does not wait: %v", err)
	}
}

func TestRatesAllocateNothing(t *testing.T) {
	s := stream{tenant: admitting(1).get("a")}
	s.tenant.publishes.perSecond.Store(1 << 20)
	s.tenant.publishBytes.perSecond.Store(1 << 30)
	if n := testing.AllocsPerRun(100, func() {
		if err := s.awaitRate(100, -1); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTurns: those of one tenant wait in their order, and another tenant's first comes after one of them.
func TestTurns(t *testing.T) {
	turns := newTurns(1)
	ctx := t.Context()
	if err := turns.enter(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	served := make(chan string)
	var wg sync.WaitGroup
	join := func(tenant, name string) {
		wg.Go(func() {
			if err := turns.enter(ctx, tenant); err != nil {
				t.Error(err)
				return
			}
			served <- name
			turns.leave()
		})
		for waiting := 0; ; { // until it stands in its line
			turns.mu.Lock()
			now := 0
			for _, line := range turns.lines {
				now += len(line)
			}
			turns.mu.Unlock()
			if waiting = now; waiting >= joined(name) {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	for _, name := range []string{"a1", "a2", "a3", "b4", "a5", "c6"} {
		join(name[:1], name)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := turns.enter(gone, "d"); !errors.Is(err, context.Canceled) {
		t.Errorf("somebody who is gone: %v", err)
	}
	turns.leave()
	var got strings.Builder
	for range 6 {
		got.WriteString(<-served + " ")
	}
	wg.Wait()
	if want := "a1 b4 c6 a2 a3 a5 "; got.String() != want {
		t.Errorf("served %s, want %s", got.String(), want)
	}
	if turns.free != 1 || len(turns.lines) != 0 || len(turns.next) != 0 {
		t.Errorf("in the end %d free, %d lines, %d tenants", turns.free, len(turns.lines), len(turns.next))
	}
}

// joined is how many stand in line when the one of that name does: its number.
func joined(name string) int { return int(name[1] - '0') }

// TestTurnsConcurrently: no more than allowed at a time, and all turns are back in the end, even if some give up.
func TestTurnsConcurrently(t *testing.T) {
	const most = 3
	turns := newTurns(most)
	var inside atomic.Int32
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 500 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%3 == 0 {
					go cancel()
				}
				if turns.enter(ctx, fmt.Sprint(w%5)) == nil {
					if n := inside.Add(1); n > most {
						t.Errorf("%d inside", n)
					}
					inside.Add(-1)
					turns.leave()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if turns.free != most || len(turns.lines) != 0 || len(turns.next) != 0 {
		t.Errorf("in the end %d free, %d lines, %d tenants", turns.free, len(turns.lines), len(turns.next))
	}
}
