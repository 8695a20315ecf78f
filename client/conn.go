package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// frameSlack is how much larger than the sending limit a received frame may be: replies echo request data
// (docs/protocol/wire.md#maximum-frame-size).
const frameSlack = 64

// conn is one QUIC connection. Its accept loop gives each event stream to the Subscribe call that waits for it: the
// hello may come before or after the reply that names its id (docs/protocol/session.md#the-exchange).
type conn struct {
	c    *Client
	qc   *quicx.Conn
	addr string // that was dialed
	// Tells the broker that the connections of sharedConn before this one have been given up; empty for those of
	// events.
	fence codec.Fence

	since int64        // when it was made, in nanoseconds of the client's clock
	heard atomic.Int64 // when a reply came last

	users sync.WaitGroup // goroutines that read request streams or subscribe

	mu        sync.Mutex // guards all below
	closing   bool
	reserved  int // subscriptions
	waiting   map[uint64]chan *eventStream
	unmatched map[uint64]*eventStream
}

func newConn(c *Client, qc *quicx.Conn, addr string) *conn {
	k := &conn{
		c: c, qc: qc, addr: addr, since: c.now(),
		waiting:   make(map[uint64]chan *eventStream),
		unmatched: make(map[uint64]*eventStream),
	}
	k.heard.Store(k.since)
	return k
}

func (k *conn) alive() bool { return k.qc.Context().Err() == nil }

func (k *conn) close() { _ = k.qc.Close(0, "") }

// lost says why the connection ended.
func (k *conn) lost() error {
	if k.c.ctx.Err() != nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: connection lost: %w", ErrDisconnected, context.Cause(k.qc.Context()))
}

// streamError says what the failure of a read or a write on one of the connection's streams means.
func (k *conn) streamError(doing string, err error) error {
	_, closed := errors.AsType[*quicx.ConnClosedError](err)
	switch {
	case k.c.ctx.Err() != nil:
		return ErrClosed
	case closed || errors.Is(err, quicx.ErrIdleTimeout):
		// QUIC ends the streams of a connection first. A caller that notices must find the connection dead.
		<-k.qc.Context().Done()
		return k.lost()
	case errors.Is(err, codec.ErrFrameTooLarge):
		return fmt.Errorf("%w: %w (see Transport.MaxFrame): %s: %w", ErrProtocol, ErrFrameTooLarge, doing, err)
	case codec.ClassOf(err) != "" || errors.Is(err, quicx.ErrTruncated):
		return fmt.Errorf("%w: %s: %w", ErrProtocol, doing, err)
	default:
		return fmt.Errorf("%w: %s: %w", ErrDisconnected, doing, err)
	}
}

// stoppedReading reports whether a write failed because the peer reads no further. That is not the end of its replies
// (docs/protocol/session.md#the-end-of-a-stream).
func stoppedReading(err error) bool {
	e, ok := errors.AsType[*quicx.StreamResetError](err)
	return ok && e.Remote
}

// start runs f on a goroutine that the connection waits for at its end.
func (k *conn) start(f func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return k.lost()
	}
	k.users.Go(f)
	return nil
}

// reserve takes a place for a subscription if fewer than limit are taken.
func (k *conn) reserve(limit int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reserved >= limit {
		return false
	}
	k.reserved++
	return true
}

func (k *conn) unreserve() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reserved--
}
