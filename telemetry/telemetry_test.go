package telemetry

import (
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

// probe is what a hot path does.
func probe() {
	start := Start()
	start = Observe(StagePublishParse, start)
	Observe(StagePublishLookup, start)
	Add(BrokerFramesIn, 1)
	Add(BrokerBytesIn, 4096)
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
