package loadgen

import (
	"math/bits"
	"sync"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/internal/stats"
)

// maxLatency is the largest latency that is recorded; larger ones are clamped to it and counted.
const maxLatency = stats.MaxDuration

// latencies is the histogram of one worker, in nanoseconds with three significant digits. It has one owner at a time.
//
// Its counts are laid out as those of an HDR histogram, which it becomes at the end. Until then it knows which of them
// it has used: to merge and empty a histogram of the library costs a third of a millisecond however little is in it,
// and that of each worker is merged once a second while latencies are measured.
type latencies struct {
	counts  []int64
	used    [2]int // the first count that was used, and the one after the last
	clamped int64  // values outside the range
}

// An HDR histogram of three digits has 2048 counts for the values below 2048, and 1024 for each further power of two.
const (
	halfBits = 10
	half     = 1 << halfBits
)

// countOf is the index of the count of a value: of 11 leading bits, the first of which is always set but in small
// values.
func countOf(ns int64) int {
	shift := bits.Len64(uint64(ns)|(2*half-1)) - (halfBits + 1)
	return shift<<halfBits + int(ns>>shift)
}

var numCounts = sync.OnceValue(func() int { return len(stats.NewHistogram().Export().Counts) })

func newLatencies() latencies {
	l := latencies{counts: make([]int64, numCounts())}
	l.reset()
	return l
}

// record adds n events of one latency.
func (l *latencies) record(ns, n int64) {
	if c := min(max(ns, 0), int64(maxLatency)); c != ns {
		ns = c
		l.clamped += n
	}
	i := countOf(ns)
	l.counts[i] += n
	l.used = [2]int{min(l.used[0], i), max(l.used[1], i+1)}
}

// merge adds what another worker recorded.
func (l *latencies) merge(from *latencies) {
	l.clamped += from.clamped
	for i := from.used[0]; i < from.used[1]; i++ {
		l.counts[i] += from.counts[i]
	}
	l.used = [2]int{min(l.used[0], from.used[0]), max(l.used[1], from.used[1])}
}

func (l *latencies) reset() {
	if !l.empty() {
		clear(l.counts[l.used[0]:l.used[1]])
	}
	l.used = [2]int{len(l.counts), 0}
	l.clamped = 0
}

func (l *latencies) empty() bool { return l.used[0] >= l.used[1] }

// histogram returns a copy of l as that of the library.
func (l *latencies) histogram() *hdrhistogram.Histogram {
	return hdrhistogram.Import(&hdrhistogram.Snapshot{
		LowestTrackableValue: 1, HighestTrackableValue: int64(maxLatency), SignificantFigures: 3, Counts: l.counts,
	})
}

// Latency sums up latencies. All durations are microseconds, with three significant digits.
type Latency struct {
	P50     float64 `json:"p50_us"`
	P90     float64 `json:"p90_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	Max     float64 `json:"max_us"`
	Mean    float64 `json:"mean_us"`
	Samples int64   `json:"samples"`
	Clamped int64   `json:"clamped"` // samples outside 0 to 60 s, which count as the nearer of the two
}

func (l *latencies) summary() Latency {
	if l.empty() {
		return Latency{}
	}
	h := l.histogram()
	us := func(ns int64) float64 { return float64(ns) / 1e3 }
	return Latency{
		P50:     us(h.ValueAtPercentile(50)),
		P90:     us(h.ValueAtPercentile(90)),
		P99:     us(h.ValueAtPercentile(99)),
		P999:    us(h.ValueAtPercentile(99.9)),
		Max:     us(h.Max()),
		Mean:    h.Mean() / 1e3,
		Samples: h.TotalCount(),
		Clamped: l.clamped,
	}
}
