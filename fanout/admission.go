package fanout

import (
	"context"
	"slices"
	"time"
)

// waiter is a publisher in a line. A token in ch says: look again. There is room for one, because looking once serves
// any number of reasons to look.
type waiter struct{ ch chan struct{} }

// line is the publishers that wait for one thing, first come first served. It is guarded by the lock of what it
// belongs to.
type line []*waiter

func (l *line) join() *waiter {
	w := &waiter{ch: make(chan struct{}, 1)}
	*l = append(*l, w)
	return w
}

// leave takes w out. If it was first, the next in line looks for itself.
func (l *line) leave(w *waiter) {
	i := slices.Index(*l, w)
	*l = slices.Delete(*l, i, i+1)
	if i == 0 {
		l.wakeFirst()
	}
}

func (l line) wakeFirst() {
	if len(l) == 0 {
		return
	}
	select {
	case l[0].ch <- struct{}{}:
	default:
	}
}

// admission is the time that a publish may spend waiting, over all that it may have to wait for. The zero value of
// timer serves the common case, in which nothing is waited for and nothing is allocated.
type admission struct {
	ctx   context.Context
	topic *Topic
	wait  time.Duration // < 0: without limit
	timer *time.Timer
}

// await blocks until w is told to look again, or there is no more reason to: it returns the error for that.
func (a *admission) await(w *waiter, retry <-chan time.Time) error {
	if a.timer == nil && a.wait >= 0 {
		a.timer = time.NewTimer(a.wait)
	}
	var expired <-chan time.Time
	if a.timer != nil {
		expired = a.timer.C
	}
	select {
	case <-w.ch:
	case <-retry:
	case <-expired:
		return ErrTimeout
	case <-a.topic.gone:
		return ErrClosed
	case <-a.topic.hub.draining:
		return ErrDraining
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
	select {
	case <-a.topic.hub.draining: // also when room came with the drain
		return ErrDraining
	default:
		return nil
	}
}

func (a *admission) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}
