//go:build telemetry

package telemetry

import (
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Enabled reports whether telemetry is compiled in.
const Enabled = true

// maxDuration bounds what is recorded, and with the two significant digits the size of a histogram: 36 KiB.
const (
	maxDuration = int64(time.Hour)
	digits      = 2
)

// Time is an instant for [Observe]: nanoseconds since the start of the process, and never zero.
type Time int64

var processStart = time.Now()

// Now returns the present instant. It allocates nothing.
func Now() Time { return Time(time.Since(processStart)) + 1 }

// A shard is recorded into by few goroutines at a time: the lock is there for those that were moved to another core
// between choosing a shard and using it, and for Snapshot. Histograms come with the first observation, since most
// processes use few stages.
type shard struct {
	counters [NumCounters]atomic.Uint64

	mu     sync.Mutex
	stages [NumStages]recorder

	_ [64]byte // the next shard's counters belong on another cache line
}

type recorder struct {
	histogram *hdrhistogram.Histogram
	max       int64
}

var (
	shards    = make([]shard, 1<<bits.Len(uint(runtime.NumCPU()-1)))
	nextShard atomic.Uint32

	// shardPool remembers a shard per core, because that is how sync.Pool caches. What a garbage collection drops
	// is only an index; the next core without one takes the next shard in turn.
	shardPool = sync.Pool{New: func() any {
		n := new(uint32)
		*n = nextShard.Add(1) % uint32(len(shards))
		return n
	}}
)

func pickShard() *shard {
	n, _ := shardPool.Get().(*uint32)
	s := &shards[*n]
	shardPool.Put(n)
	return s
}

// Observe records the time since start as a duration of s. The zero Time is ignored. It allocates nothing in steady
// state, does not block on other cores, and may be called from many goroutines.
func Observe(s Stage, start Time) {
	if start != 0 {
		observe(s, int64(Now()-start))
	}
}

func observe(s Stage, nanos int64) {
	nanos = min(max(nanos, 0), maxDuration)
	sh := pickShard()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := &sh.stages[s]
	if r.histogram == nil {
		r.histogram = newHistogram()
	}
	_ = r.histogram.RecordValue(nanos) // in range
	r.max = max(r.max, nanos)
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxDuration, digits) }

// Add adds n, which must not be negative, to c. It allocates nothing, does not block, and may be called from many
// goroutines.
func Add(c Counter, n int) { pickShard().counters[c].Add(uint64(n)) }

// Snapshot returns what has been recorded, merged over all shards. Recording goes on meanwhile, so stages and
// counters are not of one instant.
func Snapshot() Report {
	var report Report
	for s := range report.Stages {
		report.Stages[s] = timing(Stage(s))
	}
	for i := range shards {
		for c := range report.Counters {
			report.Counters[c] += shards[i].counters[c].Load()
		}
	}
	return report
}

func timing(s Stage) Timing {
	var t Timing
	merged := newHistogram()
	for i := range shards {
		if r := shards[i].copyOf(s); r.histogram != nil {
			merged.Merge(r.histogram)
			t.Max = max(t.Max, r.max)
		}
	}
	// A percentile is the upper end of its bucket, which may lie above the largest value in it.
	t.Count = uint64(merged.TotalCount())
	t.P50 = min(merged.ValueAtPercentile(50), t.Max)
	t.P99 = min(merged.ValueAtPercentile(99), t.Max)
	t.P999 = min(merged.ValueAtPercentile(99.9), t.Max)
	return t
}

// copyOf exists so that a merge does not hold up observations.
func (s *shard) copyOf(stage Stage) recorder {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.stages[stage]
	if r.histogram != nil {
		r.histogram = r.histogram.Clone()
	}
	return r
}

// Reset forgets what has been recorded. What is recorded meanwhile may stay or go.
func Reset() {
	for i := range shards {
		sh := &shards[i]
		for c := range sh.counters {
			sh.counters[c].Store(0)
		}
		sh.mu.Lock()
		for s := range sh.stages {
			if r := &sh.stages[s]; r.histogram != nil {
				r.histogram.Reset()
				r.max = 0
			}
		}
		sh.mu.Unlock()
	}
}
