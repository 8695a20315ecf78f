package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/felix-mq/felix/conformance"
)

// reportOptions are the flags of both modes: which cases, and where the report goes.
type reportOptions struct {
	match, json, junit string
	list               bool
	timeout            time.Duration

	regexp *regexp.Regexp // of match, once checked
}

func (o *reportOptions) add(flags *pflag.FlagSet, timeout string) {
	flags.StringVar(&o.match, "run", "", "run only the cases whose \"ID name\" matches the `regexp`")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, timeout)
	flags.BoolVar(&o.list, "list", false, "list the cases and run none")
	flags.StringVar(&o.json, "json", "", "write the report as JSON to `file`; - is standard output, in place of the table")
	flags.StringVar(&o.junit, "junit", "", "write the report as JUnit XML to `file`")
}

func (o *reportOptions) check() error {
	var errs []error
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("conformance: --timeout %v is not above 0", o.timeout))
	}
	var err error
	if o.regexp, err = regexp.Compile(o.match); err != nil {
		errs = append(errs, fmt.Errorf("conformance: --run: %w", err))
	}
	return errors.Join(errs...)
}

func newFlagSet(command string, stderr io.Writer, help string) *pflag.FlagSet {
	flags := pflag.NewFlagSet(command, pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.Usage = func() { fmt.Fprintf(stderr, help, flags.FlagUsages()) }
	return flags
}

// parse reports false, with the exit code, if there is nothing to run. check reports every problem of the flags at
// once.
func parse(flags *pflag.FlagSet, args []string, stderr io.Writer, check func() error) (code int, ok bool) {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK, false
		}
		fmt.Fprintf(stderr, "conformance: %v; see %s --help\n", err, flags.Name())
		return exitUsage, false
	}
	err := check()
	if flags.NArg() > 0 {
		err = errors.Join(fmt.Errorf("conformance: unexpected argument %q", flags.Arg(0)), err)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%v\nSee %s --help.\n", err, flags.Name())
		return exitUsage, false
	}
	return exitOK, true
}

// interrupted returns the context of a run: it ends when somebody wants the program to end.
func interrupted() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// progress shows each result on one line of a terminal, and nothing elsewhere. clear removes the line.
func progress(stderr io.Writer) (onResult func(conformance.Result), clear func()) {
	f, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func(conformance.Result) {}, func() {}
	}
	return func(r conformance.Result) { fmt.Fprintf(stderr, "\r\x1b[K%s %s", r.ID, r.Status) },
		func() { fmt.Fprint(stderr, "\r\x1b[K") }
}

// printTitle prints a line of the list, if the case is one of the chosen.
func (o *reportOptions) printTitle(w io.Writer, title string) {
	if o.regexp.MatchString(title) {
		fmt.Fprintln(w, title)
	}
}

// finish writes the report in all forms that were asked for and returns the exit code.
func (o *reportOptions) finish(stdout, stderr io.Writer, report *conformance.Report) int {
	var errs []error
	if o.json == "-" {
		errs = append(errs, report.WriteJSON(stdout))
	} else {
		errs = append(errs, report.WriteText(stdout))
		if o.json != "" {
			errs = append(errs, writeFile(o.json, report.WriteJSON))
		}
	}
	if o.junit != "" {
		errs = append(errs, writeFile(o.junit, report.WriteJUnit))
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(stderr, "conformance:", err)
		return exitFailed
	}
	if !report.OK() {
		return exitFailed
	}
	return exitOK
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
