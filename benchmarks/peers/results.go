package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/loadgen"
)

// record is what is kept of a table in JSON: every single run, and where it comes from.
type record struct {
	Command     string              `json:"command"`
	Commit      string              `json:"commit"`
	Began       time.Time           `json:"began"`
	Seconds     float64             `json:"seconds"`
	Environment loadgen.Environment `json:"environment"`
	Machine     machineState        `json:"machine"`
	Variables   []string            `json:"variables"` // settings of Felix and of the Go runtime in the environment
	Runs        []outcome           `json:"runs"`
}

// keep prints the report and, if asked to, keeps it with all runs and plots in a directory of that day and commit.
func keep(s *suite, o *options, began time.Time, state machineState, results []outcome, stdout io.Writer) error {
	rec := record{
		Command: o.command, Commit: o.commit, Began: began.UTC().Truncate(time.Second), Seconds: time.Since(began).Round(time.Second).Seconds(),
		Environment: environmentOf(results), Machine: state, Variables: variables(), Runs: results,
	}
	var text bytes.Buffer
	s.report(&text, o, results)
	rec.write(&text, o)
	_, err := stdout.Write(text.Bytes())
	if err != nil || o.results == "" {
		return err
	}
	runs, err := json.MarshalIndent(rec, "", "\t")
	if err != nil {
		return err
	}
	dir, err := keepIn(o.results, rec.Began, o.commit, s.name, text.Bytes(), append(runs, '\n'))
	if err != nil {
		return err
	}
	var errs []error
	if s.plots != nil {
		pictures, err := s.plots(o, results)
		for name, p := range pictures {
			p.Caption = rec.lines(o)
			errs = append(errs, err, p.WriteFile(filepath.Join(dir, s.name+"-"+name+".png")))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "\nKept in %s.\n", dir)
	return err
}

// keepIn keeps the text and the runs of a table in a directory of that day and commit, and returns its name.
func keepIn(results string, began time.Time, commit, table string, text, runs []byte) (dir string, err error) {
	dir = filepath.Join(results, began.Format(time.DateOnly)+"-"+commit)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, errors.Join(
		os.WriteFile(filepath.Join(dir, table+".md"), text, 0o644),
		os.WriteFile(filepath.Join(dir, table+".json"), runs, 0o644))
}

// environmentOf is what loadgen told of the first run of Felix.
func environmentOf(results []outcome) loadgen.Environment {
	for _, r := range results {
		if r.System == felixName && r.Error == "" {
			return r.Result.Environment
		}
	}
	return loadgen.Environment{}
}

// variables are those that change what is measured.
func variables() []string {
	set := []string{}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "FELIX_") || slices.Contains([]string{"GOGC", "GOMEMLIMIT", "GODEBUG", "GOMAXPROCS"}, name) {
			set = append(set, v)
		}
	}
	slices.Sort(set)
	return set
}

// lines say where the figures come from.
func (r *record) lines(o *options) []string {
	set := "none set"
	if len(r.Variables) > 0 {
		set = strings.Join(r.Variables, " ")
	}
	e := r.Environment
	e.Commit = "" // of the tool: the same
	lines := []string{
		fmt.Sprintf("Commit %s, %s, %d rounds, %v a run after %v of warm-up. Command: %s", r.Commit, r.Began.Format("2006-01-02 15:04 UTC"), o.rounds, o.duration, o.warmup, r.Command),
		fmt.Sprintf("Processes: publisher and subscriptions in one, the system under test in another; GOGC %s. Variables: %s.", o.gogc, set),
		"Machine: " + e.String() + ".",
		"Meanwhile " + r.Machine.String() + ".",
	}
	if o.sweeps == nil {
		return append(lines, "Settings: the defaults of each system.")
	}
	unswept := map[string]bool{}
	var used []int
	for _, run := range r.Runs {
		b := o.sweeps.find(run.Row, run.System)
		switch {
		case run.Error != "" || run.System == pipeName:
		case b == nil:
			unswept[title(run.System)] = true
		case !slices.Contains(used, b.Sweep):
			used = append(used, b.Sweep)
		}
	}
	for _, i := range used {
		s := &o.sweeps.Sweeps[i]
		lines = append(lines, fmt.Sprintf("Settings: found by %s at commit %s, %s, %d rounds of %s; then %s.",
			s.Command, s.Commit, s.Began.Format("2006-01-02 15:04 UTC"), s.Rounds, s.Duration, s.Machine))
	}
	if len(unswept) > 0 {
		lines = append(lines, "Not swept for every load above, and then with the defaults: "+strings.Join(slices.Sorted(maps.Keys(unswept)), ", ")+".")
	}
	return lines
}

func (r *record) write(out io.Writer, o *options) {
	fmt.Fprintln(out)
	for _, line := range r.lines(o) {
		fmt.Fprintf(out, "%s\n", line)
	}
	for _, run := range r.Runs {
		if run.System == felixName && run.Error == "" {
			b := run.Result.Broker
			fmt.Fprintf(out, "Broker's socket: buffers of %d KiB in and %d KiB out, GRO %t, GSO %t.\n", b.ReceiveBuffer>>10, b.SendBuffer>>10, b.GRO, b.GSO)
			return
		}
	}
}
