package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/felix-mq/felix/internal/version"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/plot"
	"github.com/felix-mq/felix/loadgen/report"
)

// command is a scenario with its flags.
type command struct {
	name           string
	stdout, stderr io.Writer
	head, tail     string // of the help

	flags  *pflag.FlagSet
	groups []*pflag.FlagSet // in the order of the help
	target target
	output output

	// prepare makes a run of the flags as they are set.
	prepare func() (runner, error)
	// instead, if not nil, is what the command does if it is not to run. It reports whether that was the case.
	instead func(context.Context) (bool, error)
}

// runner carries out a run.
type runner func(context.Context, loadgen.Observer) (report.Result, error)

func newCommand(name string, stdout, stderr io.Writer) *command {
	c := &command{name: name, stdout: stdout, stderr: stderr, flags: pflag.NewFlagSet("loadgen", pflag.ContinueOnError)}
	c.flags.SetOutput(stderr)
	c.flags.SortFlags = false
	c.flags.Usage = func() {
		fmt.Fprint(stderr, c.head)
		for _, g := range c.groups {
			fmt.Fprintf(stderr, "\n%s:\n%s", g.Name(), g.FlagUsages())
		}
		fmt.Fprint(stderr, c.tail)
	}
	return c
}

// group binds flags, and shows them together in the help.
func (c *command) group(name string, bind func(*pflag.FlagSet)) {
	g := pflag.NewFlagSet(name, pflag.ContinueOnError)
	g.SortFlags = false
	bind(g)
	c.flags.AddFlagSet(g)
	c.groups = append(c.groups, g)
}

// cell is a run to be made as often as there are trials.
type cell struct {
	*report.Cell
	run runner
}

func (c *command) execute(args []string) int {
	cells, base, err := c.read(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(c.stderr, "%v\nSee loadgen %s --help.\n", err, c.name)
		return exitUsage
	case c.output.version:
		fmt.Fprintln(c.stdout, "loadgen", version.Get())
		return exitOK
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if c.instead != nil {
		if done, err := c.instead(ctx); done {
			if err != nil {
				fmt.Fprintln(c.stderr, err)
				return exitFailed
			}
			return exitOK
		}
	}
	r := &report.Report{
		Format: report.Format, Scenario: c.name, Command: commandLine(c.name, args), Commit: c.output.commit, Started: time.Now(),
		Environment: loadgen.CurrentEnvironment(),
	}
	if r.Commit == "" {
		r.Commit = r.Environment.Commit
	}
	code := exitOK
	// Trials alternate between the cells, so that what the machine does meanwhile falls on all of them.
	for trial := range c.output.trials {
		for i, cell := range cells {
			if ctx.Err() != nil {
				break
			}
			where := ""
			if n := len(cells) * c.output.trials; n > 1 {
				where = strings.TrimSpace(fmt.Sprintf("%d of %d  %s", trial*len(cells)+i+1, n, cell.Name()))
			}
			if err := c.runTrial(ctx, r, cell, trial, where); err != nil {
				code = exitFailed
				if ctx.Err() != nil {
					err = errors.New("loadgen: ended by a signal")
				}
				fmt.Fprintln(c.stderr, strings.TrimSpace(where+"  "+err.Error()))
			}
		}
	}
	for _, cell := range cells {
		if len(cell.Trials) > 0 {
			r.Cells = append(r.Cells, cell.Cell)
		}
	}
	if len(r.Cells) == 0 {
		return exitFailed
	}
	if c.output.dir != "" {
		if err := errors.Join(r.WriteFiles(c.output.dir), plot.WriteFiles(r, c.output.dir)); err != nil {
			fmt.Fprintln(c.stderr, err)
			code = exitFailed
		}
	}
	if base != nil && code == exitOK {
		return judge(base, r, c.output.unlike, c.stdout, c.stderr)
	}
	return code
}

// read reads the flags, and the report to compare with, if any. It reports every problem at once.
func (c *command) read(args []string) (cells []*cell, base *report.Report, err error) {
	if err := c.flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil, nil, err
		}
		return nil, nil, fmt.Errorf("loadgen: %w", err)
	}
	var errs []error
	if c.flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("loadgen: unexpected argument %q: the scenarios are pubsub, cache, connect, soak and compare, and stand first", c.flags.Arg(0)))
	}
	errs = append(errs, sweep(c.flags, func(axes []report.Axis) error {
		run, err := c.prepare()
		cells = append(cells, &cell{&report.Cell{Axes: axes}, run})
		return err
	}))
	if c.output.trials < 1 {
		errs = append(errs, fmt.Errorf("loadgen: --trials %d is less than 1", c.output.trials))
	}
	if c.output.unlike && c.output.compare == "" {
		errs = append(errs, errors.New("loadgen: --unlike needs --compare"))
	}
	if c.output.compare != "" {
		if base, err = report.Read(c.output.compare); err != nil {
			errs = append(errs, err)
		} else if !c.output.unlike {
			// What is known before the runs are made; the loads are compared after them.
			if refused, ok := errors.AsType[*report.UnlikeError](report.CheckEnvironment(base, loadgen.CurrentEnvironment())); ok {
				errs = append(errs, withHint(refused))
			}
		}
		if c.output.trials < report.MinTrials {
			errs = append(errs, fmt.Errorf("loadgen: --compare needs --trials of at least %d", report.MinTrials))
		}
		if c.output.json {
			errs = append(errs, errors.New("loadgen: --compare and --json exclude each other: see loadgen compare"))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	if c.output.dir != "" {
		if err := os.MkdirAll(c.output.dir, 0o755); err != nil {
			return nil, nil, fmt.Errorf("loadgen: --out: %w", err)
		}
	}
	return cells, base, nil
}

// runTrial makes one run, adds it to the report and prints it. A run that has failed has no figures, and leaves no
// file.
func (c *command) runTrial(ctx context.Context, r *report.Report, cell *cell, trial int, where string) (err error) {
	observer := loadgen.Observer{Interval: c.output.interval}
	if c.output.dir != "" {
		file := filepath.Join(c.output.dir, fmt.Sprintf("%s.trial-%d.hlog", cell.FileName(), trial+1))
		log, logErr := r.NewIntervalLog(file, cell.Cell)
		if logErr != nil {
			return logErr
		}
		observer.OnInterval = log.Write
		before := len(cell.Trials)
		defer func() {
			err = errors.Join(err, log.Close())
			if len(cell.Trials) == before {
				_ = os.Remove(file)
			}
		}()
	}
	clearLine := func() {}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		observer.Progress = func(p loadgen.Progress) {
			fmt.Fprintf(c.stderr, "\r\x1b[K%s", strings.TrimSpace(where+"  "+p.String()))
		}
		clearLine = func() { fmt.Fprint(c.stderr, "\r\x1b[K") }
	}
	res, err := cell.run(ctx, observer)
	clearLine()
	if _, small := errors.AsType[*loadgen.TooSmallError](err); small {
		err = c.nameFlags(err)
	}
	var growth *loadgen.GrowthError // is a finding of a run that did not fail otherwise
	if err != nil && !errors.As(err, &growth) {
		return err
	}
	if addErr := cell.Add(res); addErr != nil {
		return errors.Join(err, addErr)
	}
	if c.output.json {
		return errors.Join(err, json.NewEncoder(c.stdout).Encode(res))
	}
	if where != "" {
		fmt.Fprintf(c.stdout, "== %s\n", where)
	}
	err = errors.Join(err, res.WriteText(c.stdout))
	if where != "" {
		fmt.Fprintln(c.stdout)
	}
	return err
}

// commandLine is what the user gave, but for secrets.
func commandLine(name string, args []string) string {
	line := append(make([]string, 0, 2+len(args)), "loadgen", name)
	for i, a := range args {
		switch {
		case strings.HasPrefix(a, "--token="):
			a = "--token=…"
		case i > 0 && args[i-1] == "--token":
			a = "…"
		case strings.ContainsAny(a, " \t\"'"):
			a = fmt.Sprintf("%q", a)
		}
		line = append(line, a)
	}
	return strings.Join(line, " ")
}
