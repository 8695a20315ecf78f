package storage

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// TestManyPublishers appends to some logs from many goroutines on a real file system, with readers and retention at
// work, and checks offsets, order of completions and what is read.
func TestManyPublishers(t *testing.T) {
	s, err := Open(t.TempDir(), Options{SegmentBytes: 8 << 10, JournalBytes: 64 << 10, OpenFiles: 4})
	if err != nil {
		t.Fatal(err)
	}
	const logs, publishers, each = 5, 8, 60
	var publishing, reading sync.WaitGroup
	for i := range logs {
		l, err := s.Log(key(i))
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		payloads := map[uint64]string{} // by offset
		completed := uint64(0)
		for p := range publishers {
			publishing.Go(func() {
				for k := range each {
					batch := [][]byte{fmt.Appendf(nil, "%d/%d/%d/a", i, p, k), fmt.Appendf(nil, "%d/%d/%d/b", i, p, k)}
					class := Class(k % 2)
					done := make(chan error, 1)
					var first atomic.Uint64
					mu.Lock() // so that the offset is known to done
					add, commit := l.Append, func() {}
					if p%2 == 0 {
						add, commit = later(l), func() { s.Commit(true) }
					}
					n, err := add(batch, class, func(err error) {
						if err == nil {
							mu.Lock()
							if f := first.Load(); f != completed {
								err = fmt.Errorf("log %d: offset %d completes, want %d", i, f, completed)
							}
							completed += 2
							mu.Unlock()
						}
						done <- err
					})
					first.Store(n)
					payloads[n], payloads[n+1] = string(batch[0]), string(batch[1])
					mu.Unlock()
					if err != nil {
						t.Error(err)
						return
					}
					commit()
					if err := <-done; err != nil {
						t.Error(err)
						return
					}
					if tail := l.Bounds().Tail; tail < n+2 {
						t.Errorf("log %d: acknowledged to %d, and the tail is %d", i, n+2, tail)
					}
				}
			})
		}
		reading.Go(func() {
			r, err := l.Read(0)
			if err != nil {
				t.Error(err)
				return
			}
			for next := uint64(0); next < publishers*each*2; {
				records, err := r.Next(500)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, rec := range records {
					if rec.Offset != next || string(rec.Payload) != payloads[next] {
						t.Errorf("log %d: %q at %d, want %q", i, rec.Payload, rec.Offset, payloads[next])
					}
					next++
				}
				mu.Unlock()
				if len(records) == 0 {
					if t.Failed() {
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	publishing.Wait()
	reading.Wait()
	if st := s.Stats(); st.Appends != logs*publishers*each || st.Commits == 0 || st.Queued != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCommit commits on the goroutine that appends, if the device is quick, and what that leaves unsynced is synced in
// time.
func TestCommit(t *testing.T) {
	s, l := openLogWith(t, Options{FS: &vfs.Mem{}, SyncEvery: time.Millisecond})
	defer s.Close()
	here := 0
	for i := range 200 {
		done := make(chan error, 1)
		if _, err := later(l)([][]byte{payloadOf(0, uint64(i))}, Class(i%2), func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		s.Commit(true)
		if len(done) > 0 {
			here++
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for synced := false; !synced; time.Sleep(100 * time.Microsecond) {
			s.committing.Lock()
			synced = !s.unsynced()
			s.committing.Unlock()
		}
	}
	if here == 0 {
		t.Error("the committer has done it all")
	}
}

// TestCloseCommitting closes stores while goroutines append and commit: each append completes or is refused.
func TestCloseCommitting(t *testing.T) {
	for round := range 100 {
		s, err := Open("data", Options{FS: &vfs.Mem{}, SyncEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for i := range 4 {
			l, err := s.Log(key(i))
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() {
				for k := 0; ; k++ {
					done := make(chan error, 1)
					_, err := later(l)([][]byte{payloadOf(i, uint64(k))}, ClassDevice, func(err error) { done <- err })
					if errors.Is(err, ErrClosed) {
						return
					}
					s.Commit(true)
					if err := errors.Join(err, <-done); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for s.Stats().Commits < int64(round) {
			time.Sleep(10 * time.Microsecond)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		work.Wait()
	}
}

// TestRetention removes whole segments, and a reader that needs them gets an error instead of a short history.
func TestRetention(t *testing.T) {
	now := time.Unix(1000, 0)
	var clock atomic.Int64
	clock.Store(now.UnixMicro())
	dir := t.TempDir()
	opt := Options{SegmentBytes: 1000, RetainEvery: time.Hour, Now: func() time.Time { return time.UnixMicro(clock.Load()) }}
	s, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) {
		for range n {
			done := make(chan error, 1)
			if _, err := l.Append([][]byte{make([]byte, 172)}, ClassOS, func(err error) { done <- err }); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			clock.Add(int64(time.Second / time.Microsecond))
		}
	}
	retain := func(r Retention) Bounds {
		l.SetRetention(r)
		if err := s.Retain(); err != nil {
			t.Fatal(err)
		}
		return l.Bounds()
	}
	put(40) // four records of 200 bytes in a segment
	behind, err := l.Read(0)
	if err != nil {
		t.Fatal(err)
	}
	if b := retain(Retention{}); b.Base != 0 || b.Tail != 40 || b.Segments != 10 {
		t.Errorf("no retention: %+v", b)
	}
	if b := retain(Retention{Bytes: 7000}); b.Base != 8 || b.Bytes > 7000 {
		t.Errorf("7000 bytes: %+v", b)
	}
	if b := retain(Retention{Count: 21}); b.Base != 16 {
		t.Errorf("21 records: %+v", b)
	}
	if b := retain(Retention{Age: 13500 * time.Millisecond}); b.Base != 24 {
		t.Errorf("13.5 s: %+v", b)
	}
	if b := retain(Retention{Age: time.Second, Bytes: 1, Count: 1}); b.Base != 36 || b.Tail != 40 {
		t.Errorf("the last segment stays: %+v", b)
	}
	var outside *RangeError
	if _, err := behind.Next(100); !errors.As(err, &outside) || !outside.TooOld() || outside.Base != 36 {
		t.Errorf("a reader of removed segments: %v", err)
	}
	if _, err := l.Read(35); !errors.As(err, &outside) || !outside.TooOld() {
		t.Errorf("read from 35: %v", err)
	}
	if _, err := l.Read(41); !errors.As(err, &outside) || outside.TooOld() {
		t.Errorf("read from 41: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, opt); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if l, err = s.Log(key(0)); err != nil {
		t.Fatal(err)
	}
	if b := l.Bounds(); b.Base != 36 || b.Tail != 40 {
		t.Errorf("opened again: %+v", b)
	}
}

// TestRefusals has what Append refuses without effect.
func TestRefusals(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	never := func(error) { t.Error("completed") }
	if _, err := l.Append(nil, ClassDevice, never); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	if _, err := l.Append([][]byte{{1}, make([]byte, MaxPayload+1)}, ClassDevice, never); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if b := l.Bounds(); b != (Bounds{}) {
		t.Errorf("%+v", b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append([][]byte{{1}}, ClassDevice, never); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Log(key(1)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestEdges appends empty payloads, and records that are larger than a segment and than a read.
func TestEdges(t *testing.T) {
	dir := t.TempDir()
	opt := Options{SegmentBytes: 1 << 20}
	sizes := []int{0, 1, 3 << 20, 0, 600 << 10, 600 << 10, 0}
	for range 2 {
		s, err := Open(dir, opt)
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Log(key(0))
		if err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		for _, n := range sizes {
			wait.Add(1)
			if _, err := l.Append([][]byte{make([]byte, n)}, ClassDevice, func(error) { wait.Done() }); err != nil {
				t.Fatal(err)
			}
		}
		wait.Wait()
		r, err := l.Read(0)
		if err != nil {
			t.Fatal(err)
		}
		for next := uint64(0); next < l.Bounds().Tail; {
			records, err := r.Next(1)
			if err != nil || len(records) == 0 {
				t.Fatal(records, err)
			}
			for _, rec := range records {
				if want := sizes[next%uint64(len(sizes))]; rec.Offset != next || len(rec.Payload) != want {
					t.Errorf("offset %d has %d bytes, want %d", rec.Offset, len(rec.Payload), want)
				}
				next++
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRetainTwice applies retention from several goroutines at once while records are appended.
func TestRetainTwice(t *testing.T) {
	s, err := Open(t.TempDir(), Options{SegmentBytes: 200, RetainEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	l.SetRetention(Retention{Count: 5})
	var retaining, appending sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		retaining.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Retain(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 300 {
		appending.Add(1)
		if _, err := l.Append([][]byte{make([]byte, 100)}, ClassOS, func(error) { appending.Done() }); err != nil {
			t.Fatal(err)
		}
	}
	appending.Wait()
	close(stop)
	retaining.Wait()
	b := l.Bounds()
	if b.Tail != 300 || b.Tail-b.Base < 5 {
		t.Errorf("%+v, want at least five records up to 300", b)
	}
	r, err := l.Read(b.Base)
	if err != nil {
		t.Fatal(err)
	}
	for r.Offset() < b.Tail {
		if records, err := r.Next(1000); err != nil || len(records) == 0 {
			t.Fatalf("at %d: %d records, %v", r.Offset(), len(records), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestForgedEntries publishes what looks like entries of the journal, which a crash leaves at its end.
func TestForgedEntries(t *testing.T) {
	fs := &vfs.Mem{}
	s, l := openLogWith(t, small(fs))
	var forged []byte
	for number := range uint64(4) {
		for align := range 8 {
			forged = append(forged, make([]byte, align)...)
			forged = appendEntryHeader(forged, number, entry{kind: entryRecords, sequence: 1 << 62, synced: 1 << 62}, nil)
		}
	}
	for range 4 {
		done := make(chan error, 1)
		if _, err := l.Append([][]byte{forged}, ClassDevice, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	left := fs.Restart()
	_ = s.Close() // of a machine that is not there any more
	var err error
	if s, err = Open("data", small(left)); err != nil {
		t.Fatal(err)
	}
	if l, err = s.Log(key(0)); err != nil || l.Bounds().Tail != 4 {
		t.Error(l.Bounds(), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestBoundsOfHeldLog holds up the write of a segment. Who must not wait for the disk still sees what the log has, and
// sets what it keeps.
func TestBoundsOfHeldLog(t *testing.T) {
	var hold atomic.Bool
	reached, release := make(chan struct{}, 1), make(chan struct{})
	fs := vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && strings.HasSuffix(name, ".log") && hold.CompareAndSwap(true, false) {
			reached <- struct{}{}
			<-release
		}
		return nil
	}}
	s, l := openLogWith(t, small(fs))
	defer s.Close()
	done := make(chan error, 2)
	publish := func() {
		if _, err := l.Append([][]byte{payloadOf(0, 0)}, ClassDevice, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := l.Bounds()
	hold.Store(true)
	publish()
	<-reached
	if got := l.LastBounds(); got != want {
		t.Errorf("while a write is held: %+v, want %+v", got, want)
	}
	l.SetRetention(Retention{Count: 1})
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := l.Bounds(); got.Tail != 2 || got.Bytes <= want.Bytes {
		t.Errorf("after it: %+v, before %+v", got, want)
	}
}

// TestCommitAtTheEndOfAJournalFile appends one batch after the other, each of which is committed by its goroutine, over
// the ends of some journal files, where the committer has to do it.
func TestCommitAtTheEndOfAJournalFile(t *testing.T) {
	s, err := Open("data", small(&vfs.Mem{}))
	must(t, err)
	defer s.Close()
	l, err := s.Log(key(0))
	must(t, err)
	done := make(chan error, 1)
	for i := range uint64(100) {
		_, err := later(l)([][]byte{payloadOf(0, i)}, ClassDevice, func(err error) { done <- err })
		must(t, err)
		s.quick.Store(true)
		s.Commit(true)
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Fatalf("batch %d is not committed", i)
		}
	}
}
