package fanout

import (
	"sync"
	"sync/atomic"
)

// budget bounds the bytes of all frames that are held anywhere in the process: in rings, in replay, and in writes
// under way. The fast path is one atomic addition. At the bound, publishers stand in line: a large frame would never
// find room if small ones could overtake it.
type budget struct {
	max  int64
	used atomic.Int64

	waiting atomic.Int32 // length of line, so that a release need not lock to find it empty
	mu      sync.Mutex
	line    line
}

func newBudget(maxBytes int64) *budget { return &budget{max: maxBytes} }

// cost is what f is charged: its own cost, but not more than the whole budget, so that a larger one can pass when
// nothing else is held.
func (b *budget) cost(f *Frame) int64 { return min(int64(f.cost()), b.max) }

// try charges f, or reports that there is no room for it.
func (b *budget) try(f *Frame) bool {
	n := b.cost(f)
	for {
		used := b.used.Load()
		if used+n > b.max {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			f.budget, f.charge = b, n
			return true
		}
	}
}

// force charges f with n bytes beyond the bound if need be: for copies that are about to free more than they take.
func (b *budget) force(f *Frame, n int64) {
	b.used.Add(n)
	f.budget, f.charge = b, n
}

func (b *budget) release(n int64) {
	b.used.Add(-n)
	if b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	b.line.wakeFirst()
	b.mu.Unlock()
}

// join puts the caller at the end of the line. It must look at the budget after that: a release before it went unseen.
func (b *budget) join() *waiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.Add(1)
	return b.line.join()
}

func (b *budget) leave(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.line.leave(w)
	b.waiting.Add(-1)
}

func (b *budget) isFirst(w *waiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.line[0] == w
}
