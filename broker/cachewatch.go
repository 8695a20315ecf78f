package broker

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

// cacheWatch tells one client of the changes of one cache, on an event stream of its own (docs/wire-extensions.md, cache).
//
// Changes are queued by whoever makes them, under a lock of the cache, so that must never wait: what finds no room in the
// queue empties it, and leaves one event of the kind lost in its place. The queue holds up to Config.CacheWatchBytes, and
// as much again is being written; both are charged to the connection while there is something in them. One goroutine writes.
type cacheWatch struct {
	c    *conn
	t    *tenant // that is charged for it
	id   uint64
	out  *quicx.SendStream // set under mu before the writer starts
	stop func()            // no more changes
	wake chan struct{}     // capacity 1: there is something to write

	token   token // that it was made with, and
	expires int64 // when that expires; 0 if it has; guarded by conn.mu

	mu     sync.Mutex // guards all below; behind the locks of the cache and of the connection
	queue  *buf.Chunk // a frame, whose head is filled in when it is taken; nil if nothing is queued
	end    int        // of the events in it
	events int
	lost   bool   // changes are missing in front of the queue
	ended  string // the text that says why nothing more comes
}

// cacheWatch carries a watch out. It lives as long as its event stream, whatever becomes of the control stream.
func (ctl *control) cacheWatch(c *cache.Cache, r *codec.CacheRequest) outcome {
	if !ctl.tenant.may(&ctl.tenant.subscribes, tenantSubscribes) {
		return ctl.refuseCache(r.RequestID, codec.SubscribeRateReached.Text)
	}
	if !ctl.tenant.take(kindWatches, tenantWatches) {
		return ctl.refuseCache(r.RequestID, codec.WatchesReached.Text)
	}
	w := &cacheWatch{c: ctl.c, t: ctl.tenant, wake: make(chan struct{}, 1), token: ctl.token, expires: ctl.expires.Load()}
	if !ctl.c.addWatch(w) {
		ctl.tenant.give(kindWatches)
		return ctl.refuseCache(r.RequestID, codec.MaxSubscriptions.Text)
	}
	if ctl.flush() != nil { // the replies that are owed do not wait for the event stream
		ctl.c.forgetWatch(w)
		return errorEnd
	}
	out, err := ctl.c.openEvents(codec.AppendEventStreamHello(nil, w.id))
	if err != nil {
		ctl.c.forgetWatch(w)
		return ctl.refuseCache(r.RequestID, codec.OpenUniStream.Text)
	}
	w.mu.Lock()
	w.out = out // others find the watch on the connection
	w.mu.Unlock()
	stop, ok := c.Watch(w.add)
	if !ok {
		ctl.c.forgetWatch(w)
		out.Cancel(0)
		return ctl.cacheUnknown(r)
	}
	w.stop = stop
	ctl.c.b.metrics.watches.Add(1)
	ctl.c.writers.Go(w.write)
	ctl.cacheDone(r.RequestID, w.id, true)
	return keep
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
	w.t.give(kindWatches)
}

// endWatches lets every watch of the connection finish.
func (c *conn) endWatches(why string) {
	c.mu.Lock()
	watches := slices.Collect(maps.Values(c.watches))
	c.mu.Unlock()
	for _, w := range watches {
		w.finishWith(why)
	}
}

// add queues a change, whose kind has the same number on the wire.
func (w *cacheWatch) add(e cache.Event) {
	if e.Kind == cache.Removed {
		w.finishWith(cacheRemoved)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended != "" {
		return
	}
	n := codec.CacheEventLen + len(e.Key)
	fits := w.room(n)
	if !fits {
		w.lose()
		fits = w.room(n)
	}
	if fits {
		codec.AppendCacheEvent(w.queue.Bytes()[:w.end], codec.CacheEvent{Kind: codec.CacheEventKind(e.Kind), Version: e.Version, Key: e.Key})
		w.end += n
		w.events++
	} else {
		w.c.b.metrics.watchLost.Add(1)
	}
	w.notify()
}

// cacheRemoved is what watchers of a cache hear that has been removed.
const cacheRemoved = "cache removed"

// room makes room for n bytes more. It reports false if they are beyond the bound or the connection has no memory left.
func (w *cacheWatch) room(n int) bool {
	need := w.end + n
	if w.queue == nil {
		need = codec.CacheEventsHead + n
	} else if need <= w.queue.Cap() {
		return true
	}
	cfg := &w.c.b.cfg
	if need > min(cfg.CacheWatchBytes, cfg.MaxFrameBytes) {
		return false
	}
	size := max(need, minWatchQueue) // a power of two is what it gets
	if w.c.account.Charge(int64(buf.CapOf(size))) != nil {
		return false
	}
	bigger := buf.Get(size)
	if w.queue == nil {
		w.queue, w.end = bigger, codec.CacheEventsHead
		return true
	}
	copy(bigger.Bytes(), w.queue.Bytes()[:w.end])
	w.drop(w.queue)
	w.queue = bigger
	return true
}

// minWatchQueue is the size in bytes of a queue that has just something in it.
const minWatchQueue = 1 << 10

// lose empties the queue.
func (w *cacheWatch) lose() {
	w.c.b.metrics.watchLost.Add(uint64(w.events))
	if w.queue != nil {
		w.drop(w.queue)
	}
	w.queue, w.events, w.lost = nil, 0, true
}

func (w *cacheWatch) drop(queue *buf.Chunk) {
	w.c.account.Release(int64(queue.Cap()))
	queue.Release()
}

func (w *cacheWatch) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// finishWith lets the watch end behind what is queued, and tells the client why. A client that does not read gets so
// much time to hear of it.
func (w *cacheWatch) finishWith(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended != "" {
		return
	}
	w.ended = why
	if w.out != nil {
		_ = w.out.SetWriteDeadline(time.Now().Add(w.c.b.cfg.ReplyTimeout))
	}
	w.notify()
}

// write writes what is queued until the watch has ended or nobody reads it.
func (w *cacheWatch) write() {
	m := w.c.b.metrics
	defer func() {
		w.c.forgetWatch(w)
		m.watchesEnded.Add(1)
	}()
	for {
		select {
		case <-w.wake:
		case <-w.out.Context().Done():
		}
		if w.out.Context().Err() != nil || !w.writeQueued() {
			break
		}
	}
	w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = "over" // a last change may still be on its way
	if w.queue != nil {
		w.drop(w.queue)
		w.queue = nil
	}
}

// writeQueued writes what there is. It reports false if nothing may follow.
func (w *cacheWatch) writeQueued() bool {
	w.mu.Lock()
	queue, end, events, lost, ended := w.queue, w.end, w.events, w.lost, w.ended
	w.queue, w.events, w.lost = nil, 0, false
	w.mu.Unlock()
	var err error
	if lost {
		_, err = w.out.Write(appendCacheEvents(codec.CacheEvent{Kind: codec.CacheLost}))
	}
	if queue != nil {
		if err == nil {
			codec.AppendCacheEvents(queue.Bytes()[:0], end-codec.CacheEventsHead)
			_, err = w.out.Write(queue.Bytes()[:end])
		}
		w.drop(queue)
	}
	if err == nil && ended != "" {
		_, err = w.out.Write(appendCacheEvents(codec.CacheEvent{Kind: codec.CacheEnded, Key: []byte(ended)}))
	}
	w.c.moved.Add(1)
	switch {
	case err != nil:
		w.out.Cancel(0)
	case ended != "":
		_ = w.out.Close()
	default:
		w.c.b.metrics.watchEvents.Add(uint64(events))
		return true
	}
	return false
}

// appendCacheEvents makes a frame of one event.
func appendCacheEvents(e codec.CacheEvent) []byte {
	return codec.AppendCacheEvent(codec.AppendCacheEvents(nil, codec.CacheEventLen+len(e.Key)), e)
}
