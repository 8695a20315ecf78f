package cost

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// fanouts are those whose additional deliveries, over the single one of fanout 1, are compared.
var fanouts = []int{10, 64, 256, 1024}

// load is a way to publish. Fanout F and fanout 1 are measured at the same rate, that of the deliveries divided by F,
// so that what a publish costs cancels out and the broker is as busy at every fanout. At one rate for all fanouts it
// would sleep most of the time at the small ones, and waking up, with everything gone from the processor's caches,
// costs more than a delivery.
type load struct {
	payload, batch int
	deliveries     float64 // per second, which leave this machine's processors idle half of the time
}

var loads = []load{{1024, 64, 250_000}, {1024, 1, 100_000}}

// tolerance is how far from the mean of all fanouts the cost of a delivery may be.
const tolerance = 0.15

// noSpin makes the broker's socket reader sleep at once: what it polls for while nothing comes is the price of a low
// latency, and no delivery's.
const noSpin = "FELIX_QUIC_SPIN=0"

// deliveries is the table of processor time.
func (b *bench) deliveries(ctx context.Context) error {
	for _, l := range loads {
		if err := b.deliveriesOf(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) deliveriesOf(ctx context.Context, l load) (err error) {
	broker, err := brokerproc.Start(noSpin, fmt.Sprintf("GOMAXPROCS=%d", b.procs))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	fmt.Fprintf(b.out, "\nDeliveries: %d B × %d, open loop, %.0f deliveries/s; subscriptions over at most %d connections\n\n",
		l.payload, l.batch, l.deliveries, loadgen.DefaultConns)
	const head = "| %6s | %5s | %11s | %12s | %14s | %12s | %12s | %12s | %8s | %12s |\n"
	const body = "| %6d | %5d | %11.0f | %12.2f | %14.2f | %12.3f | %12.2f | %12.2f | %8.2f | %12d |\n"
	fmt.Fprintf(b.out, head, "fanout", "round", "published/s", "µs / publish", "at fanout 1", "µs / more", "broker cores", "client cores", "p99 ms", "packets lost")
	fmt.Fprintf(b.out, head, "-----:", "----:", "----------:", "-----------:", "-------------:", "-----------:", "-----------:", "-----------:", "-------:", "-----------:")
	costs := make([][]float64, len(fanouts))
	for round := range b.rounds {
		for i, fanout := range fanouts {
			b.progress.Say("%d B × %d, fanout %d, round %d of %d", l.payload, l.batch, fanout, round+1, b.rounds)
			rate := l.deliveries / float64(fanout)
			single, err := b.deliver(ctx, broker, l, 1, rate)
			if err != nil {
				return fmt.Errorf("fanout 1 with fanout %d: %w", fanout, err)
			}
			m, err := b.deliver(ctx, broker, l, fanout, rate)
			if err != nil {
				return fmt.Errorf("fanout %d: %w", fanout, err)
			}
			cost := (m.brokerCPU/m.published - single.brokerCPU/single.published) / float64(fanout-1)
			costs[i] = append(costs[i], cost)
			fmt.Fprintf(b.out, body, fanout, round+1, rate, m.brokerCPU/m.published, single.brokerCPU/single.published, cost,
				m.brokerCPU/m.elapsed, m.clientCPU/m.elapsed, m.p99, m.packetsLost)
		}
	}
	medians := make([]float64, len(fanouts))
	for i, c := range costs {
		medians[i] = stats.Median(c)
	}
	fmt.Fprintln(b.out)
	for i, ratio := range ratios(medians) {
		b.out.Say(fmt.Sprintf("fanout %d: %.3f µs for each additional delivery, ÷ mean", fanouts[i], medians[i]), ratio,
			"0.85 to 1.15", math.Abs(ratio-1) <= tolerance)
	}
	return nil
}

// ratios divides values by their mean.
func ratios(values []float64) []float64 {
	mean := 0.0
	for _, v := range values {
		mean += v / float64(len(values))
	}
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = v / mean
	}
	return out
}

// measurement is of the middle of a run.
type measurement struct {
	published                     float64 // events
	elapsed, brokerCPU, clientCPU float64 // µs
	p99                           float64 // ms, of the whole run
	packetsLost                   int64   // of the whole run
}

// deliver makes one run. An event of it that is not delivered is an error.
func (b *bench) deliver(ctx context.Context, broker *brokerproc.Process, l load, fanout int, rate float64) (m measurement, err error) {
	type reading struct {
		at             time.Time
		broker, client time.Duration
		delivered      uint64
	}
	var first, last reading
	var failed error
	cfg := loadgen.Config{
		Target: loadgen.TargetOf(broker, "demo"), Fanout: fanout, Payload: l.payload, Batch: l.batch, Rate: rate, Duration: b.duration,
		Observer: loadgen.Observer{Progress: func(p loadgen.Progress) {
			if p.WarmingUp || failed != nil {
				return
			}
			last = reading{at: time.Now(), delivered: p.Delivered}
			if last.broker, failed = broker.CPUTime(); failed == nil {
				last.client, failed = child.CPUTime()
			}
			if first.at.IsZero() {
				first = last
			}
		}},
	}
	res, err := loadgen.Run(ctx, cfg)
	if err = errors.Join(err, failed); err != nil {
		return m, err
	}
	micros := func(d time.Duration) float64 { return float64(d) / 1e3 }
	m = measurement{
		published: float64(last.delivered-first.delivered) / float64(fanout),
		elapsed:   micros(last.at.Sub(first.at)), brokerCPU: micros(last.broker - first.broker), clientCPU: micros(last.client - first.client),
		p99: res.Latency.P99 / 1e3, packetsLost: res.PacketsLost,
	}
	if m.published == 0 {
		return m, errors.New("the run was too short to be measured")
	}
	return m, nil
}
