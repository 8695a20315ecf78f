package quicx

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Defaults of [Config].
const (
	// DefaultRetryAbovePerCore is how many handshakes per second and processor begin without a proof of address. A full
	// handshake costs about half a millisecond of a processor, a Retry hardly anything.
	DefaultRetryAbovePerCore = 50
	// DefaultHandshakesPerPrefix is how many handshakes per second are accepted from one network.
	DefaultHandshakesPerPrefix = 1000
)

// maxPrefixes bounds the networks that are told apart at a time. An entry is about 150 bytes.
const maxPrefixes = 4096

// admission decides about connection attempts before anything is spent on them. quic-go asks from one goroutine.
//
// Spoofed addresses are dealt with by Retry (RFC 9000, section 8.1.2): while more attempts come than retryAbove per
// second, each has to come again with a token that was sent to its address. That costs an honest client one round trip
// and an attacker with a false address everything. Clients at their true address are bounded by network prefix instead.
type admission struct {
	retryAbove int // per second; < 0: never
	perPrefix  int // per second; < 0: any number
	now        func() time.Time

	// Attempts without a token in the current and in the last window of a second, and whether they need one.
	windowEnd time.Time
	attempts  int
	last      int

	prefixes map[netip.Prefix]*rate.Limiter
	spilled  *rate.Limiter // shared by networks that no longer fit into prefixes

	retrying atomic.Bool
	started  atomic.Uint64
	retries  atomic.Uint64
	refused  atomic.Uint64
}

var errHandshakeRate = errors.New("quicx: too many handshakes from this network")

// newAdmission returns the part of one of n sockets, over which the kernel spreads what comes.
func newAdmission(cfg Config, n int) *admission {
	a := &admission{
		retryAbove: cfg.RetryAbove, perPrefix: cfg.HandshakesPerPrefix, now: cfg.now,
		prefixes: make(map[netip.Prefix]*rate.Limiter),
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.retryAbove == 0 {
		a.retryAbove = DefaultRetryAbovePerCore * runtime.GOMAXPROCS(0)
	}
	if a.perPrefix == 0 {
		a.perPrefix = DefaultHandshakesPerPrefix
	}
	if n > 1 {
		a.retryAbove = share(a.retryAbove, n)
		a.perPrefix = share(a.perPrefix, n)
	}
	a.spilled = a.limiter()
	return a
}

func share(rate, n int) int {
	if rate < 0 {
		return rate
	}
	return max(rate/n, 1)
}

// needsToken is called for each attempt without a valid token, and reports whether it has to prove its address. It
// begins to within the second in which there are too many, and ends after a second with less than half as many.
func (a *admission) needsToken(net.Addr) bool {
	if a.retryAbove < 0 {
		return false
	}
	now := a.now()
	if now.After(a.windowEnd) {
		a.last = a.attempts
		if now.Sub(a.windowEnd) > time.Second {
			a.last = 0 // a whole second without any
		}
		a.attempts, a.windowEnd = 0, now.Add(time.Second)
		if a.last <= a.retryAbove/2 {
			a.retrying.Store(false)
		}
	}
	a.attempts++
	if a.attempts > a.retryAbove {
		a.retrying.Store(true)
	}
	if !a.retrying.Load() {
		return false
	}
	a.retries.Add(1)
	return true
}

// admit is called for each attempt that goes on to a handshake.
func (a *admission) admit(addr net.Addr) error {
	udp, ok := addr.(*net.UDPAddr)
	if ok && a.perPrefix >= 0 && !a.of(prefixOf(udp.AddrPort().Addr())).AllowN(a.now(), 1) {
		a.refused.Add(1)
		return errHandshakeRate
	}
	a.started.Add(1)
	return nil
}

// prefixOf returns the network that is likely to belong to one party.
func prefixOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 24
	if ip.Is6() {
		bits = 56
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: all of those are one
	}
	return p
}

func (a *admission) limiter() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(a.perPrefix), max(2*a.perPrefix, 1))
}

func (a *admission) of(p netip.Prefix) *rate.Limiter {
	if l := a.prefixes[p]; l != nil {
		return l
	}
	if len(a.prefixes) >= maxPrefixes {
		for q, l := range a.prefixes { // those that have not come for a while are as good as new ones
			if l.TokensAt(a.now()) >= float64(l.Burst()) {
				delete(a.prefixes, q)
			}
		}
		if len(a.prefixes) >= maxPrefixes {
			return a.spilled
		}
	}
	l := a.limiter()
	a.prefixes[p] = l
	return l
}
