package cache

import (
	"sync"
	"time"
)

const (
	// tick is how long after the end of its lifetime an entry is removed at most, on an idle machine. Readers see the
	// end at once; it is those who watch that wait for the tick.
	tick = 10 * time.Millisecond

	wheelBits  = 6
	wheelSlots = 1 << wheelBits
	levels     = 5 // 64⁵ ticks, 124 days; what lives longer is looked at again then
)

// slot is a list of entries, linked through sooner and later.
type slot struct{ first *entry }

// wheel is a hierarchical timing wheel: a slot of level n covers 64ⁿ ticks, and when its time begins its entries are
// spread over the levels below. One goroutine turns it, and sleeps while it is empty.
type wheel struct {
	clock  Clock
	time   func() int64
	expire func(*entry) // called without the wheel's lock

	wake chan struct{} // capacity 1: the wheel is no longer empty
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex // guards all below, and the wheel's fields of entries
	now   int64      // the tick that was handled last
	n     int        // entries
	slots [levels][wheelSlots]slot
}

func newWheel(c Clock, now func() int64, expire func(*entry)) *wheel {
	w := &wheel{
		clock: c, time: now, expire: expire,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return w
}

// close ends the goroutine and waits for it.
func (w *wheel) close() {
	close(w.stop)
	<-w.done
}

// set puts an entry where it is due, in nanoseconds of the store, wherever it was before; 0 takes it out.
func (w *wheel) set(e *entry, expires int64) {
	if expires == 0 && e.due == 0 {
		return // it never had a lifetime: nobody else looks at due
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlinkLocked(e)
	if expires == 0 {
		return
	}
	if w.n == 0 {
		w.now = w.time() / int64(tick)
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	e.due = (expires-1)/int64(tick) + 1
	w.linkLocked(e)
}

func (w *wheel) linkLocked(e *entry) {
	due := max(e.due, w.now+1)
	level := 0
	for ahead := (due - w.now) >> wheelBits; ahead > 0 && level < levels-1; ahead >>= wheelBits {
		level++
	}
	if most := w.now + 1<<(wheelBits*levels) - 1; due > most {
		due = most
	}
	s := &w.slots[level][(due>>(wheelBits*level))%wheelSlots]
	e.slot, e.sooner, e.later = s, nil, s.first
	if s.first != nil {
		s.first.sooner = e
	}
	s.first = e
	w.n++
}

func (w *wheel) unlinkLocked(e *entry) {
	if e.slot == nil {
		return
	}
	if e.sooner != nil {
		e.sooner.later = e.later
	} else {
		e.slot.first = e.later
	}
	if e.later != nil {
		e.later.sooner = e.sooner
	}
	e.slot, e.sooner, e.later = nil, nil, nil
	w.n--
}

// turn advances the wheel to the present and appends what is due to dst. It reports whether the wheel is empty then.
func (w *wheel) turn(dst []*entry) (due []*entry, empty bool) {
	now := w.time() / int64(tick)
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.n > 0 && w.now < now {
		w.now++
		for level := 1; level < levels && w.now&(1<<(wheelBits*level)-1) == 0; level++ {
			s := &w.slots[level][(w.now>>(wheelBits*level))%wheelSlots]
			for e := s.first; e != nil; e = s.first {
				w.unlinkLocked(e)
				if e.due <= w.now {
					dst = append(dst, e) // this tick's slot may be passed already
				} else {
					w.linkLocked(e)
				}
			}
		}
		s := &w.slots[0][w.now%wheelSlots]
		for e := s.first; e != nil; e = s.first {
			w.unlinkLocked(e)
			dst = append(dst, e)
		}
	}
	return dst, w.n == 0
}

func (w *wheel) run() {
	defer close(w.done)
	for {
		select {
		case <-w.wake:
		case <-w.stop:
			return
		}
		t := w.clock.NewTicker(tick)
		if !w.runTicks(t.C()) {
			t.Stop()
			return
		}
		t.Stop()
	}
}

// runTicks turns the wheel until it is empty, first at once: time may have passed since it was woken. It reports false
// when it is to stop.
func (w *wheel) runTicks(ticks <-chan time.Time) bool {
	var due []*entry
	for {
		var empty bool
		due, empty = w.turn(due[:0])
		for i, e := range due {
			w.expire(e)
			due[i] = nil
		}
		if empty {
			return true
		}
		select {
		case <-ticks:
		case <-w.stop:
			return false
		}
	}
}
