// Command capture profiles what a broker does under a named load, and tells what must not be there:
//
//	capture pubsub-small|pubsub-large|fanout|latency|cache
//
// It writes profiles of processor time, heap, mutexes and blocking and an execution trace to profiles/out/<scenario>/,
// prints the processor time by package, and exits with status 1 if package profiles finds a violation, with the stack
// of each. The broker has a process of its own, and is loaded twice: once for its processor time, and once with
// everything else recorded, which slows it.
//
//	capture pgo      makes cmd/broker/default.pgo and cmd/loadgen/default.pgo, by which go build optimizes them
//	capture worth    measures what these are worth
//
// It runs in the root of the module.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/pprof/profile"
	"golang.org/x/sync/errgroup"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/profiles"
)

func main() {
	brokerproc.Serve()
	program.Main(run)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := program.Flags("profile", stderr)
	duration := flags.Duration("duration", 5*time.Second, "of each load")
	rounds := flags.Int("rounds", 5, "of worth")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if *duration < 100*time.Millisecond || *duration > time.Minute || *rounds < 1 || *rounds > 25 || flags.NArg() != 1 {
		fmt.Fprintln(stderr, "profile: want the name of a scenario, pgo or worth, a duration from 100ms to 1m and 1 to 25 rounds")
		return 2
	}
	var err error
	switch name := flags.Arg(0); name {
	case "pgo":
		err = makePGO(ctx, pgoLoads(), *duration, stderr)
	case "worth":
		err = worth(ctx, *rounds, *duration, stdout, stderr)
	case measureArg:
		err = measure(ctx, *duration, stdout)
	default:
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		if i < 0 {
			fmt.Fprintf(stderr, "profile: no scenario %q\n", name)
			return 2
		}
		err = capture(ctx, scenarios[i], *duration, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "profile:", err)
		return 1
	}
	return 0
}

// errViolations says that a hot path does what it must not.
var errViolations = errors.New("on a hot path there is what must not be there; the stacks are above")

// capture profiles a broker under a load, writes the profiles and checks them.
func capture(ctx context.Context, s scenario, duration time.Duration, stdout io.Writer) error {
	dir := filepath.Join("profiles", "out", s.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cpu, violations, err := captureCPU(ctx, s, duration, dir)
	if err != nil {
		return err
	}
	more, err := captureRest(ctx, s, duration, dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: processor time of the broker, by package\n\n| %-16s | %9s | %18s |\n| :--------------- | --------: | -----------------: |\n",
		s.name, "package", "its code", "with what it calls")
	for _, r := range profiles.Shares(cpu) {
		fmt.Fprintf(stdout, "| %-16s | %7.1f %% | %16.1f %% |\n", r.Room, 100*r.Self, 100*r.All)
	}
	fmt.Fprintf(stdout, "\nProfiles and a trace are in %s: go tool pprof, go tool trace.\n", dir)
	violations = append(violations, more...)
	for _, v := range violations {
		fmt.Fprintln(stdout, "\nVIOLATION", v)
	}
	if len(violations) > 0 {
		return errViolations
	}
	return nil
}

// captureCPU loads a broker that does nothing else.
func captureCPU(ctx context.Context, s scenario, duration time.Duration, dir string) (p *profile.Profile, _ []profiles.Violation, err error) {
	broker, err := brokerproc.Start("FELIX_SUB_QUEUE_POLICY=block")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	if err := broker.StartCPUProfile(); err != nil {
		return nil, nil, err
	}
	err = s.run(ctx, broker, duration)
	p, profileErr := broker.CPUProfile()
	done, _, metricsErr := operations(broker)
	if err := errors.Join(err, profileErr, metricsErr); err != nil {
		return nil, nil, err
	}
	return p, profiles.Check(p, profiles.Rules, s.operations(0, done)), writeProfile(filepath.Join(dir, "cpu.pprof"), p)
}

// captureRest loads a broker with every allocation and every wait recorded: one sample of a small object would stand
// for hundreds. The account is of the middle of the load, when all have subscribed and pools are filled; a moment of
// the trace is large enough.
func captureRest(ctx context.Context, s scenario, duration time.Duration, dir string) (violations []profiles.Violation, err error) {
	broker, err := brokerproc.Start("FELIX_SUB_QUEUE_POLICY=block", brokerproc.ExactAllocations)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	if err := broker.RecordContention(); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	load, endLoad := context.WithCancel(ctx)
	g.Go(func() error {
		err := s.run(load, broker, 2*time.Minute)
		select {
		case <-load.Done(): // ended below
			return nil
		default:
			return err
		}
	})
	g.Go(func() error {
		defer endLoad()
		begin, err := snapshot(ctx, broker, duration/2)
		if err != nil {
			return err
		}
		if err := waitForOperations(ctx, s, broker, duration, begin.done); err != nil {
			return err
		}
		end, err := snapshot(ctx, broker, 0)
		if err != nil {
			return err
		}
		done := s.operations(begin.done, end.done)
		for name, p := range end.profiles {
			if err := writeProfile(filepath.Join(dir, name+".pprof"), p); err != nil {
				return err
			}
			if name == "heap" || name == "block" { // what is held, and those who wait for the network: no rule is about them
				continue
			}
			begin.profiles[name].Scale(-1)
			since, err := profile.Merge([]*profile.Profile{p, begin.profiles[name]})
			if err != nil {
				return err
			}
			violations = append(violations, profiles.Check(since, profiles.Rules, done)...)
		}
		if err := broker.StartTrace(); err != nil {
			return err
		}
		if err := pause(ctx, min(duration/4, 100*time.Millisecond)); err != nil {
			return err
		}
		trace, err := broker.Trace()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "trace.out"), trace, 0o644)
	})
	return violations, g.Wait()
}

// waitForOperations waits so long, and on until there is enough to judge by: a busy machine needs longer.
func waitForOperations(ctx context.Context, s scenario, broker *brokerproc.Process, duration time.Duration, begin float64) error {
	for waited := duration; ; waited += duration {
		if err := pause(ctx, duration); err != nil {
			return err
		}
		now, _, err := operations(broker)
		if err != nil {
			return err
		}
		done := s.operations(begin, now)
		if done >= leastOperations {
			return nil
		}
		if waited >= time.Minute {
			return fmt.Errorf("%.0f operations in %v are too few to judge by: want %d", done, waited, leastOperations)
		}
	}
}

// leastOperations make pools that a snapshot has emptied, and which fill again, count for little.
const leastOperations = 2000

// account is what a broker had done at one moment.
type account struct {
	profiles map[string]*profile.Profile
	done     float64
}

// snapshot takes an account after a while.
func snapshot(ctx context.Context, broker *brokerproc.Process, after time.Duration) (a account, err error) {
	if err := pause(ctx, after); err != nil {
		return a, err
	}
	a.profiles = make(map[string]*profile.Profile)
	for _, name := range []string{"allocs", "heap", "mutex", "block"} {
		if a.profiles[name], err = broker.Profile(name); err != nil {
			return a, err
		}
	}
	a.done, _, err = operations(broker)
	return a, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func writeProfile(file string, p *profile.Profile) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(p.Write(f), f.Close())
}
