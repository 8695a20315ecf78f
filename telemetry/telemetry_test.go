package telemetry

import (
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	check := func(name string) {
		if name == "" || name == "unknown" || seen[name] {
			t.Errorf("name %q is empty or used twice", name)
		}
		seen[name] = true
	}
	for s := range Stage(NumStages) {
		check(s.String())
	}
	for c := range Counter(NumCounters) {
		check(c.String())
	}
	if got := Stage(NumStages).String(); got != "unknown" {
		t.Errorf("stage beyond the last is called %q", got)
	}
	if got := Counter(NumCounters).String(); got != "unknown" {
		t.Errorf("counter beyond the last is called %q", got)
	}
}

// probe is what a hot path does.
func probe() {
	var start Time
	if Enabled {
		start = Now()
	}
	if Enabled {
		Observe(StagePublishParse, start)
		Add(BrokerFramesIn, 1)
		Add(BrokerBytesIn, 4096)
	}
}

func TestAllocProbe(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	if allocs := testing.AllocsPerRun(1000, probe); allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
}

func BenchmarkProbe(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			probe()
		}
	})
}
