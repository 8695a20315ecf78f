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
)

func TestConnIDs(t *testing.T) {
	for _, count := range []int{2, 3, 7, 64} {
		sockets := make([]*socket, count)
		for i := range sockets {
			sockets[i] = new(socket)
		}
		g := join(sockets)
		for i := range sockets {
			seen := map[byte]bool{}
			for range 500 {
				id, err := g.ids(i).GenerateConnectionID()
				if err != nil || id.Len() != connIDLen {
					t.Fatal(id, err)
				}
				seen[id.Bytes()[0]] = true
				packet := append([]byte{0x40}, id.Bytes()...)
				if g.owner(packet, nil) != sockets[i] {
					t.Fatalf("an id of socket %d of %d leads elsewhere: %x", i, count, id.Bytes())
				}
				packet[0] = 0xc0
				if g.owner(packet, sockets[0]) != sockets[0] || g.owner(packet[:4], sockets[0]) != sockets[0] {
					t.Fatal("a long header, or a short datagram, is handed over")
				}
			}
			if len(seen) < 256/count/2 {
				t.Errorf("socket %d of %d uses %d first bytes", i, count, len(seen))
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
	if st := l.Stats(); st.HandedOver == 0 || st.Dropped != 0 {
		t.Errorf("%+v: nothing was handed over, or something dropped", st)
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

type reader struct{ s *RecvStream }

func (r reader) Read(b []byte) (int, error) { return r.s.Read(b) }

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
