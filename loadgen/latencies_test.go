package loadgen

import (
	"math"
	"testing"
	"time"
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
