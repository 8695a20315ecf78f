package loadgen

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is a Publisher that delivers to the subscribers of a run at once, except for what drop says.
type pipe struct {
	r     *run
	drop  func(subscription int, seq uint64) bool
	delay func() // before a batch is delivered

	lock sync.Locker // if several publishers send

	acked          atomic.Int64
	batches, marks int
}

func (p *pipe) Send(_ context.Context, items ...[]byte) error {
	if p.lock != nil {
		p.lock.Lock()
		defer p.lock.Unlock()
	}
	if seq, _ := stamp(items[0]); seq&markBit != 0 {
		p.marks++
	} else {
		p.batches++
	}
	if p.delay != nil {
		p.delay()
	}
	for i, s := range p.r.subs {
		var got bool
		now := p.r.now()
		for _, item := range items {
			if seq, _ := stamp(item); p.drop != nil && p.drop(i, seq) {
				continue
			}
			got = true
			if err := s.event(item, now); err != nil {
				return err
			}
		}
		if got {
			s.frameDone(now)
		}
	}
	return nil
}

func (p *pipe) Publish(ctx context.Context, items ...[]byte) error {
	p.acked.Add(1)
	return p.Send(ctx, items...)
}

// newEngine makes a run of cfg with a pipe in place of a broker.
func newEngine(cfg Config) (*run, *publisher, *pipe) {
	r := newRun(cfg.withDefaults(), nil)
	out := &pipe{r: r}
	r.addTopic(0, func(int) Publisher { return out })
	for _, p := range r.publishers {
		p.alarm = func(ctx context.Context) alarm { return timerAlarm{ctx} }
	}
	return r, r.publishers[0], out
}

// warmUp warms an engine up. A moment passes with its batch, in a bubble too, where time passes only in sleep.
func warmUp(t *testing.T, p *publisher, out *pipe) {
	t.Helper()
	out.delay = func() { time.Sleep(time.Microsecond) }
	if err := p.warmUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	out.delay = nil
	p.r.begin()
}

func TestClosedLoop(t *testing.T) {
	r, p, out := newEngine(Config{Fanout: 3, Batch: 4, Payload: 32, Window: 2, Total: 1002, Warmup: 1})
	warmUp(t, p, out)
	warm := p.warmEnd.Load()
	if warm < 4 || warm%4 != 0 || out.acked.Load() != 1 || uint64(out.batches)*4 != warm {
		t.Errorf("the warm-up has %d events in %d batches, %d acknowledged", warm, out.batches, out.acked.Load())
	}
	if err := p.measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	res := r.result(meter{packetsLost: 1, udpErrors: 5}, meter{packetsLost: 3, udpErrors: 5})
	if res.Published != 1002 || res.Expected != 3006 || res.Delivered != 3006 || res.Unaccounted != 0 || res.Dropped != 0 {
		t.Errorf("got %+v", res)
	}
	if res.Latency.Samples != 3006 {
		t.Errorf("%d latencies, want one for each delivery", res.Latency.Samples)
	}
	if res.PacketsLost != 2 || res.UDPReceiveErrors != 0 || res.SendLag != nil {
		t.Errorf("got %+v", res)
	}
	if out.marks != 0 {
		t.Error("a run that never waited sent marks")
	}
}

// A run goes on past a gap, so that it can tell how much was lost, and is then unaccounted for that. The gap here ends
// a batch, so that the window stays closed until a mark tells of it.
func TestGapsAreUnaccounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, out := newEngine(Config{Fanout: 2, Batch: 4, Payload: 16, Window: 1, Total: 400, Warmup: 1})
		warmUp(t, p, out)
		warm := p.warmEnd.Load()
		out.drop = func(i int, seq uint64) bool { return i == 1 && seq >= warm+101 && seq < warm+104 }
		if err := p.measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if res := r.result(meter{}, meter{}); res.Delivered != 797 || res.Unaccounted != 3 || res.Dropped != 0 || out.marks != 1 {
			t.Errorf("%d marks, got %+v", out.marks, res)
		}
	})
}

func TestLossInWarmUp(t *testing.T) {
	_, p, out := newEngine(Config{Batch: 4, Payload: 16, Warmup: 1})
	out.drop = func(_ int, seq uint64) bool { return seq == 2 }
	if err := p.warmUp(t.Context()); err == nil || !strings.Contains(err.Error(), "1 events were lost during the warm-up") {
		t.Errorf("got %v", err)
	}
}

// Drops are counted, and marks make up for batches of which nothing arrives: in the warm-up, within the window and at
// the end.
func TestAllowedDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, out := newEngine(Config{Fanout: 2, Batch: 4, Payload: 16, Window: 1, Total: 400, Warmup: 1, AllowDrops: true})
		out.drop = func(i int, seq uint64) bool { return i == 0 && seq == 0 }
		warmUp(t, p, out)
		warm := p.warmEnd.Load()
		out.drop = func(i int, seq uint64) bool {
			return i == 1 && (seq-warm < 4 || seq-warm >= 100 && seq-warm < 108 || seq-warm >= 390 && seq&markBit == 0)
		}
		if err := p.measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		res := r.result(meter{}, meter{})
		if res.Delivered != 800-22 || res.Dropped != 22 || res.Unaccounted != 0 {
			t.Errorf("got %+v", res)
		}
		if out.marks == 0 {
			t.Error("no marks were sent")
		}
	})
}

// An open loop sends when batches are due, and charges the time for which the transport held a batch up to those
// after it.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, out := newEngine(Config{Batch: 10, Payload: 16, Rate: 1000, Duration: time.Second, Warmup: 1})
		warmUp(t, p, out)
		out.batches = 0
		out.delay = func() {
			if out.batches == 50 {
				time.Sleep(95 * time.Millisecond)
			}
		}
		begin := time.Now()
		if err := p.measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 990*time.Millisecond {
			t.Errorf("the last of 100 batches left after %v", d)
		}
		res := r.result(meter{}, meter{})
		if res.Published != 1000 || res.Delivered != 1000 || res.Unaccounted != 0 {
			t.Errorf("got %+v", res)
		}
		// Batch 50 took 95 ms; the nine after it were due meanwhile and came 85, 75, … 5 ms late.
		if res.LateBatches != 9 || res.SendLag.Max < 85e3 || res.SendLag.Max > 86e3 {
			t.Errorf("%d late batches, lag %+v", res.LateBatches, res.SendLag)
		}
		if l := res.Latency; l.P50 != 0 || l.Max < 95e3 || l.Max > 96e3 || l.P99 < 85e3 || l.P99 > 86e3 {
			t.Errorf("latency %+v", l)
		}
		if res.DeliveredPerSecond < 1005 || res.DeliveredPerSecond > 1015 {
			t.Errorf("%v events per second in %v s", res.DeliveredPerSecond, res.Seconds)
		}
	})
}

// Events of several publishers are told apart, each with its own sequence, window and marks, and in one frame too.
func TestSeveralPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, out := newEngine(Config{Publishers: 3, Fanout: 2, Batch: 4, Payload: 16, Window: 2, Total: 1000, Warmup: 1})
		ctx, fail := context.WithCancelCause(t.Context())
		defer fail(nil)
		var mu sync.Mutex
		out.delay = func() { // deliveries are one at a time
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
		}
		out.lock = &mu
		if err := r.each(ctx, fail, (*publisher).warmUp); err != nil {
			t.Fatal(err)
		}
		r.begin()
		lost := r.publishers[1].warmEnd.Load() + 7
		out.drop = func(i int, number uint64) bool { return i == 1 && number == 1<<publisherShift|lost }
		if err := r.each(ctx, fail, (*publisher).measure); err != nil {
			t.Fatal(err)
		}
		res := r.result(meter{}, meter{})
		if res.Published != 1000 || res.Expected != 2000 || res.Delivered != 1999 || res.Unaccounted != 1 || res.Latency.Samples != 1999 {
			t.Errorf("got %+v", res)
		}
		for i, p := range r.publishers {
			if want := uint64(333 + max(1-i, 0)); p.events() != want {
				t.Errorf("publisher %d sent %d events, want %d", i, p.events(), want)
			}
		}
		// The timeline has all samples, in intervals that follow one another.
		at, samples := 0.0, int64(0)
		for _, i := range res.Intervals {
			if math.Abs(i.Start-at) > 1e-6 {
				t.Errorf("interval at %v, want %v", i.Start, at)
			}
			at = i.Start + i.Seconds
			samples += i.Latency.Samples
		}
		if samples != 1999 || len(res.Intervals) == 0 || len(res.Series) != 1 || res.Series[0].Histogram.TotalCount() != 1999 {
			t.Errorf("%d samples in %d intervals", samples, len(res.Intervals))
		}
	})
}

func TestDurationGoesOnUntilTheVolumeSuffices(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want time.Duration // when the last batch left
	}{
		"enough at once": {Config{Batch: 10, Duration: 3 * time.Second}, 3 * time.Second},
		"goes on":        {Config{Batch: 10, Duration: time.Second, MaxDuration: 10 * time.Second}, 2550 * time.Millisecond},
		"gives up":       {Config{Batch: 10, Duration: time.Second, MaxDuration: 2 * time.Second}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := tc.cfg
				cfg.Warmup = 1
				_, p, out := newEngine(cfg)
				warmUp(t, p, out)
				// 8 × 32 batches suffice, at 10 ms each: the 256th leaves after 2.55 s.
				out.delay = func() { time.Sleep(10 * time.Millisecond) }
				if err := p.measure(t.Context()); err != nil {
					t.Fatal(err)
				}
				if d := time.Duration(p.stop-p.start) - 10*time.Millisecond; d != tc.want {
					t.Errorf("the last batch left after %v, want %v", d, tc.want)
				}
			})
		})
	}
}

func TestSubscriberRefuses(t *testing.T) {
	item := func(size int, seq uint64) []byte {
		b := make([]byte, size)
		putStamp(b, seq, 0)
		return b
	}
	r, _, _ := newEngine(Config{Payload: 32})
	s := r.subs[0]
	if err := s.event(item(32, 0), 1); err != nil {
		t.Fatal(err)
	}
	var order *OrderError
	if err := s.event(item(32, 0), 1); !errors.As(err, &order) || order.Got != 0 || order.Want != 1 {
		t.Errorf("a duplicate: %v", err)
	}
	var length *PayloadError
	if err := s.event(item(31, 1), 1); !errors.As(err, &length) || length.Got != 31 || length.Want != 32 {
		t.Errorf("a short event: %v", err)
	}
	if err := s.event(item(32, markBit), 1); err != nil || s.current.next != 1 {
		t.Errorf("an old mark: %v, next is %d", err, s.current.next)
	}
	var publisher *PublisherError
	if err := s.event(item(32, 1<<publisherShift), 1); !errors.As(err, &publisher) || publisher.Publisher != 1 {
		t.Errorf("another publisher: %v", err)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, _ := newEngine(Config{Fanout: 2, IdleTimeout: 3 * time.Second})
		p.sent.Store(10)
		r.subs[0].ledgers[0].received.Store(10)
		r.subs[1].ledgers[0].received.Store(7)
		ctx, fail := context.WithCancelCause(t.Context())
		defer fail(nil)
		begin := time.Now()
		go func() {
			// A second subscription that moves is given time again.
			time.Sleep(2 * time.Second)
			r.subs[1].ledgers[0].received.Store(8)
		}()
		r.watch(ctx, fail)
		var idle *IdleError
		if !errors.As(context.Cause(ctx), &idle) || idle.Subscription != 1 || idle.Received != 8 || idle.Sent != 10 {
			t.Errorf("got %v", context.Cause(ctx))
		}
		if d := time.Since(begin); d < 5*time.Second || d > 6*time.Second {
			t.Errorf("failed after %v", d)
		}
	})
}

func TestWatchReportsProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []Progress
		r, p, _ := newEngine(Config{
			Fanout: 2, Total: 1000, Observer: Observer{Progress: func(p Progress) { reports = append(reports, p) }},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.watch(ctx, func(error) {})
		}()
		step := func(sent, a, b uint64) {
			p.sent.Store(sent)
			r.subs[0].ledgers[0].received.Store(a)
			r.subs[1].ledgers[0].received.Store(b)
			time.Sleep(watchEvery)
			synctest.Wait()
		}
		step(100, 50, 60)
		p.warmEnd.Store(200)
		step(200, 200, 190)
		r.begin()
		r.subs[1].recorder.record(5e6, 10)
		r.subs[1].ledgers[0].skipped.Store(3)
		step(300, 300, 250)
		cancel()
		<-done
		if len(reports) != 3 || !reports[0].WarmingUp || !reports[1].WarmingUp {
			t.Fatalf("got %+v", reports)
		}
		want := Progress{
			Elapsed: watchEvery, Remaining: 9 * watchEvery, Published: 100, Delivered: 150, Dropped: 3, Rate: 150 / watchEvery.Seconds(),
		}
		if got := reports[2]; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestAllocSubscriber(t *testing.T) {
	r, p, _ := newEngine(Config{Payload: 32, Batch: 64})
	p.warmEnd.Store(0)
	s := r.subs[0]
	s.current.window = nil
	s.frameDone(0) // the warm-up is over
	items := NewItems(Zero, 64, 32, 0)
	var seq uint64
	if n := testing.AllocsPerRun(100, func() {
		for _, item := range items {
			putStamp(item, seq, int64(seq))
			seq++
			if err := s.event(item, int64(seq)); err != nil {
				t.Fatal(err)
			}
		}
		s.frameDone(int64(seq))
	}); n != 0 {
		t.Errorf("%v allocations for a frame", n)
	}
}
