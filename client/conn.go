package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

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
	// Tells the broker that the connections of home before this one have been given up; empty for those of events.
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

// eventStream is an event stream after its hello.
type eventStream struct {
	r       *quicx.RecvStream
	fr      *quicx.FrameReader
	claimed chan struct{} // closed when it has an owner
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

// control is an authenticated bi-directional stream before anything has been asked on it.
type control struct {
	k     *conn
	s     *quicx.Stream
	fr    *quicx.FrameReader
	msg   codec.Message
	flags codec.Flags      // what the broker advertised
	ext   codec.Extensions // what was agreed on
	ends  time.Time        // when the token does; zero if that is not known
}

// openControl opens a stream and sends auth, and right after it what the caller wants to send.
func (k *conn) openControl(ctx context.Context, pipelined func([]byte) []byte) (*control, error) {
	token, err := k.c.token(ctx)
	if err != nil {
		return nil, err
	}
	return k.openControlWith(ctx, token, pipelined)
}

// token asks for the token to authenticate with.
func (c *Client) token(ctx context.Context) (string, error) {
	token, err := c.o.token(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("%w: token: %w", context.Cause(ctx), err)
	case err != nil: // the next call asks again
		return "", fmt.Errorf("%w: token: %w", ErrDisconnected, err)
	}
	return token, nil
}

// openControlWith is openControl with a token.
func (k *conn) openControlWith(ctx context.Context, token string, pipelined func([]byte) []byte) (*control, error) {
	s, err := k.qc.OpenStream(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, k.streamError("opening a stream", err)
	}
	ctl := &control{k: k, s: s, ends: tokenEnd(token), fr: quicx.NewFrameReader(s.Recv(), k.c.o.maxFrame+frameSlack)}
	stop := context.AfterFunc(ctx, func() {
		_ = s.Recv().SetReadDeadline(past)
		_ = s.Send().SetWriteDeadline(past)
	})
	out := codec.AppendAuthFenced(nil, k.c.o.tenant, token, clientFlags, true, k.c.o.ext, k.fence)
	if pipelined != nil {
		out = pipelined(out)
	}
	if err = ctl.write(out); err == nil {
		err = ctl.authReply()
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		ctl.abandon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return ctl, nil
}

// authReply reads the answer to auth: auth_ok with the broker's flags, or a plain ok from one that does not negotiate.
func (ctl *control) authReply() error {
	if err := ctl.read(); err != nil {
		return err
	}
	switch ctl.msg.Type {
	case codec.MsgAuthOK:
		ctl.flags = ctl.msg.ServerFlags
		ctl.ext = ctl.msg.Ext & ctl.k.c.o.ext
	case codec.MsgOK:
		ctl.flags = codec.OriginalV1Flags
	case codec.MsgError:
		return fmt.Errorf("%w: %w", ErrAuth, &BrokerError{string(ctl.msg.Text)})
	default:
		return fmt.Errorf("%w: %v in answer to auth", ErrProtocol, ctl.msg.Type)
	}
	return nil
}

// write sends a request. If the broker has stopped reading it has a reason, and the reply says which.
func (ctl *control) write(b []byte) error {
	if _, err := ctl.s.Send().Write(b); err != nil && !stoppedReading(err) {
		return ctl.k.streamError("sending a request", err)
	}
	return nil
}

// read reads one JSON message.
func (ctl *control) read() error {
	f, err := ctl.fr.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: the broker ended the stream without a reply", ErrDisconnected)
		}
		return ctl.k.streamError("reading a reply", err)
	}
	ctl.k.heard.Store(ctl.k.c.now())
	if f.Header.Flags != codec.LayoutJSON {
		return fmt.Errorf("%w: reply with flags %#04x", ErrProtocol, uint16(f.Header.Flags))
	}
	if err := codec.ParseMessage(f.Bytes[codec.HeaderLen:], &ctl.msg); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// abandon ends both halves.
func (ctl *control) abandon() {
	ctl.s.Send().Cancel(0)
	ctl.s.Recv().Cancel(0)
	ctl.fr.Close()
}

// acceptEvents takes the broker's event streams until the connection ends. Each hello is read on a goroutine of its
// own, so that an incomplete one does not hold up the others.
func (k *conn) acceptEvents() {
	var hellos sync.WaitGroup
	defer hellos.Wait()
	for {
		r, err := k.qc.AcceptUniStream(k.qc.Context())
		if err != nil {
			break
		}
		hellos.Go(func() { k.hello(r) })
	}
	<-k.qc.Context().Done() // accepting ends first; a connection that takes no more has to look dead
	k.mu.Lock()
	k.closing = true
	left := k.unmatched
	k.unmatched = nil
	k.mu.Unlock()
	k.users.Wait()
	for _, e := range left {
		e.fr.Close()
	}
}

// hello reads the first frame of an event stream and hands the stream over. One that nobody asks for in time is
// refused: its subscribe was given up, or never was.
func (k *conn) hello(r *quicx.RecvStream) {
	fr := quicx.NewFrameReader(r, k.c.o.maxFrame+frameSlack)
	_ = r.SetReadDeadline(time.Now().Add(k.c.o.requestTimeout))
	f, err := fr.Next()
	var m codec.Message
	if err == nil && f.Header.Flags == codec.LayoutJSON {
		err = codec.ParseMessage(f.Bytes[codec.HeaderLen:], &m)
	}
	if err != nil || m.Type != codec.MsgEventStreamHello {
		r.Cancel(0)
		fr.Close()
		return
	}
	_ = r.SetReadDeadline(time.Time{})
	e := &eventStream{r: r, fr: fr, claimed: make(chan struct{})}
	if !k.offer(m.SubscriptionID, e) {
		e.refuse()
		return
	}
	expired := time.NewTimer(k.c.o.requestTimeout)
	defer expired.Stop()
	select {
	case <-e.claimed:
	case <-k.qc.Context().Done():
	case <-expired.C:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.unmatched[m.SubscriptionID] == e {
			delete(k.unmatched, m.SubscriptionID)
			e.refuse()
		}
	}
}

// offer gives an event stream to the Subscribe call that waits for it, or keeps it for the one to come. It reports
// false if there is no place for it.
func (k *conn) offer(id uint64, e *eventStream) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unmatched == nil || len(k.unmatched) >= k.c.o.maxUnmatched || k.unmatched[id] != nil {
		return false
	}
	if w := k.waiting[id]; w != nil {
		delete(k.waiting, id)
		close(e.claimed)
		w <- e
		return true
	}
	k.unmatched[id] = e
	return true
}

func (e *eventStream) refuse() {
	e.r.Cancel(0)
	e.fr.Close()
}

// awaitEvents waits for the event stream of a subscription.
func (k *conn) awaitEvents(ctx context.Context, id uint64) (*eventStream, error) {
	k.mu.Lock()
	if e := k.unmatched[id]; e != nil {
		delete(k.unmatched, id)
		close(e.claimed)
		k.mu.Unlock()
		return e, nil
	}
	w := make(chan *eventStream, 1)
	k.waiting[id] = w
	k.mu.Unlock()
	var err error
	select {
	case e := <-w:
		return e, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-k.qc.Context().Done():
		err = k.lost()
	}
	k.mu.Lock()
	delete(k.waiting, id)
	k.mu.Unlock()
	select {
	case e := <-w: // it came at the last moment
		e.refuse()
	default:
	}
	return nil, err
}
