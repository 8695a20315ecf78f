// Command cachelife measures two promises of the cache that take time to show. It prints two tables:
//
//	ttl    how far from the end of an entry's lifetime its end is seen, by a reader and by a watcher, under load
//	churn  what a broker holds resident while many times its cache's budget goes through it
//
// The broker lives in a process of its own. With the defaults ttl takes half a minute and churn ten minutes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/benchmarks/internal/brokerproc"
)

func main() {
	brokerproc.Serve()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// bench is a run of this program.
type bench struct {
	out, progress io.Writer

	duration time.Duration
	budget   int64 // of churn, in MiB
	times    int64 // that this goes through
	missed   bool  // something that was wanted
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b := &bench{out: stdout, progress: stderr}
	flags := pflag.NewFlagSet("cachelife", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&b.duration, "duration", 0, "of the measurement; 0 is 30s for ttl and 10m for churn")
	flags.Int64Var(&b.budget, "budget", 1024, "MiB that the cache of churn may hold")
	flags.Int64Var(&b.times, "times", 10, "times that the budget is put by churn, evenly over the duration")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(stderr, "cachelife:", err)
		return 2
	}
	tables := map[string]func(context.Context) error{"ttl": b.ttl, "churn": b.churn}
	table := tables[flags.Arg(0)]
	if table == nil || flags.NArg() > 1 || b.duration < 0 || b.budget < 16 || b.times < 1 {
		fmt.Fprintln(stderr, "cachelife: want ttl or churn, a budget of at least 16 MiB and no negative numbers")
		return 2
	}
	if err := table(ctx); err != nil {
		fmt.Fprintln(stderr, "cachelife:", err)
		return 1
	}
	if b.missed {
		return 1
	}
	return 0
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// verdict prints what was wanted beside what was measured.
func (b *bench) verdict(what string, measured float64, wanted string, ok bool) {
	b.missed = b.missed || !ok
	fmt.Fprintf(b.out, "%-60s %10.3f   wanted %-10s %s\n", what, measured, wanted, map[bool]string{true: "met", false: "MISSED"}[ok])
}

// percentile of values that are sorted.
func percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[min(int(p/100*float64(len(sorted))), len(sorted)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// row prints a distribution, in milliseconds.
func (b *bench) row(what string, values []time.Duration) {
	if len(values) == 0 {
		return
	}
	slices.Sort(values)
	fmt.Fprintf(b.out, "| %-44s | %8d | %8.2f | %8.2f | %8.2f | %8.2f |\n", what, len(values), milliseconds(values[0]),
		milliseconds(percentile(values, 50)), milliseconds(percentile(values, 99)), milliseconds(values[len(values)-1]))
}
