package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// watch begins to watch the cache of a development broker.
func watch(t *testing.T, c *client.Client) (next func() (client.CacheEvent, error)) {
	t.Helper()
	pull, stop := iter.Pull2(c.Cache("default", "primary").Watch(testContext(t)))
	t.Cleanup(stop)
	next = func() (client.CacheEvent, error) { e, err, _ := pull(); return e, err }
	wantChange(t, next, client.CacheReset, "")
	return next
}

func wantChange(t *testing.T, next func() (client.CacheEvent, error), kind client.CacheEventKind, key string) client.CacheEvent {
	t.Helper()
	e, err := next()
	if err != nil || e.Kind != kind || string(e.Key) != key {
		t.Fatalf("got %v of %q, %v, want %v of %q", e.Kind, e.Key, err, kind, key)
	}
	return e
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCacheWatch(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.CacheMaxBytes = 1 << 20 })
	c := connect(t, d)
	ctx, cache := testContext(t), c.Cache("default", "primary")
	must(t, cache.Put(ctx, "before", nil, client.NoExpiry))
	first, second := watch(t, c), watch(t, c)
	must(t, cache.Put(ctx, "k", []byte("v"), client.NoExpiry))
	version := cache.GetMany(ctx, "k")[0].Version
	_, err := cache.Delete(ctx, "k")
	must(t, err)
	must(t, cache.Put(ctx, "short", []byte("v"), time.Millisecond))
	for _, next := range []func() (client.CacheEvent, error){first, second} {
		if e := wantChange(t, next, client.CacheSet, "k"); e.Version != version {
			t.Errorf("version %d was set, %d is read", e.Version, version)
		}
		if e := wantChange(t, next, client.CacheDeleted, "k"); e.Version <= version {
			t.Errorf("version %d was deleted as %d", version, e.Version)
		}
		wantChange(t, next, client.CacheSet, "short")
		wantChange(t, next, client.CacheExpired, "short")
	}
	for _, key := range []string{"large", "larger"} { // one of them fits
		must(t, cache.Put(ctx, key, make([]byte, 512<<10), client.NoExpiry))
	}
	wantChange(t, first, client.CacheSet, "large")
	wantChange(t, first, client.CacheEvicted, "before")
	wantChange(t, first, client.CacheEvicted, "large")
	wantChange(t, first, client.CacheSet, "larger")
	must(t, cache.Put(ctx, strings.Repeat("k", 60_000), nil, client.NoExpiry)) // more than a queue begins with
	wantChange(t, first, client.CacheSet, strings.Repeat("k", 60_000))
	if n := metric(t, d, "felix_cache_watch_lost_events_total"); n != 0 {
		t.Errorf("%v changes lost", n)
	}
}

// A watch that is left gives its place back, on both sides.
func TestCacheWatchLeft(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.MaxSubscriptionsPerConn = 1 })
	c := connect(t, d, client.WithTransport(client.Transport{EventConns: 1}))
	for range 3 {
		for e, err := range c.Cache("default", "primary").Watch(testContext(t)) {
			if err != nil || e.Kind != client.CacheReset {
				t.Fatal(e.Kind, err)
			}
			awaitMetric(t, d, "felix_cache_watches", 1)
			if _, err := c.Subscribe(testContext(t), "default", "demo"); err == nil {
				t.Error("a subscription next to a watch, where only one fits")
			}
			break
		}
		awaitMetric(t, d, "felix_cache_watches", 0)
	}
}

// A watcher that does not read is notified that it missed something, costs a bounded queue, and holds nobody up.
func TestCacheWatchSlow(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.CacheWatchBytes = 8 << 10 })
	writer, reader := connect(t, d), connect(t, d, client.WithTransport(client.Transport{EventWindows: client.Windows{Stream: 16 << 10}}))
	ctx, cache := testContext(t), writer.Cache("default", "primary")
	next := watch(t, reader)
	sets := 0
	for set := func() { must(t, cache.Put(ctx, fmt.Sprint("key-", sets%100), nil, client.NoExpiry)); sets++ }; metric(t, d, "felix_cache_watch_lost_events_total") < 2000; {
		for range 100 {
			set()
		}
	}
	if held := metric(t, d, "felix_read_bytes"); held > 3*8<<10 {
		t.Errorf("%v bytes held for a watcher that does not read", held)
	}
	must(t, cache.Put(ctx, "last", nil, client.NoExpiry))
	got, resets, version := 0, 0, uint64(0)
	for {
		e, err := next()
		must(t, err)
		if e.Kind == client.CacheReset {
			resets++
			continue
		}
		if e.Version <= version {
			t.Fatalf("version %d after %d", e.Version, version)
		}
		version = e.Version
		got++
		if string(e.Key) == "last" {
			break
		}
	}
	if resets == 0 {
		t.Error("the watcher is not notified of any loss")
	}
	if lost := int(metric(t, d, "felix_cache_watch_lost_events_total")); got+lost != sets+1 {
		t.Errorf("%d changes came and %d were lost of %d", got, lost, sets+1)
	}
	must(t, cache.Put(ctx, "behind", nil, client.NoExpiry))
	wantChange(t, next, client.CacheSet, "behind")
	awaitMetric(t, d, "felix_read_bytes", 0)
}

// rawWatch watches by hand, and reads the event stream.
func rawWatch(t *testing.T, p *peer) *quicx.FrameReader {
	t.Helper()
	return rawWatchOf(t, p, "primary")
}

// rawWatchOf does so with a cache of another name.
func rawWatchOf(t *testing.T, p *peer, cache string) *quicx.FrameReader {
	t.Helper()
	c := p.open(p.auth(), codec.AppendCacheRequest(nil, &codec.CacheRequest{RequestID: 7, Op: codec.CacheWatch}, "default", cache))
	c.wantMessage(codec.MsgAuthOK, "")
	r, err := p.c.AcceptUniStream(testContext(t))
	must(t, err)
	fr := quicx.NewFrameReader(r, 0)
	t.Cleanup(fr.Close)
	f, err := fr.Next()
	must(t, err)
	var hello codec.Message
	must(t, codec.ParseMessage(f.Payload(), &hello))
	f, err = c.fr.Next()
	must(t, err)
	_, body, err := codec.ParseExtension(f.Payload())
	must(t, err)
	reply, err := codec.ParseCacheReply(body)
	if err != nil || reply.RequestID != 7 || reply.Status != codec.CacheDone || reply.Version != hello.SubscriptionID {
		t.Fatalf("reply %+v, %v to a watch with stream %d", reply, err, hello.SubscriptionID)
	}
	must(t, c.s.Send().Close()) // the watch outlives its control stream
	c.wantEnd()
	return fr
}

// readWatch reads a watch up to the change of a key, and returns how many changes came. Those of a key come in the
// order of their versions.
func readWatch(fr *quicx.FrameReader, last string) (changes, gaps int, err error) {
	versions := make(map[string]uint64)
	for {
		f, err := fr.Next()
		if err != nil {
			return changes, gaps, err
		}
		_, rest, err := codec.ParseExtension(f.Payload())
		for err == nil && len(rest) > 0 {
			var e codec.CacheEvent
			if e, rest, err = codec.ParseCacheEvent(rest); err != nil {
				break
			}
			switch key := string(e.Key); {
			case e.Kind == codec.CacheLost:
				gaps++
			case e.Version <= versions[key]:
				return changes, gaps, fmt.Errorf("version %d of %q after %d", e.Version, key, versions[key])
			default:
				versions[key] = e.Version
				changes++
				if key == last {
					return changes, gaps, nil
				}
			}
		}
		if err != nil {
			return changes, gaps, err
		}
	}
}

// Watches that nobody reads take what they may have of their connection and of the log, and no other watch waits for
// them, not even one of the same connection.
func TestCacheWatchesNotRead(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.CacheWatchBytes = 16 << 10 })
	c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 2048, ConnWindow: 16 << 20, StreamsHint: 128, MaxStreams: 128})
	must(t, err)
	t.Cleanup(func() { c.Close(0, "") })
	p := &peer{t, c, d}
	for range 100 { // more than may be in a write that blocks
		rawWatch(t, p)
	}
	fr := rawWatch(t, p)
	type read struct {
		changes, gaps int
		err           error
	}
	done := make(chan read, 1)
	go func() {
		changes, gaps, err := readWatch(fr, "last")
		done <- read{changes, gaps, err}
	}()
	cache := connect(t, d).Cache("default", "primary")
	ctx := testContext(t)
	sets := 0
	for metric(t, d, "felix_cache_watch_lost_events_total") < 5000 {
		for range 50 {
			must(t, cache.Put(ctx, fmt.Sprint(strings.Repeat("k", 1+sets%5*500), sets%100), nil, client.NoExpiry))
			sets++
		}
	}
	if held := metric(t, d, "felix_cache_watch_bytes"); held > 16<<10 {
		t.Errorf("%v bytes held for watchers that do not read", held)
	}
	if held := metric(t, d, "felix_read_bytes"); held > 65*32<<10 {
		t.Errorf("%v bytes being written to watchers that do not read", held)
	}
	must(t, cache.Put(ctx, "last", nil, client.NoExpiry))
	switch r := <-done; {
	case r.err != nil:
		t.Fatal(r.err)
	case r.gaps == 0 && r.changes != sets+1 || r.changes > sets+1:
		t.Errorf("%d changes came of %d, with %d gaps", r.changes, sets+1, r.gaps)
	}
	must(t, c.Close(0, ""))
	awaitMetric(t, d, "felix_cache_watches", 0)
	awaitMetric(t, d, "felix_cache_watch_bytes", 0)
	awaitMetric(t, d, "felix_read_bytes", 0)
}

// Many watchers see each change or miss it; together that is all changes.
func TestCacheWatchesTogether(t *testing.T) {
	const watchers, writers, each = 24, 4, 300
	d := start(t, func(cfg *broker.Config) { cfg.CacheWatchBytes = 4 << 10 })
	peers := []*peer{dialPeer(t, d), dialPeer(t, d), dialPeer(t, d)}
	got := make(chan int, watchers)
	for i := range watchers {
		fr := rawWatch(t, peers[i%len(peers)])
		go func() {
			changes, _, err := readWatch(fr, "last")
			if err != nil {
				t.Error(err)
			}
			got <- changes
		}()
	}
	ctx := testContext(t)
	cache := connect(t, d).Cache("default", "primary")
	var changes atomic.Int64
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				key := fmt.Sprint("key-", (i*n)%17)
				if n%3 == 2 {
					if found, err := cache.Delete(ctx, key); err != nil {
						t.Error(err)
					} else if found {
						changes.Add(1)
					}
					continue
				}
				if err := cache.Put(ctx, key, nil, client.NoExpiry); err != nil {
					t.Error(err)
				}
				changes.Add(1)
			}
		})
	}
	wg.Wait()
	must(t, cache.Put(ctx, "last", nil, client.NoExpiry))
	sum := 0
	for range watchers {
		sum += <-got
	}
	lost := int(metric(t, d, "felix_cache_watch_lost_events_total"))
	if want := watchers * int(changes.Load()+1); sum+lost != want {
		t.Errorf("%d changes came and %d were lost, want %d together", sum, lost, want)
	}
	awaitMetric(t, d, "felix_cache_watch_bytes", 0)
}

// wantWatchEnd reads up to the last event of a watch, which says why it ended.
func wantWatchEnd(t *testing.T, fr *quicx.FrameReader, want string) {
	t.Helper()
	var last codec.CacheEvent
	for {
		f, err := fr.Next()
		if err != nil {
			break // wrong ends show by what came before
		}
		_, rest, err := codec.ParseExtension(f.Payload())
		for ; err == nil && len(rest) > 0; last.Key = bytes.Clone(last.Key) {
			last, rest, err = codec.ParseCacheEvent(rest)
		}
		must(t, err)
	}
	if last.Kind != codec.CacheEnded || string(last.Key) != want {
		t.Errorf("the watch ended with kind %d of %q, want %q", last.Kind, last.Key, want)
	}
}

func TestCacheWatchEnds(t *testing.T) {
	t.Run("cache removed", func(t *testing.T) {
		d := start(t, nil)
		c, fr := connect(t, d), rawWatch(t, dialPeer(t, d))
		next := watch(t, c)
		must(t, c.Cache("default", "primary").Put(testContext(t), "k", nil, client.NoExpiry))
		if !d.RemoveCache(d.Tenant, "default", "primary") || d.RemoveCache(d.Tenant, "default", "primary") {
			t.Error("removing does not tell whether there was a cache")
		}
		wantWatchEnd(t, fr, "cache removed")
		wantChange(t, next, client.CacheSet, "k")
		wantChange(t, next, client.CacheDeleted, "k")
		must(t, d.AddCache(d.Tenant, "default", "primary"))
		if e, err := next(); err != nil || e.Kind != client.CacheReset {
			t.Errorf("watching a cache that was gone for a while: %v, %v", e.Kind, err)
		}
	})
	t.Run("token expired", func(t *testing.T) {
		clock := make(chan time.Time, 1)
		clock <- time.Now()
		d := start(t, func(cfg *broker.Config) {
			cfg.AuthTimeout = 8 * soon
			cfg.Now = func() time.Time { now := <-clock; clock <- now; return now }
		})
		fr := rawWatch(t, dialPeer(t, d))
		clock <- (<-clock).Add(24*time.Hour + 2*time.Minute)
		wantWatchEnd(t, fr, "auth failed")
		wantLimit(t, d, "token_expired", 1)
	})
	t.Run("shutdown", func(t *testing.T) {
		d := start(t, nil)
		p := dialPeer(t, d)
		rawWatch(t, p)
		must(t, d.Shutdown(testContext(t)))
		p.wantClosed("broker shutting down") // which may overtake the last event
	})
	t.Run("connection closed", func(t *testing.T) {
		d := start(t, nil)
		p := dialPeer(t, d)
		rawWatch(t, p)
		must(t, p.c.Close(0, ""))
		awaitMetric(t, d, "felix_cache_watches", 0)
	})
	t.Run("not read", func(t *testing.T) {
		d := start(t, func(cfg *broker.Config) { cfg.ShutdownDrain = 5 * time.Second })
		c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 2048, StreamsHint: 1})
		must(t, err)
		t.Cleanup(func() { c.Close(0, "") })
		rawWatch(t, &peer{t, c, d})
		cache := connect(t, d).Cache("default", "primary")
		for i := range 200 {
			must(t, cache.Put(testContext(t), fmt.Sprint(strings.Repeat("k", 100), i), nil, client.NoExpiry))
		}
		must(t, d.Shutdown(testContext(t)))
	})
}

// A watch needs the permission to read the cache, and the extension.
func TestCacheWatchRefused(t *testing.T) {
	d := start(t, nil)
	over := func(c *client.Client, cache string) error {
		for _, err := range c.Cache("default", cache).Watch(testContext(t)) {
			return err
		}
		return nil
	}
	c := connect(t, d, client.WithBackoff(time.Microsecond, time.Microsecond))
	if _, ok := errors.AsType[*client.BrokerError](over(c, "none")); !ok {
		t.Error("a cache that does not exist is watched")
	}
	if err := over(connect(t, d, client.WithoutExtensions()), "primary"); !errors.Is(err, client.ErrUnsupported) {
		t.Errorf("without the extension: %v", err)
	}
	ended, cancel := context.WithCancel(testContext(t))
	cancel()
	for _, err := range c.Cache("default", "primary").Watch(ended) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("in a context that has ended: %v", err)
		}
	}
}

// A stream does not go on with a cache that was removed, as its requests would be acknowledged and come to nothing.
func TestCacheRemovedUnderStream(t *testing.T) {
	d := start(t, nil)
	cache := connect(t, d, client.WithTransport(client.Transport{CacheStreams: 1})).Cache("default", "primary")
	ctx := testContext(t)
	must(t, cache.Put(ctx, "k", []byte("v"), client.NoExpiry))
	d.RemoveCache(d.Tenant, "default", "primary")
	err := cache.Put(ctx, "k", []byte("v"), client.NoExpiry)
	if refusal, ok := errors.AsType[*client.BrokerError](err); !ok || !strings.HasPrefix(refusal.Message, "cache scope not found") {
		t.Errorf("a put into a cache that was removed: %v", err)
	}
	must(t, d.AddCache(d.Tenant, "default", "primary"))
	if _, err := cache.Get(ctx, "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("a get from the cache that took its place: %v", err)
	}
}
