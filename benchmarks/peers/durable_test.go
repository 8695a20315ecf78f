package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Every system of a row carries out a small run, and says all that its row shows and wants. All rows are for make prove
// T=durable.
func TestDurableRows(t *testing.T) {
	o := durableOptions{
		job:    durableJob{Duration: 100 * time.Millisecond, Warmup: 20 * time.Millisecond, HistoryRate: 1e6, Small: true},
		rounds: 1, dir: t.TempDir(), only: regexp.MustCompile(`^(publish/1x1|replay)$|callers=8`),
	}
	want := []string{"JetStream R1, sync always", "2121453"}
	if os.Getenv("FELIX_DURABLE_ROWS") == "all" { // minutes
		o.only = regexp.MustCompile(`^(publish|fanout|replay|history|open|idle|recovery)|callers=8`)
		want = append(want, "bytes of heap each")
	}
	runs, failed := measureDurable(t.Context(), &o, t.Output())
	if failed {
		t.Fatal("a run failed")
	}
	r := durableRecord{Runs: runs}
	for _, row := range durableRows() {
		if !o.only.MatchString(row.name) {
			continue
		}
		for _, g := range row.goals {
			if v := r.of(row.name, g.system, g.figure); len(v) != 1 {
				t.Errorf("%s: %s: %q: %v", row.name, g.system, g.figure, v)
			}
			if _, verdict := r.judge(&row, g); strings.Contains(verdict, "not measured") {
				t.Errorf("%s: %s: %q: %s", row.name, g.system, g.figure, verdict)
			}
		}
		for _, figure := range row.shown {
			if !slices.ContainsFunc(runs, func(run durableRun) bool { return run.Row == row.name && run.Figures[figure] > 0 }) && figure != "files held" {
				t.Errorf("%s: no system says %q", row.name, figure)
			}
		}
	}
	left, err := os.ReadDir(filepath.Join(o.dir, "run"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v, %v", left, err)
	}
	var text bytes.Buffer
	r.Rounds = 1
	r.write(&text)
	for _, want := range want {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
}

// A goal compares runs of the same round, and a figure that is missing does not meet it.
func TestDurableGoals(t *testing.T) {
	row := durableRow{name: "row"}
	r := durableRecord{Runs: []durableRun{
		{Round: 0, Row: "row", System: "a", Figures: figures{"x": 10}},
		{Round: 0, Row: "row", System: "b", Figures: figures{"x": 5}},
		{Round: 1, Row: "row", System: "a", Figures: figures{"x": 90}},
		{Round: 1, Row: "row", System: "b", Figures: figures{"x": 30}},
		{Round: 2, Row: "row", System: "a", Figures: figures{"x": 1000}},
		{Round: 2, Row: "row", System: "b", Error: "failed"},
	}}
	for _, tc := range []struct {
		goal           durableGoal
		ratio, verdict string
	}{
		{durableGoal{"x", "a", "b", limit{true, 2.5}}, "2.50 (2.00–3.00)", "≥ 2.5 holds"},
		{durableGoal{"x", "a", "b", limit{false, 2.4}}, "2.50 (2.00–3.00)", "≤ 2.4 **misses**"},
		{durableGoal{"x", "a", "", limit{false, 90}}, "", "≤ 90 holds"},
		{durableGoal{"x", "a", "", limit{false, 89}}, "", "≤ 89 **misses**"},
		{durableGoal{"y", "a", "b", limit{true, 1}}, "", "≥ 1 **not measured**"},
		{durableGoal{"x", "a", "c", limit{true, 1}}, "", "≥ 1 **not measured**"},
	} {
		if ratio, verdict := r.judge(&row, tc.goal); ratio != tc.ratio || verdict != tc.verdict {
			t.Errorf("%+v: %q, %q", tc.goal, ratio, verdict)
		}
	}
}

// What ends within the measured time counts, and one publisher that fails ends all.
func TestClosedLoop(t *testing.T) {
	takes := func(d time.Duration) []func(context.Context) error {
		return []func(context.Context) error{func(context.Context) error { time.Sleep(d); return nil }}
	}
	synctest.Test(t, func(t *testing.T) {
		// Of publishes that end each 10 ms, five do so from 25 ms to 75 ms.
		l, err := closedLoop(t.Context(), takes(10*time.Millisecond), 25*time.Millisecond, 50*time.Millisecond)
		if err != nil || len(l.latencies) != 5 || l.duration != 50*time.Millisecond || l.rate() != 100 || l.micros(99) != 10_000 {
			t.Errorf("%+v, %v", l, err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // none does, so that the first one after it counts
		l, err := closedLoop(t.Context(), takes(200*time.Millisecond), 25*time.Millisecond, 50*time.Millisecond)
		if err != nil || len(l.latencies) != 1 || l.duration != 175*time.Millisecond || l.latencies[0] != 200*time.Millisecond {
			t.Errorf("%+v, %v", l, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		publish := append(takes(time.Millisecond), func(context.Context) error { return broken })
		if _, err := closedLoop(t.Context(), publish, 0, time.Hour); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

// The way with the highest rate is taken, wherever it stands; a single one needs no trial.
func TestFastestWay(t *testing.T) {
	rates := map[string]float64{"a": 1, "b": 3, "c": 2}
	rate := func(w way) (float64, error) { return rates[w.name], nil }
	for _, names := range []string{"abc", "bca", "cab"} {
		var ways []way
		for _, name := range names {
			ways = append(ways, way{name: string(name)})
		}
		if w, err := fastest(ways, rate); err != nil || w.name != "b" {
			t.Errorf("%s: %q, %v", names, w.name, err)
		}
	}
	broken := errors.New("broken")
	fail := func(way) (float64, error) { return 0, broken }
	if w, err := fastest([]way{{name: "a"}}, fail); err != nil || w.name != "a" {
		t.Errorf("%q, %v", w.name, err)
	}
	if _, err := fastest([]way{{name: "a"}, {name: "b"}}, fail); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// Flags are checked, names are listed, and --json and --results keep the runs.
func TestDurableCommand(t *testing.T) {
	run := func(args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = runDurable(t.Context(), args, &out, &errs)
		return code, out.String(), errs.String()
	}
	for _, args := range [][]string{{"--rounds", "0"}, {"--only", "("}, {"--history-rate", "0"}, {"word"}} {
		if code, _, _ := run(args...); code != 2 {
			t.Errorf("%q: status %d", args, code)
		}
	}
	if code, out, _ := run("--only", "list"); code != 0 || !strings.Contains(out, "publish/64x1\n") {
		t.Errorf("list: status %d, %s", code, out)
	}
	if code, _, errs := run("--only", "no such row"); code != 1 || !strings.Contains(errs, "nothing was measured") {
		t.Errorf("no row: status %d, %s", code, errs)
	}
	dir, results := t.TempDir(), t.TempDir()
	code, out, errs := run("--only", "append/on_commit/batch=16/callers=64", "--rounds", "2", "--dir", dir, "--results", results, "--commit", "abc", "--json")
	if code != 0 {
		t.Fatalf("status %d: %s", code, errs)
	}
	var rec durableRecord
	if err := json.Unmarshal([]byte(out), &rec); err != nil || len(rec.Runs) != 2 || rec.Commit != "abc" || rec.Runs[1].Figures[recordsPerSecond] <= 0 {
		t.Errorf("%v: %+v", err, rec)
	}
	kept, err := filepath.Glob(filepath.Join(results, "*-abc", "durable.*"))
	if err != nil || len(kept) != 2 {
		t.Errorf("kept %v, %v", kept, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The table of a directory of results comes into a document as it is; a directory without one leaves the document's.
func TestDurableDocs(t *testing.T) {
	from, document := t.TempDir(), filepath.Join(t.TempDir(), "performance.md")
	summary := filepath.Join(t.TempDir(), "summary.json")
	put := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill := func() (code int, text, said string) {
		var errs bytes.Buffer
		code = runDocs(t.Context(), []string{"--summary", summary, "--from", from, document}, io.Discard, &errs)
		b, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		return code, string(b), errs.String()
	}
	const results = "<!-- results -->\n<!-- end of results -->\n"
	put(document, results+"a\n<!-- durable -->\nold\n<!-- end of durable -->\nb\n")
	if code, text, said := fill(); code != 0 || !strings.Contains(text, "<!-- durable -->\nold\n<!-- end") {
		t.Errorf("without a table: status %d, %s\n%s", code, said, text)
	}
	put(filepath.Join(from, "durable.md"), "new $1\n")
	if code, text, said := fill(); code != 0 || !strings.HasSuffix(text, "a\n<!-- durable -->\n\nnew $1\n\n<!-- end of durable -->\nb\n") {
		t.Errorf("status %d, %s\n%s", code, said, text)
	}
	put(document, results)
	if code, _, said := fill(); code != 1 || !strings.Contains(said, "no place") {
		t.Errorf("without a place: status %d, %s", code, said)
	}
}
