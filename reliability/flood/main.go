// Package flood measures what a flood of connection attempts from false addresses costs a broker, and those who talk to
// it or want to. The attempts are well-formed QUIC Initials with a whole ClientHello, 20 000 of them per second, from
// hundreds of addresses of which none ever answers.
//
// It prints the latency of an established connection, the share of honest clients that get in, and the broker's memory,
// first at rest and then under the flood. Everything stays on loopback addresses; other targets are refused. With the
// defaults it takes about 80 seconds.
package flood

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/quicx"
)

// Serve makes [Run] possible: its other process is another instance of this program. It is called before anything else
// in main, after [brokerproc.Serve].
func Serve() { serveSender() }

// Run is the command.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := program.Flags("flood", stderr)
	rate := flags.Int("rate", 20_000, "Initials per second")
	duration := flags.Duration("duration", time.Minute, "of the flood")
	idle := flags.Duration("idle", 15*time.Second, "of the measurement at rest")
	seed := flags.Uint64("seed", 1, "of addresses and connection ids")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if *rate < 1 || *rate > maxRate || *duration < time.Second || *duration > maxDuration || *idle < time.Second || *idle > maxDuration || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "flood: want a rate up to %d, times from 1s to %v, and no arguments\n", maxRate, maxDuration)
		return 2
	}
	if err := compare(ctx, attack{Rate: *rate, Duration: *duration, Seed: *seed}, *idle, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "flood:", err)
		return 1
	}
	return 0
}

// topic is the stream of the echo.
const topic = "echo"

func compare(ctx context.Context, a attack, idle time.Duration, stdout, stderr io.Writer) (err error) {
	b, err := brokerproc.Start("FELIX_DEV_STREAMS=" + topic)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	if a.Target, err = netip.ParseAddrPort(b.Addr); err != nil {
		return err
	}
	c, err := b.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	sub, err := c.Subscribe(ctx, b.Namespace, topic, client.WithoutResume())
	if err != nil {
		return err
	}
	defer func() { _ = sub.Close() }()
	p := &probe{broker: b, publisher: c.Publisher(b.Namespace, topic), sub: sub}

	fmt.Fprintln(stderr, "warming up")
	if _, err := p.measure(ctx, 3*time.Second, nil); err != nil {
		return err
	}
	progress := func(what string) func(time.Duration) {
		return func(at time.Duration) { fmt.Fprintf(stderr, "%s %v\n", what, at.Round(time.Second)) }
	}
	rest, err := p.measure(ctx, idle, progress("at rest"))
	if err != nil {
		return err
	}
	sender, err := startSender(ctx, a)
	if err != nil {
		return err
	}
	flooded, err := p.measure(ctx, a.Duration, progress("flooded"))
	var sent int
	if err := errors.Join(err, sender.Stop(&sent)); err != nil {
		return err
	}
	m, err := b.Metrics()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d Initials in %v from %d addresses: %.0f/s sent, %.0f asked to retry, %.0f refused by network\n\n",
		sent, a.Duration, sources, float64(sent)/a.Duration.Seconds(), m["felix_retries_total"], m["felix_handshakes_refused_total"])
	const head, row = "| %-34s | %10s | %10s | %10s | %-9s | %s\n", "| %-34s | %10.2f | %10.2f | %10.2f | %-9s | %s\n"
	fmt.Fprintf(stdout, head, "", "at rest", "flooded", "change", "wanted", "")
	line := func(what string, x, y, change float64, wanted string, met bool) {
		verdict := ""
		if wanted != "" {
			verdict = map[bool]string{true: "met", false: "MISSED"}[met]
		}
		fmt.Fprintf(stdout, row, what, x, y, change, wanted, verdict)
	}
	ms := func(f figures, q float64) float64 { return float64(f.echo.ValueAtPercentile(q)) / 1e6 }
	p99 := ms(flooded, 99) / ms(rest, 99)
	line("echo p50, ms (change: ratio)", ms(rest, 50), ms(flooded, 50), ms(flooded, 50)/ms(rest, 50), "", true)
	line("echo p99, ms (change: ratio)", ms(rest, 99), ms(flooded, 99), p99, "<= 3", p99 <= 3)
	line("echo max, ms (change: ratio)", ms(rest, 100), ms(flooded, 100), ms(flooded, 100)/ms(rest, 100), "", true)
	line("honest dials within 1 s, %", rest.honest(), flooded.honest(), flooded.honest()-rest.honest(), ">= 90", flooded.honest() >= 90)
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	growth := mib(flooded.resident - rest.resident)
	line("broker memory at most, MiB", mib(rest.resident), mib(flooded.resident), growth, "<= +64", growth <= 64)
	return nil
}

// probe looks at a broker from outside.
type probe struct {
	broker    *brokerproc.Process
	publisher *client.Publisher
	sub       *client.Subscription
	seq       uint64
}

// figures are what a probe has seen.
type figures struct {
	echo       *hdrhistogram.Histogram // ns, from when an event was due to its delivery
	dials, ins int64                   // honest attempts to connect, and those that were in within a second
	resident   int64                   // bytes, the most
}

func (f figures) honest() float64 { return 100 * float64(f.ins) / float64(max(f.dials, 1)) }

// The paces of a probe.
const (
	echoEvery = 2 * time.Millisecond
	dialEvery = 100 * time.Millisecond
	dialTime  = time.Second
)

// measure probes for a time. progress, if not nil, is called from time to time.
func (p *probe) measure(ctx context.Context, d time.Duration, progress func(time.Duration)) (figures, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	f := figures{echo: stats.NewHistogram()}
	probing, stop := context.WithTimeout(ctx, d)
	defer stop()
	var ins atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, d+30*time.Second) // when the broker is worse than late
		defer cancel()
		if err := p.echo(ctx, d, f.echo); err != nil {
			fail(err)
		}
	})
	begin := time.Now()
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	for probing.Err() == nil {
		f.resident = max(f.resident, p.broker.Resident())
		f.dials++
		wg.Go(func() { // at most dialTime / dialEvery at a time
			if p.dial(ctx) == nil {
				ins.Add(1)
			}
		})
		if progress != nil && f.dials%50 == 0 {
			progress(time.Since(begin))
		}
		select {
		case <-tick.C:
		case <-probing.Done():
		}
	}
	wg.Wait()
	f.ins = ins.Load()
	return f, context.Cause(ctx)
}

// dial connects as an honest client does.
func (p *probe) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := quicx.Dial(ctx, p.broker.Addr, p.broker.TLS, quicx.Config{DisableGRO: true})
	if err != nil {
		return err
	}
	return c.Close(0, "")
}

// echo publishes one event after the other at a fixed pace and waits for each. One that is late because another one was
// counts from when it was due.
func (p *probe) echo(ctx context.Context, d time.Duration, hist *hdrhistogram.Histogram) error {
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range int(d / echoEvery) {
		due := begin.Add(time.Duration(i) * echoEvery)
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			due = time.Now() // the timer's own lateness is nobody's fault
		}
		p.seq++
		if err := p.publisher.Send(ctx, binary.BigEndian.AppendUint64(nil, p.seq)); err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
		ev, err := p.sub.Next(ctx)
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if ev.IsGap() {
			return fmt.Errorf("receiving: a gap: %v", ev.Gap.Reason)
		}
		if n := binary.BigEndian.Uint64(ev.Payload); n != p.seq {
			return fmt.Errorf("event %d came instead of %d", n, p.seq)
		}
		_ = hist.RecordValue(stats.Clamp(time.Since(due)))
	}
	return nil
}
