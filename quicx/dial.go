package quicx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Dial connects to addr, a host and a port. The connection has a UDP socket of its own, which is closed with it: packets
// of several connections on one socket would share its buffers and its reader.
//
// The configuration of TLS is copied, nil stands for an empty one; application protocols in it are ignored. If it names no
// server, the host of addr is what the certificate has to be valid for.
//
// Dial blocks until the handshake is complete, fails or ctx ends. Errors after the name was resolved match
// [ErrHandshake].
func Dial(ctx context.Context, addr string, tlsConf *tls.Config, cfg Config) (*Conn, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	host, remote, err := resolve(ctx, addr)
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

	network := "udp6"
	if remote.Addr().Is4() {
		network = "udp4"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, fmt.Errorf("quicx: dial: %w", err)
	}
	c, err := dialOn(ctx, conn, net.UDPAddrFromAddrPort(remote), tlsConf, cfg)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("quicx: dial %s: %w", addr, err)
	}
	return c, nil
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

// resolve prefers IPv4, as the standard library does where it has to choose one address.
func resolve(ctx context.Context, addr string) (host string, remote netip.AddrPort, err error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return "", remote, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return "", remote, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", remote, err
	}
	if len(ips) == 0 {
		return "", remote, errors.New("no address for " + host)
	}
	best := ips[0].Unmap()
	for _, ip := range ips {
		if best.Is4() {
			break
		}
		if ip = ip.Unmap(); ip.Is4() {
			best = ip
		}
	}
	return host, netip.AddrPortFrom(best, uint16(port)), nil
}
