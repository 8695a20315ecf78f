package storage

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"sort"
	"sync"

	"github.com/felix-mq/felix/internal/vfs"
)

// readWindow is how many bytes are read at once, unless a record is larger.
const readWindow = 256 << 10

// Reader reads a log from an offset on. It holds no file while it is not used. It may be used by one goroutine at a
// time.
type Reader struct {
	l       *Log
	next    uint64
	segment uint64
	pos     int64 // of next in that segment, 0: not known
	buf     []byte
	records []Record
}

// Read returns a reader that begins at an offset, which may be the tail. Otherwise it returns a [RangeError].
func (l *Log) Read(from uint64) (*Reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.base.Load() || from > l.tail.Load() {
		return nil, &RangeError{Requested: from, Base: l.base.Load(), Tail: l.tail.Load()}
	}
	return &Reader{l: l, next: from}, nil
}

// OffsetAt returns the offset of the first record that has that time, in microseconds since 1970, or a later one, and
// the tail if there is none. Times of records are those of the machine's clock when they were appended. Where that was
// set back, it is one of the records that qualify. It reads from the disk.
func (l *Log) OffsetAt(t int64) (uint64, error) {
	l.mu.Lock()
	segments, base, tail := slices.Clone(l.segments), l.base.Load(), l.tail.Load()
	l.mu.Unlock()
	i := slices.IndexFunc(segments, func(s segment) bool { return s.last >= t })
	if i < 0 {
		return tail, nil
	}
	from, to := max(segments[i].base, base), tail
	if i+1 < len(segments) {
		to = segments[i+1].base
	}
	for from < to {
		middle := from + (to-from)/2
		r, err := l.Read(middle)
		var records []Record
		if err == nil {
			records, err = r.Next(1)
		}
		if e, ok := errors.AsType[*RangeError](err); ok && e.TooOld() {
			return e.Base, nil // retention was faster, and what it has left is as new
		}
		if err != nil {
			return 0, err
		}
		if records[0].Time < t {
			from = middle + 1
		} else {
			to = middle
		}
		r.Free()
	}
	return from, nil
}

// Offset returns the offset of the record that Next returns first.
func (r *Reader) Offset() uint64 { return r.next }

// Next returns the next records: as many as have payloads of limit bytes together, and at least one. It returns none at
// the tail of the log. Every record has been verified; damage is a [CorruptionError]. If retention has removed the next
// record, the error is a [RangeError]. The payloads are views until the next call, or that of Free.
func (r *Reader) Next(limit int) ([]Record, error) { return r.NextBefore(limit, math.MaxUint64, nil) }

// Free gives the reader's memory back. It goes on where it was.
func (r *Reader) Free() {
	if b := r.buf; cap(b) > 0 && cap(b) <= readWindow {
		buffers.Put(&b)
	}
	clear(r.records)
	r.buf, r.records = nil, r.records[:0]
}

// Rewind makes Next begin with that record, which is one of those that the last call has returned.
func (r *Reader) Rewind(to Record) {
	for i := len(r.records) - 1; i >= 0 && r.next > to.Offset; i-- {
		r.next--
		r.pos -= recordSize(len(r.records[i].Payload))
	}
}

// buffers has what readers gave back, as *[]byte.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// NextBefore is [Reader.Next] for a log that ends before the offset end. charge, if there is one, is asked before
// memory for the records is taken, with the bytes that are added; if that fails, so does NextBefore, and the next call
// returns the same records. Free gives the memory back.
func (r *Reader) NextBefore(limit int, end uint64, charge func(bytes int) error) ([]Record, error) {
	l := r.l
	r.records = r.records[:0]
	l.mu.Lock()
	base, tail := l.base.Load(), l.tail.Load()
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].base > r.next }) - 1
	var s segment
	if i >= 0 {
		s = l.segments[i]
	}
	l.mu.Unlock()
	if r.next >= min(tail, end) {
		return nil, nil
	}
	if r.next < base || i < 0 {
		return nil, &RangeError{Requested: r.next, Base: base, Tail: tail}
	}
	h, err := l.s.files.get(l.path(s.id, segmentKind), false)
	if errors.Is(err, fs.ErrNotExist) {
		if base := l.Base(); r.next < base { // retention has removed it meanwhile
			return nil, &RangeError{Requested: r.next, Base: base, Tail: l.Tail()}
		}
	}
	if err != nil {
		return nil, err
	}
	defer l.s.files.put(h)
	if r.segment != s.id || r.pos == 0 {
		if err := r.seek(h, s, charge); err != nil {
			return nil, err
		}
	}
	return r.read(h, s, limit, end, charge)
}

// seek finds the next record in a segment.
func (r *Reader) seek(h *handle, s segment, charge func(int) error) error {
	if r.next == s.base {
		r.segment, r.pos = s.id, segmentHeaderSize
		return nil
	}
	if err := r.reserve(min(readWindow, s.size), charge); err != nil {
		return err
	}
	r.segment, r.pos = s.id, segmentHeaderSize
	from := indexEntry{s.base, segmentHeaderSize}
	for _, e := range []indexEntry{r.l.lookup(s, r.next), from} {
		found := false
		_, _, bad, err := scanWith(&r.buf, h, e.position, s.size, e.offset, func(rec Record, at int64, _ []byte) bool {
			found = rec.Offset == r.next
			r.pos = at
			return !found
		})
		switch {
		case err != nil:
			r.pos = 0
			return err
		case found:
			return nil
		case bad != nil && e == from:
			r.pos = 0
			bad.File = path.Join(r.l.dir, segmentName(s.id, segmentKind))
			return bad
		}
		// An index is never trusted: without it, the record is looked for from the begin.
	}
	r.pos = 0
	return &CorruptionError{Damage: DamageOffset, File: path.Join(r.l.dir, segmentName(s.id, segmentKind)), Position: s.size, Expected: r.next}
}

// lookup returns the last entry of a segment's index that is not after offset.
func (l *Log) lookup(s segment, offset uint64) indexEntry {
	begin := indexEntry{s.base, segmentHeaderSize}
	l.mu.Lock()
	last := l.segments[len(l.segments)-1]
	if last.id == s.id {
		for _, e := range slices.Backward(l.index) {
			if e.offset <= offset {
				l.mu.Unlock()
				return e
			}
		}
	}
	l.mu.Unlock()
	h, err := l.s.files.get(l.path(s.id, indexKind), false)
	if err != nil {
		return begin
	}
	defer l.s.files.put(h)
	size, err := h.Size()
	if err != nil {
		return begin
	}
	at := func(i int) (e indexEntry) {
		var b [indexEntrySize]byte
		if _, err := h.ReadAt(b[:], int64(indexHeaderSize+i*indexEntrySize)); err != nil && !errors.Is(err, io.EOF) {
			return indexEntry{}
		}
		return indexEntry{binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint64(b[8:]))}
	}
	n := int(max(0, size-indexHeaderSize)) / indexEntrySize
	i := sort.Search(n, func(i int) bool { return at(i).offset > offset }) - 1
	if i < 0 {
		return begin
	}
	if e := at(i); e.offset >= s.base && e.offset <= offset && e.position >= segmentHeaderSize && e.position < s.size {
		return e
	}
	return begin
}

// read returns records of a segment from r.pos on, those before the offset end.
func (r *Reader) read(h *handle, s segment, limit int, end uint64, charge func(int) error) ([]Record, error) {
	want := int64(min(max(limit, 1), readWindow-recordHeaderSize) + recordHeaderSize)
	for {
		if err := r.reserve(min(want, s.size-r.pos), charge); err != nil {
			return nil, err
		}
		n, err := readAt(h, &r.buf, r.pos, min(want, s.size-r.pos))
		if err != nil {
			return nil, err
		}
		b := r.buf[:n]
		pos, payloads := r.pos, 0
		for len(b) > 0 && r.next < end {
			rec, size, bad := parseRecord(b, s.size-pos, r.next)
			if bad != nil {
				if len(r.records) > 0 {
					break // the next call reports it
				}
				bad.File, bad.Position = path.Join(r.l.dir, segmentName(s.id, segmentKind)), pos
				return nil, bad
			}
			if int64(len(b)) < size {
				want = max(want, size)
				break
			}
			if len(r.records) > 0 && payloads+len(rec.Payload) > limit {
				break
			}
			payloads += len(rec.Payload)
			r.records = append(r.records, rec)
			r.next++
			pos += size
			b = b[size:]
		}
		if len(r.records) > 0 {
			r.pos = pos
			return r.records, nil
		}
		if int64(n) == s.size-r.pos {
			return nil, &CorruptionError{
				Damage: DamageTruncated, File: path.Join(r.l.dir, segmentName(s.id, segmentKind)), Position: pos, Expected: uint64(want),
				Found: uint64(n),
			}
		}
	}
}

// reserve makes the buffer hold n bytes.
func (r *Reader) reserve(n int64, charge func(int) error) error {
	if n <= int64(cap(r.buf)) {
		return nil
	}
	b := r.buf
	if b == nil {
		b = *buffers.Get().(*[]byte)
	}
	if more := max(int(n), cap(b)) - cap(r.buf); charge != nil && more > 0 {
		if err := charge(more); err != nil {
			if r.buf == nil {
				buffers.Put(&b)
			}
			return err
		}
	}
	if int64(cap(b)) < n {
		b = make([]byte, n)
	}
	r.buf = b
	return nil
}

// readAt reads n bytes into *buf, which it may replace, and returns how many there are.
func readAt(f vfs.File, buf *[]byte, pos, n int64) (int, error) {
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	got, err := f.ReadAt(*buf, pos)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got, err
}

// scan calls each with the records of a segment of size bytes from pos on, of which the first has the offset next, and
// with their position and bytes, as views, until each returns false. It returns position and offset after the last one,
// and what is wrong there, if that is why it ended.
func scan(f vfs.File, pos, size int64, next uint64, each func(r Record, at int64, b []byte) bool) (int64, uint64, *CorruptionError, error) {
	return scanWith(new([]byte), f, pos, size, next, each)
}

// scanWith is scan with a buffer to read into, which it may replace.
func scanWith(
	buf *[]byte, f vfs.File, pos, size int64, next uint64, each func(r Record, at int64, b []byte) bool,
) (int64, uint64, *CorruptionError, error) {
	window := int64(readWindow)
	for pos < size {
		n, err := readAt(f, buf, pos, min(window, size-pos))
		if err != nil {
			return pos, next, nil, err
		}
		if int64(n) < min(window, size-pos) {
			size = pos + int64(n) // the file is shorter
		}
		b := (*buf)[:n]
		for len(b) > 0 {
			r, n, bad := parseRecord(b, size-pos, next)
			if bad != nil {
				bad.Position = pos
				return pos, next, bad, nil
			}
			if int64(len(b)) < n {
				window = max(window, n)
				break
			}
			if !each(r, pos, b[:n:n]) {
				return pos, next, nil, nil
			}
			pos += n
			next++
			b = b[n:]
		}
	}
	return pos, next, nil, nil
}
