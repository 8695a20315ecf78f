// Package report keeps what runs of package loadgen have measured: as one JSON file, as tables in CSV, as histograms
// that the tools of HdrHistogram read; and it compares the runs of one file with those of another.
//
// Every file says by what command and in what environment it was made. Begin at [Report]; [Compare] is the comparison.
// Plots are made by package plot.
package report

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/loadgen"
)

// Format is the version of the JSON form. Members are added to it, not renamed.
const Format = 1

// Report is what one command measured.
type Report struct {
	Format   int       `json:"format"`
	Scenario string    `json:"scenario"`
	Command  string    `json:"command"`
	Commit   string    `json:"commit"`
	Started  time.Time `json:"started"`
	Cells    []*Cell   `json:"cells"`

	Environment loadgen.Environment `json:"environment"`

	sources []source // of a report that was read from files
}

// Cell is one load of a report, with all runs of it.
type Cell struct {
	Load   string          `json:"load"`             // in one line
	Config json.RawMessage `json:"config,omitempty"` // parameters of the load, an object; loads are the same if both are
	Axes   []Axis          `json:"axes,omitempty"`   // what was swept, and the value here
	Trials []Trial         `json:"trials"`
}

// Axis is a flag that was given several values, and one of them.
type Axis struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Name is the part of the cell that tells it from the others of its report.
func (c *Cell) Name() string {
	parts := make([]string, len(c.Axes))
	for i, a := range c.Axes {
		parts[i] = a.Name + "=" + a.Value
	}
	return strings.Join(parts, " ")
}

// FileName is the beginning of the names of the cell's files.
func (c *Cell) FileName() string {
	if len(c.Axes) == 0 {
		return "run"
	}
	return strings.NewReplacer("=", "-", " ", "-", "/", "-").Replace(c.Name())
}

// Trial is one run.
type Trial struct {
	Metrics []loadgen.Metric `json:"metrics"` // that trials are compared by
	Result  json.RawMessage  `json:"result"`  // as the scenario gives it

	// What a report that was read from a file does not have.
	Measured *loadgen.Measurement `json:"-"`
}

// Result is the outcome of a run of any scenario.
type Result interface {
	Load() string
	Parameters() any // of the load, which becomes a JSON object
	Metrics() []loadgen.Metric
	Measured() *loadgen.Measurement
	WriteText(io.Writer) error
}

// Add adds a run to the cell.
func (c *Cell) Add(r Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if c.Config, err = json.Marshal(r.Parameters()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	c.Load = r.Load()
	c.Trials = append(c.Trials, Trial{Metrics: r.Metrics(), Result: b, Measured: r.Measured()})
	return nil
}

// Provenance says in lines how the report came about. The broker is that of the last run.
func (r *Report) Provenance() []string {
	lines := []string{r.Command, "machine: " + r.Environment.String()}
	var broker *loadgen.BrokerInfo
	for _, c := range r.Cells {
		for _, t := range c.Trials {
			if t.Measured != nil {
				broker = &t.Measured.Broker
			}
		}
	}
	if broker != nil {
		lines = append(lines, "broker: "+broker.String())
	}
	if r.Commit != "" {
		lines[1] += ", commit " + r.Commit
	}
	return append(lines, "started "+r.Started.UTC().Format(time.RFC3339))
}

// WriteFiles writes report.json, trials.csv and intervals.csv to a directory, and the histograms of each cell.
func (r *Report) WriteFiles(dir string) error {
	files := map[string]func(io.Writer) error{
		"report.json":   r.writeJSON,
		"trials.csv":    r.writeTrials,
		"intervals.csv": r.writeIntervals,
	}
	for _, c := range r.Cells {
		for tag, h := range c.histograms() {
			files[c.FileName()+"."+tag+".hgrm"] = func(w io.Writer) error { return r.writePercentiles(w, c, h) }
		}
	}
	errs := make([]error, 0, len(files))
	for name, write := range files {
		errs = append(errs, WriteFile(filepath.Join(dir, name), write))
	}
	return errors.Join(errs...)
}

// WriteFile makes a file of what write writes.
func WriteFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err = errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("report: %s: %w", name, err)
	}
	return nil
}

func (r *Report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// Read reads reports: files, or directories of which all files named *.json are read. The trials of equal loads are put
// together.
func Read(name string) (*Report, error) {
	files := []string{name}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(name, "*.json")); err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
	}
	all := new(Report)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
		var r Report
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("report: %s: %w", file, err)
		}
		if r.Format != Format {
			return nil, fmt.Errorf("report: %s has format %d, not %d: is it a report of loadgen?", file, r.Format, Format)
		}
		cells := append(all.Cells, r.Cells...)
		r.sources = append(all.sources, source{file, r.Commit, r.Environment})
		*all = r
		all.Cells = nil
		for _, c := range cells {
			if c == nil {
				return nil, fmt.Errorf("report: %s has a load that is null", file)
			}
			all.merge(c)
		}
	}
	if len(all.Cells) == 0 {
		return nil, fmt.Errorf("report: %s holds no runs", name)
	}
	return all, nil
}

func (r *Report) merge(c *Cell) {
	for _, other := range r.Cells {
		if other.same(c) {
			other.Trials = append(other.Trials, c.Trials...)
			return
		}
	}
	r.Cells = append(r.Cells, c)
}

// comments writes the provenance in front of a table. Readers skip lines that begin with #.
func (r *Report) comments(w io.Writer) error {
	for _, line := range r.Provenance() {
		if _, err := fmt.Fprintf(w, "# %s\n", line); err != nil {
			return err
		}
	}
	return nil
}

// table writes a CSV table with columns for the axes, the trial and what is given.
func (r *Report) table(w io.Writer, columns []string, rows func(c *Cell, t *Trial, row func(...string))) error {
	if err := r.comments(w); err != nil {
		return err
	}
	out := csv.NewWriter(w)
	var head []string
	for _, a := range r.Cells[0].Axes {
		head = append(head, a.Name)
	}
	_ = out.Write(append(append(head, "trial"), columns...)) // Error tells
	for _, c := range r.Cells {
		for i := range c.Trials {
			var first []string
			for _, a := range c.Axes {
				first = append(first, a.Value)
			}
			first = append(first, strconv.Itoa(i+1))
			rows(c, &c.Trials[i], func(rest ...string) { _ = out.Write(append(slices.Clip(first), rest...)) })
		}
	}
	out.Flush()
	return out.Error()
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 9, 64) }

// writeTrials writes a line for each figure of each trial.
func (r *Report) writeTrials(w io.Writer) error {
	return r.table(w, []string{"metric", "unit", "value"}, func(_ *Cell, t *Trial, row func(...string)) {
		for _, m := range t.Metrics {
			row(m.Name, m.Unit, number(m.Value))
		}
	})
}

// writeIntervals writes a line for each interval of each trial. The last columns are of the broker's process, and empty
// if it has none of its own.
func (r *Report) writeIntervals(w io.Writer) error {
	columns := []string{
		"start_s", "seconds", "per_second", "dropped", "p50_us", "p90_us", "p99_us", "p999_us", "max_us",
		"rss_bytes", "heap_bytes", "goroutines", "server_rss_bytes", "server_heap_bytes", "server_goroutines",
	}
	return r.table(w, columns, func(_ *Cell, t *Trial, row func(...string)) {
		for _, i := range t.Measured.Intervals {
			l := &i.Latency
			line := []string{
				number(i.Start), number(i.Seconds), number(i.Rate), strconv.FormatUint(i.Dropped, 10),
				number(l.P50), number(l.P90), number(l.P99), number(l.P999), number(l.Max),
			}
			line = append(line, held(&i.Process)...)
			if i.Server != nil {
				line = append(line, held(i.Server)...)
			} else {
				line = append(line, "", "", "")
			}
			row(line...)
		}
	})
}

func held(r *loadgen.Resources) []string {
	return []string{strconv.FormatInt(r.RSS, 10), strconv.FormatInt(r.Heap, 10), strconv.Itoa(r.Goroutines)}
}

// histograms returns the latencies of all trials together, by tag.
func (c *Cell) histograms() map[string]*hdrhistogram.Histogram {
	all := make(map[string]*hdrhistogram.Histogram)
	for _, t := range c.Trials {
		for _, s := range t.Measured.Series {
			if all[s.Tag] == nil {
				all[s.Tag] = hdrhistogram.New(s.Histogram.LowestTrackableValue(), s.Histogram.HighestTrackableValue(), int(s.Histogram.SignificantFigures()))
			}
			all[s.Tag].Merge(s.Histogram)
		}
	}
	return all
}

// Histogram returns the latencies of all trials and kinds together, in nanoseconds, or nil if there are none.
func (c *Cell) Histogram() *hdrhistogram.Histogram {
	var all *hdrhistogram.Histogram
	for _, h := range c.histograms() {
		if all == nil {
			all = h
		} else {
			all.Merge(h)
		}
	}
	return all
}

// writePercentiles writes a percentile distribution in microseconds.
func (r *Report) writePercentiles(w io.Writer, c *Cell, h *hdrhistogram.Histogram) error {
	if _, err := h.PercentilesPrint(w, 5, 1e3); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "#[Unit = microseconds; %s]\n", c.Load); err != nil {
		return err
	}
	for _, line := range r.Provenance() {
		if _, err := fmt.Fprintf(w, "#[%s]\n", line); err != nil {
			return err
		}
	}
	return nil
}

// IntervalLog is a log of interval histograms, version 1.3, which is written while a run lasts.
type IntervalLog struct {
	f   *os.File
	out *hdrhistogram.HistogramLogWriter
	err error
}

// NewIntervalLog begins the log of a cell in a file.
func (r *Report) NewIntervalLog(file string, c *Cell) (*IntervalLog, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	l := &IntervalLog{f: f, out: hdrhistogram.NewHistogramLogWriter(f)}
	errs := []error{l.out.OutputLogFormatVersion()}
	for _, line := range append([]string{"latencies in nanoseconds, maxima in milliseconds; " + c.Name()}, r.Provenance()...) {
		errs = append(errs, l.out.OutputComment(" "+line))
	}
	l.err = errors.Join(append(errs, l.out.OutputStartTime(time.Now().UnixMilli()), l.out.OutputLegend())...)
	return l, nil
}

// Write adds an interval. The first error is kept for Close.
func (l *IntervalLog) Write(h *hdrhistogram.Histogram) {
	if l.err == nil {
		l.err = l.out.OutputIntervalHistogram(h)
	}
}

// Close ends the log and tells the first error of it.
func (l *IntervalLog) Close() error {
	if err := errors.Join(l.err, l.f.Close()); err != nil {
		return fmt.Errorf("report: %s: %w", l.f.Name(), err)
	}
	return nil
}
