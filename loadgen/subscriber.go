package loadgen

import "sync/atomic"

// subscriber is one subscription. The goroutine that uses its [Receiver] owns it while the run lasts.
type subscriber struct {
	r        *run
	index    int
	ledgers  []ledger // one for each publisher of the topic
	current  *ledger  // of the last event
	missing  int      // ledgers that are not complete
	recorder *recorder

	// Events of one batch have one stamp and arrive in one frame: they are recorded together.
	runAt, runLen int64
}

// ledger is what a subscription knows of a publisher.
type ledger struct {
	received atomic.Uint64 // the number below which every event has been received or is known to be lost
	skipped  atomic.Uint64 // events that are known to be lost, the warm-up included
	_        [48]byte      // these two are read by others; what follows is the goroutine's own

	p        *publisher
	next     uint64 // sequence number expected next
	window   *window
	measure  bool // the warm-up is over
	complete bool // and the run

	delivered uint64 // measured events
	lost      uint64 // measured events that were skipped
	last      int64  // when the last measured event came, ns
}

// newSubscriber makes the subscriber of a topic with these publishers.
func (r *run) newSubscriber(index int, publishers []*publisher) *subscriber {
	s := &subscriber{
		r: r, index: index, ledgers: make([]ledger, len(publishers)), missing: len(publishers), recorder: r.timeline.recorder(0),
	}
	for i, p := range publishers {
		s.ledgers[i].p, s.ledgers[i].window = p, p.window
	}
	s.current = &s.ledgers[0]
	return s
}

// event takes one item that arrived at now.
func (s *subscriber) event(item []byte, now int64) error {
	if len(item) != s.r.cfg.Payload {
		return &PayloadError{Subscription: s.index, Got: len(item), Want: s.r.cfg.Payload}
	}
	number, at := stamp(item)
	mark := number&markBit != 0
	seq, from := number&sequenceMask, number&^markBit>>publisherShift
	if from >= uint64(len(s.ledgers)) {
		return &PublisherError{Subscription: s.index, Publisher: int(from)}
	}
	l := &s.ledgers[from]
	if l != s.current {
		s.settle(now)
		s.current = l
	}
	if seq < l.next {
		if mark {
			return nil
		}
		return &OrderError{Subscription: s.index, Publisher: int(from), Got: seq, Want: l.next}
	}
	if seq > l.next {
		l.lost += seq - l.next
		l.skipped.Add(seq - l.next)
		l.next = seq
	}
	if mark {
		return nil
	}
	l.next++
	l.delivered++
	if at != s.runAt {
		s.flush(now)
		s.runAt = at
	}
	s.runLen++
	return nil
}

func (s *subscriber) flush(now int64) {
	if s.runLen > 0 && s.current.measure {
		s.recorder.record(now-s.runAt, s.runLen)
		s.current.last = now
	}
	s.runLen = 0
}

// frameDone settles the accounts after a frame and reports whether it was the last one.
func (s *subscriber) frameDone(now int64) bool {
	s.settle(now)
	return s.missing == 0
}

// settle settles the account of the current ledger.
func (s *subscriber) settle(now int64) {
	s.flush(now)
	l := s.current
	if from := l.received.Load(); l.next > from {
		l.received.Store(l.next)
		if l.window != nil {
			l.window.passed(from, l.next)
		}
	}
	// Both ends are stored before the batch that reaches them is sent. Measured events are sent after every
	// subscription has finished the warm-up, so no frame holds both.
	if l.measure {
		if !l.complete && l.next >= l.p.end.Load() {
			l.complete = true
			s.missing--
			s.r.finished.arrive()
		}
		return
	}
	if l.next >= l.p.warmEnd.Load() {
		if l.lost > 0 {
			l.p.warmLost.Add(l.lost)
		}
		l.measure, l.delivered, l.lost = true, 0, 0
		if s.r.cfg.Window == Unbounded {
			l.window = nil
		}
		s.r.warm.arrive()
	}
}

// gate opens when as many have arrived as it was made for.
type gate struct {
	missing atomic.Int64
	open    chan struct{}
}

func newGate(n int) *gate {
	g := &gate{open: make(chan struct{})}
	g.missing.Store(int64(n))
	return g
}

func (g *gate) arrive() {
	if g.missing.Add(-1) == 0 {
		close(g.open)
	}
}
