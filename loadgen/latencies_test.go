package loadgen

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/stats"
)

func TestLatencies(t *testing.T) {
	a, b := newLatencies(), newLatencies()
	a.record(int64(100*time.Microsecond), 900)
	b.record(int64(time.Millisecond), 99)
	b.record(int64(time.Second), 1)
	a.merge(&b)
	s := a.summary()
	for name, v := range map[string]struct{ got, want float64 }{
		"p50":  {s.P50, 100},
		"p90":  {s.P90, 100},
		"p99":  {s.P99, 1000},
		"p999": {s.P999, 1000},
		"max":  {s.Max, 1e6},
		"mean": {s.Mean, 0.9*100 + 0.099*1000 + 0.001*1e6},
	} {
		if math.Abs(v.got-v.want) > v.want/1000 {
			t.Errorf("%s is %v, want %v", name, v.got, v.want)
		}
	}
	if s.Samples != 1000 || s.Clamped != 0 {
		t.Errorf("%d samples, %d clamped", s.Samples, s.Clamped)
	}
}

func TestLatenciesClamp(t *testing.T) {
	l := newLatencies()
	l.record(-5, 2)
	l.record(int64(time.Hour), 3)
	s := l.summary()
	if s.Samples != 5 || s.Clamped != 5 || s.P50 == 0 || s.Max < 60e6 || s.Max > 60.1e6 {
		t.Errorf("got %+v", s)
	}
	empty := newLatencies()
	if got := empty.summary(); got != (Latency{}) {
		t.Errorf("no samples sum up to %+v", got)
	}
}

// TestLatenciesAreHDR holds the counts against those that the library makes of the same values.
func TestLatenciesAreHDR(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	want, got, part := stats.NewHistogram(), newLatencies(), newLatencies()
	for i := range 200_000 {
		ns := random.Int64N(int64(maxLatency)+1) >> random.IntN(36)
		if i < 4096 {
			ns = int64(i)
		}
		if err := want.RecordValue(ns); err != nil {
			t.Fatal(err)
		}
		if part.record(ns, 1); i%1000 == 0 {
			got.merge(&part)
			part.reset()
		}
	}
	got.merge(&part)
	if !got.histogram().Equals(want) {
		t.Error("the histograms differ")
	}
	if got.reset(); got.histogram().TotalCount() != 0 || !got.empty() {
		t.Error("not empty after a reset")
	}
}

// BenchmarkInterval ends an interval of 64 workers, while latencies are measured.
func BenchmarkInterval(b *testing.B) {
	t := newTimeline(Observer{}, nil, time.Now(), "deliver")
	for range 64 {
		t.recorder(0)
	}
	for b.Loop() {
		for i, r := range t.series[0].recorders {
			for k := range int64(100) {
				r.record(int64(100*time.Microsecond)<<(k%6)+k*int64(time.Microsecond), int64(i))
			}
		}
		t.end(0)
	}
}
