package storage

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/race"
	"github.com/felix-mq/felix/internal/vfs"
)

// small makes every mechanism work within a few records.
func small(fs vfs.FS) Options {
	return Options{
		FS: fs, SegmentBytes: 700, IndexSpacing: 100, JournalBytes: 1500, OpenFiles: 2,
		SyncEvery: time.Hour, RetainEvery: time.Hour,
	}
}

// sample is the step through states of which there are many: each one, or each n-th under the race detector, which
// takes twenty times as long and finds what it finds in any of them.
func sample(n int) int {
	if race.Enabled {
		return n
	}
	return 1
}

func noneUnsynced(int) bool { return false }

func key(i int) Key { return Key{Tenant: "t", Namespace: "n", Stream: fmt.Sprint("s", i)} }

// payloadOf is a payload that tells its log and offset, with a length that depends on both.
func payloadOf(log int, offset uint64) []byte {
	b := fmt.Appendf(nil, "%d/%d/", log, offset)
	return append(b, bytes.Repeat([]byte{byte(offset)}, int(offset*7+uint64(log)*13)%90)...)
}

// promise is what a log must have after a crash.
type promise struct {
	mu       sync.Mutex
	acked    uint64 // offset after the last record that was acknowledged
	appended uint64 // offset after the last record that was appended
	base     uint64 // the highest base that retention may have made
}

// work appends to some logs until the file system crashes or rounds are over. Of some logs the records may be lost.
func work(t *testing.T, fs vfs.FS, promises []promise, rounds int, unsynced func(log int) bool) {
	t.Helper()
	s, err := Open("data", small(fs))
	if err != nil {
		if !errors.Is(err, vfs.ErrCrashed) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	defer s.Close()
	var done sync.WaitGroup
	nexts := make([]uint64, len(promises))
	for i := range promises {
		p := &promises[i]
		l, err := s.Log(key(i))
		if err != nil {
			if !errors.Is(err, vfs.ErrCrashed) {
				t.Fatalf("log: %v", err)
			}
			return
		}
		nexts[i] = l.Bounds().Tail
		if nexts[i] < p.acked {
			t.Fatalf("log %d: tail %d, but %d were acknowledged", i, nexts[i], p.acked)
		}
	}
	for round := range rounds {
		for i := range promises {
			p := &promises[i]
			l, err := s.Log(key(i))
			if err != nil {
				return
			}
			n := 1 + (round+i)%3
			next := nexts[i]
			nexts[i] += uint64(n)
			var batch [][]byte
			for k := range n {
				batch = append(batch, payloadOf(i, next+uint64(k)))
			}
			done.Add(1)
			p.mu.Lock()
			p.appended = max(p.appended, nexts[i])
			p.mu.Unlock()
			class := ClassDevice
			if unsynced(i) {
				class = ClassOS
			}
			add, commit := l.Append, func() {}
			if (round+i)%2 == 0 {
				add, commit = later(l), func() { s.Commit(true) }
			}
			first, err := add(batch, class, func(err error) {
				defer done.Done()
				if err == nil && class == ClassDevice {
					p.mu.Lock()
					p.acked = max(p.acked, next+uint64(n))
					p.mu.Unlock()
				}
			})
			if err != nil {
				done.Done()
				done.Wait()
				return
			}
			if first != next {
				t.Fatalf("log %d: first offset %d, want %d", i, first, next)
			}
			commit()
			if round%4 == 3 {
				l.SetRetention(Retention{Count: []uint64{30, 3, 8}[i]})
			}
		}
		if round%3 == 0 {
			done.Wait()
		}
		if round%5 == 4 {
			_ = s.Retain()
			for i := range promises {
				l, err := s.Log(key(i))
				if err == nil {
					promises[i].mu.Lock()
					promises[i].base = l.Bounds().Base
					promises[i].mu.Unlock()
				}
			}
		}
	}
	done.Wait()
}

// check opens what a crash has left and compares it with what was promised.
func check(t *testing.T, fs vfs.FS, promises []promise) {
	t.Helper()
	var before []Bounds
	for pass := range 2 {
		s, err := Open("data", small(fs))
		if err != nil {
			t.Fatalf("open after the crash (pass %d): %v", pass, err)
		}
		for i := range promises {
			p := &promises[i]
			l, err := s.Log(key(i))
			if err != nil {
				t.Fatalf("log %d after the crash: %v", i, err)
			}
			b := l.Bounds()
			if pass == 0 {
				before = append(before, b)
			} else if b != before[i] {
				t.Fatalf("log %d: the second recovery changed %+v to %+v", i, before[i], b)
			}
			if b.Tail < p.acked || b.Tail > p.appended || b.Base > p.base && b.Base > p.acked {
				t.Fatalf("log %d: [%d, %d), but acknowledged to %d, appended to %d, base at most %d", i, b.Base, b.Tail, p.acked, p.appended, p.base)
			}
			readBack(t, l, i)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	for i := range promises {
		promises[i].acked, promises[i].appended = before[i].Tail, before[i].Tail
	}
}

// readBack reads a whole log and checks each payload.
func readBack(t *testing.T, l *Log, log int) {
	t.Helper()
	b := l.Bounds()
	r, err := l.Read(b.Base)
	if err != nil {
		t.Fatal(err)
	}
	want := b.Base
	for {
		records, err := r.Next(200)
		if err != nil {
			t.Fatalf("log %d, offset %d: %v", log, want, err)
		}
		if len(records) == 0 {
			break
		}
		for _, rec := range records {
			if rec.Offset != want || !bytes.Equal(rec.Payload, payloadOf(log, want)) {
				t.Fatalf("log %d: offset %d has %.40q, want offset %d and %.40q", log, rec.Offset, rec.Payload, want, payloadOf(log, want))
			}
			want++
		}
	}
	if want != b.Tail {
		t.Fatalf("log %d: read to %d, want %d", log, want, b.Tail)
	}
}

// TestCrashes crashes after every change of the file system, keeps what a crash may keep of what was not synced, and
// checks that what was acknowledged is there. FELIX_CRASHES is how many times each is repeated with other dice.
func TestCrashes(t *testing.T) {
	repeat := 1
	if n, err := strconv.Atoi(os.Getenv("FELIX_CRASHES")); err == nil {
		repeat = n
	}
	states := 0
	for seed := range repeat {
		for crash := 1; ; crash += sample(7) {
			ended := false
			for _, survival := range vfs.Survivals() {
				func() {
					dice := rand.New(rand.NewPCG(uint64(seed), uint64(crash)*10+uint64(survival)))
					fs := &vfs.Mem{}
					promises := make([]promise, 3)
					fs.CrashAfter(crash)
					unsynced := func(log int) bool { return log == 2 || crash%3 == 0 }
					work(t, fs, promises, 40, unsynced)
					ended = fs.Changes() < crash
					defer func() {
						if t.Failed() {
							t.Logf("seed %d, crash after %d changes, %v kept", seed, crash, survival)
						}
					}()
					// A second crash, while the first is being mended or soon after.
					fs = fs.Crash(survival, dice)
					if dice.IntN(2) == 0 {
						fs.CrashAfter(1 + dice.IntN(60))
						work(t, fs, promises, 3, unsynced)
						fs = fs.Crash(vfs.Survivals()[dice.IntN(4)], dice)
					}
					check(t, fs, promises)
					states++
				}()
			}
			if ended {
				break
			}
		}
	}
	t.Logf("%d states", states)
}
