package brokerproc

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"

	"github.com/felix-mq/felix/ring"
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

// The process of a program that is gone ends by itself, and tells its metrics if anybody still listens.
func TestEndsWithItsInput(t *testing.T) {
	id, err := newIdentity()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "__child", role)
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start(), json.NewEncoder(stdin).Encode(id)); err != nil {
		t.Fatal(err)
	}
	in := json.NewDecoder(stdout)
	var r ready
	if err := in.Decode(&r); err != nil || r.Addr == "" || r.Token == "" || r.Policy == "" || r.Socket.RecvBufferGranted == 0 {
		t.Errorf("ready %+v, %v", r, err)
	}
	_ = stdin.Close()
	var metrics map[string]float64
	if err := in.Decode(&metrics); err != nil || metrics["felix_udp_receive_buffer_bytes"] == 0 {
		t.Errorf("metrics %v, %v", metrics, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Options win over the environment where they name streams, and do not where they name a policy.
func TestOptions(t *testing.T) {
	block := ring.Block
	for env, want := range map[string]string{"FELIX_READ_BYTES=64MiB": "block", "FELIX_SUB_QUEUE_POLICY=drop_old": "drop_old"} {
		p, err := StartWith(t.Context(), Options{Streams: []string{"a", "b"}, Policy: &block, Env: []string{"FELIX_DEV_STREAMS=c", env}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.Metrics()
		if err != nil || m["felix_streams"] != 2 || p.Policy != want {
			t.Errorf("%s: %v streams, policy %s, %v", env, m["felix_streams"], p.Policy, err)
		}
		if r, err := p.Resources(); err != nil || r.Heap <= 0 || r.Goroutines <= 0 {
			t.Errorf("resources %+v, %v", r, err)
		}
		if last, err := p.StopAndCount(); err != nil || len(last) < len(m) {
			t.Errorf("%d metrics in the end, %d before, %v", len(last), len(m), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := StartWith(ctx, Options{}); err == nil {
		t.Errorf("started with a context that has ended: %v", p.Stop())
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
