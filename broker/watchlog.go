package broker

import (
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
)

// watchLog is the changes of one cache that are on their way to its watchers. A change is encoded once, whatever the
// number of watchers. Each of them is a cursor:
//
//	           tail                      head
//	dropped │ page ──▶ page ──▶ page ──▶ page ◀── append
//	   ▲        ▲                 ▲        ▲
//	lagging   slow               ...     idle cursors
//
// The pages that no cursor needs any more are freed; an idle log holds none. The others are bounded by
// Config.CacheWatchBytes and charged to the tenant of the cache. What is beyond that drops the oldest page: the cursors
// in it and before it have lost changes, which are counted at that moment, and their watchers get one event of the kind
// lost. Nothing here takes time in proportion to the number of cursors.
type watchLog struct {
	owner    ledger.Owner
	bound    int // bytes of all pages
	most     int // bytes of one event
	pageSize int
	lost     *atomic.Uint64 // counts changes, once for each cursor that has lost one
	held     *atomic.Int64  // counts the bytes of all pages of all logs

	mu      sync.Mutex // guards all below; innermost but for the ledger
	tail    *logPage
	head    *logPage
	bytes   int    // of all pages
	next    uint64 // number of the next change
	cursors int
	lagging int // of these, in pages that were dropped
}

// logPage is a part of the log. Its bytes are events in wire form; those in front of end do not change any more.
type logPage struct {
	chunk   *buf.Chunk // nil if every cursor has read it
	end     int
	first   uint64 // number of its first event
	count   int
	next    *logPage
	dropped bool

	cursors int // in it
	read    int // sum of what each of them has read of it, in events
	holds   int // cursors that may still give back what they took
}

// logCursor is a place in the log, of one watcher. It is guarded by the log's lock.
type logCursor struct {
	page *logPage // nil once it has left
	off  int
	seq  uint64 // number of the next change to read
}

// logPart is what a cursor has taken: events of one page.
type logPart struct {
	page   *logPage
	chunk  *buf.Chunk // with a reference
	off, n int
	events int
}

func (p *logPart) bytes() []byte { return p.chunk.Bytes()[p.off : p.off+p.n] }

// Sizes of pages in bytes: part of the bound, within limits.
const (
	logPageParts = 8
	minLogPage   = 256
	maxLogPage   = 16 << 10
)

// init prepares a log that nobody reads yet. Its memory, up to bound bytes of changes, is charged to owner. An event of
// more than most bytes is lost to all.
func (l *watchLog) init(owner ledger.Owner, bound, most int, lost *atomic.Uint64, held *atomic.Int64) {
	l.owner, l.bound, l.most, l.lost, l.held = owner, bound, min(most, bound), lost, held
	l.pageSize = buf.CapOf(min(max(bound/logPageParts, minLogPage), maxLogPage))
	l.head = &logPage{}
	l.tail = l.head
}

// joinLocked lets a cursor begin after all that is in the log.
func (l *watchLog) joinLocked(c *logCursor) {
	*c = logCursor{page: l.head, off: l.head.end, seq: l.next}
	l.head.cursors++
	l.head.read += l.head.count
	l.cursors++
}

// leaveLocked takes a cursor out.
func (l *watchLog) leaveLocked(c *logCursor) {
	p := c.page
	if p == nil {
		return
	}
	if p.dropped {
		l.lagging--
	} else {
		p.cursors--
		p.read -= int(c.seq - p.first)
	}
	c.page = nil
	l.cursors--
	l.freeLocked()
}

// appendLocked adds a change, whose kind has the same number on the wire. If it does not fit, every cursor loses it,
// and all that it has not read.
func (l *watchLog) appendLocked(e cache.Event) {
	if l.cursors == 0 {
		return
	}
	n := codec.CacheEventLen + len(e.Key)
	if !l.spaceLocked(n) {
		for l.dropLocked() {
		}
		l.next++
		l.head = &logPage{first: l.next}
		l.tail = l.head
		l.lost.Add(uint64(l.lagging))
		return
	}
	p := l.head
	codec.AppendCacheEvent(p.chunk.Bytes()[:p.end], codec.CacheEvent{Kind: codec.CacheEventKind(e.Kind), Version: e.Version, Key: e.Key})
	p.end += n
	p.count++
	l.next++
}

// spaceLocked makes space for n bytes in the last page. It drops old pages for that if need be.
func (l *watchLog) spaceLocked(n int) bool {
	if p := l.head; p.chunk != nil && p.end+n <= p.chunk.Cap() {
		return true
	}
	if n > l.most {
		return false
	}
	size := max(buf.CapOf(n), l.pageSize)
	for l.bytes > 0 && l.bytes+size > l.bound {
		l.dropLocked()
	}
	for l.owner.Charge(int64(size)) != nil {
		if l.bytes == 0 {
			return false
		}
		l.dropLocked()
	}
	p := &logPage{chunk: buf.Get(size), first: l.next}
	p.chunk.SetOwner(l.owner)
	l.countLocked(size)
	l.head.next = p
	l.head = p
	l.freeLocked()
	return true
}

// dropLocked drops the oldest page, and counts what its cursors and the lagging ones lose by that. It reports false if
// there was nothing to drop.
func (l *watchLog) dropLocked() bool {
	p := l.tail
	if p == l.head {
		if p.cursors == 0 && p.chunk == nil {
			return false
		}
		l.head.next = &logPage{first: l.next}
		l.head = l.head.next
	}
	l.lost.Add(uint64((l.lagging+p.cursors)*p.count - p.read))
	l.lagging += p.cursors
	l.tail, p.next, p.dropped = p.next, nil, true
	l.releaseLocked(p)
	return true
}

func (l *watchLog) releaseLocked(p *logPage) {
	if p.chunk != nil {
		l.countLocked(-p.chunk.Cap())
		p.chunk.Release()
		p.chunk = nil
	}
}

func (l *watchLog) countLocked(n int) {
	l.bytes += n
	l.held.Add(int64(n))
}

// freeLocked frees the pages that every cursor has read. Cursors that lag find the rest of the log when they come.
func (l *watchLog) freeLocked() {
	if l.lagging > 0 {
		return
	}
	for l.tail != l.head && l.tail.cursors == 0 {
		l.releaseLocked(l.tail)
		l.tail = l.tail.next
	}
	if p := l.tail; p == l.head && p.holds == 0 && p.read == p.cursors*p.count {
		l.releaseLocked(p)
	}
}

// takeLocked takes the next events of a cursor, of up to limit bytes, but at least one. It reports whether changes were
// lost in front of them. If ok is set, the cursor has to be settled by doneLocked or backLocked, and the part's chunk
// to be released.
func (l *watchLog) takeLocked(c *logCursor, limit int) (part logPart, lost, ok bool) {
	if c.page.dropped {
		l.lagging--
		lost = c.seq != l.tail.first
		*c = logCursor{page: l.tail, seq: l.tail.first}
		l.tail.cursors++
		l.freeLocked()
	}
	p := c.page
	for c.off == p.end {
		if p.next == nil {
			return part, lost, false
		}
		p.cursors--
		p.read -= p.count
		p = p.next
		*c = logCursor{page: p, seq: p.first}
		p.cursors++
		l.freeLocked()
	}
	part = logPart{page: p, chunk: p.chunk, off: c.off}
	part.n, part.events = cutEvents(p.chunk.Bytes()[c.off:p.end], limit)
	part.chunk.Retain()
	c.off += part.n
	c.seq += uint64(part.events)
	p.read += part.events
	p.holds++
	return part, lost, true
}

// cutEvents returns the length of the first events of b, at least one and otherwise up to limit bytes, and their
// number.
func cutEvents(b []byte, limit int) (n, events int) {
	for n < len(b) {
		next := n + codec.CacheEventSize(b[n:])
		if next > limit && events > 0 {
			break
		}
		n = next
		events++
	}
	return n, events
}

// doneLocked says that what was taken is written.
func (l *watchLog) doneLocked(part *logPart) {
	part.page.holds--
	l.freeLocked()
}

// backLocked gives back what was taken and not written. It is lost if its page has been dropped meanwhile.
func (l *watchLog) backLocked(c *logCursor, part *logPart) {
	p := part.page
	p.holds--
	if c.page == nil {
		l.freeLocked()
		return
	}
	c.seq -= uint64(part.events)
	if p.dropped {
		l.lost.Add(uint64(part.events))
		return
	}
	c.off -= part.n
	p.read -= part.events
}

// behindLocked reports whether there is something for the cursor to take.
func (l *watchLog) behindLocked(c *logCursor) bool { return c.page != nil && c.seq != l.next }
