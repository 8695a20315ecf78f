//go:build !linux

package quicx

import (
	"errors"
	"net"
	"sync/atomic"

	"github.com/quic-go/quic-go"
)

// group is the one socket of a listener: several on one port are a Linux feature here.
type group struct {
	sockets         []*socket
	handed, dropped atomic.Uint64
}

const maxSockets = 1

func listenSockets(addr string, n int) ([]*net.UDPConn, error) {
	if n != 1 {
		return nil, errors.New("several sockets need Linux")
	}
	local, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", local)
	return []*net.UDPConn{conn}, err
}

func join(sockets []*socket) *group { return &group{sockets: sockets} }

func (g *group) ids(int) quic.ConnectionIDGenerator { return nil }
