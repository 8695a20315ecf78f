// Command loadgen measures a Felix broker: publish→deliver latency and throughput, with every event accounted for, its
// cache, its handshakes, and what it holds over hours; and it compares what it has measured. See `loadgen --help`.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/loadgen/report"
	"github.com/felix-mq/felix/telemetry"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // a run failed, lost events, or was too small; or a soak has found something
	exitUsage  = 2 // a flag or a variable is wrong, or a run would be too small
	exitSlower = 3 // a comparison says so
)

func main() {
	brokerproc.Serve()
	code := run(os.Args[1:], os.Stdout, os.Stderr)
	fmt.Fprint(os.Stderr, telemetry.Text())
	os.Exit(code)
}

// tune reads the FELIX_* variables that cmd/broker reads.
func tune(cfg *broker.Config) error { return settings.Environment(cfg) }

func run(args []string, stdout, stderr io.Writer) int {
	scenarios := map[string]func(*command){"pubsub": pubsub, "cache": cache, "connect": connect, "soak": soak}
	name := "pubsub"
	if len(args) > 0 {
		if args[0] == "compare" {
			return compare(args[1:], stdout, stderr)
		}
		if scenarios[args[0]] != nil {
			name, args = args[0], args[1:]
		}
	}
	c := newCommand(name, stdout, stderr)
	scenarios[name](c)
	return c.execute(args)
}

const compareHead = `Usage: loadgen compare [flags] BASE THIS

Compares the trials of one report with those of another, load by load: each is a report.json or a directory of such
files, whose trials are put together. It refuses runs of unlike loads, machines or builds, and names what differs:
what is compared are two commits.
`

const unlikeHelp = "compare runs of unlike loads, machines or builds all the same; the output says what differs"

// compare is `loadgen compare`.
func compare(args []string, stdout, stderr io.Writer) int {
	c := newCommand("compare", stdout, stderr)
	c.head, c.tail = compareHead, compareTail+exitTail
	var unlike bool
	c.group("Flags", func(f *pflag.FlagSet) { f.BoolVar(&unlike, "unlike", false, unlikeHelp) })
	if err := c.flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return exitOK
	} else if err != nil {
		fmt.Fprintf(stderr, "loadgen: %v\nSee loadgen compare --help.\n", err)
		return exitUsage
	}
	if args = c.flags.Args(); len(args) != 2 {
		fmt.Fprintf(stderr, "loadgen: compare wants two reports, BASE and THIS, not %d\nSee loadgen compare --help.\n", len(args))
		return exitUsage
	}
	base, err := report.Read(args[0])
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	this, err := report.Read(args[1])
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	return judge(base, this, unlike, stdout, stderr)
}

// judge prints a comparison and returns its exit code.
func judge(base, this *report.Report, unlike bool, stdout, stderr io.Writer) int {
	compare := report.Compare
	if unlike {
		compare = report.CompareUnlike
	}
	c, err := compare(base, this)
	if refused, ok := errors.AsType[*report.UnlikeError](err); ok {
		fmt.Fprintln(stderr, withHint(refused))
		return exitUsage
	}
	if err == nil {
		err = c.WriteText(stdout)
	}
	switch {
	case err != nil:
		fmt.Fprintln(stderr, err)
		return exitFailed
	case c.Slower():
		return exitSlower
	}
	return exitOK
}

// withHint names the flag that helps.
func withHint(err *report.UnlikeError) error {
	return fmt.Errorf("%w\nTo compare them all the same: --unlike", err)
}
