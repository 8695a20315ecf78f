package quicx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

func TestConnIDs(t *testing.T) {
	for _, count := range []int{2, 3, 7, 64} {
		for i := range count {
			seen := map[byte]bool{}
			for range 500 {
				id, err := steeringIDs(i, count).GenerateConnectionID()
				if err != nil || id.Len() != connIDLen {
					t.Fatal(id, err)
				}
				first := id.Bytes()[0]
				seen[first] = true
				if int(first)%count != i {
					t.Fatalf("an id of socket %d of %d leads elsewhere: %x", i, count, id.Bytes())
				}
			}
			if len(seen) < 256/count/2 {
				t.Errorf("socket %d of %d uses %d first bytes", i, count, len(seen))
			}
		}
	}
}

// TestKernelChoosesSocket sends short headers from many addresses: each comes to the socket that its connection id
// names. Long headers come to where the addresses lead, whatever their connection id.
func TestKernelChoosesSocket(t *testing.T) {
	const count, clients = 3, 60
	conns, shared, err := listenSockets("127.0.0.1:0", count)
	if err != nil || shared != nil {
		t.Fatal(err, shared)
	}
	var got [count][][]byte
	for _, c := range conns {
		defer c.Close()
	}
	for i := range clients {
		c, err := net.DialUDP("udp4", nil, conns[0].LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		for id := range byte(count) {
			for _, header := range []byte{0x40, 0x60, 0xc0} {
				if _, err := c.Write([]byte{header, id, byte(i), 0, 0, 0, 0, 0, 0}); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Close()
	}
	total := 0
	for k, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // loopback delivers during the send
		for {
			b := make([]byte, 64)
			n, err := c.Read(b)
			if err != nil {
				break
			}
			got[k] = append(got[k], b[:n])
			total++
		}
	}
	if total != clients*count*3 {
		t.Fatalf("%d datagrams of %d", total, clients*count*3)
	}
	home := map[byte]int{} // of each client's long headers
	for k := range got {
		for _, b := range got[k] {
			if b[0] != 0xc0 {
				if int(b[1])%count != k {
					t.Errorf("a datagram of socket %d came to socket %d", b[1], k)
				}
				continue
			}
			if h, ok := home[b[2]]; ok && h != k {
				t.Errorf("the long headers of client %d came to sockets %d and %d", b[2], h, k)
			}
			home[b[2]] = k
		}
	}
	used := map[int]bool{}
	for _, k := range home {
		used[k] = true
	}
	if len(used) != count {
		t.Errorf("long headers came to %d of %d sockets", len(used), count)
	}
}

// TestKernelRefusesFilter falls back to one socket, which nobody else may join.
func TestKernelRefusesFilter(t *testing.T) {
	checkLeaks(t)
	attach := attachSteering
	defer func() { attachSteering = attach }()
	attachSteering = func(*net.UDPConn, int) error { return unix.ENOPROTOOPT }
	l, conf := listen(t, Config{Sockets: 3})
	if n := l.Stats().Sockets; n != 1 || !errors.Is(l.Socket().Shared, unix.ENOPROTOOPT) {
		t.Errorf("%d sockets, %v", n, l.Socket().Shared)
	}
	dial(t, l, conf, Config{})
	accept(t, l)
	server, _ := devTLS(t)
	if second, err := Listen(l.Addr().String(), server, Config{Sockets: 2}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
		if err == nil {
			second.Close()
		}
	}
}

// TestPortInUse refuses a second listener, whatever the number of sockets of each and whether one of them listens on
// all addresses.
func TestPortInUse(t *testing.T) {
	server, _ := devTLS(t)
	for _, hosts := range [][2]string{
		{"127.0.0.1", "127.0.0.1"}, {"0.0.0.0", "127.0.0.1"}, {"127.0.0.1", "0.0.0.0"}, {"[::1]", "[::1]"}, {"[::]", "[::1]"}, {"", "127.0.0.1"}, {"127.0.0.1", ""},
	} {
		for _, counts := range [][2]int{{1, 1}, {1, 3}, {3, 1}, {3, 3}} {
			first, err := Listen(hosts[0]+":0", server, Config{Sockets: counts[0]})
			if err != nil {
				t.Skip(err)
			}
			_, port, _ := net.SplitHostPort(first.Addr().String())
			second, err := Listen(hosts[1]+":"+port, server, Config{Sockets: counts[1]})
			if !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("%v, %v sockets: %v", hosts, counts, err)
			}
			if err == nil {
				second.Close()
			}
			if err := first.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDeadSocketEndsListener: a part of the clients would go on coming to a socket that nobody reads.
func TestDeadSocketEndsListener(t *testing.T) {
	checkLeaks(t)
	for _, count := range []int{1, 3} {
		for dead := range count {
			server, _ := devTLS(t)
			l, err := Listen("127.0.0.1:0", server, Config{Sockets: count})
			if err != nil {
				t.Fatal(err)
			}
			accepted := make(chan error, 1)
			go func() {
				_, err := l.Accept(context.Background())
				accepted <- err
			}()
			_ = l.ends[dead].sock.Close() // without the listener
			if err := <-accepted; !errors.Is(err, errSocketFailed) || errors.Is(err, ErrClosed) {
				t.Errorf("socket %d of %d: %v", dead, count, err)
			}
			if _, err := l.Accept(t.Context()); err == nil {
				t.Errorf("socket %d of %d: accepts again", dead, count)
			}
			_ = l.Close() // reports the socket
			if _, err := l.Accept(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("socket %d of %d: after close: %v", dead, count, err)
			}
		}
	}
}

// TestSeveralSockets moves clients from address to address, and so from socket to socket: every connection survives.
func TestSeveralSockets(t *testing.T) {
	checkLeaks(t)
	const sockets, clients, moves = 4, 4, 6
	l, conf := listen(t, Config{Sockets: sockets})
	if l.Stats().Sockets != sockets {
		t.Fatalf("%d sockets", l.Stats().Sockets)
	}
	var echoes sync.WaitGroup
	defer echoes.Wait()
	for range clients {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		first := openTransport(t)
		conf := conf.Clone()
		conf.ServerName = "localhost"
		c, err := first.Dial(ctx, l.Addr(), tlsRules(conf), Config{}.withDefaults().quic())
		if err != nil {
			t.Fatal(err)
		}
		server := accept(t, l)
		s, err := c.OpenStreamSync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		echoes.Go(func() {
			s, err := server.AcceptStream(ctx)
			if err == nil {
				_, _ = io.Copy(writer{s.Send()}, reader{s.Recv()})
				_ = s.Send().Close()
			}
		})
		echo := func(text string) {
			t.Helper()
			_ = s.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := s.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
				t.Fatalf("%q, %v, want %q", got, err, text)
			}
		}
		echo("before")
		for move := range moves {
			path, err := c.AddPath(openTransport(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := path.Probe(ctx); err != nil {
				t.Fatalf("move %d: %v", move, err)
			}
			if err := path.Switch(); err != nil {
				t.Fatal(err)
			}
			echo(fmt.Sprint("after move ", move))
		}
		s.Close()
		if _, err := io.ReadAll(s); err != nil {
			t.Error(err)
		}
		_ = c.CloseWithError(0, "")
	}
}

func openTransport(t *testing.T) *quic.Transport {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: conn}
	t.Cleanup(func() {
		tr.Close()
		conn.Close()
	})
	return tr
}

type writer struct{ s *SendStream }

func (w writer) Write(b []byte) (int, error) { return w.s.Write(b) }

// TestListenerOfSeveralSocketsCloses closes a listener while connections come in on all of its sockets.
func TestListenerOfSeveralSocketsCloses(t *testing.T) {
	checkLeaks(t)
	for range 5 {
		l, conf := listen(t, Config{Sockets: 3})
		ctx, cancel := context.WithCancel(t.Context())
		var dials sync.WaitGroup
		for range 12 {
			dials.Go(func() {
				if c, err := Dial(ctx, l.Addr().String(), conf, Config{}); err == nil {
					c.Close(0, "")
				}
			})
		}
		for range 4 {
			if _, err := l.Accept(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := l.Accept(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
		cancel() // nobody answers those that came too late
		dials.Wait()
	}
}
