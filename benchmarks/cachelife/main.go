// Command cachelife measures two promises of the cache that take time to show. It prints two tables:
//
//	ttl    how far from the end of an entry's lifetime its end is seen, by a reader and by a watcher, under load
//	churn  what a broker holds resident while many times its cache's budget goes through it
//
// The broker lives in a process of its own. With the defaults ttl takes half a minute and churn ten minutes.
package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/felix-mq/felix/benchmarks/internal/brokerproc"
	"github.com/felix-mq/felix/benchmarks/internal/program"
)

func main() {
	brokerproc.Serve()
	program.Main(run)
}

// bench is a run of this program.
type bench struct {
	out      io.Writer
	progress program.Progress

	duration time.Duration
	budget   int64 // of churn, in MiB
	times    int64 // that this goes through
	missed   bool  // something that was wanted
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b := &bench{out: stdout, progress: program.Progress{Writer: stderr}}
	flags := program.Flags("cachelife", stderr)
	flags.DurationVar(&b.duration, "duration", 0, "of the measurement; 0 is 30s for ttl and 10m for churn")
	flags.Int64Var(&b.budget, "budget", 1024, "MiB that the cache of churn may hold")
	flags.Int64Var(&b.times, "times", 10, "times that the budget is put by churn, evenly over the duration")
	if code, ok := program.Parse(flags, args); !ok {
		return code
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

// verdict prints the wanted next to the measured value.
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
