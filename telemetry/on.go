//go:build telemetry

package telemetry

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
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

// sampleEvery is how many durations there are to one that is taken.
const sampleEvery = 16

// Time is an instant for [Observe]. Its zero value is none.
type Time struct{ nanos int64 } // since the start of the process

var processStart = time.Now()

func now() Time { return Time{int64(time.Since(processStart)) + 1} }

// Start returns the present instant for one call in 16, by chance, and the zero Time for the others.
func Start() Time {
	if rand.Uint32()%sampleEvery != 0 {
		return Time{}
	}
	return now()
}

// A shard is recorded into by few goroutines at a time: the lock is there for those that were moved to another core
// between choosing a shard and using it, and for snapshot. Histograms come with the first observation, since most
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
	// is only an index; the next core without one takes the next shard, round robin.
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

// Observe records the time since start as a duration of s and returns the present instant, at which the next stage of
// the same work begins. The zero Time is ignored and returned. It allocates nothing in steady state, does not wait for
// other cores, and may be called from many goroutines.
func Observe(s Stage, start Time) Time {
	if start == (Time{}) {
		return start
	}
	end := now()
	observe(s, end.nanos-start.nanos)
	return end
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

// report is what has been recorded: totals since the start of the process.
type report struct {
	stages   [NumStages]summary
	counters [NumCounters]uint64
}

// summary sums up the durations of one stage, in nanoseconds. The percentiles are within 1 % of the true value, max is
// exact; durations above one hour count as one hour.
type summary struct{ count, p50, p99, p999, max int64 }

// snapshot merges the shards. Recording goes on meanwhile, so stages and counters are not of one instant.
func snapshot() (r report) {
	for s := range r.stages {
		r.stages[s] = summarize(Stage(s))
	}
	for i := range shards {
		for c := range r.counters {
			r.counters[c] += shards[i].counters[c].Load()
		}
	}
	return r
}

func summarize(s Stage) (t summary) {
	merged := newHistogram()
	for i := range shards {
		if r := shards[i].copyOf(s); r.histogram != nil {
			merged.Merge(r.histogram)
			t.max = max(t.max, r.max)
		}
	}
	// A percentile is the upper end of its bucket, which may lie above the largest value in it.
	t.count = merged.TotalCount()
	t.p50 = min(merged.ValueAtPercentile(50), t.max)
	t.p99 = min(merged.ValueAtPercentile(99), t.max)
	t.p999 = min(merged.ValueAtPercentile(99.9), t.max)
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

// Text returns a table of what has been recorded since the start of the process, stages and counters that are zero left
// out; "" if nothing was, and in builds without telemetry.
func Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := fmt.Sprintf("stage, 1 in %d\tcount\tp50 µs\tp99 µs\tp999 µs\tmax µs\t\n", sampleEvery)
	micros := func(nanos int64) string { return strconv.FormatFloat(float64(nanos)/1e3, 'f', 1, 64) }
	r := snapshot()
	for s, t := range r.stages {
		if t.count > 0 {
			_, _ = fmt.Fprintf(w, "%s%s\t%d\t%s\t%s\t%s\t%s\t\n", head, stageNames[s], t.count, micros(t.p50), micros(t.p99), micros(t.p999), micros(t.max))
			head = ""
		}
	}
	_ = w.Flush() // into memory
	head = "counter\ttotal\t\n"
	for c, n := range r.counters {
		if n > 0 {
			_, _ = fmt.Fprintf(w, "%s%s\t%d\t\n", head, counterNames[c], n)
			head = ""
		}
	}
	_ = w.Flush()
	return b.String()
}
