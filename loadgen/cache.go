package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/client"
)

// CacheStore is a cache to load: Felix's, or another one behind its own client. Its methods are called from many goroutines.
type CacheStore interface {
	Put(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Get asks for all keys in one call, and returns how many were there.
	Get(ctx context.Context, keys []string) (hits int, err error)
}

// CacheConfig describes a run of cache operations. Its numbers mean what they say; see [DefaultCacheConfig].
type CacheConfig struct {
	GetRatio    float64       // part of the calls that are gets, 0 to 1
	Keys        int           // that are used; all are stored before the run, unless Absent
	Absent      bool          // keys are never stored: every get is a miss
	Zipf        float64       // exponent of the keys' popularity, above 1; 0 is uniform
	Value       int           // bytes
	TTL         time.Duration // of puts; negative is for ever
	Concurrency int           // callers, each with one call in flight
	Pipeline    int           // keys of a get; puts have one
	Warmup      time.Duration // before Duration, at the same load
	Duration    time.Duration
	Seed        uint64

	Conns, Streams int           // of the client
	JSON           bool          // without extensions
	Spin           time.Duration // of the client's sockets

	Target    *Target // a broker that is there, whose cache is named by Stream; nil starts one
	Processes int     // 1 or 2, of a broker that is started
}

// DefaultCacheConfig returns the load that runs without options.
func DefaultCacheConfig() CacheConfig {
	return CacheConfig{
		GetRatio: 0.9, Keys: 1024, Value: 256, TTL: client.NoExpiry, Concurrency: 32, Pipeline: 1,
		Warmup: 500 * time.Millisecond, Duration: 5 * time.Second, Conns: 1, Streams: 4, Processes: 1,
	}
}

// Validate reports every problem of the configuration.
func (c *CacheConfig) Validate() error {
	var errs []error
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf("loadgen: "+format, args...))
		}
	}
	bad(!(c.GetRatio >= 0 && c.GetRatio <= 1), "get ratio %v is not between 0 and 1", c.GetRatio)
	bad(c.Keys < 1, "%d keys", c.Keys)
	bad(c.Zipf != 0 && !(c.Zipf > 1), "zipf exponent %v is not above 1", c.Zipf)
	bad(c.Value < 0 || c.Value > 16<<20-1024, "values of %d bytes", c.Value)
	bad(c.Concurrency < 1, "concurrency %d", c.Concurrency)
	bad(c.Pipeline < 1 || c.Pipeline > 65535, "pipeline of %d keys", c.Pipeline)
	bad(c.Warmup < 0 || c.Duration <= 0, "warm-up %v, duration %v", c.Warmup, c.Duration)
	bad(c.Conns < 1 || c.Streams < 1, "%d connections with %d streams", c.Conns, c.Streams)
	bad(c.Processes < 1 || c.Processes > 2, "%d processes", c.Processes)
	return errors.Join(errs...)
}

// CacheOperation is what one kind of calls took.
type CacheOperation struct {
	Calls   int64   `json:"calls"`
	Keys    int64   `json:"keys"` // of all calls
	Hits    int64   `json:"hits"`
	Latency Latency `json:"latency"` // of a call
	Rate    float64 `json:"keys_per_second"`
}

// CacheResult is the outcome of a run.
type CacheResult struct {
	Put     CacheOperation `json:"put"`
	Get     CacheOperation `json:"get"`
	All     CacheOperation `json:"all"`
	Seconds float64        `json:"seconds"`
}

// WriteText writes a line for each operation, percentiles in microseconds.
func (r *CacheResult) WriteText(w io.Writer) error {
	for _, op := range []struct {
		name string
		o    *CacheOperation
	}{{"put", &r.Put}, {"get", &r.Get}, {"all", &r.All}} {
		if op.o.Calls == 0 {
			continue
		}
		l := &op.o.Latency
		_, err := fmt.Fprintf(w, "%s: n=%d p50=%.0fus p99=%.0fus p999=%.0fus avg=%.0fus throughput=%.0f ops/s hits=%d\n",
			op.name, op.o.Calls, l.P50, l.P99, l.P999, l.Mean, op.o.Rate, op.o.Hits)
		if err != nil {
			return err
		}
	}
	return nil
}

// RunCache loads the cache of a broker.
func RunCache(ctx context.Context, cfg CacheConfig) (*CacheResult, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cacheName := "primary"
	if cfg.Target != nil {
		cacheName = cfg.Target.Stream
	}
	b, err := startBroker(ctx, Config{Target: cfg.Target, Processes: cfg.Processes})
	if err != nil {
		return nil, err
	}
	opts := []client.Option{
		client.WithTLS(b.target.TLS), client.WithToken(b.target.Tenant, b.target.Token),
		client.WithCacheConns(cfg.Conns), client.WithCacheStreams(cfg.Streams), client.WithSpin(cfg.Spin),
	}
	if cfg.JSON {
		opts = append(opts, client.WithoutExtensions())
	}
	c, err := client.Connect(ctx, b.target.Addr, opts...)
	var res *CacheResult
	if err == nil {
		res, err = RunCacheOn(ctx, cfg, felixCache{c.Cache(b.target.Namespace, cacheName)})
		err = errors.Join(err, c.Close())
	}
	_, stopErr := b.stop()
	return res, errors.Join(err, stopErr)
}

type felixCache struct{ cache *client.Cache }

func (f felixCache) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return f.cache.Put(ctx, key, value, ttl)
}

func (f felixCache) Get(ctx context.Context, keys []string) (hits int, err error) {
	if len(keys) == 1 {
		_, err := f.cache.Get(ctx, keys[0])
		return hit(err)
	}
	for _, r := range f.cache.GetMany(ctx, keys...) {
		n, err := hit(r.Err)
		if err != nil {
			return 0, err
		}
		hits += n
	}
	return hits, nil
}

func hit(err error) (int, error) {
	if errors.Is(err, client.ErrMiss) {
		return 0, nil
	}
	return 1, err
}

// RunCacheOn loads a cache with the operations of a configuration, whatever it says of brokers and clients.
func RunCacheOn(ctx context.Context, cfg CacheConfig, store CacheStore) (*CacheResult, error) {
	keys := make([]string, cfg.Keys)
	for i := range keys {
		keys[i] = "key-" + strconv.Itoa(i)
	}
	value := make([]byte, cfg.Value)
	fill := rand.New(rand.NewPCG(cfg.Seed, 0))
	for i := range value {
		value[i] = byte(fill.Uint32())
	}
	workers := make([]*cacheWorker, cfg.Concurrency)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	var phase atomic.Int32 // warm-up, measured, over
	for i := range workers {
		w := &cacheWorker{cfg: &cfg, store: store, keys: keys, value: value, put: newLatencies(), get: newLatencies()}
		workers[i] = w
		rnd := rand.New(rand.NewPCG(cfg.Seed, uint64(i)))
		wg.Go(func() {
			if err := w.prepare(ctx, i); err != nil {
				fail(err)
			}
		})
		w.key = func() string { return keys[rnd.IntN(len(keys))] }
		if cfg.Zipf != 0 {
			z := rand.NewZipf(rnd, cfg.Zipf, 1, uint64(len(keys)-1))
			w.key = func() string { return keys[z.Uint64()] }
		}
		w.rnd = rnd
	}
	wg.Wait()
	for _, w := range workers {
		wg.Go(func() {
			if err := w.run(ctx, &phase); err != nil {
				fail(err)
			}
		})
	}
	sleep(ctx, cfg.Warmup)
	phase.Store(1)
	began := time.Now()
	sleep(ctx, cfg.Duration)
	phase.Store(2)
	elapsed := time.Since(began)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return sumUp(workers, elapsed), nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// cacheWorker is one caller.
type cacheWorker struct {
	cfg   *CacheConfig
	store CacheStore
	keys  []string
	value []byte
	rnd   *rand.Rand
	key   func() string

	put, get                latencies
	putKeys, getKeys, found int64
}

// prepare stores this worker's part of the keys.
func (w *cacheWorker) prepare(ctx context.Context, part int) error {
	if w.cfg.Absent {
		return nil
	}
	for i := part; i < len(w.keys); i += w.cfg.Concurrency {
		if err := w.store.Put(ctx, w.keys[i], w.value, w.cfg.TTL); err != nil {
			return fmt.Errorf("loadgen: storing %s: %w", w.keys[i], err)
		}
	}
	return nil
}

func (w *cacheWorker) run(ctx context.Context, phase *atomic.Int32) error {
	batch := make([]string, w.cfg.Pipeline)
	for ctx.Err() == nil {
		isGet := w.rnd.Float64() < w.cfg.GetRatio
		for i := range batch {
			batch[i] = w.key()
		}
		measured := phase.Load() == 1
		began := time.Now()
		hits := 0
		var err error
		if isGet {
			hits, err = w.store.Get(ctx, batch)
		} else {
			err = w.store.Put(ctx, batch[0], w.value, w.cfg.TTL)
		}
		ns := int64(time.Since(began))
		if err != nil {
			return fmt.Errorf("loadgen: cache: %w", err)
		}
		switch phase.Load() {
		case 1:
			if !measured {
				continue
			}
			if isGet {
				w.get.record(ns, 1)
				w.getKeys += int64(len(batch))
				w.found += int64(hits)
			} else {
				w.put.record(ns, 1)
				w.putKeys++
			}
		case 2:
			return nil
		}
	}
	return nil
}

func sumUp(workers []*cacheWorker, elapsed time.Duration) *CacheResult {
	r := &CacheResult{Seconds: elapsed.Seconds()}
	put, get, all := newLatencies(), newLatencies(), newLatencies()
	for _, w := range workers {
		put.merge(&w.put)
		get.merge(&w.get)
		r.Put.Keys += w.putKeys
		r.Get.Keys += w.getKeys
		r.Get.Hits += w.found
	}
	all.merge(&put)
	all.merge(&get)
	r.All.Keys, r.All.Hits = r.Put.Keys+r.Get.Keys, r.Get.Hits
	for op, l := range map[*CacheOperation]*latencies{&r.Put: &put, &r.Get: &get, &r.All: &all} {
		op.Latency = l.summary()
		op.Calls = op.Latency.Samples
		op.Rate = float64(op.Keys) / r.Seconds
	}
	return r
}

// CacheTable measures the cells of the table that is published for the reference's cache (operations of 0, 256 and 4096 bytes) and
// writes them in its shape.
func CacheTable(ctx context.Context, cfg CacheConfig, w io.Writer) error {
	if _, err := fmt.Fprintln(w, "| Op | Payload | p50 | p99 | ops/s |\n|---|--:|--:|--:|--:|"); err != nil {
		return err
	}
	for _, cell := range []struct {
		op, payload string
		ratio       float64
		value       int
		absent      bool
	}{
		{"put", "0 B", 0, 0, true},
		{"put", "256 B", 0, 256, true},
		{"put", "4 KiB", 0, 4096, true},
		{"get hit", "256 B", 1, 256, false},
		{"get miss", "–", 1, 0, true},
	} {
		cfg.GetRatio, cfg.Value, cfg.Absent = cell.ratio, cell.value, cell.absent
		r, err := RunCache(ctx, cfg)
		if err != nil {
			return err
		}
		l := r.All.Latency
		if _, err := fmt.Fprintf(w, "| %s | %s | %.0f µs | %.0f µs | %.0f k |\n", cell.op, cell.payload, l.P50, l.P99, r.All.Rate/1000); err != nil {
			return err
		}
	}
	return nil
}
