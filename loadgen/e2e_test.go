package loadgen

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/ring"
)

// small makes the parts that are the same in all runs here.
func small(cfg Config) Config {
	if cfg.Payload == 0 {
		cfg.Payload = 128
	}
	cfg.Warmup = time.Millisecond
	cfg.IdleTimeout = time.Minute // no run may depend on how fast the machine is
	return cfg
}

func mustRun(t *testing.T, cfg Config) *Result {
	t.Helper()
	res, err := Run(t.Context(), small(cfg))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestLossless(t *testing.T) {
	for name, cfg := range map[string]Config{
		"one":            {Batch: 8, Window: 2, Total: 1003},
		"several":        {Fanout: 12, Conns: 3, Batch: 8, Window: 4, Total: 2048},
		"closed loop":    {Fanout: 3, Batch: 1, Window: 1, Total: 200},
		"json":           {Fanout: 2, Batch: 8, Window: 2, Total: 1000, Kind: JSON},
		"topics":         {Topics: 3, Fanout: 2, Batch: 8, Window: 2, Total: 3000},
		"publishers":     {Publishers: 3, Fanout: 2, Batch: 8, Window: 2, Total: 3000},
		"crossed":        {Topics: 2, Publishers: 2, Streams: 2, Fanout: 2, Batch: 4, Rate: 40_000, Total: 4003},
		"two processes":  {Topics: 2, Fanout: 4, Batch: 8, Window: 2, Total: 2000, Processes: 2},
		"rate":           {Fanout: 3, Batch: 4, Rate: 20_000, Total: 2002},
		"rate, duration": {Fanout: 3, Batch: 4, Rate: 20_000, Duration: 100 * time.Millisecond},
		"unbounded":      {Payload: 64 << 10, Batch: 16, Window: Unbounded, Total: 32 * transportBytes / (64 << 10)},
	} {
		t.Run(name, func(t *testing.T) {
			res := mustRun(t, cfg)
			want := uint64(cfg.Total)
			if want == 0 {
				want = 2000
			}
			fanout := uint64(max(cfg.Fanout, 1))
			if res.Published != want || res.Delivered != want*fanout || res.Expected != want*fanout || res.Unaccounted != 0 || res.Dropped != 0 {
				t.Errorf("got %+v", res)
			}
			l := res.Latency
			if l.Samples != int64(res.Delivered) || l.Clamped != 0 || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
				t.Errorf("latency %+v", l)
			}
			if res.Seconds <= 0 || res.DeliveredPerSecond <= 0 || res.DeliveredBytesPerSecond <= 0 || res.PublishedPerSecond <= 0 {
				t.Errorf("got %+v", res)
			}
			if res.Broker.Policy != "block" || res.Broker.DroppedEvents != 0 {
				t.Errorf("broker %+v", res.Broker)
			}
			if (res.SendLag != nil) != (cfg.Rate > 0) {
				t.Errorf("send lag %+v at rate %v", res.SendLag, cfg.Rate)
			}
		})
	}
}

func TestSlowSubscriptions(t *testing.T) {
	for name, tc := range map[string]struct {
		processes int
		mode      SlowMode
	}{"embedded": {1, Trickle}, "two processes": {2, Stop}} {
		t.Run(name, func(t *testing.T) {
			// 32 MiB for each: the queue of a slow subscription and the windows on its way hold less than 6. What
			// trickles is 5 events a second, which is little however long a slow machine takes.
			res := mustRun(t, Config{
				Fanout: 2, SlowSubs: 2, Conns: 2, Payload: 16 << 10, Batch: 1, Window: 64, Total: 2048, Processes: tc.processes,
				SlowMode: tc.mode,
			})
			if res.Delivered != 4096 || res.Unaccounted != 0 || res.Broker.Policy != "drop_new" {
				t.Errorf("got %+v", res)
			}
			if res.Broker.DroppedEvents < 1000 {
				t.Errorf("the broker dropped %d events", res.Broker.DroppedEvents)
			}
			var dropped uint64
			for _, i := range res.Intervals {
				dropped += i.Dropped
			}
			i := res.Intervals[len(res.Intervals)-1]
			if dropped == 0 || dropped > res.Broker.DroppedEvents || i.Process.Goroutines == 0 || i.Process.Heap == 0 {
				t.Errorf("%d events were dropped in all intervals, of which the last is %+v", dropped, i)
			}
			if (i.Server != nil) != (tc.processes == 2) || (i.Server != nil && i.Server.Goroutines == 0) {
				t.Errorf("the broker's process: %+v", i.Server)
			}
		})
	}
}

// lossy is a run against queues that drop whenever a writer is not there in time, in an open loop that is over at
// once: most likely, some of it is lost.
func lossy() Config {
	cfg := small(Config{Fanout: 4, Batch: 4, Payload: 1024, Rate: 1e9, Total: 1 << 14})
	cfg.Tune = func(cfg *broker.Config) error {
		cfg.QueuePolicy = ring.DropNew
		cfg.QueueCapacity = DefaultWindow // what is in flight in the warm-up
		return nil
	}
	return cfg
}

func TestAllowDropsOverTheWire(t *testing.T) {
	cfg := lossy()
	cfg.AllowDrops = true
	res := mustRun(t, cfg)
	if res.Expected != res.Delivered+res.Dropped || res.Unaccounted != 0 {
		t.Errorf("got %+v", res)
	}
	if res.Broker.DroppedEvents < res.Dropped { // those of the warm-up are not in the result
		t.Errorf("the broker says that it dropped %d, missing are %d", res.Broker.DroppedEvents, res.Dropped)
	}
	t.Logf("dropped %d of %d", res.Dropped, res.Expected)
}

// Queues that drop fail a run that must not lose anything, with the exact number.
func TestUnaccounted(t *testing.T) {
	res, err := Run(t.Context(), lossy())
	var lost *UnaccountedError
	switch {
	case errors.As(err, &lost):
		if lost.Unaccounted() != res.Unaccounted || res.Unaccounted == 0 || res.Expected != res.Delivered+res.Unaccounted {
			t.Errorf("%v, result %+v", err, res)
		}
	case err != nil:
		if !strings.Contains(err.Error(), "during the warm-up") {
			t.Error(err)
		}
	case res.Unaccounted != 0:
		t.Errorf("no error, result %+v", res)
	}
	t.Log(err)
}

// A run ends at once with its context, in every phase.
func TestCancel(t *testing.T) {
	cause := errors.New("enough")
	for name, phase := range map[string]func(Progress) bool{
		"warm-up":     func(p Progress) bool { return p.WarmingUp },
		"measurement": func(p Progress) bool { return !p.WarmingUp && p.Delivered > 0 },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var reached atomic.Bool
			cfg := Config{Fanout: 2, Duration: time.Hour, Warmup: time.Hour, Observer: Observer{Progress: func(p Progress) {
				if phase(p) {
					reached.Store(true)
					cancel(cause)
				}
			}}}
			if name != "warm-up" {
				cfg.Warmup = 1
			}
			if res, err := Run(ctx, cfg); !errors.Is(err, cause) || res != nil || !reached.Load() {
				t.Errorf("got %+v, %v", res, err)
			}
		})
	}
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		for _, processes := range []int{1, 2} {
			if _, err := Run(ctx, Config{Processes: processes}); err == nil {
				t.Error("a run whose context has ended began")
			}
		}
	})
}

func TestTooSmall(t *testing.T) {
	cfg := small(Config{Payload: 64 << 10, Duration: time.Nanosecond})
	var small *TooSmallError
	if res, err := Run(t.Context(), cfg); !errors.As(err, &small) || res != nil {
		t.Errorf("got %+v, %v", res, err)
	}
}

func TestTarget(t *testing.T) {
	dev, err := broker.NewDev(broker.Config{Bind: "127.0.0.1:0"}, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer serve(t, dev)()
	target := func() *Target {
		return &Target{
			Addr: dev.Addr().String(), Tenant: dev.Tenant, Namespace: dev.Namespace, Stream: "demo", Token: dev.Token, TLS: dev.ClientTLS(),
		}
	}
	t.Run("works", func(t *testing.T) {
		res := mustRun(t, Config{Target: target(), Fanout: 2, Batch: 8, Window: 2, Total: 1000})
		if res.Unaccounted != 0 || res.Broker.Kind != "external" {
			t.Errorf("got %+v", res)
		}
	})
	for name, tc := range map[string]struct {
		spoil func(*Target)
		want  string
	}{
		"stream":      {func(t *Target) { t.Stream = "nosuch" }, "not found"},
		"token":       {func(t *Target) { t.Token += "x" }, "authentication failed"},
		"certificate": {func(t *Target) { t.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost"} }, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := target()
			tc.spoil(bad)
			if _, err := Run(t.Context(), small(Config{Target: bad})); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestTuneFails(t *testing.T) {
	wrong := errors.New("wrong")
	if _, err := Run(t.Context(), Config{Tune: func(*broker.Config) error { return wrong }}); !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
}

// A client that is there can be loaded, with batches that are acknowledged, and stays open.
func TestOnClient(t *testing.T) {
	cfg := small(Config{Topics: 3, Fanout: 2, Batch: 4, Rate: 4000, Duration: 100 * time.Millisecond, Acked: true})
	dev, err := newDev(must(brokerConfig(ring.Block, nil)), cfg.Topics)
	if err != nil {
		t.Fatal(err)
	}
	defer serve(t, dev)()
	c, err := client.Connect(t.Context(), dev.Addr().String(), client.WithTLS(dev.ClientTLS()), client.WithToken(dev.Tenant, dev.Token))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		res, err := RunOn(t.Context(), cfg, OnClient(c, dev.Namespace, stream+"-0", stream+"-1", stream+"-2"))
		if err != nil {
			t.Fatal(err)
		}
		if res.Delivered == 0 || res.Delivered != res.Expected || res.LongestPublish <= 0 || res.Config.Broker != "other" {
			t.Errorf("got %+v", res)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// serve has a broker serve until the returned function is called.
func serve(t *testing.T, dev *broker.Dev) (stop func()) {
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }()
	return func() {
		if _, err := shutDown(dev, served); err != nil {
			t.Error(err)
		}
	}
}
