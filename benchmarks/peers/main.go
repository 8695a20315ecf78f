// Command peers compares Felix with other systems. All systems get the same load from the same kind of processes on
// this machine, and every event is accounted for. Its first argument is the table:
//
//   - floor: a relay that does nothing but move bytes (package floor), and NATS with TLS 1.3
//   - peers: NATS, Redis and Mosquitto, in the clear and with TLS 1.3; one that is not installed is reported
//   - matrix: Felix alone, over payloads, fanouts and batches
//   - cache: Felix's cache next to Redis over TLS 1.3 and memcached (caches.go)
//   - durable: durable streams next to what the disk does, to NATS JetStream, and to streams in memory (durable.go)
//   - sweep: finds the settings with which each system is at its best, by which the tables are made (sweep.go)
//   - docs: keeps the figures of a directory of results, and puts them into documents (docs.go)
//
// It is a module of its own, because foreign clients come in here that users of Felix shall not inherit. The Makefile
// runs it; docs/measure/benchmarks.md says how to read the tables.
//
// A run has two fresh processes: a worker, which is publisher and subscriptions, and the system under test. All but
// Redis and Mosquitto are other instances of this program. Runs alternate: one of each system for a shape, then the
// next shape, and all of that again for each round. Begin at suite.run; floor.go, comparison.go and matrix.go say what
// is measured, peer.go and package floor how.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/benchmarks/floor"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

func main() {
	serve()
	program.Main(command)
}

// serve serves and exits if this is one of the processes that a run consists of.
func serve() {
	brokerproc.Serve()
	floor.Serve()
	child.Serve(natsName, serveNATS)
	child.Serve(workerName, serveWorker)
	child.Serve(durableName, serveDurable)
	child.Serve(jetStreamRole, serveJetStream)
	child.Serve(cursorsRole, serveCursors)
	child.Serve(writerRole, serveWriter)
}

// command runs what its first argument names.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var all []program.Command
	for i := range suites {
		s := &suites[i]
		all = append(all, program.Command{Name: s.name, About: s.about, Run: s.run})
	}
	all = append(
		all,
		program.Command{Name: "cache", About: "Felix's cache next to Redis over TLS 1.3 and memcached", Run: runCaches},
		program.Command{Name: durableName, About: "durable streams next to the bare disk, NATS JetStream and streams in memory", Run: runDurable},
		program.Command{Name: sweepName, About: "find the settings with which each system is at its best", Run: runSweep},
		program.Command{Name: "docs", About: "put the tables of a directory of results into documents", Run: runDocs},
	)
	return program.Commands("peers", all...)(ctx, args, stdout, stderr)
}

type options struct {
	command  string // what was asked for
	rounds   int
	duration time.Duration
	warmup   time.Duration
	// maxDuration is what a run may take to move enough for a rate.
	maxDuration time.Duration
	only        *regexp.Regexp
	against     []string
	full        bool
	results     string // directory; none writes to standard output alone
	commit      string
	sweeps      *sweepFile // settings of the systems; nil if all have their defaults
	fixed       settings   // for all systems, in place of theirs
	gogc        string
}

// add defines the flags that tables and sweeps have in common, with the values that o has.
func (o *options) add(flags *pflag.FlagSet) (only *string) {
	flags.IntVar(&o.rounds, "rounds", o.rounds, "`runs` of each system in each shape")
	flags.DurationVar(&o.duration, "duration", o.duration, "measured time of a run")
	flags.DurationVar(&o.warmup, "warmup", o.warmup, "time before that")
	flags.DurationVar(&o.maxDuration, "max-duration", o.maxDuration, "measured time until which a run may go on to move enough")
	flags.StringVar(&o.commit, "commit", "unknown", "the `commit` to print")
	return flags.String("only", "", "shapes whose name matches this `regexp`")
}

// check reports what is wrong with the flags that add defined.
func (o *options) check(flags *pflag.FlagSet, only string) (err error) {
	if o.rounds < 1 || o.duration <= 0 || o.warmup < 0 || flags.NArg() > 0 {
		return errors.New("want positive --rounds and --duration, --warmup that is not negative, and no arguments")
	}
	if o.only, err = regexp.Compile(only); err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	return nil
}

// parse reports false if the command is to end with the returned status.
func (s *suite) parse(args []string, stderr io.Writer) (o *options, code int, ok bool) {
	o = new(s.defaults)
	o.command = strings.Join(append([]string{"bench-peers", s.name}, args...), " ")
	flags := program.Flags("peers "+s.name, stderr)
	only := o.add(flags)
	flags.Lookup("only").Usage += "; --only list prints the names"
	against := flags.String("against", s.against, "what Felix is measured by, `names` separated by commas")
	flags.BoolVar(&o.full, "full", false, "with the shapes that take long, if the table has some")
	flags.StringVar(&o.results, "results", "", "keep table, runs and plots in a directory of their own in this `directory`")
	procs := flags.Int("procs", -1, "GOMAXPROCS of the processes under test that are written in Go, in place of the swept; 0 leaves it to the runtime")
	loads := flags.Int("load-procs", -1, "GOMAXPROCS of publisher and subscriptions, in place of the swept; 0 leaves it to the runtime")
	from := flags.String("settings", "", "`file` of a sweep to take the systems' settings from; the one that this program was built with if empty, none if none")
	flags.StringVar(&o.gogc, "gogc", "400", "GOGC of all processes")
	if code, ok := program.Parse(flags, args); !ok {
		return nil, code, false
	}
	err := o.check(flags, *only)
	if err == nil && (*procs < -1 || *loads < -1) {
		err = errors.New("want --procs and --load-procs that are not negative")
	}
	if err == nil {
		o.against, err = systemNames("--against", *against)
	}
	if err == nil && slices.Contains(o.against, felixName) {
		err = fmt.Errorf("--against %s: it is measured anyway; %s%s is it without a sweep", felixName, felixName, defaultSuffix)
	}
	if err == nil && s.swept && *from != "none" {
		if o.sweeps, err = readSweeps(*from); err != nil {
			err = fmt.Errorf("--settings: %w", err)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return nil, 2, false
	}
	o.fixed = settings{}
	for name, value := range map[string]int{serverProcs: *procs, loadProcs: *loads} {
		if value >= 0 {
			o.fixed[name] = value
		}
	}
	return o, 0, true
}

// systemNames splits what a flag names.
func systemNames(flag, text string) (names []string, err error) {
	for name := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ',' }) {
		if p, _ := peerOf(name); p == nil && baseName(name) != relayName && baseName(name) != felixName {
			return nil, fmt.Errorf("%s %q: want %s or a peer, as in %s, optionally followed by %s for settings without a sweep",
				flag, name, relayName, peersSuite.against, defaultSuffix)
		}
		names = append(names, name)
	}
	return names, nil
}

func (s *suite) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, code, ok := s.parse(args, stderr)
	if !ok {
		return code
	}
	if o.only.String() == "list" {
		for _, r := range s.rows(o.full) {
			fmt.Fprintln(stdout, r.name)
		}
		return 0
	}
	began, watch := time.Now(), watchMachine()
	results, failed := measure(ctx, s, o, stderr)
	state := watch()
	if !slices.ContainsFunc(results, func(out outcome) bool { return out.Error == "" }) {
		fmt.Fprintln(stderr, "peers: nothing was measured")
		return 1
	}
	if err := keep(s, o, began, state, results, stdout); err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	if failed || ctx.Err() != nil {
		return 1
	}
	return 0
}

// measure carries out all runs. A failed run is reported, and the others go on. A missing peer is not a failure.
func measure(ctx context.Context, s *suite, o *options, stderr io.Writer) (all []outcome, failed bool) {
	missing := map[string]error{}
	for _, system := range o.against {
		if p, _ := peerOf(system); p != nil {
			if _, err := p.version(); err != nil {
				missing[system] = err
				fmt.Fprintf(stderr, "%s: %v\n", system, err)
			}
		}
	}
	for round := range o.rounds {
		for _, r := range s.rows(o.full) {
			if !o.only.MatchString(r.name) {
				continue
			}
			for _, system := range r.systems(o.against) {
				if ctx.Err() != nil {
					return all, true
				}
				out, err := &outcome{}, missing[system]
				set, swept := o.settingsOf(r.name, system)
				if err == nil {
					fmt.Fprintf(stderr, "round %d of %d: %s: %s ... ", round+1, o.rounds, r.name, system)
					out, err = runWorker(ctx, o, job{System: system, Shape: r.shape(o, set), Set: set})
					failed = failed || err != nil
				}
				if err != nil {
					out = &outcome{Error: err.Error()}
				}
				if missing[system] == nil {
					fmt.Fprintln(stderr, out.summary())
				}
				out.Round, out.Row, out.System, out.Settings, out.Swept = round, r.name, system, set, swept
				all = append(all, *out)
			}
		}
	}
	return all, failed
}
