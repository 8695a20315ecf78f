package loadgen

import (
	"sync/atomic"
)

// window bounds the batches in flight. Each batch in it has a count of the subscriptions that have not received all of
// it; the one that takes the count to zero gives the batch's place back. That costs an atomic operation for each batch
// and subscription, and one channel operation for each batch.
//
// Every subscription passes the batches in order, so their counts reach zero in order: when a place is free, it is
// that of the oldest batch, whose slot the next one takes.
type window struct {
	size   uint64
	batch  uint64 // events in a batch
	fanout int64
	slots  []slot
	free   chan struct{} // one token for each free place
}

// slot is padded to a cache line: subscriptions at different batches count at the same time.
type slot struct {
	missing atomic.Int64
	_       [56]byte
}

func newWindow(size, batch, fanout int) *window {
	w := &window{
		size: uint64(size), batch: uint64(batch), fanout: int64(fanout),
		slots: make([]slot, size), free: make(chan struct{}, size),
	}
	for range size {
		w.free <- struct{}{}
	}
	return w
}

// open prepares the slot of the batch that begins with event seq. Its caller has taken a token from free.
func (w *window) open(seq uint64) {
	w.slots[seq/w.batch%w.size].missing.Store(w.fanout)
}

// passed tells that one subscription, which had passed all events below from, has passed all below to.
func (w *window) passed(from, to uint64) {
	for b := from / w.batch; b < to/w.batch; b++ {
		if w.slots[b%w.size].missing.Add(-1) == 0 {
			w.free <- struct{}{}
		}
	}
}
