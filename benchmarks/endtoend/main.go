// Package endtoend prints a table of what a broker on this machine delivers: throughput of large batches and latency
// of single events, at several fan-outs, with the broker in a process of its own and every event accounted for.
//
// Each row is a run with fresh processes. It takes about a minute. FELIX_* variables tune the broker. The figures of
// one run on one machine vary; to compare two builds, alternate them a few times and take medians.
package endtoend

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen"
)

// Run is the command. The program has called [brokerproc.Serve] before.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := program.Flags("endtoend", stderr)
	duration := flags.Duration("duration", 2500*time.Millisecond, "measured time of each row")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if *duration <= 0 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "endtoend: want a positive --duration and no arguments")
		return 2
	}
	if err := settings.Environment(new(broker.DefaultConfig())); err != nil {
		fmt.Fprintln(stderr, "endtoend: environment:", err)
		return 2
	}
	t := table{out: stdout, errs: stderr}
	t.header()
	for _, row := range rows() {
		row.Duration = *duration
		// A slow machine gets more time for the volume that a rate needs.
		row.MaxDuration = 6 * *duration
		row.Warmup = 300 * time.Millisecond
		row.Processes = 2
		t.row(ctx, row)
	}
	if t.machine != "" {
		fmt.Fprintf(stdout, "\n%s\n", t.machine)
	}
	if t.failed {
		return 1
	}
	return 0
}

// rows lists the runs: throughput in batches of 64, then a closed loop of single events.
func rows() []loadgen.Config {
	fanouts := []int{1, 10, 64}
	all := make([]loadgen.Config, 0, 3*len(fanouts))
	for _, payload := range []int{256, 4096} {
		for _, fanout := range fanouts {
			all = append(all, loadgen.Config{Fanout: fanout, Payload: payload, Batch: 64, Window: 8})
		}
	}
	for _, fanout := range fanouts {
		all = append(all, loadgen.Config{Fanout: fanout, Payload: 1024, Batch: 1, Window: 1})
	}
	return all
}

type table struct {
	out, errs io.Writer
	failed    bool
	machine   string
}

const (
	headFormat = "| %6s | %7s | %5s | %6s | %11s | %7s | %8s | %8s | %8s | %8s | %11s |\n"
	rowFormat  = "| %6d | %7d | %5d | %6d | %11.0f | %7.1f | %8.0f | %8.0f | %8.0f | %8.0f | %11d |\n"
)

func (t *table) header() {
	fmt.Fprint(t.out, "Delivered to all subscriptions together; latency in µs from publish to receipt.\n"+
		"Broker in a process of its own, subscriptions over at most 8 connections, incompressible payloads.\n"+
		"Batches of 64 load it fully: their latency is mostly time in queues.\n\n")
	fmt.Fprintf(t.out, headFormat, "fanout", "payload", "batch", "window", "msg/s", "MB/s", "p50", "p90", "p99", "p999", "unaccounted")
	fmt.Fprintf(t.out, headFormat, "-----:", "------:", "----:", "-----:", "----------:", "------:", "-------:", "-------:", "-------:", "-------:", "----------:")
}

// row runs one configuration and prints its figures. A run that failed prints none, but the reason.
func (t *table) row(ctx context.Context, cfg loadgen.Config) {
	if ctx.Err() != nil {
		t.failed = true
		return
	}
	res, err := loadgen.Run(ctx, cfg)
	if err != nil {
		t.failed = true
		fmt.Fprintf(t.errs, "fanout %d, payload %d, batch %d: %v\n", cfg.Fanout, cfg.Payload, cfg.Batch, err)
		return
	}
	t.machine = res.Environment.String()
	l := &res.Latency
	fmt.Fprintf(t.out, rowFormat, cfg.Fanout, cfg.Payload, cfg.Batch, cfg.Window, res.DeliveredPerSecond,
		res.DeliveredBytesPerSecond/1e6, l.P50, l.P90, l.P99, l.P999, res.Unaccounted)
}
