package cost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/quicx"
)

// maxConnection is the budget of an idle connection with one subscription, in bytes of live memory: what a broker
// counts for it in its memory limit, before the quarter that it adds.
const maxConnection = 56 << 10

// connections is the table of what connections cost that do nothing.
func (b *bench) connections(ctx context.Context) error {
	resident, err := b.idleConnections(ctx, nil)
	if err != nil {
		return err
	}
	var by account
	exact, err := b.idleConnections(ctx, &by, brokerproc.ExactAllocations)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nIdle connections: %d with one subscription each; bytes for each\n\n", b.conns)
	fmt.Fprintf(b.out, "| %-16s | %8s |\n| :--------------- | -------: |\n", "owner", "bytes")
	const row = "| %-16s | %8.0f |\n"
	for _, owner := range by.rooms(func(u usage) float64 { return u.heldBytes }) {
		if held := by[owner].heldBytes / float64(b.conns); held >= 1 {
			fmt.Fprintf(b.out, row, owner, held)
		}
	}
	fmt.Fprintf(b.out, row, "(stacks)", exact.stacks)
	fmt.Fprintf(b.out, row, "live, all", exact.heap+exact.stacks)
	fmt.Fprintf(b.out, row, "resident", resident.resident)
	fmt.Fprintf(b.out, "\n%.1f goroutines for each\n", exact.goroutines)
	b.out.Say("live bytes for each idle connection", exact.heap+exact.stacks, fmt.Sprintf("<= %d", maxConnection), exact.heap+exact.stacks <= maxConnection)
	return nil
}

// perConnection is what each connection adds to a broker.
type perConnection struct{ heap, stacks, goroutines, resident float64 }

// idleConnections opens connections to a broker of its own and measures what it holds more. If by is given it gets what
// each owner holds for all of them.
func (b *bench) idleConnections(ctx context.Context, by *account, env ...string) (each perConnection, err error) {
	broker, err := brokerproc.Start(append(env, "FELIX_HANDSHAKES_PER_PREFIX=-1", "FELIX_RETRY_ABOVE=-1", "FELIX_DEV_STREAMS=demo",
		"FELIX_IDLE_TIMEOUT_MS=600000", "FELIX_KEEP_ALIVE_MS=300000", "FELIX_MAX_UNAUTHENTICATED_CONNECTIONS=100000")...)
	if err != nil {
		return each, err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	var before, after account
	measure := func(a *account) (brokerproc.Memory, int64, error) {
		if by != nil {
			p, err := broker.Allocations()
			if err != nil {
				return brokerproc.Memory{}, 0, err
			}
			*a = ownersOf(p)
		}
		m, err := broker.Memory()
		return m, broker.Resident(), err
	}
	m0, r0, err := measure(&before)
	if err != nil {
		return each, err
	}
	b.progress.Say("%d connections", b.conns)
	conns := make([]*quicx.Conn, 0, b.conns)
	defer func() {
		for _, c := range conns {
			err = errors.Join(err, c.Close(0, ""))
		}
	}()
	for range b.conns {
		c, err := quicx.Dial(ctx, broker.Addr, broker.TLS, quicx.Config{
			IdleTimeout: 10 * time.Minute, KeepAlive: -1, RecvBuffer: 64 << 10, SendBuffer: 64 << 10, DisableGRO: true,
		})
		if err != nil {
			return each, err
		}
		conns = append(conns, c)
		if err := subscribeOnce(ctx, c, broker); err != nil {
			return each, err
		}
	}
	b.progress.Say("%d connections rest", b.conns)
	time.Sleep(settles) //nolint:forbidigo // nothing tells when the broker's memory has been given back
	m1, r1, err := measure(&after)
	if err != nil {
		return each, err
	}
	if by != nil {
		*by = after.since(before)
	}
	n := float64(b.conns)
	return perConnection{
		heap: float64(m1.Heap-m0.Heap) / n, stacks: float64(m1.Stacks-m0.Stacks) / n,
		goroutines: float64(m1.Goroutines-m0.Goroutines) / n, resident: float64(r1-r0) / n,
	}, nil
}

// settles is longer than a broker takes to give back what is free when its connections have come.
const settles = 15 * time.Second

// subscribeOnce subscribes and waits for the event stream.
func subscribeOnce(ctx context.Context, c *quicx.Conn, broker *brokerproc.Process) error {
	s, err := c.OpenStream(ctx)
	if err != nil {
		return err
	}
	request := codec.AppendAuth(nil, broker.Tenant, broker.Token, codec.KnownFlags, true, codec.KnownExtensions())
	request = codec.AppendSubscribe(request, broker.Tenant, broker.Namespace, "demo", codec.Start{}, 0, false)
	if _, err := s.Send().Write(request); err != nil {
		return err
	}
	_, err = c.AcceptUniStream(ctx)
	return err
}

// ownersOf is [accountOf] with what cryptography and TLS hold apart from quic-go, which makes them hold it.
func ownersOf(p *profile.Profile) account {
	var crypto, rest profile.Profile
	crypto.SampleType, rest.SampleType = p.SampleType, p.SampleType
	for _, s := range p.Sample {
		if belowIsCrypto(s) {
			crypto.Sample = append(crypto.Sample, s)
		} else {
			rest.Sample = append(rest.Sample, s)
		}
	}
	a := accountOf(&rest)
	var all usage
	for _, u := range accountOf(&crypto) {
		all.objects, all.bytes, all.heldBytes = all.objects+u.objects, all.bytes+u.bytes, all.heldBytes+u.heldBytes
	}
	a["(crypto, TLS)"] = all
	return a
}

// belowIsCrypto reports whether a package of cryptography comes before the first of quic-go's or ours, from the leaf.
func belowIsCrypto(s *profile.Sample) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			switch name := line.Function.Name; {
			case strings.HasPrefix(name, "crypto/"):
				return true
			case strings.HasPrefix(name, "github.com/"):
				return false
			}
		}
	}
	return false
}
