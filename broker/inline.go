package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// What a publisher writes to a subscription itself is held by QUIC until it is in packets, which a peer that
// acknowledges nothing can delay for ever. So it is counted as pending until a write that blocked proves that it has
// left:
//
//	pending   0 ─────── 4 KiB ──────────────────── 64 KiB
//	          free       charged in steps           a writer writes, and blocks
//
// Free is what each subscription may cost. Beyond that the tenant is charged; without memory for it a writer writes.
const (
	inlineFree = 4 << 10
	inlineStep = 16 << 10
	inlineMost = 64 << 10
)

// settleEvery is how often the broker looks for subscriptions that are charged for pending bytes and idle.
const settleEvery = 100 * time.Millisecond

// inlineWrites is the account of what publishers have written to one subscription.
type inlineWrites struct {
	total   atomic.Uint64 // bytes so far; written by one consumer at a time
	settled atomic.Uint64 // of these, bytes that are in packets

	mu       sync.Mutex // guards all below
	held     int64      // bytes charged to the tenant
	listed   bool       // in the settler's list
	lastSeen uint64     // total when the settler looked last
	closed   bool
}

// mayInline reports whether a publisher may write n bytes more. It charges for them if need be.
func (s *subscription) mayInline(n int) bool {
	w := &s.inline
	pending := int(w.total.Load()-w.settled.Load()) + n
	if pending <= inlineFree {
		return true
	}
	if pending > inlineMost {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if int64(pending) <= inlineFree+w.held {
		return true
	}
	if w.closed || s.events.Scratch().Charge(inlineStep) != nil {
		return false
	}
	w.held += inlineStep
	if !w.listed {
		w.listed = true
		s.c.b.settler.add(s)
	}
	return true
}

// inlineSettled notes that the first total bytes are in packets, and gives back what is not pending any more.
func (s *subscription) inlineSettled(total uint64) {
	w := &s.inline
	if w.settled.Load() >= total {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settled.Store(max(w.settled.Load(), total)) // the settler and a writer may both come to this
	s.releaseInlineLocked()
}

func (s *subscription) releaseInlineLocked() {
	w := &s.inline
	if w.held > 0 && (w.closed || w.total.Load() == w.settled.Load()) {
		s.events.Scratch().Release(w.held)
		w.held = 0
	}
}

// closeInline ends the account with the subscription.
func (s *subscription) closeInline() {
	s.inline.mu.Lock()
	defer s.inline.mu.Unlock()
	s.inline.closed = true
	s.releaseInlineLocked()
}

// settler looks after subscriptions that are charged for pending bytes and have become idle: it waits, in their stead,
// until the bytes are in packets. It owns no memory but the list of them.
type settler struct {
	mu   sync.Mutex
	list []*subscription
	kick chan struct{} // capacity 1: the list was empty
}

func newSettler() *settler { return &settler{kick: make(chan struct{}, 1)} }

// add is called with the lock of s.inline held.
func (t *settler) add(s *subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, s)
	if len(t.list) == 1 {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// run serves until the context ends. start runs a function on a goroutine that somebody waits for.
func (t *settler) run(ctx context.Context, start func(func())) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		t.mu.Lock()
		list := t.list
		t.list = nil
		t.mu.Unlock()
		rest := list[:0]
		for _, s := range list {
			if t.look(s, start) {
				rest = append(rest, s)
			}
		}
		clear(list[len(rest):])
		t.mu.Lock()
		t.list = append(rest, t.list...)
		idle := len(t.list) == 0
		t.mu.Unlock()
		wake := tick.C
		if idle {
			tick.Stop()
			wake = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-t.kick:
			tick.Reset(settleEvery)
		}
	}
}

// look reports whether s stays in the list. One that has written nothing since the last look is settled.
func (t *settler) look(s *subscription, start func(func())) bool {
	w := &s.inline
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == 0 || w.closed {
		w.listed = false
		return false
	}
	total := w.total.Load()
	if total != w.lastSeen {
		w.lastSeen = total
		return true
	}
	w.listed = false
	start(func() {
		if s.out.Settle() == nil { // otherwise the stream has ended, and finish gives it back
			s.inlineSettled(total)
		}
		w.mu.Lock()
		again := w.held > 0 && !w.closed && !w.listed
		if again {
			w.listed = true
		}
		w.mu.Unlock()
		if again {
			t.add(s)
		}
	})
	return false
}
