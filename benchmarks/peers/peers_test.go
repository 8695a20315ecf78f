package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/benchmarks/floor"
	"github.com/felix-mq/felix/benchmarks/floor/drive"
	"github.com/felix-mq/felix/loadgen"
)

// TestMain is also the other processes of the tests.
func TestMain(m *testing.M) {
	loadgen.ServeBroker(nil)
	floor.Serve()
	drive.Child(natsName, serveNATS)
	drive.Child(workerName, serveWorker)
	goleak.VerifyTestMain(m)
}

func TestNATS(t *testing.T) {
	s := drive.Shape{Fanout: 5, Conns: 2, Payload: 64, Batch: 8, Window: 3, Duration: time.Millisecond, MaxDuration: time.Hour}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := runNATS(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if res.Published == 0 || res.Delivered != 5*res.Published || res.Unaccounted != 0 || res.Latency.Samples != int64(res.Delivered) {
		t.Errorf("got %+v", res)
	}
}

// The whole way, in two of the shapes.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "runs.json")
	var out, errs bytes.Buffer
	args := []string{"-rounds", "1", "-duration", "20ms", "-warmup", "1ms", "-only", "latency.*fanout=1/|pipe", "-json", file}
	if status := run(args, &out, &errs); status != 0 {
		t.Fatalf("status %d\n%s", status, &errs)
	}
	for _, want := range []string{"| latency/payload=1024/fanout=1/conns=1 ", "| p999 µs ", "| lost ", "\nPipe, one stream", "\nMachine: "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var runs []outcome
	if err := json.Unmarshal(b, &runs); err != nil {
		t.Fatal(err)
	}
	if len(runs) != 4 {
		t.Errorf("%d runs in the file, want 4", len(runs))
	}
	for _, r := range runs {
		if r.System != pipeName && (r.Result.Delivered == 0 || r.Result.Unaccounted != 0) {
			t.Errorf("%s: %+v", r.System, r.Result)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-duration", "0s"}, {"-only", "("}, {"-against", "mars"}, {"more"}} {
		var out, errs bytes.Buffer
		if status := run(args, &out, &errs); status != 2 || errs.Len() == 0 {
			t.Errorf("%v: status %d, said %q", args, status, &errs)
		}
	}
}

// A run that fails is told, and the others go on.
func TestRunFails(t *testing.T) {
	o := &options{gogc: "100"}
	s := drive.Shape{Fanout: 1, Conns: 1, Payload: 1, Batch: 1, Window: 1, Duration: 1}
	for _, system := range []string{felixName, relayName, "mars"} {
		if _, err := runWorker(t.Context(), o, job{System: system, Shape: s}); err == nil {
			t.Errorf("%s: a run with a payload of one byte succeeded", system)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, tc := range []struct {
		limit limit
		ratio float64
		met   bool
	}{
		{limit{true, 0.9}, 0.896, true},
		{limit{true, 0.9}, 0.894, false},
		{limit{false, 1.15}, 1.154, true},
		{limit{false, 1.15}, 1.156, false},
	} {
		if got := tc.limit.met(tc.ratio); got != tc.met {
			t.Errorf("%v at %v: met %t", tc.limit, tc.ratio, got)
		}
	}
}

func TestRatios(t *testing.T) {
	mbps := func(o *outcome) float64 { return o.Result.DeliveredBytesPerSecond }
	at := func(round int, v float64) outcome {
		return outcome{Round: round, Result: &loadgen.Result{DeliveredBytesPerSecond: v}}
	}
	// The second run of the other system failed.
	got := ratios([]outcome{at(0, 2), at(1, 9), at(2, 3)}, []outcome{at(0, 1), at(2, 2)}, mbps)
	if len(got) != 2 || got[0] != 2 || got[1] != 1.5 || median(got) != 1.75 {
		t.Errorf("got %v", got)
	}
}

func TestSNMP(t *testing.T) {
	const file = "Udp: InDatagrams InErrors\nUdp: 10 7\nUdpLite: InDatagrams InErrors\nUdpLite: 1 2\n"
	if got := snmp(file, "Udp:", "InErrors"); got != 7 {
		t.Errorf("got %d", got)
	}
	if got := snmp(file, "Tcp:", "RetransSegs"); got != 0 {
		t.Errorf("got %d", got)
	}
}
