package loadgen

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// callLoad loads something with calls that somebody waits for. In a closed loop each worker makes one after the other.
// In an open loop calls are due at fixed times, a free worker makes the next, and its latency counts from when it was
// due: that nobody was free is part of it.
type callLoad struct {
	workers          int
	rate             float64 // calls per second of an open loop; 0 is a closed loop
	warmup, duration time.Duration
	observer         Observer
	broker           *startedBroker // nil if there is none to be asked for its state
	tags             []string       // of the kinds of calls
	alarm            func(context.Context) alarm

	// call makes one call. It is called by many workers at once, and by each for one call after the other.
	call func(ctx context.Context, worker int) (called, error)
}

// called is what came of a call.
type called struct {
	kind       int           // index into the tags
	took       time.Duration // without what was done before and after it
	keys, hits int
}

// callResult is what came of all calls that were measured: those that were due in the measured time of an open loop, or
// began and ended in that of a closed one.
type callResult struct {
	Measurement
	kinds   []callKind
	seconds float64
	late    int64 // calls of an open loop that began more than a millisecond after they were due
}

type callKind struct {
	keys, hits int64
	lat        latencies
}

// worker makes calls.
type worker struct {
	recorders  []*recorder
	keys, hits []int64 // by kind
	late, last int64   // when its last measured call ended, ns
}

func (l *callLoad) run(ctx context.Context) (*callResult, error) {
	if l.observer.Interval == 0 {
		l.observer.Interval = DefaultInterval
	}
	base := time.Now()
	t := newTimeline(l.observer, l.broker, base, l.tags...)
	workers := make([]*worker, l.workers)
	for i := range workers {
		w := &worker{keys: make([]int64, len(l.tags)), hits: make([]int64, len(l.tags))}
		for kind := range l.tags {
			w.recorders = append(w.recorders, t.recorder(kind))
		}
		workers[i] = w
	}
	begin, end := int64(l.warmup), int64(l.warmup+l.duration)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var next, done atomic.Int64 // the next call of an open loop; calls that were measured
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			a := l.alarm(ctx)
			defer a.close()
			pace := pacer{batch: 1, rate: l.rate}
			for {
				at := int64(time.Since(base))
				due := at
				if l.rate > 0 {
					due = pace.due(next.Add(1) - 1)
					for ; at < due && due < end; at = int64(time.Since(base)) {
						if err := a.wait(time.Duration(due - at)); err != nil {
							fail(err)
							return
						}
					}
				}
				if due >= end || ctx.Err() != nil {
					return
				}
				c, err := l.call(ctx, i)
				if err != nil {
					fail(err)
					return
				}
				ns := int64(c.took)
				ended := at + ns
				if l.rate > 0 {
					ns = ended - due
				}
				if due < begin || (l.rate == 0 && ended > end) {
					continue
				}
				w.recorders[c.kind].record(ns, 1)
				w.keys[c.kind] += int64(c.keys)
				w.hits[c.kind] += int64(c.hits)
				w.last = ended
				if at-due > int64(lateAfter) {
					w.late++
				}
				done.Add(1)
			}
		})
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { l.watch(watchCtx, t, base, &done) })
	wg.Wait()
	stopWatch()
	watch.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r := &callResult{kinds: make([]callKind, len(l.tags))}
	last := end
	for _, w := range workers {
		last = max(last, w.last)
		r.late += w.late
		for kind := range r.kinds {
			r.kinds[kind].keys += w.keys[kind]
			r.kinds[kind].hits += w.hits[kind]
		}
	}
	if t.last < begin { // a measurement so short that nobody has looked
		t.begin(begin)
	}
	t.end(max(last, t.last))
	for kind := range r.kinds {
		r.kinds[kind].lat = t.series[kind].total
	}
	r.Measurement = t.measurement()
	r.seconds = time.Duration(last - begin).Seconds()
	return r, nil
}

// watch ends the intervals of the timeline and reports the progress.
func (l *callLoad) watch(ctx context.Context, t *timeline, base time.Time, done *atomic.Int64) {
	tick := time.NewTicker(min(watchEvery, max(t.observer.Interval/4, time.Millisecond)))
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
		total := done.Load()
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
