package report

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/felix-mq/felix/loadgen"
)

// trials makes trials that spread by a part of their mean around a rate and a latency.
func trials(rnd *rand.Rand, n int, rate, latency, spread float64) *Report {
	c := &Cell{Load: "load"}
	for range n {
		c.Trials = append(c.Trials, Trial{Metrics: []loadgen.Metric{
			{Name: "delivered", Unit: "msg/s", Value: rate * (1 + spread*rnd.NormFloat64()), HigherIsBetter: true},
			{Name: "p50", Unit: "µs", Value: latency * (1 + spread*rnd.NormFloat64())},
		}})
	}
	return &Report{Format: Format, Cells: []*Cell{c}}
}

func TestVerdicts(t *testing.T) {
	for name, tc := range map[string]struct {
		n             int
		rate, latency float64 // with 1 as the base
		spread        float64
		want          Verdict
	}{
		"same":              {8, 1, 1, 0.02, NoDifference},
		"slower rate":       {8, 0.9, 1, 0.02, Slower},
		"slower latency":    {8, 1, 1.1, 0.02, Slower},
		"faster":            {8, 1.1, 0.9, 0.02, Faster},
		"both":              {8, 1.1, 1.1, 0.02, Slower},
		"within the spread": {5, 0.9, 1.1, 0.2, NoDifference},
		"too little":        {400, 0.98, 1.02, 0.02, NoDifference}, // and significant
	} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			c, err := Compare(trials(rnd, tc.n, 1e6, 100, tc.spread), trials(rnd, tc.n, 1e6*tc.rate, 100*tc.latency, tc.spread))
			if err != nil {
				t.Fatal(err)
			}
			if c.Verdict() != tc.want || c.Slower() != (tc.want == Slower) {
				t.Errorf("got %s: %+v", c.Verdict(), c.Differences)
			}
			if name == "too little" && c.Differences[0].P > 1e-6 {
				t.Errorf("p = %v of a difference that many trials show", c.Differences[0].P)
			}
			var text strings.Builder
			if err := c.WriteText(&text); err != nil || !strings.Contains(text.String(), "\n"+string(tc.want)+": ") {
				t.Errorf("%v:\n%s", err, &text)
			}
		})
	}
}

// Of comparisons of a load with itself, about as many find a difference as Significance says, and not more: the limit
// of 3 % plays no part at this spread.
func TestFalseAlarms(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	alarms := 0
	for range 2000 {
		c, err := Compare(trials(rnd, 5, 1e6, 100, 0.1), trials(rnd, 5, 1e6, 100, 0.1))
		if err != nil {
			t.Fatal(err)
		}
		if c.Verdict() != NoDifference {
			alarms++
		}
	}
	if alarms == 0 || alarms > 2000*Significance*1.2 {
		t.Errorf("%d of 2000 comparisons of equals found a difference", alarms)
	}
}

func TestCompareRefuses(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	few, many := trials(rnd, 2, 1, 1, 0), trials(rnd, 3, 1, 1, 0)
	if _, err := Compare(few, many); err == nil || !strings.Contains(err.Error(), "3 trials and 2 to compare with") {
		t.Errorf("got %v", err)
	}
	other := trials(rnd, 3, 1, 1, 0)
	other.Cells[0].Load = "another"
	if _, err := Compare(many, other); err == nil || !strings.Contains(err.Error(), `"load" and "another"`) {
		t.Errorf("got %v", err)
	}
}

// Real runs: a report does not differ from itself.
func TestCompareRuns(t *testing.T) {
	r := sample(t, t.TempDir())
	for _, c := range r.Cells {
		c.Trials = append(c.Trials, c.Trials...)
	}
	c, err := Compare(r, r)
	if err != nil || c.Verdict() != NoDifference || len(c.Differences) != 6 || c.BaseTrials != 4 {
		t.Errorf("%v: %+v", err, c)
	}
}
