package loadgen

import (
	"bytes"
	"context"
	"errors"
	"math"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

// mapStore is a cache whose puts take 2 ms, and gets 1.
type mapStore struct {
	mu     sync.Mutex
	values map[string]int // their lengths
	asked  map[string]int // gets of each key
	ttl    time.Duration  // of the last put
}

func newMapStore() *mapStore { return &mapStore{values: map[string]int{}, asked: map[string]int{}} }

func (s *mapStore) Put(_ context.Context, key string, value []byte, ttl time.Duration) error {
	time.Sleep(2 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key], s.ttl = len(value), ttl
	return nil
}

func (s *mapStore) Get(_ context.Context, keys []string) (hits int, err error) {
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.asked[k]++
		if _, ok := s.values[k]; ok {
			hits++
		}
	}
	return hits, nil
}

// cacheLoad is a run that begins and ends between the milliseconds at which calls do.
func cacheLoad(change func(*CacheConfig)) CacheConfig {
	cfg := DefaultCacheConfig()
	cfg.Warmup, cfg.Duration = 100*time.Millisecond+500*time.Microsecond, time.Second
	cfg.Concurrency, cfg.Keys = 4, 64
	change(&cfg)
	return cfg
}

func runOn(t *testing.T, store CacheStore, cfg CacheConfig) *CacheResult {
	t.Helper()
	r, err := RunCacheOn(t.Context(), cfg, store)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Every call that ends within the measured time counts to the rate, and those that are under way at its end are waited
// for: each of the four callers has one. The time is synctest's.
func TestCacheCounts(t *testing.T) {
	for name, tc := range map[string]struct {
		change           func(*CacheConfig)
		puts, gets, hits int64 // keys
	}{
		"gets":     {func(c *CacheConfig) { c.GetRatio = 1 }, 0, 4 * 1001, 4 * 1001},
		"pipeline": {func(c *CacheConfig) { c.GetRatio, c.Pipeline = 1, 16 }, 0, 4 * 1001 * 16, 4 * 1001 * 16},
		"absent":   {func(c *CacheConfig) { c.GetRatio, c.Absent = 1, true }, 0, 4 * 1001, 0},
		"puts":     {func(c *CacheConfig) { c.GetRatio, c.Pipeline = 0, 16 }, 4 * 501, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := cacheLoad(tc.change)
				r := runOn(t, newMapStore(), cfg)
				if r.Put.Keys != tc.puts || r.Get.Keys != tc.gets || r.Get.Hits != tc.hits || r.All.Hits != tc.hits || r.Put.Hits != 0 {
					t.Errorf("got %+v", r)
				}
				checkSums(t, cfg, r)
				if strings.Contains(r.Load(), "lifetime") {
					t.Errorf("a load without a lifetime is called %s", r.Load())
				}
				last := float64(4 * max(int(tc.gets/(4*1001)), 1)) // keys of the calls that ended later
				if r.Seconds != 1 || r.All.Rate != float64(tc.puts+tc.gets)-last {
					t.Errorf("%v keys/s in %v s", r.All.Rate, r.Seconds)
				}
				for us, l := range map[float64]Latency{2000: r.Put.Latency, 1000: r.Get.Latency} {
					if l.Samples > 0 && (math.Abs(l.P50-us) > us/500 || math.Abs(l.Max-us) > us/500) {
						t.Errorf("calls of %v us: got %+v", us, l)
					}
				}
			})
		})
	}
}

// checkSums checks what holds for every result.
func checkSums(t *testing.T, cfg CacheConfig, r *CacheResult) {
	t.Helper()
	if r.All.Calls != r.Put.Calls+r.Get.Calls || r.All.Keys != r.Put.Keys+r.Get.Keys || r.All.Latency.Samples != r.All.Calls ||
		r.Put.Keys != r.Put.Calls || r.Get.Keys != r.Get.Calls*int64(cfg.Pipeline) || r.Get.Hits > r.Get.Keys {
		t.Errorf("counts do not add up: %+v", r)
	}
}

func TestCacheMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMapStore()
		cfg := cacheLoad(func(c *CacheConfig) { c.GetRatio, c.Zipf, c.Value, c.TTL = 0.75, 1.5, 100, time.Minute })
		r := runOn(t, store, cfg)
		if ratio := float64(r.Get.Calls) / float64(r.All.Calls); math.Abs(ratio-0.75) > 0.04 {
			t.Errorf("%v of %d calls were gets, want 0.75", ratio, r.All.Calls)
		}
		checkSums(t, cfg, r)
		if !strings.HasSuffix(r.Load(), ", lifetime 1m0s") {
			t.Errorf("a load with a lifetime is called %s", r.Load())
		}
		if len(store.values) != cfg.Keys || store.values["key-63"] != 100 || store.ttl != time.Minute {
			t.Errorf("%d keys, values of %d bytes for %v", len(store.values), store.values["key-63"], store.ttl)
		}
		// With this exponent the first of 64 keys gets over 40 % of all calls, each key 1.6 % without.
		if first := store.asked["key-0"]; first*3 < int(r.Get.Keys) {
			t.Errorf("the most popular key was asked for in %d of %d gets", first, r.Get.Keys)
		}
		var text bytes.Buffer
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if lines := regexp.MustCompile(`(?m)^(put|get|all): n=\d+ p50=\d+us .* throughput=\d+ ops/s hits=\d+$`).FindAllString(text.String(), -1); len(lines) != 3 {
			t.Errorf("got %s", &text)
		}
	})
}

// failing is a cache that fails from some call on.
type failing struct {
	*mapStore
	puts int // that succeed
}

var errBroken = errors.New("broken")

func (f *failing) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	f.mu.Lock()
	f.puts--
	left := f.puts
	f.mu.Unlock()
	if left < 0 {
		return errBroken
	}
	return f.mapStore.Put(ctx, key, value, ttl)
}

// A call that fails ends the run for all callers.
func TestCacheFails(t *testing.T) {
	for name, tc := range map[string]struct {
		puts int
		want string
	}{
		"storing": {10, "storing key-"},
		"running": {100, "cache: broken"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				r, err := RunCacheOn(t.Context(), cacheLoad(func(c *CacheConfig) { c.Duration = time.Hour }), &failing{newMapStore(), tc.puts})
				if r != nil || !errors.Is(err, errBroken) || !strings.Contains(err.Error(), tc.want) || time.Since(began) > time.Minute {
					t.Errorf("got %+v, %v after %v", r, err, time.Since(began))
				}
			})
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := RunCacheOn(ctx, cacheLoad(func(c *CacheConfig) { c.Duration = time.Hour }), newMapStore()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCacheValidate(t *testing.T) {
	valid := DefaultCacheConfig()
	if err := valid.Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	for want, change := range map[string]func(*CacheConfig){
		"get ratio -0.1":   func(c *CacheConfig) { c.GetRatio = -0.1 },
		"get ratio 1.1":    func(c *CacheConfig) { c.GetRatio = 1.1 },
		"get ratio NaN":    func(c *CacheConfig) { c.GetRatio = math.NaN() },
		"0 keys":           func(c *CacheConfig) { c.Keys = 0 },
		"exponent 1 ":      func(c *CacheConfig) { c.Zipf = 1 },
		"exponent NaN":     func(c *CacheConfig) { c.Zipf = math.NaN() },
		"-1 bytes":         func(c *CacheConfig) { c.Value = -1 },
		"16777216 bytes":   func(c *CacheConfig) { c.Value = 16 << 20 },
		"concurrency 0":    func(c *CacheConfig) { c.Concurrency = 0 },
		"pipeline of 0":    func(c *CacheConfig) { c.Pipeline = 0 },
		"pipeline of 6553": func(c *CacheConfig) { c.Pipeline = 65536 },
		"warm-up -1ns":     func(c *CacheConfig) { c.Warmup = -1 },
		"lifetime -1s":     func(c *CacheConfig) { c.TTL = -time.Second },
		"duration 0s":      func(c *CacheConfig) { c.Duration = 0 },
		"0 connections":    func(c *CacheConfig) { c.Conns = 0 },
		"0 streams":        func(c *CacheConfig) { c.Streams = 0 },
		"3 processes":      func(c *CacheConfig) { c.Processes = 3 },
		"rate NaN":         func(c *CacheConfig) { c.Rate = math.NaN() },
		"interval -1ns":    func(c *CacheConfig) { c.Interval = -1 },
	} {
		cfg := DefaultCacheConfig()
		change(&cfg)
		if r, err := RunCacheOn(t.Context(), cfg, newMapStore()); r != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %+v, %v, want %q in it", r, err, want)
		}
	}
	err := (&CacheConfig{}).Validate()
	if n := strings.Count(err.Error(), "\n") + 1; n != 6 {
		t.Errorf("%d problems, want 6:\n%v", n, err)
	}
}

// runBriefly runs a load for as long as it takes to have calls.
func runBriefly(t *testing.T, cfg CacheConfig) *CacheResult {
	t.Helper()
	cfg.Warmup = time.Millisecond
	for cfg.Duration = 25 * time.Millisecond; ; cfg.Duration *= 2 {
		r, err := RunCache(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if r.All.Rate > 0 && (r.Get.Calls > 0 || cfg.GetRatio == 0) {
			return r
		}
	}
}

func TestCacheEndToEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*CacheConfig)
		hits   bool // every get, or none
	}{
		"default":       {func(*CacheConfig) {}, true},
		"pipeline":      {func(c *CacheConfig) { c.Pipeline = 16 }, true},
		"json":          {func(c *CacheConfig) { c.JSON = true }, true},
		"json pipeline": {func(c *CacheConfig) { c.JSON, c.Pipeline = true, 16 }, true},
		"absent":        {func(c *CacheConfig) { c.GetRatio, c.Absent, c.Pipeline = 1, true, 4 }, false},
		"no expiry":     {func(c *CacheConfig) { c.TTL = 0 }, true},
		"puts":          {func(c *CacheConfig) { c.GetRatio, c.Value = 0, 4096 }, true},
		"large, zipf":   {func(c *CacheConfig) { c.Value, c.Keys, c.Zipf = 32<<10, 16, 1.1 }, true},
		"connections":   {func(c *CacheConfig) { c.Conns, c.Streams, c.Spin = 3, 2, 50*time.Microsecond }, true},
		"two processes": {func(c *CacheConfig) { c.Processes = 2 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultCacheConfig()
			tc.change(&cfg)
			r := runBriefly(t, cfg)
			checkSums(t, cfg, r)
			want := int64(0)
			if tc.hits {
				want = r.Get.Keys
			}
			if r.Get.Hits != want || r.Seconds <= 0 || r.All.Rate <= 0 || r.All.Latency.P50 <= 0 {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// A broker that is there is loaded, and outlives the run.
func TestCacheTarget(t *testing.T) {
	dev, err := broker.NewDev(broker.Config{Bind: "127.0.0.1:0"}, broker.DevOptions{Cache: "sessions"})
	if err != nil {
		t.Fatal(err)
	}
	defer serve(t, dev)()
	cfg := DefaultCacheConfig()
	cfg.Target = &Target{
		Addr: dev.Addr().String(), Tenant: dev.Tenant, Namespace: dev.Namespace, Stream: "sessions", Token: dev.Token, TLS: dev.ClientTLS(),
	}
	if r := runBriefly(t, cfg); r.Get.Hits != r.Get.Keys {
		t.Errorf("got %+v", r)
	}
	cfg.Target.Stream = "nosuch"
	var refused *client.BrokerError
	if r, err := RunCache(t.Context(), cfg); r != nil || !errors.As(err, &refused) {
		t.Errorf("a cache that is not there: got %+v, %v", r, err)
	}
}

func TestCacheTable(t *testing.T) {
	cfg := DefaultCacheConfig()
	cfg.Warmup, cfg.Duration, cfg.GetRatio = time.Millisecond, 10*time.Millisecond, 0.5
	var out strings.Builder
	if err := CacheTable(t.Context(), cfg, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	want := []string{
		`\| Op \| Payload \| p50 \| p99 \| ops/s \|`, `\|---\|--:\|--:\|--:\|--:\|`,
		`\| put \| 0 B `, `\| put \| 256 B `, `\| put \| 4 KiB `, `\| get hit \| 256 B `, `\| get miss \| – `,
	}
	if len(lines) != len(want) {
		t.Fatalf("got %s", out.String())
	}
	for i, w := range want {
		if i >= 2 {
			w += `\| \d+ µs \| \d+ µs \| \d+ k \|`
		}
		if !regexp.MustCompile("^" + w + "$").MatchString(lines[i]) {
			t.Errorf("line %q, want %s", lines[i], w)
		}
	}
	cfg.Keys = 0
	if err := CacheTable(t.Context(), cfg, &out); err == nil {
		t.Error("a table of no keys was made")
	}
}
