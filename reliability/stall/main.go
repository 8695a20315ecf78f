// Package stall measures what subscribers that do not read cost those that do. It prints three tables:
//
//	same topic   thousands of stalled subscriptions on the topic of ten healthy ones, over connections of their own
//	many topics  a stalled subscription next to a healthy one on each of a thousand topics, with a budget for retained
//	             memory that is far smaller than what their queues may hold
//	one conn     stalled subscriptions on the connection of those that are read
//
// Measurements without and with the stalled ones alternate, and medians are compared. Broker, stalled
// subscriptions and healthy ones live in processes of their own. With the defaults it takes about six minutes.
package stall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	felix "github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// Serve makes [Run] possible: its other process is another instance of this program. It is called before anything else
// in main, after [brokerproc.Serve].
func Serve() { serveNeighbors() }

// bench is a run of this program.
type bench struct {
	out      *program.Verdicts
	progress program.Progress

	conns, subs, topics, rounds int
	duration                    time.Duration
}

// Bounds of the flags, so that a slip does not fill the machine.
const (
	maxConns    = 10_000
	maxSubs     = 100
	maxTopics   = 10_000
	maxRounds   = 25
	maxDuration = time.Minute
)

// Run is the command.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	debug.SetGCPercent(800) // what loads the broker is small, and would collect ten times a second
	b := &bench{out: &program.Verdicts{Writer: stdout}, progress: program.Progress{Writer: stderr}}
	flags := program.Flags("stall", stderr)
	flags.IntVar(&b.conns, "conns", 2000, "connections of stalled subscriptions on one topic")
	flags.IntVar(&b.subs, "subs", 5, "stalled subscriptions of each of them")
	flags.IntVar(&b.topics, "topics", 1000, "topics with a stalled subscription each")
	flags.IntVar(&b.rounds, "rounds", 5, "times that each measurement is made")
	flags.DurationVar(&b.duration, "duration", 4*time.Second, "of each measurement")
	only := flags.String("only", "same-topic,many-topics,one-conn", "tables to print")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	within := func(n, most int) bool { return n >= 1 && n <= most }
	if !within(b.conns, maxConns) || !within(b.subs, maxSubs) || !within(b.topics, maxTopics) || !within(b.rounds, maxRounds) ||
		b.duration < 100*time.Millisecond || b.duration > maxDuration || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "stall: want 1 to %d connections, %d subscriptions, %d topics, %d rounds, at most %v each, and no arguments\n",
			maxConns, maxSubs, maxTopics, maxRounds, maxDuration)
		return 2
	}
	return program.Tables(ctx, "stall", *only, map[string]func(context.Context) error{"same-topic": b.sameTopic, "many-topics": b.manyTopics, "one-conn": b.oneConn}, stderr)
}

// row is one measurement.
type row struct {
	published float64 // events per second
	p50, p99  float64 // ms
	longest   float64 // ms, 0 if it was not measured
	lost      int64
	resident  int64 // bytes
}

// alternate measures all cases in each round, prints all rows and returns the medians.
func (b *bench) alternate(ctx context.Context, cases []string, measure func(context.Context, int) (row, error)) ([]row, error) {
	const head, body = "| %-28s | %5s | %11s | %8s | %8s | %12s | %6s | %10s |\n", "| %-28s | %5s | %11.0f | %8.2f | %8.2f | %12.2f | %6d | %10d |\n"
	fmt.Fprintf(b.out, head, "", "round", "published/s", "p50 ms", "p99 ms", "longest ms", "lost", "broker MiB")
	fmt.Fprintf(b.out, head, "---", "----:", "----------:", "-------:", "-------:", "-----------:", "-----:", "---------:")
	rows := make([][]row, len(cases))
	for round := range b.rounds {
		for i, name := range cases {
			b.progress.Say("%s, round %d of %d", name, round+1, b.rounds)
			r, err := measure(ctx, i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			rows[i] = append(rows[i], r)
			fmt.Fprintf(b.out, body, name, fmt.Sprint(round+1), r.published, r.p50, r.p99, r.longest, r.lost, r.resident>>20)
		}
	}
	medians := make([]row, len(cases))
	for i, all := range rows {
		medians[i] = row{
			published: stats.MedianOf(all, func(r row) float64 { return r.published }), p50: stats.MedianOf(all, func(r row) float64 { return r.p50 }),
			p99: stats.MedianOf(all, func(r row) float64 { return r.p99 }), longest: stats.MedianOf(all, func(r row) float64 { return r.longest }),
		}
		for _, r := range all {
			medians[i].lost += r.lost
			medians[i].resident = max(medians[i].resident, r.resident)
		}
		m := medians[i]
		fmt.Fprintf(b.out, body, cases[i], "all", m.published, m.p50, m.p99, m.longest, m.lost, m.resident>>20)
	}
	return medians, nil
}

// compare judges a pair of medians, without and with stalled neighbors.
func (b *bench) compare(without, with row) {
	rate, p99 := with.published/without.published, with.p99/without.p99
	b.out.Say("publish rate, with / without", rate, ">= 0.95", rate >= 0.95)
	b.out.Say("healthy p99, with / without", p99, "<= 1.20", p99 <= 1.2)
	b.out.Say("healthy events lost, all rounds", float64(with.lost), "0", with.lost == 0)
	if without.lost > 0 {
		fmt.Fprintf(b.out, "%d events were lost without stalled neighbors too: this machine is busy with something else.\n", without.lost)
	}
}

// sameTopic is the table of stalled neighbors on the topic of healthy subscriptions.
func (b *bench) sameTopic(ctx context.Context) (err error) {
	const fanout, batch = 10, 64
	limits := felix.DefaultConfig()
	if err := settings.Environment(&limits); err != nil { // which the broker's process reads too
		return err
	}
	broker, err := brokerproc.Start("FELIX_DEV_STREAMS=demo", unlimitedHandshakes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	cfg := loadgen.Config{
		Target: loadgen.TargetOf(broker, "demo"), Fanout: fanout, Payload: payloadSize, Batch: batch, Duration: b.duration,
		// All that stalls has filled its windows and queues before latencies count.
		Warmup: 5 * time.Second,
	}
	b.progress.Say("measuring the maximum")
	most, err := loadgen.Run(ctx, cfg)
	if err != nil {
		return err
	}
	cfg.Rate = most.PublishedPerSecond / 2
	fmt.Fprintf(b.out, "\nSame topic: %d connections × %d stalled subscriptions next to %d healthy ones; %d B × %d, open loop at half of %.0f/s\n\n",
		b.conns, b.subs, fanout, payloadSize, batch, most.PublishedPerSecond)
	streams := slices.Repeat([]string{"demo"}, b.conns*b.subs)
	fresh, retained := broker.Resident(), 0.0
	medians, err := b.alternate(ctx, []string{"alone", "with stalled neighbors"}, func(ctx context.Context, i int) (_ row, err error) {
		if i == 1 {
			stalled, err := startNeighbors(ctx, broker, b.conns, streams)
			if err != nil {
				return row{}, err
			}
			defer func() { err = errors.Join(err, stalled.Stop(nil)) }()
		}
		res, err := loadgen.Run(ctx, cfg)
		if _, lossy := errors.AsType[*loadgen.UnaccountedError](err); err != nil && !lossy {
			return row{}, err
		}
		m, err := broker.Metrics()
		if err != nil {
			return row{}, err
		}
		retained = max(retained, m["felix_retained_bytes"])
		return rowOf(res, broker), nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(b.out)
	b.compare(medians[0], medians[1])
	const mib = 1 << 20
	b.out.Say("retained at most, MiB", retained/mib, fmt.Sprintf("<= %d", limits.RetainedBytes/mib), int64(retained) <= limits.RetainedBytes)
	resident, bound := max(medians[0].resident, medians[1].resident), limits.MemoryLimit()
	b.out.Say("broker memory at most, MiB, against its limit", float64(resident)/mib, fmt.Sprintf("<= %d", bound/mib), resident <= bound)
	fmt.Fprintf(b.out, "%-60s %10.0f\n", "broker memory, KiB for each stalled connection", float64(resident-fresh)/float64(b.conns)/1024)
	return nil
}

// unlimitedHandshakes lets one address connect as often as it likes: that is measured elsewhere.
const unlimitedHandshakes = "FELIX_HANDSHAKES_PER_PREFIX=-1"

// manyTopics is the table of stalled subscriptions that the budget for retained memory has to be taken from.
func (b *bench) manyTopics(ctx context.Context) (err error) {
	const budget = 64 << 20
	topics := make([]string, b.topics)
	for i := range topics {
		topics[i] = fmt.Sprintf("topic-%d", i)
	}
	broker, err := brokerproc.Start("FELIX_DEV_STREAMS="+strings.Join(topics, ","), "FELIX_REPLAY_BYTES=-1",
		fmt.Sprintf("FELIX_RETAINED_BYTES=%d", budget), unlimitedHandshakes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	c, err := broker.Connect(ctx, client.WithTransport(client.Transport{SubscriptionsPerConn: (b.topics + 7) / 8}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	const batch, rate = 16, 1000.0
	cfg := b.openLoop(batch, rate)
	cfg.Topics, cfg.Duration = b.topics, 2*b.duration
	fmt.Fprintf(b.out, "\nMany topics: %d topics with a healthy and a stalled subscription each, queues of 4 MiB, FELIX_RETAINED_BYTES %d MiB; %d B × %d, %.0f batches/s\n\n",
		b.topics, budget>>20, payloadSize, batch, rate)
	var retained float64
	medians, err := b.alternate(ctx, []string{"alone", "with stalled neighbors"}, func(ctx context.Context, i int) (_ row, err error) {
		if i == 1 {
			stalled, err := startNeighbors(ctx, broker, min(32, b.topics), topics)
			if err != nil {
				return row{}, err
			}
			defer func() { err = errors.Join(err, stalled.Stop(nil)) }()
		}
		res, err := loadgen.RunOn(ctx, cfg, loadgen.OnClient(c, broker.Namespace, topics...))
		if err != nil {
			return row{}, err
		}
		m, err := broker.Metrics()
		retained = max(retained, m["felix_retained_bytes"])
		return rowOf(res, broker), err
	})
	if err != nil {
		return err
	}
	m, err := broker.Metrics()
	if err != nil {
		return err
	}
	fmt.Fprintln(b.out)
	b.compare(medians[0], medians[1])
	b.out.Say("longest publish, ms", medians[1].longest, "< 2000", medians[1].longest < 2000)
	b.out.Say("retained, most seen, MiB", retained/(1<<20), "<= 64", retained <= budget)
	b.out.Say("times that the budget was reached", m["felix_reclaims_total"], "> 0", m["felix_reclaims_total"] > 0)
	return nil
}

// payloadSize is the size of an event in bytes.
const payloadSize = 1 << 10

// openLoop is a load of acknowledged batches, so many per second: one that stands still shows. Before latencies count,
// all that is to stall has filled its windows.
func (b *bench) openLoop(batch int, rate float64) loadgen.Config {
	return loadgen.Config{
		Payload: payloadSize, Batch: batch, Rate: rate * float64(batch), Acked: true, AllowDrops: true,
		Warmup: time.Second, Duration: b.duration, IdleTimeout: 20 * time.Second,
	}
}

func rowOf(res *loadgen.Result, b *brokerproc.Process) row {
	return row{
		published: res.PublishedPerSecond, p50: res.Latency.P50 / 1e3, p99: res.Latency.P99 / 1e3, longest: res.LongestPublish / 1e3,
		lost: int64(res.Unaccounted + res.Dropped), resident: b.Resident(),
	}
}

// share is a way to share one connection: so many subscriptions of the stream with events, and of a quiet one, and so
// many of the first that are not read.
type share struct {
	name                string
	busy, quiet, unread int
}

// oneConn is the table of stalled subscriptions on the connection of healthy ones.
func (b *bench) oneConn(ctx context.Context) (err error) {
	const all = 150
	broker, err := brokerproc.Start("FELIX_DEV_STREAMS=busy,quiet")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	const batch, rate = 64, 100.0
	fmt.Fprintf(b.out, "\nOne connection: %d subscriptions on it; %d B × %d, %.0f batches/s\n\n", all, payloadSize, batch, rate)
	shares := []share{
		{"8 with events, all read", 8, all - 8, 0},
		{"8 with events, 2 unread", 8, all - 8, 2},
		{"1 with events, read", 1, all - 1, 0},
		{"150 with events, 149 unread", all, 0, all - 1},
	}
	names := make([]string, len(shares))
	for i, s := range shares {
		names[i] = s.name
	}
	medians, err := b.alternate(ctx, names, func(ctx context.Context, i int) (_ row, err error) {
		s := shares[i]
		c, err := broker.Connect(ctx, client.WithTransport(client.Transport{EventConns: 1, SubscriptionsPerConn: all}))
		if err != nil {
			return row{}, err
		}
		defer func() { err = cmp.Or(err, c.Close()) }()
		for stream, n := range map[string]int{"quiet": s.quiet, "busy": s.unread} {
			for range n {
				if _, err := c.Subscribe(ctx, broker.Namespace, stream, client.WithoutResume()); err != nil { // ends with c
					return row{}, err
				}
			}
		}
		cfg := b.openLoop(batch, rate)
		cfg.Fanout = s.busy - s.unread
		res, err := loadgen.RunOn(ctx, cfg, loadgen.OnClient(c, broker.Namespace, "busy"))
		if err != nil {
			return row{}, err
		}
		return rowOf(res, broker), nil
	})
	if err != nil {
		return err
	}
	for i := 0; i < len(shares); i += 2 {
		fmt.Fprintf(b.out, "\n%s:\n", shares[i+1].name)
		b.compare(medians[i], medians[i+1])
	}
	return nil
}
