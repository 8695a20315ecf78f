// Package relay passes datagrams between clients and a server, and loses as many of them as configured. That is how a
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
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Relay is a relay in front of one server. Its methods may be called from many goroutines.
type Relay struct {
	front  *net.UDPConn
	target netip.AddrPort
	idle   time.Duration
	silent atomic.Bool
	loss   atomic.Uint32 // of 1<<16
	size   atomic.Int64  // largest datagram that passes; 0: any
	lost   atomic.Uint64
	wg     sync.WaitGroup

	mu     sync.Mutex // guards backs and closed
	backs  map[netip.AddrPort]*back
	closed bool
}

// back is the socket towards the server that stands for one client.
type back struct {
	*net.UDPConn
	used atomic.Int64 // when a datagram of the client passed last, in nanoseconds since 1970
}

// DefaultIdle is how long a client has to be silent for its socket towards the server to be closed.
const DefaultIdle = 30 * time.Second

// New starts a relay on loopback in front of the server at target, an address and a port. A client that is silent for
// longer than [DefaultIdle] gives up its socket towards the server, and gets another when it sends again. The relay
// ends with Close.
func New(target string) (*Relay, error) { return newRelay(target, DefaultIdle) }

func newRelay(target string, idle time.Duration) (*Relay, error) {
	addr, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r := &Relay{front: front, target: addr, idle: idle, backs: make(map[netip.AddrPort]*back)}
	r.wg.Go(r.forward)
	return r, nil
}

// Addr returns the address to connect to instead of the server's.
func (r *Relay) Addr() string { return r.front.LocalAddr().String() }

// Silence makes the relay lose every datagram from now on, in both directions, or no longer.
func (r *Relay) Silence(on bool) { r.silent.Store(on) }

// Lose makes the relay lose a share of all datagrams, from 0 for none to 1, at random.
func (r *Relay) Lose(share float64) { r.loss.Store(uint32(min(max(share, 0), 1) * (1 << 16))) }

// Shrink makes the relay lose every datagram of more than size bytes from now on, in both directions, or none for its
// size if that is 0: a path that takes smaller packets and does not say so.
func (r *Relay) Shrink(size int) { r.size.Store(int64(size)) }

// Rebind gives each client another port towards the server, as a translator of addresses does that has forgotten its
// table.
func (r *Relay) Rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for client, b := range r.backs {
		_ = b.Close()
		delete(r.backs, client)
	}
}

// Backs returns how many clients have a socket towards the server.
func (r *Relay) Backs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.backs)
}

// Lost returns how many datagrams the relay has lost so far.
func (r *Relay) Lost() uint64 { return r.lost.Load() }

// loses decides about a datagram of that many bytes.
func (r *Relay) loses(size int) bool {
	loss, limit := r.loss.Load(), r.size.Load()
	lost := r.silent.Load() || limit > 0 && int64(size) > limit || loss > 0 && rand.Uint32N(1<<16) < loss
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
	p := make([]byte, 1<<16)
	for {
		n, from, err := r.front.ReadFromUDPAddrPort(p)
		if err != nil {
			return
		}
		if b := r.backFor(from); b != nil && !r.loses(n) {
			_, _ = b.Write(p[:n]) // a lost datagram is what UDP is about
		}
	}
}

// backFor returns the socket towards the server that stands for one client, and notes that it is used. It returns nil
// if there is none and none can be made.
func (r *Relay) backFor(client netip.AddrPort) *back {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.backs[client]
	if b == nil {
		if r.closed {
			return nil
		}
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.target))
		if err != nil {
			return nil
		}
		b = &back{UDPConn: conn}
		r.backs[client] = b
		r.wg.Go(func() { r.backward(b, client) })
	}
	b.used.Store(time.Now().UnixNano())
	return b
}

// backward passes on what the server sends to one client, until the socket is closed or the client has been silent.
func (r *Relay) backward(b *back, client netip.AddrPort) {
	p := make([]byte, 1<<16)
	for {
		_ = b.SetReadDeadline(time.Unix(0, b.used.Load()).Add(r.idle))
		n, err := b.Read(p)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			if r.retire(b, client) {
				return
			}
		case err == nil && !r.loses(n): // another error is that of a server that is not there at present
			_, _ = r.front.WriteToUDPAddrPort(p[:n], client)
		}
	}
}

// retire closes a socket whose client has been silent, and reports whether it has been.
func (r *Relay) retire(b *back, client netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(time.Unix(0, b.used.Load())) < r.idle {
		return false
	}
	_ = b.Close()
	if r.backs[client] == b {
		delete(r.backs, client)
	}
	return true
}
