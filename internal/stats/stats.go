// Package stats has the statistics of everything here that measures: medians and ranges of repeated measurements,
// percentiles of durations, and tests whether two sets of measurements differ.
package stats

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
)

// Median returns the median, which is the mean of the two in the middle if their number is even. That of no values is
// not a number.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// MedianOf returns the median of one figure of all.
func MedianOf[T any](all []T, figure func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, x := range all {
		values[i] = figure(x)
	}
	return Median(values)
}

// Spread writes the median and the range, each number in that form of package fmt. Of no values it writes "failed".
func Spread(form string, values []float64) string {
	if len(values) == 0 {
		return "failed"
	}
	return fmt.Sprintf(form+" ("+form+"–"+form+")", Median(values), slices.Min(values), slices.Max(values))
}

// Percentile returns the percentile p, from 0 to 100, of durations that are sorted. There is at least one.
func Percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[min(int(p/100*float64(len(sorted))), len(sorted)-1)]
}

// Percentiles sorts durations and sums them up in words.
func Percentiles(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	at := func(p float64) time.Duration { return Percentile(all, p).Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %v  p90 %v  p99 %v  max %v", at(50), at(90), at(99), at(100))
}

// MaxDuration is the longest duration that a histogram holds.
const MaxDuration = time.Minute

// NewHistogram returns a histogram of durations up to [MaxDuration] in nanoseconds, with three significant digits.
func NewHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(MaxDuration), 3) }

// Clamp returns the nearest duration that a histogram holds.
func Clamp(d time.Duration) int64 { return int64(min(max(d, 0), MaxDuration)) }

// Welch returns the two-sided p-value of the hypothesis that both samples have the same mean, by [Welch's t-test],
// which does not assume that both spread alike. Both have at least two values.
//
// [Welch's t-test]: B. L. Welch, The generalization of "Student's" problem when several different population variances
// are involved, Biometrika 34 (1947).
func Welch(x, y []float64) float64 {
	mx, vx := stat.MeanVariance(x, nil)
	my, vy := stat.MeanVariance(y, nil)
	ex, ey := vx/float64(len(x)), vy/float64(len(y))
	if ex+ey == 0 {
		if mx == my {
			return 1
		}
		return 0
	}
	t := math.Abs(mx-my) / math.Sqrt(ex+ey)
	freedom := (ex + ey) * (ex + ey) / (ex*ex/float64(len(x)-1) + ey*ey/float64(len(y)-1))
	return 2 * distuv.StudentsT{Sigma: 1, Nu: freedom}.Survival(t)
}

// Holm corrects p-values for their number by Holm's method: all of them together are wrong no more often than the level
// that they are compared with says.
func Holm(p []*float64) {
	order := slices.SortedFunc(slices.Values(p), func(a, b *float64) int { return cmp.Compare(*a, *b) })
	floor := 0.0
	for i, x := range order {
		floor = max(floor, min(*x*float64(len(order)-i), 1))
		*x = floor
	}
}

// MeanDeviation returns mean and standard deviation.
func MeanDeviation(values []float64) (mean, deviation float64) { return stat.MeanStdDev(values, nil) }
