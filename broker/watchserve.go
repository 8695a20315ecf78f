package broker

import (
	"runtime"
	"sync"
	"time"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
)

// watchLogs has the log of each cache that is watched, and the workers that serve their watchers. Tenants take turns,
// and so do the logs of one tenant: a worker serves a log for a quantum, and then one of the next tenant that has
// something to write. So neither a cache with many watchers nor a tenant with many caches keeps others waiting.
type watchLogs struct {
	b      *Broker
	inline int // bytes of events that are written at once

	mu     sync.Mutex // guards logs and shares; taken before the locks of a cache and of a log
	logs   map[*cache.Cache]*cacheLog
	shares map[string]*watchShare

	turns   sync.Mutex    // guards all below; innermost
	queue   []*watchShare // that have logs in their lines, each of them once
	workers int
	paid    time.Time // when the writes so far may have been made, at watchPace
}

// cacheLog is the log of one cache that is watched, as long as it is.
type cacheLog struct {
	watchLog
	logs   *watchLogs
	tenant string
	share  *watchShare
	stop   func()     // no more changes
	users  int        // guarded by watchLogs.mu
	behind *cacheLog  // the next in its tenant's line; guarded by watchLogs.turns
	round  watchRound // whom to serve; guarded by the log's lock
}

// watchShare is the line in which the logs of one tenant wait.
type watchShare struct {
	logs        int       // guarded by watchLogs.mu
	first, last *cacheLog // of the logs that have something to write, a list; guarded by watchLogs.turns
}

// watchRound is whom of a log's watchers there is to serve.
type watchRound struct {
	watches   []*cacheWatch // the active ones, and after them those that are parked; cacheWatch.index
	active    int           // how many are not parked: a change gives each of them a turn
	turn      int           // the next of them
	left      int           // how many of them have not had their turn since the last change
	ready     []*cacheWatch // have something to write apart from that
	flip      bool          // whose turn it is: that of ready, or that of watches
	scheduled bool          // a worker serves the log, or it is in the queue
	ended     string        // why the watches of this cache end, once they do
}

const (
	// watchQuantum is for how many watchers a worker serves one log before it looks after the next one.
	watchQuantum = 64
	// watchPace is the time in which a worker may write to one watcher, on average over watchBurst. It leaves most of
	// the processors to others when there are many watchers. Changes that come meanwhile are written together.
	watchPace  = 20 * time.Microsecond
	watchBurst = 10 * time.Millisecond
	// watchInline bounds what QUIC holds of one watch that is not in packets. It is what fits into one packet, so a
	// watch costs no more than its stream does.
	watchInline = 1200
)

func newWatchLogs(b *Broker) *watchLogs {
	return &watchLogs{
		b:      b,
		inline: min(watchInline-len(lostFrame), b.cfg.MaxFrameBytes) - codec.CacheEventsHead,
		logs:   make(map[*cache.Cache]*cacheLog), shares: make(map[string]*watchShare),
	}
}

// join makes w a watcher of a cache, from the next change on. It reports false if the cache has been removed. What the
// log holds is charged to the reads of the tenant that watches first: the cache is of the same one.
func (ls *watchLogs) join(c *cache.Cache, tenant string, w *cacheWatch) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.logs[c]
	if l == nil {
		share := ls.shares[tenant]
		if share == nil {
			share = &watchShare{}
			ls.shares[tenant] = share
		}
		cfg := &ls.b.cfg
		l = &cacheLog{logs: ls, tenant: tenant, share: share}
		l.init(w.t.shares[kindReads], cfg.CacheWatchBytes, min(cfg.CacheWatchBytes, cfg.MaxFrameBytes)-codec.CacheEventsHead, &ls.b.metrics.watchLost, &ls.b.metrics.watchLogBytes)
		stop, ok := c.Watch(l.changed)
		if !ok {
			ls.closeShareLocked(tenant)
			return false
		}
		l.stop = stop
		share.logs++
		ls.logs[c] = l
	} else if c.Removed() {
		return false
	}
	l.users++
	w.cache, w.log = c, l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.joinLocked(&w.cursor)
	l.round.add(w)
	if w.ended != "" || l.round.ended != "" {
		l.readyLocked(w)
	}
	return true
}

// leave takes w out. The last one ends the log.
func (ls *watchLogs) leave(w *cacheWatch) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := w.log
	l.mu.Lock()
	l.leaveLocked(&w.cursor)
	l.parkLocked(w)
	l.round.remove(w)
	w.left = true
	if !w.writing {
		w.dropRest()
	}
	l.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	l.stop()
	delete(ls.logs, w.cache)
	ls.shares[l.tenant].logs--
	ls.closeShareLocked(l.tenant)
}

func (ls *watchLogs) closeShareLocked(tenant string) {
	if ls.shares[tenant].logs == 0 {
		delete(ls.shares, tenant)
	}
}

// changed is called by the cache with each change, under a lock of its shard: it must be quick whatever the number of
// watchers.
func (l *cacheLog) changed(e cache.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.round.ended != "" {
		return
	}
	if e.Kind == cache.Removed {
		l.round.ended = cacheRemoved // even if nobody watches yet: who joins looks at it
	}
	if l.cursors == 0 {
		return
	}
	if e.Kind != cache.Removed {
		l.appendLocked(e)
	}
	l.round.left = l.round.active
	l.scheduleLocked()
}

// cacheRemoved is what watchers of a cache hear that has been removed.
const cacheRemoved = "cache removed"

// parkLocked takes w out of the turns, until unparkLocked: its writer looks for more itself. So a change costs
// nothing for the watchers whose clients do not read.
func (l *cacheLog) parkLocked(w *cacheWatch) {
	r := &l.round
	if w.index >= r.active {
		return
	}
	r.active--
	moved := r.watches[r.active]
	r.swap(w, moved)
	r.left = min(r.left, r.active)
	if moved != w && r.left > 0 {
		l.readyLocked(moved) // its turn may have been before that of its new place
	}
}

// unparkLocked undoes parkLocked. The caller sees to what w has missed.
func (l *cacheLog) unparkLocked(w *cacheWatch) {
	r := &l.round
	if w.left || w.index < r.active {
		return
	}
	r.enter(w)
}

// add puts a new watcher after the active ones, as one of them.
func (r *watchRound) add(w *cacheWatch) {
	w.index = len(r.watches)
	r.watches = append(r.watches, w)
	r.enter(w)
}

// enter makes a parked watcher active. It may take a turn before others that have not had theirs, so there is one more.
func (r *watchRound) enter(w *cacheWatch) {
	r.swap(w, r.watches[r.active])
	r.active++
	if r.left > 0 {
		r.left++
	}
}

// remove takes a watcher out that is parked.
func (r *watchRound) remove(w *cacheWatch) {
	last := len(r.watches) - 1
	r.swap(w, r.watches[last])
	r.watches[last] = nil
	r.watches = r.watches[:last]
}

func (r *watchRound) swap(a, b *cacheWatch) {
	a.index, b.index = b.index, a.index
	r.watches[a.index], r.watches[b.index] = a, b
}

// readyLocked has w served out of turn.
func (l *cacheLog) readyLocked(w *cacheWatch) {
	if w.queued || w.left {
		return
	}
	w.queued = true
	l.round.ready = append(l.round.ready, w)
	l.scheduleLocked()
}

func (l *cacheLog) scheduleLocked() {
	if l.round.scheduled {
		return
	}
	l.round.scheduled = true
	ls := l.logs
	ls.turns.Lock()
	defer ls.turns.Unlock()
	ls.queueLocked(l)
	if ls.workers < maxWatchWorkers() {
		ls.workers++
		ls.b.wg.Go(ls.work) // a log that is scheduled has watchers, and these a connection that Broker.wg counts
	}
}

// queueLocked puts a log at the end of its tenant's line. watchLogs.turns is held.
func (ls *watchLogs) queueLocked(l *cacheLog) {
	s := l.share
	if s.first == nil {
		s.first = l
		ls.queue = append(ls.queue, s)
	} else {
		s.last.behind = l
	}
	s.last = l
}

// nextLocked takes the log out whose turn it is, and puts its tenant after the others; nil if there is none.
// watchLogs.turns is held.
func (ls *watchLogs) nextLocked() *cacheLog {
	if len(ls.queue) == 0 {
		ls.queue = nil
		return nil
	}
	s := ls.queue[0]
	ls.queue[0] = nil
	ls.queue = ls.queue[1:]
	l := s.first
	if s.first, l.behind = l.behind, nil; s.first != nil {
		ls.queue = append(ls.queue, s)
	} else {
		s.last = nil
	}
	return l
}

func maxWatchWorkers() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// pace waits if the workers are ahead of watchPace after so many writes.
func (ls *watchLogs) pace(writes int) {
	now := time.Now()
	ls.turns.Lock()
	if first := now.Add(-watchBurst); ls.paid.Before(first) {
		ls.paid = first
	}
	ls.paid = ls.paid.Add(time.Duration(writes) * watchPace / time.Duration(maxWatchWorkers()))
	ahead := ls.paid.Sub(now)
	ls.turns.Unlock()
	if ahead <= 0 {
		return
	}
	wait := time.NewTimer(ahead)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ls.b.sweepCtx.Done():
	}
}

// work serves logs until none has anything to write.
func (ls *watchLogs) work() {
	var f watchFrame
	for {
		ls.turns.Lock()
		l := ls.nextLocked()
		if l == nil {
			ls.workers--
			ls.turns.Unlock()
			return
		}
		ls.turns.Unlock()
		before := f.served
		if l.serve(&f) {
			ls.turns.Lock()
			ls.queueLocked(l)
			ls.turns.Unlock()
		}
		ls.pace(f.served - before)
	}
}

// serve has some watchers write what they have not written. It reports whether there is more to do.
func (l *cacheLog) serve(f *watchFrame) (more bool) {
	for range watchQuantum {
		l.mu.Lock()
		w := l.round.next()
		if w == nil {
			l.round.scheduled = false
			l.round.ready = nil
			l.mu.Unlock()
			return false
		}
		w.serveLocked(f)
	}
	return true
}

// next returns the watcher whose turn it is, or nil.
func (r *watchRound) next() *cacheWatch {
	r.flip = !r.flip
	if len(r.ready) > 0 && (r.flip || r.left == 0) {
		w := r.ready[0]
		r.ready[0] = nil
		r.ready = r.ready[1:]
		w.queued = false
		return w
	}
	if r.left == 0 {
		return nil
	}
	r.left--
	if r.turn >= r.active {
		r.turn = 0
	}
	r.turn++
	return r.watches[r.turn-1]
}

// watchFrame is what a worker has made for one watcher, and uses for the next one that is at the same place.
type watchFrame struct {
	log   *cacheLog
	seq   uint64 // of the first event
	n     int    // bytes of events
	bytes []byte

	served int // watchers that had something to write
}

func (f *watchFrame) make(l *cacheLog, first uint64, part *logPart) []byte {
	if f.log != l || f.seq != first || f.n != part.n {
		f.log, f.seq, f.n = l, first, part.n
		f.bytes = append(codec.AppendCacheEvents(f.bytes[:0], part.n), part.bytes()...)
	}
	return f.bytes
}
