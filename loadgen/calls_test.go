package loadgen

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A call that nobody is free for waits, and the time counts: two callers that take 10 ms each keep up with 200 calls
// per second. While one of them stands still for 95 ms, the other can make half of what is due.
func TestOpenLoopOfCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		l := callLoad{
			workers: 2, rate: 200, warmup: 100 * time.Millisecond, duration: time.Second, kinds: []callShare{{"a", 0.5}, {"b", 0.5}},
			alarm: func(ctx context.Context) alarm { return timerAlarm{ctx} },
		}
		lock := make(chan struct{}, 1)
		numbers := make([]int, l.workers) // of the worker's call
		l.next = func(worker int) int {
			lock <- struct{}{}
			calls++
			n := calls
			<-lock
			numbers[worker] = n
			return n % 2
		}
		l.call = func(_ context.Context, worker, _ int) (called, error) {
			took := 10 * time.Millisecond
			if numbers[worker] == 101 {
				took = 95 * time.Millisecond
			}
			time.Sleep(took)
			return called{took: took, keys: 2, hits: 1}, nil
		}
		var tags []string
		l.observer.Interval = 250*time.Millisecond + time.Microsecond
		l.observer.OnInterval = func(h *hdrhistogram.Histogram) { tags = append(tags, h.Tag()) }
		var last Progress
		var remaining time.Duration
		l.observer.Progress = func(p Progress) { last, remaining = p, max(remaining, p.Remaining) }
		r, err := l.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := r.kinds[0].lat.histogram().TotalCount() + r.kinds[1].lat.histogram().TotalCount(); n != 200 || r.kinds[0].keys != 200 || r.kinds[1].hits != 100 {
			t.Errorf("%d calls measured, want 200: %+v", n, r.kinds)
		}
		if calls != 220 {
			t.Errorf("%d calls made, want 220", calls)
		}
		longest := max(r.kinds[0].lat.histogram().Max(), r.kinds[1].lat.histogram().Max())
		if r.late == 0 || longest < 95e6 || longest > 96e6 {
			t.Errorf("%d late calls, longest %v ns", r.late, longest)
		}
		if len(r.Intervals) != 5 || len(tags) != 10 || strings.Join(tags[:2], " ") != "a b" {
			t.Errorf("%d intervals, tags %v", len(r.Intervals), tags)
		}
		if last.WarmingUp || last.Delivered == 0 || remaining < l.duration/2 || last.P99 == 0 {
			t.Errorf("last progress %v, longest time to go %v", last, remaining)
		}
	})
}

// stuck is a call that takes a millisecond, and one that begins in the time between from and until has no answer before
// until, if that is not 0, or ever. It heeds its context unless it is deaf.
type stuck struct {
	base        time.Time
	from, until time.Duration
	deaf        bool
	release     chan struct{} // ends deaf calls
}

func (s *stuck) call(ctx context.Context, _, _ int) (called, error) {
	began := time.Now()
	wait := time.Millisecond
	at := began.Sub(s.base)
	switch {
	case at < s.from || s.until > 0 && at >= s.until:
	case s.until > 0:
		wait += s.until - at
	default:
		wait = 1000 * time.Hour
	}
	heard := ctx.Done()
	if s.deaf {
		heard = nil
	}
	select {
	case <-time.After(wait):
		return called{took: time.Since(began), keys: 1}, nil
	case <-heard:
		return called{}, context.Cause(ctx)
	case <-s.release:
		return called{}, context.Canceled
	}
}

// Who waits in vain counts with the time of waiting, and the run ends on time. The time is synctest's.
func TestCallsWithoutAnswer(t *testing.T) {
	const second = time.Second
	for name, tc := range map[string]struct {
		load             callLoad
		stuck            stuck
		ended            int64
		hung, notBegun   int64
		longest, took    time.Duration
		reachTheHalfLine bool // the median is that of hung calls
	}{
		// 4 callers make 1000 calls of 1 ms each, and the last one waits for 1.5 s, half a second beyond the end.
		"answers after the end": {
			load: callLoad{workers: 4, duration: 2 * second}, stuck: stuck{from: second, until: 2500 * time.Millisecond},
			ended: 4 * 1001, longest: 1501 * time.Millisecond, took: 2501 * time.Millisecond,
		},
		"no answer any more": {
			load: callLoad{workers: 4, duration: 2 * second}, stuck: stuck{from: second},
			ended: 4 * 1000, hung: 4, longest: 2 * second, took: 3 * second,
		},
		"no answer, and deaf": {
			load: callLoad{workers: 4, duration: 2 * second}, stuck: stuck{from: second, deaf: true},
			ended: 4 * 1000, hung: 4, longest: 2 * second, took: 4 * second, // with leaveTime
		},
		"since the warm-up": {
			load: callLoad{workers: 4, warmup: second, duration: 2 * second}, stuck: stuck{from: second / 2},
			hung: 4, longest: 3500 * time.Millisecond, took: 4 * second, reachTheHalfLine: true,
		},
		// From 1 s on each caller waits for half a second and tries again.
		"timeout": {
			load: callLoad{workers: 4, duration: 2 * second, timeout: second / 2}, stuck: stuck{from: second},
			ended: 4 * 1000, hung: 4 * 2, longest: second / 2, took: 2*second + 0,
		},
		// 100 calls per second are due for 2 s. From 1 s on the four callers hang, and nobody begins the other 96.
		"open loop": {
			load: callLoad{workers: 4, rate: 100, duration: 2 * second}, stuck: stuck{from: second},
			ended: 100, hung: 4, notBegun: 96, longest: 2 * second, took: 3 * second,
		},
		"very many not begun": {
			load: callLoad{workers: 1, rate: 1e6, duration: 2 * second}, stuck: stuck{},
			hung: 1, notBegun: 2e6 - 1, longest: 3 * second, took: 3 * second, reachTheHalfLine: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, s := tc.load, tc.stuck
				s.base, s.release = time.Now(), make(chan struct{})
				defer close(s.release)
				l.kinds, l.next, l.call = []callShare{{"a", 0.25}, {"b", 0.75}}, func(int) int { return 1 }, s.call
				l.alarm = func(ctx context.Context) alarm { return timerAlarm{ctx} }
				r, err := l.run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(s.base); took < tc.took || took > tc.took+l.timeout/4 {
					t.Errorf("the run took %v, want %v", took, tc.took)
				}
				a, b := &r.kinds[0], &r.kinds[1]
				if b.ended != tc.ended || a.hung+b.hung != tc.hung || a.notBegun+b.notBegun != tc.notBegun || b.keys != tc.ended {
					t.Errorf("%d ended, %d hung, %d not begun", b.ended, a.hung+b.hung, a.notBegun+b.notBegun)
				}
				if off := a.notBegun - tc.notBegun/4; off < -1 || off > 1 {
					t.Errorf("%d of %d calls that were not begun are of the kind that is a quarter", a.notBegun, tc.notBegun)
				}
				all := newLatencies()
				all.merge(&a.lat)
				all.merge(&b.lat)
				h := all.histogram()
				if n := h.TotalCount(); n != tc.ended+tc.hung+tc.notBegun {
					t.Errorf("%d latencies", n)
				}
				if longest := time.Duration(h.Max()); longest < tc.longest*999/1000 || longest > (tc.longest+l.timeout/4)*1001/1000 {
					t.Errorf("the longest is %v, want %v", longest, tc.longest)
				}
				if half := time.Duration(h.ValueAtPercentile(50)); (half >= second) != tc.reachTheHalfLine {
					t.Errorf("the median is %v", half)
				}
				if r.seconds != l.duration.Seconds() {
					t.Errorf("%v s", r.seconds)
				}
			})
		})
	}
}

// Workers, the timeout and the end of the run meet in any order, and each call is counted once, as what it came to.
func TestCallsAreCountedOnce(t *testing.T) {
	var begun, answered atomic.Int64
	l := callLoad{
		workers: 16, duration: 300 * time.Millisecond, timeout: 2 * time.Millisecond, kinds: []callShare{{"a", 0.5}, {"b", 0.5}}, alarm: newAlarm,
		next: func(int) int { return int(begun.Add(1) % 2) },
	}
	l.call = func(ctx context.Context, worker, _ int) (called, error) {
		began := time.Now()
		var timer <-chan time.Time
		heard := ctx.Done()
		switch n := rand.IntN(100); {
		case n < 2: // hangs
		case n < 10: // about as long as the timeout, deaf or not
			timer = time.After(time.Duration(rand.IntN(4)) * time.Millisecond)
			if n%2 == 0 {
				heard = nil
			}
		default:
			timer = time.After(time.Duration(rand.IntN(100)) * time.Microsecond)
		}
		select {
		case <-timer:
			answered.Add(1)
			return called{took: time.Since(began), keys: 1}, nil
		case <-heard:
			return called{}, context.Cause(ctx)
		}
	}
	r, err := l.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, hung := r.kinds[0].ended+r.kinds[1].ended, r.kinds[0].hung+r.kinds[1].hung
	if ended != answered.Load() || ended+hung != begun.Load() {
		t.Errorf("%d ended and %d hung of %d calls, of which %d had an answer", ended, hung, begun.Load(), answered.Load())
	}
	for i := range r.kinds {
		k := &r.kinds[i]
		if n := k.lat.histogram().TotalCount(); n != k.ended+k.hung || k.notBegun != 0 {
			t.Errorf("%d latencies of %d and %d calls, %d not begun", n, k.ended, k.hung, k.notBegun)
		}
	}
}

// A store whose calls are never answered fails the run instead of reporting a rate of nothing.
func TestCacheWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := cacheLoad(func(c *CacheConfig) { c.Absent, c.Timeout = true, 300*time.Millisecond })
		var none *NoAnswerError
		if r, err := RunCacheOn(t.Context(), cfg, silent{}); r != nil || !errors.As(err, &none) || none.Calls < 4 {
			t.Errorf("got %+v, %v", r, err)
		}
	})
}

// silent is a cache that does not answer.
type silent struct{}

func (silent) Put(ctx context.Context, _ string, _ []byte, _ time.Duration) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (silent) Get(ctx context.Context, _ []string) (int, error) {
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

// unsteady is a cache that answers every other get.
type unsteady struct {
	*mapStore
	n atomic.Int64
}

func (h *unsteady) Get(ctx context.Context, keys []string) (int, error) {
	if h.n.Add(1)%2 == 0 {
		return silent{}.Get(ctx, keys)
	}
	return h.mapStore.Get(ctx, keys)
}

// The result tells how many calls hung, and they are no hits.
func TestResultTellsOfHungCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := cacheLoad(func(c *CacheConfig) { c.GetRatio, c.Timeout = 1, 20*time.Millisecond })
		r := runOn(t, &unsteady{mapStore: newMapStore()}, cfg)
		if r.Get.Hung == 0 || r.All.Hung != r.Get.Hung || r.Get.Latency.Samples != r.Get.Calls+r.Get.Hung || r.Get.Hits != r.Get.Calls {
			t.Errorf("got %+v", r)
		}
		var text strings.Builder
		if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "\nhung: ") {
			t.Errorf("%v: %s", err, &text)
		}
	})
}

func TestConnect(t *testing.T) {
	for name, change := range map[string]func(*ConnectConfig){
		"closed loop":   func(c *ConnectConfig) { c.Concurrency = 2 },
		"open loop":     func(c *ConnectConfig) { c.Rate = 40 },
		"two processes": func(c *ConnectConfig) { c.Processes = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConnectConfig()
			cfg.Warmup, cfg.Duration = 0, 250*time.Millisecond
			change(&cfg)
			r, err := RunConnect(t.Context(), cfg)
			for err == nil && r.Rate == 0 { // a slow machine
				cfg.Duration *= 2
				r, err = RunConnect(t.Context(), cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := r.Connections + r.Hung + r.NotBegun; cfg.Rate > 0 && n != int64(cfg.Rate*cfg.Duration.Seconds()) {
				t.Errorf("%d attempts in %v", n, cfg.Duration)
			}
			if r.Rate <= 0 || r.Latency.P50 <= 0 || r.Seconds < cfg.Duration.Seconds() || r.Broker.PacketsSent == 0 {
				t.Errorf("got %+v", r)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "none failed") {
				t.Errorf("%v: %s", err, &text)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		cfg := DefaultConnectConfig()
		cfg.Target = &Target{
			Addr: "127.0.0.1:1", Tenant: "t1", Namespace: "default", Stream: "x", Token: "x", TLS: &tls.Config{MinVersion: tls.VersionTLS13},
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if r, err := RunConnect(ctx, cfg); err == nil {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("invalid", func(t *testing.T) {
		_, err := RunConnect(t.Context(), ConnectConfig{Rate: -1, Warmup: -1, Observer: Observer{Interval: -1}})
		if n := strings.Count(err.Error(), "\n") + 1; n != 5 {
			t.Errorf("%d problems, want 5:\n%v", n, err)
		}
	})
}
