package stats

import (
	"math"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{5: {9, 1, 5}, 2.5: {1, 4, 3, 2}} {
		if got := Median(values); got != want {
			t.Errorf("median of %v is %v, want %v", values, got, want)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("no values have a median")
	}
	if got := MedianOf([]time.Duration{3, 1, 2}, func(d time.Duration) float64 { return float64(d) }); got != 2 {
		t.Errorf("median %v, want 2", got)
	}
}

func TestTexts(t *testing.T) {
	if got := Spread("%.1f", []float64{2, 1, 4}); got != "2.0 (1.0–4.0)" {
		t.Errorf("got %q", got)
	}
	all := []time.Duration{4 * time.Millisecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}
	if got := Percentiles(all); got != "p50 3ms  p90 4ms  p99 4ms  max 4ms" {
		t.Errorf("got %q", got)
	}
	if Spread("%.1f", nil) != "failed" || Percentiles(nil) != "none" {
		t.Error("nothing is described as something")
	}
}

// The example of Welch's test that statistics texts share (sets A1 and A2 of Welch's t-test in Wikipedia, unequal
// variances and sizes), with the p-value of R's t.test.
func TestWelch(t *testing.T) {
	x := []float64{27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4}
	y := []float64{27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4}
	if p := Welch(x, y); math.Abs(p-0.021378) > 1e-5 {
		t.Errorf("p = %v, want 0.021378", p)
	}
	if p := Welch(y, x); math.Abs(p-0.021378) > 1e-5 {
		t.Errorf("the other way round: p = %v", p)
	}
	if p := Welch([]float64{1, 1, 1}, []float64{1, 1, 1}); p != 1 {
		t.Errorf("equal constants: p = %v", p)
	}
	if p := Welch([]float64{1, 1, 1}, []float64{2, 2, 2}); p != 0 {
		t.Errorf("unequal constants: p = %v", p)
	}
}

func TestHolm(t *testing.T) {
	p := []float64{0.04, 0.01, 0.03, 0.005}
	Holm([]*float64{&p[0], &p[1], &p[2], &p[3]})
	for i, want := range []float64{0.06, 0.03, 0.06, 0.02} {
		if math.Abs(p[i]-want) > 1e-12 {
			t.Errorf("p %d = %v, want %v", i, p[i], want)
		}
	}
}
