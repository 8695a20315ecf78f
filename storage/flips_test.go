package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// flipped is a data directory with a log of a MiB, all of which was acknowledged.
type flipped struct {
	name     string
	fs       *vfs.Mem
	payloads [][]byte
}

func (f *flipped) options(fs vfs.FS) Options {
	return Options{FS: fs, SegmentBytes: 600 << 10, JournalBytes: 4 << 20, SyncEvery: time.Hour, RetainEvery: time.Hour}
}

// newFlipped makes one that was closed, or one whose machine stood still, so that the journal has all of it too.
func newFlipped(t *testing.T, closed bool) *flipped {
	t.Helper()
	f := &flipped{name: "closed", fs: &vfs.Mem{}}
	dice := rand.New(rand.NewPCG(3, 4))
	for range 1 << 10 {
		p := make([]byte, 900+dice.IntN(200))
		for i := range p {
			p[i] = byte(dice.Uint32())
		}
		f.payloads = append(f.payloads, p)
	}
	s, err := Open("data", f.options(f.fs))
	must(t, err)
	l, err := s.Log(key(0))
	must(t, err)
	done := make(chan error, 1)
	for part := f.payloads; len(part) > 0; part = part[16:] {
		_, err := l.Append(part[:16], ClassDevice, func(err error) { done <- err })
		must(t, err)
		must(t, <-done)
	}
	if !closed {
		f.name, f.fs = "in the journal", f.fs.Restart()
		_ = s.Close() // of what is gone
		return f
	}
	must(t, s.Close())
	return f
}

// read opens what has a flip, and reports whether all of it can be read. If it cannot, damage is said to be the reason.
func (f *flipped) read(t *testing.T, fs vfs.FS, what string) bool {
	t.Helper()
	found := func(err error) bool {
		if _, ok := errors.AsType[*CorruptionError](err); !ok {
			t.Fatalf("%s: %v", what, err)
		}
		return false
	}
	s, err := Open("data", f.options(fs))
	if err != nil {
		return found(err)
	}
	defer s.Close()
	l, err := s.Log(key(0))
	if err != nil {
		return found(err)
	}
	if l.Base() != 0 || l.Tail() != uint64(len(f.payloads)) {
		t.Fatalf("%s: the log has %d to %d, want %d", what, l.Base(), l.Tail(), len(f.payloads))
	}
	r, err := l.Read(0)
	must(t, err)
	defer r.Free()
	for next := 0; next < len(f.payloads); {
		records, err := r.Next(128 << 10)
		if err != nil {
			return found(err)
		}
		for _, rec := range records {
			if rec.Offset != uint64(next) || !bytes.Equal(rec.Payload, f.payloads[next]) {
				t.Fatalf("%s: offset %d has another payload", what, next)
			}
			next++
		}
	}
	return true
}

// TestFlips flips one bit of bytes of a log of a MiB: of its segments, their indexes, the journal and the epoch. Each
// flip is found or hurts nothing. With FELIX_FLIPS=all it is each byte, which takes hours; otherwise some hundred of
// each file, the last ones among them.
func TestFlips(t *testing.T) {
	all := os.Getenv("FELIX_FLIPS") == "all"
	for _, f := range []*flipped{newFlipped(t, true), newFlipped(t, false)} {
		for _, name := range files(t, f.fs, "data") {
			if strings.HasSuffix(name, "/lock") || strings.HasSuffix(name, "/spare") {
				continue
			}
			t.Run(f.name+" "+name[strings.LastIndex(name, "/")+1:], func(t *testing.T) {
				if all {
					t.Parallel()
				}
				size := int64(len(read(t, f.fs, name)))
				step := int64(1)
				if !all {
					step = max(size/int64(100/sample(5)), 1)
				}
				found, harmless := 0, 0
				for at := int64(0); at < size; {
					over := vfs.NewOverlay(unlocked{f.fs})
					flip(t, over, name, at)
					if f.read(t, over, fmt.Sprintf("%s, %s, byte %d", f.name, name, at)) {
						harmless++
					} else {
						found++
					}
					if all || at >= size-16 { // the end
						at++
					} else {
						at = min(at+step, size-16)
					}
				}
				t.Logf("%d flips found, %d harmless", found, harmless)
			})
		}
	}
}

// unlocked is a file system that is only read.
type unlocked struct{ vfs.FS }

func (unlocked) Lock(string) (io.Closer, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) Close() error { return nil }
