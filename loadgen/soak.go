package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Defaults of [Config] in a soak that differ from those of another run.
const (
	DefaultSoakDuration = 10 * time.Minute
	DefaultSoakRate     = 20_000
)

// A soak fails if what it holds at its peak in the last part of the run is this much above the peak in the first. Its
// beginning, where pools and windows fill, is left out; the bound on memory is above what the collector's rhythm does
// to peaks, which is why peaks are compared and not ends.
const (
	soakParts           = 4
	soakSettle          = 0.1 // of the run
	soakMemoryGrowth    = 1.25
	soakRoutineGrowth   = 1.1
	soakMinIntervals    = 20
	soakMemoryFloor     = 64 << 20 // below it RSS is not judged: a few MiB of spans are no leak
	soakRoutinesAtLeast = 16       // goroutines more
)

// SoakResult is the outcome of a soak.
type SoakResult struct {
	*Result
	Parts    []SoakPart `json:"parts"`
	Findings []string   `json:"findings,omitempty"` // what has grown
}

// SoakPart is a part of the run: peaks of all its intervals, and the sum of drops.
type SoakPart struct {
	Start   float64 `json:"start_s"`
	Rate    float64 `json:"per_second"` // on average
	P99     float64 `json:"p99_us"`     // of the worst interval
	Max     float64 `json:"max_us"`
	Dropped uint64  `json:"dropped"`

	Process Resources  `json:"process"`
	Server  *Resources `json:"server,omitempty"`
}

// GrowthError fails a soak in which something has grown.
type GrowthError struct{ Findings []string }

func (e *GrowthError) Error() string { return "loadgen: soak: " + strings.Join(e.Findings, "; ") }

// RunSoak is [Run] for a long time, at a fixed rate unless a window is given, with a verdict on what the run held:
// together with a result there can be a [GrowthError].
func RunSoak(ctx context.Context, cfg Config) (*SoakResult, error) {
	if cfg.Duration == 0 && cfg.Total == 0 {
		cfg.Duration = DefaultSoakDuration
	}
	if cfg.Rate == 0 && cfg.Window == 0 {
		cfg.Rate = DefaultSoakRate
	}
	if cfg.Interval == 0 { // some hundred, however long
		cfg.Interval = max(min(cfg.Duration/(2*soakMinIntervals), DefaultInterval), cfg.Duration/500)
	}
	res, err := Run(ctx, cfg)
	if res == nil {
		return nil, err
	}
	s := &SoakResult{Result: res}
	verdict := s.judge()
	return s, errors.Join(err, verdict)
}

// judge divides the run into parts and compares the last with the first.
func (s *SoakResult) judge() error {
	all := s.Intervals
	all = all[int(float64(len(all))*soakSettle):]
	if len(all) < soakMinIntervals*(1-soakSettle) {
		return fmt.Errorf("loadgen: soak: %d intervals are too few for a verdict on growth", len(s.Intervals))
	}
	for i := range soakParts {
		s.Parts = append(s.Parts, part(all[i*len(all)/soakParts:(i+1)*len(all)/soakParts]))
	}
	first, last := &s.Parts[0], &s.Parts[soakParts-1]
	s.compare("this process", &first.Process, &last.Process)
	if first.Server != nil && last.Server != nil {
		s.compare("the broker's process", first.Server, last.Server)
	}
	if len(s.Findings) > 0 {
		return &GrowthError{s.Findings}
	}
	return nil
}

func part(intervals []Interval) SoakPart {
	p := SoakPart{Start: intervals[0].Start}
	var seconds, events float64
	for _, i := range intervals {
		seconds += i.Seconds
		events += float64(i.Latency.Samples)
		p.P99, p.Max = max(p.P99, i.Latency.P99), max(p.Max, i.Latency.Max)
		p.Dropped += i.Dropped
		peak(&p.Process, &i.Process)
		if i.Server != nil {
			if p.Server == nil {
				p.Server = new(Resources)
			}
			peak(p.Server, i.Server)
		}
	}
	p.Rate = events / seconds
	return p
}

// peak raises r to what of holds more.
func peak(r, of *Resources) {
	r.RSS, r.Heap, r.Goroutines = max(r.RSS, of.RSS), max(r.Heap, of.Heap), max(r.Goroutines, of.Goroutines)
}

func (s *SoakResult) compare(where string, first, last *Resources) {
	if last.RSS > soakMemoryFloor && float64(last.RSS) > soakMemoryGrowth*float64(first.RSS) {
		s.Findings = append(s.Findings, fmt.Sprintf("the memory of %s has grown from %d to %d MiB at its peaks", where, first.RSS>>20, last.RSS>>20))
	}
	if last.Goroutines > first.Goroutines+soakRoutinesAtLeast && float64(last.Goroutines) > soakRoutineGrowth*float64(first.Goroutines) {
		s.Findings = append(s.Findings, fmt.Sprintf("the goroutines of %s have grown from %d to %d", where, first.Goroutines, last.Goroutines))
	}
}

// Load says in one line what load the result is of.
func (s *SoakResult) Load() string { return "soak: " + s.Result.Load() }

// WriteText writes the result for people.
func (s *SoakResult) WriteText(out io.Writer) error {
	if err := s.Result.WriteText(out); err != nil {
		return err
	}
	w := &lines{out: out}
	w.printf("")
	w.printf("%8s  %12s  %10s  %10s  %8s  %8s  %10s  %s", "from", "msg/s", "worst p99", "max", "RSS MiB", "heap MiB", "goroutines", "dropped")
	for _, p := range s.Parts {
		w.printf("%6.0f s  %12s  %10s  %10s  %8d  %8d  %10d  %s", p.Start, count(p.Rate), micros(p.P99), micros(p.Max),
			p.Process.RSS>>20, p.Process.Heap>>20, p.Process.Goroutines, count(float64(p.Dropped)))
		if p.Server != nil {
			w.printf("%8s  %12s  %10s  %10s  %8d  %8d  %10d", "", "", "", "broker", p.Server.RSS>>20, p.Server.Heap>>20, p.Server.Goroutines)
		}
	}
	switch {
	case len(s.Findings) > 0:
		w.printf("verdict    %s", strings.Join(s.Findings, "; "))
	case len(s.Parts) > 0:
		w.printf("verdict    nothing has grown")
	}
	return w.err
}
