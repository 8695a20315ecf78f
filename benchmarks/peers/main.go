// Command peers prints Felix beside what it is measured by: a relay that does nothing but move bytes (package floor), and NATS
// with TLS 1.3. All get the same load from the same kind of processes on this machine, and every event is accounted for.
//
// It is a module of its own, because foreign clients come in here that users of Felix shall not inherit. make bench-floor runs it;
// docs/benchmarks.md says how to read the table.
//
// With the argument cache it prints Felix's cache beside Redis over TLS 1.3 and memcached instead (caches.go).
//
// A run has two fresh processes: a worker, which is publisher and subscriptions, and the system under test. Both are other
// instances of this program. Runs alternate: one of each system for a shape, then the next shape, and all of that again
// for each round. Begin at run; rows.go says what is measured, and nats.go, felix.go and package floor how.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/felix-mq/felix/benchmarks/floor"
	"github.com/felix-mq/felix/benchmarks/floor/drive"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen"
)

func main() {
	loadgen.ServeBroker(func(cfg *broker.Config) error { return settings.Environment(cfg) })
	floor.Serve()
	drive.Child(natsName, serveNATS)
	drive.Child(workerName, serveWorker)
	if len(os.Args) > 1 && os.Args[1] == "cache" {
		os.Exit(runCaches(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

type options struct {
	rounds   int
	duration time.Duration
	warmup   time.Duration
	only     *regexp.Regexp
	against  []string
	jsonFile string
	commit   string
	procs    int // of the system under test; 0 leaves it to the runtime
	gogc     string
}

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "`runs` of each system in each shape")
	flags.DurationVar(&o.duration, "duration", 4*time.Second, "measured time of a run")
	flags.DurationVar(&o.warmup, "warmup", time.Second, "time before that")
	only := flags.String("only", "", "shapes whose name matches this `regexp`; -only list prints the names")
	against := flags.String("against", relayName+","+natsName, "what Felix is measured by, `names` separated by commas")
	flags.StringVar(&o.jsonFile, "json", "", "write every run to this `file`")
	flags.StringVar(&o.commit, "commit", "", "the `commit` to print, where the build does not tell it")
	flags.IntVar(&o.procs, "procs", 1, "GOMAXPROCS of the broker, relay and server processes; 0 leaves it to the runtime")
	flags.StringVar(&o.gogc, "gogc", "400", "GOGC of all processes")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(*against, ",") {
		if name != relayName && name != natsName {
			return nil, fmt.Errorf("-against %q: want %s or %s", name, relayName, natsName)
		}
		o.against = append(o.against, name)
	}
	if o.rounds < 1 || o.duration <= 0 || o.warmup < 0 || o.procs < 0 || flags.NArg() > 0 {
		return nil, errors.New("want positive -rounds and -duration, and no arguments")
	}
	return o, nil
}

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "peers:", err)
		return 2
	}
	if o.only.String() == "list" {
		for _, r := range rows() {
			fmt.Fprintln(stdout, r.name)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, failed := measure(ctx, o, stderr)
	if len(results) == 0 {
		fmt.Fprintln(stderr, "peers: nothing was measured")
		return 1
	}
	writeReport(stdout, o, results)
	if o.jsonFile != "" {
		if err := writeJSON(o.jsonFile, results); err != nil {
			fmt.Fprintln(stderr, "peers:", err)
			return 1
		}
	}
	if failed || ctx.Err() != nil {
		return 1
	}
	return 0
}

// measure carries out all runs. One that fails is told and left out.
func measure(ctx context.Context, o *options, stderr io.Writer) (all []outcome, failed bool) {
	for round := range o.rounds {
		for _, r := range rows() {
			if !o.only.MatchString(r.name) {
				continue
			}
			for _, system := range r.systems(o.against) {
				if ctx.Err() != nil {
					return all, true
				}
				fmt.Fprintf(stderr, "round %d of %d: %s: %s ... ", round+1, o.rounds, r.name, system)
				out, err := runWorker(ctx, o, job{System: system, Shape: r.shape(o), Procs: o.procs})
				if err != nil {
					fmt.Fprintln(stderr, err)
					failed = true
					continue
				}
				out.Round, out.Row, out.System = round, r.name, system
				fmt.Fprintln(stderr, out.summary())
				all = append(all, *out)
			}
		}
	}
	return all, failed
}

func writeJSON(file string, results []outcome) error {
	b, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
