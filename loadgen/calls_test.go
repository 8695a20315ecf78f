package loadgen

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A call that nobody is free for waits, and the time counts: two callers that take 10 ms each keep up with 200 calls per
// second. While one of them stands still for 95 ms, the other can make half of what is due.
func TestOpenLoopOfCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		l := callLoad{
			workers: 2, rate: 200, warmup: 100 * time.Millisecond, duration: time.Second, tags: []string{"a", "b"},
			alarm: func(ctx context.Context) alarm { return timerAlarm{ctx} },
		}
		lock := make(chan struct{}, 1)
		l.call = func(context.Context, int) (called, error) {
			lock <- struct{}{}
			calls++
			n := calls
			<-lock
			took := 10 * time.Millisecond
			if n == 101 {
				took = 95 * time.Millisecond
			}
			time.Sleep(took)
			return called{kind: n % 2, took: took, keys: 2, hits: 1}, nil
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
			for err == nil && r.Connections == 0 { // a slow machine
				cfg.Duration *= 2
				r, err = RunConnect(t.Context(), cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Rate > 0 && r.Connections != int64(cfg.Rate*cfg.Duration.Seconds()) {
				t.Errorf("%d connections in %v", r.Connections, cfg.Duration)
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
