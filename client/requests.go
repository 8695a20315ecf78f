package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// requests is one authenticated control stream on which publishes and cache calls are pipelined. Writers take turns;
// one goroutine reads the replies. Publish acknowledgements are matched by request id and may come in any order;
// cache errors carry no id, so cache replies are matched in the order of the requests (docs/protocol/session.md#cache).
type requests struct {
	k       *conn
	ctl     *control
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

// call is a request that waits for its reply.
type call struct {
	id       uint64
	want     codec.MessageType // of a cache request: what answers it, unless error does
	done     chan struct{}     // capacity 1
	err      error
	answered bool // by the broker; otherwise err is why no reply will come
	expected telemetry.Time
	deadline int64       // by the client's clock; 0 if the context has one
	timer    *time.Timer // of a request without a deadline
	value    []byte      // cache_get: a copy
	hit      bool
	binary   cacheReply // of a binary cache request
	owner    *pending   // of an asynchronous publish
	place    place      // of a cache request in JSON
}

// finish notifies the waiter that the call is over.
func (c *call) finish() {
	if c.owner != nil {
		c.owner.over()
	} else {
		c.done <- struct{}{}
	}
}

// outcome returns what a publish that was sent came to.
func (c *call) outcome() error {
	if c.err != nil && !c.answered {
		return inDoubt(c.err)
	}
	return c.err
}

var callPool = sync.Pool{New: func() any {
	c := &call{done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	return c
}}

// startCall returns a call for a request, whose timer runs if ctx has no deadline.
func (c *Client) startCall(ctx context.Context) *call {
	k, _ := callPool.Get().(*call)
	k.err, k.answered, k.binary = nil, false, cacheReply{}
	if k.deadline = c.deadline(ctx); k.deadline > 0 {
		k.timer.Reset(c.o.requestTimeout)
	}
	return k
}

// deadline returns the time, by the client's clock, at which a call that begins now ends if ctx has no deadline, and 0
// if it has one.
func (c *Client) deadline(ctx context.Context) int64 {
	if _, ok := ctx.Deadline(); ok {
		return 0
	}
	return c.now() + int64(c.o.requestTimeout)
}

// release gives the call back.
func (c *call) release() {
	c.timer.Stop()
	callPool.Put(c)
}

// openRequests opens and authenticates a stream and starts its reader.
func (k *conn) openRequests(ctx context.Context) (*requests, error) {
	token, err := k.c.token(ctx)
	if err != nil {
		return nil, err
	}
	return k.openRequestsWith(ctx, token)
}

// openRequestsWith is openRequests with a token.
func (k *conn) openRequestsWith(ctx context.Context, token string) (*requests, error) {
	ctl, err := k.openControlWith(ctx, token, nil)
	if err != nil {
		return nil, err
	}
	r := &requests{
		k: k, ctl: ctl, writing: newLock(), done: make(chan struct{}), acks: make(map[uint64]*call),
		fired: make(chan struct{}, 2),
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

func (r *requests) broken() bool {
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
func (r *requests) retire(err error) {
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

// sweepEvery returns the period at which overdue acknowledgements are looked for.
func (c *Client) sweepEvery() time.Duration {
	return min(max(c.o.requestTimeout/8, 5*time.Millisecond), 250*time.Millisecond)
}

// sweep ends the asynchronous publishes whose acknowledgement is overdue. The goroutine that takes a call out of r.acks
// ends it, so it meets no acknowledgement of the same moment.
func (r *requests) sweep() {
	now := r.k.c.now()
	var overdue []*call
	r.mu.Lock()
	r.sweeps = false
	for id, c := range r.acks {
		switch {
		case c.owner == nil:
		case c.deadline <= now:
			delete(r.acks, id)
			overdue = append(overdue, c)
		default:
			r.sweeps = true
		}
	}
	if r.sweeps {
		r.sweeper.Reset(r.k.c.sweepEvery())
	}
	r.quietLocked()
	r.mu.Unlock()
	slices.SortFunc(overdue, func(a, b *call) int { return cmp.Compare(a.id, b.id) })
	for _, c := range overdue {
		c.err = ErrTimeout
		c.finish()
	}
}

// quietLocked tells who waits for it when no reply is owed any more.
func (r *requests) quietLocked() {
	if r.idle != nil && len(r.acks) == 0 && len(r.cache) == 0 {
		close(r.idle)
		r.idle = nil
	}
}

// awaitIdle waits until no reply is owed any more, because all have come or the stream has failed.
func (r *requests) awaitIdle(ctx context.Context) error {
	r.mu.Lock()
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	idle := r.idle
	r.quietLocked()
	r.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fail breaks the stream: every request without a reply fails with err, and the slot opens another stream.
func (r *requests) fail(err error) {
	r.mu.Lock()
	if r.dead {
		r.mu.Unlock()
		return
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
	pending := r.cache
	for _, c := range r.acks {
		pending = append(pending, c)
	}
	r.cache, r.acks = nil, nil
	r.quietLocked()
	r.mu.Unlock()
	for _, c := range pending {
		c.err = err
		c.finish()
	}
	r.ctl.s.Send().Cancel(0)
	r.ctl.s.Recv().Cancel(0)
}

// loseSendsLocked notes for Flush that publishes without an acknowledgement may not have arrived. It is called before
// the stream looks broken: a caller that finds it broken finds the note too.
func (r *requests) loseSendsLocked() {
	if r.sends > r.covered {
		if !r.lost {
			r.lost, r.lostAt = true, r.covered
		}
		r.covered = r.sends
		r.k.c.losses.note(errSendsLost)
	}
}

// fate reports what is known of a publish without an acknowledgement, by its number: that the broker has it, or that it
// may be lost with the stream.
func (r *requests) fate(send uint64) (covered, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lost = r.lost && send > r.lostAt
	return send <= r.covered && !lost, lost
}

// noteSend counts a publish without an acknowledgement that was written. The caller has its turn. While the stream is
// being moved, settleAll takes its turn afterwards and sees to it.
func (r *requests) noteSend(p *Publisher) {
	r.mu.Lock()
	r.sends, r.sender = r.sends+1, p
	n := r.sends
	if r.err != nil && !r.movingLocked() {
		r.loseSendsLocked()
	}
	r.mu.Unlock()
	p.sent.note(r, n)
}

// uncovered returns how many publishes without an acknowledgement there were, and who made the last of them; nil if
// they are covered.
func (r *requests) uncovered() (sends uint64, sender *Publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sends == r.covered {
		return 0, nil
	}
	return r.sends, r.sender
}

// cover notes that an acknowledgement has come after so many of them.
func (r *requests) cover(sends uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.covered = max(r.covered, sends)
}

// reserveID returns the next request id.
func (r *requests) reserveID() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextID++
	return r.nextID
}

// movingLocked reports whether another stream is to take the place of this one, which still lives.
func (r *requests) movingLocked() bool { return errors.Is(r.err, errMoved) && !r.dead }

// moving is movingLocked without the lock.
func (r *requests) moving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.movingLocked()
}

// expectAck gives the call an id and expects its acknowledgement. It fails if the stream is broken.
func (r *requests) expectAck(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.nextID++
	c.id, c.err, c.answered = r.nextID, nil, false // of an attempt before this
	c.expected = telemetry.Start()
	r.acks[c.id] = c
	if c.owner != nil && !r.sweeps {
		r.sweeps = true
		r.sweeper.Reset(r.k.c.sweepEvery())
	}
	return nil
}

// expectCache expects the reply to a cache request after those that wait already. The caller holds r.writing, so that
// requests are written in that order.
func (r *requests) expectCache(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	c.expected = telemetry.Start()
	r.cache = append(r.cache, c)
	return nil
}

// unexpectCache takes back the newest expectation. The caller holds r.writing.
func (r *requests) unexpectCache(c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := len(r.cache) - 1; last >= 0 && r.cache[last] == c {
		r.cache = r.cache[:last]
		r.quietLocked()
	}
}

// take gives up on an acknowledgement, and reports whether it had not come yet: nobody else will end the call then.
func (r *requests) take(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, waiting := r.acks[id]
	delete(r.acks, id)
	r.quietLocked()
	return waiting
}

// forget gives up on an acknowledgement. It reports false if the reply has come meanwhile and is in the call.
func (r *requests) forget(c *call) bool {
	waiting := r.take(c.id)
	if !waiting {
		<-c.done
	}
	return waiting
}

// tryWriteMax is the size up to which a frame is first offered to QUIC without blocking.
const tryWriteMax = 1024

// errMoved is why a stream takes no more requests that is being replaced by another one. Those that were about to use
// it take that.
var errMoved = fmt.Errorf("%w: request stream is being replaced", ErrDisconnected)

// turn waits until it is the caller's turn to write, at most until the deadline unless that is 0.
func (r *requests) turn(ctx context.Context, deadline int64) error {
	if ctx.Err() == nil && r.writing.try() {
		return nil
	}
	if deadline > 0 {
		bounded, cancel := context.WithTimeoutCause(ctx, time.Duration(deadline-r.k.c.now()), ErrTimeout)
		defer cancel()
		ctx = bounded
	}
	return r.writing.acquire(ctx)
}

// write sends one frame. The caller has its turn, which write ends. It fails without an effect when the context or the
// deadline, unless that is 0, ends before anything was written, or when the stream takes no more requests: the broker
// cannot have read the frame then. A frame of which a part was written is finished, whatever ends: others, who have
// done nothing wrong, write after it. Such a write fails with [ErrInDoubt] and the reason. sender is who publishes the
// frame without an acknowledgement, and nil if it is anything else.
func (r *requests) write(ctx context.Context, frame []byte, deadline int64, sender *Publisher) error {
	kept, err := r.writeInTurn(ctx, frame, deadline, sender)
	if !kept {
		r.writing.release()
	}
	return err
}

// writeInTurn is write, but the turn is the caller's to end unless it is kept to finish the frame.
func (r *requests) writeInTurn(ctx context.Context, frame []byte, deadline int64, sender *Publisher) (kept bool, err error) {
	if r.broken() {
		return false, r.reason()
	}
	rest, err := r.writeUntil(ctx, frame, deadline)
	if sender != nil && (err == nil || len(rest) > 0) {
		r.noteSend(sender) // before the turn ends: what settles the stream takes the next one
	}
	if len(rest) == 0 {
		return false, err
	}
	err = fmt.Errorf("%w: %w", ErrInDoubt, err)
	rest = slices.Clone(rest)
	if r.k.start(func() { r.finish(rest) }) != nil {
		r.fail(r.k.lost())
		return false, err
	}
	return true, err
}

// finish writes the rest of a frame, and ends the turn of the caller that began it.
func (r *requests) finish(rest []byte) {
	defer r.writing.release()
	n, err := r.ctl.s.Send().Write(rest)
	_ = r.writeError(n, rest, err) // the stream knows it
}

// writeUntil writes a frame until the context or the deadline ends. It fails with the reason for that, and returns what
// is left of a frame that has begun. Any other failure is the stream's, and leaves nothing.
func (r *requests) writeUntil(ctx context.Context, frame []byte, deadline int64) (rest []byte, err error) {
	out := r.ctl.s.Send()
	if ctx.Done() == nil && deadline == 0 {
		n, err := out.Write(frame)
		return nil, r.writeError(n, frame, err)
	}
	if len(frame) <= tryWriteMax && out.TryWrite(frame) == nil {
		return nil, nil
	}
	stop := func() bool { return true }
	fired := r.fired
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, func() {
			_ = out.SetWriteDeadline(past)
			fired <- struct{}{}
		})
	}
	if deadline > 0 {
		r.watchdog.Reset(time.Duration(deadline - r.k.c.now()))
	}
	n, err := out.Write(frame)
	var cause error
	if deadline > 0 && !r.watchdog.Stop() {
		<-fired
		cause = ErrTimeout
	}
	if !stop() {
		<-fired
		cause = context.Cause(ctx)
	}
	if cause != nil {
		_ = out.SetWriteDeadline(never)
		switch {
		case n == len(frame):
			return nil, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && n == 0:
			return nil, cause
		case errors.Is(err, os.ErrDeadlineExceeded):
			return frame[n:], cause
		}
	}
	return nil, r.writeError(n, frame, err)
}

// writeError ends the stream after a write that failed, and says why. A frame that QUIC has taken in full may have been
// sent, whatever became of the stream afterwards: the write has not failed then.
func (r *requests) writeError(n int, frame []byte, err error) error {
	if err == nil {
		return nil
	}
	err = r.k.streamError("sending a request", err)
	if stoppedReading(err) {
		r.retire(err)
	} else {
		r.fail(err)
	}
	if n == len(frame) {
		return nil
	}
	return r.reason() // the reader may know better why
}

// reason returns why the stream takes no more requests.
func (r *requests) reason() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// read matches replies with requests until the stream ends. It is the only goroutine that reads the stream, and the
// one that returns its chunk.
func (r *requests) read() {
	defer r.ctl.fr.Close()
	for {
		f, err := r.ctl.fr.Next()
		if err != nil {
			r.fail(r.k.streamError("request stream ended", err))
			return
		}
		telemetry.Add(telemetry.ClientFramesIn, 1)
		telemetry.Add(telemetry.ClientBytesIn, len(f.Bytes))
		start := telemetry.Start()
		r.k.heard.Store(r.k.c.now())
		switch f.Header.Flags {
		case codec.LayoutPublishAck:
			err = r.ack(f.Bytes[codec.HeaderLen:])
		case codec.LayoutJSON:
			err = r.reply(f.Bytes[codec.HeaderLen:])
		case codec.LayoutExtension:
			err = r.cacheReply(f.Bytes[codec.HeaderLen:])
		default:
			err = fmt.Errorf("%w: reply with flags %#04x", ErrProtocol, uint16(f.Header.Flags))
		}
		telemetry.Observe(telemetry.StageClientReply, start)
		if err != nil {
			telemetry.Add(telemetry.ClientDecodeErrors, 1)
			r.fail(err)
			return
		}
	}
}

func (r *requests) ack(payload []byte) error {
	a, err := codec.ParsePublishAck(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if a.OK {
		r.settle(a.RequestID, nil)
	} else {
		r.settle(a.RequestID, &BrokerError{string(a.Message)})
	}
	return nil
}

// settle ends the publish with that id. An id that nobody waits for any more is ignored.
func (r *requests) settle(id uint64, err error) {
	r.mu.Lock()
	c := r.acks[id]
	delete(r.acks, id)
	r.quietLocked()
	r.mu.Unlock()
	if c != nil {
		telemetry.Observe(telemetry.StageClientAckWait, c.expected)
		telemetry.Add(telemetry.ClientAcks, 1)
		c.err, c.answered = err, true
		c.finish()
	}
}

func (r *requests) reply(payload []byte) error {
	m := &r.ctl.msg
	if err := codec.ParseMessage(payload, m); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	switch m.Type {
	case codec.MsgPublishOK:
		r.settle(m.RequestID, nil)
		return nil
	case codec.MsgPublishError:
		r.settle(m.RequestID, &BrokerError{string(m.Text)})
		return nil
	case codec.MsgCacheOK, codec.MsgCacheValue:
		c := r.oldestCache()
		if c == nil || m.Type != c.want || (m.HasRequestID && m.RequestID != c.id) {
			err := fmt.Errorf("%w: cache reply that nobody asked for", ErrProtocol)
			r.fail(err) // before a caller hears of it: the next call has to find another stream
			if c != nil {
				c.err = err
				c.finish()
			}
			return err
		}
		telemetry.Observe(telemetry.StageClientCacheWait, c.expected)
		if m.Type == codec.MsgCacheValue && m.HasValue {
			c.value, c.hit = append([]byte{}, m.Value...), true
		}
		c.finish()
		return nil
	case codec.MsgError:
		err := &BrokerError{string(m.Text)}
		if c := r.oldestCache(); c != nil {
			c.err = err
			c.finish()
			return nil
		}
		return err // it concerns the stream
	default:
		return fmt.Errorf("%w: %v in answer to a request", ErrProtocol, m.Type)
	}
}

func (r *requests) oldestCache() *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cache) == 0 {
		return nil
	}
	c := r.cache[0]
	r.cache[0] = nil
	r.cache = r.cache[1:]
	r.quietLocked()
	return c
}
