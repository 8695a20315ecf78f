package broker

import (
	"context"
	"slices"
	"sync"
)

// turns bounds how many do something at a time, and shares the turns among tenants: those who wait are served tenant by
// tenant, and within a tenant in their order. A crowd of one tenant does not delay the others. Its methods may be
// called from any goroutine.
type turns struct {
	mu    sync.Mutex // guards all below
	free  int
	lines map[string][]chan struct{} // of those who wait, by tenant; none is empty
	next  []string                   // the tenants in lines, in the order in which they are served
}

func newTurns(n int) *turns { return &turns{free: n, lines: make(map[string][]chan struct{})} }

// enter waits for a turn, which leave gives back, or for the end of ctx.
func (t *turns) enter(ctx context.Context, tenant string) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if len(t.lines[tenant]) == 0 {
		t.next = append(t.next, tenant)
	}
	t.lines[tenant] = append(t.lines[tenant], turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	select {
	case <-turn: // it came at the same time
		t.mu.Unlock()
		t.leave()
		return ctx.Err()
	default:
	}
	defer t.mu.Unlock()
	line := t.lines[tenant]
	i := slices.Index(line, turn)
	t.setLocked(tenant, slices.Delete(line, i, i+1))
	return ctx.Err()
}

// setLocked replaces a line by what is left of it.
func (t *turns) setLocked(tenant string, line []chan struct{}) {
	if len(line) > 0 {
		t.lines[tenant] = line
		return
	}
	delete(t.lines, tenant)
	if i := slices.Index(t.next, tenant); i >= 0 {
		t.next = slices.Delete(t.next, i, i+1)
	}
}

// leave gives a turn to the next one.
func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.next) == 0 {
		t.free++
		return
	}
	tenant := t.next[0]
	t.next = append(t.next[1:], tenant) // the line comes again when all others have had a turn
	line := t.lines[tenant]
	close(line[0])
	t.setLocked(tenant, line[1:])
}
