package quicx

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

// The sockets of one listener share a port (SO_REUSEPORT). Left to itself the kernel chooses the socket of a datagram
// by its addresses, so that a client whose address changes, by migration or through a NAT, would come to another socket
// than the one its connection lives on. Connection ids carry the index of their socket, and a filter has the kernel
// choose by it:
//
//	kernel ── short header, id of socket 0 ──▶ socket 0
//	       ── long header ──▶ the socket that a hash of the addresses gives: a handshake does not move
const (
	// connIDLen is the length of connection ids in bytes; the first one tells the socket.
	connIDLen = 8

	// maxSockets keeps the index within a byte with several values for each.
	maxSockets = 64
)

// connIDs makes connection ids for the socket of that index.
type connIDs struct{ index, count int }

func (c connIDs) ConnectionIDLen() int { return connIDLen }

func (c connIDs) GenerateConnectionID() (quic.ConnectionID, error) {
	b := make([]byte, connIDLen)
	_, _ = rand.Read(b) // never fails
	// The same remainder, and otherwise as random as before.
	b[0] = byte(int(b[0])/c.count*c.count + c.index)
	if int(b[0])%c.count != c.index { // wrapped around
		b[0] = byte(c.index)
	}
	return quic.ConnectionIDFromBytes(b), nil
}

// steering is the filter that returns the index of a datagram's socket among count.
func steering(count int) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0}, // the first byte of the UDP payload
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xc0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x40, Jf: 3}, // a short header
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 1},            // the first byte of the connection id
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(count)},
		{Code: unix.BPF_RET | unix.BPF_A},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}, // no such socket: by hash
	}
}

// attachSteering is a variable for tests of a kernel that refuses.
var attachSteering = func(conn *net.UDPConn, count int) error {
	prog := steering(count)
	return control(conn, func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}))
	})
}

func control(conn *net.UDPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// listenSockets opens the sockets of a listener, all on one port. If the kernel cannot choose between several, there is
// one, and the reason is returned as shared.
//
// The first socket is bound without SO_REUSEPORT, so that a port in use is an error as it is for any other socket: a
// listener of several sockets included, whichever of the two came first.
func listenSockets(addr string, n int) (conns []*net.UDPConn, shared, err error) {
	local, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, nil, err
	}
	first, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, nil, err
	}
	conns = []*net.UDPConn{first}
	if n == 1 {
		return conns, nil, nil
	}
	if err := joinSockets(&conns, n); err != nil {
		for _, c := range conns[1:] {
			_ = c.Close()
		}
		_ = control(first, func(fd int) error { return setReusePort(fd, 0) }) // nobody else may join
		return conns[:1], fmt.Errorf("quicx: one socket instead of %d: %w", n, err), nil
	}
	return conns, nil, nil
}

// joinSockets adds sockets to the first one until there are n. It leaves those that it has made in conns if it fails.
func joinSockets(conns *[]*net.UDPConn, n int) error {
	first := (*conns)[0]
	if err := control(first, func(fd int) error { return setReusePort(fd, 1) }); err != nil {
		return err
	}
	for len(*conns) < n {
		conn, err := bindLike(first)
		if err != nil {
			return err
		}
		*conns = append(*conns, conn)
	}
	return attachSteering(first, n)
}

func setReusePort(fd, on int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, on))
}

// bindLike opens another socket on the address of first.
func bindLike(first *net.UDPConn) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		if err := raw.Control(func(fd uintptr) { inner = setReusePort(int(fd), 1) }); err != nil {
			return err
		}
		return inner
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", first.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	conn, _ := pc.(*net.UDPConn)
	return conn, nil
}

func steeringIDs(index, count int) quic.ConnectionIDGenerator {
	if count == 1 {
		return nil // quic-go's own
	}
	return connIDs{index, count}
}
