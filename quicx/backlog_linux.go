package quicx

import "time"

// backlog keeps a socket with one connection from receiving more than that connection can queue: quic-go queues 256
// datagrams and drops what comes on top, which then costs a retransmission and half of the congestion window. The
// kernel queues megabytes.
//
// Stepping back for others to run is not enough. With several processors the connection's goroutine may have been on
// one that the system has given to another process, so that its queue fills however often the socket's own goroutine
// steps back.
type backlog struct {
	received func() uint64 // datagrams that the connection has taken from its queue
	last     uint64        // what that was when given was last brought up to date
	given    int           // datagrams given to the connection and not known to be taken
	inVain   time.Time     // when a wait last was
}

const (
	// maxBacklog is how many datagrams may be queued when more are received: up to 180 come at once.
	maxBacklog = 64

	// backlogWait is the time from one look at what the connection has taken to the next.
	backlogWait = 50 * time.Microsecond

	// backlogPatience is how long a connection has to catch up: longer than a busy system lets a thread that could run
	// wait for its turn, which is several slices of 3 ms.
	backlogPatience = 20 * time.Millisecond

	// Datagrams that the connection had no use for are not counted as received: a sender of such datagrams would stop
	// it if the wait had no end, and slow it down to a crawl if each wait were that long. So waits are short for
	// some time after one in vain, and the count starts at zero after each.
	backlogHaste    = time.Millisecond
	backlogDistrust = time.Second
)

// wait returns when the connection has caught up.
func (b *backlog) wait() {
	if b.caughtUp() {
		return
	}
	start := time.Now()
	patience := backlogPatience
	if start.Sub(b.inVain) < backlogDistrust {
		patience = backlogHaste
	}
	for time.Since(start) < patience {
		time.Sleep(backlogWait) //nolint:forbidigo // there is nothing that it could be told by
		if b.caughtUp() {
			return
		}
	}
	if patience == backlogPatience {
		b.inVain = start.Add(patience)
	}
	b.given = 0
}

// caughtUp brings the account up to date if it has to, and says whether the connection can queue what one call brings.
func (b *backlog) caughtUp() bool {
	if b.given < maxBacklog {
		return true
	}
	now := b.received()
	b.given -= int(min(now-b.last, uint64(b.given)))
	b.last = now
	return b.given < maxBacklog
}
