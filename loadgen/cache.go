package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

// CacheStore is a cache to load: Felix's, or another one with its own client. Its methods are called from many
// goroutines. They return soon after ctx has ended: a call that does not is abandoned when the run ends.
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
	TTL         time.Duration // of puts; 0 is for ever
	Concurrency int           // callers, each with one call in flight
	Rate        float64       // calls per second of an open loop, which start late if no caller is free; 0 is a closed loop
	Pipeline    int           // keys of a get; puts have one
	Warmup      time.Duration // before Duration, at the same load
	Duration    time.Duration
	Timeout     time.Duration // of a call, which then counts as hung; 0 is that of the client
	Seed        uint64

	Conns, Streams int           // of the client
	JSON           bool          // without extensions
	Spin           time.Duration // of the client's sockets

	Target    *Target                    // a broker that is there, whose cache is named by Stream; nil starts one
	Processes int                        // 1 or 2, of a broker that is started
	Tune      func(*broker.Config) error // see [Config.Tune]

	Observer
}

// DefaultCacheConfig returns the load that runs without options.
func DefaultCacheConfig() CacheConfig {
	return CacheConfig{
		GetRatio: 0.9, Keys: 1024, Value: 256, TTL: client.NoExpiry, Concurrency: 32, Pipeline: 1,
		Warmup: 500 * time.Millisecond, Duration: 5 * time.Second, Timeout: DefaultCallTimeout, Conns: 1, Streams: 4, Processes: 1,
	}
}

// Validate reports every problem of the configuration.
func (c *CacheConfig) Validate() error {
	var errs []error
	bad := func(cond bool, field, format string, args ...any) {
		if cond {
			errs = append(errs, &InvalidError{field, fmt.Sprintf(format, args...)})
		}
	}
	bad(!(c.GetRatio >= 0 && c.GetRatio <= 1), "GetRatio", "get ratio %v is not between 0 and 1", c.GetRatio)
	bad(c.Keys < 1, "Keys", "%d keys", c.Keys)
	bad(c.Zipf != 0 && !(c.Zipf > 1), "Zipf", "zipf exponent %v is not above 1", c.Zipf)
	bad(c.Value < 0 || c.Value > 16<<20-1024, "Value", "values of %d bytes", c.Value)
	bad(c.TTL < 0, "TTL", "lifetime %v of an entry is negative", c.TTL)
	bad(c.Concurrency < 1, "Concurrency", "concurrency %d", c.Concurrency)
	bad(c.Pipeline < 1 || c.Pipeline > 65535, "Pipeline", "pipeline of %d keys", c.Pipeline)
	bad(!(c.Rate >= 0 && c.Rate <= 1e9), "Rate", "rate %v is not between 0 and 1e9 calls per second", c.Rate)
	bad(c.Interval < 0, "Interval", "interval %v", c.Interval)
	bad(c.Warmup < 0 || c.Duration <= 0, "Duration", "warm-up %v, duration %v", c.Warmup, c.Duration)
	bad(c.Timeout < 0, "Timeout", "timeout %v of a call is negative", c.Timeout)
	bad(c.Conns < 1 || c.Streams < 1, "Conns", "%d connections with %d streams", c.Conns, c.Streams)
	bad(c.Processes < 1 || c.Processes > 2, "Processes", "%d processes", c.Processes)
	return errors.Join(errs...)
}

// CacheOperation is what one kind of calls took.
type CacheOperation struct {
	Calls    int64   `json:"calls"`     // that ended
	Hung     int64   `json:"hung"`      // that had no answer by the timeout or the end of the run
	NotBegun int64   `json:"not_begun"` // of an open loop: that were due, and no caller was free until the end of the run
	Keys     int64   `json:"keys"`      // of the calls that ended
	Hits     int64   `json:"hits"`
	Latency  Latency `json:"latency"`         // of all three; those without an answer count with the time that they have waited
	Rate     float64 `json:"keys_per_second"` // of calls that ended in the measured time
}

// CacheResult is the outcome of a run.
type CacheResult struct {
	Config    CacheConfigResult `json:"config"`
	Put       CacheOperation    `json:"put"`
	Get       CacheOperation    `json:"get"`
	All       CacheOperation    `json:"all"`
	Seconds   float64           `json:"seconds"`
	LateCalls int64             `json:"late_calls"` // of an open loop: that began more than a millisecond late

	Measurement
}

// CacheConfigResult is the part of [CacheConfig] that a result is judged by.
type CacheConfigResult struct {
	GetRatio    float64 `json:"get_ratio"`
	Keys        int     `json:"keys"`
	Absent      bool    `json:"absent"`
	Zipf        float64 `json:"zipf,omitempty"`
	Value       int     `json:"value"`
	Concurrency int     `json:"concurrency"`
	Pipeline    int     `json:"pipeline"`
	Rate        float64 `json:"rate,omitempty"`
	Conns       int     `json:"conns"`
	Streams     int     `json:"streams"`
	JSON        bool    `json:"json_frames"`
	TTL         string  `json:"ttl"` // of puts, a Go duration; "none" is for ever
	Spin        string  `json:"spin"`
	Seed        uint64  `json:"seed"`
	Broker      string  `json:"broker"`         // "embedded", "process" or "external"; "other" is another cache
	Addr        string  `json:"addr,omitempty"` // of an external one
	Seconds     float64 `json:"duration_s"`
	Warmup      float64 `json:"warmup_s"`
	Timeout     float64 `json:"timeout_s"`
}

// Load says in one line what load the result is of.
func (r *CacheResult) Load() string {
	c := &r.Config
	s := fmt.Sprintf("cache: %g of calls are gets of %s, %s of %d B, ", c.GetRatio, plural(c.Pipeline, "key"), plural(c.Keys, "key"), c.Value)
	if c.Absent {
		s += "absent, "
	}
	if c.Zipf != 0 {
		s += fmt.Sprintf("zipf %g, ", c.Zipf)
	}
	s += fmt.Sprintf("%s, %s × %s", plural(c.Concurrency, "caller"), plural(c.Conns, "connection"), plural(c.Streams, "stream"))
	if c.JSON {
		s += ", JSON"
	}
	if c.Rate > 0 {
		s += fmt.Sprintf(", open loop at %s calls/s", count(c.Rate))
	}
	if c.TTL != noTTL {
		s += ", lifetime " + c.TTL
	}
	return s + brokerText(c.Broker, c.Addr)
}

const noTTL = "none"

// Parameters returns what a load is made of.
func (r *CacheResult) Parameters() any { return r.Config }

// Metrics returns the figures that runs of this load are compared by.
func (r *CacheResult) Metrics() []Metric {
	var m []Metric
	if r.Config.Rate == 0 { // otherwise it is given
		m = append(m, Metric{Name: "keys", Unit: "keys/s", Value: r.All.Rate, HigherIsBetter: true})
	}
	if r.Put.Calls > 0 {
		m = append(m, latencyMetrics("put ", &r.Put.Latency)...)
	}
	if r.Get.Calls > 0 {
		m = append(m, latencyMetrics("get ", &r.Get.Latency)...)
	}
	return m
}

// WriteText writes a line for each operation, percentiles in microseconds.
func (r *CacheResult) WriteText(w io.Writer) error {
	for _, op := range []struct {
		name string
		o    *CacheOperation
	}{{"put", &r.Put}, {"get", &r.Get}, {"all", &r.All}} {
		if op.o.Latency.Samples == 0 {
			continue
		}
		l := &op.o.Latency
		_, err := fmt.Fprintf(w, "%s: n=%d p50=%.0fus p99=%.0fus p999=%.0fus avg=%.0fus throughput=%.0f ops/s hits=%d\n",
			op.name, op.o.Calls, l.P50, l.P99, l.P999, l.Mean, op.o.Rate, op.o.Hits)
		if err != nil {
			return err
		}
	}
	if note := withoutAnswer(r.All.Hung, r.All.NotBegun); note != "" {
		if _, err := fmt.Fprintf(w, "hung: %s\n", note); err != nil {
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
	b, err := startBroker(ctx, Config{Target: cfg.Target, Processes: cfg.Processes, Tune: cfg.Tune})
	if err != nil {
		return nil, err
	}
	opts := []client.Option{
		client.WithTLS(b.target.TLS), client.WithToken(b.target.Tenant, b.target.Token),
		client.WithTransport(client.Transport{CacheConns: cfg.Conns, CacheStreams: cfg.Streams, Spin: cfg.Spin}),
	}
	if cfg.Timeout > 0 {
		opts = append(opts, client.WithRequestTimeout(2*cfg.Timeout)) // the run's own comes first
	}
	if cfg.JSON {
		opts = append(opts, client.WithoutExtensions())
	}
	c, err := client.Connect(ctx, b.target.Addr, opts...)
	var res *CacheResult
	if err == nil {
		res, err = runCache(ctx, cfg, b, felixCache{c.Cache(b.target.Namespace, cacheName)})
		err = errors.Join(err, c.Close())
	}
	counters, stopErr := b.stop()
	if err = errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	res.Broker = b.info
	res.Broker.BrokerCounters = counters
	return res, nil
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
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return runCache(ctx, cfg, nil, store)
}

// Kinds of calls.
const (
	cachePut = iota
	cacheGet
)

// runCache loads a cache. b is nil if its broker is not to be asked for its state.
func runCache(ctx context.Context, cfg CacheConfig, b *startedBroker, store CacheStore) (*CacheResult, error) {
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
	prepare, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for i := range workers {
		rnd := rand.New(rand.NewPCG(cfg.Seed, uint64(i)))
		w := &cacheWorker{cfg: &cfg, store: store, keys: keys, value: value, rnd: rnd, batch: make([]string, cfg.Pipeline)}
		w.key = func() string { return keys[rnd.IntN(len(keys))] }
		if cfg.Zipf != 0 {
			z := rand.NewZipf(rnd, cfg.Zipf, 1, uint64(len(keys)-1))
			w.key = func() string { return keys[z.Uint64()] }
		}
		workers[i] = w
		wg.Go(func() {
			if err := w.prepare(prepare, i); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(prepare); err != nil {
		return nil, err
	}
	l := callLoad{
		workers: cfg.Concurrency, rate: cfg.Rate, warmup: cfg.Warmup, duration: cfg.Duration, observer: cfg.Observer, broker: b,
		timeout: cfg.Timeout, alarm: newAlarm,
		kinds: []callShare{cachePut: {"put", 1 - cfg.GetRatio}, cacheGet: {"get", cfg.GetRatio}},
		next:  func(worker int) int { return workers[worker].next() },
		call:  func(ctx context.Context, worker, kind int) (called, error) { return workers[worker].call(ctx, kind) },
	}
	calls, err := l.run(ctx)
	if err != nil {
		return nil, err
	}
	r := &CacheResult{
		Config: CacheConfigResult{
			GetRatio: cfg.GetRatio, Keys: cfg.Keys, Absent: cfg.Absent, Zipf: cfg.Zipf, Value: cfg.Value, Concurrency: cfg.Concurrency,
			Pipeline: cfg.Pipeline, Rate: cfg.Rate, Conns: cfg.Conns, Streams: cfg.Streams, JSON: cfg.JSON,
		},
		Seconds: calls.seconds, LateCalls: calls.late, Measurement: calls.Measurement,
	}
	c := &r.Config
	c.TTL, c.Spin, c.Seed, c.Broker = noTTL, cfg.Spin.String(), cfg.Seed, "other"
	c.Seconds, c.Warmup, c.Timeout = cfg.Duration.Seconds(), cfg.Warmup.Seconds(), cfg.Timeout.Seconds()
	if cfg.TTL > 0 {
		c.TTL = cfg.TTL.String()
	}
	if b != nil {
		c.Broker, c.Addr = brokerOf(cfg.Target, cfg.Processes)
	}
	all := newLatencies()
	for kind, op := range []*CacheOperation{cachePut: &r.Put, cacheGet: &r.Get} {
		c := &calls.kinds[kind]
		op.Calls, op.Hung, op.NotBegun = c.ended, c.hung, c.notBegun
		op.Keys, op.Hits, op.Latency = c.keys, c.hits, c.lat.summary()
		op.Rate = float64(c.keysInTime) / r.Seconds
		r.All.Calls += op.Calls
		r.All.Hung += op.Hung
		r.All.NotBegun += op.NotBegun
		r.All.Keys += op.Keys
		r.All.Hits += op.Hits
		r.All.Rate += op.Rate
		all.merge(&c.lat)
	}
	r.All.Latency = all.summary()
	if r.All.Calls == 0 && r.All.Hung > 0 {
		return nil, &NoAnswerError{Calls: r.All.Hung}
	}
	return r, nil
}

// cacheWorker is one caller.
type cacheWorker struct {
	cfg   *CacheConfig
	store CacheStore
	keys  []string
	value []byte
	rnd   *rand.Rand
	key   func() string
	batch []string
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

func (w *cacheWorker) next() int {
	if w.rnd.Float64() < w.cfg.GetRatio {
		return cacheGet
	}
	return cachePut
}

func (w *cacheWorker) call(ctx context.Context, kind int) (c called, err error) {
	for i := range w.batch {
		w.batch[i] = w.key()
	}
	began := time.Now()
	if kind == cacheGet {
		c.keys = len(w.batch)
		c.hits, err = w.store.Get(ctx, w.batch)
	} else {
		c.keys = 1
		err = w.store.Put(ctx, w.batch[0], w.value, w.cfg.TTL)
	}
	c.took = time.Since(began)
	if err != nil {
		return c, fmt.Errorf("loadgen: cache: %w", err)
	}
	return c, nil
}

// CacheTable measures the cells of the table that is published for the reference's cache (operations of 0, 256 and 4096
// bytes) and writes them in its shape.
func CacheTable(ctx context.Context, cfg CacheConfig, w io.Writer) error {
	if _, err := fmt.Fprintln(w, "| Op | Payload | p50 | p99 | ops/s |\n|---|--:|--:|--:|--:|"); err != nil {
		return err
	}
	var hung []string
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
		if note := withoutAnswer(r.All.Hung, r.All.NotBegun); note != "" {
			hung = append(hung, fmt.Sprintf("%s, %s: %s", cell.op, cell.payload, note))
		}
	}
	for _, note := range hung {
		if _, err := fmt.Fprintf(w, "\n%s\n", note); err != nil {
			return err
		}
	}
	return nil
}
