package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/codec"
)

// Flush waits until everything that was published before has its outcome: acknowledged, refused or in doubt. The
// callbacks of [Publisher.PublishAsync] have returned then. What has been gathered is sent at once, and what was sent
// without an acknowledgement has reached the broker.
//
// Flush fails with what nobody else hears of, since the last Flush of the client: with [ErrInDoubt] if some of what was
// sent without an acknowledgement was on a stream that was lost, or with the first failure of an event that was
// published without a callback. See [Publisher.Flush] for what one publisher lost. Other publishes may go on meanwhile
// and are not waited for. A context without a deadline waits as long as it takes.
func (c *Client) Flush(ctx context.Context) error {
	if !c.made() {
		return ErrNotMade
	}
	c.hurry()
	if err := c.publishes.wait(ctx); err != nil {
		return err
	}
	for _, s := range c.publishers {
		if err := s.cover(ctx); err != nil {
			return err
		}
	}
	return c.losses.take()
}

// Flush is [Client.Flush] of what this Publisher value has published. It fails for losses of its own alone, since its
// last Flush.
func (p *Publisher) Flush(ctx context.Context) error {
	if p == nil || p.c == nil {
		return ErrNotMade
	}
	p.hurry()
	if err := p.publishes.wait(ctx); err != nil {
		return err
	}
	slots := p.c.publishers
	if !p.c.o.roundRobin {
		slots = []*slot{p.home}
	}
	for _, s := range slots {
		if err := s.cover(ctx); err != nil {
			return err
		}
	}
	p.sent.settle()
	return p.sent.losses.take()
}

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

	mu   sync.Mutex           // guards last
	last map[*requests]uint64 // the number of the last one on each stream
}

// note notes a publish by its number on a stream.
func (s *sends) note(r *requests, n uint64) {
	s.mu.Lock()
	_, known := s.last[r]
	if s.last == nil {
		s.last = make(map[*requests]uint64)
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

// hurry makes all publishers send what they have gathered.
func (c *Client) hurry() {
	c.mu.Lock()
	gathering := slices.Collect(maps.Keys(c.batchers))
	c.mu.Unlock() // PublishAsync takes it while it holds the lock of its batcher
	for _, p := range gathering {
		p.hurry()
	}
}

// cover waits until the broker has read what was sent without an acknowledgement, or the stream is lost.
func (s *slot) cover(ctx context.Context) error {
	for {
		r := s.live()
		if r == nil { // it may be being replaced, and its replacement waits for what was sent before
			if err := s.lock.acquire(ctx); err != nil {
				return err
			}
			s.lock.release()
			if r = s.live(); r == nil {
				return nil
			}
		}
		sends, p := r.uncovered()
		if p == nil {
			return nil
		}
		err := p.barrier(ctx, r)
		switch {
		case err == nil:
			r.cover(sends)
			return nil
		case errors.Is(err, errMoved): // its replacement has begun
			continue
		case r.broken():
			return nil
		}
		return err
	}
}

// barrier waits until the broker has read what was sent on a stream before. It fails if the stream is lost meanwhile:
// on another one it would prove nothing.
func (p *Publisher) barrier(ctx context.Context, r *requests) error {
	c := p.c.startCall(ctx)
	defer c.release()
	// An empty batch publishes nothing, and is acknowledged after what was sent on its stream before.
	_, err := p.exchangeOn(ctx, r, c, nil, codec.AckPerBatch, codec.HeaderLen)
	if _, refused := errors.AsType[*BrokerError](err); refused && !errors.Is(err, ErrInDoubt) {
		return nil // its stream does not exist, say: the answer is as good
	}
	return err
}

// Drain ends the client in order: publishes that begin from now on fail with [ErrClosed], those before get their
// outcome, as with [Client.Flush], and everything is closed. If ctx ends first, the rest is closed at once, as with
// [Client.Close].
func (c *Client) Drain(ctx context.Context) error {
	if !c.made() {
		return ErrNotMade
	}
	c.publishes.refuse()
	err := c.Flush(ctx)
	_ = c.Close() // returns nil
	return err
}

// ledger knows which publishes have no outcome yet, in spans of those that began between two calls of wait. It may be
// used from many goroutines.
type ledger struct {
	mu      sync.Mutex // guards all below, and the fields of spans
	current *span
	sealed  []*span // that are not over
	closed  bool    // no more may begin
}

// spans are those of one publish, in the ledgers of its client and of its publisher; nil where there is none.
type spans [2]*span

func (s spans) end() {
	for _, o := range s {
		if o != nil {
			o.end()
		}
	}
}

// begin counts a publish.
func (p *Publisher) begin() (spans, error) {
	whole, err := p.c.publishes.begin()
	if err != nil {
		return spans{}, err
	}
	return spans{whole, p.publishes.beginAnyway()}, nil
}

type span struct {
	of   *ledger
	open int
	done chan struct{} // made when no more begin, closed when none is open
}

// begin counts a publish. It fails with [ErrClosed] when no more may begin.
func (l *ledger) begin() (*span, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	return l.beginLocked(), nil
}

// beginAnyway counts what a publish that has begun leaves to be done.
func (l *ledger) beginAnyway() *span {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beginLocked()
}

func (l *ledger) beginLocked() *span {
	if l.current == nil {
		l.current = &span{of: l}
	}
	l.current.open++
	return l.current
}

// end counts the end of a publish.
func (s *span) end() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if s.open--; s.open == 0 && s.done != nil {
		close(s.done)
		s.of.sealed = slices.DeleteFunc(s.of.sealed, func(o *span) bool { return o == s })
	}
}

// wait waits for all publishes that have begun.
func (l *ledger) wait(ctx context.Context) error {
	l.mu.Lock()
	if l.current != nil && l.current.open > 0 {
		l.current.done = make(chan struct{})
		l.sealed = append(l.sealed, l.current)
		l.current = nil
	}
	spans := slices.Clone(l.sealed)
	l.mu.Unlock()
	for _, s := range spans {
		select {
		case <-s.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// refuse lets no more publishes begin.
func (l *ledger) refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
