package script

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Relay passes datagrams between clients and a server, until it is told to lose them all. That is how a broker falls
// silent without a close frame: power cut, network gone.
type Relay struct {
	front  *net.UDPConn
	target netip.AddrPort
	silent atomic.Bool
	wg     sync.WaitGroup

	mu     sync.Mutex // guards backs and closed
	backs  map[netip.AddrPort]*net.UDPConn
	closed bool
}

// NewRelay starts a relay in front of the server. It ends with Close.
func NewRelay(s *Server) (*Relay, error) {
	target, err := netip.ParseAddrPort(s.Addr())
	if err != nil {
		return nil, fmt.Errorf("script: relay: %w", err)
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("script: relay: %w", err)
	}
	r := &Relay{front: front, target: target, backs: make(map[netip.AddrPort]*net.UDPConn)}
	r.wg.Go(r.forward)
	return r, nil
}

// Addr returns the address to connect to instead of the server's.
func (r *Relay) Addr() string { return r.front.LocalAddr().String() }

// Silence makes the relay lose every datagram from now on, in both directions.
func (r *Relay) Silence() { r.silent.Store(true) }

// Close ends the relay and waits for its goroutines.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	_ = r.front.Close()
	for _, back := range r.backs {
		_ = back.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// forward passes on what clients send.
func (r *Relay) forward() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := r.front.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if back := r.backFor(from); back != nil && !r.silent.Load() {
			_, _ = back.Write(b[:n]) // a lost datagram is what UDP is about
		}
	}
}

// backFor returns the socket towards the server that stands for one client.
func (r *Relay) backFor(client netip.AddrPort) *net.UDPConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if back := r.backs[client]; back != nil || r.closed {
		return back
	}
	back, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.target))
	if err != nil {
		return nil
	}
	r.backs[client] = back
	r.wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			if !r.silent.Load() {
				_, _ = r.front.WriteToUDPAddrPort(b[:n], client)
			}
		}
	})
	return back
}
