package storage

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MaxBatch is how many bytes the records of one append may have, with their headers.
const MaxBatch = 256 << 20

// Retention says what a log keeps. A zero bound is none. Whole segments are removed, oldest first and never the last
// one, so a log may be larger than its bound by a segment.
type Retention struct {
	Bytes int64         // of all segments
	Age   time.Duration // of the newest record of a segment
	Count uint64        // of records
}

// Log is the log of one stream. Its methods may be called from any goroutine.
type Log struct {
	s   *Store
	dir string // its name in the data directory

	// order guards next and producers: offsets are assigned in the order of the queue.
	order     sync.Mutex
	next      uint64
	producers *producers

	aside bool // records of it were put aside; of who opens it

	// Of the committer.
	group  int    // index in its groups, plus one
	named  uint64 // the journal file that knows the log by number, plus one
	number uint32

	// Written under mu, and read without it by those who must not wait for the disk.
	base atomic.Uint64 // of the oldest segment that is not being removed
	tail atomic.Uint64 // offset after the last record in segments

	retention atomic.Pointer[Retention]
	seen      atomic.Pointer[Bounds] // the last that were asked for

	mu       sync.Mutex // guards what follows; held for no I/O but that of the committer and of retention
	segments []segment  // ascending; none before the first record
	firstID  uint64     // of the first segment, while there is none
	unsynced []uint64   // segments written to since the last sync
	newFiles bool       // made since the last sync
	newDir   bool

	index    []indexEntry // of the last segment, not written yet
	indexed  int64        // entries of the last segment that are written, or -1 if its index cannot be written
	sinceIdx int64        // bytes since the last entry
}

// segment is one segment of a log.
type segment struct {
	id   uint64
	base uint64
	size int64
	last int64 // the time of its newest record
}

// Bounds says which records a log has: those from Base up to, but not including, Tail.
type Bounds struct {
	Base, Tail uint64
	Bytes      int64
	Segments   int
	Oldest     int64 // the time of the newest record of the oldest segment, in microseconds since 1970
}

// Base returns the oldest offset that the log has, and Tail the offset after the last one whose append has completed.
// Both return at once, whatever the disk does.
func (l *Log) Base() uint64 { return l.base.Load() }

// Tail returns the offset after that of the last record; see [Log.Base].
func (l *Log) Tail() uint64 { return l.tail.Load() }

// Bounds returns what the log has. It counts records whose append has completed, and may wait for the disk.
func (l *Log) Bounds() Bounds {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.boundsLocked()
}

// LastBounds is [Log.Bounds] for those who must not wait. It returns at once: while the log waits for the disk, bytes,
// segments and the oldest time are those that were seen last.
func (l *Log) LastBounds() Bounds {
	if l.mu.TryLock() {
		defer l.mu.Unlock()
		return l.boundsLocked()
	}
	b := *l.seen.Load()
	b.Base, b.Tail = l.base.Load(), l.tail.Load()
	return b
}

func (l *Log) boundsLocked() Bounds {
	b := Bounds{Base: l.base.Load(), Tail: l.tail.Load(), Segments: len(l.segments)}
	if len(l.segments) > 0 {
		b.Oldest = l.segments[0].last
	}
	for _, s := range l.segments {
		b.Bytes += s.size
	}
	l.seen.Store(&b)
	return b
}

// SetRetention sets what the log keeps from now on. It returns at once.
func (l *Log) SetRetention(r Retention) { l.retention.Store(&r) }

// Append appends a batch of records and returns the offset of the first; the others follow without a gap. All of them
// have the same time. The payloads are copied before it returns.
//
// done is called once, when the batch is as safe as class says, or with [ErrFailed] if that is not known; then the
// records may or may not be there after the next [Open]. Calls for one log come in the order of offsets, from the
// goroutine that commits for all logs, so done must not block. If Append itself returns an error, nothing was appended
// and done is not called.
//
// Append blocks while [Options.QueueBytes] wait for the device.
func (l *Log) Append(batch [][]byte, class Class, done func(error)) (first uint64, err error) {
	first, _, err = l.AppendLater(nil, batch, class, done)
	if err == nil {
		l.s.kick()
	}
	return first, err
}

// AppendLater is [Log.Append] for a caller that calls [Store.Commit] next. Until then what was appended may stay where
// it is.
//
// From, if it is not nil, is who appends the batch. Then it is appended once, however often it is given: a duplicate is
// a batch that the log has, or is about to have. It is not appended, and done is called when it is as safe as class
// says. There is no offset then. AppendLater fails with [ErrUnknownProducer] or [ErrOldSequence] if it is not known
// whether the log has the batch.
func (l *Log) AppendLater(from *Origin, batch [][]byte, class Class, done func(error)) (first uint64, duplicate bool, err error) {
	if len(batch) == 0 {
		return 0, false, ErrEmpty
	}
	size := int64(0)
	for _, p := range batch {
		if len(p) > MaxPayload {
			return 0, false, ErrTooLarge
		}
		size += recordSize(len(p))
	}
	if size > MaxBatch {
		return 0, false, ErrTooLarge
	}
	if from != nil { // first: also a log that accepts nothing more knows what it has
		l.order.Lock()
		duplicate, err = l.knows(*from, class, done)
		l.order.Unlock()
		if duplicate || err != nil {
			return 0, duplicate, err
		}
	}
	if err := l.s.admit(size); err != nil {
		return 0, false, err
	}
	p := pendings.Get().(*pending)
	p.log, p.class, p.done, p.tagged = l, class, done, from != nil
	p.bytes = slices.Grow(p.bytes[:0], int(size))
	now := l.s.opt.Now().UnixMicro()

	l.order.Lock()
	defer l.order.Unlock()
	if from != nil {
		if duplicate, err = l.knows(*from, class, done); duplicate || err != nil { // since it was looked at before
			l.s.dismiss(size)
			p.free()
			return 0, duplicate, err
		}
		p.tag = tag{l.next, from.Producer, from.Sequence}
		l.s.forgotten.Add(int64(l.producers.record(from.Producer, from.Sequence)))
		l.producers.remember(p.tag, l.tail.Load())
	}
	first = l.next
	for i, payload := range batch {
		p.bytes = appendRecord(p.bytes, Record{first + uint64(i), now, payload})
	}
	l.next += uint64(len(batch))
	l.s.enqueue(p)
	return first, false, nil
}

// knows reports whether the log has the batch, and then has done called when all that was appended before, and so the
// batch, is as safe as class says. The caller holds l.order.
func (l *Log) knows(from Origin, class Class, done func(error)) (bool, error) {
	has, err := l.producers.look(from)
	if !has || err != nil {
		return false, err
	}
	p := pendings.Get().(*pending)
	p.log, p.class, p.done, p.tagged, p.bytes = l, class, done, false, p.bytes[:0]
	return true, l.s.follow(p)
}

// Size returns how many bytes of memory [Log.Append] holds for a batch, of that many records whose payloads have bytes
// together, until it has completed.
func Size(records, bytes int) int64 { return int64(records)*recordHeaderSize + int64(bytes) }

func (l *Log) path(id uint64, kind string) string {
	return path.Join(l.s.root, l.dir, segmentName(id, kind))
}

// position returns how far the log's segments are written.
func (l *Log) position() nameBody {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := nameBody{tail: l.tail.Load(), segment: l.firstID, dir: l.dir}
	if len(l.segments) > 0 {
		last := l.segments[len(l.segments)-1]
		n.segment = last.id
		// A segment without records may not be synced yet.
		if last.size > segmentHeaderSize {
			n.position = last.size
		}
	}
	return n
}

// write writes the records of some batches to segments. Records are those of all batches, without a gap between them.
func (l *Log) write(batches []*pending, records []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) == 0 {
		if err := l.create(); err != nil {
			return err
		}
	}
	for len(batches) > 0 {
		last := &l.segments[len(l.segments)-1]
		// As many batches as fit. A segment without records takes any.
		n, size := 0, int64(0)
		for n < len(batches) {
			b := int64(len(batches[n].bytes))
			if last.size+size+b > l.s.opt.SegmentBytes && (last.size > segmentHeaderSize || n > 0) {
				break
			}
			size += b
			n++
		}
		if n == 0 {
			if err := l.roll(); err != nil {
				return err
			}
			continue
		}
		if err := l.writeRun(records[:size]); err != nil {
			return err
		}
		batches, records = batches[n:], records[size:]
	}
	return nil
}

// writeRun appends records to the last segment. The caller holds l.mu.
func (l *Log) writeRun(records []byte) error {
	last := &l.segments[len(l.segments)-1]
	h, err := l.s.files.get(l.path(last.id, segmentKind), false)
	if err != nil {
		return err
	}
	defer l.s.files.put(h)
	l.touch(last.id)
	if err := h.write(records, last.size); err != nil {
		return err
	}
	count := uint64(0)
	for at := 0; at < len(records); {
		r := records[at:]
		n := int(recordSize(int(binary.BigEndian.Uint32(r))))
		l.note(binary.BigEndian.Uint64(r[4:]), last.size, int64(n))
		count++
		last.size += int64(n)
		last.last = int64(binary.BigEndian.Uint64(r[12:]))
		at += n
	}
	l.tail.Add(count) // of whole batches
	if len(l.index) >= indexBatch {
		l.flushIndex()
	}
	return nil
}

// touch remembers that a segment has to be synced.
func (l *Log) touch(id uint64) {
	if n := len(l.unsynced); n == 0 || l.unsynced[n-1] != id {
		l.unsynced = append(l.unsynced, id)
	}
}

// note indexes a record, if it is time for an entry.
func (l *Log) note(offset uint64, position, size int64) {
	if (position == segmentHeaderSize && l.indexed == 0 && len(l.index) == 0) || l.sinceIdx >= l.s.opt.IndexSpacing {
		l.index = append(l.index, indexEntry{offset, position})
		l.sinceIdx = 0
	}
	l.sinceIdx += size
}

// indexBatch is how many entries of an index are written together.
const indexBatch = 256

// flushIndex writes the entries of the last segment's index. What goes wrong is made good when the log is opened: an
// index can always be made from its segment.
func (l *Log) flushIndex() {
	if len(l.index) == 0 {
		return
	}
	last := l.segments[len(l.segments)-1]
	entries := l.index
	l.index = l.index[:0]
	if l.indexed < 0 {
		return
	}
	err := func() error {
		h, err := l.s.files.get(l.path(last.id, indexKind), l.indexed == 0)
		if err != nil {
			return err
		}
		defer l.s.files.put(h)
		var b []byte
		at := indexHeaderSize + indexEntrySize*l.indexed
		if l.indexed == 0 {
			b, at = appendIndexHeader(last.base), 0
		}
		for _, e := range entries {
			b = appendIndexEntry(b, e)
		}
		_, err = h.WriteAt(b, at) // it need not be synced
		return err
	}()
	if err != nil {
		l.indexed = -1
		return
	}
	l.indexed += int64(len(entries))
}

// create makes the log's directory and its first segment.
func (l *Log) create() error {
	if err := l.s.opt.FS.MkdirAll(path.Join(l.s.root, l.dir)); err != nil {
		return err
	}
	l.newDir = true
	return l.begin(l.firstID, l.tail.Load())
}

// roll ends the last segment and begins the next.
func (l *Log) roll() error {
	l.flushIndex()
	last := l.segments[len(l.segments)-1]
	return l.begin(last.id+1, l.tail.Load())
}

// begin makes a segment without records.
func (l *Log) begin(id, base uint64) error {
	h, err := l.s.files.get(l.path(id, segmentKind), true)
	if err != nil {
		return err
	}
	defer l.s.files.put(h)
	now := l.s.opt.Now().UnixMicro()
	if err := h.write(appendSegmentHeader(base, now), 0); err != nil {
		return err
	}
	l.segments = append(l.segments, segment{id: id, base: base, size: segmentHeaderSize, last: now})
	l.touch(id)
	l.newFiles = true
	l.index, l.indexed, l.sinceIdx = nil, 0, 0
	return nil
}

// sync makes what was written to segments survive, and reports whether the log's directory is new.
func (l *Log) sync() (isNew bool, err error) {
	l.mu.Lock()
	l.flushIndex()
	ids, files := l.unsynced, l.newFiles
	isNew = l.newDir
	l.unsynced, l.newFiles, l.newDir = nil, false, false
	l.mu.Unlock()
	for _, id := range ids {
		if err := l.syncSegment(id); err != nil {
			return isNew, err
		}
	}
	if files {
		return isNew, l.s.opt.FS.SyncDir(path.Join(l.s.root, l.dir))
	}
	return isNew, nil
}

func (l *Log) syncSegment(id uint64) error {
	h, err := l.s.files.get(l.path(id, segmentKind), false)
	if err != nil {
		l.mu.Lock()
		removed := id <= l.segments[0].id
		l.mu.Unlock()
		if removed {
			return nil
		}
		return err
	}
	defer l.s.files.put(h)
	return h.sync()
}

// retain removes the segments that retention does not keep.
func (l *Log) retain(now time.Time) error {
	for {
		l.mu.Lock()
		id, ok := l.expired(now)
		if ok {
			l.base.Store(l.segments[1].base)
		}
		l.mu.Unlock()
		if !ok {
			return nil
		}
		// The names of the segments that stay are durable before the first one goes, so that no crash leaves none.
		if err := l.s.opt.FS.SyncDir(path.Join(l.s.root, l.dir)); err != nil {
			return err
		}
		if err := l.remove(id); err != nil {
			return err // it stays the oldest one, and is removed by the next attempt
		}
		l.mu.Lock()
		l.segments = slices.Delete(l.segments, 0, 1)
		l.mu.Unlock()
	}
}

// expired returns the oldest segment, if retention does not keep it or if it could not be removed before.
func (l *Log) expired(now time.Time) (id uint64, ok bool) {
	if len(l.segments) == 0 {
		return 0, false
	}
	head := l.segments[0]
	if head.base < l.base.Load() {
		return head.id, true
	}
	r := *l.retention.Load()
	if len(l.segments) < 2 || r == (Retention{}) {
		return 0, false
	}
	size := int64(0)
	for _, s := range l.segments {
		size += s.size
	}
	ok = r.Bytes > 0 && size > r.Bytes ||
		r.Age > 0 && now.UnixMicro()-head.last > r.Age.Microseconds() ||
		r.Count > 0 && l.tail.Load()-l.segments[1].base >= r.Count
	return head.id, ok
}

// remove removes a segment's files. Removals become durable one after the other, so that no crash leaves a hole.
func (l *Log) remove(id uint64) error {
	var errs []error
	for _, kind := range []string{indexKind, segmentKind} {
		name := l.path(id, kind)
		l.s.files.drop(name)
		if err := l.s.opt.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		l.s.files.drop(name) // a reader may have opened it in between
	}
	errs = append(errs, l.s.opt.FS.SyncDir(path.Join(l.s.root, l.dir)))
	return errors.Join(errs...)
}
