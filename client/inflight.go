package client

import (
	"context"
	"slices"
	"sync"
)

// inflight knows which publishes have no outcome yet, in groups of those that began between two calls of wait. It may
// be used from many goroutines.
type inflight struct {
	mu      sync.Mutex // guards all below, and the fields of groups
	current *publishGroup
	sealed  []*publishGroup // that are not over
	closed  bool            // no more may begin
}

// publishGroups are those that one publish is in, of its client and of its publisher; nil where there is none.
type publishGroups [2]*publishGroup

func (s publishGroups) end() {
	for _, o := range s {
		if o != nil {
			o.end()
		}
	}
}

// begin counts a publish.
func (p *Publisher) begin() (publishGroups, error) {
	whole, err := p.c.publishes.begin()
	if err != nil {
		return publishGroups{}, err
	}
	return publishGroups{whole, p.publishes.beginMore()}, nil
}

// publishGroup is the publishes that began between two calls of wait.
type publishGroup struct {
	of   *inflight
	open int
	done chan struct{} // made when no more begin, closed when none is open
}

// begin counts a publish. It fails with [ErrClosed] when no more may begin.
func (l *inflight) begin() (*publishGroup, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	return l.beginLocked(), nil
}

// beginMore counts what a publish that has begun leaves to be done.
func (l *inflight) beginMore() *publishGroup {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beginLocked()
}

func (l *inflight) beginLocked() *publishGroup {
	if l.current == nil {
		l.current = &publishGroup{of: l}
	}
	l.current.open++
	return l.current
}

// end counts the end of a publish.
func (s *publishGroup) end() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if s.open--; s.open == 0 && s.done != nil {
		close(s.done)
		s.of.sealed = slices.DeleteFunc(s.of.sealed, func(o *publishGroup) bool { return o == s })
	}
}

// wait waits for all publishes that have begun.
func (l *inflight) wait(ctx context.Context) error {
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
func (l *inflight) refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
