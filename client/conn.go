package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// frameSlack is how much larger than the sending limit a received frame may be: replies echo request data (wire.md,
// section 1.3).
const frameSlack = 64

// maxUnmatched bounds the event streams of one connection whose subscribe has not been answered yet.
const maxUnmatched = 4096

// conn is one QUIC connection. Its accept loop gives each event stream to the Subscribe call that waits for it: the
// hello may come before or after the reply that names its id (session.md, section 7.1).
type conn struct {
	c  *Client
	qc *quicx.Conn

	readers sync.WaitGroup // of request streams

	mu        sync.Mutex // guards all below
	closing   bool
	reserved  int // subscriptions
	waiting   map[uint64]chan *eventStream
	unmatched map[uint64]*eventStream
}

// eventStream is an event stream behind its hello.
type eventStream struct {
	r  *quicx.RecvStream
	fr *quicx.FrameReader
}

func newConn(c *Client, qc *quicx.Conn) *conn {
	return &conn{
		c: c, qc: qc,
		waiting:   make(map[uint64]chan *eventStream),
		unmatched: make(map[uint64]*eventStream),
	}
}

func (k *conn) alive() bool { return k.qc.Context().Err() == nil }

func (k *conn) close() { _ = k.qc.Close(0, "") }

// lost says why the connection ended.
func (k *conn) lost() error {
	if k.c.ctx.Err() != nil {
		return ErrClosed
	}
	return fmt.Errorf("client: connection lost: %w", context.Cause(k.qc.Context()))
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
	s     *quicx.Stream
	fr    *quicx.FrameReader
	msg   codec.Message
	flags codec.Flags // what the broker advertised
}

// openControl opens a stream and sends auth, and whatever the caller wants to send right behind it.
func (k *conn) openControl(ctx context.Context, pipelined func([]byte) []byte) (*control, error) {
	s, err := k.qc.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("client: opening a stream: %w", err)
	}
	ctl := &control{s: s, fr: quicx.NewFrameReader(s.Recv(), k.c.o.maxFrame+frameSlack)}
	stop := context.AfterFunc(ctx, func() {
		_ = s.Recv().SetReadDeadline(past)
		_ = s.Send().SetWriteDeadline(past)
	})
	out := codec.AppendAuth(nil, k.c.o.tenant, k.c.o.token, clientFlags, true, codec.KnownExtensions())
	if pipelined != nil {
		out = pipelined(out)
	}
	if _, err = s.Send().Write(out); err == nil {
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
	case codec.MsgOK:
		ctl.flags = codec.OriginalV1Flags
	case codec.MsgError:
		if string(ctl.msg.Text) == codec.TextAuthFailed {
			return ErrAuth
		}
		return &BrokerError{string(ctl.msg.Text)}
	default:
		return fmt.Errorf("%w: %v in answer to auth", ErrProtocol, ctl.msg.Type)
	}
	return nil
}

// read reads one JSON message.
func (ctl *control) read() error {
	f, err := ctl.fr.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: stream ended instead of a reply", ErrProtocol)
		}
		return fmt.Errorf("client: reading a reply: %w", err)
	}
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
	k.mu.Lock()
	k.closing = true
	left := k.unmatched
	k.unmatched = nil
	k.mu.Unlock()
	k.readers.Wait()
	for _, e := range left {
		e.fr.Close()
	}
}

// hello reads the first frame of an event stream and hands the stream over.
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
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unmatched == nil || len(k.unmatched) >= maxUnmatched || k.unmatched[m.SubscriptionID] != nil {
		r.Cancel(0)
		fr.Close()
		return
	}
	e := &eventStream{r, fr}
	if w := k.waiting[m.SubscriptionID]; w != nil {
		delete(k.waiting, m.SubscriptionID)
		w <- e
		return
	}
	k.unmatched[m.SubscriptionID] = e
}

// awaitEvents waits for the event stream of a subscription.
func (k *conn) awaitEvents(ctx context.Context, id uint64) (*eventStream, error) {
	k.mu.Lock()
	if e := k.unmatched[id]; e != nil {
		delete(k.unmatched, id)
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
		e.r.Cancel(0)
		e.fr.Close()
	default:
	}
	return nil, err
}
