package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/race"
	"github.com/felix-mq/felix/internal/vfs"
)

const snapDir = "snapshots"

var second = Scope{"t2", "default", "second"}

// life is a store between a start and an end, with its snapshots on a file system.
type life struct {
	*Store
	n      *Snapshots
	c, c2  *Cache
	clock  *manualClock
	loaded Loaded
	err    error // of Load
}

// start begins a life at a time, with the caches primary and second.
func start(t *testing.T, fs vfs.FS, at time.Time, o Options, so SnapshotOptions) *life {
	t.Helper()
	l := &life{clock: newManualClock(at)}
	o.Clock = l.clock
	l.Store = New(o)
	l.version.Store(uint64(at.UnixNano())) // as if it were the clock of the machine
	l.Add(primary)
	l.Add(second)
	l.c, l.c2 = l.caches[primary], l.caches[second]
	so.Dir, so.FS = snapDir, fs
	var err error
	if l.n, err = l.OpenSnapshots(so); err != nil {
		l.err = err
		return l
	}
	l.loaded, l.err = l.n.Load(t.Context())
	return l
}

// end ends a life as a kill does; an orderly end calls Finish before.
func (l *life) end() {
	if l.n != nil {
		_ = l.n.Close()
	}
	l.Close()
}

func (l *life) finish(t *testing.T) {
	t.Helper()
	if _, err := l.n.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.end()
}

// noLeak checks that a test gives all buffers back.
func noLeak(t *testing.T) {
	live := buf.Live()
	t.Cleanup(func() {
		if n := buf.Live() - live; n != 0 {
			t.Errorf("%d buffers are still held", n)
		}
	})
}

// sampled returns how many of n cases are tried: one under the race detector, which finds what it finds in any of them.
func sampled(n int) int {
	if race.Enabled {
		return 1
	}
	return n
}

var birth = time.Unix(1_700_000_000, 0)

func put(t *testing.T, c *Cache, key, value string, ttl time.Duration) uint64 {
	t.Helper()
	version, err := c.Put([]byte(key), []byte(value), ttl)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func versionOf(c *Cache, key string) uint64 {
	v, ok := c.Get([]byte(key))
	if !ok {
		return 0
	}
	defer v.Release()
	return v.Version()
}

// An orderly end loses nothing: values, versions and ends of lifetimes are what they were, to the nanosecond.
func TestSnapshotRestart(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	if l.err != nil || !l.loaded.Taken.IsZero() {
		t.Fatalf("the first start: %+v, %v", l.loaded, l.err)
	}
	versions := map[string]uint64{}
	for i := range 3000 {
		key := fmt.Sprint("k", i)
		versions[key] = put(t, l.c, key, strings.Repeat(key, i%50), NoExpiry)
	}
	put(t, l.c2, "k1", "of another cache", NoExpiry)
	put(t, l.c, "", "the empty key", NoExpiry)
	put(t, l.c, "large", strings.Repeat("x", 3*blockBytes), NoExpiry)
	put(t, l.c, "short", "s", time.Minute)
	put(t, l.c, "long", "l", time.Hour)
	put(t, l.c, "endless", "e", 1<<63-1)
	put(t, l.c, "gone", "g", NoExpiry)
	l.c.Delete([]byte("gone"))
	l.finish(t)

	l = start(t, fs, birth.Add(10*time.Minute), Options{}, SnapshotOptions{CleanOnly: true})
	defer l.end()
	if l.err != nil || !l.loaded.Clean || l.loaded.Entries != 3005 || l.loaded.Expired != 1 || l.loaded.Damaged+l.loaded.Unknown+l.loaded.NoSpace != 0 {
		t.Fatalf("loaded %+v, %v", l.loaded, l.err)
	}
	for i := range 3000 {
		key := fmt.Sprint("k", i)
		wantValue(t, l.c, key, strings.Repeat(key, i%50))
		if got := versionOf(l.c, key); got != versions[key] {
			t.Errorf("%s has version %d, want %d", key, got, versions[key])
		}
	}
	wantValue(t, l.c2, "k1", "of another cache")
	wantValue(t, l.c, "", "the empty key")
	wantValue(t, l.c, "large", strings.Repeat("x", 3*blockBytes))
	wantValue(t, l.c, "endless", "e")
	wantMiss(t, l.c, "short")
	wantMiss(t, l.c, "gone")
	settle(l.Store)
	checkIndex(t, l.Store)
	l.clock.Advance(50*time.Minute - 1)
	wantValue(t, l.c, "long", "l")
	l.clock.Advance(1)
	wantMiss(t, l.c, "long")
	if v, stored, err := l.c.PutIf([]byte("k7"), []byte("new"), NoExpiry, versions["k7"]); err != nil || !stored || v <= versions["k2999"] {
		t.Errorf("put-if with the version of the life before: %d, %v, %v", v, stored, err)
	}
}

// After an end that was not orderly no version is one that was given out before, whatever clock shows, and those of a
// key grow.
func TestSnapshotVersions(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	put(t, l.c, "kept", "1", NoExpiry)
	overwritten := put(t, l.c, "overwritten", "1", NoExpiry)
	if _, err := l.n.Write(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	highest := put(t, l.c, "overwritten", "2", NoExpiry) // is lost
	l.end()
	for i, at := range []time.Time{birth, birth.Add(-time.Hour), birth.Add(time.Hour)} {
		l = start(t, fs, at, Options{}, SnapshotOptions{})
		if l.err != nil || l.loaded.Clean || l.loaded.Entries != 2 {
			t.Fatalf("start %d: %+v, %v", i, l.loaded, l.err)
		}
		wantValue(t, l.c, "overwritten", "1")
		for _, key := range []string{"kept", "overwritten"} {
			if v := versionOf(l.c, key); v <= highest {
				t.Errorf("start %d: %s has version %d, and %d was given out", i, key, v, highest)
			}
		}
		if _, stored, _ := l.c.PutIf([]byte("overwritten"), nil, NoExpiry, overwritten); stored {
			t.Errorf("start %d: put-if took a version from before a value that was lost", i)
		}
		highest = put(t, l.c, "other", "x", NoExpiry)
		l.end() // killed: the snapshot is now two lives old
	}
	l = start(t, fs, birth, Options{}, SnapshotOptions{CleanOnly: true})
	if !errors.Is(l.err, ErrSnapshotIgnored) || !errors.Is(l.err, errNotClean) || l.Bytes() != 0 {
		t.Errorf("a snapshot that is not clean: %v", l.err)
	}
	l.end()
}

// A snapshot that was clean is not, once a life has begun with it.
func TestSnapshotCleanOnce(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	v := put(t, l.c, "k", "1", NoExpiry)
	l.finish(t)
	for i := range 3 {
		l = start(t, fs, birth, Options{}, SnapshotOptions{})
		if l.loaded.Clean != (i == 0) || (versionOf(l.c, "k") == v) != (i == 0) {
			t.Errorf("start %d: clean %v, version %d, it was %d", i, l.loaded.Clean, versionOf(l.c, "k"), v)
		}
		if i == 0 {
			put(t, l.c, "k", "2", NoExpiry)
		}
		l.end()
	}
}

// If nothing has changed nothing is written, and the end is orderly all the same.
func TestSnapshotUnchanged(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	v := put(t, l.c, "k", "1", NoExpiry)
	l.finish(t)
	for range 2 {
		l = start(t, fs, birth, Options{}, SnapshotOptions{})
		changes := fs.Changes()
		if w, err := l.n.Write(t.Context(), 0); err != nil || !w.Taken.IsZero() || fs.Changes() != changes {
			t.Errorf("written %+v, %v", w, err)
		}
		if got := versionOf(l.c, "k"); got != v || !l.loaded.Clean {
			t.Errorf("version %d, want %d; loaded %+v", got, v, l.loaded)
		}
		l.finish(t)
	}
	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	defer l.end()
	l.c.Delete([]byte("k"))
	if w, err := l.n.Write(t.Context(), 0); err != nil || w.Taken.IsZero() || w.Entries != 0 {
		t.Errorf("written %+v, %v", w, err)
	}
}

// Lifetimes go on while the store is down. A clock that was set back makes none longer.
func TestSnapshotClock(t *testing.T) {
	for _, c := range []struct {
		down time.Duration
		left time.Duration // of a minute; 0: over
	}{
		{0, time.Minute},
		{20 * time.Second, 40 * time.Second},
		{time.Minute - 1, 1},
		{time.Minute, 0},
		{time.Hour, 0},
		{-time.Second, time.Minute},
		{-24 * time.Hour, time.Minute},
	} {
		fs := &vfs.Mem{}
		l := start(t, fs, birth, Options{}, SnapshotOptions{})
		put(t, l.c, "k", "1", 2*time.Minute)
		l.clock.Advance(time.Minute)
		l.finish(t)
		l = start(t, fs, birth.Add(time.Minute+c.down), Options{}, SnapshotOptions{})
		if c.left > 0 {
			l.clock.Advance(c.left - 1)
			wantValue(t, l.c, "k", "1")
			l.clock.Advance(1)
		}
		wantMiss(t, l.c, "k")
		l.end()
	}
}

// What the store, a tenant or a cache may hold bounds what is loaded, and caches that there are no more get nothing.
func TestSnapshotLimits(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{MaxBytes: 8 << 20}, SnapshotOptions{})
	for i := range 4000 {
		put(t, l.c, fmt.Sprint(i), strings.Repeat("v", 500), NoExpiry)
		put(t, l.c2, fmt.Sprint(i), strings.Repeat("w", 500), NoExpiry)
	}
	l.finish(t)

	for _, c := range []struct {
		name          string
		o             Options
		tenant        int64
		scopes        []Scope
		first, second int64 // the most bytes
	}{
		{"same", Options{MaxBytes: 8 << 20}, 0, nil, 8 << 20, 8 << 20},
		{"smaller store", Options{MaxBytes: 1 << 20}, 0, nil, 1 << 20, 1 << 20},
		{"smaller cache", Options{MaxBytes: 8 << 20, MaxScopeBytes: 300 << 10}, 0, nil, 300 << 10, 300 << 10},
		{"smaller tenant", Options{MaxBytes: 8 << 20}, 200 << 10, nil, 8 << 20, 200 << 10},
		{"no cache", Options{MaxBytes: 8 << 20}, 0, []Scope{primary}, 8 << 20, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &life{clock: newManualClock(birth)}
			c.o.Clock = l.clock
			l.Store = New(c.o)
			l.policyFrom = 64 << 10
			if c.tenant != 0 {
				l.SetTenant(second.Tenant, 0, c.tenant)
			}
			if c.scopes == nil {
				c.scopes = []Scope{primary, second}
			}
			for _, scope := range c.scopes {
				l.Add(scope)
			}
			var err error
			if l.n, err = l.OpenSnapshots(SnapshotOptions{Dir: snapDir, FS: fs}); err != nil {
				t.Fatal(err)
			}
			defer l.end()
			if l.loaded, err = l.n.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			settle(l.Store)
			checkIndex(t, l.Store)
			a, b := l.TenantBytes(primary.Tenant), l.TenantBytes(second.Tenant)
			if a > c.first || b > c.second || l.Bytes() > c.o.MaxBytes {
				t.Errorf("%d and %d bytes are loaded, want up to %d and %d", a, b, c.first, c.second)
			}
			if a < min(c.first, 1<<20)/4 || b < min(c.second, 1<<20)/4 {
				t.Errorf("only %d and %d bytes are loaded: %+v", a, b, l.loaded)
			}
			if n := l.loaded.Entries + l.loaded.NoSpace + l.loaded.Unknown; n != 8000 {
				t.Errorf("%d entries are accounted for: %+v", n, l.loaded)
			}
			if (len(c.scopes) == 1) != (l.loaded.Unknown == 4000) {
				t.Errorf("loaded %+v", l.loaded)
			}
		})
	}
}

// A key that is replaced while a snapshot is written may be in it twice. The later version counts, in whatever order
// they are loaded.
func TestSnapshotTwice(t *testing.T) {
	values := map[uint64]string{5: "five", 7: "seven", 9: strings.Repeat("nine", 100)}
	for _, order := range [][]uint64{{5, 7, 9}, {9, 7, 5}, {7, 9, 5}, {7, 5, 9}} {
		s, c, _ := newTest(t, Options{})
		for i, version := range order {
			want := restoredAgain
			if i == 0 {
				want = restored
			}
			if got := c.restore([]byte("k"), []byte(values[version]), 0, version); got != want {
				t.Errorf("%v: restoring %d: %v", order, version, got)
			}
		}
		wantValue(t, c, "k", values[9])
		if v := versionOf(c, "k"); v != 9 || c.Stats().Entries != 1 {
			t.Errorf("%v: version %d, %d entries", order, v, c.Stats().Entries)
		}
		settle(s)
		checkIndex(t, s)
	}
}

// smallSnapshot writes a snapshot of a few entries and returns what is in it.
func smallSnapshot(t *testing.T, fs vfs.FS) map[string]string {
	t.Helper()
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	if l.err != nil {
		t.Fatal(l.err)
	}
	all := fill(t, l, 1)
	l.finish(t)
	return all
}

func fill(t *testing.T, l *life, round int) map[string]string {
	t.Helper()
	all := map[string]string{}
	for i := range 9 {
		key, value := fmt.Sprint("k", i), fmt.Sprintf("round %d, value %d", round, i)
		all[key] = value
		put(t, l.c, key, value, time.Hour)
	}
	return all
}

// loadedEntries returns what is in the store, under any key.
func loadedEntries(s *Store) map[string]string {
	all := map[string]string{}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, e := range sh.entries {
			if !e.over(s.now()) {
				all[string(e.key)] = string(e.value.Bytes())
			}
		}
		sh.mu.Unlock()
	}
	return all
}

func content(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(path.Join(snapDir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return b
}

func replace(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	name = path.Join(snapDir, name)
	_ = fs.Remove(name)
	f, err := fs.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// No bit of a snapshot, and of the file of versions, can change without being noticed, wherever the file ends it is
// torn, and what is loaded is what was stored.
func TestSnapshotDamage(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	want := smallSnapshot(t, fs)
	good, versions := content(t, fs, snapshotFile), content(t, fs, versionsName)
	ignored, partly := 0, 0
	check := func(what string, snapshot, versions []byte) {
		t.Helper()
		fs := &vfs.Mem{}
		_ = fs.MkdirAll(snapDir)
		replace(t, fs, snapshotFile, snapshot)
		replace(t, fs, versionsName, versions)
		l := start(t, fs, birth.Add(time.Minute), Options{}, SnapshotOptions{})
		defer l.end()
		switch {
		case errors.Is(l.err, ErrSnapshotIgnored):
			ignored++
			if l.Bytes() != 0 {
				t.Errorf("%s: ignored, and yet something was loaded", what)
			}
		case l.err != nil:
			t.Errorf("%s: %v", what, l.err)
		case l.loaded.Damaged > 0:
			partly++
			if l.loaded.Entries+l.loaded.Damaged != int64(len(want)) {
				t.Errorf("%s: %+v", what, l.loaded)
			}
		default:
			t.Errorf("%s: not noticed: %+v", what, l.loaded)
		}
		for key, value := range loadedEntries(l.Store) {
			if want[key] != value {
				t.Errorf("%s: %q has %q, and had %q", what, key, value, want[key])
			}
		}
	}
	for i := range good {
		for _, mask := range []byte{1, 0x80, 0xff}[:sampled(3)] {
			bad := bytes.Clone(good)
			bad[i] ^= mask
			check(fmt.Sprintf("byte %d ^ %#x", i, mask), bad, versions)
		}
		check(fmt.Sprintf("%d bytes", i), good[:i], versions)
	}
	for i := range versions {
		bad := bytes.Clone(versions)
		bad[i] ^= 1
		check(fmt.Sprintf("versions, byte %d", i), good, bad)
		check(fmt.Sprintf("versions, %d bytes", i), good, versions[:i])
	}
	check("a byte more", append(bytes.Clone(good), 0), versions)
	other := &vfs.Mem{}
	smallSnapshot(t, other)
	check("another directory", good, content(t, other, versionsName))
	t.Logf("%d files ignored, %d loaded in part", ignored, partly)
	if ignored == 0 || partly == 0 {
		t.Error("one of the ways to notice damage was not tried")
	}
}

// A block that cannot be read is left out, and others are loaded.
func TestSnapshotBlocks(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	for i := range 40 {
		put(t, l.c, fmt.Sprint(i), strings.Repeat("x", 60<<10), NoExpiry)
	}
	l.finish(t)
	b := content(t, fs, snapshotFile)
	b[headerSize+100]++
	replace(t, fs, snapshotFile, b)
	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	if l.err != nil || l.loaded.Damaged == 0 || l.loaded.Entries < 30 || l.loaded.Entries+l.loaded.Damaged != 40 {
		t.Errorf("loaded %+v, %v", l.loaded, l.err)
	}
	// It is written again though no entry has changed.
	if w, err := l.n.Write(t.Context(), 0); err != nil || w.Entries != l.loaded.Entries {
		t.Errorf("written %+v, %v", w, err)
	}
	l.end()
}

// A crash at any moment of a snapshot leaves the one before or the new one, whole, and versions that were never given
// out.
func TestSnapshotCrash(t *testing.T) {
	noLeak(t)
	base := &vfs.Mem{}
	old := smallSnapshot(t, base)
	for _, finish := range []bool{false, true} {
		for after := 1; ; after++ {
			var crashed bool
			for _, how := range vfs.Survivals() {
				for seed := range uint64(sampled(4)) {
					fs := base.Crash(vfs.KeepAll, nil)
					dice := rand.New(rand.NewPCG(seed, uint64(after)))
					fs.CrashAfter(after)
					l := start(t, fs, birth.Add(time.Minute), Options{}, SnapshotOptions{})
					var recent map[string]string
					highest, done := uint64(0), false
					if l.err == nil && l.n != nil && l.loaded.Unreserved == nil {
						recent = fill(t, l, 2)
						highest = l.version.Load()
						var err error
						if finish {
							_, err = l.n.Finish(t.Context())
						} else {
							_, err = l.n.Write(t.Context(), 0)
						}
						done = err == nil
					}
					l.end()
					crashed = !done
					fs = fs.Crash(how, dice)

					l = start(t, fs, birth.Add(-time.Minute), Options{}, SnapshotOptions{})
					what := fmt.Sprintf("crash after %d changes, %v, seed %d", after, how, seed)
					if l.err != nil || l.loaded.Damaged > 0 {
						t.Fatalf("%s: %+v, %v", what, l.loaded, l.err)
					}
					got := loadedEntries(l.Store)
					switch {
					case fmt.Sprint(got) == fmt.Sprint(old) && !done:
					case fmt.Sprint(got) == fmt.Sprint(recent):
					default:
						t.Fatalf("%s: done %v, got %v", what, done, got)
					}
					// Versions are new, unless the values are the last that were stored.
					same := fmt.Sprint(got) == fmt.Sprint(recent) || recent == nil
					for key := range got {
						if v := versionOf(l.c, key); v <= highest && (!same || !l.loaded.Clean) {
							t.Fatalf("%s: version %d, and %d was given out; %+v", what, v, highest, l.loaded)
						}
					}
					if next := put(t, l.c, "next", "", NoExpiry); next <= highest {
						t.Fatalf("%s: next version %d, and %d was given out", what, next, highest)
					}
					l.end()
				}
			}
			if !crashed {
				break
			}
		}
	}
}

// Whatever fails while a snapshot is written, the one before or the new one is there, and the store has not changed.
func TestSnapshotFaults(t *testing.T) {
	noLeak(t)
	base := &vfs.Mem{}
	old := smallSnapshot(t, base)
	oldContent := content(t, base, snapshotFile)
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC, io.ErrShortWrite} {
		for at := 0; ; at++ {
			mem := base.Crash(vfs.KeepAll, nil)
			var armed bool
			var calls int
			fs := vfs.Faulty{FS: mem, Before: func(op vfs.Op, _ string) error {
				if !armed || errors.Is(cause, io.ErrShortWrite) && op != vfs.OpWrite {
					return nil
				}
				if calls++; calls == at+1 {
					return cause
				}
				return nil
			}}
			l := start(t, fs, birth, Options{}, SnapshotOptions{})
			recent := fill(t, l, 2)
			armed = true
			_, err := l.n.Write(t.Context(), 0)
			armed = false
			if fmt.Sprint(loadedEntries(l.Store)) != fmt.Sprint(recent) {
				t.Fatalf("%v at %d: the store has changed", cause, at)
			}
			if calls <= at {
				l.end()
				break
			}
			check := func(fs vfs.FS, want map[string]string) {
				t.Helper()
				l := start(t, fs, birth, Options{}, SnapshotOptions{})
				defer l.end()
				if got := loadedEntries(l.Store); l.err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("%v at %d (%v): %v, %v", cause, at, err, got, l.err)
				}
			}
			if err != nil {
				// What failed is the rename or something before, or only the sync of the directory.
				if bytes.Equal(content(t, mem, snapshotFile), oldContent) {
					check(mem.Crash(vfs.KeepAll, nil).Restart(), old)
				} else {
					check(mem.Crash(vfs.KeepAll, nil).Restart(), recent)
				}
			} else {
				t.Errorf("%v at %d: no error", cause, at)
			}
			l.end()
		}
	}
}

// A later snapshot succeeds after one that failed.
func TestSnapshotAfterFailure(t *testing.T) {
	mem := &vfs.Mem{}
	var full atomic.Bool
	fs := vfs.Faulty{FS: mem, Before: func(op vfs.Op, _ string) error {
		if full.Load() && op == vfs.OpWrite {
			return syscall.ENOSPC
		}
		return nil
	}}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	recent := fill(t, l, 1)
	full.Store(true)
	if _, err := l.n.Write(t.Context(), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	entries, _ := mem.List(snapDir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name, vfs.DraftSuffix) {
			t.Errorf("%s is left on a full disk", e.Name)
		}
	}
	full.Store(false)
	if _, err := l.n.Write(t.Context(), 0); err != nil {
		t.Error(err)
	}
	l.end()
	l = start(t, mem, birth, Options{}, SnapshotOptions{})
	defer l.end()
	if got := loadedEntries(l.Store); fmt.Sprint(got) != fmt.Sprint(recent) {
		t.Errorf("loaded %v", got)
	}
}

// A snapshot leaves free what has to stay free.
func TestSnapshotHeadroom(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{Headroom: 1 << 20})
	defer l.end()
	put(t, l.c, "k", strings.Repeat("x", 1000), NoExpiry)
	fs.SetFree(1 << 20)
	if _, err := l.n.Write(t.Context(), 0); !errors.Is(err, ErrSnapshotSpace) {
		t.Errorf("got %v", err)
	}
	fs.SetFree(2 << 20)
	if _, err := l.n.Write(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// A directory has one user.
func TestSnapshotInUse(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	other := start(t, fs, birth, Options{}, SnapshotOptions{})
	if !errors.Is(other.err, vfs.ErrLocked) {
		t.Errorf("got %v", other.err)
	}
	other.end()
	l.end()
	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	if l.err != nil {
		t.Error(l.err)
	}
	l.end()
}

// A start that is broken off leaves the snapshot as it is, clean too.
func TestSnapshotLoadCanceled(t *testing.T) {
	noLeak(t)
	fs := &vfs.Mem{}
	want := smallSnapshot(t, fs)
	s := New(Options{Clock: newManualClock(birth)})
	s.Add(primary)
	n, err := s.OpenSnapshots(SnapshotOptions{Dir: snapDir, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := n.Finish(t.Context()); !errors.Is(err, ErrSnapshotNotLoaded) {
		t.Errorf("got %v", err)
	}
	_ = n.Close()
	s.Close()
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	defer l.end()
	if got := loadedEntries(l.Store); !l.loaded.Clean || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("loaded %+v: %v", l.loaded, got)
	}
}

// Versions are reserved before they are used up.
func TestSnapshotReserve(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	changes := fs.Changes()
	if err := l.n.Reserve(); err != nil || fs.Changes() != changes {
		t.Errorf("reserved without need: %v", err)
	}
	l.version.Add(versionStep * 3 / 4)
	if err := l.n.Reserve(); err != nil {
		t.Fatal(err)
	}
	l.version.Add(versionStep * 3 / 4)
	highest := put(t, l.c, "k", "", NoExpiry)
	l.end()
	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	if v := put(t, l.c, "k", "", NoExpiry); v <= highest {
		t.Errorf("version %d, and %d was given out", v, highest)
	}
	l.end()

	// What could not be reserved is reserved later.
	broken := true
	l = start(t, vfs.Faulty{FS: fs, Before: func(op vfs.Op, name string) error {
		if broken && op == vfs.OpCreate {
			return syscall.EROFS
		}
		return nil
	}}, birth, Options{}, SnapshotOptions{})
	defer l.end()
	if !errors.Is(l.loaded.Unreserved, syscall.EROFS) || l.err != nil {
		t.Errorf("loaded %+v, %v", l.loaded, l.err)
	}
	broken = false
	changes = fs.Changes()
	if err := l.n.Reserve(); err != nil || fs.Changes() == changes {
		t.Errorf("not reserved: %v", err)
	}
}

// A key that is there all the time is in the snapshot, also if its value is replaced by one of another size meanwhile.
func TestSnapshotReplaced(t *testing.T) {
	noLeak(t)
	const keys = 20000 // of which the lock of a shard has to be taken several times
	fs := &vfs.Mem{}
	var l *life
	name := func(i int) string { return fmt.Sprint("key", i) }
	round := 0
	l = start(t, vfs.Faulty{FS: fs, Before: func(op vfs.Op, file string) error {
		if op != vfs.OpWrite || !strings.Contains(file, snapshotFile) {
			return nil
		}
		if round++; round%8 != 0 || race.Enabled && round > 16 { // it takes long
			return nil
		}
		for i := range keys { // others make places free, in one of which a replaced key could come to lie
			if other := fmt.Appendf(nil, "other%d", i); round/8%2 == 1 {
				l.c.Delete(other)
			} else {
				put(t, l.c, string(other), "", NoExpiry)
			}
		}
		for i := range keys {
			put(t, l.c, name(i), strings.Repeat("v", 600+700*(round/8%2)), NoExpiry)
		}
		return nil
	}}, birth, Options{}, SnapshotOptions{})
	for i := range keys {
		put(t, l.c, name(i), strings.Repeat("v", 600), NoExpiry)
		put(t, l.c, fmt.Sprint("other", i), "", NoExpiry)
	}
	if _, err := l.n.Write(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if round < 24 {
		t.Fatalf("%d rounds", round)
	}
	l.end()
	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	defer l.end()
	missing := 0
	for i := range keys {
		if versionOf(l.c, name(i)) == 0 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d keys are missing", missing, keys)
	}
}

// What a life has left out does not come back in the next one.
func TestSnapshotLeftOut(t *testing.T) {
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	put(t, l.c, "k", "1", NoExpiry)
	put(t, l.c2, "k", "2", NoExpiry)
	l.finish(t)

	s := New(Options{Clock: newManualClock(birth)}) // without the second cache
	s.Add(primary)
	n, err := s.OpenSnapshots(SnapshotOptions{Dir: snapDir, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	if loaded, err := n.Load(t.Context()); err != nil || loaded.Unknown != 1 || loaded.Entries != 1 {
		t.Errorf("loaded %+v, %v", loaded, err)
	}
	if _, err := n.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = n.Close()
	s.Close()

	l = start(t, fs, birth, Options{}, SnapshotOptions{})
	defer l.end()
	if got := loadedEntries(l.Store); len(got) != 1 || !l.loaded.Clean || versionOf(l.c2, "k") != 0 {
		t.Errorf("loaded %+v: %v", l.loaded, got)
	}
}

// A store that is used after its start was broken off: the next life does not take the snapshot for the end of this
// one.
func TestSnapshotUsedAfterCancel(t *testing.T) {
	fs := &vfs.Mem{}
	smallSnapshot(t, fs)
	s := New(Options{Clock: newManualClock(birth)})
	c := s.Add(primary)
	n, err := s.OpenSnapshots(SnapshotOptions{Dir: snapDir, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := n.Reserve(); err != nil {
		t.Fatal(err)
	}
	highest := put(t, c, "k", "later", NoExpiry)
	if _, err := n.Finish(t.Context()); !errors.Is(err, ErrSnapshotNotLoaded) {
		t.Errorf("got %v", err)
	}
	_ = n.Close()
	s.Close()
	l := start(t, fs, birth, Options{}, SnapshotOptions{})
	defer l.end()
	if l.loaded.Clean || l.loaded.Entries == 0 {
		t.Errorf("loaded %+v", l.loaded)
	}
	if v := put(t, l.c, "k", "", NoExpiry); v <= highest {
		t.Errorf("version %d, and %d was given out", v, highest)
	}
}

// Restarts in order do not let versions run ahead of the clock, which is all that a store without the file has.
func TestSnapshotVersionsStayNear(t *testing.T) {
	fs := &vfs.Mem{}
	highest := uint64(0)
	for range 20 {
		l := start(t, fs, birth, Options{}, SnapshotOptions{})
		v := put(t, l.c, "k", "", NoExpiry)
		if v <= highest {
			t.Errorf("version %d, and %d was given out", v, highest)
		}
		highest = v
		l.finish(t)
	}
	if ahead := highest - uint64(birth.UnixNano()); ahead > versionStep {
		t.Errorf("versions are %d ahead", ahead)
	}
}

// Versions that a store cannot have are damage. None is taken over, and none makes later ones begin again.
func TestSnapshotVersionsAbove(t *testing.T) {
	for _, how := range []string{"versions", "footer", "entry"} {
		fs := &vfs.Mem{}
		d := directoryID{1}
		versions := versionsFile{directory: d, bound: 7, clean: 1}
		footer := snapshotFooter{id: 1, entries: 1, version: 7}
		e := storedEntry{version: 7, key: []byte("k"), value: []byte("v")}
		switch how {
		case "versions":
			versions.bound = math.MaxUint64
		case "footer":
			footer.version = math.MaxUint64
		case "entry":
			e.version = math.MaxUint64
		}
		block := e.append(nil)
		index := encodeIndex([]Scope{primary}, []blockInfo{{uint32(len(block)), 1, checksum(block)}})
		footer.index, footer.indexSum = uint64(len(index)), checksum(index)
		b := append(snapshotHeader{directory: d, id: 1, taken: 1}.append(make([]byte, 0, 1<<10)), block...)
		_ = fs.MkdirAll(snapDir)
		replace(t, fs, snapshotFile, footer.append(append(b, index...)))
		replace(t, fs, versionsName, versions.append(nil))
		l := start(t, fs, birth, Options{}, SnapshotOptions{})
		if v := versionOf(l.c, "k"); v != 0 {
			t.Errorf("%s: version %d is loaded", how, v)
		}
		if v := put(t, l.c, "k", "", NoExpiry); v <= uint64(birth.UnixNano()) || v > 1<<62 {
			t.Errorf("%s: version %d comes next", how, v)
		}
		l.end()
	}
}

// Snapshots that are written while clients work have of each key a value that it had meanwhile, with its version. Each
// client has keys of its own, of which it knows the history.
func TestSnapshotStress(t *testing.T) {
	noLeak(t)
	const clients, keys = 4, 60
	fs := &vfs.Mem{}
	l := start(t, fs, birth, Options{MaxBytes: 256 << 10, MaxScopeBytes: 200 << 10}, SnapshotOptions{})
	l.policyFrom = 1
	type change struct {
		version uint64
		value   string
	}
	type history struct {
		mu      sync.Mutex
		changes []change // in order; an empty value is a deletion
	}
	histories := map[string]*history{}
	for client := range clients {
		for i := range keys {
			key := fmt.Sprintf("%d/%d", client, i)
			histories[key] = &history{changes: []change{{put(t, l.c, key, "first", NoExpiry), "first"}}}
		}
	}
	for round := range 12 {
		before := l.version.Load()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for client := range clients {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(round), uint64(client)))
				for i := 0; ; i++ {
					select {
					case <-stop:
						if i >= 200 {
							return
						}
					default:
					}
					key := fmt.Sprintf("%d/%d", client, rnd.IntN(keys))
					h := histories[key]
					h.mu.Lock()
					switch n := rnd.IntN(10); {
					case n < 6:
						ttl := NoExpiry
						if rnd.IntN(3) == 0 {
							ttl = time.Duration(rnd.IntN(50)+1) * time.Millisecond
						}
						value := fmt.Sprintf("%s=%d/%d", key, round, i) + strings.Repeat("x", rnd.IntN(6)*300)
						version, err := l.c.Put([]byte(key), []byte(value), ttl)
						if err != nil {
							t.Error(err)
						}
						h.changes = append(h.changes, change{version, value})
					case n < 8:
						version, _ := l.c.Delete([]byte(key))
						h.changes = append(h.changes, change{version, ""})
					default:
						if v, ok := l.c.Get([]byte(key)); ok {
							last := h.changes[len(h.changes)-1]
							if string(v.Bytes()) != last.value || v.Version() != last.version {
								t.Errorf("%s has %.40q %d, want %.40q %d", key, v.Bytes(), v.Version(), last.value, last.version)
							}
							v.Release()
						}
					}
					h.mu.Unlock()
					if rnd.IntN(20) == 0 {
						l.clock.Advance(time.Duration(rnd.IntN(10)) * time.Millisecond)
					}
				}
			})
		}
		w, err := l.n.Write(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		close(stop)
		wg.Wait()
		if w.Entries == 0 {
			t.Error("a snapshot without entries proves nothing")
		}

		// The file as it is, since a store would have given the entries new versions.
		b := content(t, fs, snapshotFile)
		ld := loader{n: l.n}
		f, err := fs.Open(path.Join(snapDir, snapshotFile))
		if err != nil {
			t.Fatal(err)
		}
		_, scopes, blocks, err := ld.frame(f)
		if err != nil {
			t.Fatal(err)
		}
		at := headerSize
		for _, info := range blocks {
			block := b[at : at+int(info.length)]
			at += int(info.length)
			if checksum(block) != info.sum {
				t.Error("a block is damaged")
			}
			if err := eachEntry(block, info.entries, len(scopes), func(e *storedEntry) {
				h := histories[string(e.key)]
				if h == nil {
					t.Errorf("key %q", e.key)
					return
				}
				for i, c := range h.changes {
					if c.version != e.version {
						continue
					}
					if c.value != string(e.value) {
						t.Errorf("%s: version %d has %.40q, want %.40q", e.key, e.version, e.value, c.value)
					}
					if i+1 < len(h.changes) && h.changes[i+1].version <= before {
						t.Errorf("%s: version %d was replaced by %d before the snapshot began at %d", e.key, e.version, h.changes[i+1].version, before)
					}
					return
				}
				t.Errorf("%s: version %d was never given out", e.key, e.version)
			}); err != nil {
				t.Error(err)
			}
		}
		_ = f.Close()
	}
	settle(l.Store)
	want, at := loadedEntries(l.Store), l.clock.Now()
	l.finish(t)
	l = start(t, fs, at, Options{}, SnapshotOptions{})
	defer l.end()
	if got := loadedEntries(l.Store); l.loaded.Damaged+l.loaded.NoSpace+l.loaded.Unknown > 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("loaded %+v: %d entries, want %d", l.loaded, len(got), len(want))
	}
	settle(l.Store)
	checkIndex(t, l.Store)
}

// FuzzSnapshot loads files and parts of them. Whatever they are, nothing panics, and no more is loaded than may be.
func FuzzSnapshot(f *testing.F) {
	fs := &vfs.Mem{}
	l := &life{Store: New(Options{Clock: newManualClock(birth)})}
	l.c = l.Add(primary)
	n, err := l.OpenSnapshots(SnapshotOptions{Dir: snapDir, FS: fs})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := n.Load(f.Context()); err != nil {
		f.Fatal(err)
	}
	for i := range 4 {
		if _, err := l.c.Put(fmt.Append(nil, i), []byte("value"), NoExpiry); err != nil {
			f.Fatal(err)
		}
	}
	if _, err := n.Finish(f.Context()); err != nil {
		f.Fatal(err)
	}
	_ = n.Close()
	l.Close()
	good, versions := content(f, fs, snapshotFile), content(f, fs, versionsName)
	for how := range byte(4) {
		f.Add(how, good)
		f.Add(how, good[headerSize:len(good)-footerSize])
		f.Add(how, versions)
		f.Add(how, encodeIndex([]Scope{primary}, []blockInfo{{1, 2, 3}}))
	}
	f.Fuzz(func(t *testing.T, how byte, b []byte) {
		fs := &vfs.Mem{}
		_ = fs.MkdirAll(snapDir)
		snapshot, ofVersions := b, versions
		switch how % 4 {
		case 0:
			if len(b) > 8 { // with a checksum that is right
				binary.LittleEndian.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
			}
		case 1:
			snapshot, ofVersions = good, sealed(b)
		case 2: // as a block
			v, _ := parseVersions(versions)
			snapshot = snapshotHeader{directory: v.directory, id: 1, taken: 1}.append(nil)
			snapshot = append(snapshot, b...)
			index := encodeIndex([]Scope{primary, second}, []blockInfo{{uint32(len(b)), uint32(len(b) / 19), checksum(b)}})
			snapshot = append(snapshot, index...)
			snapshot = snapshotFooter{id: 1, index: uint64(len(index)), entries: 1 << 40, version: maxVersion, indexSum: checksum(index)}.append(snapshot)
		case 3: // as an index
			v, _ := parseVersions(versions)
			snapshot = append(snapshotHeader{directory: v.directory, id: 1, taken: 1}.append(nil), b...)
			snapshot = snapshotFooter{id: 1, index: uint64(len(b)), entries: 1 << 40, version: 1, indexSum: checksum(b)}.append(snapshot)
		}
		replace(t, fs, snapshotFile, snapshot)
		replace(t, fs, versionsName, ofVersions)
		l := start(t, fs, birth, Options{MaxBytes: 64 << 10}, SnapshotOptions{})
		defer l.end()
		if l.err != nil && !errors.Is(l.err, ErrSnapshotIgnored) {
			t.Errorf("load: %v", l.err)
		}
		if n := l.Bytes(); n > 64<<10 {
			t.Errorf("%d bytes are loaded", n)
		}
		if scopes, blocks, err := parseIndex(b); err == nil {
			if again := encodeIndex(scopes, blocks); len(again) > len(b) {
				t.Errorf("an index of %d bytes has %d", len(b), len(again))
			}
		}
	})
}
