package loadgen

import (
	"sync"
	"testing"
)

// free returns how many places of w are free.
func (w *window) places() int { return len(w.free) }

func TestWindow(t *testing.T) {
	w := newWindow(2, 10, 3)
	open := func(seq uint64) { <-w.free; w.open(seq) }
	open(0)
	open(10)
	if n := w.places(); n != 0 {
		t.Fatalf("%d places are free with two batches in flight", n)
	}
	w.passed(0, 10)
	w.passed(0, 4) // a part of a batch is not a batch
	w.passed(4, 9)
	w.passed(0, 15)
	if n := w.places(); n != 0 {
		t.Fatalf("%d places are free although one subscription lacks an event", n)
	}
	w.passed(9, 10)
	if n := w.places(); n != 1 {
		t.Fatalf("%d places are free after the first batch", n)
	}
	open(20)
	// The slowest jumps over two batches at once: it lost them.
	w.passed(15, 30)
	w.passed(10, 30)
	if n := w.places(); n != 0 {
		t.Fatalf("%d places are free before the third subscription passed", n)
	}
	w.passed(10, 30)
	if n := w.places(); n != 2 {
		t.Fatalf("%d places are free at the end", n)
	}
}

// Subscriptions that run apart never have more batches in flight than the window, and none is lost.
func TestWindowConcurrent(t *testing.T) {
	const size, batch, fanout, batches = 4, 3, 8, 2000
	w := newWindow(size, batch, fanout)
	subs := make([]chan uint64, fanout)
	var wg sync.WaitGroup
	for i := range subs {
		subs[i] = make(chan uint64, size) // never full if the window holds
		wg.Go(func() {
			from := uint64(0)
			for to := range subs[i] {
				w.passed(from, to)
				from = to
			}
		})
	}
	for b := range uint64(batches) {
		<-w.free
		w.open(b * batch)
		for _, s := range subs {
			select {
			case s <- (b + 1) * batch:
			default:
				t.Fatalf("batch %d is sent, and a subscription has more than %d to receive", b, size)
			}
		}
	}
	for _, s := range subs {
		close(s)
	}
	wg.Wait()
	if n := w.places(); n != size {
		t.Errorf("%d of %d places are free at the end", n, size)
	}
}
