package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
)

// The table of durable streams. Each row is a question, which some systems answer on the same disk one after the other.
// durablepublish.go has what publishes, durableread.go what reads, and durableopen.go what opens and recovers.

const durableName = "durable"

// figures are what a run measured, by names that have their units.
type figures map[string]float64

// durableRow is a question.
type durableRow struct {
	name, title string
	// prepare fills a directory that all runs of the row have in common, once for all rounds. Nil: there is nothing.
	prepare func(ctx context.Context, j *durableJob) error
	systems []durableSystem // in the order in which they run
	shown   []string        // figures, in the order in which they are printed
	goals   []durableGoal
}

// durableSystem is one of those that a row compares. run is called in a process of its own. said are words for those
// who read the table, such as how the system was used.
type durableSystem struct {
	name, title string
	run         func(ctx context.Context, j *durableJob) (f figures, said string, err error)
}

// durableGoal is what a figure is wanted to be.
type durableGoal struct {
	figure, system string
	over           string // the system whose figure it is divided by; empty if by none
	limit          limit
}

// durableJob is one run, for its process.
type durableJob struct {
	Row, System      string
	Dir              string  // for this run; empty at its begin
	Shared           string  // what prepare has left
	Round            figures // of the system before, in the same round of the row
	Duration, Warmup time.Duration
	HistoryRate      float64 // bytes per second of all cursors that read history together
	Profiles         string  // directory for profiles of brokers; empty for none
	Small            bool    // a thousandth of everything, for tests
}

// scaled is a number of things, or a few of them in a test.
func (j *durableJob) scaled(n int) int {
	if j.Small {
		return max(n/1000, 4)
	}
	return n
}

// durableRun is what a run came to.
type durableRun struct {
	Round   int     `json:"round"`
	Row     string  `json:"row"`
	System  string  `json:"system"`
	Error   string  `json:"error,omitempty"` // why there is nothing else
	Figures figures `json:"figures,omitempty"`
	Said    string  `json:"said,omitempty"` // how the system was used
}

func (r *durableRun) summary() string {
	if r.Error != "" {
		return r.Error
	}
	var parts []string
	for _, name := range durableRowOf(r.Row).shown {
		if v, ok := r.Figures[name]; ok {
			parts = append(parts, digits(v)+" "+name)
		}
	}
	return strings.Join(parts, ", ")
}

// digits writes a figure with three digits or more.
func digits(v float64) string { return fmt.Sprintf(digitsOf(v), v) }

func digitsOf(v float64) string {
	switch {
	case v == 0 || v >= 100:
		return "%.0f"
	case v >= 10:
		return "%.1f"
	}
	return "%.2f"
}

func durableRows() []durableRow {
	return slices.Concat(publishRows(), readRows(), openRows(), appendRows())
}

func durableRowOf(name string) *durableRow {
	all := durableRows()
	if i := slices.IndexFunc(all, func(r durableRow) bool { return r.name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

type durableOptions struct {
	job     durableJob // what all runs have in common
	command string
	rounds  int
	only    *regexp.Regexp
	dir     string
	results string
	commit  string
	json    bool
}

// durableRecord is what is kept: every single run, and where it comes from.
type durableRecord struct {
	Command     string              `json:"command"`
	Commit      string              `json:"commit"`
	Began       time.Time           `json:"began"`
	Seconds     float64             `json:"seconds"`
	Environment loadgen.Environment `json:"environment"`
	Machine     machineState        `json:"machine"`
	Disk        string              `json:"disk"` // file system of the directory
	Rounds      int                 `json:"rounds"`
	Duration    time.Duration       `json:"duration_ns"`
	Warmup      time.Duration       `json:"warmup_ns"`
	HistoryRate float64             `json:"history_rate"` // bytes per second
	Runs        []durableRun        `json:"runs"`
}

func runDurable(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := durableOptions{command: strings.Join(append([]string{"bench-peers", durableName}, args...), " ")}
	flags := program.Flags("peers "+durableName, stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "`runs` of each system in each row")
	flags.DurationVar(&o.job.Duration, "duration", 3*time.Second, "measured time of a run that is not over by itself")
	flags.DurationVar(&o.job.Warmup, "warmup", 500*time.Millisecond, "time before that, and of each trial of a way to publish")
	only := flags.String("only", "", "rows whose name matches this `regexp`; list prints the names")
	flags.StringVar(&o.dir, "dir", "", "`directory` on the disk that is to be measured; that of temporary files if empty")
	flags.Float64Var(&o.job.HistoryRate, "history-rate", 50, "`MB/s` of the 100 cursors together that read history at a given rate")
	flags.StringVar(&o.job.Profiles, "profiles", "", "keep processor profiles of Felix's brokers in this `directory`")
	flags.StringVar(&o.results, "results", "", "keep table and runs in a directory of their own in this `directory`")
	flags.StringVar(&o.commit, "commit", "unknown", "the `commit` to print")
	flags.BoolVar(&o.json, "json", false, "print all runs as JSON, in place of the table")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	o.job.HistoryRate *= 1e6
	var err error
	if o.rounds < 1 || o.job.Duration <= 0 || o.job.Warmup <= 0 || o.job.HistoryRate <= 0 || flags.NArg() > 0 {
		err = errors.New("want positive --rounds, --duration, --warmup and --history-rate, and no arguments")
	} else if o.only, err = regexp.Compile(*only); err != nil {
		err = fmt.Errorf("--only: %w", err)
	}
	if err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 2
	}
	if *only == "list" {
		for _, r := range durableRows() {
			fmt.Fprintln(stdout, r.name)
		}
		return 0
	}
	if o.job.Profiles != "" {
		if o.job.Profiles, err = filepath.Abs(o.job.Profiles); err == nil {
			err = os.MkdirAll(o.job.Profiles, 0o755)
		}
	}
	if err == nil {
		o.dir, err = os.MkdirTemp(o.dir, "felix-durable-")
	}
	if err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	began, watch := time.Now(), watchMachine()
	rec := durableRecord{
		Command: o.command, Commit: o.commit, Began: began.UTC().Truncate(time.Second), Environment: loadgen.CurrentEnvironment(),
		Disk: fileSystem(o.dir), Rounds: o.rounds, Duration: o.job.Duration, Warmup: o.job.Warmup, HistoryRate: o.job.HistoryRate,
	}
	var failed bool
	rec.Runs, failed = measureDurable(ctx, &o, stderr)
	rec.Machine, rec.Seconds = watch(), time.Since(began).Round(time.Second).Seconds()
	if slices.ContainsFunc(rec.Runs, func(r durableRun) bool { return r.Error == "" }) {
		err = rec.keep(&o, stdout)
	} else {
		err = errors.New("nothing was measured")
	}
	fmt.Fprintf(stderr, "removing %s\n", o.dir)
	if err = errors.Join(err, os.RemoveAll(o.dir)); err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	if failed || ctx.Err() != nil {
		return 1
	}
	return 0
}

// measureDurable carries out all runs: one of each system of a row, then the next row, and all of that again for each
// round. A failed run is reported, and the others go on.
func measureDurable(ctx context.Context, o *durableOptions, stderr io.Writer) (all []durableRun, failed bool) {
	prepared := map[string]error{}
	for round := range o.rounds {
		for _, row := range durableRows() {
			if !o.only.MatchString(row.name) {
				continue
			}
			j := o.job
			j.Row = row.name
			if row.prepare != nil {
				j.Shared = filepath.Join(o.dir, "shared-"+strings.ReplaceAll(row.name, "/", "-"))
				if _, done := prepared[row.name]; !done {
					fmt.Fprintf(stderr, "preparing %s\n", row.name)
					prepared[row.name] = row.prepare(ctx, &j)
				}
			}
			for _, system := range row.systems {
				if ctx.Err() != nil {
					return all, true
				}
				fmt.Fprintf(stderr, "round %d of %d: %s: %s ... ", round+1, o.rounds, row.name, system.name)
				run, err := &durableRun{}, prepared[row.name]
				if err == nil {
					j.System, j.Dir = system.name, filepath.Join(o.dir, "run")
					run, err = runDurableChild(ctx, j)
				}
				if err != nil {
					failed = true
					run = &durableRun{Error: err.Error()}
				}
				j.Round = run.Figures
				run.Round, run.Row, run.System = round, row.name, system.name
				fmt.Fprintln(stderr, run.summary())
				all = append(all, *run)
			}
		}
	}
	return all, failed
}

// durableTimeout is what one run may take at most, with what it prepares.
const durableTimeout = 5 * time.Minute

// runDurableChild carries a run out in a fresh process, in a directory that goes with it.
func runDurableChild(ctx context.Context, j durableJob) (run *durableRun, err error) {
	if err := os.Mkdir(j.Dir, 0o755); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(j.Dir)) }()
	ctx, cancel := context.WithTimeoutCause(ctx, durableTimeout+grace, fmt.Errorf("no end after %v", durableTimeout))
	defer cancel()
	run = &durableRun{}
	p, err := child.Start(ctx, durableName, j, []string{"GOGC=400"}, run)
	if err != nil {
		return nil, err
	}
	if run.Error != "" {
		err = errors.New(run.Error)
	}
	return run, errors.Join(err, p.Stop(nil))
}

// serveDurable is the process of a run. It is ready when the run is over.
func serveDurable(ctx context.Context, j durableJob, parent *child.Parent) (any, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, durableTimeout, fmt.Errorf("no end after %v", durableTimeout))
	defer cancel()
	f, said, err := j.carryOut(ctx)
	if err != nil {
		return nil, parent.Send(durableRun{Error: err.Error()})
	}
	return nil, parent.Send(durableRun{Figures: f, Said: said})
}

func (j *durableJob) carryOut(ctx context.Context) (figures, string, error) {
	if row := durableRowOf(j.Row); row != nil {
		for _, s := range row.systems {
			if s.name == j.System {
				return s.run(ctx, j)
			}
		}
	}
	return nil, "", fmt.Errorf("unknown system %q in row %q", j.System, j.Row)
}

// keep prints the report and, if asked to, keeps it with all runs.
func (r *durableRecord) keep(o *durableOptions, stdout io.Writer) error {
	var text bytes.Buffer
	r.write(&text)
	runs, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	runs = append(runs, '\n')
	out := text.Bytes()
	if o.json {
		out = runs
	}
	if _, err := stdout.Write(out); err != nil || o.results == "" {
		return err
	}
	dir, err := keepIn(o.results, r.Began, o.commit, durableName, text.Bytes(), runs)
	if err != nil || o.json {
		return err
	}
	_, err = fmt.Fprintf(stdout, "\nKept in %s.\n", dir)
	return err
}

// of returns a figure of all runs of a system that did not fail, by round.
func (r *durableRecord) of(row, system, figure string) map[int]float64 {
	all := map[int]float64{}
	for _, run := range r.Runs {
		if v, ok := run.Figures[figure]; ok && run.Row == row && run.System == system && run.Error == "" {
			all[run.Round] = v
		}
	}
	return all
}

func byRound(all map[int]float64) []float64 {
	values := make([]float64, 0, len(all))
	for _, v := range all {
		values = append(values, v)
	}
	return values
}

// judge returns the cells of a goal: the ratio, if it is about one, and whether what was measured is as it is wanted.
func (r *durableRecord) judge(row *durableRow, g durableGoal) (ratio, verdict string) {
	values, wanted := byRound(r.of(row.name, g.system, g.figure)), g.String()
	if g.over != "" {
		values = values[:0]
		others := r.of(row.name, g.over, g.figure)
		for round, v := range r.of(row.name, g.system, g.figure) {
			if other := others[round]; other > 0 {
				values = append(values, v/other)
			}
		}
	}
	if len(values) == 0 {
		return "", wanted + " **not measured**"
	}
	if g.over != "" {
		ratio = stats.Spread("%.2f", values)
	}
	if g.limit.met(stats.Median(values)) {
		return ratio, wanted + " holds"
	}
	return ratio, wanted + " **misses**"
}

// String returns what is wanted.
func (g durableGoal) String() string {
	sign := "≤ "
	if g.limit.atLeast {
		sign = "≥ "
	}
	return sign + strconv.FormatFloat(g.limit.value, 'f', -1, 64)
}

func (r *durableRecord) write(out io.Writer) {
	fmt.Fprintf(out, "Median of %d alternating runs on the same disk, each with fresh processes, and the range in parentheses. Ratios are medians\n"+
		"of the ratios of single rounds. Everything on loopback.\n\n", r.Rounds)
	t := program.Table{{"Row", "System", "Figure", "Measured", "Ratio", "To", "Wanted"}}
	reference := program.Table{{"Class", "Batch", "Callers", "Records/s", "p50 µs", "p99 µs", "p99.9 µs", "Reference: records/s", "p50", "p99", "p99.9"}}
	var said []string
	for _, row := range durableRows() {
		if !slices.ContainsFunc(r.Runs, func(run durableRun) bool { return run.Row == row.name }) {
			continue
		}
		if published, ok := published[row.name]; ok {
			line := strings.Split(row.title, " | ")
			for _, figure := range row.shown {
				line = append(line, spreadOf(byRound(r.of(row.name, felixName, figure))))
			}
			reference = append(reference, append(line, published[:]...))
			continue
		}
		title := row.title // in the first line only
		for _, system := range row.systems {
			name := system.title
			for _, figure := range row.shown {
				values := byRound(r.of(row.name, system.name, figure))
				goals := slices.DeleteFunc(slices.Clone(row.goals), func(g durableGoal) bool { return g.system != system.name || g.figure != figure })
				if len(values) == 0 && len(goals) == 0 {
					continue
				}
				line := []string{title, name, figure, spreadOf(values), "", "", ""}
				for _, g := range goals {
					line[4], line[6] = r.judge(&row, g)
					if g.over != "" {
						line[5] = row.systemTitle(g.over)
					}
				}
				t = append(t, line)
				title, name = "", ""
			}
			if words := r.saidOf(row.name, system.name); words != "" {
				said = append(said, fmt.Sprintf("- %s: %s: %s", row.title, system.title, words))
			}
		}
	}
	if len(t) > 1 {
		t.Write(out, 3)
	}
	if len(reference) > 1 {
		fmt.Fprint(out, "\nPackage storage alone, in the shape of the table that the reference implementation publishes: payloads of 128 bytes,\n"+
			"8 000 records after 2 000, segments of 64 MiB. Latency is that of one append, which has as many records as a batch.\n"+
			"The last sync is not in the time, as there. The reference's own figures are from another machine (M4 Max, APFS).\n\n")
		reference.Write(out, 1)
	}
	if len(said) > 0 {
		fmt.Fprintf(out, "\n%s\n", strings.Join(said, "\n"))
	}
	for _, run := range r.Runs {
		if run.Error != "" {
			fmt.Fprintf(out, "\nFailed: round %d, %s, %s: %s\n", run.Round+1, run.Row, run.System, run.Error)
		}
	}
	e := r.Environment
	e.Commit = "" // of the tool: the same
	fmt.Fprintf(out, "\nCommit %s, %s, %d rounds, %v a run after %v of warm-up. Command: %s\nMachine: %s. Disk: %s.\nMeanwhile %s.\n",
		r.Commit, r.Began.Format("2006-01-02 15:04 UTC"), r.Rounds, r.Duration, r.Warmup, r.Command, e.String(), r.Disk, r.Machine.String())
}

func (row *durableRow) systemTitle(name string) string {
	for _, s := range row.systems {
		if s.name == name {
			return s.title
		}
	}
	return name
}

// saidOf returns the different words of a system's runs.
func (r *durableRecord) saidOf(row, system string) string {
	var all []string
	for _, run := range r.Runs {
		if run.Row == row && run.System == system && run.Said != "" && !slices.Contains(all, run.Said) {
			all = append(all, run.Said)
		}
	}
	return strings.Join(all, "; or ")
}

func spreadOf(values []float64) string {
	if len(values) == 0 {
		return "failed"
	}
	return stats.Spread(digitsOf(slices.Max(values)), values)
}

// fileSystem says which file system a directory is on, if the system tells.
func fileSystem(dir string) string {
	mounts, _ := os.ReadFile("/proc/mounts")
	best, kind := "", "unknown file system"
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < len(best) || f[1] != "/" && dir != f[1] && !strings.HasPrefix(dir, f[1]+"/") {
			continue
		}
		best, kind = f[1], f[2]+" on "+f[0]
	}
	if strings.HasPrefix(kind, "tmpfs") {
		kind += ": MEMORY, NOT A DISK"
	}
	return kind
}
