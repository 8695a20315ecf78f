// Package relay passes datagrams between clients and a server, and loses as many of them as it is told to. That is how a
// server falls silent without a close frame (power cut, network gone), and how a path becomes lossy.
//
// Begin at [New].
package relay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Relay is a relay in front of one server. Its methods may be called from many goroutines.
type Relay struct {
	front  *net.UDPConn
	target netip.AddrPort
	silent atomic.Bool
	loss   atomic.Uint32 // of 1<<16
	lost   atomic.Uint64
	wg     sync.WaitGroup

	mu     sync.Mutex // guards backs and closed
	backs  map[netip.AddrPort]*net.UDPConn
	closed bool
}

// New starts a relay on loopback in front of the server at target, an address and a port. It ends with Close.
func New(target string) (*Relay, error) {
	addr, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r := &Relay{front: front, target: addr, backs: make(map[netip.AddrPort]*net.UDPConn)}
	r.wg.Go(r.forward)
	return r, nil
}

// Addr returns the address to connect to instead of the server's.
func (r *Relay) Addr() string { return r.front.LocalAddr().String() }

// Silence makes the relay lose every datagram from now on, in both directions, or no longer.
func (r *Relay) Silence(on bool) { r.silent.Store(on) }

// Lose makes the relay lose a share of all datagrams, from 0 for none to 1, at random.
func (r *Relay) Lose(share float64) { r.loss.Store(uint32(min(max(share, 0), 1) * (1 << 16))) }

// Lost returns how many datagrams the relay has lost so far.
func (r *Relay) Lost() uint64 { return r.lost.Load() }

func (r *Relay) loses() bool {
	loss := r.loss.Load()
	lost := r.silent.Load() || loss > 0 && rand.Uint32N(1<<16) < loss
	if lost {
		r.lost.Add(1)
	}
	return lost
}

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
		if back := r.backFor(from); back != nil && !r.loses() {
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
	r.wg.Go(func() { r.backward(back, client) })
	return back
}

// backward passes on what the server sends to one client.
func (r *Relay) backward(back *net.UDPConn, client netip.AddrPort) {
	b := make([]byte, 1<<16)
	for {
		n, err := back.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && !r.loses() { // an error is that of a server that is not there at present
			_, _ = r.front.WriteToUDPAddrPort(b[:n], client)
		}
	}
}
