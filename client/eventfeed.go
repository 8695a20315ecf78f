package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
)

// eventFeed is one event stream of a subscription or of a watch: what an exchange on one connection yields. It is read
// by its owner alone, and replaced by another when it is lost.
type eventFeed struct {
	k     *conn
	id    uint64
	e     *eventStream
	ext   codec.Extensions
	leave sync.Once

	resumed bool // at a position with its epoch
}

// quit gives the feed's place back and tells the broker, at once (docs/start/from-the-reference.md#defects, D27). It
// wakes a reader, who still has to call close.
func (f *eventFeed) quit() {
	f.leave.Do(func() {
		f.e.r.Cancel(0)
		f.k.unreserve()
	})
}

// abandon is close while somebody may still look at what was read last.
func (f *eventFeed) abandon() {
	f.quit()
	f.e.fr.Abandon()
}

// close gives back what the feed holds. Nobody reads it any more.
func (f *eventFeed) close() {
	f.quit()
	f.e.fr.Close()
}

// openFeed subscribes. A context without a deadline is bounded by the request timeout.
func (c *Client) openFeed(ctx context.Context, namespace, stream string, start startPoint) (*eventFeed, error) {
	request := func(out []byte) []byte {
		return start.request(out, c.o.tenant, namespace, stream)
	}
	if n := len(request(nil)) - codec.HeaderLen; n > c.o.maxFrame {
		return nil, fmt.Errorf("%w: subscribe of %d bytes, limit %d", ErrFrameTooLarge, n, c.o.maxFrame)
	}
	// A start position needs a broker that knows them: others would silently begin at the tail
	// (docs/protocol/session.md#negotiation). So does an epoch.
	positioned := start.Kind == codec.StartEarliest || start.Kind == codec.StartOffset
	pipelined := request
	if positioned {
		pipelined = nil
	}
	f, err := c.obtainFeed(ctx, pipelined, func(ctl *control) (uint64, error) {
		if start.resume && ctl.ext&codec.ExtGaps == 0 {
			return 0, fmt.Errorf("%w: resuming at a position", ErrUnsupported)
		}
		if start.since > 0 && ctl.ext&codec.ExtTime == 0 {
			return 0, fmt.Errorf("%w: a time to start at", ErrUnsupported)
		}
		return ctl.subscribe(positioned, request)
	})
	if err == nil {
		f.resumed = start.resume
	}
	return f, err
}

// A feedRequest asks for an event stream on a control stream that was opened for it, and returns the id of the former.
type feedRequest func(*control) (id uint64, err error)

// obtainFeed has ask carry out its exchange on a connection that has a place for one more event stream, and sends
// pipelined, unless it is nil, together with auth. A context without a deadline is bounded by the request timeout.
func (c *Client) obtainFeed(ctx context.Context, pipelined func([]byte) []byte, ask feedRequest) (*eventFeed, error) {
	bounded, cancel := c.bound(ctx)
	defer cancel()
	k, err := c.eventConn(bounded)
	if err != nil {
		return nil, err
	}
	// The exchange goes on when the caller gives up: only its end tells which event stream nobody wants any more.
	type result struct {
		f   *eventFeed
		err error
	}
	done := make(chan result)
	timeout := c.o.requestTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(timeout, time.Until(deadline))
	}
	carryOut := func() {
		ctx, cancel := context.WithTimeoutCause(c.ctx, timeout, ErrTimeout)
		defer cancel()
		f, err := k.openFeed(ctx, pipelined, ask)
		if err != nil {
			k.unreserve()
		}
		select {
		case done <- result{f, err}:
		case <-bounded.Done():
			if f != nil {
				f.close()
			}
		}
	}
	if err := k.start(carryOut); err != nil {
		k.unreserve()
		return nil, err
	}
	select {
	case r := <-done:
		return r.f, r.err
	case <-bounded.Done():
		return nil, context.Cause(bounded)
	}
}

// openFeed carries an exchange out and waits for the event stream (docs/protocol/session.md#the-exchange).
func (k *conn) openFeed(ctx context.Context, pipelined func([]byte) []byte, ask feedRequest) (*eventFeed, error) {
	ctl, err := k.openControl(ctx, pipelined)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = ctl.s.Recv().SetReadDeadline(past)
		_ = ctl.s.Send().SetWriteDeadline(past)
	})
	defer stop()
	id, err := ask(ctl)
	ctl.abandon()
	if err == nil {
		var e *eventStream
		if e, err = k.awaitEvents(ctx, id); err == nil {
			return &eventFeed{k: k, id: id, e: e, ext: ctl.ext}, nil
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, err
}

// subscribe sends what has not been sent yet, finishes the stream and reads the reply.
func (ctl *control) subscribe(positioned bool, request func([]byte) []byte) (id uint64, err error) {
	if positioned {
		if ctl.flags&codec.FlagEventOffsets == 0 {
			return 0, fmt.Errorf("%w: start positions", ErrUnsupported)
		}
		if err := ctl.write(request(nil)); err != nil {
			return 0, err
		}
	}
	// The broker may have stopped reading already: that is not the end of its reply
	// (docs/protocol/session.md#the-end-of-a-stream).
	_ = ctl.s.Send().Close()
	if err := ctl.read(); err != nil {
		return 0, err
	}
	m := &ctl.msg
	switch m.Type {
	case codec.MsgSubscribed:
		return m.SubscriptionID, nil
	case codec.MsgSubscribeCursorError:
		return 0, &CursorError{TooOld: m.Reason == codec.CursorTooOld, Requested: m.Requested, Available: m.Available}
	case codec.MsgError:
		return 0, &BrokerError{string(m.Text)}
	default:
		return 0, fmt.Errorf("%w: %v in answer to subscribe", ErrProtocol, m.Type)
	}
}
