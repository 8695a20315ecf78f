package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

// exported returns a log with that many records, of which retention has removed some, and its export.
func exported(t testing.TB, records int) (*Log, []byte) {
	t.Helper()
	opt := small(&vfs.Mem{})
	s, err := Open("data", opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		done := make(chan error, 1)
		if _, err := l.Append([][]byte{payloadOf(0, uint64(i))}, ClassDevice, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	l.SetRetention(Retention{Count: uint64(records) / 2})
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := l.Export(&b); err != nil {
		t.Fatal(err)
	}
	return l, b.Bytes()
}

// restore reads an export into a log.
func restore(l *Log, b io.Reader) error {
	var r *Restore
	err := ReadExport(b, func(base, _ uint64) (err error) {
		r, err = l.Restore(base)
		return err
	}, func(rec Record) error { return r.Add(rec) })
	if err == nil {
		err = r.Flush()
	}
	return err
}

// all returns the records of a log.
func all(t *testing.T, l *Log) (list []string) {
	t.Helper()
	r, err := l.Read(l.Base())
	if err != nil {
		t.Fatal(err)
	}
	for {
		records, err := r.Next(1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) == 0 {
			return list
		}
		for _, rec := range records {
			list = append(list, fmt.Sprintf("%d %d %q", rec.Offset, rec.Time, rec.Payload))
		}
	}
}

// TestExport brings a log to another data directory, and finds the same offsets, times and bytes there after a crash.
func TestExport(t *testing.T) {
	l, b := exported(t, 60)
	want := all(t, l)
	if l.Base() == 0 || len(want) < 30 {
		t.Fatalf("the log has %d records from %d on", len(want), l.Base())
	}
	fs := &vfs.Mem{}
	s, err := Open("data", small(fs))
	if err != nil {
		t.Fatal(err)
	}
	to, err := s.Log(key(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := restore(to, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := restore(to, bytes.NewReader(b)); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into a log that has records: %v", err)
	}
	for _, survival := range []vfs.Survival{vfs.KeepAll, vfs.KeepNone} {
		fs = fs.Crash(survival, rand.New(rand.NewPCG(1, 2)))
		_ = s.Close()
		if s, err = Open("data", small(fs)); err != nil {
			t.Fatal(err)
		}
		if to, err = s.Log(key(1)); err != nil {
			t.Fatal(err)
		}
		got := all(t, to)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("after a crash that keeps %v: got %d records from %d on, want %d from %d on", survival, len(got), to.Base(), len(want), l.Base())
		}
	}
	defer s.Close()
	done := make(chan error, 1)
	if first, err := to.Append([][]byte{{1}}, ClassDevice, func(err error) { done <- err }); err != nil || first != l.Tail() {
		t.Errorf("the next record gets offset %d, error %v, want %d", first, err, l.Tail())
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestExportDamage flips each byte of an export and cuts it off everywhere. That is found, and what was read before is
// right.
func TestExportDamage(t *testing.T) {
	l, b := exported(t, 12)
	want := all(t, l)
	check := func(what string, b []byte) {
		t.Helper()
		n := 0
		err := ReadExport(bytes.NewReader(b), func(uint64, uint64) error { return nil }, func(rec Record) error {
			if got := fmt.Sprintf("%d %d %q", rec.Offset, rec.Time, rec.Payload); n >= len(want) || got != want[n] {
				t.Errorf("%s: record %d is %s", what, n, got)
			}
			n++
			return nil
		})
		if _, ok := errors.AsType[*CorruptionError](err); !ok {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range b {
		check(fmt.Sprint("cut off at ", i), b[:i])
		damaged := bytes.Clone(b)
		damaged[i] ^= 1 << (i % 8)
		check(fmt.Sprint("flipped at ", i), damaged)
	}
	check("with more behind it", append(bytes.Clone(b), 0))
}

func FuzzReadExport(f *testing.F) {
	_, b := exported(f, 5)
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, l := openLogWith(t, small(&vfs.Mem{}))
		defer s.Close()
		if restore(l, bytes.NewReader(b)) != nil {
			return
		}
		var again bytes.Buffer
		if err := l.Export(&again); err != nil || !bytes.Equal(again.Bytes(), b) {
			t.Errorf("an export that was read is another one when it is written again: %v", err)
		}
	})
}

// What is restored comes from no producer, also if there were appends of some just before.
func TestRestoreNoProducer(t *testing.T) {
	_, export := exported(t, 20)
	fs := &vfs.Mem{}
	opt := small(fs)
	s, err := Open("data", opt)
	if err != nil {
		t.Fatal(err)
	}
	from := Origin{Producer: producerID(1), Sequence: 1}
	l, err := s.Log(key(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 15 { // of which one leaves what it was with: an offset that is restored
		from.Sequence++
		if _, err := appendFrom(t, l, from, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if l, err = s.Log(key(2)); err != nil {
		t.Fatal(err)
	}
	if err := restore(l, bytes.NewReader(export)); err != nil {
		t.Fatal(err)
	}
	after := fs.Crash(vfs.KeepNone, rand.New(rand.NewPCG(0, 0)))
	s.Close()
	opt.FS = after
	if s, err = Open("data", opt); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if l, err = s.Log(key(2)); err != nil {
		t.Fatal(err)
	}
	from.Repeated = true
	if duplicate, _ := appendFrom(t, l, from, "x"); duplicate {
		t.Error("the log knows the producer of another log")
	}
}

// A log is in the data directory and nowhere else.
func TestLogInElsewhere(t *testing.T) {
	fs := &vfs.Mem{}
	s, err := Open("data", small(fs))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	changes := fs.Changes()
	for _, name := range []string{"", ".", "..", "../other", "/other", "a/b/c/d", `..\a`, journalDir} {
		if _, err := s.LogIn(name); !errors.Is(err, ErrNoLog) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if fs.Changes() != changes {
		t.Error("something was changed")
	}
}
