package flood

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/felix-mq/felix/internal/child"
)

// senderRole is the role of a process that floods. Its account is how many datagrams it sent.
const senderRole = "flood-sender"

// attack is what the sender has to do. It floods until the time is over or its parent wants the end.
type attack struct {
	Target   netip.AddrPort
	Rate     int // datagrams per second
	Duration time.Duration
	Seed     uint64
}

// Bounds of an attack.
const (
	maxRate     = 200_000
	maxDuration = 10 * time.Minute
)

// sources is how many addresses and ports a flood seems to come from.
const sources = 512

var errNotLoopback = errors.New("flood: the target is not a loopback address")

// checkTarget refuses everything but this machine.
func checkTarget(target netip.AddrPort) error {
	if !target.Addr().IsLoopback() || !target.Addr().Is4() {
		return fmt.Errorf("%w: %v", errNotLoopback, target)
	}
	return nil
}

// serveSender floods and exits if this is the sender's process. In any other it returns at once.
func serveSender() {
	child.Serve(senderRole, func(ctx context.Context, a attack, parent *child.Parent) (any, error) {
		if err := parent.Send("ready"); err != nil {
			return nil, err
		}
		return send(ctx, a)
	})
}

func send(ctx context.Context, a attack) (sent int, err error) {
	if err := checkTarget(a.Target); err != nil {
		return 0, err
	}
	if a.Rate < 1 || a.Rate > maxRate || a.Duration <= 0 || a.Duration > maxDuration {
		return 0, fmt.Errorf("flood: %d datagrams per second for %v is out of bounds", a.Rate, a.Duration)
	}
	rng := rand.New(rand.NewPCG(a.Seed, 1))
	sockets, err := bind(a.Target, rng)
	defer func() {
		for _, s := range sockets {
			_ = s.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	var source [idLen]byte
	binary.BigEndian.PutUint64(source[:], rng.Uint64())
	f, err := newForge(source)
	if err != nil {
		return 0, err
	}
	ctx, stop := context.WithTimeout(ctx, a.Duration)
	defer stop()
	return flood(ctx, a, f, sockets, rng)
}

// bind opens a socket for each source: addresses all over 127.0.0.0/8, each with a port of its own.
func bind(target netip.AddrPort, rng *rand.Rand) (sockets []*net.UDPConn, _ error) {
	for range sources {
		from := net.IPv4(127, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(1+rng.IntN(254)))
		s, err := net.DialUDP("udp4", &net.UDPAddr{IP: from}, net.UDPAddrFromAddrPort(target))
		if err != nil {
			return sockets, fmt.Errorf("flood: a source address: %w", err)
		}
		_ = s.SetReadBuffer(1) // nobody reads the answers
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// burstEvery is how often datagrams are sent, those that are due together.
const burstEvery = time.Millisecond

func flood(ctx context.Context, a attack, f *forge, sockets []*net.UDPConn, rng *rand.Rand) (sent int, err error) {
	tick := time.NewTicker(burstEvery)
	defer tick.Stop()
	begin := time.Now()
	b := make([]byte, 0, datagramLen)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return sent, nil
		}
		for due := int(time.Since(begin).Seconds() * float64(a.Rate)); sent < due; sent++ {
			var destination [idLen]byte
			binary.BigEndian.PutUint64(destination[:], rng.Uint64())
			if b, err = f.initial(b[:0], destination); err != nil {
				return sent, err
			}
			_, _ = sockets[sent%len(sockets)].Write(b) // what the kernel does not take is lost, as in a network
		}
	}
}

// startSender floods from a process of its own, whose work is not to be mistaken for that of the others. The caller
// stops it; it may end by itself before.
func startSender(ctx context.Context, a attack) (*child.Process, error) {
	if err := checkTarget(a.Target); err != nil {
		return nil, err
	}
	return child.Start(ctx, senderRole, a, nil, new(string))
}
