package ops

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Probes have to be answered whatever else connects. The listener therefore accepts every connection at once, and when
// there are more than maxConns it closes the one that has been unused for longest among those of the address that has
// most. A connection whose request is being handled is not closed: requests that may take long are bounded by maxLong,
// far below maxConns, and the others end at once.

// conns are the open connections of a listener.
type conns struct {
	net.Listener
	max     int
	evicted atomic.Uint64

	mu    sync.Mutex
	clock uint64 // counts uses
	open  map[*tracked]struct{}
}

func newConns(l net.Listener, limit int) *conns {
	return &conns{Listener: l, max: limit, open: make(map[*tracked]struct{})}
}

// tracked is one connection. Its fields are guarded by the mutex of its owner.
type tracked struct {
	net.Conn
	owner    *conns
	from     netip.Prefix
	used     uint64 // when it was accepted or a request ended, by the owner's clock
	handling int    // requests that are being handled
}

// Accept implements [net.Listener].
func (cs *conns) Accept() (net.Conn, error) {
	c, err := cs.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := &tracked{Conn: c, owner: cs, from: network(c.RemoteAddr())}
	if victim := cs.add(t); victim != nil {
		cs.evicted.Add(1)
		_ = victim.Close()
	}
	return t, nil
}

// add returns the connection that has to go, if there are too many now.
func (cs *conns) add(t *tracked) (victim *tracked) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.clock++
	t.used = cs.clock
	cs.open[t] = struct{}{}
	if len(cs.open) <= cs.max {
		return nil
	}
	victim = cs.longestUnused()
	delete(cs.open, victim)
	return victim
}

// longestUnused is of the network with the most connections.
func (cs *conns) longestUnused() (victim *tracked) {
	count := make(map[netip.Prefix]int)
	for t := range cs.open {
		if t.handling == 0 {
			count[t.from]++
		}
	}
	for t := range cs.open {
		if t.handling > 0 {
			continue
		}
		if victim == nil || count[t.from] > count[victim.from] || count[t.from] == count[victim.from] && t.used < victim.used {
			victim = t
		}
	}
	return victim
}

// Close implements [net.Conn].
func (t *tracked) Close() error {
	t.owner.mu.Lock()
	delete(t.owner.open, t)
	t.owner.mu.Unlock()
	return t.Conn.Close()
}

// handle keeps the connection from being closed for another until done is called.
func (t *tracked) handle() (done func()) {
	t.owner.mu.Lock()
	defer t.owner.mu.Unlock()
	t.handling++
	return func() {
		t.owner.mu.Lock()
		defer t.owner.mu.Unlock()
		t.handling--
		t.owner.clock++
		t.used = t.owner.clock
	}
}

// network is what one client has as a rule: an IPv4 address, or the /64 of an IPv6 address.
func network(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // such lengths are valid
	return p
}

type trackedKey struct{}

// connContext makes the connection known to the handlers of its requests.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	return context.WithValue(ctx, trackedKey{}, c)
}

// handled keeps the connection of each request open while next handles it.
func handled(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if t, ok := r.Context().Value(trackedKey{}).(*tracked); ok {
			defer t.handle()()
		}
		next.ServeHTTP(w, r)
	})
}

// atMost refuses requests while n others are being handled.
func atMost(n int, next http.Handler) http.Handler {
	tokens := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case tokens <- struct{}{}:
			defer func() { <-tokens }()
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "too many requests at a time", http.StatusServiceUnavailable)
		}
	})
}
