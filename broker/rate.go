package broker

import (
	"sync/atomic"
	"time"
)

// bucket bounds a rate: what comes in a second may come at once after a pause. What is larger than that is taken as
// soon as there is one to take, and paid for by those that come after. It may be used from many goroutines, takes no
// lock and does not allocate.
type bucket struct {
	perSecond atomic.Int64 // 0: any number
	// paidAt is when all that was taken is paid for, in nanoseconds since processStart.
	paidAt atomic.Int64
}

// processStart is what buckets count time from.
var processStart = time.Now()

// set changes the rate; 0 is any. What is owed at another one is forgotten.
func (b *bucket) set(perSecond int64) {
	if b.perSecond.Swap(perSecond) != perSecond {
		b.paidAt.Store(0)
	}
}

// take takes n, which is not negative, or returns for how long there is nothing to take.
func (b *bucket) take(n int64) time.Duration {
	rate := b.perSecond.Load()
	if rate == 0 {
		return 0
	}
	return b.takeAt(n, rate, int64(time.Since(processStart)))
}

func (b *bucket) takeAt(n, rate, now int64) time.Duration {
	for {
		paid := b.paidAt.Load()
		if wait := waitFor(paid, rate, now); wait > 0 {
			return wait
		}
		if b.paidAt.CompareAndSwap(paid, max(paid, now)+int64(float64(n)/float64(rate)*float64(time.Second))) {
			return 0
		}
	}
}

// wait returns for how long there is nothing to take.
func (b *bucket) wait() time.Duration {
	rate := b.perSecond.Load()
	if rate == 0 {
		return 0
	}
	return waitFor(b.paidAt.Load(), rate, int64(time.Since(processStart)))
}

// waitFor returns for how long there is not one to take.
func waitFor(paid, rate, now int64) time.Duration {
	one := int64(time.Second) / rate
	return time.Duration(max(paid-now+one-int64(time.Second), 0))
}
