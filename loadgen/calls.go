package loadgen

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/client"
)

// callLoad loads something with calls that somebody waits for. In a closed loop each worker makes one after the other.
// In an open loop calls are due at fixed times, a free worker makes the next, and its latency counts from when it was
// due: that nobody was free is part of it.
//
// A call that has no answer counts too, with the time that it has waited: one that ends by the timeout, one that is
// still under way at the end of the run, and one of an open loop that was due and that no worker was free to begin.
// Without them a system that stops to answer would look fast.
type callLoad struct {
	workers          int
	rate             float64       // calls per second of an open loop; 0 is a closed loop
	timeout          time.Duration // after which a call is canceled; 0 is never
	warmup, duration time.Duration
	observer         Observer
	broker           *startedBroker // nil if there is none to be asked for its state
	kinds            []callShare
	alarm            func(context.Context) alarm

	// next says of what kind the worker's next call is.
	next func(worker int) int
	// call makes a call of that kind. It is called by many workers at once, and by each for one call after the other.
	// It returns soon after ctx has ended; a worker whose call does not is abandoned when the run ends.
	call func(ctx context.Context, worker, kind int) (called, error)
}

// callShare is a kind of calls.
type callShare struct {
	tag   string
	share float64 // of all calls
}

// called is the outcome of a call.
type called struct {
	took       time.Duration // without what was done before and after it
	keys, hits int
}

// callResult is the outcome of all calls that were measured: those that were due in the measured time of an open loop,
// or that ended in that of a closed one or later.
type callResult struct {
	Measurement
	kinds   []callKind
	seconds float64 // of the measured time
	late    int64   // calls of an open loop that began more than a millisecond after they were due
}

// callKind is the account of one kind. Its latencies are those of all calls: ended, hung and not begun.
type callKind struct {
	ended      int64
	hung       int64 // had no answer by the timeout or the end of the run
	notBegun   int64 // of an open loop: due, and no worker was free until the end of the run
	keys, hits int64 // of those that ended
	keysInTime int64 // of those that ended in the measured time, by which the rate counts
	lat        latencies
}

// drainTime is how long the calls that are under way at the end of the measured time have to end.
const drainTime = time.Second

// leaveTime is how long a run waits for calls that it has canceled at its end.
const leaveTime = time.Second

var (
	errCallTimeout = errors.New("loadgen: no answer within the timeout of a call")
	errRunEnded    = errors.New("loadgen: the run has ended")
)

// worker makes calls. The run cancels a call that takes too long, and takes the account at its end.
type worker struct {
	recorders []*recorder // by kind
	parent    context.Context

	mu       sync.Mutex
	state    workerState
	over     bool // the run has taken the account: nothing is added to it
	due, at  int64
	kind     int
	canceled bool // by the timeout
	ctx      context.Context
	cancel   context.CancelCauseFunc
	kinds    []callKind // without latencies
	late     int64
	last     int64 // when the last measured call ended, ns
}

type workerState int

const (
	idle    workerState = iota
	waiting             // for the time at which a call is due
	calling
)

func (l *callLoad) newWorker(ctx context.Context, t *timeline) *worker {
	w := &worker{parent: ctx, kinds: make([]callKind, len(l.kinds))}
	for kind := range l.kinds {
		w.recorders = append(w.recorders, t.recorder(kind))
	}
	w.renew()
	return w
}

func (w *worker) renew() {
	w.ctx, w.cancel = context.WithCancelCause(w.parent)
	w.canceled = false
}

// claim takes the next call of an open loop, which is due at the time it returns, unless the run is over.
func (w *worker) claim(next func() int64) (due int64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return 0, false
	}
	w.due, w.state = next(), waiting
	return w.due, true
}

// begin begins a call, unless the run is over.
func (w *worker) begin(due, at int64, kind int) (context.Context, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return nil, false
	}
	w.state, w.due, w.at, w.kind = calling, due, at, kind
	return w.ctx, true
}

// overdue cancels the call under way if it has taken longer than the timeout.
func (w *worker) overdue(now int64, timeout time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == calling && !w.canceled && now-w.at >= int64(timeout) {
		w.canceled = true
		w.cancel(errCallTimeout)
	}
}

// end takes a call that has ended into the account. It returns the error that ends the run.
func (w *worker) end(l *callLoad, now int64, c called, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = idle
	if w.over {
		return errRunEnded
	}
	hung := err != nil && (w.canceled || timedOut(err)) && w.parent.Err() == nil
	if err != nil && !hung {
		return err
	}
	if w.canceled {
		w.cancel(nil)
		w.renew()
	}
	ended := w.at + int64(c.took)
	ns := int64(c.took)
	if hung {
		ended = now
		ns = now - w.at
	}
	measured := ended >= int64(l.warmup)
	if l.rate > 0 {
		ns = ended - w.due
		measured = w.due >= int64(l.warmup)
	}
	if !measured {
		return nil
	}
	w.recorders[w.kind].record(ns, 1)
	k := &w.kinds[w.kind]
	if hung {
		k.hung++
	} else {
		k.ended++
		k.keys += int64(c.keys)
		k.hits += int64(c.hits)
		if ended <= int64(l.warmup+l.duration) {
			k.keysInTime += int64(c.keys)
		}
	}
	w.last = ended
	if w.at-w.due > int64(lateAfter) {
		w.late++
	}
	return nil
}

// close ends the account. A call that is under way has hung, and one that the worker had no time to begin is not begun.
func (w *worker) close(l *callLoad, now int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.cancel(errRunEnded)
	switch {
	case w.state == calling:
		w.kinds[w.kind].hung++
		w.recorders[w.kind].record(now-w.due, 1)
		w.last = now
	case w.state == waiting && w.due >= int64(l.warmup) && w.due < int64(l.warmup+l.duration):
		w.kinds[0].notBegun++
		w.recorders[0].record(now-w.due, 1)
		w.last = now
	}
}

// done returns how many measured calls have ended so far.
func (w *worker) done() (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.kinds {
		n += w.kinds[i].ended
	}
	return n
}

// timedOut reports whether a call's error says that there was no answer.
func timedOut(err error) bool {
	return errors.Is(err, client.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

func (l *callLoad) run(ctx context.Context) (*callResult, error) {
	if l.observer.Interval == 0 {
		l.observer.Interval = DefaultInterval
	}
	tags := make([]string, len(l.kinds))
	for i, k := range l.kinds {
		tags[i] = k.tag
	}
	base := time.Now()
	t := newTimeline(l.observer, l.broker, base, tags...)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	workers := make([]*worker, l.workers)
	for i := range workers {
		workers[i] = l.newWorker(ctx, t)
	}
	unclaimed := l.newWorker(ctx, t) // has the account of the calls that none of them began
	pace := pacer{batch: 1, rate: l.rate}
	var next atomic.Int64 // call of an open loop
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			if err := l.work(w, i, base, func() int64 { return pace.due(next.Add(1) - 1) }); err != nil {
				fail(err)
			}
		})
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { l.watch(watchCtx, t, base, workers) })

	ended := make(chan struct{})
	go func() { // ends with the last worker
		wg.Wait()
		close(ended)
	}()
	last := time.NewTimer(l.warmup + l.duration + drainTime - time.Since(base))
	defer last.Stop()
	select {
	case <-ended:
	case <-ctx.Done():
	case <-last.C:
	}
	now := int64(time.Since(base))
	for _, w := range workers {
		w.close(l, now)
	}
	stopWatch()
	watch.Wait()
	leave := time.NewTimer(leaveTime)
	defer leave.Stop()
	select {
	case <-ended:
	case <-leave.C:
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if l.rate > 0 {
		l.notBegun(unclaimed, pace, next.Load(), now)
	}
	return l.result(slices.Concat(workers, []*worker{unclaimed}), t), nil
}

// result sums up what the workers counted. It is called when their accounts are closed.
func (l *callLoad) result(workers []*worker, t *timeline) *callResult {
	r := &callResult{kinds: make([]callKind, len(l.kinds)), seconds: l.duration.Seconds()}
	begin, stop := int64(l.warmup), int64(l.warmup+l.duration)
	for _, w := range workers {
		stop = max(stop, w.last)
		r.late += w.late
		for i := range r.kinds {
			sum, one := &r.kinds[i], &w.kinds[i]
			sum.ended += one.ended
			sum.hung += one.hung
			sum.notBegun += one.notBegun
			sum.keys += one.keys
			sum.hits += one.hits
			sum.keysInTime += one.keysInTime
		}
	}
	if t.last < begin { // a measurement so short that nobody has looked
		t.begin(begin)
	}
	t.end(max(stop, t.last))
	for kind := range r.kinds {
		r.kinds[kind].lat = t.series[kind].total
	}
	r.Measurement = t.measurement()
	return r
}

// work makes a worker's calls until the measured time ends.
func (l *callLoad) work(w *worker, number int, base time.Time, next func() int64) error {
	a := l.alarm(w.parent)
	defer a.close()
	end := int64(l.warmup + l.duration)
	for {
		at := int64(time.Since(base))
		due := at
		if l.rate > 0 {
			var ok bool
			if due, ok = w.claim(next); !ok {
				return nil
			}
			for ; at < due && due < end; at = int64(time.Since(base)) {
				if err := a.wait(time.Duration(due - at)); err != nil {
					return err
				}
			}
		}
		if due >= end || w.parent.Err() != nil {
			return nil
		}
		kind := l.next(number)
		ctx, ok := w.begin(due, at, kind)
		if !ok {
			return nil
		}
		c, err := l.call(ctx, number, kind)
		if err = w.end(l, int64(time.Since(base)), c, err); errors.Is(err, errRunEnded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// notBegun adds the calls from number first on that were due and that nobody began, with the time since they were due.
// It takes steps of several calls if there are very many.
func (l *callLoad) notBegun(w *worker, pace pacer, first, now int64) {
	begin, end := int64(l.warmup), int64(l.warmup+l.duration)
	// The first call that is due at a time or later; a float may be one off.
	at := func(due int64) int64 {
		i := int64(float64(due) / 1e9 * l.rate)
		for i > 0 && pace.due(i-1) >= due {
			i--
		}
		for pace.due(i) < due {
			i++
		}
		return i
	}
	first = max(first, at(begin))
	behind := at(end)
	const steps = 100_000
	step := max((behind-first)/steps, 1)
	left := make([]float64, len(l.kinds)) // of a call, by kind
	for i := first; i < behind; i += step {
		n := min(step, behind-i)
		rest := n
		for k := range l.kinds {
			left[k] += l.kinds[k].share * float64(n)
			m := min(int64(left[k]), rest)
			if k == len(l.kinds)-1 {
				m = rest
			}
			if m == 0 {
				continue
			}
			left[k] -= float64(m)
			rest -= m
			w.recorders[k].record(now-pace.due(i), m)
			w.kinds[k].notBegun += m
			w.last = now
		}
	}
}

// watch ends the intervals of the timeline, cancels calls that take too long and reports the progress.
func (l *callLoad) watch(ctx context.Context, t *timeline, base time.Time, workers []*worker) {
	every := min(watchEvery, max(t.observer.Interval/4, time.Millisecond))
	if l.timeout > 0 {
		every = min(every, max(l.timeout/4, time.Millisecond))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before, lastReport int64
	begun := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := int64(time.Since(base))
		if l.timeout > 0 {
			for _, w := range workers {
				w.overdue(now, l.timeout)
			}
		}
		if !begun && now >= int64(l.warmup) {
			begun = true
			t.begin(int64(l.warmup))
		}
		if begun && t.due(now) {
			t.end(now)
		}
		if l.observer.Progress == nil || now-lastReport < int64(watchEvery)*9/10 {
			continue
		}
		var total int64
		for _, w := range workers {
			total += w.done()
		}
		p := Progress{
			WarmingUp: !begun, Elapsed: time.Duration(now), Published: uint64(total), Delivered: uint64(total),
			Rate: float64(total-before) / time.Duration(now-lastReport).Seconds(), P99: t.p99(),
		}
		if begun {
			p.Elapsed -= l.warmup
			p.Remaining = max(l.duration-p.Elapsed, 0)
		}
		l.observer.Progress(p)
		before, lastReport = total, now
	}
}
