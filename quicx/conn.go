package quicx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/quic-go/quic-go"
)

// Conn is a connection whose handshake is complete. Its methods may be called from any goroutine.
type Conn struct {
	qc       *quic.Conn
	sock     *socket // that it sends on
	tr       *quic.Transport
	watch    pathWatch // owned by the goroutine that looks
	ctx      context.Context
	released chan struct{} // closed when nothing is left of the connection
	index    int           // in Listener.conns, guarded by Listener.mu; -1 if it is not there
}

// newConn calls release, on a goroutine of its own, when the connection has ended.
func newConn(qc *quic.Conn, sock *socket, tr *quic.Transport, sizes *sizeTester, release func(*Conn)) *Conn {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Conn{qc: qc, sock: sock, tr: tr, ctx: ctx, released: make(chan struct{}), index: -1}
	context.AfterFunc(qc.Context(), func() {
		cancel(sizes.ended(c, mapError(context.Cause(qc.Context()))))
		release(c)
		close(c.released)
	})
	return c
}

// OpenStream opens a bidirectional stream. The peer does not know of it before the first write. It blocks while the
// peer allows no more streams; if ctx ends first, the error matches [ErrStreamLimit] and that of ctx.
func (c *Conn) OpenStream(ctx context.Context) (*Stream, error) {
	s, err := open(ctx, c.qc.OpenStream, c.qc.OpenStreamSync)
	if err != nil {
		return nil, err
	}
	return newStream(s), nil
}

// OpenUniStream opens a stream to the peer, under the rules of [Conn.OpenStream].
func (c *Conn) OpenUniStream(ctx context.Context) (*SendStream, error) {
	s, err := open(ctx, c.qc.OpenUniStream, c.qc.OpenUniStreamSync)
	if err != nil {
		return nil, err
	}
	return &SendStream{s: s}, nil
}

func open[S any](ctx context.Context, try func() (S, error), wait func(context.Context) (S, error)) (S, error) {
	var none S
	if err := ctx.Err(); err != nil {
		return none, err
	}
	s, err := try()
	if _, limit := errors.AsType[*quic.StreamLimitReachedError](err); !limit {
		return s, mapError(err)
	}
	if s, err = wait(ctx); err != nil && ctx.Err() != nil {
		return none, fmt.Errorf("%w: %w", ErrStreamLimit, err)
	}
	return s, mapError(err)
}

// AcceptStream returns the next bidirectional stream that the peer opened. It blocks until there is one, ctx ends or
// the connection does.
func (c *Conn) AcceptStream(ctx context.Context) (*Stream, error) {
	s, err := c.qc.AcceptStream(ctx)
	if err != nil {
		return nil, mapError(err)
	}
	return newStream(s), nil
}

// AcceptUniStream returns the next unidirectional stream that the peer opened, like [Conn.AcceptStream].
func (c *Conn) AcceptUniStream(ctx context.Context) (*RecvStream, error) {
	s, err := c.qc.AcceptUniStream(ctx)
	if err != nil {
		return nil, mapError(err)
	}
	return &RecvStream{s: s}, nil
}

// maxAckDelay is how long a peer may hold an acknowledgement back unless it says otherwise (RFC 9000, section 18.2).
const maxAckDelay = 25 * time.Millisecond

// AwaitDelivery waits until the peer has most likely received all that was written: until nothing was sent for longer
// than QUIC waits before it sends what is not acknowledged again, and once more when that is lost as well (RFC 9002,
// section 6.2.1): about a tenth of a second on a short path. What the peer's flow control holds back cannot be waited
// for. It returns early when the connection or the context ends.
func (c *Conn) AwaitDelivery(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	sent, since := c.Stats().PacketsSent, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		st := c.Stats()
		if st.PacketsSent != sent {
			sent, since = st.PacketsSent, time.Now()
			continue
		}
		probe := st.RTT + max(4*st.RTTVar, time.Millisecond) + maxAckDelay
		if time.Since(since) > 2*probe+10*time.Millisecond {
			return
		}
	}
}

// Close ends the connection and its streams with a code and a reason that the peer gets; use 0
// (docs/protocol/session.md#codes). What was written and not sent is lost. It returns when the connection is gone, the
// socket of a dialed one included. Closing again, or after the peer, does nothing.
func (c *Conn) Close(code uint64, reason string) error {
	err := c.qc.CloseWithError(quic.ApplicationErrorCode(code), reason)
	<-c.released
	return mapError(err)
}

// Context is canceled when the connection ends, whichever side ended it. [context.Cause] gives the reason as an error
// of this package.
func (c *Conn) Context() context.Context { return c.ctx }

// RemoteAddr returns the address of the peer.
func (c *Conn) RemoteAddr() net.Addr { return c.qc.RemoteAddr() }

// LocalAddr returns the local address.
func (c *Conn) LocalAddr() net.Addr { return c.qc.LocalAddr() }

// ConnStats are the counters of a connection since its start. Bytes are those of UDP payloads, retransmissions
// included.
type ConnStats struct {
	BytesSent, PacketsSent         uint64
	BytesReceived, PacketsReceived uint64
	BytesLost, PacketsLost         uint64 // may fall again, when something believed lost arrives after all

	RTT       time.Duration // smoothed
	RTTVar    time.Duration // its mean deviation
	MinRTT    time.Duration
	LatestRTT time.Duration

	CongestionWindow uint64 // bytes that may be in flight towards the peer
}

// Stats returns the counters at this moment.
func (c *Conn) Stats() ConnStats {
	s := c.qc.ConnectionStats()
	return ConnStats{
		BytesSent:        s.BytesSent,
		PacketsSent:      s.PacketsSent,
		BytesReceived:    s.BytesReceived,
		PacketsReceived:  s.PacketsReceived,
		BytesLost:        s.BytesLost,
		PacketsLost:      s.PacketsLost,
		RTT:              s.SmoothedRTT,
		RTTVar:           s.MeanDeviation,
		MinRTT:           s.MinRTT,
		LatestRTT:        s.LatestRTT,
		CongestionWindow: s.CongestionWindow,
	}
}
