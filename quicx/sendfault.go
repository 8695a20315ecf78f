package quicx

import (
	"errors"
	"sync/atomic"
	"syscall"
)

// sendFaults counts the datagrams of a socket that the system refused to send. Such a refusal passes: a queue of the
// network interface is full, a route or a filter rule is being changed, memory is short for a moment. To QUIC it is the
// loss of a packet, which it repairs. A refusal that lasts ends a connection by its idle timeout.
//
// An error that quic-go gets ends the connection that was sending. So only those get there that it knows how to handle,
// and those that no later attempt can mend.
type sendFaults struct{ n atomic.Uint64 }

// absorb reports whether a send that failed with errno counts as a loss, and if so counts the datagrams.
func (f *sendFaults) absorb(errno syscall.Errno, segmented bool, datagrams int) bool {
	if final(errno) || segmented && refusesSegments(errno) {
		return false
	}
	f.n.Add(uint64(datagrams))
	return true
}

// absorbError is absorb for an error of package net, which is returned if it does not count as a loss.
func (f *sendFaults) absorbError(err error, segmented bool, datagrams int) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok || !f.absorb(errno, segmented, datagrams) {
		return err
	}
	return nil
}
