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
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// names is a resolver.
type names map[string][]string

func (n names) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	return parseAddrs(n[host]), nil
}

func parseAddrs(text []string) (ips []netip.Addr) {
	for _, s := range text {
		ips = append(ips, netip.MustParseAddr(s))
	}
	return ips
}

// listenAt is listen on an address, with its port or one that is free.
func listenAt(t *testing.T, host, port string, server *tls.Config) (*Listener, string) {
	t.Helper()
	l, err := Listen(net.JoinHostPort(host, port), server, Config{})
	if err != nil {
		t.Skipf("no socket at %s: %v", host, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return l, port
}

// TestDialTriesAllAddresses has one address that answers among others that do not, because nobody is there, or because
// there is no way to them.
func TestDialTriesAllAddresses(t *testing.T) {
	for _, tt := range []struct {
		name      string
		addresses []string
		lives     string
	}{
		{"first of two", []string{"127.0.0.1", "127.0.0.2"}, "127.0.0.1"},
		{"second of two", []string{"127.0.0.2", "127.0.0.1"}, "127.0.0.1"},
		{"IPv6 after IPv4", []string{"::1", "127.0.0.1"}, "::1"},
		{"IPv4 after IPv6", []string{"::1", "127.0.0.1"}, "127.0.0.1"},
		{"no way to the first", []string{"240.0.0.1", "127.0.0.1"}, "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			server, conf := devTLS(t, "broker.example")
			l, port := listenAt(t, tt.lives, "0", server)
			c, err := Dial(t.Context(), "broker.example:"+port, conf, Config{lookup: names{"broker.example": tt.addresses}.lookup})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := c.RemoteAddr().String(), l.Addr().String(); got != want {
				t.Errorf("connected to %s, not to %s", got, want)
			}
			if err := c.Close(0, ""); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDialNamesTheAddresses has no address that answers.
func TestDialNamesTheAddresses(t *testing.T) {
	checkLeaks(t)
	_, conf := devTLS(t)
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_, port, _ := net.SplitHostPort(silent.LocalAddr().String())
	cfg := Config{HandshakeTimeout: 20 * time.Millisecond, lookup: names{"broker.example": {"127.0.0.1", "127.0.0.2", "127.0.0.3"}}.lookup}
	_, err = Dial(t.Context(), "broker.example:"+port, conf, cfg)
	timeout, ok := errors.AsType[net.Error](err)
	if !errors.Is(err, ErrHandshake) || !ok || !timeout.Timeout() {
		t.Errorf("got %v", err)
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		if !strings.Contains(err.Error(), net.JoinHostPort(host, port)) {
			t.Errorf("%s is not named: %v", host, err)
		}
	}
	if _, err := Dial(t.Context(), "nowhere.example:1", conf, cfg); err == nil || errors.Is(err, ErrHandshake) {
		t.Errorf("a name without addresses: %v", err)
	}
}

// TestDialGoesOnAfterAWrongCertificate meets somebody else at the first address.
func TestDialGoesOnAfterAWrongCertificate(t *testing.T) {
	checkLeaks(t)
	other, _ := devTLS(t, "other.example")
	server, conf := devTLS(t, "broker.example")
	l, port := listenAt(t, "127.0.0.1", "0", server)
	listenAt(t, "127.0.0.2", port, other)
	c, err := Dial(t.Context(), "broker.example:"+port, conf, Config{lookup: names{"broker.example": {"127.0.0.2", "127.0.0.1"}}.lookup})
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != l.Addr().String() {
		t.Errorf("connected to %v", c.RemoteAddr())
	}
	if err := c.Close(0, ""); err != nil {
		t.Error(err)
	}
}

// TestZone sees that the zone of an address is where to send to, and not who is there.
func TestZone(t *testing.T) {
	for _, tt := range []struct{ addr, host, remote string }{
		{"[fe80::1%lo]:5000", "fe80::1", "[fe80::1%lo]:5000"},
		{"[::1]:5000", "::1", "[::1]:5000"},
		{"127.0.0.1:5000", "127.0.0.1", "127.0.0.1:5000"},
	} {
		host, remotes, err := resolve(t.Context(), tt.addr, systemLookup)
		if err != nil || host != tt.host || len(remotes) != 1 || remotes[0].String() != tt.remote {
			t.Errorf("%s: %q at %v, %v", tt.addr, host, remotes, err)
		}
	}
}

// TestZoneIsNotVerified connects to a link-local address of this machine, if it has one.
func TestZoneIsNotVerified(t *testing.T) {
	checkLeaks(t)
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok || n.IP.To4() != nil || !n.IP.IsLinkLocalUnicast() {
				continue
			}
			server, conf := devTLS(t, n.IP.String())
			l, port := listenAt(t, n.IP.String()+"%"+i.Name, "0", server)
			c, err := Dial(t.Context(), net.JoinHostPort(n.IP.String()+"%"+i.Name, port), conf, Config{})
			if err != nil {
				t.Fatalf("to %v: %v", l.Addr(), err)
			}
			_ = c.Close(0, "")
			return
		}
	}
	t.Skip("no link-local address")
}

func TestInTurns(t *testing.T) {
	for _, tt := range []struct{ given, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2", "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2"},
		{"192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1", "192.0.2.1 2001:db8::1 192.0.2.2 192.0.2.3"},
		{"::ffff:192.0.2.1 192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1"},
		{"::1 127.0.0.1", "127.0.0.1 ::1"},
		{"::1", "::1"},
	} {
		var got []string
		for _, ip := range inTurns(parseAddrs(strings.Fields(tt.given))) {
			got = append(got, ip.String())
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s became %v", tt.given, got)
		}
	}
}

// TestFirstOf dials addresses that answer or fail after some time, and sees when which attempt begins.
func TestFirstOf(t *testing.T) {
	type attempt struct {
		takes time.Duration
		fails bool
	}
	const never = time.Hour
	for _, tt := range []struct {
		name     string
		attempts []attempt
		begins   []time.Duration
		err      bool
		over     time.Duration
	}{
		{"the only one fails", []attempt{{time.Second, true}}, []time.Duration{0}, true, time.Second},
		{
			"failures are followed at once",
			[]attempt{{10 * time.Millisecond, true}, {10 * time.Millisecond, true}},
			[]time.Duration{0, 10 * time.Millisecond},
			true, 20 * time.Millisecond,
		},
		{
			"silence is followed after a while",
			[]attempt{{never, true}, {never, true}, {never, true}},
			[]time.Duration{0, attemptDelay, 2 * attemptDelay},
			true, 5 * time.Second,
		},
		{
			"a failure among silence",
			[]attempt{{never, true}, {100 * time.Millisecond, true}, {never, true}},
			[]time.Duration{0, attemptDelay, attemptDelay + 100*time.Millisecond},
			true, 5 * time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				begin := time.Now()
				begins := make([]time.Duration, len(tt.attempts))
				remotes := make([]netip.AddrPort, len(tt.attempts))
				for i := range remotes {
					remotes[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5000)
				}
				var running atomic.Int32
				_, err := firstOf(ctx, remotes, func(ctx context.Context, remote netip.AddrPort) (*Conn, error) {
					running.Add(1)
					defer running.Add(-1)
					i := remote.Addr().As4()[3]
					begins[i] = time.Since(begin)
					select {
					case <-time.After(tt.attempts[i].takes):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					return nil, fmt.Errorf("attempt %d", i)
				})
				if (err != nil) != tt.err || !slices.Equal(begins, tt.begins) || time.Since(begin) != tt.over {
					t.Errorf("%v after %v; attempts began after %v", err, time.Since(begin), begins)
				}
				if n := running.Load(); n != 0 {
					t.Errorf("%d attempts are left", n)
				}
			})
		})
	}
}

// TestFirstCancelsTheOthers completes a handshake while other attempts wait, and several at the same time.
func TestFirstCancelsTheOthers(t *testing.T) {
	checkLeaks(t)
	l, conf := listen(t, Config{})
	remote := netip.MustParseAddrPort(l.Addr().String())
	slow := netip.MustParseAddrPort("192.0.2.1:1")
	cfg := Config{}.withDefaults()
	var canceled atomic.Int32
	gate := make(chan struct{})
	c, err := firstOf(t.Context(), []netip.AddrPort{slow, remote, remote, slow}, func(ctx context.Context, to netip.AddrPort) (*Conn, error) {
		if to == slow {
			<-ctx.Done()
			canceled.Add(1)
			return nil, ctx.Err()
		}
		c, err := dialTo(ctx, to, clientNamed(conf, "127.0.0.1"), cfg)
		select { // both, or neither
		case gate <- struct{}{}:
		case <-gate:
		}
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := canceled.Load(); n == 0 {
		t.Error("nobody was canceled")
	}
	if err := c.Context().Err(); err != nil {
		t.Errorf("what won has ended: %v", err)
	}
	if err := c.Close(0, ""); err != nil {
		t.Error(err)
	}
}

func clientNamed(conf *tls.Config, name string) *tls.Config {
	conf = tlsRules(conf)
	conf.ServerName = name
	return conf
}

// TestDialRefused dials addresses where nothing listens: the attempt ends when the system says so, long before its
// context does, and leaves the next address.
func TestDialRefused(t *testing.T) {
	checkLeaks(t)
	server, conf := devTLS(t, "broker.example")
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.LocalAddr().String()
	_ = free.Close()
	cause := errors.New("not refused in time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
	defer cancel()
	slow := Config{HandshakeTimeout: time.Hour}
	if _, err := Dial(ctx, nobody, conf, slow); !errors.Is(err, ErrHandshake) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: %v", nobody, err)
	}
	l, port := listenAt(t, "127.0.0.1", "0", server)
	slow.lookup = names{"broker.example": {"127.0.0.2", "127.0.0.3", "127.0.0.1"}}.lookup
	c, err := Dial(ctx, "broker.example:"+port, conf, slow)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.RemoteAddr().String(), l.Addr().String(); got != want {
		t.Errorf("connected to %s, not to %s", got, want)
	}
	if err := c.Close(0, ""); err != nil {
		t.Error(err)
	}
}
