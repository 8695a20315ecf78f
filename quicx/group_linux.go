package quicx

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// group is the sockets of one listener that share a port (SO_REUSEPORT). The kernel chooses the socket of a datagram by
// its addresses, so a client whose address changes, by migration or behind a NAT, comes to another socket than the one
// its connection lives on. Connection ids carry the index of their socket, and a datagram for another one is handed over
// before quic-go sees it:
//
//	kernel ──▶ socket 2 ──ReadBatch: short header, id of socket 0──▶ inbox of socket 0 ──ReadBatch──▶ quic-go
//
// Datagrams with a long header are left where they are: a handshake does not move.
type group struct {
	sockets []*socket
	handed  atomic.Uint64
	dropped atomic.Uint64
}

// connIDLen is the length of connection ids in bytes; the first one tells the socket.
const connIDLen = 8

// maxSockets keeps the index within a byte with several values for each.
const maxSockets = 64

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

// inbox is the datagrams that other sockets of the group have received for one.
type inbox struct {
	mu        sync.Mutex
	datagrams []datagram
	deadline  time.Time // that somebody else has set
	woken     bool      // the deadline of the socket is in the past, for the inbox's sake
}

type datagram struct {
	b, oob []byte
	addr   net.Addr
}

// maxInbox bounds an inbox. A client that has moved sends a few datagrams before it learns whether it may.
const maxInbox = 256

// owner returns the socket that a datagram is for.
func (g *group) owner(b []byte, received *socket) *socket {
	if len(b) < 1+connIDLen || b[0]&0xc0 != 0x40 { // a long header, or not QUIC
		return received
	}
	return g.sockets[int(b[1])%len(g.sockets)]
}

// give puts a copy of the datagram into the inbox of s and wakes its reader.
func (g *group) give(s *socket, b, oob []byte, addr net.Addr) {
	in := &s.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.datagrams) >= maxInbox {
		g.dropped.Add(1)
		return
	}
	g.handed.Add(1)
	in.datagrams = append(in.datagrams, datagram{append([]byte(nil), b...), append([]byte(nil), oob...), addr})
	if !in.woken {
		in.woken = true
		_ = s.UDPConn.SetReadDeadline(time.Unix(1, 0))
	}
}

// take moves datagrams from the inbox to ms.
func (in *inbox) take(s *socket, ms []ipv4.Message) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for n < len(ms) && n < len(in.datagrams) {
		d, m := &in.datagrams[n], &ms[n]
		m.N = copy(m.Buffers[0], d.b)
		m.NN, m.Flags, m.Addr = 0, 0, d.addr
		if len(d.oob) <= len(m.OOB) {
			m.NN = copy(m.OOB, d.oob)
		}
		n++
	}
	rest := copy(in.datagrams, in.datagrams[n:])
	clear(in.datagrams[rest:])
	in.datagrams = in.datagrams[:rest]
	if in.woken && rest == 0 {
		in.woken = false
		_ = s.UDPConn.SetReadDeadline(in.deadline)
	}
	return n
}

// SetReadDeadline is for quic-go, which ends its reader by it. The deadline by which an inbox wakes the reader must not
// get in its way.
func (s *socket) SetReadDeadline(t time.Time) error {
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	s.inbox.deadline = t
	if s.inbox.woken && t.IsZero() {
		return nil
	}
	return s.UDPConn.SetReadDeadline(t)
}

// listenSockets opens the sockets of a listener, all on one port.
func listenSockets(addr string, n int) ([]*net.UDPConn, error) {
	lc := net.ListenConfig{}
	if n > 1 {
		lc.Control = func(_, _ string, raw syscall.RawConn) error {
			var optErr error
			err := raw.Control(func(fd uintptr) {
				optErr = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			})
			if err != nil {
				return err
			}
			return optErr
		}
	}
	conns := make([]*net.UDPConn, 0, n)
	for range n {
		pc, err := lc.ListenPacket(context.Background(), "udp", addr)
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, err
		}
		conn, _ := pc.(*net.UDPConn)
		conns = append(conns, conn)
		addr = conn.LocalAddr().String() // the port that the first one got
	}
	return conns, nil
}

// join makes the sockets a group, if there are several.
func join(sockets []*socket) *group {
	g := &group{sockets: sockets}
	if len(sockets) > 1 {
		for _, s := range sockets {
			s.group = g
		}
	}
	return g
}

func (g *group) ids(index int) quic.ConnectionIDGenerator {
	if len(g.sockets) == 1 {
		return nil // quic-go's own
	}
	return connIDs{index, len(g.sockets)}
}
