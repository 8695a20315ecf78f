package report

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/loadgen"
)

// sample makes a report of two loads with real runs of two trials each.
func sample(t *testing.T, dir string) *Report {
	t.Helper()
	r := &Report{
		Format: Format, Scenario: "pubsub", Command: "loadgen --fanout 1,2", Commit: "abc", Started: time.Now(),
		Environment: loadgen.CurrentEnvironment(),
	}
	for _, fanout := range []int{1, 2} {
		c := &Cell{Axes: []Axis{{"fanout", strconv.Itoa(fanout)}, {"batch", "8"}}}
		for range 2 {
			cfg := loadgen.Config{Fanout: fanout, Payload: 128, Batch: 8, Window: 2, Total: 2000, Warmup: 1, IdleTimeout: time.Minute}
			cfg.Interval = 20 * time.Millisecond
			log, err := r.NewIntervalLog(filepath.Join(dir, c.FileName()+".hlog"), c) // the second replaces the first
			if err != nil {
				t.Fatal(err)
			}
			cfg.OnInterval = log.Write
			res, err := loadgen.Run(t.Context(), cfg)
			if err = errors.Join(err, log.Close()); err != nil {
				t.Fatal(err)
			}
			if err := c.Add(res); err != nil {
				t.Fatal(err)
			}
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	r := sample(t, dir)
	if err := r.WriteFiles(dir); err != nil {
		t.Fatal(err)
	}
	checkProvenance(t, dir, r)

	t.Run("json", func(t *testing.T) {
		back, err := Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(back.Cells) != 2 || len(back.Cells[1].Trials) != 2 || back.Cells[1].Load != r.Cells[1].Load || back.Cells[1].Name() != "fanout=2 batch=8" {
			t.Fatalf("got %+v", back)
		}
		trial := back.Cells[1].Trials[1]
		if len(trial.Metrics) != 3 || trial.Metrics[0] != r.Cells[1].Trials[1].Metrics[0] {
			t.Errorf("metrics %+v", trial.Metrics)
		}
		var res loadgen.Result
		if err := json.Unmarshal(trial.Result, &res); err != nil || res.Delivered != 4000 || len(res.Intervals) == 0 || res.Environment != r.Environment {
			t.Errorf("%v: result %+v", err, res)
		}
	})
	t.Run("structure", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(dir, "report.json"))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		want := []string{"cells", "command", "commit", "environment", "format", "scenario", "started"}
		if got := sortedKeys(m); !slices.Equal(got, want) {
			t.Errorf("members %q, want %q", got, want)
		}
		want = []string{"commit", "cpu", "cpus", "dirty", "go", "gomaxprocs", "kernel", "os", "pgo", "quic_go", "race", "rmem_max_bytes", "tags", "variables", "wmem_max_bytes"}
		if got := sortedKeys(m["environment"].(map[string]any)); !slices.Equal(got, want) {
			t.Errorf("members of the environment: %q, want %q", got, want)
		}
		want = []string{"axes", "config", "load", "trials"}
		if got := sortedKeys(m["cells"].([]any)[0].(map[string]any)); !slices.Equal(got, want) {
			t.Errorf("members of a cell: %q, want %q", got, want)
		}
	})
	t.Run("trials", func(t *testing.T) {
		rows := readTable(t, filepath.Join(dir, "trials.csv"), "fanout,batch,trial,metric,unit,value")
		if len(rows) != 2*2*3 || rows[11][0] != "2" || rows[11][2] != "2" || rows[11][3] != "p99" {
			t.Errorf("got %q", rows)
		}
	})
	t.Run("intervals", func(t *testing.T) {
		rows := readTable(t, filepath.Join(dir, "intervals.csv"),
			"fanout,batch,trial,start_s,seconds,per_second,dropped,p50_us,p90_us,p99_us,p999_us,max_us,"+
				"rss_bytes,heap_bytes,goroutines,server_rss_bytes,server_heap_bytes,server_goroutines")
		if len(rows) < 4 || rows[0][3] != "0" || rows[0][15] != "" || rows[0][14] == "0" {
			t.Errorf("got %q", rows)
		}
	})
	t.Run("hgrm", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(dir, "fanout-2-batch-8.deliver.hgrm"))
		if err != nil {
			t.Fatal(err)
		}
		checkPercentiles(t, b, 8000)
	})
	t.Run("hlog", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(dir, "fanout-2-batch-8.hlog"))
		if err != nil || !strings.HasPrefix(string(b), "#[Histogram log format version 1.3]\n") {
			t.Fatalf("%v: %.200s", err, b)
		}
		in := hdrhistogram.NewHistogramLogReader(bytes.NewReader(b))
		var samples, last int64
		for {
			h, err := in.NextIntervalHistogram()
			if err != nil {
				t.Fatal(err)
			}
			if h == nil {
				break
			}
			samples += h.TotalCount()
			if h.Tag() != "deliver" || h.StartTimeMs() < last || h.EndTimeMs() < h.StartTimeMs() {
				t.Errorf("tag %q, from %d to %d", h.Tag(), h.StartTimeMs(), h.EndTimeMs())
			}
			last = h.StartTimeMs()
		}
		if samples != 4000 {
			t.Errorf("%d samples, want 4000", samples)
		}
	})
}

// checkProvenance checks that each file says how it came about.
func checkProvenance(t *testing.T, dir string, r *Report) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"loadgen --fanout 1,2", r.Environment.Go, r.Environment.Kernel, "GRO", "abc"} {
			if want == "GRO" && (strings.HasSuffix(f.Name(), ".hlog") || strings.HasSuffix(f.Name(), ".json")) {
				continue // written before a broker was there, or "gro": true
			}
			if !strings.Contains(string(b), want) {
				t.Errorf("%s does not say %q", f.Name(), want)
			}
		}
	}
	want := []string{
		"fanout-1-batch-8.deliver.hgrm", "fanout-1-batch-8.hlog", "fanout-2-batch-8.deliver.hgrm", "fanout-2-batch-8.hlog",
		"intervals.csv", "report.json", "trials.csv",
	}
	if !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// readTable reads the rows of a table with that head.
func readTable(t *testing.T, file, head string) [][]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	in := csv.NewReader(f)
	in.Comment = '#'
	rows, err := in.ReadAll()
	if err != nil || len(rows) == 0 {
		t.Fatalf("%v: %q", err, rows)
	}
	if got := strings.Join(rows[0], ","); got != head {
		t.Errorf("columns %s, want %s", got, head)
	}
	return rows[1:]
}

// checkPercentiles parses a percentile distribution of so many samples.
func checkPercentiles(t *testing.T, b []byte, samples int64) {
	t.Helper()
	lastValue, lastPercentile, count, rows := 0.0, 0.0, int64(0), 0
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		fields := strings.Fields(in.Text())
		if len(fields) != 4 || strings.HasPrefix(in.Text(), "#") || fields[0] == "Value" {
			continue
		}
		value, err1 := strconv.ParseFloat(fields[0], 64)
		percentile, err2 := strconv.ParseFloat(fields[1], 64)
		n, err3 := strconv.ParseInt(fields[2], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil || value < lastValue || percentile < lastPercentile || n < count {
			t.Errorf("%v in %q", err, in.Text())
		}
		lastValue, lastPercentile, count = value, percentile, n
		rows++
	}
	if rows < 10 || lastPercentile != 1 || count != samples {
		t.Errorf("%d lines up to %v with %d samples, want %d", rows, lastPercentile, count, samples)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, tc := range map[string]struct{ file, want string }{
		"nothing":      {filepath.Join(dir, "nosuch"), "no such file"},
		"not json":     {write("text", "hello"), "invalid character"},
		"not a report": {write("other", "{}"), "format 0, not 1"},
		"no runs":      {write("empty", `{"format":1}`), "holds no runs"},
		"directory":    {t.TempDir(), "holds no runs"},
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := Read(tc.file); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v, %v, want %q", r, err, tc.want)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"format":1,"cells":[{"load":"a","axes":[{"name":"n","value":"v"}],"trials":[{"metrics":[{"name":"p50","value":1}],"result":{}}]}]}`))
	f.Add([]byte(`{"format":1,"cells":[{"load":"a","trials":[{},{},{"metrics":[{"value":1e309}]}]}, null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "r.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Read(file)
		if err != nil {
			return
		}
		if c, err := Compare(r, r); err == nil {
			if c.Slower() {
				t.Errorf("a report is slower than itself: %+v", c)
			}
			_ = c.WriteText(io.Discard)
		}
	})
}
