package fanout

import (
	"context"
	"slices"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
)

// waiter is a publisher in a line. A token in ch says: look again. The capacity of ch is one, because
// looking once serves any number of reasons to look.
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

// admission is the time that a publish may spend waiting, over all that it may have to wait for.
type admission struct {
	ctx   context.Context
	topic *Topic
	wait  time.Duration // < 0: without limit
	timer *time.Timer
	retry *time.Timer // a sweep may have found more that can be given up
}

// await blocks until it is worth looking again, because w or memory, which may be nil, has a token or some time has
// passed, or there is no more reason to: it returns the error for that.
func (a *admission) await(w *waiter, memory *ledger.Waiter) error {
	if a.timer == nil && a.wait >= 0 {
		a.timer = time.NewTimer(a.wait)
	}
	if a.retry == nil {
		a.retry = time.NewTimer(sweepEvery)
	} else {
		a.retry.Reset(sweepEvery)
	}
	var expired <-chan time.Time
	if a.timer != nil {
		expired = a.timer.C
	}
	var freed <-chan struct{}
	if memory != nil {
		freed = memory.C
	}
	select {
	case <-w.ch:
	case <-freed:
	case <-a.retry.C:
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
	case <-a.topic.hub.draining: // also when space came with the drain
		return ErrDraining
	default:
		return nil
	}
}

func (a *admission) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.retry != nil {
		a.retry.Stop()
	}
}
