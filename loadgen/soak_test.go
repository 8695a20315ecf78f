package loadgen

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestSoak(t *testing.T) {
	cfg := small(Config{Fanout: 2, SlowSubs: 1, SlowMode: Trickle, Payload: 256, Batch: 4, Rate: 4000, Duration: 300 * time.Millisecond})
	cfg.Interval = 10 * time.Millisecond
	res, err := RunSoak(t.Context(), cfg)
	var growth *GrowthError // a broker that has just started may well grow
	if res == nil || (err != nil && !errors.As(err, &growth) && !strings.Contains(err.Error(), "too few")) {
		t.Fatalf("got %+v, %v", res, err)
	}
	if res.Published != 1200 || res.Unaccounted != 0 {
		t.Errorf("got %+v", res)
	}
	var text strings.Builder
	if err := res.WriteText(&text); err != nil || !strings.Contains(text.String(), "worst p99") {
		t.Errorf("%v: %s", err, &text)
	}
}

// timelineOf makes intervals of which memory and goroutines are functions.
func timelineOf(n int, rss func(i int) int64, goroutines func(i int) int) *SoakResult {
	r := &SoakResult{Result: new(Result)}
	for i := range n {
		r.Intervals = append(r.Intervals, Interval{
			Start: float64(i), Seconds: 1, Dropped: 1, Latency: Latency{Samples: 10, P99: float64(i)},
			Process: Resources{RSS: rss(i), Goroutines: goroutines(i)},
			Server:  &Resources{RSS: 100 << 20, Goroutines: 10},
		})
	}
	return r
}

func TestSoakVerdict(t *testing.T) {
	flat := func(int) int { return 100 }
	saw := func(i int) int64 { return int64(100+i%7*20) << 20 }
	for name, tc := range map[string]struct {
		n          int
		rss        func(int) int64
		goroutines func(int) int
		want       string
	}{
		"nothing":     {100, saw, flat, ""},
		"start":       {100, func(i int) int64 { return min(saw(i), int64(i)*30<<20) }, flat, ""},
		"memory":      {100, func(i int) int64 { return saw(i) + int64(i)<<20 }, flat, "memory of this process has grown from 247 to 317 MiB"},
		"small":       {100, func(i int) int64 { return int64(i) << 18 }, flat, ""},
		"goroutines":  {100, saw, func(i int) int { return 100 + i }, "goroutines of this process have grown from 131 to 199"},
		"few of them": {100, saw, func(i int) int { return 10 + i/10 }, ""},
		"too short":   {15, saw, flat, "15 intervals are too few"},
	} {
		t.Run(name, func(t *testing.T) {
			r := timelineOf(tc.n, tc.rss, tc.goroutines)
			err := r.judge()
			var growth *GrowthError
			switch {
			case tc.want == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), tc.want):
				t.Errorf("got %v, want %q", err, tc.want)
			case errors.As(err, &growth) != (len(r.Findings) > 0):
				t.Errorf("findings %q, error %v", r.Findings, err)
			}
			if len(r.Parts) == 0 {
				return
			}
			if p := r.Parts[3]; len(r.Parts) != 4 || p.Start != 77 || p.Rate != 10 || p.P99 != 99 || p.Dropped != 23 || p.Server.Goroutines != 10 {
				t.Errorf("the last part is %+v", p)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			want := "nothing has grown"
			if tc.want != "" {
				want = tc.want
			}
			if !strings.Contains(text.String(), want) {
				t.Errorf("%q is missing in\n%s", want, &text)
			}
		})
	}
}
