package storage

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// unclean is a data directory whose process was killed, with records of each log in the journal and in segments.
func unclean(t *testing.T, logs int) (*vfs.Mem, []promise) {
	t.Helper()
	fs := &vfs.Mem{}
	promises := make([]promise, logs)
	work(t, fs, promises, 12, noneUnsynced)
	fs.CrashAfter(40)
	work(t, fs, promises, 12, noneUnsynced)
	return fs.Restart(), promises
}

// opens checks whether logs can be opened: those that are damaged cannot, and the others have what was promised.
func opens(t *testing.T, s *Store, promises []promise, damaged ...int) {
	t.Helper()
	bad := map[int]bool{}
	for _, i := range damaged {
		bad[i] = true
	}
	for i := range promises {
		l, err := s.Log(key(i))
		if bad[i] {
			if _, ok := errors.AsType[*CorruptionError](err); !ok {
				t.Fatalf("log %d, which is damaged: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("log %d, which is not damaged: %v", i, err)
		}
		if l.Tail() < promises[i].acked {
			t.Fatalf("log %d ends at %d, but %d were acknowledged", i, l.Tail(), promises[i].acked)
		}
		readBack(t, l, i)
	}
}

// firstSegment returns the name of a log's oldest segment.
func firstSegment(t *testing.T, fs vfs.FS, log int) string {
	t.Helper()
	for _, name := range files(t, fs, "data/"+key(log).Dir()) {
		if strings.HasSuffix(name, segmentKind) {
			return name
		}
	}
	t.Fatal("no segment")
	return ""
}

// appendOne appends the next record to a log.
func appendOne(t *testing.T, s *Store, log int) {
	t.Helper()
	l, err := s.Log(key(log))
	must(t, err)
	done := make(chan error, 1)
	_, err = l.Append([][]byte{payloadOf(log, l.Tail())}, ClassDevice, func(err error) { done <- err })
	must(t, err)
	must(t, <-done)
}

// TestDamagedLogAlone damages a log that the journal has records of: the others are served, over restarts, and when the
// damage is mended the log has all that was acknowledged.
func TestDamagedLogAlone(t *testing.T) {
	fs, promises := unclean(t, 3)
	name := firstSegment(t, fs, 1)
	flip(t, fs, name, 20)
	for range 2 {
		s, err := Open("data", small(fs))
		if err != nil {
			t.Fatalf("the damage of one log fails all: %v", err)
		}
		opens(t, s, promises, 1)
		appendOne(t, s, 0)
		promises[0].acked++
		dirs, err := s.Dirs()
		must(t, err)
		if len(dirs) != 3 {
			t.Errorf("%d logs are listed, want 3", len(dirs))
		}
		must(t, s.Close())
	}
	flip(t, fs, name, 20) // mended
	for range 2 {
		s, err := Open("data", small(fs))
		must(t, err)
		opens(t, s, promises)
		appendOne(t, s, 1)
		promises[1].acked++
		must(t, s.Close())
	}
	for _, name := range files(t, fs, "data") {
		if strings.Contains(name, asideName) {
			t.Errorf("%s is left", name)
		}
	}
}

// TestDamagedLogMended mends the damage while the store is open: then the log can be opened.
func TestDamagedLogMended(t *testing.T) {
	fs, promises := unclean(t, 2)
	name := firstSegment(t, fs, 0)
	flip(t, fs, name, 20)
	s, err := Open("data", small(fs))
	must(t, err)
	defer s.Close()
	opens(t, s, promises, 0)
	flip(t, fs, name, 20)
	opens(t, s, promises)
	appendOne(t, s, 0)
}

// TestAsideDamaged flips bytes of what was put aside: that is found, or hurts nothing.
func TestAsideDamaged(t *testing.T) {
	fs, promises := unclean(t, 2)
	name := firstSegment(t, fs, 1)
	flip(t, fs, name, 20)
	s, err := Open("data", small(fs))
	must(t, err)
	must(t, s.Close())
	flip(t, fs, name, 20)
	aside := "data/" + key(1).Dir() + "/" + asideName
	size := len(read(t, fs, aside))
	found := 0
	for at := int64(0); at < int64(size); at += int64(sample(7)) {
		damaged := clone(t, fs)
		flip(t, damaged, aside, at)
		if !openAndRead(t, damaged, promises, fmt.Sprintf("byte %d", at)) {
			found++
		}
	}
	if found == 0 {
		t.Error("no damage is found")
	}
}

// TestAsideCrashes crashes after each change while a damaged log is put aside, and while it is recovered from there.
// Nothing that was acknowledged is lost.
func TestAsideCrashes(t *testing.T) {
	for crash := 1; ; crash += sample(3) {
		ended := false
		for _, survival := range vfs.Survivals() {
			dice := rand.New(rand.NewPCG(uint64(crash), uint64(survival)))
			fs, promises := unclean(t, 3)
			name := firstSegment(t, fs, 1)
			flipForever(t, fs, name)
			fs.CrashAfter(crash)
			if s, err := Open("data", small(fs)); err == nil {
				appendWhileItGoes(s, 0)
				_ = s.Close()
			}
			ended = fs.Changes() < crash
			fs = fs.Crash(survival, dice)
			flipForever(t, fs, name)
			fs.CrashAfter(1 + dice.IntN(60))
			if s, err := Open("data", small(fs)); err == nil {
				_, _ = s.Log(key(1))
				appendWhileItGoes(s, 1)
				_ = s.Close()
			}
			fs = fs.Crash(vfs.Survivals()[dice.IntN(4)], dice)
			for i := range promises {
				promises[i].appended += 1 // of appendWhileItGoes
			}
			check(t, fs, promises)
		}
		if ended {
			break
		}
	}
}

// flipForever flips a bit of a file so that a crash does not undo it.
func flipForever(t *testing.T, fs vfs.FS, name string) {
	t.Helper()
	flip(t, fs, name, 20)
	f, err := fs.Open(name)
	must(t, err)
	must(t, errors.Join(f.Sync(), f.Close()))
}

// appendWhileItGoes appends a record to a log if that is possible.
func appendWhileItGoes(s *Store, log int) {
	l, err := s.Log(key(log))
	if err != nil {
		return
	}
	done := make(chan struct{})
	if _, err := l.Append([][]byte{payloadOf(log, l.Tail())}, ClassDevice, func(error) { close(done) }); err == nil {
		select {
		case <-done: // with or without an error
		case <-time.After(time.Minute):
			panic("an append does not complete")
		}
	}
}

// TestOpenHoldsNoFile opens logs, some of which the journal has: those that were only opened hold no file.
func TestOpenHoldsNoFile(t *testing.T) {
	fs, promises := unclean(t, 3)
	opt := small(fs)
	opt.OpenFiles = 100
	s, err := Open("data", opt)
	must(t, err)
	if n := len(s.files.open); n != 0 {
		t.Errorf("logs that were recovered hold %d files", n)
	}
	opens(t, s, promises)
	must(t, s.Close())
	if s, err = Open("data", opt); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range promises {
		_, err := s.Log(key(i))
		must(t, err)
	}
	if n := len(s.files.open); n != 0 {
		t.Errorf("logs that were only opened hold %d files", n)
	}
	opens(t, s, promises) // reads
	if len(s.files.open) == 0 {
		t.Error("files of logs that are read are closed")
	}
	for range 2 {
		opens(t, s, promises)
		s.files.trim(false)
		if len(s.files.open) == 0 {
			t.Error("files that were used since the last time are closed")
		}
	}
	s.files.trim(false)
	if n := len(s.files.open); n != 0 {
		t.Errorf("%d files that are not used stay open", n)
	}
}

// TestDamageInTheMiddle damages what opening does not read, and what has to be read because the journal has other
// records after it. The log is refused and holds no file, and has all records when it is mended.
func TestDamageInTheMiddle(t *testing.T) {
	const n = 1000
	fs := large(t, n, true)
	s, err := Open("data", Options{FS: fs})
	must(t, err)
	for range 3 {
		appendOne(t, s, 0)
	}
	after := fs.Restart()
	_ = s.Close() // of what is gone
	name := "data/" + key(0).Dir() + "/" + segmentName(0, segmentKind)
	flip(t, after, name, 300)
	f, err := after.Open(name)
	must(t, err)
	other := appendRecord(nil, Record{n + 2, 1, make([]byte, len(payloadOf(0, n+2)))})
	size, err := f.Size()
	must(t, err)
	_, err = f.WriteAt(other, size-int64(len(other)))
	must(t, err)
	if s, err = Open("data", Options{FS: after}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	promises := []promise{{acked: n + 3}}
	opens(t, s, promises, 0)
	for name := range s.files.open {
		if strings.HasSuffix(name, segmentKind) {
			t.Errorf("%s is open", name)
		}
	}
	flip(t, after, name, 300)
	opens(t, s, promises)
}
