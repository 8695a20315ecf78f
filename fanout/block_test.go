package fanout

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/felix-mq/felix/ring"
)

// published is the outcome of a publish on a goroutine of its own.
type published struct{ result atomic.Pointer[publishResult] }

type publishResult struct {
	first uint64
	err   error
	after time.Duration
}

// publishAsync publishes a frame on a goroutine of its own and returns when that waits or is done. It must be called in
// a bubble.
func publishAsync(ctx context.Context, topic *Topic, f *Frame, wait time.Duration) *published {
	p := new(published)
	go func() {
		start := time.Now()
		first, err := topic.Publish(ctx, f, wait)
		f.Release()
		p.result.Store(&publishResult{first, err, time.Since(start)})
	}()
	synctest.Wait()
	return p
}

func (p *published) wantWaiting(t *testing.T) {
	t.Helper()
	synctest.Wait()
	if r := p.result.Load(); r != nil {
		t.Fatalf("did not wait: %+v", *r)
	}
}

func (p *published) want(t *testing.T, first uint64) {
	t.Helper()
	synctest.Wait()
	switch r := p.result.Load(); {
	case r == nil:
		t.Fatalf("still waits, want number %d", first)
	case r.err != nil || r.first != first:
		t.Fatalf("got %+v, want number %d", *r, first)
	}
}

func (p *published) wantError(t *testing.T, want error, after time.Duration) {
	t.Helper()
	synctest.Wait()
	switch r := p.result.Load(); {
	case r == nil:
		t.Fatalf("still waits, want %v", want)
	case !errors.Is(r.err, want) || r.after != after:
		t.Fatalf("got %+v, want %v after %v", *r, want, after)
	}
}

func smallFrame(count int) *Frame { return frameIn(64, 64, count, 0) }

// blocked runs f in a bubble, with a topic whose only subscription has no space left: it holds two frames of one event.
func blocked(t *testing.T, o Options, f func(t *testing.T, h *Hub, topic *Topic, s *Subscription)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, o)
		topic := h.Register(testKey, noReplay(ring.Block, 2))
		s, _ := subscribe(t, topic, From{})
		publish(t, topic, 1)
		publish(t, topic, 1)
		f(t, h, topic, s)
	})
}

// A publish waits before it is numbered, and no subscription gets it before all have space.
func TestBlockWaitsBeforeNumbering(t *testing.T) {
	blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, s *Subscription) {
		other, wakes := subscribe(t, topic, From{})
		p := publishAsync(t.Context(), topic, smallFrame(3), -1)
		p.wantWaiting(t)
		if st := topic.Stats(); st.Next != 2 || st.Waiting != 1 {
			t.Errorf("next number is %d with %d waiting, want 2 and 1", st.Next, st.Waiting)
		}
		if *wakes != 0 || other.QueuedBytes() != 0 {
			t.Error("delivered in part")
		}
		late, _ := subscribe(t, topic, From{}) // is not held up, and comes before the number
		have, _ := take(s, 1)
		wantGot(t, have, got{0, 1, 0, 0})
		p.want(t, 2)
		for _, s := range []*Subscription{other, late} {
			have, _ = drain(s)
			wantGot(t, have, got{2, 3, 0, 0})
		}
		have, _ = drain(s)
		wantGot(t, have, got{1, 1, 0, 0}, got{2, 3, 0, 0})
		if s.Dropped()+other.Dropped()+late.Dropped() != 0 {
			t.Error("dropped")
		}
	})
}

func TestBlockIsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := checkedHub(t, Options{}).Register(testKey, Policy{Overflow: ring.Block, QueueBytes: 1000, ReplayBytes: -1})
		s, _ := subscribe(t, topic, From{})
		publishFrame(t, topic, frameIn(700, 700, 1, 0))
		var ps []*published
		for i := range 5 {
			size := 64 // the small ones after the first would fit at once
			if i == 0 {
				size = 800
			}
			ps = append(ps, publishAsync(t.Context(), topic, frameIn(size, size, 1, 0), -1))
		}
		f := smallFrame(1)
		if _, err := topic.Publish(t.Context(), f, 0); !errors.Is(err, ErrTimeout) {
			t.Errorf("a newcomer that cannot wait: %v", err)
		}
		f.Release()
		for _, p := range ps {
			p.wantWaiting(t)
		}
		for i := range 6 {
			have, _ := take(s, 1)
			wantGot(t, have, got{uint64(i), 1, 0, 0})
			synctest.Wait()
		}
		for i, p := range ps {
			p.want(t, uint64(1+i))
		}
	})
}

func TestEmptyRingTakesAnyFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := checkedHub(t, Options{}).Register(testKey, Policy{Overflow: ring.Block, QueueBytes: 1000, ReplayBytes: -1})
		s, _ := subscribe(t, topic, From{})
		publishFrame(t, topic, frameIn(100_000, 100_000, 1, 0))
		p := publishAsync(t.Context(), topic, frameIn(50_000, 50_000, 1, 0), -1)
		p.wantWaiting(t)
		have, _ := take(s, 1)
		wantGot(t, have, got{0, 1, 0, 0})
		p.want(t, 1)
	})
}

func TestBlockWaitEnds(t *testing.T) {
	t.Run("without waiting", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, _ *Subscription) {
			publishAsync(t.Context(), topic, smallFrame(1), 0).wantError(t, ErrTimeout, 0)
		})
	})
	t.Run("in time", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, _ *Subscription) {
			p := publishAsync(t.Context(), topic, smallFrame(1), time.Millisecond)
			p.wantWaiting(t)
			time.Sleep(time.Millisecond)
			p.wantError(t, ErrTimeout, time.Millisecond)
		})
	})
	t.Run("by its context, first in line", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, s *Subscription) {
			ctx, cancel := context.WithCancel(t.Context())
			a := publishAsync(ctx, topic, smallFrame(1), -1)
			b := publishAsync(t.Context(), topic, smallFrame(1), -1)
			cancel()
			a.wantError(t, context.Canceled, 0)
			b.wantWaiting(t)
			take(s, 1)
			b.want(t, 2)
		})
	})
	t.Run("by its context, in the middle", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, s *Subscription) {
			ctx, cancel := context.WithCancel(t.Context())
			a := publishAsync(t.Context(), topic, smallFrame(1), -1)
			b := publishAsync(ctx, topic, smallFrame(1), -1)
			c := publishAsync(t.Context(), topic, smallFrame(1), -1)
			cancel()
			b.wantError(t, context.Canceled, 0)
			take(s, 1)
			a.want(t, 2)
			c.wantWaiting(t)
			take(s, 1)
			c.want(t, 3)
		})
	})
	t.Run("first in line wanted more than the next", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic := checkedHub(t, Options{}).Register(testKey, Policy{Overflow: ring.Block, QueueBytes: 1000, ReplayBytes: -1})
			subscribe(t, topic, From{})
			publishFrame(t, topic, frameIn(600, 600, 1, 0))
			ctx, cancel := context.WithCancel(t.Context())
			a := publishAsync(ctx, topic, frameIn(800, 800, 1, 0), -1)
			b := publishAsync(t.Context(), topic, smallFrame(1), -1)
			b.wantWaiting(t)
			cancel()
			a.wantError(t, context.Canceled, 0)
			b.want(t, 1)
		})
	})
	t.Run("drain", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, h *Hub, topic *Topic, s *Subscription) {
			a := publishAsync(t.Context(), topic, smallFrame(1), -1)
			b := publishAsync(t.Context(), topic, smallFrame(1), time.Hour)
			h.Drain()
			h.Drain()
			a.wantError(t, ErrDraining, 0)
			b.wantError(t, ErrDraining, 0)
			publishAsync(t.Context(), topic, smallFrame(1), 0).wantError(t, ErrDraining, 0)
			have, ended := drain(s)
			wantGot(t, have, got{0, 1, 0, 0}, got{1, 1, 0, 0})
			if ended {
				t.Error("a drain ended a subscription")
			}
		})
	})
	t.Run("topic removed", func(t *testing.T) {
		blocked(t, Options{}, func(t *testing.T, h *Hub, topic *Topic, _ *Subscription) {
			a := publishAsync(t.Context(), topic, smallFrame(1), -1)
			b := publishAsync(t.Context(), topic, smallFrame(1), -1)
			h.Remove(testKey)
			a.wantError(t, ErrClosed, 0)
			b.wantError(t, ErrClosed, 0)
		})
	})
	for name, end := range map[string]func(*Subscription){
		"subscription ended":  func(s *Subscription) { s.End(EndClosed) },
		"subscription closed": (*Subscription).Close,
	} {
		t.Run(name, func(t *testing.T) {
			blocked(t, Options{}, func(t *testing.T, _ *Hub, topic *Topic, s *Subscription) {
				a := publishAsync(t.Context(), topic, smallFrame(1), -1)
				b := publishAsync(t.Context(), topic, smallFrame(1), -1)
				end(s)
				a.want(t, 2)
				b.want(t, 3)
			})
		})
	}
}

// Of a topic's subscriptions only that one is ended which takes nothing and has no space.
func TestStalledSubscriptionIsEnded(t *testing.T) {
	blocked(t, Options{StallTimeout: 10 * time.Second}, func(t *testing.T, h *Hub, topic *Topic, s *Subscription) {
		var reasons []EndReason
		stuck, err := topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}, OnEnd: func(r EndReason) { reasons = append(reasons, r) }})
		if err != nil {
			t.Fatal(err)
		}
		defer stuck.Close()
		take(s, 1)
		publish(t, topic, 1) // fills s again, and half fills stuck
		take(s, 1)
		publish(t, topic, 1)                    // fills both
		roomy, _ := subscribe(t, topic, From{}) // takes nothing either, but has space
		take(s, 1)

		p := publishAsync(t.Context(), topic, smallFrame(1), -1)
		time.Sleep(9 * time.Second)
		p.wantWaiting(t)
		time.Sleep(2 * time.Second)
		p.want(t, 4)
		if len(reasons) != 1 || reasons[0] != EndStalled || h.Stats().Stalled != 1 {
			t.Errorf("ended for %v, %d stalled", reasons, h.Stats().Stalled)
		}
		// s trickles: each take lets one publish through, and none of them ends it.
		for i := range 20 {
			p = publishAsync(t.Context(), topic, smallFrame(1), -1)
			p.wantWaiting(t)
			time.Sleep(time.Second)
			take(s, 1)
			drain(roomy)
			p.want(t, uint64(5+i))
		}
		if n := topic.Stats().Subscriptions; n != 2 || h.Stats().Stalled != 1 {
			t.Errorf("%d subscriptions left, %d stalled, want 2 and 1", n, h.Stats().Stalled)
		}
		have, ended := drain(stuck)
		wantGot(t, have, got{2, 1, 0, 0}, got{3, 1, 0, 0})
		if !ended {
			t.Error("the stalled subscription did not end")
		}
	})
}

// Several stalled subscriptions end together, not one after the other.
func TestStalledSubscriptionsEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{StallTimeout: 10 * time.Second})
		topic := h.Register(testKey, noReplay(ring.Block, 1))
		for range 10 {
			subscribe(t, topic, From{})
		}
		publish(t, topic, 1)
		p := publishAsync(t.Context(), topic, smallFrame(1), -1)
		time.Sleep(11 * time.Second)
		p.want(t, 1)
		if h.Stats().Stalled != 10 {
			t.Errorf("%d ended, want 10", h.Stats().Stalled)
		}
	})
}

// Publishes that are refused count as well as one that waits: a publisher that is asked to come back must not keep a
// stalled subscription alive.
func TestStallTimeCountsRefusals(t *testing.T) {
	h := testHub(t, Options{StallTimeout: 10 * sweepEvery})
	topic := h.Register(testKey, noReplay(ring.Block, 1))
	subscribe(t, topic, From{})
	publish(t, topic, 1)
	for range 20 {
		h.sweep()
	}
	if h.Stats().Stalled != 0 {
		t.Fatal("ended although nobody publishes")
	}
	f := smallFrame(1)
	defer f.Release()
	refused := 0
	for ; refused < 100; refused++ {
		if _, err := topic.Publish(t.Context(), f, 0); err == nil {
			break
		} else if !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
		h.sweep()
		h.sweep() // nobody publishes in between
	}
	if refused != 10 || h.Stats().Stalled != 1 {
		t.Errorf("ended after %d refusals in as many sweeps, %d stalled, want 10 and 1", refused, h.Stats().Stalled)
	}
}

// A consumer that reads replay is not stuck, though it takes nothing from its queue.
func TestBacklogIsMovement(t *testing.T) {
	h := testHub(t, Options{StallTimeout: 4 * sweepEvery})
	// Replay holds just these: one more event would push out what the consumer has not read.
	topic := h.Register(testKey, Policy{Overflow: ring.Block, QueueItems: 1, ReplayBytes: 21 * (64 + frameOverhead)})
	for range 20 {
		publishFrame(t, topic, frameIn(64<<10, 64, 1, 0))
	}
	s, _ := subscribe(t, topic, From{Earliest: true})
	publishFrame(t, topic, frameIn(64<<10, 64, 1, 0))
	f := frameIn(64<<10, 64, 1, 0)
	defer f.Release()
	for i := range 20 {
		for range 3 {
			if _, err := topic.Publish(t.Context(), f, 0); !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
			h.sweep()
		}
		have, _ := take(s, 1)
		wantGot(t, have, got{uint64(i), 1, 0, 0})
		publishFrame(t, topic, frameIn(64<<10, 64, 1, 0)) // what was read may go
	}
	if h.Stats().Stalled != 0 {
		t.Error("ended as stalled")
	}
}

// The sweep runs by itself while there is something to look at, stops when there is not, and starts again.
func TestSweeperRunsWhenNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{StallTimeout: time.Second})
		topic := h.Register(testKey, noReplay(ring.Block, 1))
		for round := range 3 {
			time.Sleep(time.Minute)
			s, _ := subscribe(t, topic, From{})
			publish(t, topic, 1)
			p := publishAsync(t.Context(), topic, smallFrame(1), -1)
			time.Sleep(2 * time.Second)
			p.want(t, uint64(2*round+1))
			s.Close()
			if h.Stats().Stalled != uint64(round+1) {
				t.Fatalf("round %d: %d stalled", round, h.Stats().Stalled)
			}
		}
	})
}

func TestTicksDriveTheSweep(t *testing.T) {
	ticks := make(chan time.Time)
	h := testHub(t, Options{Ticks: ticks, StallTimeout: 5 * sweepEvery})
	topic := h.Register(testKey, noReplay(ring.Block, 1))
	ended := make(chan EndReason, 1)
	s, err := topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}, OnEnd: func(r EndReason) { ended <- r }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	publish(t, topic, 1)
	done := make(chan error)
	go func() {
		f := smallFrame(1)
		_, err := topic.Publish(context.Background(), f, -1)
		f.Release()
		done <- err
	}()
	for {
		select {
		case ticks <- time.Time{}:
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if r := <-ended; r != EndStalled {
				t.Errorf("ended for %v", r)
			}
			return
		}
	}
}
