package quicx

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/felix-mq/felix/internal/relay"
)

// forgetPaths forgets all paths, now and when the test is over: they are the process's.
func forgetPaths(t *testing.T) {
	t.Helper()
	forget := func() {
		smallPaths.mu.Lock()
		defer smallPaths.mu.Unlock()
		clear(smallPaths.until)
	}
	forget()
	t.Cleanup(forget)
}

// throughRelay returns both ends of a connection through a relay.
func throughRelay(t *testing.T, cfg Config) (*relay.Relay, *Listener, func() (server, client *Conn)) {
	t.Helper()
	l, conf := listen(t, cfg)
	r, err := relay.New(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, l, func() (server, client *Conn) {
		t.Helper()
		client, err := Dial(t.Context(), r.Addr(), conf, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close(0, "") })
		return accept(t, l), client
	}
}

// pump sends on a stream of its own until the connection ends, and counts what arrives.
type pump struct {
	received chan int // the bytes of each read
	failed   chan error
}

func startPump(t *testing.T, from, to *Conn) pump {
	t.Helper()
	p := pump{received: make(chan int), failed: make(chan error, 1)}
	send, accepted := uniStream(t, from, to)
	if _, err := send.Write(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	recv := accepted()
	go func() {
		for {
			if _, err := send.Write(make([]byte, 20_000)); err != nil {
				p.failed <- err
				return
			}
		}
	}()
	go func() {
		defer close(p.received)
		b := make([]byte, 1<<16)
		for {
			n, err := recv.Read(b)
			if err != nil {
				return
			}
			p.received <- n
		}
	}()
	return p
}

// pass waits until so many bytes have arrived.
func (p pump) pass(t *testing.T, bytes int) {
	t.Helper()
	for bytes > 0 {
		select {
		case n, ok := <-p.received:
			if !ok {
				t.Fatal("the stream ended")
			}
			bytes -= n
		case <-time.After(30 * time.Second):
			t.Fatal("nothing arrives")
		}
	}
}

// drain waits until both sides of the stream have ended, and returns why the writer's did.
func (p pump) drain() error {
	for range p.received {
	}
	return <-p.failed
}

// TestBlackHole sees that a connection is closed whose path drops the large ones of its packets, whichever side sends
// them, and that the next one on the path carries data.
func TestBlackHole(t *testing.T) {
	for _, tt := range []struct {
		name     string
		limit    int
		byServer bool
	}{
		{"client", 1300, false},
		{"server", 1300, true},
		{"smallest", 1200, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			forgetPaths(t)
			cfg := Config{IdleTimeout: time.Minute, watchEvery: 200 * time.Millisecond}
			r, l, connect := throughRelay(t, cfg)
			ends := func() (from, to *Conn) {
				server, client := connect()
				if tt.byServer {
					return server, client
				}
				return client, server
			}
			from, to := ends()
			p := startPump(t, from, to)
			p.pass(t, 4<<20) // so that the size is found
			r.Shrink(tt.limit)
			if err := p.drain(); err == nil {
				t.Error("the writer ended without an error")
			}
			<-from.Context().Done()
			if err := context.Cause(from.Context()); !errors.Is(err, ErrBlackHole) || !errors.Is(err, net.ErrClosed) {
				t.Errorf("ended by %v", err)
			}
			<-to.Context().Done()
			if err := context.Cause(to.Context()); !errors.Is(err, ErrBlackHole) {
				t.Errorf("the peer ended by %v", err)
			}
			if n := l.Stats().BlackHoles; (n == 1) != tt.byServer {
				t.Errorf("the listener found %d black holes", n)
			}
			from, to = ends()
			p = startPump(t, from, to)
			p.pass(t, 1<<20)
			if err := from.Close(0, ""); err != nil {
				t.Error(err)
			}
			if err := p.drain(); err == nil {
				t.Error("the writer ended without an error")
			}
		})
	}
}

// TestLossIsNoBlackHole loses 30 % of all datagrams in both directions, under bulk and small writes.
func TestLossIsNoBlackHole(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 8 s")
	}
	checkLeaks(t)
	forgetPaths(t)
	cfg := Config{IdleTimeout: time.Minute, watchEvery: 100 * time.Millisecond}
	r, l, connect := throughRelay(t, cfg)
	server, client := connect()
	p := startPump(t, client, server)
	p.pass(t, 4<<20)
	r.Lose(0.3)
	over := time.After(8 * time.Second)
	for running := true; running; {
		select {
		case _, running = <-p.received:
			if !running {
				t.Fatalf("the connection ended: %v", <-p.failed)
			}
		case <-over:
			running = false
		}
	}
	r.Lose(0)
	p.pass(t, 100_000)
	if n := l.Stats().BlackHoles; n != 0 {
		t.Errorf("%d black holes", n)
	}
	if err := client.Close(0, ""); err != nil {
		t.Error(err)
	}
	if err := p.drain(); err == nil {
		t.Error("the writer ended without an error")
	}
}

// TestSilenceIsNoBlackHole ends a connection whose peer is gone by its idle timeout.
func TestSilenceIsNoBlackHole(t *testing.T) {
	checkLeaks(t)
	forgetPaths(t)
	r, _, connect := throughRelay(t, Config{IdleTimeout: 5 * time.Second, watchEvery: 100 * time.Millisecond})
	server, client := connect()
	p := startPump(t, client, server)
	p.pass(t, 4<<20)
	r.Silence(true)
	if err := p.drain(); !errors.Is(err, ErrIdleTimeout) {
		t.Errorf("ended by %v", err)
	}
}

// TestVerdict simulates tests of a path that loses datagrams of both sizes alike.
func TestVerdict(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, loss := range []float64{0, 0.05, 0.3, 0.5, 0.7} {
		wrong := 0
		for range 20_000 {
			s := sizeTest{size: MaxPacketSize}
			for pair := range testPairs {
				for _, size := range []int{MinPacketSize, MaxPacketSize} {
					if random.Float64() < (1-loss)*(1-loss) { // there and back
						s.answered(pair, size)
					}
				}
				if drops, certainly := s.verdict(); certainly {
					if drops {
						wrong++
					}
					break
				}
			}
		}
		if wrong > 0 {
			t.Errorf("with %g of all lost: %d of 20000 tests found a black hole", loss, wrong)
		}
	}
}

// TestCertainty counts the pairs that a test of a black hole takes.
func TestCertainty(t *testing.T) {
	for _, tt := range []struct{ every, most int }{{1, 13}, {2, 48}} {
		pairs, answered := 0, 0
		for !improbable(pairs, answered) {
			if pairs++; pairs%tt.every == 0 {
				answered++
			}
			if pairs > tt.most {
				t.Errorf("one small one in %d is answered: not certain after %d pairs", tt.every, tt.most)
				break
			}
		}
	}
	if improbable(testPairs, 0) {
		t.Error("certain without an answer")
	}
}

// TestPathWatch sees what makes a path suspicious.
func TestPathWatch(t *testing.T) {
	type look struct {
		sent, sentBytes, lost, lostBytes uint64
		acked                            bool
	}
	data, ping := look{sent: 2, sentBytes: 2904}, look{sent: 1, sentBytes: 40}
	for _, tt := range []struct {
		name  string
		looks []look
		want  bool
	}{
		{"idle", []look{{}, {}, {}}, false},
		{"delivered", []look{{100, 145_200, 0, 0, true}, {100, 145_200, 0, 0, true}}, false},
		{"not acknowledged", []look{data, data}, true},
		{"with pauses", []look{data, {}, ping, {}, data}, true},
		{"only acknowledging", []look{ping, ping, ping}, false},
		{"small ones not acknowledged", []look{{2, 2000, 0, 0, false}, {2, 2000, 0, 0, false}}, false},
		{"acknowledged once", []look{data, {2, 2904, 0, 0, true}, data}, false},
		{"lost among small ones", []look{{20, 14_520, 10, 14_520, true}, {20, 14_520, 10, 14_520, true}}, true},
		{"a probe of discovery", []look{{1, 1400, 0, 0, false}, {2, 1000, 0, 0, false}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w pathWatch
			var now ConnStats
			got := false
			for _, l := range tt.looks {
				now.PacketsSent += l.sent
				now.BytesSent += l.sentBytes
				now.PacketsLost += l.lost
				now.BytesLost += l.lostBytes
				if l.acked {
					now.LatestRTT++
				}
				got = w.look(now) || got
			}
			if got != tt.want {
				t.Errorf("suspicious: %t", got)
			}
		})
	}
}

// TestPathWatchWaits sees that a test that found nothing is not repeated at once.
func TestPathWatchWaits(t *testing.T) {
	var w pathWatch
	var now ConnStats
	next := func() bool {
		now.PacketsSent++
		now.BytesSent += MaxPacketSize
		return w.look(now)
	}
	if next() || !next() {
		t.Fatal("not suspicious at the second look")
	}
	w.testing = true
	if next() {
		t.Error("a second test during the first")
	}
	w.done.Store(true)
	for range clearedFor {
		if next() {
			t.Error("tested again too early")
		}
	}
	if !next() {
		t.Error("never tested again")
	}
}

// TestAddresses sees that what is remembered is bounded and expires.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := addresses{until: make(map[netip.Addr]time.Time)}
		at := func(i int) net.Addr { return &net.UDPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: i} }
		for i := range maxAddresses + 1 {
			a.add(at(i), time.Minute+time.Duration(i))
		}
		if len(a.until) != maxAddresses || a.has(at(0)) || !a.has(at(1)) || !a.has(at(maxAddresses)) {
			t.Errorf("%d remembered, not those that are forgotten last", len(a.until))
		}
		time.Sleep(time.Hour)
		if a.has(at(1)) || len(a.until) != maxAddresses-1 {
			t.Error("remembered for longer than was asked for")
		}
	})
}

// TestPacketSizes sees that the bounds on packets hold on the wire.
func TestPacketSizes(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		initial, most, from, to int
	}{
		{"defaults", 0, 0, 1432, 1452},
		{"bound", 0, 1350, 1300, 1350},
		{"bound below what is usual", 0, 1250, 1250, 1250},
		{"smallest", 1200, 1200, 1200, 1200},
		{"largest at once", 1452, 0, 1452, 1452},
		{"more than there is", 9000, 16384, 1452, 1452},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			forgetPaths(t)
			server, client := connect(t, Config{}, Config{InitialPacketSize: tt.initial, MaxPacketSize: tt.most})
			send, accepted := uniStream(t, client, server)
			if _, err := send.Write(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, reader{accepted()}) }()
			largest := 0
			for deadline := time.Now().Add(20 * time.Second); largest < tt.from && time.Now().Before(deadline); {
				before := client.Stats()
				if _, err := send.Write(make([]byte, 1<<20)); err != nil {
					t.Fatal(err)
				}
				after := client.Stats()
				largest = max(largest, mean(after.BytesSent-before.BytesSent, after.PacketsSent-before.PacketsSent)+2)
			}
			if largest < tt.from || largest > tt.to+2 {
				t.Errorf("packets of %d bytes", largest)
			}
		})
	}
}

// TestWhoseReasonIsBelieved sees that the end that dials learns of a black hole from the other one, which has shown who
// it is, and that a listener does not: anybody could have it send small packets to the address of others.
func TestWhoseReasonIsBelieved(t *testing.T) {
	for _, tt := range []struct {
		name     string
		byServer bool
	}{{"the listener's", true}, {"the client's", false}} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			forgetPaths(t)
			from, to := connect(t, Config{}, Config{})
			if !tt.byServer {
				from, to = to, from
			}
			if err := from.Close(0, blackHoleReason+" 1400 bytes"); err != nil {
				t.Fatal(err)
			}
			<-to.Context().Done()
			if err := context.Cause(to.Context()); !errors.Is(err, ErrBlackHole) {
				t.Errorf("ended by %v", err)
			}
			if believed := smallPaths.has(to.RemoteAddr()); believed != tt.byServer {
				t.Errorf("believed: %t", believed)
			}
		})
	}
}
