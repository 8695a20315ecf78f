package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// requestStream is one authenticated control stream on which publishes and cache calls are pipelined. Writers take
// turns; one goroutine reads the replies. Publish acknowledgements are matched by request id and may come in any order;
// cache errors carry no id, so cache replies are matched in the order of the requests (docs/protocol/session.md#cache).
//
//	open ──┬── retire ──▶ retired ──┐         retire: the broker reads no further
//	       ├── move ────▶ moving ───┼──▶ dead    move: another stream takes its place, before its token ends
//	       └── fail ────────────────┘            fail: it is lost, or breaks the protocol
//
// Only while it is open it takes requests, and until it is dead it hears replies. done is closed, and err says why,
// when it is open no more. A request takes these steps, each in a file of its own:
//
//	expectAck, expectCache   requestexpect.go   who waits for which reply
//	turn, write              requestwrite.go    one frame, whatever ends meanwhile
//	post, flush              requestgather.go   small frames of many callers in one write
//	read, settle             requestread.go     the reply ends the call
//
// unacknowledged.go knows what became of publishes that ask for no reply, renew.go replaces the stream.
type requestStream struct {
	k       *conn
	ctl     *control
	slot    *streamSlot // that it is opened for
	serial  uint64      // no other stream of the client has it
	writing lock
	done    chan struct{} // closed when the stream takes no more requests

	compressor compressor
	gather     gather

	sweeper  *time.Timer   // ends asynchronous publishes whose acknowledgement is overdue
	renewal  *time.Timer   // starts when the stream is put into its slot; nil if its token has no known end
	watchdog *time.Timer   // ends a write that has no deadline of its own; the holder of writing starts and stops it
	fired    chan struct{} // capacity 2: what ended a write says so when it is through

	mu      sync.Mutex // guards all below
	nextID  uint64
	acks    map[uint64]*call
	cache   []*call       // oldest first
	idle    chan struct{} // closed when no reply is owed any more; nil while nobody wants to know
	err     error         // why the stream takes no more requests
	dead    bool          // no more replies either
	sweeps  bool          // the sweeper runs
	sends   uint64        // publishes without an acknowledgement
	covered uint64        // how many, from the first on, a later acknowledgement covers, or are known to be in doubt
	sender  *Publisher    // of the last one
	lost    bool          // the stream was, with those after lostAt
	lostAt  uint64
}

// openRequestStream opens and authenticates a stream for a slot and starts its reader.
func (k *conn) openRequestStream(ctx context.Context, s *streamSlot) (*requestStream, error) {
	return withToken(ctx, k.c, func(token string) (*requestStream, error) { return k.openRequestStreamWith(ctx, token, s) })
}

// openRequestStreamWith is openRequestStream with a token.
func (k *conn) openRequestStreamWith(ctx context.Context, token string, s *streamSlot) (*requestStream, error) {
	ctl, err := k.openControlWith(ctx, token, nil)
	if err != nil {
		return nil, err
	}
	r := &requestStream{
		k: k, ctl: ctl, writing: newLock(), done: make(chan struct{}), acks: make(map[uint64]*call),
		fired: make(chan struct{}, 2), slot: s, serial: k.c.streams.Add(1),
	}
	r.watchdog = time.AfterFunc(time.Hour, func() {
		_ = ctl.s.Send().SetWriteDeadline(past)
		r.fired <- struct{}{}
	})
	r.watchdog.Stop()
	r.sweeper = time.AfterFunc(time.Hour, func() { _ = k.start(r.sweep) }) // a connection that ends has nothing to sweep
	r.sweeper.Stop()
	if err := k.start(r.read); err != nil {
		ctl.abandon()
		return nil, err
	}
	return r, nil
}

func (r *requestStream) broken() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// retire ends the stream for further requests, and the slot opens another one. The replies to those that were sent may
// still come: the broker stops reading where it ends a stream, and answers what it has read
// (docs/protocol/session.md#the-end-of-a-stream).
func (r *requestStream) retire(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.loseSendsLocked()
	r.err = err
	close(r.done)
	_ = r.ctl.s.Recv().SetReadDeadline(time.Now().Add(r.k.c.o.requestTimeout))
}

// fail breaks the stream: every request without a reply fails with err, and the slot opens another stream. Publishes
// that can be sent again wait for that.
func (r *requestStream) fail(err error) {
	for _, c := range r.end(err) {
		c.err, c.unread = err, errors.Is(err, errTokenOver)
		c.finish()
	}
	r.ctl.s.Send().Cancel(0)
	r.ctl.s.Recv().Cancel(0)
}

// end ends the stream, and returns the calls that end with it.
func (r *requestStream) end(err error) (over []*call) {
	r.slot.repeats.mu.Lock()
	defer r.slot.repeats.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return nil
	}
	r.dead = true
	if r.renewal != nil {
		r.renewal.Stop()
	}
	r.loseSendsLocked()
	if r.err == nil {
		r.err = err
		close(r.done)
	}
	over = r.cache
	var again []*call
	for _, c := range r.acks {
		if c.sequence > 0 && mayRepeat(err) {
			c.doubtful = c.doubtful || !errors.Is(err, errTokenOver)
			again = append(again, c)
		} else {
			over = append(over, c)
		}
	}
	r.cache, r.acks = nil, nil
	if !r.slot.keepLocked(again) {
		over = append(over, again...)
	}
	r.quietLocked() // when what can be sent again is kept
	return over
}

// movingLocked reports whether another stream is to take the place of this one, which still lives.
func (r *requestStream) movingLocked() bool { return errors.Is(r.err, errMoved) && !r.dead }

// moving is movingLocked without the lock.
func (r *requestStream) moving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.movingLocked()
}

// errMoved is why a stream takes no more requests that is being replaced by another one. Those that were about to use
// it take that.
var errMoved = fmt.Errorf("%w: request stream is being replaced", ErrDisconnected)

// errTokenOver is why a stream takes no more requests whose token has ended before it was replaced: that happens if the
// clocks differ, or a token is revoked. The broker has answered all that it has carried out, and what comes after that
// it has not read (docs/protocol/tokens.md#expiry). So requests without an answer go to another stream.
var errTokenOver = fmt.Errorf("%w: the token of the request stream has ended", ErrDisconnected)

// reason returns why the stream takes no more requests.
func (r *requestStream) reason() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
