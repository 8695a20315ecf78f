package report

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/felix-mq/felix/internal/stats"
)

// A figure has changed if that would be a coincidence in less than Significance of all comparisons, of all figures of a
// comparison together, and if it has changed by at least MinChange. Both are needed: with many trials a t-test finds
// differences of half a percent, which come from how the linker placed a function and mean nothing; with few, a large
// difference of two means may be one bad trial.
const (
	Significance = 0.05
	MinChange    = 0.03
)

// MinTrials is the least number of trials of either side. With fewer, the spread is a guess.
const MinTrials = 3

// Verdict is what a comparison says of a figure.
type Verdict string

// Verdicts.
const (
	NoDifference Verdict = "no difference"
	Faster       Verdict = "faster"
	Slower       Verdict = "slower"
)

// Difference is the comparison of one figure.
type Difference struct {
	Load, Metric, Unit string
	Base, Head         float64 // means
	BaseSpread         float64 // standard deviations
	HeadSpread         float64
	Change             float64 // of head, as a part of base
	P                  float64 // of Welch's t-test, after Holm's correction for the number of figures
	Verdict            Verdict

	worse float64 // change for the worse
}

// Comparison is that of all figures that two reports have in common.
type Comparison struct {
	BaseTrials, HeadTrials int // of the cell with fewest
	Differences            []Difference
	LeftOut                []string // loads of base alone
	Unlike                 []string // what differs besides the code, if the comparison was made in spite of that
}

// Compare compares the trials of head with those of base, by [stats.Welch]. It returns an [UnlikeError] if a load of
// head is not one of base, or if they are of other machines or other kinds of builds. It also fails if a load has too
// few trials.
func Compare(base, head *Report) (*Comparison, error) {
	all, unlike, leftOut := pairs(base, head)
	if unlike = append(unlikeSources(base.from("base"), head.from("this")), unlike...); len(unlike) > 0 {
		return nil, &UnlikeError{unlike}
	}
	return compareCells(all, leftOut)
}

// CompareUnlike is [Compare] without the refusal: it compares a load that base does not have with the one that is most
// like it, and the comparison says what is unlike.
func CompareUnlike(base, head *Report) (*Comparison, error) {
	all, unlike, leftOut := pairs(base, head)
	c, err := compareCells(all, leftOut)
	if c != nil {
		c.Unlike = append(unlikeSources(base.from("base"), head.from("this")), unlike...)
	}
	return c, err
}

func compareCells(all []pair, leftOut []string) (*Comparison, error) {
	c := &Comparison{BaseTrials: math.MaxInt, HeadTrials: math.MaxInt, LeftOut: leftOut}
	for _, p := range all {
		for _, m := range p.head.Trials[0].Metrics {
			d := Difference{Load: p.head.Load, Metric: m.Name, Unit: m.Unit}
			x, y := p.base.values(m.Name), p.head.values(m.Name)
			if min(len(x), len(y)) < MinTrials {
				return nil, fmt.Errorf("report: %s: %d trials and %d to compare with: %d of each are needed (--trials)",
					p.head.Load, len(y), len(x), MinTrials)
			}
			c.BaseTrials, c.HeadTrials = min(c.BaseTrials, len(x)), min(c.HeadTrials, len(y))
			d.Base, d.BaseSpread = stats.MeanDeviation(x)
			d.Head, d.HeadSpread = stats.MeanDeviation(y)
			d.Change = d.Head/d.Base - 1
			d.worse = d.Change
			if m.HigherIsBetter {
				d.worse = -d.Change
			}
			d.P = stats.Welch(x, y)
			c.Differences = append(c.Differences, d)
		}
	}
	if len(c.Differences) == 0 {
		return nil, errors.New("report: there is nothing to compare")
	}
	p := make([]*float64, len(c.Differences))
	for i := range p {
		p[i] = &c.Differences[i].P
	}
	stats.Holm(p)
	for i := range c.Differences {
		d := &c.Differences[i]
		switch {
		case !(d.P < Significance) || math.Abs(d.Change) < MinChange: // not a number is no difference either
			d.Verdict = NoDifference
		case d.worse > 0:
			d.Verdict = Slower
		default:
			d.Verdict = Faster
		}
	}
	return c, nil
}

// values returns one metric of all trials that have it.
func (c *Cell) values(metric string) []float64 {
	v := make([]float64, 0, len(c.Trials))
	for _, t := range c.Trials {
		for _, m := range t.Metrics {
			if m.Name == metric {
				v = append(v, m.Value)
			}
		}
	}
	return v
}

// Slower reports whether any figure has become worse.
func (c *Comparison) Slower() bool {
	return slices.ContainsFunc(c.Differences, func(d Difference) bool { return d.Verdict == Slower })
}

// Verdict sums the comparison up: one figure that is worse makes it slower, whatever the others say.
func (c *Comparison) Verdict() Verdict {
	switch {
	case c.Slower():
		return Slower
	case slices.ContainsFunc(c.Differences, func(d Difference) bool { return d.Verdict == Faster }):
		return Faster
	}
	return NoDifference
}

// WriteText writes the comparison for people.
func (c *Comparison) WriteText(w io.Writer) error {
	if len(c.Unlike) > 0 {
		if _, err := fmt.Fprintf(w, "UNLIKE RUNS, compared because --unlike asks for it. The figures may differ for these reasons:\n  %s\n\n",
			strings.Join(c.Unlike, "\n  ")); err != nil {
			return err
		}
	}
	load := ""
	for _, d := range c.Differences {
		if d.Load != load {
			load = d.Load
			if _, err := fmt.Fprintf(w, "%s\n  %-12s %20s %20s %8s %8s\n", load, "", "base", "this", "change", "p"); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "  %-12s %20s %20s %+7.1f%% %8.4f  %s\n", d.Metric+", "+d.Unit, spread(d.Base, d.BaseSpread),
			spread(d.Head, d.HeadSpread), d.Change*100, d.P, d.Verdict); err != nil {
			return err
		}
	}
	for _, load := range c.LeftOut {
		if _, err := fmt.Fprintf(w, "of base alone, not compared: %s\n", load); err != nil {
			return err
		}
	}
	verdict := string(c.Verdict())
	if len(c.Unlike) > 0 {
		verdict = "UNLIKE RUNS, " + verdict
	}
	_, err := fmt.Fprintf(w, "%s: %d and %d trials, means ± standard deviations, Welch's t-test with Holm's correction at %g %%, changes of at least %g %%\n",
		verdict, c.BaseTrials, c.HeadTrials, Significance*100, MinChange*100)
	return err
}

func spread(mean, deviation float64) string {
	return fmt.Sprintf("%.4g ± %.1f%%", mean, deviation/mean*100)
}
