package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
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

// A log whose segments cannot be what a crash has left is refused, and the others are served. What the journal has of
// it is put aside into a file of its own, in the format of a journal file, before the journal is emptied. The log is
// recovered from there when it is opened, after it has been mended.

// asideName is the name of that file in the log's directory.
const asideName = "unrecovered.wal"

// errAside means that a log has to be opened with what was put aside.
var errAside = errors.New("storage: records of the log were put aside")

// recovery is a log that the journal has records of.
type recovery struct {
	log *Log
	bad error // why the log cannot be opened, and its entries are left alone

	// Where the segments have the next record that the journal may have, if they have it.
	segment int
	pos     int64
	next    uint64
	buf     []byte

	tags    []tag  // of the records to come
	known   uint64 // the offset before which the producers are known from their file
	covered uint64 // the offset after the last record that the journal has

	put int64 // how much has been written to the file aside
}

// replay takes the entries of a journal to logs.
type replay struct {
	s    *Store
	logs map[string]*recovery // by directory
}

// byLog returns a function for readJournal that calls each with the entries that are about logs, and with the log's
// directory.
func byLog(each func(file, dir string, e entry, body []byte) error) func(file string, e entry, body []byte) error {
	known, of := map[uint32]string{}, "" // the directories by number, in the file of that name
	return func(file string, e entry, body []byte) error {
		if file != of {
			of = file
			clear(known)
		}
		switch e.kind {
		case entryEnd:
			return nil
		case entryName:
			name, ok := parseNameBody(body)
			if !ok {
				return &CorruptionError{Damage: DamageRecord, File: file}
			}
			known[e.log] = name.dir
		}
		dir, ok := known[e.log]
		if !ok {
			return &CorruptionError{Damage: DamageMissing, File: file, Found: uint64(e.log)}
		}
		return each(file, dir, e, body)
	}
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
	files := make([]string, len(numbers))
	for i, n := range numbers {
		files[i] = path.Join(journalDir, segmentName(n, journalKind))
	}
	r := replay{s: s, logs: map[string]*recovery{}}
	sequence, err := readJournal(s.opt.FS, s.root, files, numbers[0], byLog(r.entry))
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	if err := r.putAside(files, numbers[0]); err != nil {
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
	s.files.trim(true)
	return nil
}

// recoverAside opens a log whose records were put aside, and brings it up to date.
func (s *Store) recoverAside(dir string) (*Log, error) {
	r := replay{s: s, logs: map[string]*recovery{}}
	file := path.Join(dir, asideName)
	ended := false
	take := byLog(r.entry)
	_, err := readJournal(s.opt.FS, s.root, []string{file}, 0, func(file string, e entry, body []byte) error {
		ended = e.kind == entryEnd
		if name, ok := parseNameBody(body); e.kind == entryName && (!ok || name.dir != dir) { // of another log
			return &CorruptionError{Damage: DamageRecord, File: file}
		}
		return take(file, e, body)
	})
	if err != nil {
		return nil, err
	}
	l := r.logs[dir]
	if !ended || l == nil {
		return nil, &CorruptionError{Damage: DamageTruncated, File: file}
	}
	if l.bad != nil {
		return nil, l.bad
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return l.log, nil
}

// entry takes an entry of a journal file to its log, which it opens at the first name.
func (p *replay) entry(file, dir string, e entry, body []byte) error {
	r := p.logs[dir]
	switch {
	case r == nil:
		claim, _ := parseNameBody(body)
		r = &recovery{}
		l, known, err := p.s.openLog(dir, &claim)
		if err = r.refuse(err); err != nil {
			return err
		}
		if r.bad == nil {
			r = newRecovery(l, claim)
			r.known = known
		}
		p.logs[dir] = r
	case e.kind == entryName, r.refused():
	case e.kind == entryRecords:
		return r.refuse(r.records(body))
	default:
		var ok bool
		if r.tags, ok = parseTags(r.tags[:0], body); !ok {
			return &CorruptionError{Damage: DamageRecord, File: file}
		}
	}
	return nil
}

// refused reports whether the log cannot be opened.
func (r *recovery) refused() bool { return r.bad != nil }

// refuse notes damage of the log, and returns errors of another kind.
func (r *recovery) refuse(err error) error {
	if _, ok := errors.AsType[*CorruptionError](err); ok {
		r.bad = err
		if r.log != nil { // the files may be others when it is opened again
			for _, seg := range r.log.segments {
				r.log.s.files.drop(r.log.path(seg.id, segmentKind))
			}
		}
		return nil
	}
	return err
}

// end makes what was recovered survive, and makes the logs known to the store.
func (p *replay) end() error {
	s := p.s
	var all []*Log
	for _, r := range p.logs {
		if r.bad != nil {
			continue
		}
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
	for dir, r := range p.logs {
		if r.bad != nil {
			continue
		}
		if r.log.aside { // what it has is in the segments now
			full := path.Join(s.root, dir)
			if err := errors.Join(s.opt.FS.Remove(path.Join(full, asideName)), s.opt.FS.SyncDir(full)); err != nil {
				return err
			}
			r.log.aside = false
		}
		s.mu.Lock()
		s.logs[dir] = r.log
		s.mu.Unlock()
	}
	return nil
}

// putAside writes what the journal has of each log that is refused to a file of its own.
func (p *replay) putAside(files []string, first uint64) error {
	s := p.s
	if !slices.ContainsFunc(slices.Collect(maps.Values(p.logs)), func(r *recovery) bool { return r.bad != nil }) {
		return nil
	}
	draft := func(dir string) string { return path.Join(s.root, dir, asideName+".new") }
	add := func(dir string, r *recovery, create bool, b []byte) error {
		h, err := s.files.get(draft(dir), create)
		if err != nil {
			return err
		}
		defer s.files.put(h)
		err = h.write(b, r.put)
		r.put += int64(len(b))
		return err
	}
	sequences := map[string]uint64{}
	next := func(dir string, kind uint32) entry {
		n := sequences[dir]
		sequences[dir]++
		return entry{kind: kind, sequence: n, synced: n}
	}
	_, err := readJournal(s.opt.FS, s.root, files, first, byLog(func(_, dir string, e entry, body []byte) error {
		r := p.logs[dir]
		if r.bad == nil {
			return nil
		}
		if e.kind != entryName {
			return add(dir, r, false, appendEntry(nil, 0, next(dir, e.kind), body))
		}
		if r.put > 0 {
			return nil
		}
		if err := s.opt.FS.MkdirAll(path.Join(s.root, dir)); err != nil {
			return err
		}
		s.files.drop(draft(dir))
		if err := s.opt.FS.Remove(draft(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return add(dir, r, true, appendEntry(appendJournalHeader(nil, 0, 0, 0, 0), 0, next(dir, entryName), body))
	}))
	if err != nil {
		return err
	}
	for dir, r := range p.logs {
		if r.bad == nil {
			continue
		}
		if err := add(dir, r, false, appendEntry(nil, 0, next(dir, entryEnd), nil)); err != nil {
			return err
		}
		h, err := s.files.get(draft(dir), false)
		if err != nil {
			return err
		}
		err = h.sync()
		s.files.putAway(h)
		s.files.drop(draft(dir))
		full := path.Join(s.root, dir)
		if err = errors.Join(err, s.Err()); err != nil {
			return err
		}
		if err := errors.Join(s.opt.FS.Rename(draft(dir), path.Join(full, asideName)), s.opt.FS.SyncDir(full)); err != nil {
			return err
		}
	}
	return s.opt.FS.SyncDir(s.root)
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
	last, err := r.apply(body)
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

// nextRecord returns offset and size of the record at the begin of b, which has been verified.
func nextRecord(b []byte) (offset uint64, size int) {
	return binary.BigEndian.Uint64(b[4:]), int(recordSize(int(binary.BigEndian.Uint32(b))))
}

// apply writes records of the journal to the log, unless the log has them, and returns the last offset.
func (r *recovery) apply(b []byte) (last uint64, err error) {
	l := r.log
	for len(b) > 0 {
		offset, size := nextRecord(b)
		switch {
		case offset < r.next: // retention has removed it
			last, b = offset, b[size:]
			continue
		case offset == r.next && r.next < l.tail.Load():
			n, err := r.compare(b)
			if err != nil {
				return 0, err
			}
			last, b = r.next-1, b[n:]
			continue
		case offset != l.tail.Load():
			return 0, &CorruptionError{Damage: DamageOffset, File: l.dir, Expected: l.tail.Load(), Found: offset}
		}
		// As many as the segment has space for, or as the next one has. A segment without records takes any.
		space := l.s.opt.SegmentBytes - segmentHeaderSize
		if n := len(l.segments); n > 0 {
			if left := l.s.opt.SegmentBytes - l.segments[n-1].size; left >= int64(size) {
				space = left
			}
		}
		n := 0
		for n < len(b) {
			_, size := nextRecord(b[n:])
			if n > 0 && int64(n+size) > space {
				break
			}
			n += size
		}
		p := pending{bytes: b[:n]}
		if err := l.write([]*pending{&p}, b[:n]); err != nil {
			return 0, err
		}
		r.segment = len(l.segments) - 1
		r.pos = l.segments[r.segment].size
		r.next = l.tail.Load()
		last, b = r.next-1, b[n:]
	}
	return last, nil
}

// compare goes over the records in b that a segment has at the place where it must have them, and returns their size.
// Where one differs, the log is cut off.
func (r *recovery) compare(b []byte) (int, error) {
	l := r.log
	for r.pos >= l.segments[r.segment].size {
		r.segment++
		r.pos = segmentHeaderSize
	}
	seg := l.segments[r.segment]
	h, err := l.s.files.get(l.path(seg.id, segmentKind), false)
	if err != nil {
		return 0, err
	}
	defer l.s.files.put(h)
	want := min(int64(len(b)), seg.size-r.pos)
	n, err := readAt(h, &r.buf, r.pos, want)
	if err != nil {
		return 0, err
	}
	same, count := 0, uint64(0)
	for same < n {
		_, size := nextRecord(b[same:])
		if same+size > n || !bytes.Equal(r.buf[same:same+size], b[same:same+size]) {
			break
		}
		same += size
		count++
	}
	// Written again: if a sync has failed before, the kernel may have these bytes, take them for written, and be wrong.
	if same > 0 {
		if err := h.write(b[:same], r.pos); err != nil {
			return 0, err
		}
	}
	r.pos += int64(same)
	r.next += count
	if int64(same) < want {
		return same, l.cut(r.segment, r.pos, r.next)
	}
	return same, nil
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
		l.aside = l.aside || e.Name == asideName && !e.Dir
		if id, ok := parseID(e.Name, segmentKind); ok && !e.Dir {
			ids = append(ids, id)
		}
	}
	if l.aside && claim == nil {
		return nil, errAside
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
	if o.size > last.size {
		if err := l.truncate(last); err != nil {
			return nil, err
		}
	}
	l.next = l.tail.Load()
	name := segmentName(last.id, indexKind)
	if slices.ContainsFunc(entries, func(e vfs.Entry) bool { return e.Name == name }) {
		if err := l.resumeIndex(l.path(last.id, indexKind), o.indexSize); err != nil {
			return nil, err
		}
	}
	if len(l.index) >= indexBatch {
		l.flushIndex()
	}
	l.boundsLocked()
	return l, nil
}

// truncate removes what is after the last segment's records.
func (l *Log) truncate(last segment) error {
	h, err := l.s.files.get(l.path(last.id, segmentKind), false)
	if err != nil {
		return err
	}
	defer l.s.files.putAway(h)
	h.dirty.Store(true)
	if err := h.Truncate(last.size); err != nil {
		return err
	}
	return h.sync()
}

// resumeIndex makes the index of the last segment, which has that size, end after the entries that are kept. If none
// are, it is made from the records again, and written with the next ones.
func (l *Log) resumeIndex(name string, size int64) error {
	end := indexHeaderSize + indexEntrySize*l.indexed
	switch {
	case l.indexed < 0:
		return nil
	case l.indexed == 0:
		l.s.files.drop(name)
		return l.s.opt.FS.Remove(name)
	case size <= end:
		return nil
	}
	h, err := l.s.files.get(name, false)
	if err != nil {
		return err
	}
	defer l.s.files.putAway(h)
	return h.Truncate(end)
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

	size, indexSize int64 // of the files of the last segment
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
	defer l.s.files.putAway(h)
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
	from, indexed := indexEntry{base, segmentHeaderSize}, int64(0)
	var check *indexCheck
	o.size, o.indexSize = size, 0
	switch {
	case !l.s.opt.VerifyAll:
		synced := size // what is before may be taken for whole
		if o.covered(id, size) {
			synced = segmentHeaderSize
			if id == o.claim.segment {
				synced = o.claim.position
			}
		}
		from, indexed = o.lastEntry(seg, size, synced, newest)
	case !newest && !o.covered(id, size):
		if check, err = l.checkIndex(seg, size); err != nil {
			return false, err
		}
	}
	for {
		var end int64
		var next uint64
		l.index, l.indexed, l.sinceIdx = nil, indexed, 0
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
			from, indexed = indexEntry{base, segmentHeaderSize}, 0 // the index may be wrong
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
	defer o.l.s.files.putAway(h)
	var b []byte
	n, err := readAt(h, &b, at, recordHeaderSize)
	return err == nil && n == recordHeaderSize && at+recordSize(int(binary.BigEndian.Uint32(b))) >= size
}

// lastEntry returns the last entry of a segment's index that is before the position end, or the begin of the segment,
// and how many entries of the file are up to there; -1 if others are between them. The index is a hint: it is not
// synced, and what it leads to is verified. That of the newest segment is made again unless it is right so far, because
// entries will be added.
func (o *opening) lastEntry(seg segment, size, end int64, newest bool) (indexEntry, int64) {
	begin := indexEntry{seg.base, segmentHeaderSize}
	if end <= segmentHeaderSize {
		return begin, 0
	}
	b, err := readAll(o.l.s.opt.FS, o.l.path(seg.id, indexKind))
	if err != nil {
		return begin, 0
	}
	o.indexSize = int64(len(b))
	entries, ok := parseIndex(b, seg.base, min(size, end))
	if !ok || len(entries) == 0 {
		return begin, 0
	}
	n := len(entries)
	last := entries[n-1]
	right := string(appendIndexEntry(nil, last)) == string(b[indexHeaderSize+(n-1)*indexEntrySize:][:indexEntrySize])
	switch {
	case right:
		return last, int64(n)
	case newest:
		return begin, 0
	default:
		return last, -1
	}
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
	if bad != nil { // before what the journal has
		bad.File = path.Join(l.dir, segmentName(last.id, segmentKind))
		return bad
	}
	return nil
}
