package storage

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

// counted is a file system that counts what is read from and written to segments.
type counted struct {
	vfs.FS
	read          atomic.Int64 // bytes
	reads, writes atomic.Int64
}

func (c *counted) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, segmentKind) {
		return f, err
	}
	return countedFile{f, c}, nil
}

func (c *counted) Open(name string) (vfs.File, error) {
	f, err := c.FS.Open(name)
	return c.wrap(name, f, err)
}

func (c *counted) Create(name string) (vfs.File, error) {
	f, err := c.FS.Create(name)
	return c.wrap(name, f, err)
}

type countedFile struct {
	vfs.File
	c *counted
}

func (f countedFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(b, at)
	f.c.reads.Add(1)
	f.c.read.Add(int64(n))
	return n, err
}

func (f countedFile) WriteAt(b []byte, at int64) (int, error) {
	f.c.writes.Add(1)
	return f.File.WriteAt(b, at)
}

// large appends n records to a log and closes the store or not.
func large(t *testing.T, n int, closed bool) *vfs.Mem {
	t.Helper()
	return largeIn(t, n, closed, 1<<30)
}

// largeIn is large with segments of that size.
func largeIn(t *testing.T, n int, closed bool, segment int64) *vfs.Mem {
	t.Helper()
	fs := &vfs.Mem{}
	s, err := Open("data", Options{FS: fs, SegmentBytes: segment})
	must(t, err)
	l, err := s.Log(key(0))
	must(t, err)
	done := make(chan error, 1)
	for i := 0; i < n; i += 100 {
		var batch [][]byte
		for k := range 100 {
			batch = append(batch, payloadOf(0, uint64(i+k)))
		}
		_, err := l.Append(batch, ClassDevice, func(err error) { done <- err })
		must(t, err)
		must(t, <-done)
	}
	if closed {
		must(t, s.Close())
		return fs
	}
	after := fs.Restart()
	_ = s.Close() // of what is gone
	return after
}

// openLarge opens what large has made, checks all records, and returns what opening has read and written.
func openLarge(t *testing.T, fs vfs.FS, n int, opt Options) (read, reads, writes int64) {
	t.Helper()
	c := &counted{FS: fs}
	opt.FS = c
	s, err := Open("data", opt)
	must(t, err)
	defer s.Close()
	l, err := s.Log(key(0))
	must(t, err)
	read, reads, writes = c.read.Load(), c.reads.Load(), c.writes.Load()
	if l.Tail() != uint64(n) {
		t.Fatalf("the log ends at %d, want %d", l.Tail(), n)
	}
	readBack(t, l, 0)
	// An offset is found by the index.
	before := c.read.Load()
	r, err := l.Read(uint64(n / 2))
	must(t, err)
	records, err := r.Next(1)
	must(t, err)
	if len(records) != 1 || string(records[0].Payload) != string(payloadOf(0, uint64(n/2))) {
		t.Errorf("offset %d has %v", n/2, records)
	}
	if got := c.read.Load() - before; got > 2*readWindow {
		t.Errorf("%d bytes were read to find an offset", got)
	}
	return read, reads, writes
}

// TestOpenReadsTheEnd opens a log after an orderly end: what is before the last entry of its index is not read, unless
// all is to be verified or the index is wrong. Entries are added to the index that is there.
func TestOpenReadsTheEnd(t *testing.T) {
	const n = 20_000
	fs := large(t, n, true)
	dir := "data/" + key(0).Dir() + "/"
	size := int64(len(read(t, fs, dir+segmentName(0, segmentKind))))
	if got, _, _ := openLarge(t, fs, n, Options{}); got > 3*4<<10 {
		t.Errorf("%d of %d bytes are read", got, size)
	}
	if got, _, _ := openLarge(t, fs, n, Options{VerifyAll: true}); got < size {
		t.Errorf("%d of %d bytes are read to verify all", got, size)
	}
	must(t, fs.Remove(dir+segmentName(0, indexKind)))
	if got, _, _ := openLarge(t, fs, n, Options{}); got < size {
		t.Errorf("%d of %d bytes are read without an index", got, size)
	}
	// It was made from the records.
	if got, _, _ := openLarge(t, fs, n, Options{}); got > size/2 {
		t.Errorf("%d of %d bytes are read when an index was made", got, size)
	}
	fs = large(t, n, true)
	index := dir + segmentName(0, indexKind)
	entries := int64(len(read(t, fs, index))-indexHeaderSize) / indexEntrySize
	for _, at := range []int64{entries/2*indexEntrySize + 15, (entries-1)*indexEntrySize + 7, (entries-1)*indexEntrySize + 15} {
		damaged := clone(t, fs) // position of one entry, offset and position of the last
		flip(t, damaged, index, indexHeaderSize+at)
		openLarge(t, damaged, n, Options{})
	}
	// Entries are added to those that are there, and in place of those that are wrong.
	before := read(t, fs, index)
	bogus := appendIndexEntry(appendIndexEntry(nil, indexEntry{n, size}), indexEntry{n + 1, size + 100})
	for what, change := range map[string]func(f vfs.File) (int, error){
		"nothing":         func(vfs.File) (int, error) { return 0, nil },
		"more at the end": func(f vfs.File) (int, error) { return f.WriteAt(bogus, int64(len(before))) },
		"a hole": func(f vfs.File) (int, error) {
			return f.WriteAt(make([]byte, 64), indexHeaderSize+entries/2*indexEntrySize)
		},
	} {
		fs := clone(t, fs)
		f, err := fs.Open(index)
		must(t, err)
		_, err = change(f)
		must(t, err)
		s, err := Open("data", Options{FS: fs})
		must(t, err)
		appendOne(t, s, 0)
		must(t, s.Close())
		b := read(t, fs, index)
		list, ok := parseIndex(b, 0, size)
		if !ok || len(list)*indexEntrySize+indexHeaderSize != len(b) || !bytes.HasPrefix(b, before) {
			t.Errorf("%s: %d entries in %d bytes of the index, and were %d", what, len(list), len(b), entries)
		}
	}
	s, err := Open("data", Options{FS: fs})
	must(t, err)
	for range 200 {
		appendOne(t, s, 0)
	}
	must(t, s.Close())
	b := read(t, fs, index)
	if list, ok := parseIndex(b, 0, 1<<40); !ok || int64(len(list)) <= entries || !bytes.HasPrefix(b, before) {
		t.Errorf("%d entries of the index, and were %d", len(list), entries)
	}
	s, err = Open("data", Options{FS: fs, VerifyAll: true, Repaired: func(r Repair) { t.Errorf("mended: %+v", r) }})
	must(t, err)
	l, err := s.Log(key(0))
	must(t, err)
	readBack(t, l, 0)
	must(t, s.Close())
}

// TestRecoveryInRuns opens a log that the journal has all of, with and without what is in its segment: that is compared
// and written in runs, and not record by record.
func TestRecoveryInRuns(t *testing.T) {
	const n = 20_000
	fs := large(t, n, false)
	for _, cut := range []int64{-1, 100_001, segmentHeaderSize} {
		fs := clone(t, fs)
		if cut >= 0 {
			f, err := fs.Open("data/" + key(0).Dir() + "/" + segmentName(0, segmentKind))
			must(t, err)
			must(t, f.Truncate(cut))
		}
		_, reads, writes := openLarge(t, fs, n, Options{})
		if reads > n/10 || writes > n/10 {
			t.Errorf("cut at %d: %d reads and %d writes for %d records", cut, reads, writes, n)
		}
	}
}

// TestJournalIsRight puts other records into a segment than those that the journal has.
func TestJournalIsRight(t *testing.T) {
	const n = 1000
	fs := large(t, n, false)
	name := "data/" + key(0).Dir() + "/" + segmentName(0, segmentKind)
	for _, offset := range []uint64{0, 499, n - 1} {
		fs := clone(t, fs)
		f, err := fs.Open(name)
		must(t, err)
		size, err := f.Size()
		must(t, err)
		var other []byte
		var where int64
		_, _, _, err = scan(f, segmentHeaderSize, size, 0, func(r Record, at int64, b []byte) bool {
			where = at
			r.Payload = append([]byte("x"), r.Payload[1:]...)
			other = appendRecord(nil, r)
			return r.Offset != offset
		})
		must(t, err)
		_, err = f.WriteAt(other, where)
		must(t, err)
		openLarge(t, fs, n, Options{})
	}
}

// TestTornAfterJournal damages a segment where the journal does not have its records any more, but the index has
// entries after the damage: that is the end of the log, and not found by readers.
func TestTornAfterJournal(t *testing.T) {
	const n = 20_000
	for _, segment := range []int64{1 << 30, 300 << 10} {
		fs := largeIn(t, n, false, segment)
		journal := "data/" + journalDir + "/" + segmentName(0, journalKind)
		f, err := fs.Open(journal)
		must(t, err)
		must(t, f.Truncate(200<<10))
		id, at := uint64(0), int64(800<<10)
		if segment < at {
			id, at = 2, 100<<10
		}
		flip(t, fs, "data/"+key(0).Dir()+"/"+segmentName(id, segmentKind), at)
		s, err := Open("data", Options{FS: fs, SegmentBytes: segment})
		must(t, err)
		l, err := s.Log(key(0))
		must(t, err)
		if l.Tail() >= n || l.Tail() < n/4 {
			t.Errorf("segments of %d bytes: the log ends at %d", segment, l.Tail())
		}
		readBack(t, l, 0)
		must(t, s.Close())
	}
}
