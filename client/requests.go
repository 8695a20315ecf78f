package client

import (
	"context"
	"errors"
	"fmt"
	"os"
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

	watchdog *time.Timer   // ends a write that has no deadline of its own; whoever holds writing starts and stops it
	fired    chan struct{} // capacity 2: what ended a write says so when it is through

	mu      sync.Mutex // guards all below
	nextID  uint64
	acks    map[uint64]*call
	cache   []*call    // oldest first
	err     error      // why the stream takes no more requests
	dead    bool       // no more replies either
	sends   uint64     // publishes without an acknowledgement
	covered uint64     // how many of them, from the first on, an acknowledgement behind them covers, or are known to be in doubt
	sender  *Publisher // of the last one
}

// call is a request that waits for its reply.
type call struct {
	id       uint64
	want     codec.MessageType // of a cache request: what answers it, unless error does
	done     chan struct{}     // capacity 1
	err      error
	answered bool // by the broker; otherwise err is why no reply will come
	expected telemetry.Time
	timer    *time.Timer // of a request without a deadline
	value    []byte      // cache_get: a copy
	hit      bool
	binary   cacheReply // of a binary cache request
	owner    *pending   // of an asynchronous publish
	place    place      // of a cache request in JSON
}

// finish tells whoever waits that the call is over.
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
		return fmt.Errorf("%w: %w", ErrInDoubt, c.err)
	}
	return c.err
}

var callPool = sync.Pool{New: func() any {
	c := &call{done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	return c
}}

// startCall returns a call for a request, whose timer runs if ctx has no deadline. limit is the time that it has then, and
// 0 otherwise.
func (c *Client) startCall(ctx context.Context) (k *call, limit time.Duration) {
	k, _ = callPool.Get().(*call)
	k.err, k.answered, k.binary = nil, false, cacheReply{}
	if _, ok := ctx.Deadline(); !ok {
		limit = c.o.requestTimeout
		k.timer.Reset(limit)
	}
	return k, limit
}

// release gives the call back.
func (c *call) release() {
	c.timer.Stop()
	callPool.Put(c)
}

// openRequests opens and authenticates a stream and starts its reader.
func (k *conn) openRequests(ctx context.Context) (*requests, error) {
	ctl, err := k.openControl(ctx, nil)
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

// fail breaks the stream: every request without a reply fails with err, and the slot opens another stream.
func (r *requests) fail(err error) {
	r.mu.Lock()
	if r.dead {
		r.mu.Unlock()
		return
	}
	r.dead = true
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
	r.mu.Unlock()
	for _, c := range pending {
		c.err = err
		c.finish()
	}
	r.ctl.s.Send().Cancel(0)
	r.ctl.s.Recv().Cancel(0)
}

// loseSendsLocked notes for Flush that publishes without an acknowledgement may not have arrived. It is called before the
// stream looks broken: whoever finds it so finds the note too.
func (r *requests) loseSendsLocked() {
	if r.sends > r.covered {
		r.covered = r.sends
		r.k.c.sendsLost.Store(true)
	}
}

// noteSend counts a publish without an acknowledgement that was written.
func (r *requests) noteSend(p *Publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sends, r.sender = r.sends+1, p
	if r.err != nil {
		r.loseSendsLocked()
	}
}

// uncovered returns how many publishes without an acknowledgement there were, and who made the last of them; nil if they
// are covered.
func (r *requests) uncovered() (sends uint64, sender *Publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sends == r.covered {
		return 0, nil
	}
	return r.sends, r.sender
}

// cover notes that an acknowledgement has come behind so many of them.
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

// expectAck gives the call an id and expects its acknowledgement. It fails if the stream is broken.
func (r *requests) expectAck(c *call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.nextID++
	c.id = r.nextID
	c.expected = telemetry.Start()
	r.acks[c.id] = c
	return nil
}

// expectCache expects the reply to a cache request behind those that wait already. The caller holds r.writing, so that
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
	}
}

// take gives up on an acknowledgement, and reports whether it had not come yet: nobody else will end the call then.
func (r *requests) take(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, waiting := r.acks[id]
	delete(r.acks, id)
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

// errHalfFrame is why a stream takes no more requests on which a write was canceled halfway. Those that were about to use it
// have done nothing wrong, and nor has the broker: they take another stream.
var errHalfFrame = fmt.Errorf("%w: request stream broken by a canceled write", ErrDisconnected)

// write sends one frame, and takes at most limit for it unless that is 0. It fails without an effect when the context or
// the limit ends before anything was written, or when the stream takes no more requests; a frame of which a part was
// written breaks the stream. In all cases the broker cannot have read the request. The caller holds r.writing.
func (r *requests) write(ctx context.Context, frame []byte, limit time.Duration) error {
	if r.broken() { // maybe behind half a frame, which this one would complete
		return r.reason()
	}
	out := r.ctl.s.Send()
	if ctx.Done() == nil && limit == 0 {
		n, err := out.Write(frame)
		return r.writeError(n, frame, err)
	}
	if len(frame) <= tryWriteMax && out.TryWrite(frame) == nil {
		return nil
	}
	stop := func() bool { return true }
	fired := r.fired
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, func() {
			_ = out.SetWriteDeadline(past)
			fired <- struct{}{}
		})
	}
	if limit > 0 {
		r.watchdog.Reset(limit)
	}
	n, err := out.Write(frame)
	var cause error
	if limit > 0 && !r.watchdog.Stop() {
		<-fired
		cause = ErrTimeout
	}
	if !stop() {
		<-fired
		cause = context.Cause(ctx)
	}
	if cause == nil {
		return r.writeError(n, frame, err)
	}
	_ = out.SetWriteDeadline(never)
	switch {
	case err == nil || n == len(frame):
		return nil
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return cause
	case n == 0:
		return r.writeError(n, frame, err)
	}
	// The stream cannot carry anything behind half a frame, but what was sent before is still answered.
	r.retire(errHalfFrame)
	return cause
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
	return c
}
