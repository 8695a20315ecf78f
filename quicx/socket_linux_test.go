package quicx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/felix-mq/felix/internal/race"
)

// openSocket prepares a socket the way quic-go does.
func openSocket(tb testing.TB, network, addr string, cfg Config) *socket {
	tb.Helper()
	local, err := net.ResolveUDPAddr(network, addr)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.ListenUDP(network, local)
	if err != nil {
		tb.Skipf("no %s: %v", network, err)
	}
	tb.Cleanup(func() { conn.Close() })
	s, err := newSocket(conn, cfg.withDefaults())
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}); err != nil {
		tb.Fatal(err)
	}
	return s
}

func appendCmsg(b []byte, level, kind int32, body []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, unix.CmsgSpace(len(body)))...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(body)))
	copy(b[at+unix.CmsgLen(0):], body)
	return b
}

func segmentCmsg(b []byte, size int) []byte {
	return appendCmsg(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(size)))
}

func newMessages(n, size int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, size)}
		ms[i].OOB = make([]byte, 128)
	}
	return ms
}

// received is what quic-go makes of a message.
type received struct {
	data    []byte
	from    *net.UDPAddr
	ecn     int
	pktinfo bool
	gro     bool
}

func parseMessage(tb testing.TB, m *ipv4.Message) received {
	tb.Helper()
	r := received{data: bytes.Clone(m.Buffers[0][:m.N]), from: m.Addr.(*net.UDPAddr), ecn: -1}
	for oob := m.OOB[:m.NN]; len(oob) > 0; {
		hdr, body, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			tb.Fatalf("control message: %v", err)
		}
		switch {
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_TOS:
			r.ecn = int(body[0] & 3)
		case hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_TCLASS:
			r.ecn = int(binary.NativeEndian.Uint32(body) & 3)
		case hdr.Level == unix.IPPROTO_IP && hdr.Type == unix.IP_PKTINFO && len(body) == 12,
			hdr.Level == unix.IPPROTO_IPV6 && hdr.Type == unix.IPV6_PKTINFO && len(body) == 20:
			r.pktinfo = true
		case hdr.Level == unix.IPPROTO_UDP:
			r.gro = true
		}
		oob = rest
	}
	return r
}

func readDatagrams(tb testing.TB, s *socket, ms []ipv4.Message, count int) []received {
	tb.Helper()
	var all []received
	for len(all) < count {
		n, err := s.ReadBatch(ms, 0)
		if err != nil {
			tb.Fatal(err)
		}
		for i := range n {
			all = append(all, parseMessage(tb, &ms[i]))
		}
	}
	return all
}

func TestSegmentedTransfer(t *testing.T) {
	for _, tc := range []struct {
		name              string
		recvNet, recvAddr string
		sendNet, sendAddr string
		target            string
	}{
		{name: "IPv4", recvNet: "udp4", recvAddr: "127.0.0.1:0", sendNet: "udp4", sendAddr: "127.0.0.1:0", target: "127.0.0.1"},
		{name: "IPv4 any", recvNet: "udp4", recvAddr: "0.0.0.0:0", sendNet: "udp4", sendAddr: "127.0.0.1:0", target: "127.0.0.1"},
		{name: "IPv6", recvNet: "udp6", recvAddr: "[::1]:0", sendNet: "udp6", sendAddr: "[::1]:0", target: "::1"},
		{name: "IPv6 any", recvNet: "udp6", recvAddr: "[::]:0", sendNet: "udp6", sendAddr: "[::1]:0", target: "::1"},
		{name: "IPv4 to dual stack", recvNet: "udp", recvAddr: "[::]:0", sendNet: "udp4", sendAddr: "127.0.0.1:0", target: "127.0.0.1"},
		{name: "dual stack to IPv4", recvNet: "udp4", recvAddr: "127.0.0.1:0", sendNet: "udp", sendAddr: "[::]:0", target: "127.0.0.1"},
		{name: "dual stack to IPv6", recvNet: "udp6", recvAddr: "[::1]:0", sendNet: "udp", sendAddr: "[::]:0", target: "::1"},
	} {
		for _, gro := range []bool{true, false} {
			for _, gso := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/gro=%t/gso=%t", tc.name, gro, gso), func(t *testing.T) {
					recv := openSocket(t, tc.recvNet, tc.recvAddr, Config{DisableGRO: !gro})
					send := openSocket(t, tc.sendNet, tc.sendAddr, Config{DisableGSO: !gso})
					target := &net.UDPAddr{IP: net.ParseIP(tc.target), Port: recv.LocalAddr().(*net.UDPAddr).Port}

					var oob []byte
					if target.IP.To4() != nil {
						oob = appendCmsg(nil, unix.IPPROTO_IP, unix.IP_TOS, []byte{2})
					} else {
						oob = appendCmsg(nil, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, binary.NativeEndian.AppendUint32(nil, 2))
					}
					const segment, count = 1200, 12
					data := pattern(segment*(count-1)+77, 3)
					n, oobn, err := send.WriteMsgUDP(data, segmentCmsg(oob, segment), target)
					if err != nil || n != len(data) || oobn == 0 {
						t.Fatalf("WriteMsgUDP = %d, %d, %v", n, oobn, err)
					}

					ms := newMessages(5, 1452) // more datagrams than messages
					got := readDatagrams(t, recv, ms, count)
					if gro && gso && recv.info.GRO && recv.rx.size != len(data) {
						t.Errorf("the kernel did not join datagrams: last message has %d bytes", recv.rx.size)
					}
					var all []byte
					for i, r := range got {
						all = append(all, r.data...)
						want := segment
						if i == count-1 {
							want = 77
						}
						if len(r.data) != want {
							t.Errorf("datagram %d has %d bytes, want %d", i, len(r.data), want)
						}
						if r.ecn != 2 {
							t.Errorf("datagram %d: ECN %d, want 2", i, r.ecn)
						}
						if !r.pktinfo {
							t.Errorf("datagram %d: no packet info", i)
						}
						if r.gro {
							t.Errorf("datagram %d: the segment size was passed on", i)
						}
						if r.from != got[0].from {
							t.Errorf("datagram %d: another address object for the same peer", i)
						}
						if want := send.LocalAddr().(*net.UDPAddr).Port; r.from.Port != want || !r.from.IP.Equal(target.IP) {
							t.Errorf("datagram %d from %v, want %s port %d", i, r.from, tc.target, want)
						}
					}
					if !bytes.Equal(all, data) {
						t.Error("the data differ")
					}
				})
			}
		}
	}
}

func TestReadBatchSmallAndCut(t *testing.T) {
	for _, gro := range []bool{true, false} {
		t.Run(fmt.Sprintf("gro=%t", gro), func(t *testing.T) {
			recv := openSocket(t, "udp4", "127.0.0.1:0", Config{DisableGRO: !gro})
			send := openSocket(t, "udp4", "127.0.0.1:0", Config{})
			to := recv.LocalAddr().(*net.UDPAddr)
			for _, size := range []int{1, 0, 1500, 3} {
				if _, _, err := send.WriteMsgUDP(pattern(size, size), nil, to); err != nil {
					t.Fatal(err)
				}
			}
			ms := newMessages(8, 1452)
			got := readDatagrams(t, recv, ms, 4)
			for i, size := range []int{1, 0, 1452, 3} {
				if len(got[i].data) != size {
					t.Errorf("datagram %d has %d bytes, want %d", i, len(got[i].data), size)
				}
			}
			if !bytes.Equal(got[2].data, pattern(1500, 1500)[:1452]) {
				t.Error("the cut datagram differs")
			}
		})
	}
}

func TestReadBatchWithoutRoomForControl(t *testing.T) {
	recv := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	if _, _, err := recv.WriteMsgUDP([]byte("x"), nil, recv.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	ms := newMessages(1, 10)
	ms[0].OOB = make([]byte, 4)
	if n, err := recv.ReadBatch(ms, 0); n != 1 || err != nil || ms[0].NN != 0 || ms[0].N != 1 {
		t.Errorf("ReadBatch = %d, %v with N %d, NN %d", n, err, ms[0].N, ms[0].NN)
	}
}

func TestReadBatchEndsWithClose(t *testing.T) {
	checkLeaks(t)
	for _, when := range []string{"before", "during", "during again"} {
		s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
		if when == "before" {
			s.Close()
		}
		done := make(chan error)
		go func() {
			_, err := s.ReadBatch(newMessages(8, 1452), 0)
			done <- err
		}()
		s.Close() // whether the other goroutine is in the call by now or not
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed %s: %v", when, err)
		}
	}
}

func TestReadBatchDeadline(t *testing.T) {
	checkLeaks(t)
	s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	done := make(chan error)
	go func() {
		_, err := s.ReadBatch(newMessages(8, 1452), 0)
		done <- err
	}()
	if err := s.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	err := <-done
	var ne net.Error
	// quic-go looks at the outermost error and at this method.
	if !errors.As(err, &ne) || !ne.Timeout() || !ne.Temporary() { //nolint:staticcheck // quic-go calls it
		t.Errorf("after the deadline: %v", err)
	}
	if _, ok := err.(net.Error); !ok { //nolint:errorlint // as quic-go does
		t.Errorf("%T is no net.Error itself", err)
	}
}

func TestWriteErrors(t *testing.T) {
	s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	to := s.LocalAddr().(*net.UDPAddr)
	_, _, err := s.WriteMsgUDP(make([]byte, 70_000), nil, to)
	var op *net.OpError
	var sys *os.SyscallError
	if !errors.As(err, &op) || op.Op != "write" || !errors.As(err, &sys) || sys.Syscall != "sendmsg" || sys.Err != syscall.EMSGSIZE { //nolint:errorlint // as quic-go does
		t.Errorf("too large: %v", err)
	}
	if _, _, err := s.WriteMsgUDP([]byte("x"), nil, &net.UDPAddr{IP: net.IPv6loopback, Port: to.Port}); err == nil {
		t.Error("an IPv4 socket sent to an IPv6 address")
	}
	if _, _, err := s.WriteMsgUDP([]byte("x"), nil, nil); err == nil {
		t.Error("sent to nowhere")
	}
	s.Close()
	if _, _, err := s.WriteMsgUDP([]byte("x"), nil, to); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestPeerAddresses(t *testing.T) {
	var r receiver
	r.init(false)
	var sa unix.RawSockaddrInet6
	sa.Family, sa.Port = unix.AF_INET6, networkOrder(4242)
	sa.Addr = [16]byte{0: 0xfe, 1: 0x80, 15: 1}
	sa.Scope_id = 7
	if got := r.address(&sa).String(); got != "[fe80::1%7]:4242" {
		t.Errorf("link-local peer: %s", got)
	}
	sa.Scope_id = 0
	for i := range 2*maxPeers + 5 {
		binary.BigEndian.PutUint32(sa.Addr[8:], uint32(i))
		a := r.address(&sa)
		if b := r.address(&sa); a != b {
			t.Fatal("another object for the same peer")
		}
		if len(r.peers) > maxPeers {
			t.Fatalf("%d peers are remembered", len(r.peers))
		}
	}
}

func TestSocketInfo(t *testing.T) {
	checkLeaks(t)
	const small = 256 << 10 // less than quic-go asks for by itself
	l, _ := listen(t, Config{RecvBuffer: small, SendBuffer: small})
	info := l.Socket()
	if info.RecvBufferAsked != small || info.SendBufferAsked != small {
		t.Errorf("asked: %+v", info)
	}
	if info.RecvBufferGranted <= 0 || info.RecvBufferGranted > small || info.SendBufferGranted <= 0 || info.SendBufferGranted > small {
		t.Errorf("granted: %+v", info)
	}
	l, _ = listen(t, Config{DisableGRO: true, DisableGSO: true})
	if info := l.Socket(); info.GRO || info.GSO {
		t.Errorf("disabled: %+v", info)
	}
}

// Datagrams that the kernel cannot queue are counted, and the count stays when the socket is closed.
func TestKernelDrops(t *testing.T) {
	recv := openSocket(t, "udp4", "127.0.0.1:0", Config{RecvBuffer: 4 << 10})
	send := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	if n := recv.drops(); n != 0 {
		t.Errorf("%d drops at the start", n)
	}
	to := recv.LocalAddr().(*net.UDPAddr)
	const sent = 500
	for range sent {
		if _, _, err := send.WriteMsgUDP(make([]byte, 1200), nil, to); err != nil {
			t.Fatal(err)
		}
	}
	// Under load the kernel delivers later than it takes: it has counted all when each is either here or dropped.
	ms, here := newMessages(8, 1452), uint64(0)
	_ = recv.SetReadDeadline(time.Now().Add(20 * time.Second))
	for here+recv.drops() < sent {
		n, err := recv.ReadBatch(ms, 0)
		if err != nil {
			t.Fatalf("%v after %d datagrams, with %d dropped", err, here, recv.drops())
		}
		here += uint64(n)
	}
	n := recv.drops()
	if n == 0 || here == 0 || n+here != sent {
		t.Errorf("%d of %d datagrams dropped, and %d received", n, sent, here)
	}
	recv.Close()
	if after := recv.drops(); after != n {
		t.Errorf("%d drops after Close, %d before", after, n)
	}
}

func TestAllocSocket(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector allocates")
	}
	for _, cfg := range []Config{{}, {DisableGSO: true}, {DisableGRO: true}} {
		recv := openSocket(t, "udp4", "127.0.0.1:0", cfg)
		send := openSocket(t, "udp4", "127.0.0.1:0", cfg)
		to := recv.LocalAddr().(*net.UDPAddr)
		data, oob := pattern(4000, 0), segmentCmsg(nil, 1000)
		ms := newMessages(8, 1452)
		if n := testing.AllocsPerRun(200, func() {
			if _, _, err := send.WriteMsgUDP(data, oob, to); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < len(data); {
				n, err := recv.ReadBatch(ms, 0)
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					got += ms[i].N
				}
			}
		}); n != 0 {
			t.Errorf("%+v: %v allocations per round", cfg, n)
		}
	}
}

// TestSpin talks over sockets that poll before they park, with pauses in which they find nothing.
func TestSpin(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{Spin: 200 * time.Microsecond}, Config{Spin: 200 * time.Microsecond})
	send, accept := uniStream(t, client, server)
	echo, acceptEcho := uniStream(t, server, client)
	var r, back *RecvStream
	b := make([]byte, 100)
	for i := range 50 {
		if _, err := send.Write(b); err != nil {
			t.Fatal(err)
		}
		if r == nil {
			r = accept()
		}
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		if _, err := echo.Write(b); err != nil {
			t.Fatal(err)
		}
		if back == nil {
			back = acceptEcho()
		}
		if _, err := io.ReadFull(back, b); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			<-time.After(2 * time.Millisecond)
		}
	}
}

func TestPollGivesUp(t *testing.T) {
	r := receiver{spin: time.Millisecond} // in which it looks at least once
	r.init(false)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	poll := func() (found bool) {
		if err := raw.Control(func(fd uintptr) { found = r.poll(fd) }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	for range maxIdlePolls + 3*idlePollEvery {
		if poll() {
			t.Fatal("found something where there is nothing")
		}
	}
	if spinning.Load() {
		t.Error("still spinning")
	}
	if _, err := conn.WriteToUDP([]byte("x"), conn.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	for n := 0; !poll(); n++ {
		if n > 2*idlePollEvery {
			t.Fatal("does not try again")
		}
	}
	if r.idle != 0 {
		t.Error("something came, and it does not count as busy")
	}
}
