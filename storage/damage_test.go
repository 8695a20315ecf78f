package storage

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// TestDamage flips one bit of each byte of each file, one at a time. Each flip is found, or it hurts nothing: no wrong
// payload is ever returned, and what was acknowledged is there or the store says that it is damaged.
func TestDamage(t *testing.T) {
	fs := &vfs.Mem{}
	promises := make([]promise, 2)
	work(t, fs, promises, 12, noneUnsynced)
	// Some of it is in the journal only as far as anybody knows, as after the end of a process.
	fs.CrashAfter(20)
	work(t, fs, promises, 12, noneUnsynced)
	image := fs.Restart()

	found, harmless := 0, 0
	for _, name := range files(t, image, "data") {
		if strings.HasSuffix(name, "/lock") || strings.HasSuffix(name, "/spare") {
			continue
		}
		size := int64(len(read(t, image, name)))
		for at := int64(0); at < size; at += int64(sample(11)) {
			damaged := clone(t, image)
			flip(t, damaged, name, at)
			if openAndRead(t, damaged, promises, fmt.Sprintf("%s, byte %d", name, at)) {
				harmless++
			} else {
				found++
			}
		}
	}
	t.Logf("%d flips found, %d harmless", found, harmless)
	if found == 0 || harmless == 0 {
		t.Error("want some of each")
	}
}

// openAndRead reports whether all records that were acknowledged can be read. If they cannot, it must be because of
// damage that was found.
func openAndRead(t *testing.T, fs vfs.FS, promises []promise, what string) bool {
	t.Helper()
	var damage *CorruptionError
	s, err := Open("data", small(fs))
	if err != nil {
		if !errors.As(err, &damage) {
			t.Fatalf("%s: open: %v", what, err)
		}
		return false
	}
	defer s.Close()
	whole := true
	for i := range promises {
		l, err := s.Log(key(i))
		if err != nil {
			if !errors.As(err, &damage) {
				t.Fatalf("%s: log: %v", what, err)
			}
			whole = false
			continue
		}
		b := l.Bounds()
		if b.Tail < promises[i].acked {
			t.Fatalf("%s: log %d ends at %d, but %d were acknowledged", what, i, b.Tail, promises[i].acked)
		}
		r, err := l.Read(b.Base)
		if err != nil {
			t.Fatal(err)
		}
		for next := b.Base; next < b.Tail; {
			records, err := r.Next(100)
			if err != nil {
				if !errors.As(err, &damage) {
					t.Fatalf("%s: read: %v", what, err)
				}
				whole = false
				break
			}
			for _, rec := range records {
				if rec.Offset != next || string(rec.Payload) != string(payloadOf(i, next)) {
					t.Fatalf("%s: log %d has %.40q at %d", what, i, rec.Payload, next)
				}
				next++
			}
			if len(records) == 0 {
				t.Fatalf("%s: log %d ends at %d, want %d", what, i, next, b.Tail)
			}
		}
	}
	return whole
}

// files returns the names of all files below dir.
func files(t *testing.T, fs vfs.FS, dir string) (names []string) {
	t.Helper()
	entries, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Dir {
			names = append(names, files(t, fs, dir+"/"+e.Name)...)
		} else {
			names = append(names, dir+"/"+e.Name)
		}
	}
	return names
}

func read(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	b, err := readAll(fs, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func clone(t *testing.T, fs vfs.FS) *vfs.Mem {
	t.Helper()
	to := &vfs.Mem{}
	for _, name := range files(t, fs, "data") {
		if err := to.MkdirAll(name[:strings.LastIndex(name, "/")]); err != nil {
			t.Fatal(err)
		}
		f, err := to.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(read(t, fs, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func flip(t *testing.T, fs vfs.FS, name string, at int64) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	b[0] ^= 1 << (at % 8)
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// TestFaults lets the n-th operation of each kind fail, for each n, in each way, and checks what is left as after a
// crash. It is the end of the process; TestLostWriteBack has that of the machine.
func TestFaults(t *testing.T) {
	faults := []error{syscall.EIO, syscall.ENOSPC}
	ops := map[vfs.Op][]error{
		vfs.OpWrite: append([]error{io.ErrShortWrite}, faults...), vfs.OpOpen: append([]error{syscall.EMFILE}, faults...),
		vfs.OpCreate: append([]error{syscall.EMFILE}, faults...),
	}
	for _, op := range []vfs.Op{
		vfs.OpMkdir, vfs.OpRemove, vfs.OpRename, vfs.OpList, vfs.OpSyncDir, vfs.OpFree, vfs.OpLock, vfs.OpSize, vfs.OpRead, vfs.OpTruncate,
		vfs.OpSync, vfs.OpReserve, vfs.OpClose,
	} {
		ops[op] = faults
	}
	cases := 0
	for op, kinds := range ops {
		for _, fault := range kinds {
			for n := 1; ; n += sample(5) {
				mem := &vfs.Mem{}
				promises := make([]promise, 2)
				work(t, mem, promises, 10, noneUnsynced)
				var seen atomic.Int64
				faulty := vfs.Faulty{FS: mem, Before: func(o vfs.Op, _ string) error {
					if o != op {
						return nil
					}
					if seen.Add(1) == int64(n) {
						return fault
					}
					return nil
				}}
				workWithFaults(t, faulty, promises)
				cases++
				check(t, mem.Restart(), promises)
				if seen.Load() < int64(n) {
					break
				}
			}
		}
	}
	t.Logf("%d faults", cases)
}

// TestLostWriteBack lets each sync of a file fail, one per run, as a device does that has lost what was to be written,
// while the kernel still shows it. The process is started again, and later the machine loses power.
func TestLostWriteBack(t *testing.T) {
	for n := 1; ; n++ {
		fs := &vfs.Mem{}
		promises := make([]promise, 2)
		work(t, fs, promises, 10, noneUnsynced)
		fs.LoseSync(n)
		workWithFaults(t, fs, promises)
		fs = fs.Restart()
		check(t, fs, promises)
		dice := rand.New(rand.NewPCG(1, uint64(n)))
		check(t, fs.Crash(vfs.KeepNone, dice), promises)
		if n > 40 {
			break
		}
	}
}

// workWithFaults appends until something fails. What fails is not acknowledged, and nothing is after it.
func workWithFaults(t *testing.T, fs vfs.FS, promises []promise) {
	t.Helper()
	s, err := Open("data", small(fs))
	if err != nil {
		return
	}
	defer s.Close()
	type result struct {
		log  int
		next uint64
		err  error
	}
	results := make(chan result)
	for round := range 15 {
		for i := range promises {
			l, err := s.Log(key(i))
			if err != nil {
				return
			}
			first := l.Bounds().Tail
			if first < promises[i].acked {
				t.Fatalf("log %d ends at %d, but %d were acknowledged", i, first, promises[i].acked)
			}
			_, err = l.Append([][]byte{payloadOf(i, first), payloadOf(i, first+1)}, ClassDevice, func(err error) {
				results <- result{i, first + 2, err}
			})
			if err != nil {
				if !errors.Is(err, ErrFailed) {
					t.Errorf("append: %v", err)
				}
				return
			}
			promises[i].appended = max(promises[i].appended, first+2)
			select {
			case r := <-results:
				if r.err == nil {
					promises[i].acked = r.next
				} else if !errors.Is(r.err, ErrFailed) || s.Err() == nil {
					t.Errorf("completed with %v, and the store with %v", r.err, s.Err())
				}
			case <-time.After(10 * time.Second):
				t.Fatal("an append does not complete")
			}
		}
		if round%4 == 3 {
			_ = s.Retain()
		}
	}
}

// TestHeadroom refuses appends while the device is nearly full, and takes them again afterwards. Reads go on.
func TestHeadroom(t *testing.T) {
	fs := &vfs.Mem{}
	opt := small(fs)
	opt.Headroom = 1000
	s, l := openLogWith(t, opt)
	defer s.Close()
	put := func() error {
		done := make(chan error, 1)
		if _, err := l.Append([][]byte{payloadOf(0, l.Bounds().Tail)}, ClassDevice, func(err error) { done <- err }); err != nil {
			return err
		}
		return <-done
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	fs.SetFree(999)
	s.checkSpace()
	if err := put(); !errors.Is(err, ErrFull) {
		t.Errorf("append on a full device: %v, want ErrFull", err)
	}
	readBack(t, l, 0)
	fs.SetFree(1000)
	s.checkSpace()
	if err := put(); err != nil {
		t.Error(err)
	}
}

// device is a file system of which there is so much. Writes beyond fail.
type device struct {
	vfs.FS
	left atomic.Int64
}

func (d *device) Free(string) (int64, error) { return d.left.Load(), nil }

func (d *device) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &deviceFile{f, d}, nil
}

func (d *device) Open(name string) (vfs.File, error)   { return d.wrap(d.FS.Open(name)) }
func (d *device) Create(name string) (vfs.File, error) { return d.wrap(d.FS.Create(name)) }

type deviceFile struct {
	vfs.File
	d *device
}

func (f *deviceFile) WriteAt(b []byte, at int64) (int, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	if more := at + int64(len(b)) - size; more > 0 && f.d.left.Add(-more) < 0 {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(b, at)
}

// TestHeadroomOfFastWriter appends as fast as it can to a device that fills up, while retention waits for the disk:
// what is appended is refused before there is no space.
func TestHeadroomOfFastWriter(t *testing.T) {
	for _, inFlight := range []int{1, 50} {
		gate := make(chan struct{})
		release := sync.OnceFunc(func() { close(gate) })
		defer release()
		d := &device{FS: vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, name string) error {
			if op == vfs.OpRemove && strings.HasPrefix(name, "data/t_") {
				<-gate
			}
			return nil
		}}}
		d.left.Store(4 << 20)
		const headroom, payload = 1 << 20, 4 << 10
		opt := Options{FS: d, SegmentBytes: 64 << 10, JournalBytes: 256 << 10, RetainEvery: time.Millisecond, Headroom: headroom}
		s, l := openLogWith(t, opt)
		l.SetRetention(Retention{Bytes: 1})
		results := make(chan error, inFlight)
		waiting, refused := 0, error(nil)
		for refused == nil {
			if _, refused = l.Append([][]byte{make([]byte, payload)}, ClassDevice, func(err error) { results <- err }); refused == nil {
				waiting++
			}
			for waiting == inFlight || refused != nil && waiting > 0 {
				if err := <-results; err != nil {
					t.Fatalf("%d in flight: the device is full: %v", inFlight, err)
				}
				waiting--
			}
		}
		if !errors.Is(refused, ErrFull) || d.left.Load() < headroom/2 {
			t.Errorf("%d in flight: refused with %v, and %d bytes are left", inFlight, refused, d.left.Load())
		}
		release()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLock refuses a second store on the same directory.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestEpochIsKept fails to read the number of a data directory once: it is not replaced by another one.
func TestEpochIsKept(t *testing.T) {
	disk := &vfs.Mem{}
	epoch := func(fs vfs.FS) (uint64, error) {
		s, err := Open("data", Options{FS: fs})
		if err != nil {
			return 0, err
		}
		defer s.Close()
		return s.epoch, nil
	}
	want, err := epoch(disk)
	if err != nil {
		t.Fatal(err)
	}
	broken := vfs.Faulty{FS: disk, Before: func(op vfs.Op, name string) error {
		if op == vfs.OpRead && strings.HasSuffix(name, epochFile) {
			return syscall.EIO
		}
		return nil
	}}
	if _, err := epoch(broken); !errors.Is(err, syscall.EIO) {
		t.Errorf("opened although its number cannot be read: %v", err)
	}
	if got, err := epoch(disk); got != want || err != nil {
		t.Errorf("the number is %x, and was %x: %v", got, want, err)
	}
}
