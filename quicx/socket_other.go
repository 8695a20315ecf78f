//go:build !linux

package quicx

import "net"

// socket is an ordinary UDP socket: joined datagrams are a Linux feature.
type socket struct {
	*net.UDPConn
	info   SocketInfo
	limit  int // largest datagram that is sent
	faults sendFaults
}

func newSocket(conn *net.UDPConn, cfg Config) (*socket, error) {
	quietBuffers()
	s := &socket{UDPConn: conn, limit: cfg.MaxPacketSize}
	s.info.SendBufferAsked, s.info.RecvBufferAsked = cfg.SendBuffer, cfg.RecvBuffer
	return s, s.setBuffers()
}

// setBuffers asks for the configured buffers. A system that grants less than was asked for is no error.
func (s *socket) setBuffers() error {
	_ = s.SetReadBuffer(s.info.RecvBufferAsked)
	_ = s.SetWriteBuffer(s.info.SendBufferAsked)
	return nil
}

// WriteMsgUDP sends b to addr. What the system refuses for the moment counts as lost on the way.
func (s *socket) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if tooLarge(s.limit, len(b)) {
		return len(b), len(oob), nil
	}
	n, oobn, err = s.UDPConn.WriteMsgUDP(b, oob, addr)
	if err != nil {
		if err = s.faults.absorbError(err, false, 1); err == nil {
			n, oobn = len(b), len(oob)
		}
	}
	return n, oobn, err
}

// WriteTo is [socket.WriteMsgUDP] for systems on which quic-go sends without control messages.
func (s *socket) WriteTo(b []byte, addr net.Addr) (n int, err error) {
	if tooLarge(s.limit, len(b)) {
		return len(b), nil
	}
	if n, err = s.UDPConn.WriteTo(b, addr); err != nil {
		if err = s.faults.absorbError(err, false, 1); err == nil {
			n = len(b)
		}
	}
	return n, err
}

// drops is not known.
func (s *socket) drops() uint64 { return 0 }

// serves is of use where datagrams come many at a time.
func (s *socket) serves(func() uint64) {}
