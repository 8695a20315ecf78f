package brokerproc

import (
	"strings"
	"testing"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"
)

// TestMain is also the broker's process.
func TestMain(m *testing.M) {
	Serve()
	goleak.VerifyTestMain(m)
}

func TestQuestions(t *testing.T) {
	p, err := Start(ExactAllocations)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := p.StartCPUProfile(); err != nil {
		t.Fatal(err)
	}
	before, err := p.CPUTime()
	if err != nil || before <= 0 {
		t.Errorf("processor time %v, %v", before, err)
	}
	if err := p.AddStreams([]string{"a", "b"}); err != nil {
		t.Error(err)
	}
	if m, err := p.Metrics(); err != nil || m["felix_streams"] != 3 {
		t.Errorf("%v topics, %v, want the default one and two more", m["felix_streams"], err)
	}
	if m, err := p.Memory(); err != nil || m.Heap <= 0 || m.Stacks <= 0 || m.Goroutines <= 0 {
		t.Errorf("memory %+v, %v", m, err)
	}
	allocations, err := p.Allocations()
	if err != nil {
		t.Fatal(err)
	}
	if !mentions(allocations, "fanout.newTopic") {
		t.Error("the profile of allocations does not know of the new topics")
	}
	if cpu, err := p.CPUProfile(); err != nil || cpu.SampleType[1].Type != "cpu" {
		t.Errorf("CPU profile: %v", err)
	}
	after, err := p.CPUTime()
	if err != nil || after <= before {
		t.Errorf("processor time %v after %v, %v", after, before, err)
	}
}

func mentions(p *profile.Profile, function string) bool {
	for _, f := range p.Function {
		if strings.HasSuffix(f.Name, function) {
			return true
		}
	}
	return false
}
