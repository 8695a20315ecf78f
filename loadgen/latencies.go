package loadgen

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// maxLatency is the largest latency that is recorded; larger ones are clamped to it and counted.
const maxLatency = time.Minute

// latencies is the histogram of one worker, in nanoseconds with three significant digits. It has one owner at a time.
type latencies struct {
	h       *hdrhistogram.Histogram
	clamped int64 // values outside the range
}

func newLatencies() latencies {
	return latencies{h: hdrhistogram.New(1, int64(maxLatency), 3)}
}

// record adds n events of one latency.
func (l *latencies) record(ns, n int64) {
	if c := min(max(ns, 0), int64(maxLatency)); c != ns {
		ns = c
		l.clamped += n
	}
	_ = l.h.RecordValues(ns, n) // in range by now
}

// merge adds what another worker recorded.
func (l *latencies) merge(from *latencies) {
	l.h.Merge(from.h)
	l.clamped += from.clamped
}

func (l *latencies) reset() {
	l.h.Reset()
	l.clamped = 0
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
	if l.h.TotalCount() == 0 {
		return Latency{}
	}
	us := func(ns int64) float64 { return float64(ns) / 1e3 }
	return Latency{
		P50:     us(l.h.ValueAtPercentile(50)),
		P90:     us(l.h.ValueAtPercentile(90)),
		P99:     us(l.h.ValueAtPercentile(99)),
		P999:    us(l.h.ValueAtPercentile(99.9)),
		Max:     us(l.h.Max()),
		Mean:    l.h.Mean() / 1e3,
		Samples: l.h.TotalCount(),
		Clamped: l.clamped,
	}
}
