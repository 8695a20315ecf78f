package drive

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/loadgen"
)

const stampLen = loadgen.StampLen

// PutStamp writes the number of an event, and when it left, to the first 16 bytes of its payload.
func PutStamp(payload []byte, seq uint64, at int64) {
	binary.BigEndian.PutUint64(payload, seq)
	binary.BigEndian.PutUint64(payload[8:], uint64(at))
}

// Stamp reads what [PutStamp] wrote. The payload has at least 16 bytes.
func Stamp(payload []byte) (seq uint64, at int64) {
	return binary.BigEndian.Uint64(payload), int64(binary.BigEndian.Uint64(payload[8:]))
}

// Load is one run. A publisher is driven by [Load.Publish], and each subscription tells its [Receiver] what arrived.
//
// The window is a channel of tokens, one for each batch that may be in flight. The subscription that is the last to
// receive a batch puts its token back. All receive the batches in order, so it is the oldest batch that comes back, and
// its slot, where the subscriptions are counted, is the one that the next batch needs. When all tokens are there,
// everything that was published has been received by everybody: that is how the warm-up and the run end.
type Load struct {
	shape     Shape
	base      time.Time
	receivers []*Receiver
	tokens    chan struct{}
	missing   []slot
	seq       uint64        // of the next event; the publisher's own
	from      atomic.Uint64 // first measured event
	start     int64         // when it left, ns
	stop      int64         // when the last publish returned
}

// slot counts the subscriptions that have not received a batch. It fills a cache line.
type slot struct {
	atomic.Int64
	_ [56]byte
}

// New prepares a run. The shape is a valid one.
func New(s Shape) *Load {
	l := &Load{shape: s, base: time.Now(), tokens: make(chan struct{}, s.Window), missing: make([]slot, s.Window)}
	l.from.Store(math.MaxUint64)
	for range s.Window {
		l.tokens <- struct{}{}
	}
	for i := range s.Fanout {
		l.receivers = append(l.receivers, &Receiver{l: l, index: i, lat: newHistogram()})
	}
	return l
}

// Now is the clock of the run: monotonic nanoseconds since its beginning.
func (l *Load) Now() int64 { return int64(time.Since(l.base)) }

// Receiver returns the ledger of the subscription with that index, from 0.
func (l *Load) Receiver(i int) *Receiver { return l.receivers[i] }

// Publish carries out the warm-up and the measurement and returns when every subscription has received everything. send
// has to send n batches, the first event of which has the number first, stamped with the time at; n is 1, or up to join
// if that many fit into the window at once. It returns the cause when ctx ends; receivers may end it to fail the run.
func (l *Load) Publish(ctx context.Context, join int, send func(first uint64, n int, at int64) error) error {
	s := l.shape
	err := l.phase(ctx, join, send, func(elapsed time.Duration) bool { return elapsed >= s.Warmup })
	if err != nil {
		return err
	}
	from := l.seq
	l.from.Store(from)
	l.start = l.Now()
	err = l.phase(ctx, join, send, func(elapsed time.Duration) bool {
		return elapsed >= s.MaxDuration && elapsed >= s.Duration || elapsed >= s.Duration && s.enough(l.seq-from)
	})
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // a failure does not keep what is under way from arriving
	}
	if err == nil && !s.enough(l.seq-from) {
		err = fmt.Errorf("drive: run too small: it moved %d events to each subscription, less than %d times the window", l.seq-from, s.factor())
	}
	return err
}

// phase publishes until it is over, and waits until everybody has received all of it.
func (l *Load) phase(ctx context.Context, join int, send func(uint64, int, int64) error, over func(time.Duration) bool) error {
	begin := l.Now()
	for last := false; !last; {
		if err := l.acquire(ctx); err != nil {
			return err
		}
		n := 1
		for n < join && l.tryAcquire() {
			n++
		}
		for i := range n {
			batch := l.seq/uint64(l.shape.Batch) + uint64(i)
			l.missing[batch%uint64(len(l.missing))].Store(int64(l.shape.Fanout))
		}
		first, at := l.seq, l.Now()
		l.seq += uint64(n * l.shape.Batch)
		if err := send(first, n, at); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("drive: publishing: %w", err)
		}
		last = over(time.Duration(at - begin))
	}
	l.stop = l.Now()
	for range l.shape.Window {
		if err := l.acquire(ctx); err != nil {
			return err
		}
	}
	for range l.shape.Window {
		l.tokens <- struct{}{}
	}
	return nil
}

func (l *Load) tryAcquire() bool {
	select {
	case <-l.tokens:
		return true
	default:
		return false
	}
}

func (l *Load) acquire(ctx context.Context) error {
	if l.tryAcquire() {
		return nil
	}
	select {
	case <-l.tokens:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Result sums the run up. It is called once, after [Load.Publish] has returned nil. What the load cannot know, packets,
// broker and environment, is left empty.
func (l *Load) Result() *loadgen.Result {
	s := l.shape
	res := &loadgen.Result{
		Config: loadgen.ConfigResult{
			Fanout: s.Fanout, Payload: s.Payload, PayloadKind: cmp.Or(s.Kind, loadgen.Random).String(), Batch: s.Batch, Window: s.Window, Conns: s.Conns,
		},
		Published: l.seq - l.from.Load(),
	}
	res.Expected = res.Published * uint64(s.Fanout)
	sum, last := newHistogram(), l.start
	for _, r := range l.receivers {
		res.Delivered += r.delivered
		res.Latency.Clamped += r.clamped
		last = max(last, r.last)
		sum.Merge(r.lat)
	}
	res.Unaccounted = res.Expected - res.Delivered
	us := func(ns int64) float64 { return float64(ns) / 1e3 }
	res.Latency = loadgen.Latency{
		P50: us(sum.ValueAtPercentile(50)), P90: us(sum.ValueAtPercentile(90)),
		P99: us(sum.ValueAtPercentile(99)), P999: us(sum.ValueAtPercentile(99.9)),
		Max: us(sum.Max()), Mean: sum.Mean() / 1e3, Samples: sum.TotalCount(), Clamped: res.Latency.Clamped,
	}
	res.Seconds = time.Duration(last - l.start).Seconds()
	res.DeliveredPerSecond = float64(res.Delivered) / res.Seconds
	res.DeliveredBytesPerSecond = res.DeliveredPerSecond * float64(s.Payload)
	res.PublishedPerSecond = float64(res.Published) / time.Duration(l.stop-l.start).Seconds()
	return res
}

// maxLatency is the largest latency that is recorded; larger ones are clamped to it and counted.
const maxLatency = time.Minute

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(maxLatency), 3) }

// Receiver is the ledger of one subscription. One goroutine uses it.
type Receiver struct {
	l         *Load
	index     int
	next      uint64 // number of the event that has to come next
	delivered uint64 // measured events
	clamped   int64
	last      int64 // when the last of them came, ns
	lat       *hdrhistogram.Histogram
}

// Receive takes n events that arrived at now, in one piece: the first has the number first, all left at the time at.
func (r *Receiver) Receive(now int64, first uint64, n int, at int64) error {
	if first != r.next {
		return fmt.Errorf("drive: subscription %d received event %d where %d was next: lost, doubled or out of order", r.index, first, r.next)
	}
	r.next += uint64(n)
	if first >= r.l.from.Load() {
		ns := min(max(now-at, 0), int64(maxLatency))
		if ns != now-at {
			r.clamped += int64(n)
		}
		_ = r.lat.RecordValues(ns, int64(n)) // in range by now
		r.delivered += uint64(n)
		r.last = now
	}
	batch := uint64(r.l.shape.Batch)
	for b := first / batch; b < r.next/batch; b++ {
		if r.l.missing[b%uint64(len(r.l.missing))].Add(-1) == 0 {
			r.l.tokens <- struct{}{}
		}
	}
	return nil
}
