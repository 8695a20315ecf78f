package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/felix-mq/felix/codec"
)

// queued is a publish that waits for a connection ([WhileDownBuffer]), with a copy of its payloads.
type queued struct {
	p        *Publisher
	payloads [][]byte
	mode     codec.AckMode
	frameLen int
	bytes    int64         // charged to the client's buffer
	pending  *pending      // nil without an acknowledgement
	span     publishGroups // without one: until it has been sent
}

// mustQueue reports whether publishes go into the backlog. A goroutine that has put one there finds it there until it
// has been sent, so that its publishes stay in order. A stream that is being replaced is not down: publishes wait
// for the next one.
func (s *streamSlot) mustQueue() bool {
	if s.shared.policy != WhileDownBuffer {
		return false
	}
	s.backlogLock.Lock()
	defer s.backlogLock.Unlock()
	r := s.stream.Load()
	return s.flushing || r == nil || r.broken() && !r.moving()
}

// enqueue appends to the backlog, and fails with [ErrBufferFull] if q does not fit.
func (s *streamSlot) enqueue(q *queued) error {
	c, n := s.shared.c, 0
	for _, b := range q.payloads {
		n += len(b)
	}
	q.bytes = int64(n + 1)
	if !c.buffer.TryAcquire(q.bytes) {
		return fmt.Errorf("%w: limit %d bytes", ErrBufferFull, c.o.whileDownBytes)
	}
	flat := make([]byte, 0, n)
	q.payloads = slices.Clone(q.payloads)
	for i, b := range q.payloads {
		flat = append(flat, b...)
		q.payloads[i] = flat[len(flat)-len(b):]
	}
	s.backlogLock.Lock()
	defer s.backlogLock.Unlock()
	if !s.flushing {
		if !c.start(s.flush) {
			c.buffer.Release(q.bytes)
			return ErrClosed
		}
		s.flushing = true
	}
	if q.pending == nil {
		q.span = publishGroups{c.publishes.beginMore(), q.p.publishes.beginMore()}
	}
	s.backlog = append(s.backlog, q)
	return nil
}

// withdraw takes a publish out of the backlog, and reports whether it was still there.
func (s *streamSlot) withdraw(q *queued) bool {
	s.backlogLock.Lock()
	defer s.backlogLock.Unlock()
	i := slices.Index(s.backlog, q)
	if i >= 0 {
		s.backlog = slices.Delete(s.backlog, i, i+1)
		s.shared.c.buffer.Release(q.bytes)
	}
	return i >= 0
}

// flush sends the backlog in order, until there is none. It ends with the client.
func (s *streamSlot) flush() {
	for {
		s.backlogLock.Lock()
		if len(s.backlog) == 0 {
			s.flushing = false
			s.backlogLock.Unlock()
			return
		}
		q := s.backlog[0]
		s.backlog[0] = nil
		s.backlog = s.backlog[1:]
		s.backlogLock.Unlock()
		err := s.sendQueued(q)
		s.shared.c.buffer.Release(q.bytes)
		if err != nil && q.pending != nil {
			q.pending.settle(err)
		} else if err != nil {
			q.p.sent.losses.note(errSendsLost)
			s.shared.c.losses.note(errSendsLost)
		}
		q.span.end()
	}
}

// sendQueued sends one publish, on as many streams as it takes.
func (s *streamSlot) sendQueued(q *queued) error {
	ctx := s.shared.c.ctx
	for {
		r, err := s.get(ctx, s.shared.c.deadline(ctx))
		if err == nil && q.pending != nil && q.pending.bytes == 0 {
			err = q.pending.acquire(ctx, q.payloads, s.shared.c.deadline(ctx))
		}
		if err == nil {
			if q.pending != nil {
				err = q.pending.send(ctx, r, q.mode, q.payloads, q.frameLen, 0)
			} else {
				err = q.p.write(ctx, r, nil, q.mode, q.payloads, q.frameLen, 0)
			}
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrInDoubt) || !Retryable(err) {
			return err
		}
	}
}

// publishQueued puts a publish into the backlog and waits for its acknowledgement.
func (s *streamSlot) publishQueued(ctx context.Context, timeout <-chan time.Time, q *queued) error {
	span := publishGroups{q.p.c.publishes.beginMore(), q.p.publishes.beginMore()}
	result := make(chan error, 1)
	q.pending = getPending()
	q.pending.p, q.pending.slot, q.pending.span = q.p, s, span
	q.pending.done = outcomeFunc(func(err error) { result <- err })
	if err := s.enqueue(q); err != nil {
		q.pending.settle(err)
		return <-result
	}
	var err error
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout:
		err = ErrTimeout
	}
	if s.withdraw(q) {
		q.pending.settle(err)
		return <-result
	}
	return fmt.Errorf("%w: %w", ErrInDoubt, err)
}
