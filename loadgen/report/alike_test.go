package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/felix-mq/felix/loadgen"
)

// of makes a report of one load with those parameters, in JSON.
func of(load, config string) *Report {
	r := trials(rand.New(rand.NewPCG(7, 8)), 3, 1e6, 100, 0.01)
	r.Cells[0].Load, r.Cells[0].Config = load, json.RawMessage(config)
	r.Environment = loadgen.Environment{CPU: "model", CPUs: 2, GOMAXPROCS: 2, Go: "go1.26", OS: "linux/amd64", Kernel: "6.1", PGO: "default.pgo"}
	return r
}

// What differs is named, with both values.
func TestUnlikeRuns(t *testing.T) {
	for want, change := range map[string]func(*Report){
		"machine: processor: model and other":                func(r *Report) { r.Environment.CPU = "other" },
		"machine: number of processors: 2 and 4":             func(r *Report) { r.Environment.CPUs = 4 },
		"machine: kernel: 6.1 and 6.2":                       func(r *Report) { r.Environment.Kernel = "6.2" },
		"machine: system: linux/amd64 and linux/386":         func(r *Report) { r.Environment.OS = "linux/386" },
		"machine: most bytes of a receive buffer: 0 and 1":   func(r *Report) { r.Environment.ReceiveBufferMax = 1 },
		"machine: most bytes of a send buffer: 0 and 1":      func(r *Report) { r.Environment.SendBufferMax = 1 },
		"GOMAXPROCS: 2 and 1":                                func(r *Report) { r.Environment.GOMAXPROCS = 1 },
		"variables: none and GOGC=50":                        func(r *Report) { r.Environment.Variables = "GOGC=50" },
		"build: Go: go1.26 and go1.27":                       func(r *Report) { r.Environment.Go = "go1.27" },
		"build: profile (PGO): default.pgo and off":          func(r *Report) { r.Environment.PGO = "off" },
		"build: tags: none and telemetry":                    func(r *Report) { r.Environment.Tags = "telemetry" },
		"build: race detector: false and true":               func(r *Report) { r.Environment.Race = true },
		"load: compress: false and true":                     func(r *Report) { r.Cells[0].Config = json.RawMessage(`{"compress": true, "fanout": 1}`) },
		"load: fanout: 1 and nothing":                        func(r *Report) { r.Cells[0].Config = json.RawMessage(`{"compress": false}`) },
		"older loadgen":                                      func(r *Report) { r.Cells[0].Config = nil },
		`load: "a" and "b"`:                                  func(r *Report) { r.Cells[0].Load, r.Cells[0].Config = "b", nil },
		"base has none to compare with":                      func(r *Report) { r.Cells = append(r.Cells, of("b", `{}`).Cells...) },
		"trials of one side are of two commits: abc and def": func(r *Report) { r.sources = []source{{"x", "abc", r.Environment}, {"y", "def", r.Environment}} },
	} {
		t.Run(want, func(t *testing.T) {
			base, head := of("a", `{"fanout": 1, "compress": false}`), of("a", `{"compress":false,"fanout":1}`)
			if _, err := Compare(base, head); err != nil {
				t.Fatalf("equal loads in another order: %v", err)
			}
			change(head)
			var unlike *UnlikeError
			if c, err := Compare(base, head); !errors.As(err, &unlike) || len(unlike.Differences) != 1 || !strings.Contains(err.Error(), want) {
				t.Fatalf("%+v, %v, want %q", c, err, want)
			}
			c, err := CompareUnlike(base, head)
			if err != nil || len(c.Unlike) != 1 {
				t.Fatalf("%+v, %v", c, err)
			}
			var text strings.Builder
			if err := c.WriteText(&text); err != nil || !strings.HasPrefix(text.String(), "UNLIKE RUNS, ") ||
				!strings.Contains(text.String(), want) || !strings.Contains(text.String(), "\nUNLIKE RUNS, no difference: ") {
				t.Errorf("%v:\n%s", err, &text)
			}
		})
	}
}

// Commits are what is compared. Another one is no reason to refuse, and neither is a load that only base has.
func TestLikeRuns(t *testing.T) {
	base, head := of("a", `{}`), of("a", `{}`)
	base.Commit, head.Commit = "abc", "def"
	base.Environment.Commit, head.Environment.Commit, head.Environment.Dirty = "abc", "def+dirty", true
	base.Cells = append(base.Cells, of("b", `{"fanout": 2}`).Cells...)
	c, err := Compare(base, head)
	if err != nil || len(c.LeftOut) != 1 || c.LeftOut[0] != "b" {
		t.Fatalf("%+v, %v", c, err)
	}
	var text strings.Builder
	if err := c.WriteText(&text); err != nil || !strings.Contains(text.String(), "of base alone, not compared: b\n") || strings.Contains(text.String(), "UNLIKE") {
		t.Errorf("%v:\n%s", err, &text)
	}
	if err := CheckEnvironment(base, head.Environment); err != nil {
		t.Error(err)
	}
	var unlike *UnlikeError
	if err := CheckEnvironment(base, loadgen.Environment{}); !errors.As(err, &unlike) {
		t.Errorf("got %v", err)
	}
}

// A load with several differences is compared with the one that is most like it.
func TestClosestLoad(t *testing.T) {
	base := of("a", `{"fanout": 1, "payload": 256}`)
	base.Cells = append(base.Cells, of("b", `{"fanout": 10, "payload": 4096}`).Cells...)
	head := of("c", `{"fanout": 10, "payload": 256, "batch": 64}`)
	base.Cells[0].Config = json.RawMessage(`{"fanout": 1, "payload": 1}`)
	_, differences, _ := pairs(base, head)
	if got := fmt.Sprint(differences); !strings.Contains(got, "batch: nothing and 64") || !strings.Contains(got, "payload: 4096 and 256") || len(differences) != 2 {
		t.Errorf("got %q", differences)
	}
}

// A directory may hold trials of several files: if they are unlike among themselves, the comparison says which.
func TestUnlikeFiles(t *testing.T) {
	dir := t.TempDir()
	for i, goVersion := range []string{"go1.26", "go1.26", "go1.25"} {
		r := of("a", `{"fanout": 1}`)
		r.Environment.Go = goVersion
		err := WriteFile(filepath.Join(dir, fmt.Sprint(i, ".json")), r.writeJSON)
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := Read(dir)
	if err != nil || len(r.Cells) != 1 || len(r.Cells[0].Trials) != 9 {
		t.Fatalf("%+v, %v", r, err)
	}
	_, err = Compare(r, r)
	if err == nil || !strings.Contains(err.Error(), "go1.26 and go1.25") || !strings.Contains(err.Error(), "2.json") || strings.Contains(err.Error(), "1.json") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "2.json")); err != nil {
		t.Fatal(err)
	}
	if r, err = Read(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Compare(r, r); err != nil {
		t.Error(err)
	}
}

// Loads that differ in any parameter have different parameters, and those that people ask for another line as well.
func TestRunsRecordTheirLoad(t *testing.T) {
	run := func(change func(*loadgen.Config)) *Cell {
		cfg := loadgen.Config{Payload: 64, Batch: 4, Window: 1, Total: 400, Warmup: 1}
		change(&cfg)
		res, err := loadgen.Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := new(Cell)
		if err := c.Add(res); err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain := run(func(*loadgen.Config) {})
	if again := run(func(*loadgen.Config) {}); !plain.same(again) {
		t.Errorf("%s and %s", plain.Config, again.Config)
	}
	for name, change := range map[string]func(*loadgen.Config){
		"compress": func(c *loadgen.Config) { c.Compress = true },
		"seed":     func(c *loadgen.Config) { c.Seed = 1 },
		"total":    func(c *loadgen.Config) { c.Total = 800 },
	} {
		other := run(change)
		if d := plain.unlike(other); len(d) != 1 || !strings.HasPrefix(d[0], name) {
			t.Errorf("%s: %q", name, d)
		}
	}
}
