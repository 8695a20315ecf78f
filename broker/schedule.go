package broker

import (
	"cmp"
	"container/heap"
	"sync"
)

// schedule says when connections have to be looked at, the soonest first, so that nobody walks over all of them. Times
// are numbers of any unit, the same for all. Its methods may be called from any goroutine; it locks nothing else.
type schedule struct {
	mu    sync.Mutex // guards all below, and the slots of the connections in it
	slot  func(*conn) *slot
	conns []*conn // a heap
}

// slot is a connection's place in a schedule.
type slot struct {
	at    int64
	place int // in schedule.conns, plus one; 0 if it is not there
	over  bool
}

// newSchedule returns a schedule that keeps its places in the slot that is found by f.
func newSchedule(f func(*conn) *slot) *schedule { return &schedule{slot: f} }

// by has the connection looked at at that time, or before.
func (s *schedule) by(c *conn, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p := s.slot(c); {
	case p.over:
	case p.place == 0:
		p.at = at
		heap.Push((*scheduleHeap)(s), c)
	case at < p.at:
		p.at = at
		heap.Fix((*scheduleHeap)(s), p.place-1)
	}
}

// remove takes a connection out for good.
func (s *schedule) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.slot(c)
	p.over = true
	if p.place > 0 {
		heap.Remove((*scheduleHeap)(s), p.place-1)
	}
}

// due takes the connections out that have to be looked at by now, and appends them to out.
func (s *schedule) due(now int64, out []*conn) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 && s.slot(s.conns[0]).at <= now {
		c, _ := heap.Pop((*scheduleHeap)(s)).(*conn)
		out = append(out, c)
	}
	return out
}

// scheduleHeap is a schedule as package heap needs it, with the mutex held.
type scheduleHeap schedule

func (h *scheduleHeap) slotOf(i int) *slot { return h.slot(h.conns[i]) }

func (h *scheduleHeap) Len() int { return len(h.conns) }

func (h *scheduleHeap) Less(i, j int) bool { return cmp.Less(h.slotOf(i).at, h.slotOf(j).at) }

func (h *scheduleHeap) Swap(i, j int) {
	h.conns[i], h.conns[j] = h.conns[j], h.conns[i]
	h.slotOf(i).place, h.slotOf(j).place = i+1, j+1
}

func (h *scheduleHeap) Push(x any) {
	c, _ := x.(*conn)
	h.conns = append(h.conns, c)
	h.slot(c).place = len(h.conns)
}

func (h *scheduleHeap) Pop() any {
	last := len(h.conns) - 1
	c := h.conns[last]
	h.conns[last] = nil
	h.conns = h.conns[:last]
	h.slot(c).place = 0
	return c
}
