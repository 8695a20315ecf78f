package broker

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

// cacheWatch tells one client of the changes of one cache, on an event stream of its own
// (docs/protocol/extensions.md#cache). It is a cursor in the cache's log (watchlog.go). While there is nothing to tell
// it has no goroutine and no buffer; when there is, a worker writes it, if the stream takes it at once (watchserve.go).
// Otherwise it is busy until one of these goes on with it:
//
//	          worker: served in its turn
//	                    │
//	  ┌─────────────────┼──────────────────┐
//	settles          blocks             stalled
//	one for each     up to 64 for each  tried again
//	connection       connection         by a timer
type cacheWatch struct {
	c     *conn
	t     *tenant // that is charged for it
	id    uint64
	out   *quicx.SendStream
	cache *cache.Cache
	log   *cacheLog // nil before the watch has joined it, set under conn.mu as well

	token   token // that it was made with, and
	expires int64 // when that expires; 0 if it has; guarded by conn.mu

	// Guarded by the log's lock.
	cursor  logCursor
	index   int    // in watchRound.watches
	queued  bool   // in watchRound.ready
	busy    bool   // somebody writes it, or will
	again   bool   // its turn came while it was busy
	lost    bool   // the client has not been told yet that changes are missing
	left    bool   // it is no watcher any more
	pending int    // bytes that QUIC may hold and not have in packets
	writing bool   // by writeBlocking
	ended   string // the text that says why nothing more comes; before the watch has joined guarded by conn.mu
	dated   bool   // the time to hear of that is limited
	endBy   time.Time

	// What writeBlocking has not finished, charged to the connection; of the one who has set writing.
	rest       *buf.Chunk
	restBytes  []byte // of it
	restEvents int
	restEnds   bool // nothing follows it
}

// watchBytes is what a watch costs that is idle: its state, and an event stream of QUIC.
const watchBytes = 4 << 10

// cacheWatch carries a watch out. It lives as long as its event stream, whatever happens to the control stream.
func (ctl *control) cacheWatch(c *cache.Cache, r *codec.CacheRequest) outcome {
	if !ctl.tenant.may(&ctl.tenant.subscribes, tenantSubscribes) {
		return ctl.refuseCache(r.RequestID, codec.SubscribeRateReached.Text)
	}
	if !ctl.tenant.take(kindWatches, tenantWatches) {
		return ctl.refuseCache(r.RequestID, codec.WatchesReached.Text)
	}
	w := &cacheWatch{c: ctl.c, t: ctl.tenant, token: ctl.token, expires: ctl.expires.Load()}
	if err := ctl.c.held.Charge(watchBytes); err != nil {
		ctl.tenant.give(kindWatches)
		ctl.c.refuseRead(err)
		return ctl.refuseCache(r.RequestID, codec.WatchMemoryReached.Text)
	}
	if !ctl.c.addWatch(w) {
		ctl.c.held.Release(watchBytes)
		ctl.tenant.give(kindWatches)
		return ctl.refuseCache(r.RequestID, codec.MaxSubscriptions.Text)
	}
	if ctl.flush() != nil { // the replies that are owed do not wait for the event stream
		ctl.c.forgetWatch(w)
		return errorEnd
	}
	var err error
	if w.out, err = ctl.c.openEvents(codec.AppendEventStreamHello(nil, w.id)); err != nil {
		ctl.c.forgetWatch(w)
		return ctl.refuseCache(r.RequestID, codec.OpenUniStream.Text)
	}
	ctl.c.mu.Lock()
	joined := ctl.c.b.watchLogs.join(c, ctl.identity.Tenant, w)
	ctl.c.mu.Unlock()
	if !joined {
		ctl.c.forgetWatch(w)
		w.out.Cancel(0)
		return ctl.cacheUnknown(r)
	}
	ctl.c.b.metrics.watches.Add(1)
	ctl.c.writers.Add(1)
	context.AfterFunc(w.out.Context(), w.gone)
	ctl.cacheDone(r.RequestID, w.id, true)
	return keep
}

// gone ends the watch when its stream has ended, for whatever reason.
func (w *cacheWatch) gone() {
	defer w.c.writers.Done()
	w.c.b.watchLogs.leave(w)
	w.c.forgetWatch(w)
	w.c.b.metrics.watchesEnded.Add(1)
}

// addWatch takes a place and an id on the connection, as a subscription does. It reports false if there is none.
func (c *conn) addWatch(w *cacheWatch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fullLocked() {
		return false
	}
	w.id = c.newIDLocked()
	c.watches[w.id] = w
	switch {
	case c.draining:
		w.finishWith(shutdownReason)
	case !c.trustsLocked(w.token):
		w.finishWith(codec.AuthFailed.Text)
	}
	return true
}

func (c *conn) forgetWatch(w *cacheWatch) {
	c.mu.Lock()
	delete(c.watches, w.id)
	c.mu.Unlock()
	c.held.Release(watchBytes)
	w.t.give(kindWatches)
}

// endWatches lets every watch of the connection finish.
func (c *conn) endWatches(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watches {
		w.finishWith(why)
	}
}

// finishWith lets the watch end after the changes that there are, and tells the client why. A client that does not
// read gets Config.ReplyTimeout to hear of it. conn.mu is held.
func (w *cacheWatch) finishWith(why string) {
	if w.log != nil {
		w.log.mu.Lock()
		defer w.log.mu.Unlock()
	}
	if w.ended != "" {
		return
	}
	w.ended = why
	if w.log != nil {
		w.log.readyLocked(w)
	}
}

// whyLocked returns why the watch ends, or an empty text.
func (w *cacheWatch) whyLocked() string {
	if w.ended != "" {
		return w.ended
	}
	return w.log.round.ended
}

// limitLocked sees to it that a watch that ends has a limited time for that. set has to be called if it is not nil,
// when the log's lock is free.
func (w *cacheWatch) limitLocked() (set func()) {
	if w.dated || w.whyLocked() == "" {
		return nil
	}
	w.dated, w.endBy = true, time.Now().Add(w.c.b.cfg.ReplyTimeout)
	return func() { _ = w.out.SetWriteDeadline(w.endBy) }
}

// lostFrame says that changes are missing.
var lostFrame = appendCacheEvents(codec.CacheEvent{Kind: codec.CacheLost})

// appendCacheEvents makes a frame of one event.
func appendCacheEvents(e codec.CacheEvent) []byte {
	return codec.AppendCacheEvent(codec.AppendCacheEvents(nil, codec.CacheEventLen+len(e.Key)), e)
}

func endedFrame(why string) []byte {
	return appendCacheEvents(codec.CacheEvent{Kind: codec.CacheEnded, Key: []byte(why)})
}

// serveLocked writes what there is for one packet, if the stream takes it at once. The log's lock is held when it is
// called, and not when it returns.
func (w *cacheWatch) serveLocked(f *watchFrame) {
	l := w.log
	if w.left {
		l.mu.Unlock()
		return
	}
	if set := w.limitLocked(); set != nil {
		defer set()
	}
	if w.busy {
		w.again = true
		l.mu.Unlock()
		return
	}
	if w.rest != nil {
		w.busy = true
		l.parkLocked(w)
		w.c.writers.Add(1)
		l.mu.Unlock()
		w.c.watching.block(w)
		return
	}
	part, lost, ok := l.takeLocked(&w.cursor, w.c.b.watchLogs.inline)
	w.lost = w.lost || lost
	why := ""
	behind := l.behindLocked(&w.cursor)
	if !behind {
		why = w.whyLocked()
	}
	if !ok && !w.lost && why == "" {
		l.mu.Unlock()
		return
	}
	w.busy = true
	f.served++
	first, pending, lost := w.cursor.seq-uint64(part.events), w.pending, w.lost
	l.mu.Unlock()

	var frames [3][]byte
	n := 0
	if lost {
		frames[0] = lostFrame
		n += len(lostFrame)
	}
	if ok {
		frames[1] = f.make(l, first, &part)
		part.chunk.Release()
		n += len(frames[1])
	}
	if why != "" {
		frames[2] = endedFrame(why)
		n += len(frames[2])
	}
	var err error
	written := 0
	settle := false
	switch {
	case n > watchInline || behind && w.c.watching.spare():
		err = quicx.ErrWouldBlock
	case pending+n > watchInline:
		settle = true
	default:
		for i, frame := range frames {
			if frame == nil {
				continue
			}
			if err = w.out.TryWrite(frame); err != nil {
				break
			}
			written = i + 1
			pending += len(frame)
		}
	}
	l.mu.Lock()
	w.pending = pending
	if written > 0 {
		w.lost = false
	}
	if ok {
		if written > 1 {
			l.doneLocked(&part)
		} else {
			l.backLocked(&w.cursor, &part)
		}
	}
	switch {
	case w.left:
		l.mu.Unlock()
		return
	case settle || errors.Is(err, quicx.ErrWouldBlock):
		w.c.writers.Add(1) // as long as it has not left, the connection waits for it
		l.parkLocked(w)
		l.mu.Unlock()
		if settle {
			w.c.watching.settle(w)
		} else {
			w.c.watching.block(w)
		}
	case err != nil:
		l.mu.Unlock()
		w.out.Cancel(0)
	case why != "":
		l.mu.Unlock()
		_ = w.out.Close()
	default:
		w.idleLocked(behind)
		l.mu.Unlock()
	}
	if written > 0 {
		w.c.moved.Add(1)
		if written > 1 && ok {
			w.c.b.metrics.watchEvents.Add(uint64(part.events))
		}
	}
}

// idleLocked says that nobody writes the watch at present. It is served again if more is set or its turn has passed.
func (w *cacheWatch) idleLocked(more bool) {
	w.busy = false
	w.log.unparkLocked(w)
	if w.again || more {
		w.again = false
		w.log.readyLocked(w)
	}
}

func (w *cacheWatch) retry() {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.idleLocked(true)
}

// watchWriters writes the watches of one connection that cannot be written at once.
type watchWriters struct {
	mu       sync.Mutex    // guards all below; after the lock of a log
	settling []*cacheWatch // wait until what was written is in packets; one goroutine serves them if there are any
	blocked  int           // goroutines that write one watch each
	patience time.Duration // for how long each of them may block; 0 is blockTime
	stalled  []*cacheWatch // for which there is none, or no memory; served by timer and by those that come free
	timer    *time.Timer   // runs while there are stalled ones
}

const (
	// maxBlockedWatches is how many watches of one connection may be in a write that blocks.
	maxBlockedWatches = 64
	// Stalled watches are looked at every watchRetry, watchRetries of a connection at a time.
	watchRetry   = 100 * time.Millisecond
	watchRetries = 256
	// settleTime is how long one watch may keep the others waiting that want to be settled.
	settleTime = 100 * time.Millisecond
	// blockTime is how long one watch may be in a write that blocks while others wait for that. The time doubles up to
	// maxBlockTime while the connection takes nothing at all.
	blockTime    = 100 * time.Millisecond
	maxBlockTime = time.Second
	// blockedWrite is how many bytes of events a write that blocks takes, or one event.
	blockedWrite = 8 << 10
)

// spare reports whether one more watch may be in a write that blocks.
func (ww *watchWriters) spare() bool {
	ww.mu.Lock()
	defer ww.mu.Unlock()
	return ww.blocked < maxBlockedWatches
}

// settle waits until what w has written at once is in packets. That hardly ever depends on what the peer reads, so one
// goroutine is enough for all watches of a connection. It takes over a count of conn.writers.
func (ww *watchWriters) settle(w *cacheWatch) {
	ww.mu.Lock()
	ww.settling = append(ww.settling, w)
	runs := len(ww.settling) > 1
	ww.mu.Unlock()
	if runs {
		w.c.writers.Done() // the goroutine has one
		return
	}
	go func() {
		defer w.c.writers.Done()
		for done := 0; ; {
			ww.mu.Lock()
			if done == len(ww.settling) {
				ww.settling = nil
				ww.mu.Unlock()
				return
			}
			w := ww.settling[done]
			ww.settling[done] = nil
			done++
			ww.mu.Unlock()
			w.settle()
		}
	}()
}

// settle waits until what was written at once is in packets, but not for long: that may take credit of the peer, if
// what was written has used up all of it.
func (w *cacheWatch) settle() {
	_ = w.out.SetWriteDeadline(time.Now().Add(settleTime))
	err := w.out.Settle()
	slow := errors.Is(err, os.ErrDeadlineExceeded)
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	_ = w.out.SetWriteDeadline(w.endBy) // the zero time while it does not end
	switch {
	case slow && !w.left:
		w.c.writers.Add(1)
		w.c.watching.block(w)
	case err != nil:
		w.out.Cancel(0)
	default:
		w.pending = 0
		w.idleLocked(true)
	}
}

// block writes w on a goroutine of its own. It takes over a count of conn.writers.
func (ww *watchWriters) block(w *cacheWatch) {
	ww.mu.Lock()
	if ww.blocked == maxBlockedWatches {
		ww.stallLocked(w)
		ww.mu.Unlock()
		w.c.writers.Done()
		return
	}
	ww.blocked++
	ww.mu.Unlock()
	go func() {
		defer w.c.writers.Done()
		result := w.writeBlocking()
		ww.mu.Lock()
		ww.blocked--
		var next *cacheWatch
		if result != blockedNoMemory && len(ww.stalled) > 0 {
			next = ww.stalled[0]
			ww.stalled = ww.stalled[1:]
		}
		if result != blockedDone {
			ww.stallLocked(w)
		}
		ww.mu.Unlock()
		if next != nil {
			next.retry()
		}
	}()
}

// others reports whether other watches wait for a write that blocks.
func (ww *watchWriters) others() bool {
	ww.mu.Lock()
	defer ww.mu.Unlock()
	return len(ww.stalled) > 0
}

// try runs a write that blocks, or has a part of it made, for a limited time. It reports whether that is over.
func (w *cacheWatch) try(write func() error) (late bool, err error) {
	ww := &w.c.watching
	ww.mu.Lock()
	limit := max(ww.patience, blockTime)
	ww.mu.Unlock()
	before := w.c.moved.Load()
	_ = w.out.SetWriteDeadline(time.Now().Add(limit))
	err = write()
	late = errors.Is(err, os.ErrDeadlineExceeded)
	ww.mu.Lock()
	defer ww.mu.Unlock()
	switch {
	case !late || w.c.moved.Load() != before:
		ww.patience = blockTime
	case ww.patience <= limit: // or one that began at the same time has doubled it
		ww.patience = min(2*limit, maxBlockTime)
	}
	return late, err
}

func (ww *watchWriters) stallLocked(w *cacheWatch) {
	ww.stalled = append(ww.stalled, w)
	if len(ww.stalled) > 1 {
		return
	}
	if ww.timer == nil {
		ww.timer = time.AfterFunc(watchRetry, ww.retryStalled)
	} else {
		ww.timer.Reset(watchRetry)
	}
}

// retryStalled has some stalled watches served again. Those whose time is over end.
func (ww *watchWriters) retryStalled() {
	ww.mu.Lock()
	n := min(len(ww.stalled), watchRetries)
	some := ww.stalled[:n:n]
	if ww.stalled = ww.stalled[n:]; len(ww.stalled) > 0 {
		ww.timer.Reset(watchRetry)
	} else {
		ww.stalled = nil
	}
	free := maxBlockedWatches - ww.blocked
	ww.mu.Unlock()
	now := time.Now()
	var wait []*cacheWatch
	for _, w := range some {
		w.log.mu.Lock()
		over := w.dated && now.After(w.endBy)
		if free > 0 && !over {
			free--
			w.idleLocked(true)
		} else if !over {
			wait = append(wait, w)
		}
		w.log.mu.Unlock()
		if over {
			w.out.Cancel(0)
		}
	}
	ww.mu.Lock()
	for _, w := range wait {
		ww.stallLocked(w)
	}
	ww.mu.Unlock()
}

// blockedResult is how a write that blocks has ended.
type blockedResult int

const (
	blockedDone     blockedResult = iota
	blockedYields                 // others wait for their turn
	blockedNoMemory               // the connection has none
)

// writeBlocking writes what there is until there is nothing more, and all of it is in packets.
func (w *cacheWatch) writeBlocking() (result blockedResult) {
	l := w.log
	l.mu.Lock()
	if w.left {
		l.mu.Unlock()
		return blockedDone
	}
	w.writing = true
	l.mu.Unlock()
	written := false // all that there was, and it is in packets
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		w.writing = false
		if w.left {
			w.dropRest()
		}
		_ = w.out.SetWriteDeadline(w.endBy) // the zero time while it does not end
		if written {
			w.pending = 0
			w.idleLocked(l.behindLocked(&w.cursor) || w.whyLocked() != "") // from here on it may be that of another writer
		}
	}()
	for {
		if w.rest == nil {
			if some, ok := w.takeRest(); !ok {
				return blockedNoMemory
			} else if !some {
				break
			}
		}
		late, err := w.try(w.writeRest)
		if late && !w.over() {
			if w.c.watching.others() {
				return blockedYields
			}
			continue
		}
		if err == nil {
			w.c.b.metrics.watchEvents.Add(uint64(w.restEvents))
		}
		ends := w.restEnds
		w.dropRest()
		switch {
		case err != nil:
			w.out.Cancel(0)
			return blockedDone
		case ends:
			_ = w.out.Close()
			return blockedDone
		}
	}
	for {
		late, err := w.try(w.out.Settle)
		if err == nil {
			break
		}
		switch {
		case !late || w.over():
			w.out.Cancel(0)
			return blockedDone
		case w.c.watching.others():
			return blockedYields
		}
	}
	written = true
	return blockedDone
}

// writeRest writes what there is of rest.
func (w *cacheWatch) writeRest() error {
	n, err := w.out.Write(w.restBytes)
	w.restBytes = w.restBytes[n:]
	w.c.moved.Add(uint64(n))
	return err
}

// over reports whether the watch has ended and its time is over.
func (w *cacheWatch) over() bool {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	return w.dated && time.Now().After(w.endBy)
}

// takeRest takes what there is to write, up to a bound. It reports whether there is something, and whether there is
// memory for it.
func (w *cacheWatch) takeRest() (some, ok bool) {
	l := w.log
	l.mu.Lock()
	if w.left {
		l.mu.Unlock()
		return false, true
	}
	part, lost, some := l.takeLocked(&w.cursor, min(blockedWrite, w.c.b.cfg.MaxFrameBytes-codec.CacheEventsHead))
	w.lost = w.lost || lost
	why := ""
	if !l.behindLocked(&w.cursor) {
		why = w.whyLocked()
	}
	lost = w.lost
	l.mu.Unlock()
	if !some && !lost && why == "" {
		return false, true
	}
	chunk := buf.Get(len(lostFrame) + codec.CacheEventsHead + part.n + len(endedFrame(why)))
	out := chunk.Bytes()[:0]
	if lost {
		out = append(out, lostFrame...)
	}
	if some {
		out = append(codec.AppendCacheEvents(out, part.n), part.bytes()...)
		part.chunk.Release()
	}
	if why != "" {
		out = append(out, endedFrame(why)...)
	}
	err := w.c.account.Charge(int64(chunk.Cap()))
	charged := err == nil
	l.mu.Lock()
	switch {
	case some && charged:
		l.doneLocked(&part)
	case some:
		l.backLocked(&w.cursor, &part)
	}
	if charged {
		w.lost = false
	}
	l.mu.Unlock()
	if !charged {
		w.c.tenant.Load().press(err) // nothing is refused: it is tried again
		chunk.Release()
		return false, false
	}
	w.rest, w.restBytes, w.restEvents, w.restEnds = chunk, out, part.events, why != ""
	return true, true
}

func (w *cacheWatch) dropRest() {
	if w.rest != nil {
		w.c.account.Release(int64(w.rest.Cap()))
		w.rest.Release()
		w.rest, w.restBytes = nil, nil
	}
}
