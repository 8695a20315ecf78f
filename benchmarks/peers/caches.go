package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
)

// cacheShape is one load, for all caches the same.
type cacheShape struct {
	callers, keys int
}

var cacheShapes = []cacheShape{{1, 1}, {32, 1}, {32, 16}}

func (s cacheShape) String() string {
	switch {
	case s.keys > 1:
		return fmt.Sprintf("%d callers × %d keys", s.callers, s.keys)
	case s.callers == 1:
		return "1 caller"
	}
	return fmt.Sprintf("%d callers", s.callers)
}

// cacheSystem is a cache with a client.
type cacheSystem struct {
	name string
	run  func(context.Context, loadgen.CacheConfig) (*loadgen.CacheResult, error)
}

// runCaches measures all caches one after the other, for each shape and size of values, and prints one table.
func runCaches(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg := loadgen.DefaultCacheConfig()
	flags := program.Flags("peers cache", stderr)
	rounds := flags.Int("rounds", 3, "`runs` of each cache in each shape")
	flags.DurationVar(&cfg.Duration, "duration", 3*time.Second, "measured time of a run")
	flags.DurationVar(&cfg.Warmup, "warmup", cfg.Warmup, "time before that")
	flags.Float64Var(&cfg.GetRatio, "get-ratio", cfg.GetRatio, "part of the calls that are gets")
	procs := flags.Int("procs", 1, "GOMAXPROCS of the load, whichever client it has, and of Felix's broker; Redis executes commands on one thread anyway")
	spin := flags.Duration("spin", 100*time.Microsecond, "polling of Felix's client at one caller")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	var err error
	if *rounds < 1 || *procs < 1 || flags.NArg() > 0 {
		err = errors.New("want positive --rounds and --procs, and no arguments")
	}
	if err = errors.Join(err, cfg.Validate()); err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 2
	}
	cfg.Processes = 2
	debug.SetGCPercent(400) // of the load, whichever client it has
	runtime.GOMAXPROCS(*procs)
	if err := os.Setenv("GOMAXPROCS", strconv.Itoa(*procs)); err != nil { // of the broker
		fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	systems, closeAll, missing := cacheSystems(ctx, *spin)
	defer closeAll()
	for _, m := range missing {
		fmt.Fprintf(stdout, "Not measured: %s.\n\n", m)
	}
	fmt.Fprintln(stdout, "| Load | Value | Cache | keys/s | p50 µs | p99 µs | p999 µs |\n|---|--:|---|--:|--:|--:|--:|")
	failed := false
	var hung []string
	for _, value := range []int{256, 4096} {
		for _, shape := range cacheShapes {
			results := make([][]*loadgen.CacheResult, len(systems))
			for range *rounds {
				for i, system := range systems {
					cfg.Value, cfg.Concurrency, cfg.Pipeline = value, shape.callers, shape.keys
					r, err := system.run(ctx, cfg)
					if err != nil {
						fmt.Fprintf(stderr, "%v, %d B: %s: %v\n", shape, value, system.name, err)
						failed = true
						continue
					}
					results[i] = append(results[i], r)
					if n := r.All.Hung; n > 0 {
						hung = append(hung, fmt.Sprintf("%v, %d B: %s: %d calls had no answer, and count with the time that they have waited.", shape, value, system.name, n))
					}
				}
			}
			for i, system := range systems {
				if len(results[i]) == 0 {
					continue // its errors have been printed
				}
				median := func(of func(*loadgen.CacheResult) float64) float64 { return stats.MedianOf(results[i], of) }
				fmt.Fprintf(stdout, "| %v | %d B | %s | %.0f | %.0f | %.0f | %.0f |\n", shape, value, system.name,
					median(func(r *loadgen.CacheResult) float64 { return r.All.Rate }),
					median(func(r *loadgen.CacheResult) float64 { return r.All.Latency.P50 }),
					median(func(r *loadgen.CacheResult) float64 { return r.All.Latency.P99 }),
					median(func(r *loadgen.CacheResult) float64 { return r.All.Latency.P999 }))
			}
		}
	}
	for _, line := range hung {
		fmt.Fprintf(stdout, "\n%s\n", line)
	}
	if failed || ctx.Err() != nil {
		return 1
	}
	return 0
}

// cacheSystems starts the foreign servers that this machine has, and says which it has not.
func cacheSystems(ctx context.Context, spin time.Duration) (systems []cacheSystem, closeAll func(), missing []string) {
	systems = []cacheSystem{
		{"felix", func(ctx context.Context, cfg loadgen.CacheConfig) (*loadgen.CacheResult, error) {
			if cfg.Concurrency == 1 {
				cfg.Spin = spin
			}
			return loadgen.RunCache(ctx, cfg)
		}},
		{"felix, JSON", func(ctx context.Context, cfg loadgen.CacheConfig) (*loadgen.CacheResult, error) {
			cfg.JSON = true
			return loadgen.RunCache(ctx, cfg)
		}},
	}
	var closers []func()
	closeAll = func() {
		for _, c := range closers {
			c()
		}
	}
	on := func(store loadgen.CacheStore) func(context.Context, loadgen.CacheConfig) (*loadgen.CacheResult, error) {
		return func(ctx context.Context, cfg loadgen.CacheConfig) (*loadgen.CacheResult, error) {
			return loadgen.RunCacheOn(ctx, cfg, store)
		}
	}
	stores, stop, err := startRedisCache(ctx)
	closers = append(closers, stop)
	if err != nil {
		missing = append(missing, "Redis over TLS 1.3: "+err.Error())
	}
	for _, name := range []string{"redis, go-redis", "redis, rueidis"} {
		if s := stores[name]; s != nil {
			systems = append(systems, cacheSystem{name, on(s)})
		}
	}
	mc, stop, err := startMemcached(ctx)
	closers = append(closers, stop)
	if err != nil {
		missing = append(missing, "memcached: "+err.Error())
	} else {
		systems = append(systems, cacheSystem{"memcached, no TLS", on(mc)})
	}
	return systems, closeAll, missing
}

// startRedisCache starts redis-server with TLS 1.3 alone, without persistence, and connects both clients.
func startRedisCache(ctx context.Context) (stores map[string]loadgen.CacheStore, stop func(), err error) {
	srv, err := startRedis(ctx, true, nil)
	if err != nil {
		return nil, func() {}, err
	}
	closers := []func(){func() { _ = srv.stop() }}
	stop = func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	g := redis.NewClient(&redis.Options{Addr: srv.addr, TLSConfig: srv.tls, PoolSize: 32})
	closers = append(closers, func() { _ = g.Close() })
	if err := g.Ping(ctx).Err(); err != nil {
		return nil, stop, err
	}
	r, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{srv.addr}, TLSConfig: srv.tls, DisableCache: true})
	if err != nil {
		return nil, stop, err
	}
	closers = append(closers, r.Close)
	return map[string]loadgen.CacheStore{"redis, go-redis": goRedis{g}, "redis, rueidis": rueidisStore{r}}, stop, nil
}

type goRedis struct{ c *redis.Client }

func (g goRedis) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return g.c.Set(ctx, key, value, max(ttl, 0)).Err()
}

func (g goRedis) Get(ctx context.Context, keys []string) (hits int, err error) {
	if len(keys) == 1 {
		return found(g.c.Get(ctx, keys[0]).Bytes())
	}
	pipe := g.c.Pipeline()
	replies := make([]*redis.StringCmd, len(keys))
	for i, k := range keys {
		replies[i] = pipe.Get(ctx, k)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return 0, err
	}
	for _, r := range replies {
		n, err := found(r.Bytes())
		if err != nil {
			return 0, err
		}
		hits += n
	}
	return hits, nil
}

func found(_ []byte, err error) (int, error) {
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return 1, err
}

type rueidisStore struct{ c rueidis.Client }

func (r rueidisStore) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	set := r.c.B().Set().Key(key).Value(rueidis.BinaryString(value))
	if ttl > 0 {
		return r.c.Do(ctx, set.Px(ttl).Build()).Error()
	}
	return r.c.Do(ctx, set.Build()).Error()
}

func (r rueidisStore) Get(ctx context.Context, keys []string) (hits int, err error) {
	cmds := make(rueidis.Commands, len(keys))
	for i, k := range keys {
		cmds[i] = r.c.B().Get().Key(k).Build()
	}
	for _, reply := range r.c.DoMulti(ctx, cmds...) {
		if _, err := reply.AsBytes(); err == nil {
			hits++
		} else if !rueidis.IsRedisNil(err) {
			return 0, err
		}
	}
	return hits, nil
}

// startMemcached starts memcached, in the clear: Debian's has TLS, and the client has none.
func startMemcached(ctx context.Context) (loadgen.CacheStore, func(), error) {
	srv, err := startServer(ctx, "memcached", func(f files) ([]string, error) {
		return []string{"-l", "127.0.0.1", "-p", f.port, "-U", "0", "-m", "256", "-u", "nobody", "-t", strconv.Itoa(2)}, nil
	})
	if err != nil {
		return nil, func() {}, err
	}
	c := memcache.New(srv.addr)
	c.MaxIdleConns = 32
	return memcached{c}, func() { _ = c.Close(); _ = srv.stop() }, nil
}

type memcached struct{ c *memcache.Client }

func (m memcached) Put(_ context.Context, key string, value []byte, ttl time.Duration) error {
	return m.c.Set(&memcache.Item{Key: key, Value: value, Expiration: int32(max(ttl, 0).Seconds())})
}

func (m memcached) Get(_ context.Context, keys []string) (int, error) {
	if len(keys) > 1 {
		items, err := m.c.GetMulti(keys)
		return len(items), err
	}
	_, err := m.c.Get(keys[0])
	if errors.Is(err, memcache.ErrCacheMiss) {
		return 0, nil
	}
	return 1, err
}
