package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/internal/vfs"
)

// CacheSnapshotConfig says where and how often the entries of all caches are written to disk, for a restart that finds
// them again (docs/operate/snapshots.md).
type CacheSnapshotConfig struct {
	Dir   string `yaml:"dir" doc:"directory of a snapshot of all caches, made if it is missing, from which they are filled at the next start; without it they begin empty. One broker uses it at a time"`
	Every int64  `yaml:"interval_seconds" unit:"s" min:"-1" max:"86400" doc:"seconds between two snapshots; 0 is the default. -1 writes one only when the broker ends in order, and caches begin empty after any other end"`

	// FS is the file system of the directory; nil is that of the operating system. Tests have others.
	FS vfs.FS
}

const (
	// snapshotPace is how many bytes per second a snapshot writes while requests are served, or more if it would take
	// more than half of the time between two.
	snapshotPace = 64 << 20
	// finishPace is how fast a device is expected to take the last snapshot, in bytes per second.
	finishPace = 128 << 20
	// reserveEvery is how often a broker looks whether it has to reserve more versions.
	reserveEvery = time.Minute
)

// snapshots is what a broker has to do with the snapshot of its caches.
type snapshots struct {
	*cache.Snapshots
	restore sync.Once
	finish  sync.Once

	written, failed, ignored atomic.Uint64
	taken                    atomic.Int64 // Unix time in nanoseconds of the snapshot that is there; 0 for none
	bytes                    atomic.Int64
	loaded                   atomic.Pointer[cache.Loaded]
}

// openSnapshots opens the directory, if there is one.
func (b *Broker) openSnapshots() error {
	c := &b.cfg.CacheSnapshot
	if c.Dir == "" {
		return nil
	}
	inner, err := b.caches.OpenSnapshots(cache.SnapshotOptions{
		Dir: c.Dir, FS: c.FS, CleanOnly: c.Every < 0,
		Headroom: 2 * b.cfg.Storage.Headroom, // durable streams, which may be on the same disk, stop before it is used up
	})
	if err != nil {
		return fmt.Errorf("broker: directory of cache snapshots %s: %w", c.Dir, err)
	}
	b.snapshots = &snapshots{Snapshots: inner}
	b.snapshots.loaded.Store(new(cache.Loaded))
	return nil
}

// RestoreCaches fills the caches from the snapshot in Config.CacheSnapshot.Dir, if there is one, and returns when that
// is done or the context has ended; then they have what was loaded by then, and no snapshot is written. If such a
// broker serves, the snapshot does not count as one of an orderly end any more. What goes wrong is logged and counted,
// and the caches begin without it.
//
// It is called after the caches have been added and before [Broker.Serve], which calls it otherwise. A program that
// reports whether it is ready calls it first: it takes seconds for some GiB.
func (b *Broker) RestoreCaches(ctx context.Context) {
	if b.snapshots == nil {
		return
	}
	b.mu.Lock()
	if b.draining {
		b.mu.Unlock()
		return
	}
	b.wg.Add(1)
	b.mu.Unlock()
	defer b.wg.Done()
	b.snapshots.restore.Do(func() { b.restoreCaches(ctx) })
}

func (b *Broker) restoreCaches(ctx context.Context) {
	s := b.snapshots
	began := time.Now()
	l, err := s.Load(ctx)
	s.loaded.Store(&l)
	switch {
	case errors.Is(err, cache.ErrSnapshotIgnored):
		s.ignored.Add(1)
		b.log.Warn("cache snapshot ignored", "dir", b.cfg.CacheSnapshot.Dir, "error", err)
	case err != nil:
		b.log.Warn("cache snapshot not loaded", "dir", b.cfg.CacheSnapshot.Dir, "error", err)
	case !l.Taken.IsZero():
		s.taken.Store(l.Taken.UnixNano())
		s.bytes.Store(l.Bytes)
		b.log.Info("cache snapshot loaded", "entries", l.Entries, "bytes", l.Bytes, "taken", l.Taken, "clean", l.Clean, "took", time.Since(began),
			"expired", l.Expired, "unknown_cache", l.Unknown, "no_space", l.NoSpace)
		if l.Damaged > 0 {
			b.log.Error("cache snapshot damaged", "dir", b.cfg.CacheSnapshot.Dir, "entries_lost", l.Damaged)
		}
	}
	if l.Unreserved != nil {
		b.snapshotFailed(l.Unreserved)
	}
}

// reserveVersions makes sure that versions may be given out. It is called before the broker serves and now and then.
func (b *Broker) reserveVersions() {
	if b.acceptCtx.Err() != nil {
		return // it does not serve, and the snapshot stays as it is
	}
	if err := b.snapshots.Reserve(); err != nil {
		b.snapshotFailed(err)
	}
}

func (b *Broker) snapshotFailed(err error) {
	b.snapshots.failed.Add(1)
	b.log.Error("cache snapshot failed", "dir", b.cfg.CacheSnapshot.Dir, "error", err, "hint", "the one before is kept")
}

func (b *Broker) snapshotWritten(w cache.Written, err error, began time.Time) {
	switch {
	case errors.Is(err, context.Canceled): // the broker ends, and writes another one
	case err != nil:
		b.snapshotFailed(err)
	case !w.Taken.IsZero():
		s := b.snapshots
		s.written.Add(1)
		s.taken.Store(w.Taken.UnixNano())
		s.bytes.Store(w.Bytes)
		b.log.Info("cache snapshot written", "entries", w.Entries, "bytes", w.Bytes, "took", time.Since(began))
	}
}

// writeSnapshots writes snapshots until the context ends.
func (b *Broker) writeSnapshots(ctx context.Context) {
	reserve := time.NewTicker(reserveEvery)
	defer reserve.Stop()
	var due <-chan time.Time // never, if it is nil
	every := time.Duration(b.cfg.CacheSnapshot.Every) * time.Second
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		due = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-reserve.C:
			b.reserveVersions()
		case <-due:
			began := time.Now()
			w, err := b.snapshots.Write(ctx, max(snapshotPace, 2*int64(float64(b.caches.Bytes())/every.Seconds())))
			b.snapshotWritten(w, err, began)
		}
	}
}

// finishTime is the part of a shutdown's time that is left to the last snapshot.
func (b *Broker) finishTime(all time.Duration) time.Duration {
	if b.snapshots == nil {
		return 0
	}
	return min(all/2, time.Second+time.Duration(float64(b.caches.Bytes())/finishPace*float64(time.Second)))
}

// finishSnapshots writes the last snapshot, when nothing is served any more.
func (b *Broker) finishSnapshots(ctx context.Context) {
	if b.snapshots == nil {
		return
	}
	b.snapshots.finish.Do(func() {
		began := time.Now()
		w, err := b.snapshots.Finish(ctx)
		if errors.Is(err, cache.ErrSnapshotNotLoaded) {
			return // the broker has not served
		}
		if errors.Is(err, context.Canceled) {
			err = context.Cause(ctx)
			b.snapshotFailed(fmt.Errorf("the time for the shutdown is over: %w", err))
			return
		}
		b.snapshotWritten(w, err, began)
	})
}

func (b *Broker) closeSnapshots() {
	if b.snapshots != nil {
		_ = b.snapshots.Close() // a lock
	}
}

// snapshotCollector exposes the snapshot of a broker that writes them.
type snapshotCollector struct{ *snapshots }

var (
	snapshotsWritten = prometheus.NewDesc("felix_cache_snapshots_total", "Snapshots of the caches written.", nil, nil)
	snapshotsFailed  = prometheus.NewDesc("felix_cache_snapshot_failures_total", "Snapshots of the caches that could not be written; the one before was kept.", nil, nil)
	snapshotsIgnored = prometheus.NewDesc("felix_cache_snapshot_ignored", "Whether there was a snapshot at the start from which nothing was loaded: it was torn, of another directory, or not of an orderly end though that was asked for.", nil, nil)
	snapshotTime     = prometheus.NewDesc("felix_cache_snapshot_timestamp_seconds", "Unix time of the snapshot of the caches that is there; 0 if there is none.", nil, nil)
	snapshotBytes    = prometheus.NewDesc("felix_cache_snapshot_bytes", "Size of the snapshot of the caches that is there.", nil, nil)
	snapshotLoaded   = prometheus.NewDesc("felix_cache_snapshot_loaded_entries", "Cache entries that were loaded from a snapshot at the start.", nil, nil)
	snapshotSkipped  = prometheus.NewDesc("felix_cache_snapshot_skipped_entries", "Cache entries of the snapshot that were not loaded at the start, by reason.", []string{"reason"}, nil)
)

// Describe implements [prometheus.Collector].
func (snapshotCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{snapshotsWritten, snapshotsFailed, snapshotsIgnored, snapshotTime, snapshotBytes, snapshotLoaded, snapshotSkipped} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c snapshotCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	send(snapshotsWritten, prometheus.CounterValue, float64(c.written.Load()))
	send(snapshotsFailed, prometheus.CounterValue, float64(c.failed.Load()))
	send(snapshotsIgnored, prometheus.GaugeValue, float64(c.ignored.Load()))
	send(snapshotTime, prometheus.GaugeValue, float64(c.taken.Load()/1e6)/1e3)
	send(snapshotBytes, prometheus.GaugeValue, float64(c.bytes.Load()))
	l := c.loaded.Load()
	send(snapshotLoaded, prometheus.GaugeValue, float64(l.Entries))
	send(snapshotSkipped, prometheus.GaugeValue, float64(l.Expired), "expired")
	send(snapshotSkipped, prometheus.GaugeValue, float64(l.Unknown), "unknown_cache")
	send(snapshotSkipped, prometheus.GaugeValue, float64(l.NoSpace), "no_space")
	send(snapshotSkipped, prometheus.GaugeValue, float64(l.Damaged), "damaged")
}
