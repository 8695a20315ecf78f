package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/client"
)

// load publishes batches at a fixed rate to several streams, round robin; package loadgen does so for one. Each batch
// is acknowledged, so that one that stands still shows.
type load struct {
	namespace string
	streams   []string
	batch     int     // events of payloadSize
	rate      float64 // batches per second
	duration  time.Duration
}

// warmup is how long a load is on before latencies count: what is to stall has to fill its windows first.
const warmup = time.Second

// reader is a subscription that is read, of the stream of that index.
type reader struct {
	sub    *client.Subscription
	stream int
}

// figures are what a load measured.
type figures struct {
	published float64       // events per second
	longest   time.Duration // publish, from when it was due to its acknowledgement, the warm-up included
	p50, p99  time.Duration // from when a batch was due to its delivery, after the warm-up
	lost      int64         // events that a reader did not get
	delivered int64
}

// payloadSize is the size of an event in bytes. It begins with its number in its stream and the time when it was due.
const payloadSize = 1 << 10

// patience is how long readers wait for the last events.
const patience = 20 * time.Second

func (l *load) run(ctx context.Context, c *client.Client, readers []reader) (figures, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	base := time.Now()
	r := &reception{base: base, hist: hdrhistogram.New(1, int64(time.Minute), 3), totals: make([]atomic.Uint64, len(l.streams))}
	for i := range r.totals {
		r.totals[i].Store(math.MaxUint64)
	}
	readCtx, stopReading := context.WithCancel(ctx)
	defer stopReading()
	var reading sync.WaitGroup
	for _, rd := range readers {
		reading.Go(func() {
			if err := r.read(readCtx, rd, l.batch); err != nil {
				fail(err)
			}
		})
	}
	f, err := l.publish(ctx, c, base, r.totals)
	if err != nil {
		fail(err)
	}
	// Readers that have everything end by themselves at the next event: a last one for each stream.
	stop := time.AfterFunc(patience, stopReading)
	defer stop.Stop()
	if err == nil {
		err = l.last(ctx, c, r.totals)
	}
	if err != nil {
		fail(err)
	}
	reading.Wait()
	if err := context.Cause(ctx); err != nil {
		return figures{}, err
	}
	f.p50, f.p99 = time.Duration(r.hist.ValueAtPercentile(50)), time.Duration(r.hist.ValueAtPercentile(99))
	f.delivered, f.lost = r.delivered.Load(), r.lost.Load()
	return f, nil
}

// publish sends the batches. It stores how many events each stream has got.
func (l *load) publish(ctx context.Context, c *client.Client, base time.Time, totals []atomic.Uint64) (figures, error) {
	publishers := make([]*client.Publisher, len(l.streams))
	for i, s := range l.streams {
		publishers[i] = c.Publisher(l.namespace, s)
	}
	sent := make([]uint64, len(l.streams))
	items := make([][]byte, l.batch)
	for i := range items {
		items[i] = make([]byte, payloadSize)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var f figures
	batches := int(l.rate * (warmup + l.duration).Seconds())
	begin := time.Since(base)
	for i := range batches {
		due := begin + time.Duration(float64(i)/l.rate*float64(time.Second))
		if wait := due - time.Since(base); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return f, context.Cause(ctx)
			}
			due = time.Since(base) // the timer's own lateness is nobody's fault
		}
		stream := i % len(l.streams)
		for j, item := range items {
			binary.BigEndian.PutUint64(item, sent[stream]+uint64(j))
			binary.BigEndian.PutUint64(item[8:], uint64(due))
		}
		if err := publishers[stream].Publish(ctx, items...); err != nil {
			return f, fmt.Errorf("stall: publishing to %s: %w", l.streams[stream], err)
		}
		sent[stream] += uint64(l.batch)
		f.longest = max(f.longest, time.Since(base)-due)
	}
	f.published = float64(batches*l.batch) / (time.Since(base) - begin).Seconds()
	for i, n := range sent {
		totals[i].Store(n)
	}
	return f, nil
}

// last sends each stream an event after all those that count, so that a reader notices if it lost the end.
func (l *load) last(ctx context.Context, c *client.Client, totals []atomic.Uint64) error {
	item := make([]byte, payloadSize)
	for i, s := range l.streams {
		binary.BigEndian.PutUint64(item, totals[i].Load())
		if err := c.Publisher(l.namespace, s).Publish(ctx, item); err != nil {
			return fmt.Errorf("stall: publishing to %s: %w", s, err)
		}
	}
	return nil
}

// reception is what the readers of a load count together.
type reception struct {
	base            time.Time
	totals          []atomic.Uint64 // events of each stream, once they are known
	delivered, lost atomic.Int64

	mu   sync.Mutex
	hist *hdrhistogram.Histogram
}

// read receives the events of one subscription, until it has come to the last one, or ctx ends.
func (r *reception) read(ctx context.Context, rd reader, batch int) error {
	next := uint64(0)
	for {
		b, err := rd.sub.NextBatch(ctx)
		total := r.totals[rd.stream].Load()
		if ctx.Err() != nil {
			if total == math.MaxUint64 {
				return nil // the load has failed
			}
			r.lost.Add(int64(total - next))
			return nil
		}
		if err != nil {
			return fmt.Errorf("stall: a healthy subscription: %w", err)
		}
		now, due := time.Since(r.base), time.Duration(0)
		for _, item := range b.Payloads() {
			n := binary.BigEndian.Uint64(item)
			r.lost.Add(int64(n - next))
			if n == total {
				return nil
			}
			next = n + 1
			due = time.Duration(binary.BigEndian.Uint64(item[8:]))
			r.delivered.Add(1)
		}
		if b.Len() == 0 || due < warmup {
			continue // a gap alone, which the numbers will tell, or too early
		}
		r.mu.Lock()
		_ = r.hist.RecordValues(int64(min(now-due, time.Minute)), int64(batch))
		r.mu.Unlock()
	}
}
