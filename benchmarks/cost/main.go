// Package cost measures what a broker pays for each delivery, subscription and topic. It prints four tables:
//
//	deliveries   processor time of the broker for each additional delivered event, at fanout 10, 64, 256 and 1024
//	allocations  what the broker allocates for each delivered event, by package
//	memory       what the broker holds for each idle subscription, by package, and for each idle topic
//	connections  what it holds for each idle connection, by owner, and what that makes resident
//
// The broker lives in a process of its own, and is asked for its processor time, its memory and its profiles.
//
// A profile tells what belongs to quic-go: walking an allocation's stack from its leaf, the first frame in quic-go or
// in a package of Felix decides. Memory that quic-go holds because of a call by Felix is thus quic-go's own, as is
// memory of the standard library that quic-go calls; what has neither on its stack is charged to Felix. Stacks have no
// profile, and all that they grow by is charged to Felix as well.
//
// With the defaults it takes about eight minutes.
package cost

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/internal/program"
)

// bench is a run of this program.
type bench struct {
	out      *program.Verdicts
	progress program.Progress

	rounds, subs, topics, conns, procs int
	duration                           time.Duration
}

// Bounds of the flags, so that a slip does not fill the machine.
const (
	maxRounds   = 25
	maxSubs     = 4096
	maxTopics   = 1_000_000
	maxConns    = 20_000
	maxDuration = time.Minute
)

// Run is the command. The program has called [brokerproc.Serve] before.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b := &bench{out: &program.Verdicts{Writer: stdout}, progress: program.Progress{Writer: stderr}}
	flags := program.Flags("cost", stderr)
	flags.IntVar(&b.rounds, "rounds", 5, "times that each measurement of deliveries is made")
	flags.DurationVar(&b.duration, "duration", 3*time.Second, "of each measurement under load")
	flags.IntVar(&b.subs, "subs", 2048, "idle subscriptions")
	flags.IntVar(&b.topics, "topics", 100_000, "idle topics")
	flags.IntVar(&b.conns, "conns", 1500, "idle connections")
	flags.IntVar(&b.procs, "procs", 1, "GOMAXPROCS of the broker; 0 leaves it to the runtime")
	only := flags.String("only", "deliveries,allocations,memory,connections", "tables to print")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	within := func(n, most int) bool { return n >= 1 && n <= most }
	if !within(b.rounds, maxRounds) || !within(b.subs, maxSubs) || !within(b.topics, maxTopics) || !within(b.conns, maxConns) ||
		b.duration < time.Second || b.duration > maxDuration || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "cost: want 1 to %d rounds, %d subscriptions, %d topics, %d connections, 1s to %v each, and no arguments\n",
			maxRounds, maxSubs, maxTopics, maxConns, maxDuration)
		return 2
	}
	return program.Tables(ctx, "cost", *only, map[string]func(context.Context) error{"deliveries": b.deliveries, "allocations": b.allocations, "memory": b.memory, "connections": b.connections}, stderr)
}
