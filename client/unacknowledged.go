package client

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// losses holds what the next Flush fails with. It may be used from many goroutines.
type losses struct{ first atomic.Pointer[error] }

func (l *losses) note(err error) { l.first.CompareAndSwap(nil, &err) }

func (l *losses) take() error {
	if err := l.first.Swap(nil); err != nil {
		return *err
	}
	return nil
}

// errSendsLost is what Flush fails with for publishes that no acknowledgement covers.
var errSendsLost = fmt.Errorf("%w: a stream was lost with publishes that no acknowledgement covers", ErrInDoubt)

// sends knows which publishes without an acknowledgement of one publisher have an unknown fate. It may be used from
// many goroutines.
type sends struct {
	losses losses

	mu   sync.Mutex                // guards last
	last map[*requestStream]uint64 // the number of the last one on each stream
}

// note notes a publish by its number on a stream.
func (s *sends) note(r *requestStream, n uint64) {
	s.mu.Lock()
	_, known := s.last[r]
	if s.last == nil {
		s.last = make(map[*requestStream]uint64)
	}
	s.last[r] = max(s.last[r], n)
	s.mu.Unlock()
	if !known {
		s.settle() // the streams before it may be lost: they are not kept for their sake
	}
}

// settle notes the losses among them, and forgets those whose fate is known.
func (s *sends) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, n := range s.last {
		covered, lost := r.fate(n)
		if lost {
			s.losses.note(errSendsLost)
		}
		if covered || lost {
			delete(s.last, r)
		}
	}
}

// loseSendsLocked notes for Flush that publishes without an acknowledgement may not have arrived. It is called before
// the stream looks broken: a caller that finds it broken finds the note too.
func (r *requestStream) loseSendsLocked() {
	if r.sends > r.covered {
		if !r.lost {
			r.lost, r.lostAt = true, r.covered
		}
		r.covered = r.sends
		r.k.c.losses.note(errSendsLost)
	}
}

// fate reports what is known of a publish without an acknowledgement, by its number: that the broker has it, or that it
// may be lost with the stream.
func (r *requestStream) fate(send uint64) (covered, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lost = r.lost && send > r.lostAt
	return send <= r.covered && !lost, lost
}

// noteSend counts a publish without an acknowledgement that was written. The caller has its turn. While the stream is
// being moved, settleAll takes its turn afterwards and sees to it.
func (r *requestStream) noteSend(p *Publisher) {
	r.mu.Lock()
	r.sends, r.sender = r.sends+1, p
	n := r.sends
	if r.err != nil && !r.movingLocked() {
		r.loseSendsLocked()
	}
	r.mu.Unlock()
	p.sent.note(r, n)
}

// uncovered returns how many publishes without an acknowledgement there were, and who made the last of them; nil if
// they are covered.
func (r *requestStream) uncovered() (sends uint64, sender *Publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sends == r.covered {
		return 0, nil
	}
	return r.sends, r.sender
}

// cover notes that an acknowledgement has come after so many of them.
func (r *requestStream) cover(sends uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.covered = max(r.covered, sends)
}
