package flood

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

// answer sends a datagram to a listener and returns what comes back.
func answer(t *testing.T, retryAbove int, datagram []byte) []byte {
	t.Helper()
	cert, _, err := dev.SelfSigned("localhost")
	if err != nil {
		t.Fatal(err)
	}
	l, err := quicx.Listen("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, quicx.Config{RetryAbove: retryAbove})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	b := make([]byte, 2000)
	_ = socket.SetReadDeadline(time.Now().Add(20 * time.Second))
	for { // more than one, for a listener that asks from the second one on
		if _, err := socket.Write(datagram); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if retryAbove < 0 || b[0]&0xf0 == 0xf0 {
			return b[:n]
		}
		datagram = forged(t)
	}
}

var testSource = [idLen]byte{1, 2, 3, 4, 5, 6, 7, 8}

func forged(t *testing.T) []byte {
	t.Helper()
	f, err := newForge(testSource)
	if err != nil {
		t.Fatal(err)
	}
	var destination [idLen]byte
	_, _ = rand.Read(destination[:])
	b, err := f.initial(nil, destination)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != datagramLen {
		t.Fatalf("a datagram of %d bytes, want %d", len(b), datagramLen)
	}
	return b
}

// TestInitialIsAnswered: a server that trusts addresses goes through its half of the handshake, in full datagrams.
func TestInitialIsAnswered(t *testing.T) {
	b := answer(t, -1, forged(t))
	if len(b) < datagramLen || b[0]&0xf0 != 0xc0 || !bytes.Equal(b[6:6+idLen], testSource[:]) {
		t.Fatalf("the answer of %d bytes, %x…, is no Initial for the forged client", len(b), b[:min(len(b), 20)])
	}
}

// TestInitialIsAskedToRetry: one that does not sends a token to the address.
func TestInitialIsAskedToRetry(t *testing.T) {
	if b := answer(t, 1, forged(t)); b[0]&0xf0 != 0xf0 || len(b) >= datagramLen {
		t.Fatalf("the answer of %d bytes, %x…, is no Retry", len(b), b[:min(len(b), 20)])
	}
}

func TestLoopbackAlone(t *testing.T) {
	for _, addr := range []string{"192.0.2.1:5000", "[2001:db8::1]:5000", "0.0.0.0:5000", "10.0.0.1:1"} {
		if err := checkTarget(netip.MustParseAddrPort(addr)); err == nil {
			t.Errorf("%s is accepted as a target", addr)
		}
	}
	if err := checkTarget(netip.MustParseAddrPort("127.0.0.1:5000")); err != nil {
		t.Error(err)
	}
}
