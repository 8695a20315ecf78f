package cache

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWheel turns a wheel by hand, in steps of any size, and compares it with a list of deadlines.
func TestWheel(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		now := rnd.Int64N(int64(time.Hour))
		w := &wheel{time: func() int64 { return now }, wake: make(chan struct{}, 1)}
		due := map[*entry]int64{}
		entries := make([]*entry, 200)
		for i := range entries {
			entries[i] = &entry{}
		}
		for range 2000 {
			e := entries[rnd.IntN(len(entries))]
			switch rnd.IntN(4) {
			case 0:
				w.set(e, 0)
				delete(due, e)
			case 1, 2:
				due[e] = now + 1 + rnd.Int64N(int64(time.Millisecond)<<rnd.IntN(36))
				w.set(e, due[e])
			case 3:
				now += rnd.Int64N(int64(time.Millisecond) << rnd.IntN(22))
				got, empty := w.turn(nil)
				for _, e := range got {
					if at, ok := due[e]; !ok || at > now {
						t.Fatalf("seed %d: an entry came that is due in %v", seed, time.Duration(at-now))
					}
					delete(due, e)
				}
				for _, at := range due {
					if late := time.Duration(now - at); late >= tick {
						t.Fatalf("seed %d: an entry is %v late", seed, late)
					}
				}
				if empty != (len(due) == 0) || w.n != len(due) {
					t.Fatalf("seed %d: %d entries in the wheel, want %d", seed, w.n, len(due))
				}
			}
		}
	}
}

// What lives longer than the wheel reaches is put back when the last slot comes.
func TestWheelBeyondItsReach(t *testing.T) {
	now := int64(0)
	w := &wheel{time: func() int64 { return now }, wake: make(chan struct{}, 1)}
	e := &entry{}
	w.set(e, int64(365*24*time.Hour))
	const last = int64((wheelSlots - 1) << (wheelBits * (levels - 1)))
	w.now, now = last-1, last*int64(tick) // nothing happens on the way
	if due, empty := w.turn(nil); len(due) > 0 || empty || e.slot != &w.slots[levels-1][wheelSlots-2] {
		t.Errorf("%d entries due after %v", len(due), time.Duration(now))
	}
	w.set(e, now+1)
	now += int64(tick)
	if due, empty := w.turn(nil); len(due) != 1 || !empty {
		t.Errorf("%d entries due, want the one", len(due))
	}
}

// The goroutine sleeps while there is nothing to wait for: it holds a ticker only as long as an entry has a lifetime.
func TestWheelSleeps(t *testing.T) {
	manual := newManualClock(time.Unix(1, 0))
	s := New(Options{Clock: manual})
	defer s.Close()
	c := s.Add(primary)
	_, _ = c.Put([]byte("k"), nil, NoExpiry)
	for range 3 {
		_, _ = c.Put([]byte("timed"), nil, time.Second)
		waitFor(t, func() bool { return manual.Tickers() == 1 })
		manual.Advance(time.Second)
		waitFor(t, func() bool { return manual.Tickers() == 0 })
		wantMiss(t, c, "timed")
		if n := c.Stats().Entries; n != 1 {
			t.Errorf("%d entries, want the one without a lifetime", n)
		}
	}
}
