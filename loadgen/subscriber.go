package loadgen

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/felix-mq/felix/client"
)

// subscriber is the ledger of one subscription. Its goroutine owns it while the run lasts; received alone is for
// others to read.
type subscriber struct {
	received atomic.Uint64 // the number below which every event has been received or is known to be lost
	_        [56]byte      // received is read by others; what follows is the goroutine's own

	r       *run
	index   int
	next    uint64 // sequence number expected next
	window  *window
	measure bool // the warm-up is over

	delivered uint64 // measured events
	lost      uint64 // measured events that were skipped
	last      int64  // when the last measured event came, ns
	lat       latencies

	// Events of one batch have one stamp and arrive in one frame: they are recorded together.
	runAt, runLen int64
}

// work reads the subscription until it has received every event of the run.
func (s *subscriber) work(ctx context.Context, sub *client.Subscription) error {
	for {
		b, err := sub.NextBatch(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("loadgen: subscription %d: %w", s.index, err)
		}
		now := s.r.now()
		for _, item := range b.Payloads() {
			if err := s.event(item, now); err != nil {
				return err
			}
		}
		if s.frameDone(now) {
			return nil
		}
	}
}

// event takes one item that arrived at now.
func (s *subscriber) event(item []byte, now int64) error {
	if len(item) != s.r.cfg.Payload {
		return &PayloadError{Subscription: s.index, Got: len(item), Want: s.r.cfg.Payload}
	}
	seq, at := stamp(item)
	mark := seq&markBit != 0
	if seq &^= markBit; seq < s.next {
		if mark {
			return nil
		}
		return &OrderError{Subscription: s.index, Got: seq, Want: s.next}
	}
	s.lost += seq - s.next
	s.next = seq
	if mark {
		return nil
	}
	s.next++
	s.delivered++
	if at != s.runAt {
		s.flush(now)
		s.runAt = at
	}
	s.runLen++
	return nil
}

func (s *subscriber) flush(now int64) {
	if s.runLen > 0 && s.measure {
		s.lat.record(now-s.runAt, s.runLen)
		s.last = now
	}
	s.runLen = 0
}

// frameDone settles the accounts after a frame and reports whether it was the last one.
func (s *subscriber) frameDone(now int64) bool {
	s.flush(now)
	if from := s.received.Load(); s.next > from {
		s.received.Store(s.next)
		if s.window != nil {
			s.window.passed(from, s.next)
		}
	}
	// Both ends are stored before the batch that reaches them is sent. Measured events are sent after every
	// subscription has finished the warm-up, so no frame holds both.
	if s.measure {
		if s.next < s.r.end.Load() {
			return false
		}
		s.r.finished.arrive()
		return true
	}
	if s.next >= s.r.warmEnd.Load() {
		if s.lost > 0 {
			s.r.warmLost.Add(s.lost)
		}
		s.measure, s.delivered, s.lost = true, 0, 0
		if s.r.cfg.Window == Unbounded {
			s.window = nil
		}
		s.r.warm.arrive()
	}
	return false
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
