package quicx

import "time"

// backlog keeps a socket with one connection from receiving more than that connection has room for: quic-go queues 256
// datagrams and drops what comes on top, which then costs a retransmission and half of the congestion window. The kernel has
// room for megabytes.
//
// Stepping back for others to run is not enough. With several processors the connection's goroutine may have been on one that
// the system has given to another process, so that its queue fills however often the socket's own goroutine steps back.
type backlog struct {
	received func() uint64 // datagrams that the connection has taken from its queue
	last     uint64        // what that was when given was last brought up to date
	given    int           // datagrams given to the connection and not known to be taken
}

const (
	// maxBacklog is how many datagrams may be queued when more are received: up to 180 come at once.
	maxBacklog = 64

	// A connection gets this often this long to catch up. Datagrams that it had no use for are not counted as received, so
	// the wait has an end, and the account begins anew.
	backlogWaits = 20
	backlogWait  = 50 * time.Microsecond
)

// wait returns when the connection has caught up.
func (b *backlog) wait() {
	for range backlogWaits {
		if b.given < maxBacklog {
			return
		}
		now := b.received()
		b.given -= int(min(now-b.last, uint64(b.given)))
		b.last = now
		if b.given < maxBacklog {
			return
		}
		time.Sleep(backlogWait) //nolint:forbidigo // there is nothing that it could be told by
	}
	b.given = 0
}
