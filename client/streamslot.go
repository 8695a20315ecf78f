package client

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// streamSlot is the place of one request stream: opened when it is first needed, and replaced when it broke.
type streamSlot struct {
	shared  *sharedConn
	ordered bool // requests are carried out in the order in which they are sent
	lock    lock
	stream  atomic.Pointer[requestStream]
	window  *semaphore.Weighted // asynchronous publishes in flight
	repeats repeats

	backlogLock sync.Mutex // guards all below: see mustQueue
	backlog     []*queued  // the oldest first
	flushing    bool       // a goroutine sends the backlog
}

func newStreamSlot(h *sharedConn, ordered bool) *streamSlot {
	s := &streamSlot{shared: h, ordered: ordered, lock: newLock(), window: semaphore.NewWeighted(int64(h.c.o.inFlight))}
	s.repeats.init()
	return s
}

// live returns the stream if there is one.
func (s *streamSlot) live() *requestStream {
	if r := s.stream.Load(); r != nil && !r.broken() {
		return r
	}
	return nil
}

// get returns the stream, or opens one, until the deadline by the client's clock; 0 if ctx has one. Errors mean that
// nothing was sent.
func (s *streamSlot) get(ctx context.Context, deadline int64) (*requestStream, error) {
	return s.open(ctx, deadline, s.shared.policy != WhileDownFail)
}

// open is get, with a patience of the caller's choice: see sharedConn.get.
func (s *streamSlot) open(ctx context.Context, deadline int64, patient bool) (*requestStream, error) {
	if r := s.live(); r != nil {
		return r, nil
	}
	if s.shared.c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := s.shared.c.boundAt(ctx, deadline)
	defer cancel()
	if err := s.lock.acquire(ctx); err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			s.lock.release()
		}
	}()
	for {
		if r := s.live(); r != nil {
			return r, nil
		}
		if err := s.awaitAnswers(ctx); err != nil {
			return nil, err
		}
		k, err := s.shared.get(ctx, patient)
		if err != nil {
			return nil, err
		}
		r, err := k.openRequestStream(ctx, s)
		if err == nil {
			kept, err = s.installUntil(ctx, r)
		}
		if err == nil {
			return r, nil
		}
		// A connection that was lost meanwhile is the business of sharedConn.
		if kept || !patient || k.alive() || ctx.Err() != nil || !Retryable(err) {
			return nil, err
		}
	}
}
