//go:build !linux

package quicx

import (
	"errors"
	"net"

	"github.com/quic-go/quic-go"
)

// maxSockets is 1: several sockets on one port are a Linux feature here.
const maxSockets = 1

func listenSockets(addr string, n int) (conns []*net.UDPConn, shared, err error) {
	if n != 1 {
		return nil, nil, errors.New("several sockets need Linux")
	}
	local, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, nil, err
	}
	return []*net.UDPConn{conn}, nil, nil
}

func steeringIDs(int, int) quic.ConnectionIDGenerator { return nil }
