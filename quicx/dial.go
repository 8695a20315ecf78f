package quicx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Dial connects to addr, a host and a port. The connection has a UDP socket of its own, which is closed with it:
// packets of several connections on one socket would share its buffers and its reader.
//
// All addresses of a name are tried, as RFC 8305 has it: IPv6 and IPv4 by turns, beginning with the family that the
// system puts first, each 250 ms after the one before or as soon as that has failed. The first whose handshake is
// complete is taken, and the other attempts have ended when Dial returns. The error names each address that was tried.
// Of a name for loopback IPv4 comes first, which is what brokers listen on unless they are told otherwise.
//
// The configuration of TLS is copied, nil stands for an empty one; application protocols in it are ignored. If it names
// no server, the host of addr is what the certificate has to be valid for, without the zone of an IPv6 address.
//
// Dial blocks until a handshake is complete, all have failed or ctx ends. An attempt fails at once, with an error that
// matches [syscall.ECONNREFUSED], if the system at the address says that nothing listens there. Errors after the name
// was resolved match [ErrHandshake].
func Dial(ctx context.Context, addr string, tlsConf *tls.Config, cfg Config) (*Conn, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	host, remotes, err := resolve(ctx, addr, cfg.lookup)
	if err != nil {
		return nil, fmt.Errorf("quicx: dial: %w", err)
	}
	if tlsConf == nil {
		tlsConf = &tls.Config{}
	}
	tlsConf = tlsRules(tlsConf)
	if tlsConf.ServerName == "" {
		tlsConf.ServerName = host
	}
	c, err := firstOf(ctx, remotes, func(ctx context.Context, remote netip.AddrPort) (*Conn, error) {
		return dialTo(ctx, remote, tlsConf, cfg)
	})
	if err != nil {
		return nil, fmt.Errorf("quicx: dial %s: %w", addr, err)
	}
	return c, nil
}

const (
	// attemptDelay is the Connection Attempt Delay of RFC 8305, section 5.
	attemptDelay = 250 * time.Millisecond

	// maxAttempts bounds the addresses of a name that are tried.
	maxAttempts = 16
)

// firstOf calls dial for one address after the other until one succeeds, and returns when all its calls have. Each call
// has to return when its context ends.
func firstOf(ctx context.Context, remotes []netip.AddrPort, dial func(context.Context, netip.AddrPort) (*Conn, error)) (*Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		attempt int
		conn    *Conn
		err     error
	}
	results := make(chan result)
	failed := make([]error, len(remotes))
	started, running := 0, 0
	delay := time.NewTimer(attemptDelay)
	defer delay.Stop()
	start := func() {
		attempt := started
		started, running = started+1, running+1
		delay.Reset(attemptDelay)
		go func() {
			c, err := dial(ctx, remotes[attempt])
			results <- result{attempt, c, err}
		}()
	}
	var winner *Conn
	for start(); running > 0; {
		select {
		case <-delay.C:
			if started < len(remotes) && ctx.Err() == nil {
				start()
			}
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				failed[r.attempt] = r.err
				if started < len(remotes) && ctx.Err() == nil {
					start()
				}
			case winner != nil: // it was a moment late
				_ = r.conn.Close(0, "")
			default:
				winner = r.conn
				cancel()
			}
		}
	}
	if winner != nil {
		return winner, nil
	}
	if len(remotes) == 1 {
		return nil, failed[0]
	}
	for i, remote := range remotes[:started] {
		failed[i] = fmt.Errorf("%v: %w", remote, failed[i])
	}
	return nil, attemptErrors(failed[:started])
}

// attemptErrors are the errors of several attempts, on one line.
type attemptErrors []error

func (e attemptErrors) Error() string {
	var text strings.Builder
	for i, err := range e {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(err.Error())
	}
	return text.String()
}

func (e attemptErrors) Unwrap() []error { return e }

// dialTo takes cfg with defaults.
func dialTo(ctx context.Context, remote netip.AddrPort, tlsConf *tls.Config, cfg Config) (*Conn, error) {
	network := "udp6"
	if remote.Addr().Is4() {
		network = "udp4"
	}
	to := net.UDPAddrFromAddrPort(remote)
	ctx, refused, err := untilRefused(ctx, network, to)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		_ = refused()
		return nil, err
	}
	c, err := dialOn(ctx, conn, to, tlsConf, cfg)
	refusal := refused()
	if err == nil {
		return c, nil
	}
	_ = conn.Close()
	if refusal != nil {
		return nil, fmt.Errorf("%w: %w", ErrHandshake, refusal)
	}
	return nil, err
}

// untilRefused returns a context that ends when the system at an address says that no socket is bound to it. It fails
// if there is no way to the address at all. The function ends the watch and returns what the system has said, or nil.
//
// The socket of a connection hears neither: it is not bound to one peer, and what the system refuses to send counts as
// lost, so QUIC would go on until the attempt has run out of time. So one datagram goes out on a socket that is bound
// to the peer. It is too short for QUIC, and a peer that listens drops it.
func untilRefused(ctx context.Context, network string, to *net.UDPAddr) (_ context.Context, end func() error, _ error) {
	probe, err := net.DialUDP(network, nil, to)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var refusal error
	done := make(chan struct{})
	go func() {
		defer close(done)
		var b [1]byte
		_, err := probe.Write(b[:])
		for err == nil { // an answer, which is nobody's business here
			_, err = probe.Read(b[:])
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			refusal = syscall.ECONNREFUSED // without the probe's port, so that all attempts fail in the same words
			cancel()
		}
	}()
	return ctx, func() error {
		_ = probe.Close() // ends the read
		<-done
		cancel()
		return refusal
	}, nil
}

// dialOn takes cfg with defaults. It leaves conn to the caller if it fails.
func dialOn(ctx context.Context, conn *net.UDPConn, remote net.Addr, tlsConf *tls.Config, cfg Config) (*Conn, error) {
	sock, err := newSocket(conn, cfg)
	if err != nil {
		return nil, err
	}
	tr := cfg.transport(sock)
	rules := cfg.quic()
	if smallPaths.has(remote) {
		rules = cfg.quicSmall()
	}
	qc, err := tr.Dial(ctx, remote, tlsConf, rules)
	if err != nil {
		_ = tr.Close()
		return nil, fmt.Errorf("%w: %w", ErrHandshake, mapError(err))
	}
	sock.serves(func() uint64 { return qc.ConnectionStats().PacketsReceived })
	sizes := newSizeTester(cfg, nil)
	sizes.believes = true
	var wg sync.WaitGroup
	wg.Add(2) // before the connection can end
	c := newConn(qc, sock, tr, sizes, func(*Conn) {
		_ = tr.Close() // waits for the goroutine that reads the socket
		wg.Wait()
		_ = sock.Close()
	})
	go func() {
		defer wg.Done()
		sizes.serve(tr)
	}()
	go func() {
		defer wg.Done()
		sizes.watchOne(c)
	}()
	if err := sock.setBuffers(); err != nil { // again, because quic-go has views of its own about their size
		_ = c.Close(0, "")
		return nil, err
	}
	return c, nil
}

// lookup returns the addresses of a host.
type lookup func(ctx context.Context, host string) ([]netip.Addr, error)

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil // which the resolver would return without its zone
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// resolve returns the host of addr, without a zone, and where to dial, in the order in which to try.
func resolve(ctx context.Context, addr string, addresses lookup) (host string, remotes []netip.AddrPort, err error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return "", nil, err
	}
	ips, err := addresses(ctx, host)
	if err != nil {
		return "", nil, err
	}
	if len(ips) == 0 {
		return "", nil, errors.New("no address for " + host)
	}
	for _, ip := range inTurns(ips) {
		remotes = append(remotes, netip.AddrPortFrom(ip, uint16(port)))
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.WithZone("").String()
	}
	return host, remotes[:min(len(remotes), maxAttempts)], nil
}

// inTurns returns each address once, the families by turns. Within a family the order stays.
func inTurns(ips []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr // that which begins, and the other
	four, loopback := ips[0].Unmap().Is4(), true
	for _, ip := range ips {
		loopback = loopback && ip.Unmap().IsLoopback()
	}
	four = four || loopback
	for _, ip := range ips {
		ip = ip.Unmap()
		family := &families[0]
		if ip.Is4() != four {
			family = &families[1]
		}
		if !slices.Contains(*family, ip) {
			*family = append(*family, ip)
		}
	}
	all := make([]netip.Addr, 0, len(ips))
	for i := range ips {
		for _, family := range families {
			if i < len(family) {
				all = append(all, family[i])
			}
		}
	}
	return all
}
