package broker_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/vfs"
)

// snapshotsIn returns a change of configuration that keeps a snapshot of caches in a file system, written at the end.
func snapshotsIn(fs vfs.FS) func(*broker.Config) {
	return func(c *broker.Config) {
		c.CacheSnapshot.FS, c.CacheSnapshot.Dir, c.CacheSnapshot.Every = fs, "snapshots", 3600
		c.Storage.Headroom = 1
	}
}

func wantMetric(t *testing.T, l *life, name string, want float64) {
	t.Helper()
	if got := metric(t, l.Dev, name); got != want {
		t.Errorf("%s is %v, want %v", name, got, want)
	}
}

// withCache begins a broker with a snapshot in a file system, has do use its cache, and ends it in order.
func withCache(t *testing.T, fs vfs.FS, do func(l *life, h *client.Cache)) {
	t.Helper()
	l := begin(t, snapshotsIn(fs))
	c := connect(t, l.Dev)
	do(l, c.Cache(l.Namespace, l.Cache))
	c.Close()
	l.end(t)
}

// cachedKey is the key that all tests here use.
const cachedKey = "k"

func wantCached(ctx context.Context, t *testing.T, h *client.Cache, want string) {
	t.Helper()
	got, err := h.Get(ctx, cachedKey)
	if want == "" && !errors.Is(err, client.ErrMiss) || want != "" && (err != nil || string(got) != want) {
		t.Errorf("%s is %q, %v, want %q", cachedKey, got, err, want)
	}
}

func putCached(ctx context.Context, t *testing.T, h *client.Cache, value string) {
	t.Helper()
	if err := h.Put(ctx, cachedKey, []byte(value), client.NoExpiry); err != nil {
		t.Fatal(err)
	}
}

// A disk that takes no snapshot disturbs neither requests nor the end of the broker, and the snapshot before is loaded.
func TestCacheSnapshotDiskFails(t *testing.T) {
	checkBuffers(t)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	var broken atomic.Bool
	fs := vfs.Faulty{FS: disk, Before: func(op vfs.Op, name string) error {
		if broken.Load() && op == vfs.OpWrite && strings.Contains(name, "cache.snapshot") {
			return syscall.ENOSPC
		}
		return nil
	}}
	for i, want := range []string{"", "1", "1", "2"} {
		l := begin(t, snapshotsIn(fs))
		c := connect(t, l.Dev)
		h := c.Cache(l.Namespace, l.Cache)
		wantCached(ctx, t, h, want)
		wantMetric(t, l, "felix_cache_snapshot_loaded_entries", float64(min(i, 1)))
		putCached(ctx, t, h, map[int]string{0: "1", 1: "lost", 2: "2", 3: "3"}[i])
		c.Close()
		broken.Store(i == 1)
		l.end(t)
		wantMetric(t, l, "felix_cache_snapshot_failures_total", map[bool]float64{i == 1: 1}[true])
		wantMetric(t, l, "felix_cache_snapshots_total", map[bool]float64{i != 1: 1}[true])
	}
}

// A snapshot that is damaged is ignored and counted, and the broker serves.
func TestCacheSnapshotIgnored(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	withCache(t, disk, func(_ *life, h *client.Cache) { putCached(ctx, t, h, "1") })
	f, err := disk.Open("snapshots/cache.snapshot")
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size - 1); err != nil {
		t.Fatal(err)
	}
	withCache(t, disk, func(l *life, h *client.Cache) {
		wantCached(ctx, t, h, "")
		wantMetric(t, l, "felix_cache_snapshot_ignored", 1)
	})
}

// A start that is broken off is no start: the broker that comes next finds the snapshot as it was.
func TestCacheSnapshotStartCanceled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	withCache(t, disk, func(_ *life, h *client.Cache) { putCached(ctx, t, h, "1") })

	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	snapshotsIn(disk)(&cfg)
	d, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	over, end := context.WithCancel(ctx)
	end()
	d.RestoreCaches(over)
	if _, err := broker.NewDev(cfg, broker.DevOptions{}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second broker in the directory: %v", err)
	}
	if err := d.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	d.RestoreCaches(ctx) // too late, and harmless

	withCache(t, disk, func(_ *life, h *client.Cache) { wantCached(ctx, t, h, "1") })
}

// A broker that serves after its start was broken off loses what it gets, so the next one does not take the snapshot
// for the end of it.
func TestCacheSnapshotServedAfterCancel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	l := begin(t, snapshotsIn(disk))
	c := connect(t, l.Dev)
	h := c.Cache(l.Namespace, l.Cache)
	first, err := h.PutIf(ctx, cachedKey, []byte("1"), client.NoExpiry, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.end(t)

	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	snapshotsIn(disk)(&cfg)
	d, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	over, end := context.WithCancel(ctx)
	end()
	d.RestoreCaches(over)
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	c = connect(t, d)
	putCached(ctx, t, c.Cache(d.Namespace, d.Cache), "2")
	c.Close()
	if err := d.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, broker.ErrShutdown) {
		t.Error(err)
	}

	l = begin(t, snapshotsIn(disk))
	c = connect(t, l.Dev)
	h = c.Cache(l.Namespace, l.Cache)
	wantCached(ctx, t, h, "1")
	if _, err := h.PutIf(ctx, cachedKey, []byte("3"), client.NoExpiry, first); err == nil {
		t.Error("a version from before counts, though the key had another value meanwhile")
	}
	c.Close()
	l.end(t)
}

// Who watches a cache hears that anything may have changed when a broker has been replaced, and then all changes.
func TestCacheSnapshotWatch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	l := begin(t, snapshotsIn(disk))
	c := connect(t, l.Dev)
	putCached(ctx, t, c.Cache(l.Namespace, l.Cache), "1")
	before := c.Cache(l.Namespace, l.Cache).GetMany(ctx, "k")[0].Version
	c.Close()
	l.end(t)

	l = begin(t, snapshotsIn(disk))
	c = connect(t, l.Dev)
	h := c.Cache(l.Namespace, l.Cache)
	var kinds []client.CacheEventKind
	for e, err := range h.Watch(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
		if e.Kind == client.CacheReset {
			if got := h.GetMany(ctx, "k")[0]; got.Version != before {
				t.Errorf("k has version %d, want %d", got.Version, before)
			}
			putCached(ctx, t, h, "2")
			continue
		}
		if string(e.Key) != "k" || e.Version <= before {
			t.Errorf("%v of %q, version %d after %d", e.Kind, e.Key, e.Version, before)
		}
		break
	}
	if len(kinds) != 2 || kinds[0] != client.CacheReset || kinds[1] != client.CacheSet {
		t.Errorf("heard %v", kinds)
	}
	c.Close()
	l.end(t)
}

// The time of a shutdown bounds the last snapshot too.
func TestCacheSnapshotShutdownOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	disk := &vfs.Mem{}
	l := begin(t, snapshotsIn(disk))
	c := connect(t, l.Dev)
	putCached(ctx, t, c.Cache(l.Namespace, l.Cache), "1")
	c.Close()
	over, end := context.WithTimeout(ctx, time.Nanosecond)
	defer end()
	<-over.Done()
	if err := l.Shutdown(over); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-l.served; !errors.Is(err, broker.ErrShutdown) {
		t.Errorf("served: %v", err)
	}
	wantMetric(t, l, "felix_cache_snapshots_total", 0)
	withCache(t, disk, func(_ *life, h *client.Cache) { wantCached(ctx, t, h, "") })
}
