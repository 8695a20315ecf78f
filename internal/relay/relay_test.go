package relay_test

import (
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRelay passes datagrams both ways, none while it is silent or loses all, and no large ones while it is shrunk.
func TestRelay(t *testing.T) {
	server, r, client := between(t, relay.New)
	b := make([]byte, 100)
	// arrives sends text there and back. What is lost would come in front of what is not.
	arrives := func(text string) {
		t.Helper()
		_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
		_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := client.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		n, from, err := server.ReadFrom(b)
		if err != nil || string(b[:n]) != text {
			t.Fatalf("server read %q, %v", b[:n], err)
		}
		if _, err = server.WriteTo(b[:n], from); err != nil {
			t.Fatal(err)
		}
		if n, err = client.Read(b); err != nil || string(b[:n]) != text {
			t.Fatalf("client read %q, %v", b[:n], err)
		}
	}
	lost := func(text string) {
		t.Helper()
		before := r.Lost()
		if _, err := client.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); r.Lost() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q is not lost", text)
			}
		}
	}
	arrives("one")
	r.Silence(true)
	lost("two")
	r.Silence(false)
	arrives("three")
	r.Lose(1)
	lost("four")
	r.Lose(0)
	arrives("five")
	r.Shrink(4)
	lost("eight")
	arrives("nine")
	r.Shrink(0)
	arrives("eleven")
}

func TestBadTarget(t *testing.T) {
	if _, err := relay.New("nowhere"); err == nil {
		t.Error("no error")
	}
}

// TestRelayForgetsSilentClients sees that a socket towards the server is closed when its client is silent, and made
// again when it is not.
func TestRelayForgetsSilentClients(t *testing.T) {
	server, r, client := between(t, func(target string) (*relay.Relay, error) {
		return relay.NewWithIdle(target, 20*time.Millisecond)
	})
	b := make([]byte, 100)
	through := func() net.Addr {
		t.Helper()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, from, err := server.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		return from
	}
	through()
	for r.Backs() > 0 {
		time.Sleep(time.Millisecond)
	}
	before := through()
	r.Rebind()
	if after := through(); after.String() == before.String() {
		t.Errorf("%v before and after it was bound again", after)
	}
}

// between returns a server, a relay to it, and a client of the relay. All are closed with the test.
func between(t *testing.T, make func(target string) (*relay.Relay, error)) (net.PacketConn, *relay.Relay, net.Conn) {
	t.Helper()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	r, err := make(server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	client, err := net.Dial("udp4", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return server, r, client
}
