package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/benchmarks/floor"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
)

// TestMain is also the other processes of the tests.
func TestMain(m *testing.M) {
	serve()
	goleak.VerifyTestMain(m)
}

// Every peer that this machine has carries a run, in the clear and with TLS, and accounts for it.
func TestPeers(t *testing.T) {
	for system := range strings.SplitSeq(peersSuite.against, ",") {
		t.Run(system, func(t *testing.T) {
			p, secure := peerOf(system)
			if _, err := p.version(); err != nil {
				skipMissing(t, err)
			}
			s := shape{Fanout: 3, Conns: 3, Payload: 64, Batch: 8, Window: 3, Duration: time.Millisecond, MaxDuration: time.Hour}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			res, err := runPeer(ctx, s, p, secure, defaults(p.knobs))
			if err != nil {
				t.Fatal(err)
			}
			if res.Published == 0 || res.Delivered != 3*res.Published || res.Unaccounted != 0 || res.Latency.Samples != int64(res.Delivered) {
				t.Errorf("got %+v", res)
			}
		})
	}
}

// Several subscriptions on one connection are possible with NATS alone; the others say so.
func TestSharedConnections(t *testing.T) {
	for system := range peers {
		t.Run(system, func(t *testing.T) {
			p, _ := peerOf(system)
			if _, err := p.version(); err != nil {
				skipMissing(t, err)
			}
			s := shape{Fanout: 5, Conns: 2, Payload: 64, Batch: 1, Window: 1, Duration: time.Millisecond, MaxDuration: time.Hour}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := runPeer(ctx, s, p, false, defaults(p.knobs))
			if system == natsName && err != nil || system != natsName && !errors.Is(err, errOneSubscription) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// lossy is a system in memory that spoils one event for one of its subscriptions.
type lossy struct {
	spoil     func(number uint64, event []byte) [][]byte // what arrives instead
	receivers []func([]byte)
}

func (l *lossy) subscribe(_ context.Context, receive func([]byte)) error {
	l.receivers = append(l.receivers, receive)
	return nil
}

func (l *lossy) publish(_ context.Context, events [][]byte) error {
	for _, event := range events {
		for i, receive := range l.receivers {
			arriving := [][]byte{event}
			if i == 1 {
				arriving = l.spoil(binary.BigEndian.Uint64(event), event)
			}
			for _, event := range arriving {
				receive(event)
			}
		}
	}
	return nil
}

func (l *lossy) close() {}

// A run is worth nothing when one subscription of many does not get every event once and in order.
func TestLossFailsTheRun(t *testing.T) {
	const spoiled = 500 // a run has 768 events at least
	const noEnd = "no end in time"
	at := func(do func([]byte) [][]byte) func(uint64, []byte) [][]byte {
		return func(number uint64, event []byte) [][]byte {
			if number == spoiled {
				return do(event)
			}
			return [][]byte{event}
		}
	}
	for name, tc := range map[string]struct {
		spoil func(uint64, []byte) [][]byte
		want  string // part of the error; none where there is none
	}{
		"nothing": {func(_ uint64, event []byte) [][]byte { return [][]byte{event} }, ""},
		"lost":    {at(func([]byte) [][]byte { return nil }), "1 unaccounted"},
		"doubled": {at(func(event []byte) [][]byte { return [][]byte{event, event} }), "again or out of order"},
		"cut":     {at(func(event []byte) [][]byte { return [][]byte{event[:10]} }), "10 bytes"},
		// No later event reveals the loss: the end is missing.
		"the end lost": {func(number uint64, event []byte) [][]byte {
			if number >= spoiled {
				return nil
			}
			return [][]byte{event}
		}, noEnd},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lossy{spoil: tc.spoil}
			p := &peer{title: "Lossy", connect: func(context.Context, *server, settings, func(error)) (session, error) { return l, nil }}
			s := shape{Fanout: 3, Conns: 3, Payload: 64, Batch: 8, Window: 3, Duration: time.Millisecond, MaxDuration: time.Hour}
			limit := time.Minute
			if tc.want == noEnd {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errors.New(noEnd))
			defer cancel()
			res, err := loadPeer(ctx, s, p, &server{}, nil)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %+v, %v, want an error with %q", res, err, tc.want)
			}
		})
	}
}

// The whole way of each table, with few and short runs.
func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		runs  int
		want  []string
		plots []string
	}{
		"floor": {
			[]string{"--only", "latency.*fanout=1/|throughput.*256/fanout=1/|pipe"},
			7,
			[]string{"| latency/payload=1024/fanout=1/conns=1 ", "| p999 µs ", "| lost ", "| Felix / pipe ", "\nPipe, one stream", "\nMachine: "},
			nil,
		},
		"peers": {
			[]string{"--only", "latency.*fanout=1/|json", "--against", "nats-plain,redis"},
			6,
			[]string{"| 1 KiB to 1 subscription ", "| NATS ", "| Redis TLS | defaults | redis-server is not installed", "\n- NATS ", "\n- Redis redis-server is not installed", "\nMachine: "},
			[]string{"throughput", "latency"},
		},
		"matrix": {
			[]string{"--only", "payload=16/fanout=1/"},
			2,
			[]string{"| Payload | fanout 1 ", "| 0 B ", "\nPackets lost", "\nMachine: "},
			[]string{"heat"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", "") // without the foreign programs, so that it is the same everywhere
			dir := t.TempDir()
			var out, errs bytes.Buffer
			args := []string{name, "--rounds", "1", "--duration", "20ms", "--warmup", "1ms", "--results", dir, "--commit", "abc"}
			if status := command(t.Context(), append(args, tc.args...), &out, &errs); status != 0 {
				t.Fatalf("status %d\n%s", status, &errs)
			}
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, &out)
				}
			}
			kept, err := filepath.Glob(filepath.Join(dir, "*-abc"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("kept in %q, %v", kept, err)
			}
			if text, err := os.ReadFile(filepath.Join(kept[0], name+".md")); err != nil || !strings.HasPrefix(out.String(), string(text)) {
				t.Errorf("kept another text than was printed, %v\n%s", err, text)
			}
			b, err := os.ReadFile(filepath.Join(kept[0], name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var rec record
			if err := json.Unmarshal(b, &rec); err != nil {
				t.Fatal(err)
			}
			if rec.Commit != "abc" || rec.Environment.CPUs == 0 || !strings.HasPrefix(rec.Command, "bench-peers "+name+" --rounds 1") {
				t.Errorf("record %+v", rec)
			}
			if len(rec.Runs) != tc.runs {
				t.Errorf("%d runs in the file, want %d", len(rec.Runs), tc.runs)
			}
			for _, r := range rec.Runs {
				if r.Error == "" && r.System != pipeName && (r.Result.Delivered == 0 || r.Result.Unaccounted != 0) {
					t.Errorf("%s: %+v", r.System, r.Result)
				}
			}
			for _, plot := range tc.plots {
				f, err := os.Open(filepath.Join(kept[0], name+"-"+plot+".png"))
				if err != nil {
					t.Error(err)
					continue
				}
				if img, err := png.DecodeConfig(f); err != nil || img.Width != 1000 || img.Height < 200 {
					t.Errorf("plot %s: %d × %d dots, %v", plot, img.Width, img.Height, err)
				}
				f.Close()
			}
		})
	}
}

// Without -full only what can be moved soon is measured; with it the matrix is whole.
func TestMatrixRows(t *testing.T) {
	names := func(full bool) (all []string) {
		for _, r := range matrixRows(full) {
			all = append(all, r.name)
		}
		return all
	}
	full, trimmed := names(true), names(false)
	if len(full) != 40 || len(slices.Compact(slices.Sorted(slices.Values(full)))) != 40 {
		t.Errorf("%d rows: %v", len(full), full)
	}
	left := slices.DeleteFunc(slices.Clone(full), func(name string) bool { return slices.Contains(trimmed, name) })
	want := []string{
		"throughput/payload=1040/fanout=256/conns=8", "throughput/payload=4112/fanout=256/conns=8",
		"throughput/payload=16400/fanout=64/conns=8", "throughput/payload=16400/fanout=256/conns=8",
	}
	if !slices.Equal(left, want) {
		t.Errorf("left out are %v, want %v", left, want)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"mars"},
		{"floor", "--rounds", "0"},
		{"floor", "--duration", "0s"},
		{"floor", "--only", "("},
		{"peers", "--against", "mars"},
		{"matrix", "more"},
		{"docs"},
		{"docs", "--from", "x"},
	} {
		var out, errs bytes.Buffer
		if status := command(t.Context(), args, &out, &errs); status != 2 || errs.Len() == 0 {
			t.Errorf("%v: status %d, said %q", args, status, &errs)
		}
	}
}

// A run that fails is reported and kept, its cell says why, and the others go on.
func TestRunFails(t *testing.T) {
	s := &suite{rows: func(bool) []row {
		return []row{rowOf(shape{Fanout: 1, Conns: 1, Payload: 1, Batch: 1, Window: 1}, p50)}
	}}
	o := &options{rounds: 1, duration: 1, gogc: "100", against: []string{relayName, natsName, natsName + plainSuffix}, only: regexp.MustCompile("")}
	var errs bytes.Buffer
	results, failed := measure(t.Context(), s, o, &errs)
	if !failed || len(results) != 4 {
		t.Fatalf("failed %t, %d results", failed, len(results))
	}
	for _, r := range results {
		if !strings.Contains(r.Error, "payload of 1 bytes") || !strings.Contains(errs.String(), r.Error) {
			t.Errorf("%s: error %q, told\n%s", r.System, r.Error, &errs)
		}
	}
	r := s.rows(true)[0]
	if line := r.compare(nil, o, results)[1]; line[3] != results[0].Error {
		t.Errorf("line %q", line)
	}
}

// A summary takes the figures of a directory of results, and documents show them.
func TestDocs(t *testing.T) {
	dir := t.TempDir()
	file, doc := filepath.Join(dir, "summary.json"), filepath.Join(dir, "doc.md")
	run := func(round int, row, system string, rate float64) outcome {
		r := &loadgen.Result{DeliveredBytesPerSecond: rate}
		r.Latency.P50, r.Latency.P99, r.Latency.P999 = 10+rate, 20+rate, 30+rate
		return outcome{Round: round, Row: row, System: system, Result: r}
	}
	const bulk, lone = "throughput/payload=4096/fanout=10/conns=8", "latency/payload=1024/fanout=1/conns=1"
	rec := record{Command: "bench-peers floor", Commit: "abc", Runs: []outcome{
		run(0, bulk, felixName, 3e6), run(0, bulk, relayName, 4e6), run(1, bulk, felixName, 1e6), run(2, bulk, felixName, 2e6),
		run(0, lone, felixName, 0),
		{Row: lone, System: relayName, Error: "failed"},
		{Row: pipeName, System: pipeName, Pipe: &floor.PipeResult{BytesPerSecond: 5e6}},
	}}
	b, err := json.Marshal(rec)
	const before = "a\n<!-- results -->\nold\n<!-- end of results -->\nb\n"
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "floor.json"), b, 0o600), os.WriteFile(doc, []byte(before), 0o600)); err != nil {
		t.Fatal(err)
	}
	// The second time there is only the summary.
	for _, from := range []string{dir, ""} {
		if status := command(t.Context(), []string{"docs", "--summary", file, "--from", from, doc}, os.Stdout, os.Stderr); status != 0 {
			t.Fatalf("status %d", status)
		}
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"a\n<!-- results -->\n\n", "| floor | 4 KiB × 64 to 10 on 8 | MB/s    | 2     | 4     |\n",
			"| floor | 1 KiB × 1 to 1 on 1   | p50 µs  | 10    |       |\n", "- floor: commit abc", "\n<!-- end of results -->\nb\n",
		} {
			if !strings.Contains(string(text), want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Contains(string(text), "old") {
			t.Errorf("the old table is still there:\n%s", text)
		}
	}
	sum, err := updateSummary(file, "")
	if err != nil || len(sum.Tables) != 1 || sum.Tables[0].Rounds != 3 {
		t.Fatalf("%+v, %v", sum, err)
	}
	if got, want := sum.Tables[0].Rows[0], (summaryRow{bulk, "MB/s", felixName, 2, 1, 3}); got != want {
		t.Errorf("row %+v, want %+v", got, want)
	}
	if err := os.WriteFile(doc, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status := command(t.Context(), []string{"docs", "--summary", file, doc}, os.Stdout, io.Discard); status != 1 {
		t.Errorf("a document without a place: status %d", status)
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
	at := func(round int, v float64) outcome {
		return outcome{Round: round, Result: &loadgen.Result{DeliveredBytesPerSecond: v}}
	}
	// The second run of the other system failed.
	got := ratios([]outcome{at(0, 2), at(1, 9), at(2, 3)}, []outcome{at(0, 1), at(2, 2)}, throughput.of)
	if len(got) != 2 || got[0] != 2 || got[1] != 1.5 || stats.Median(got) != 1.75 {
		t.Errorf("got %v", got)
	}
}
