package quicx

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// clockOf gives a its own time, which the test moves.
func clockOf(a *admission) *time.Time {
	now := time.Unix(1e9, 0)
	a.now = func() time.Time { return now }
	return &now
}

func TestRetryIsAdaptive(t *testing.T) {
	a := newAdmission(Config{RetryAbove: 10}, 1)
	now := clockOf(a)
	attempts := func(n int) (retries int) {
		for range n {
			if a.needsToken(nil) {
				retries++
			}
		}
		return retries
	}
	if n := attempts(10); n != 0 {
		t.Errorf("%d retries at the threshold", n)
	}
	if n := attempts(20); n != 20 {
		t.Errorf("%d retries of 20 above it", n)
	}
	*now = now.Add(1001 * time.Millisecond)
	if n := attempts(6); n != 6 {
		t.Errorf("%d retries of 6 in the second after a flood", n)
	}
	*now = now.Add(1001 * time.Millisecond)
	if n := attempts(1); n != 1 {
		t.Errorf("it ended after a second with more than half of the threshold")
	}
	*now = now.Add(1001 * time.Millisecond)
	if n := attempts(5); n != 0 {
		t.Errorf("%d retries after a quiet second", n)
	}
	attempts(100)
	*now = now.Add(time.Minute)
	if n := attempts(5); n != 0 {
		t.Errorf("%d retries after a quiet minute", n)
	}
	if got := a.retries.Load(); got != 20+6+1+95 {
		t.Errorf("%d retries counted", got)
	}
	if a := newAdmission(Config{RetryAbove: -1}, 1); func() bool {
		for range 100_000 {
			if a.needsToken(nil) {
				return true
			}
		}
		return false
	}() {
		t.Error("retry although it is switched off")
	}
}

func TestHandshakesPerPrefix(t *testing.T) {
	a := newAdmission(Config{HandshakesPerPrefix: 10}, 1)
	now := clockOf(a)
	attempts := func(ip string, n int) (admitted int) {
		addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
		for range n {
			err := a.admit(addr)
			if err == nil {
				admitted++
			} else if !errors.Is(err, errHandshakeRate) {
				t.Fatal(err)
			}
		}
		return admitted
	}
	for _, c := range []struct {
		ip   string
		want int
	}{
		{"192.0.2.1", 20}, // a burst of two seconds
		{"192.0.2.200", 0},
		{"::ffff:192.0.2.7", 0},
		{"192.0.3.1", 20},
		{"2001:db8::1", 20},
		{"2001:db8:0:ff::1", 0},
		{"2001:db8:0:100::1", 20},
	} {
		if n := attempts(c.ip, 30); n != c.want {
			t.Errorf("%s: %d admitted, want %d", c.ip, n, c.want)
		}
	}
	*now = now.Add(time.Second)
	if n := attempts("192.0.2.1", 30); n != 10 {
		t.Errorf("%d admitted a second later, want 10", n)
	}

	// More networks than fit: those that were quiet are forgotten, and the others share.
	*now = now.Add(time.Hour)
	for i := range 2 * maxPrefixes {
		attempts(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String(), 1)
	}
	if len(a.prefixes) > maxPrefixes {
		t.Errorf("%d networks remembered", len(a.prefixes))
	}
	if n := attempts("10.200.200.1", 1000); n > 20 {
		t.Errorf("%d admitted of a network that does not fit", n)
	}
	if err := newAdmission(Config{HandshakesPerPrefix: -1}, 1).admit(&net.UDPAddr{}); err != nil {
		t.Error(err)
	}
}

// TestRetryOnTheWire dials a listener that wants a proof of address from the second attempt on, all within one moment.
func TestRetryOnTheWire(t *testing.T) {
	checkLeaks(t)
	moment := time.Now()
	ln, conf := listen(t, Config{RetryAbove: 1, HandshakesPerPrefix: 2, now: func() time.Time { return moment }})
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			if _, err := ln.Accept(context.Background()); err != nil {
				return
			}
		}
	}()
	failed := 0
	const dials = 7
	for range dials {
		c, err := Dial(t.Context(), ln.Addr().String(), conf, Config{})
		if err != nil {
			failed++
			continue
		}
		c.Close(0, "")
	}
	st := ln.Stats()
	if st.Retries == 0 || st.Refused == 0 || failed == 0 || failed > 3+int(st.Refused) {
		t.Errorf("%+v, %d dials failed", st, failed)
	}
	if st.Started != uint64(dials-failed) {
		t.Errorf("%d handshakes started, %d of %d dials failed", st.Started, failed, dials)
	}
	ln.Close()
	<-accepted
}
