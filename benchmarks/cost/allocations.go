package cost

import (
	"context"
	"errors"
	"fmt"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// Budgets of a delivered event at batch 64, outside quic-go.
const (
	maxAllocations    = 0.05
	maxAllocatedBytes = 64
)

// allocations is the table of what is allocated under full load.
func (b *bench) allocations(ctx context.Context) error {
	for _, fanout := range []int{10, 64} {
		for _, payload := range []int{256, 1024} {
			if err := b.allocationsOf(ctx, loadgen.Config{Fanout: fanout, Payload: payload, Batch: 64, Duration: b.duration}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) allocationsOf(ctx context.Context, cfg loadgen.Config) (err error) {
	broker, err := brokerproc.Start(brokerproc.SampledAllocations, fmt.Sprintf("GOMAXPROCS=%d", b.procs))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	cfg.Target = loadgen.TargetOf(broker, "demo")
	b.progress.Say("allocations at fanout %d", cfg.Fanout)
	before, err := broker.Allocations()
	if err != nil {
		return err
	}
	res, err := loadgen.Run(ctx, cfg)
	if err != nil {
		return err
	}
	after, err := broker.Allocations()
	if err != nil {
		return err
	}
	m, err := broker.Metrics()
	if err != nil {
		return err
	}
	events := m["felix_delivered_events_total"] // those of the warm-up as well
	a := accountOf(after).since(accountOf(before))
	fmt.Fprintf(b.out, "\nAllocations: fanout %d, %d B × %d, %.0f events delivered, %.0f/s; 1 in 4 KiB sampled, connecting and subscribing included\n\n",
		cfg.Fanout, cfg.Payload, cfg.Batch, events, res.DeliveredPerSecond)
	fmt.Fprintf(b.out, "| %-16s | %14s | %14s |\n| :--------------- | -------------: | -------------: |\n", "package", "allocations", "bytes")
	const row = "| %-16s | %14.5f | %14.3f |\n"
	for _, room := range a.rooms(func(u usage) float64 { return u.bytes }) {
		if u := a[room]; u.objects > 0 {
			fmt.Fprintf(b.out, row, room, u.objects/events, u.bytes/events)
		}
	}
	fmt.Fprintln(b.out)
	ours := a.ours()
	b.out.Say("allocations for each delivered event outside quic-go", ours.objects/events, "<= 0.05", ours.objects/events <= maxAllocations)
	b.out.Say("bytes for each delivered event outside quic-go", ours.bytes/events, "<= 64", ours.bytes/events <= maxAllocatedBytes)
	return nil
}
