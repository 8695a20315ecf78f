// Package cachelife measures two promises of the cache that take time to show: how far from the end of an entry's
// lifetime its end is seen under load ([TTL]), and what a broker holds resident while many times its cache's budget
// goes through it ([Churn]). The broker lives in a process of its own.
package cachelife

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
)

// bench is a run of a command.
type bench struct {
	out      *program.Verdicts
	progress program.Progress

	duration time.Duration
	budget   int64 // of churn, in MiB
	times    int64 // that this goes through
}

// TTL is the command that measures the ends of lifetimes. The program has called [brokerproc.Serve] before.
func TTL(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b, flags := newBench("cache-ttl", 30*time.Second, stdout, stderr)
	return b.run(ctx, flags, args, b.ttl)
}

// Churn is the command that measures memory. The program has called [brokerproc.Serve] before.
func Churn(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b, flags := newBench("cache-churn", 10*time.Minute, stdout, stderr)
	flags.Int64Var(&b.budget, "budget", b.budget, "MiB that the cache may hold")
	flags.Int64Var(&b.times, "times", b.times, "times that the budget is put, evenly over the duration")
	return b.run(ctx, flags, args, b.churn)
}

func newBench(name string, duration time.Duration, stdout, stderr io.Writer) (*bench, *pflag.FlagSet) {
	b := &bench{out: &program.Verdicts{Writer: stdout}, progress: program.Progress{Writer: stderr}, budget: 1024, times: 10}
	flags := program.Flags(name, stderr)
	flags.DurationVar(&b.duration, "duration", duration, "of the measurement")
	return b, flags
}

func (b *bench) run(ctx context.Context, flags *pflag.FlagSet, args []string, table func(context.Context) error) int {
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if flags.NArg() > 0 || b.duration <= 0 || b.budget < 16 || b.times < 1 {
		fmt.Fprintf(flags.Output(), "%s: want positive numbers, a budget of at least 16 MiB and no arguments\n", flags.Name())
		return 2
	}
	err := table(ctx)
	if err != nil {
		fmt.Fprintf(flags.Output(), "%s: %v\n", flags.Name(), err)
	}
	if err != nil || b.out.Missed {
		return 1
	}
	return 0
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// row prints a distribution, in milliseconds.
func (b *bench) row(what string, values []time.Duration) {
	if len(values) == 0 {
		return
	}
	slices.Sort(values)
	fmt.Fprintf(b.out, "| %-44s | %8d | %8.2f | %8.2f | %8.2f | %8.2f |\n", what, len(values), milliseconds(values[0]),
		milliseconds(stats.Percentile(values, 50)), milliseconds(stats.Percentile(values, 99)), milliseconds(values[len(values)-1]))
}
