package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/storage"
)

// What it takes to open many streams, to have them idle, and to recover after the end of a process. And package storage
// alone, in the shape of the table that the reference implementation publishes.

const gibibyte = 1 << 30

// Figures of recovery.
const (
	firstOpen   = "s/GiB, first open"
	allVerified = "s/GiB, all verified"
)

func openRows() []durableRow {
	alone := func(run func(context.Context, *durableJob) (figures, string, error)) []durableSystem {
		return []durableSystem{{felixName, "Felix", run}}
	}
	return []durableRow{
		{
			name: "open", title: "10 000 durable streams, each with an event", prepare: writeStreams(10_000),
			systems: alone(runOpen), shown: []string{"s to open"}, goals: []durableGoal{{"s to open", felixName, "", limit{false, 5}}},
		},
		{
			name: "idle", title: "100 000 idle durable streams, each with an event", prepare: writeStreams(100_000),
			systems: alone(runIdle), shown: []string{"bytes of heap each", "files held", "s to open"},
			goals: []durableGoal{
				{"bytes of heap each", felixName, "", limit{false, 4096}},
				{"files held", felixName, "", limit{false, 0}},
			},
		},
		{
			name: "recovery", title: "1 GiB in one segment, 7 000 000 records, after kill -9", systems: alone(runRecovery),
			shown: []string{firstOpen, allVerified, "CPU s of the first open", "MiB of journal"},
			goals: []durableGoal{
				{firstOpen, felixName, "", limit{false, 1}},
				{allVerified, felixName, "", limit{false, 1}},
			},
		},
	}
}

// keyOf is the key of a stream of a development broker.
func keyOf(stream string) storage.Key {
	o := broker.DefaultDevOptions()
	return storage.Key{Tenant: o.Tenant, Namespace: o.Namespace, Stream: stream}
}

// lazy is the file system without syncs, to prepare many files in little time.
type lazy struct{ vfs.FS }

func (l lazy) SyncDir(string) error { return nil }

func (l lazy) Open(name string) (vfs.File, error) {
	f, err := l.FS.Open(name)
	return lazyFile{f}, err
}

func (l lazy) Create(name string) (vfs.File, error) {
	f, err := l.FS.Create(name)
	return lazyFile{f}, err
}

type lazyFile struct{ vfs.File }

func (lazyFile) Sync() error { return nil }

// writeStreams makes a data directory with n streams, each of which has an event.
func writeStreams(n int) func(context.Context, *durableJob) error {
	return func(_ context.Context, j *durableJob) (err error) {
		s, err := storage.Open(j.Shared, storage.Options{FS: lazy{vfs.OS{}}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		var written sync.WaitGroup
		var failed atomic.Pointer[error]
		event := [][]byte{randomBytes(128)}
		for _, name := range streamNames(j.scaled(n)) {
			l, err := s.Log(keyOf(name))
			if err != nil {
				return err
			}
			written.Add(1)
			_, err = l.Append(event, storage.ClassOS, func(err error) {
				if err != nil {
					failed.Store(&err)
				}
				written.Done()
			})
			if err != nil {
				return err
			}
		}
		written.Wait()
		if e := failed.Load(); e != nil {
			return *e
		}
		return nil
	}
}

// runOpen starts a broker, from its process to when it can be connected to.
func runOpen(_ context.Context, j *durableJob) (figures, string, error) {
	names := streamNames(j.scaled(10_000))
	began := time.Now()
	b, err := startDurable(j.Shared, "device", names...)
	if err != nil {
		return nil, "", err
	}
	took := time.Since(began)
	if err = errors.Join(checkStreams(b, len(names)), b.Stop()); err != nil {
		return nil, "", err
	}
	return figures{"s to open": took.Seconds()}, "the whole start of the broker's process; the directory is in the page cache", nil
}

// checkStreams fails unless a broker has that many streams, and events of theirs.
func checkStreams(b *brokerproc.Process, want int) error {
	m, err := b.Metrics()
	if err == nil && (int(m["felix_streams"]) != want || m["felix_log_events"] == 0) {
		err = fmt.Errorf("%v streams with %v events or more, want %d with events", m["felix_streams"], m["felix_log_events"], want)
	}
	return err
}

// runIdle opens streams in a broker and does nothing with them.
func runIdle(_ context.Context, j *durableJob) (f figures, said string, err error) {
	b, err := startDurable(j.Shared, "device", "first")
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	before, err := heldBy(b)
	if err != nil {
		return nil, "", err
	}
	names := streamNames(j.scaled(100_000))
	began := time.Now()
	if err := b.AddDurableStreams(names); err != nil {
		return nil, "", err
	}
	took := time.Since(began)
	after, err := heldBy(b)
	if err = errors.Join(err, checkStreams(b, len(names)+1)); err != nil {
		return nil, "", err
	}
	return figures{
		"bytes of heap each": float64(after.bytes-before.bytes) / float64(len(names)),
		"files held":         float64(after.files - before.files), "s to open": took.Seconds(),
	}, "", nil
}

// held is what a broker's process holds after a collection.
type held struct {
	bytes int64 // heap and stacks
	files int
}

func heldBy(b *brokerproc.Process) (h held, err error) {
	m, err := b.Memory()
	if err != nil {
		return held{}, err
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.PID))
	return held{m.Heap + m.Stacks, len(files)}, err
}

// recoverySegment is larger than all that is recovered, so that it is in one segment as in the reference's figure.
const recoverySegment = 2 * gibibyte

const writerRole = "durable-writer"

// writerJob says how many records a process shall append to one log before it is killed.
type writerJob struct {
	Dir     string
	Records int
}

// serveWriter is such a process. It is ready when all records are with the operating system, and does not close the
// store.
func serveWriter(ctx context.Context, j writerJob, parent *child.Parent) (any, error) {
	s, err := storage.Open(j.Dir, storage.Options{SegmentBytes: recoverySegment})
	if err != nil {
		return nil, err
	}
	l, err := s.Log(keyOf("s0"))
	if err != nil {
		return nil, err
	}
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = randomBytes(appendPayload)
	}
	done := make(chan error, 1024)
	inFlight := 0
	for left := j.Records; left > 0; left -= len(batch) {
		if inFlight == cap(done) {
			if err := <-done; err != nil {
				return nil, err
			}
			inFlight--
		}
		if _, err := l.Append(batch[:min(len(batch), left)], storage.ClassOS, func(err error) { done <- err }); err != nil {
			return nil, err
		}
		inFlight++
	}
	for range inFlight {
		if err := <-done; err != nil {
			return nil, err
		}
	}
	if err := parent.Send(true); err != nil {
		return nil, err
	}
	<-ctx.Done()
	return true, nil
}

func runRecovery(ctx context.Context, j *durableJob) (figures, string, error) {
	records := j.scaled(7_000_000)
	w, err := child.Start(ctx, writerRole, writerJob{j.Dir, records}, nil, new(bool))
	if err != nil {
		return nil, "", err
	}
	if err := w.Kill(); err != nil {
		return nil, "", err
	}
	_ = w.Stop(nil) // that it was killed is no news
	journal, err := journalBytes(j.Dir)
	if err == nil {
		err = warmCache(j.Dir)
	}
	if err != nil {
		return nil, "", err
	}
	cpu, err := child.CPUTime()
	if err != nil {
		return nil, "", err
	}
	first, size, err := timeOpen(j.Dir, records, storage.Options{SegmentBytes: recoverySegment})
	if err != nil {
		return nil, "", err
	}
	after, err := child.CPUTime()
	if err != nil {
		return nil, "", err
	}
	all, _, err := timeOpen(j.Dir, records, storage.Options{SegmentBytes: recoverySegment, VerifyAll: true})
	if err != nil {
		return nil, "", err
	}
	perGiB := func(d time.Duration) float64 { return d.Seconds() / float64(size) * gibibyte }
	return figures{
		firstOpen: perGiB(first), allVerified: perGiB(all), "CPU s of the first open": (after - cpu).Seconds(), "MiB of journal": float64(journal) / (1 << 20),
	}, "the first open writes the journal to the segment again; all is verified by another open", nil
}

// journalBytes returns how many bytes of journal files a directory has.
func journalBytes(dir string) (int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "journal", "*.wal"))
	if err == nil && len(files) == 0 {
		err = errors.New("the journal is empty")
	}
	sum := int64(0)
	for _, name := range files {
		info, e := os.Stat(name)
		if err = errors.Join(err, e); err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, err
}

// timeOpen opens a store and its log, which has to have all records, and returns how long that took and how large the
// log is.
func timeOpen(dir string, records int, o storage.Options) (took time.Duration, size int64, err error) {
	began := time.Now()
	s, err := storage.Open(dir, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := s.Log(keyOf("s0"))
	if err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	b := l.Bounds()
	if b.Base != 0 || b.Tail != uint64(records) {
		return 0, 0, fmt.Errorf("records %d to %d, want 0 to %d", b.Base, b.Tail, records)
	}
	return took, b.Bytes, nil
}

// The reference's table of appends.
const (
	appendPayload = 128
	appendRecords = 8000
	appendWarmup  = 2000
)

const (
	recordsPerSecond = "records/s"
	p999Micros       = "p99.9 µs"
)

// appendMode is a mode of the reference, and the class here that is like it.
type appendMode struct {
	name, title string
	class       storage.Class
	syncEvery   time.Duration
}

var appendModes = []appendMode{
	{"none", "os, synced after an hour (none)", storage.ClassOS, time.Hour},
	{"periodic", "os, synced each 250 ms (periodic)", storage.ClassOS, 250 * time.Millisecond},
	{"on_commit", "device (on_commit)", storage.ClassDevice, 0},
}

func appendRows() []durableRow {
	var all []durableRow
	for _, mode := range appendModes {
		for _, batch := range []int{1, 16} {
			for _, callers := range []int{1, 8, 64} {
				all = append(all, durableRow{
					name:    fmt.Sprintf("append/%s/batch=%d/callers=%d", mode.name, batch, callers),
					title:   fmt.Sprintf("%s | %d | %d", mode.title, batch, callers),
					systems: []durableSystem{{felixName, "Felix", mode.run(batch, callers)}},
					shown:   []string{recordsPerSecond, p50Micros, p99Micros, p999Micros},
				})
			}
		}
	}
	return all
}

// published is what the reference implementation publishes of the rows of appendRows: records per second, p50, p99 and
// p99.9.
var published = map[string][4]string{
	"append/none/batch=1/callers=1":        {"571898", "1 µs", "2 µs", "5 µs"},
	"append/none/batch=1/callers=8":        {"252825", "3 µs", "391 µs", "730 µs"},
	"append/none/batch=1/callers=64":       {"255997", "3 µs", "787 µs", "1.5 ms"},
	"append/none/batch=16/callers=1":       {"2768326", "3 µs", "4 µs", "8 µs"},
	"append/none/batch=16/callers=8":       {"2121453", "51 µs", "337 µs", "738 µs"},
	"append/none/batch=16/callers=64":      {"1843566", "5 µs", "1.7 ms", "2.2 ms"},
	"append/periodic/batch=1/callers=1":    {"492106", "1 µs", "3 µs", "7 µs"},
	"append/periodic/batch=1/callers=8":    {"272182", "3 µs", "413 µs", "927 µs"},
	"append/periodic/batch=1/callers=64":   {"267180", "3 µs", "955 µs", "2.6 ms"},
	"append/periodic/batch=16/callers=1":   {"2671267", "3 µs", "5 µs", "8 µs"},
	"append/periodic/batch=16/callers=8":   {"1990194", "57 µs", "261 µs", "690 µs"},
	"append/periodic/batch=16/callers=64":  {"1854732", "129 µs", "255 µs", "284 µs"},
	"append/on_commit/batch=1/callers=1":   {"253", "3.99 ms", "6.0 ms", "10.7 ms"},
	"append/on_commit/batch=1/callers=8":   {"2006", "3.99 ms", "6.9 ms", "8.3 ms"},
	"append/on_commit/batch=1/callers=64":  {"14387", "4.07 ms", "8.6 ms", "9.2 ms"},
	"append/on_commit/batch=16/callers=1":  {"4038", "3.96 ms", "6.5 ms", "9.7 ms"},
	"append/on_commit/batch=16/callers=8":  {"28670", "4.00 ms", "9.8 ms", "12.1 ms"},
	"append/on_commit/batch=16/callers=64": {"185905", "4.96 ms", "8.1 ms", "9.2 ms"},
}

// run appends to one log by callers that wait for each append.
func (m appendMode) run(batch, callers int) func(context.Context, *durableJob) (figures, string, error) {
	return func(_ context.Context, j *durableJob) (f figures, said string, err error) {
		s, err := storage.Open(j.Dir, storage.Options{SegmentBytes: 64 << 20, SyncEvery: m.syncEvery})
		if err != nil {
			return nil, "", err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		l, err := s.Log(keyOf("s0"))
		if err != nil {
			return nil, "", err
		}
		items := make([][]byte, batch)
		for i := range items {
			items[i] = randomBytes(appendPayload)
		}
		if _, _, err := appendAll(l, m.class, items, callers, appendWarmup/batch); err != nil {
			return nil, "", err
		}
		calls := appendRecords / batch
		latencies, took, err := appendAll(l, m.class, items, callers, calls)
		if err != nil {
			return nil, "", err
		}
		measured := loop{duration: took, latencies: latencies}
		f = measured.figures()
		f[recordsPerSecond], f[p999Micros] = f[perSecond]*float64(batch), measured.micros(99.9)
		return f, "", nil
	}
}

// appendAll carries out that many appends and returns their latencies, sorted, and how long all took together.
func appendAll(l *storage.Log, class storage.Class, items [][]byte, callers, calls int) ([]time.Duration, time.Duration, error) {
	latencies := make([]time.Duration, calls)
	errs := make([]error, callers)
	var next atomic.Int64
	var work sync.WaitGroup
	began := time.Now()
	for c := range callers {
		work.Go(func() {
			done := make(chan error, 1)
			finish := func(err error) { done <- err }
			for i := next.Add(1) - 1; i < int64(calls); i = next.Add(1) - 1 {
				start := time.Now()
				_, err := l.Append(items, class, finish)
				if err == nil {
					err = <-done
				}
				if err != nil {
					errs[c] = err
					return
				}
				latencies[i] = time.Since(start)
			}
		})
	}
	work.Wait()
	took := time.Since(began)
	slices.Sort(latencies)
	return latencies, took, errors.Join(errs...)
}
