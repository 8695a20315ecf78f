package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/felix-mq/felix/internal/vfs"
)

// What is done with what a crash has left.
//
// What the journal does not cover was synced before a journal file was removed, or is the work of another program. It
// must be right, but for an unfinished record at its end. Damage there is a [CorruptionError] and changes nothing: it
// may be in a record that was acknowledged.
//
// What the journal covers may be missing or damaged in segments in any way. There a segment is cut off at its first
// damage, later segments are removed, and the journal's records are written again. Where segment and journal differ,
// the journal is right. In the end all of it is synced and the journal is empty.

// recovery is a log that the journal has records of.
type recovery struct {
	log *Log
	// Where the segments have the next record that the journal may have, if they have it.
	segment int
	pos     int64
	next    uint64

	tags    []tag  // of the records to come
	known   uint64 // the offset before which the producers are known from their file
	covered uint64 // the offset after the last record that the journal has
}

// recover brings the logs that have records in the journal up to date, and begins a new journal.
func (s *Store) recover() error {
	j := &s.journal
	if err := j.clean(); err != nil {
		return err
	}
	old, err := journalFiles(s.opt.FS, j.dir)
	if err != nil || len(old) == 0 {
		return err
	}
	numbers, err := relevant(s.opt.FS, j.dir, old)
	if err != nil {
		return err
	}
	logs := map[string]*recovery{}
	known := map[uint32]*recovery{} // by their number in the file
	current := uint64(0)
	sequence, err := readJournal(s.opt.FS, j.dir, numbers, func(file uint64, e entry, body []byte) error {
		if file != current {
			current = file
			clear(known)
		}
		switch e.kind {
		case entryName:
			name, ok := parseNameBody(body)
			if !ok {
				return &CorruptionError{Damage: DamageRecord, File: path.Join(journalDir, segmentName(file, journalKind))}
			}
			r := logs[name.dir]
			if r == nil {
				l, known, err := s.openLog(name.dir, &name)
				if err != nil {
					return err
				}
				r = newRecovery(l, name)
				r.known = known
				logs[name.dir] = r
				s.logs[name.dir] = l
			}
			known[e.log] = r
		case entryRecords:
			r := known[e.log]
			if r == nil {
				return &CorruptionError{Damage: DamageMissing, File: path.Join(journalDir, segmentName(file, journalKind)), Found: uint64(e.log)}
			}
			return r.records(body)
		case entryTags:
			r := known[e.log]
			if r == nil {
				return &CorruptionError{Damage: DamageMissing, File: path.Join(journalDir, segmentName(file, journalKind)), Found: uint64(e.log)}
			}
			var ok bool
			if r.tags, ok = parseTags(r.tags[:0], body); !ok {
				return &CorruptionError{Damage: DamageRecord, File: path.Join(journalDir, segmentName(file, journalKind))}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	all := make([]*Log, 0, len(logs))
	for _, r := range logs {
		r.log.next = r.log.tail.Load()
		// A record that the journal lost, and the segments kept, may be anybody's. And what the file of producers says
		// of records that are lost was true only before.
		if r.log.next != r.covered || r.log.next < r.known {
			r.log.producers.forget()
		}
		all = append(all, r.log)
	}
	if err := errors.Join(s.syncLogs(all), s.saveProducers(all)); err != nil {
		return err
	}
	// The logs have other segments now than the old files say. So a new file makes them obsolete, all at once.
	j.number, j.sequence, j.synced = old[len(old)-1]+1, sequence, sequence
	if err := j.begin(j.number, flagFresh); err != nil {
		return err
	}
	for _, n := range old {
		if err := errors.Join(s.opt.FS.Remove(j.name(n)), s.opt.FS.SyncDir(j.dir)); err != nil {
			return err
		}
	}
	return nil
}

func newRecovery(l *Log, claim nameBody) *recovery {
	r := &recovery{log: l, pos: segmentHeaderSize, next: l.base.Load(), covered: claim.tail}
	for i, seg := range l.segments {
		if seg.id == claim.segment {
			r.segment, r.pos, r.next = i, max(claim.position, segmentHeaderSize), claim.tail
		}
	}
	return r
}

// records writes the records of an entry to the log, and notes who appended them.
func (r *recovery) records(body []byte) error {
	last := uint64(0)
	err := eachRecord(body, func(rec Record, b []byte) error {
		last = rec.Offset
		return r.apply(rec, b)
	})
	if err != nil {
		return err
	}
	r.covered = last + 1
	for _, t := range r.tags {
		if t.offset >= r.known && t.offset <= last {
			r.log.producers.record(t.id, t.seq)
		}
	}
	r.tags = r.tags[:0]
	return nil
}

// apply writes a record of the journal to the log, unless the log has it.
func (r *recovery) apply(rec Record, b []byte) error {
	l := r.log
	if rec.Offset < r.next {
		return nil // retention has removed it
	}
	if rec.Offset == r.next && r.next < l.tail.Load() {
		same, err := r.compare(b)
		if err != nil || same {
			return err
		}
		if err := l.cut(r.segment, r.pos, r.next); err != nil {
			return err
		}
	}
	if rec.Offset != l.tail.Load() {
		return &CorruptionError{Damage: DamageOffset, File: l.dir, Expected: l.tail.Load(), Found: rec.Offset}
	}
	p := pending{bytes: b}
	if err := l.write([]*pending{&p}, b); err != nil {
		return err
	}
	r.segment = len(l.segments) - 1
	r.pos = l.segments[r.segment].size
	r.next = l.tail.Load()
	return nil
}

// compare reports whether the segments have the record b at the place where they must have it, and goes on after it.
func (r *recovery) compare(b []byte) (bool, error) {
	l := r.log
	for r.pos >= l.segments[r.segment].size {
		r.segment++
		r.pos = segmentHeaderSize
	}
	seg := l.segments[r.segment]
	h, err := l.s.files.get(l.path(seg.id, segmentKind), false)
	if err != nil {
		return false, err
	}
	defer l.s.files.put(h)
	got := make([]byte, len(b))
	n, err := readAt(h, &got, r.pos, min(int64(len(b)), seg.size-r.pos))
	if err != nil {
		return false, err
	}
	if !bytes.Equal(got[:n], b) {
		return false, nil
	}
	// Written again: if a sync has failed before, the kernel may have these bytes, take them for written, and be wrong.
	if err := h.write(b, r.pos); err != nil {
		return false, err
	}
	r.pos += int64(n)
	r.next++
	return true, nil
}

// cut removes everything from a position of a segment on, where the record with the offset tail begins.
func (l *Log) cut(i int, pos int64, tail uint64) error {
	for k := len(l.segments) - 1; k > i; k-- {
		if err := l.remove(l.segments[k].id); err != nil {
			return err
		}
	}
	l.segments = l.segments[:i+1]
	l.unsynced = slices.DeleteFunc(l.unsynced, func(id uint64) bool { return id > l.segments[i].id })
	seg := &l.segments[i]
	h, err := l.s.files.get(l.path(seg.id, segmentKind), false)
	if err != nil {
		return err
	}
	defer l.s.files.put(h)
	h.dirty.Store(true)
	l.touch(seg.id)
	if err := h.Truncate(pos); err != nil {
		return err
	}
	seg.size = pos
	l.tail.Store(tail)
	return l.reindex(h)
}

// openLog reads what a log's directory has. claim is what the journal says about it, or nil if the journal says
// nothing. What is known of producers goes up to an offset, which is the tail if the journal says nothing.
func (s *Store) openLog(dir string, claim *nameBody) (*Log, uint64, error) {
	l, err := s.openSegments(dir, claim)
	if err != nil {
		return nil, 0, err
	}
	known, err := l.loadProducers()
	if err != nil {
		return nil, 0, err
	}
	switch {
	case claim == nil && known != l.next:
		if err := l.dropProducers(); err != nil { // before anything is appended
			return nil, 0, err
		}
	case claim != nil && known < claim.tail: // the journal does not have what is in between
		l.producers.forget()
		known = claim.tail
	}
	return l, known, nil
}

// openSegments is openLog without producers.
func (s *Store) openSegments(dir string, claim *nameBody) (*Log, error) {
	l := &Log{s: s, dir: dir}
	l.retention.Store(new(Retention))
	l.seen.Store(new(Bounds))
	full := path.Join(s.root, dir)
	entries, err := s.opt.FS.List(full)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []uint64
	for _, e := range entries {
		if id, ok := parseID(e.Name, segmentKind); ok && !e.Dir {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if claim != nil && claim.position > 0 && (len(ids) == 0 || ids[len(ids)-1] < claim.segment) {
		// Retention keeps the last segment.
		return nil, &CorruptionError{Damage: DamageMissing, File: path.Join(dir, segmentName(claim.segment, segmentKind))}
	}
	o := opening{l: l, claim: claim, ids: ids}
	for i := range ids {
		more, err := o.segment(i)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if len(o.drop) > 0 {
		// Newest first, so that a crash leaves no hole.
		for _, id := range slices.Backward(o.drop) {
			if err := l.remove(id); err != nil {
				return nil, err
			}
		}
	}
	if len(l.segments) == 0 {
		next := uint64(0)
		if len(ids) > 0 {
			next = ids[len(ids)-1] + 1
		}
		l.empty(claim, next)
		return l, nil
	}
	l.base.Store(l.segments[0].base)
	last := l.segments[len(l.segments)-1]
	h, err := s.files.get(l.path(last.id, segmentKind), false)
	if err != nil {
		return nil, err
	}
	defer s.files.put(h)
	size, err := h.Size()
	if err != nil {
		return nil, err
	}
	if size > last.size {
		h.dirty.Store(true)
		if err := h.Truncate(last.size); err != nil {
			return nil, err
		}
		if err := h.sync(); err != nil {
			return nil, err
		}
	}
	l.next = l.tail.Load()
	// Its index is made from its records, and written with the next ones.
	name := l.path(last.id, indexKind)
	s.files.drop(name)
	if err := s.opt.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l.boundsLocked()
	return l, nil
}

// empty makes l a log without segments.
func (l *Log) empty(claim *nameBody, id uint64) {
	l.firstID = id
	if claim != nil {
		l.firstID = max(id, claim.segment)
		l.tail.Store(claim.tail)
	}
	l.next = l.tail.Load()
	l.base.Store(l.next)
}

// opening is a log that is being opened.
type opening struct {
	l     *Log
	claim *nameBody
	ids   []uint64
	drop  []uint64 // segments that are to be removed
}

// covered reports whether the journal covers that position of a segment.
func (o *opening) covered(id uint64, pos int64) bool {
	return o.claim != nil && (id > o.claim.segment || id == o.claim.segment && pos >= o.claim.position)
}

// segment reads the i-th segment, and reports whether the next one has to be read.
func (o *opening) segment(i int) (more bool, err error) {
	l, id := o.l, o.ids[i]
	newest := i == len(o.ids)-1
	h, err := l.s.files.get(l.path(id, segmentKind), false)
	if err != nil {
		return false, err
	}
	defer l.s.files.put(h)
	size, err := h.Size()
	if err != nil {
		return false, err
	}
	fail := func(bad *CorruptionError, at int64) error {
		bad.File, bad.Position = path.Join(l.dir, segmentName(id, segmentKind)), at
		return bad
	}
	var header []byte
	n, err := readAt(h, &header, 0, segmentHeaderSize)
	if err != nil {
		return false, err
	}
	base, bad := parseSegmentHeader(header[:n])
	switch {
	case bad == nil:
	case o.covered(id, 0) && len(l.segments) == 0:
		return false, o.reset(i, h)
	case o.covered(id, 0), o.claim == nil && newest && size < segmentHeaderSize && (i > 0 || id == 0):
		// It was being made.
		o.drop = append(o.drop, o.ids[i:]...)
		return false, nil
	default:
		return false, fail(bad, 0)
	}
	if len(l.segments) == 0 && o.covered(id, 0) && base > o.claim.tail && o.claim.position == 0 {
		// What was before it is lost, and the journal has all of it. If there were a position, it would have been
		// synced, and retention would have removed it.
		return false, o.reset(i, h)
	}
	if len(l.segments) > 0 && base != l.tail.Load() {
		empty := size == segmentHeaderSize
		if o.covered(id, 0) || o.claim == nil && newest && empty {
			o.drop = append(o.drop, o.ids[i:]...)
			return false, nil
		}
		return false, fail(&CorruptionError{Damage: DamageOffset, Expected: l.tail.Load(), Found: base}, 8)
	}
	seg := segment{id: id, base: base, size: segmentHeaderSize, last: int64(binary.BigEndian.Uint64(header[16:]))}
	from := indexEntry{base, segmentHeaderSize}
	var check *indexCheck
	switch {
	case newest || o.covered(id, size):
	case !l.s.opt.VerifyAll:
		from = l.lastEntry(seg, size)
	default:
		if check, err = l.checkIndex(seg, size); err != nil {
			return false, err
		}
	}
	for {
		var end int64
		var next uint64
		l.index, l.indexed, l.sinceIdx = nil, 0, 0
		end, next, bad, err = scan(h, from.position, size, from.offset, func(r Record, at int64, b []byte) bool {
			seg.last = r.Time
			l.note(r.Offset, at, int64(len(b)))
			if check != nil {
				check.note(r.Offset, at)
			}
			return true
		})
		if err != nil {
			return false, err
		}
		seg.size = end
		l.tail.Store(next)
		if bad != nil && from.position > segmentHeaderSize {
			from = indexEntry{base, segmentHeaderSize} // the index may be wrong
			continue
		}
		break
	}
	if o.claim != nil && id == o.claim.segment && seg.size < o.claim.position {
		if bad == nil {
			bad = &CorruptionError{Damage: DamageTruncated, Expected: uint64(o.claim.position), Found: uint64(seg.size)}
		}
		return false, fail(bad, seg.size)
	}
	if bad != nil {
		switch {
		case o.covered(id, seg.size):
			o.drop = append(o.drop, o.ids[i+1:]...)
		case newest && o.repairable(bad, seg.size, size):
			l.repaired(id, segmentKind, seg.size, bad.Damage, size-seg.size)
		default:
			return false, fail(bad, seg.size)
		}
	} else if check != nil {
		if err := check.end(l, seg); err != nil {
			return false, err
		}
	}
	l.segments = append(l.segments, seg)
	if o.covered(id, seg.size) {
		// The kernel may have it, and the device not yet.
		o.unsynced(id, h)
		if o.covered(id, 0) {
			if err := h.write(header[:segmentHeaderSize], 0); err != nil {
				return false, err
			}
		}
	}
	return bad == nil, nil
}

// unsynced notes that the device may lack something of a segment.
func (o *opening) unsynced(id uint64, h *handle) {
	o.l.touch(id)
	h.dirty.Store(true)
	o.l.newFiles, o.l.newDir = true, true
}

// reset makes the i-th segment the log's first and empties it, because the journal has all records from there on. Later
// segments are removed. The file stays, so that a crash in between does not look as if all of the log had been lost.
func (o *opening) reset(i int, h *handle) error {
	l, id, base := o.l, o.ids[i], o.claim.tail
	now := l.s.opt.Now().UnixMicro()
	if err := h.Truncate(0); err != nil {
		return err
	}
	if err := h.write(appendSegmentHeader(base, now), 0); err != nil {
		return err
	}
	o.unsynced(id, h)
	o.drop = append(o.drop, o.ids[i+1:]...)
	l.segments = append(l.segments, segment{id: id, base: base, size: segmentHeaderSize, last: now})
	l.tail.Store(base)
	l.index, l.indexed, l.sinceIdx = nil, 0, 0
	return nil
}

// repairable reports whether damage at the end of the last segment is what an unfinished write leaves.
func (o *opening) repairable(bad *CorruptionError, at, size int64) bool {
	if bad.Damage == DamageTruncated {
		return true
	}
	if !o.l.s.opt.RepairTail {
		return false
	}
	switch bad.Damage {
	case DamageRecordHeader:
		return at+recordHeaderSize >= size
	case DamageRecord, DamageOffset, DamageRecordTooLarge:
		return o.endsFile(at, size)
	default:
		return false
	}
}

// endsFile reports whether the record at that position is the last one.
func (o *opening) endsFile(at, size int64) bool {
	id := o.ids[len(o.ids)-1]
	h, err := o.l.s.files.get(o.l.path(id, segmentKind), false)
	if err != nil {
		return false
	}
	defer o.l.s.files.put(h)
	var b []byte
	n, err := readAt(h, &b, at, recordHeaderSize)
	return err == nil && n == recordHeaderSize && at+recordSize(int(binary.BigEndian.Uint32(b))) >= size
}

// lastEntry returns the last entry of a sealed segment's index, or the begin of the segment. The index is a hint: what
// it leads to is verified.
func (l *Log) lastEntry(seg segment, size int64) indexEntry {
	begin := indexEntry{seg.base, segmentHeaderSize}
	b, err := readAll(l.s.opt.FS, l.path(seg.id, indexKind))
	if err != nil {
		return begin
	}
	entries, ok := parseIndex(b, seg.base, size)
	if !ok || len(entries) == 0 {
		return begin
	}
	return entries[len(entries)-1]
}

// reindex makes the index of the last segment from its records, so that more can be added.
func (l *Log) reindex(h vfs.File) error {
	last := l.segments[len(l.segments)-1]
	name := l.path(last.id, indexKind)
	l.s.files.drop(name)
	if err := l.s.opt.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.index, l.indexed, l.sinceIdx = nil, 0, 0
	_, _, bad, err := scan(h, segmentHeaderSize, last.size, last.base, func(r Record, at int64, b []byte) bool {
		l.note(r.Offset, at, int64(len(b)))
		return true
	})
	if err != nil {
		return err
	}
	if bad != nil {
		return fmt.Errorf("storage: a segment has changed while it was read: %w", bad)
	}
	return nil
}
