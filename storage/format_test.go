package storage

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

// TestGoldenBytes pins the format that other programs read.
func TestGoldenBytes(t *testing.T) {
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"segment header", "464C5347 0002 0000 0000000000000001 0000000000000002 7A09E5B1 00000000", appendSegmentHeader(1, 2)},
		{"record", "00000002 0000000000000007 0000000000000009 C654DE27 2402152C 6869", appendRecord(nil, Record{7, 9, []byte("hi")})},
		{"index header", "464C5349 0002 0000 0000000000000001 0000000000000000", appendIndexHeader(1)},
	} {
		if got := strings.ToUpper(hex.EncodeToString(c.got)); got != strings.ReplaceAll(c.want, " ", "") {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestKeyDir(t *testing.T) {
	for key, want := range map[Key]string{
		{"acme", "default", "orders", 3}: "acme_default_orders_3-0d3af04b998d2cb1",
		{"acme", "default", "orders", 0}: "acme_default_orders_0-0d3aed4b998d2798",
		{}:                               "______0-17d9c15239d081d5",
	} {
		if got := key.Dir(); got != want {
			t.Errorf("%v: %s, want %s", key, got, want)
		}
	}
	long := Key{Tenant: strings.Repeat("ä/", 40)}.Dir()
	if !strings.HasPrefix(long, strings.Repeat("_", 32)+"___") || strings.Contains(long, "/") {
		t.Errorf("%s", long)
	}
}

// TestEachBitOfARecord flips each bit of a record and of a segment's header.
func TestEachBitOfARecord(t *testing.T) {
	record := appendRecord(nil, Record{7, 9, []byte("some payload")})
	for i := range len(record) * 8 {
		b := bytes.Clone(record)
		b[i/8] ^= 1 << (i % 8)
		if r, _, bad := parseRecord(b, int64(len(b)), 7); bad == nil && r.Payload != nil {
			t.Errorf("bit %d of the record: not found", i)
		}
	}
	header := appendSegmentHeader(1, 2)
	for i := range 28 * 8 {
		b := bytes.Clone(header)
		b[i/8] ^= 1 << (i % 8)
		if _, bad := parseSegmentHeader(b); bad == nil {
			t.Errorf("bit %d of the header: not found", i)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(appendRecord(nil, Record{7, 9, []byte("hi")}), uint64(7))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, want uint64) {
		r, n, bad := parseRecord(b, int64(len(b)), want)
		if bad != nil || r.Payload == nil {
			return
		}
		if again := appendRecord(nil, r); !bytes.Equal(again, b[:n]) {
			t.Errorf("%x was read as a record that is written as %x", b[:n], again)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(appendIndexEntry(appendIndexHeader(5), indexEntry{5, 32}), uint64(5), int64(100))
	f.Fuzz(func(t *testing.T, b []byte, base uint64, size int64) {
		entries, ok := parseIndex(b, base, size)
		for i, e := range entries {
			if !ok || e.offset < base || e.position < segmentHeaderSize || e.position >= size ||
				i > 0 && (e.offset <= entries[i-1].offset || e.position <= entries[i-1].position) {
				t.Fatalf("entry %d of %v", i, entries)
			}
		}
	})
}

// FuzzJournal opens a directory with any bytes for a journal file.
func FuzzJournal(f *testing.F) {
	fs := &vfs.Mem{}
	fs.CrashAfter(18)
	promises := make([]promise, 2)
	s, err := Open("data", small(fs))
	if err != nil {
		f.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		f.Fatal(err)
	}
	for i := range 5 {
		done := make(chan error, 1)
		if _, err := l.Append([][]byte{payloadOf(0, uint64(i))}, ClassDevice, func(err error) { done <- err }); err == nil {
			if err := <-done; err != nil && !errors.Is(err, ErrFailed) { // it crashes on the way
				f.Fatal(err)
			}
		}
	}
	_ = s.Close()
	image := fs.Restart()
	b, err := readAll(image, "data/journal/"+segmentName(0, journalKind))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := &vfs.Mem{}
		if err := fs.MkdirAll("data/journal"); err != nil {
			t.Fatal(err)
		}
		file, err := fs.Create("data/journal/" + segmentName(0, journalKind))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		s, err := Open("data", small(fs))
		if err != nil {
			if _, ok := errors.AsType[*CorruptionError](err); !ok {
				t.Fatal(err)
			}
			return
		}
		for i := range promises {
			if _, err := s.Log(key(i)); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
