package loadgen

import (
	"context"
	"time"
)

// pacer says when the batches of an open loop are due: batch i at i × batch / rate seconds after the start, computed
// from the start each time, so that errors do not add up.
type pacer struct {
	start int64   // ns
	batch int     // events in a batch
	rate  float64 // events per second
}

func (p *pacer) due(i int64) int64 {
	return p.start + int64(float64(i)*float64(p.batch)/p.rate*1e9)
}

// batches returns how many batches are due within d, at least one.
func (p *pacer) batches(d time.Duration) int64 {
	return max(1, int64(d.Seconds()*p.rate/float64(p.batch)+0.5))
}

// lateAfter is how long after its time a batch may leave before it counts as late.
const lateAfter = time.Millisecond

// punctuality keeps the account of how late the batches of an open loop left.
type punctuality struct {
	late int64
	lag  latencies
}

func (p *punctuality) sent(due, at int64) {
	lag := max(at-due, 0)
	if lag > int64(lateAfter) {
		p.late++
	}
	p.lag.record(lag, 1)
}

// alarm waits for moments more precisely than a timer of the runtime, which is up to a millisecond late in a process
// that idles. One goroutine may use it.
type alarm interface {
	// wait returns after d, or earlier with the cause of the context that the alarm was made with. d is positive.
	wait(d time.Duration) error
	close()
}

// timerAlarm is the alarm of systems for which there is no better one.
type timerAlarm struct{ ctx context.Context }

func (a timerAlarm) wait(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-a.ctx.Done():
		return context.Cause(a.ctx)
	}
}

func (timerAlarm) close() {}
