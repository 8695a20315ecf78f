//go:build !linux

package quicx

import "net"

// socket is an ordinary UDP socket: joined datagrams are a Linux feature.
type socket struct {
	*net.UDPConn
	info SocketInfo
}

func newSocket(conn *net.UDPConn, cfg Config) (*socket, error) {
	quietBuffers()
	s := &socket{UDPConn: conn}
	s.info.SendBufferAsked, s.info.RecvBufferAsked = cfg.SendBuffer, cfg.RecvBuffer
	return s, s.setBuffers()
}

// setBuffers asks for the configured buffers. A system that grants less than was asked for is no error.
func (s *socket) setBuffers() error {
	_ = s.SetReadBuffer(s.info.RecvBufferAsked)
	_ = s.SetWriteBuffer(s.info.SendBufferAsked)
	return nil
}

// drops is not known.
func (s *socket) drops() uint64 { return 0 }

// serves is of use where datagrams come many at a time.
func (s *socket) serves(func() uint64) {}
