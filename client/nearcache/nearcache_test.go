package nearcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/client/nearcache"
	"github.com/felix-mq/felix/internal/race"
)

// near starts a broker with a near-cache whose watch is up, and a handle of somebody else for the same cache.
func near(tb testing.TB, o nearcache.Options, opts ...client.Option) (*felixtest.Broker, *nearcache.Cache, *client.Cache) {
	tb.Helper()
	b := felixtest.Start(tb)
	ours := b.Connect(tb, append(opts, client.WithBackoff(time.Millisecond, 20*time.Millisecond))...)
	n, err := nearcache.New(ours.Cache(felixtest.Namespace, felixtest.Cache), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = n.Close() })
	until(tb, func() bool { return n.Stats().Up })
	return b, n, b.Connect(tb).Cache(felixtest.Namespace, felixtest.Cache)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guard bounds a test that hangs. Nothing is measured by it.
const guard = time.Minute

// until waits for something that has to happen.
func until(tb testing.TB, happened func() bool) {
	tb.Helper()
	for end := time.Now().Add(guard); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("did not happen")
		}
	}
}

type putter interface {
	Put(ctx context.Context, key string, value []byte, ttl time.Duration) error
}

func put(tb testing.TB, c putter, key, value string, ttl time.Duration) {
	tb.Helper()
	if err := c.Put(tb.Context(), key, []byte(value), ttl); err != nil {
		tb.Fatal(err)
	}
}

func wantNear(tb testing.TB, n *nearcache.Cache, key, want string) {
	tb.Helper()
	if got, err := n.Get(tb.Context(), key); err != nil || string(got) != want || got == nil {
		tb.Fatalf("%s is %q, %v, want %q", key, got, err, want)
	}
}

func TestNearCache(t *testing.T) {
	_, n, other := near(t, nearcache.Options{})
	if _, err := n.Get(t.Context(), "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("get of nothing: %v", err)
	}
	put(t, other, "k", "one", client.NoExpiry)
	put(t, other, "empty", "", client.NoExpiry)
	for _, key := range []string{"k", "empty"} {
		until(t, func() bool { // until the word of the put has come, nothing may be kept
			_, err := n.Get(t.Context(), key)
			return err == nil && n.Stats().Hits > 0
		})
	}
	wantNear(t, n, "k", "one")
	wantNear(t, n, "empty", "")
	if dst, err := n.AppendGet(t.Context(), []byte("> "), "k"); err != nil || string(dst) != "> one" {
		t.Errorf("appended: %q, %v", dst, err)
	}
	if dst, err := n.AppendGet(t.Context(), []byte("> "), "none"); !errors.Is(err, client.ErrMiss) || string(dst) != "> " {
		t.Errorf("appended: %q, %v", dst, err)
	}
	// A value that is given away is the caller's.
	v, err := n.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	clear(v)
	wantNear(t, n, "k", "one")

	for i := range 20 { // seen at once
		value := fmt.Sprint(i)
		put(t, n, "k", value, client.NoExpiry)
		wantNear(t, n, "k", value)
	}
	for i := range 20 { // seen when the broker has told of it
		value := fmt.Sprint("theirs ", i)
		put(t, other, "k", value, client.NoExpiry)
		until(t, func() bool { v, err := n.Get(t.Context(), "k"); return err == nil && string(v) == value })
	}
	if _, err := other.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { _, err := n.Get(t.Context(), "k"); return errors.Is(err, client.ErrMiss) })
	if version, err := n.PutIf(t.Context(), "k", []byte("if"), client.NoExpiry, 0); err != nil || version == 0 {
		t.Errorf("version %d, %v", version, err)
	}
	wantNear(t, n, "k", "if")
	if found, err := n.Delete(t.Context(), "k"); err != nil || !found {
		t.Errorf("delete: %v, %v", found, err)
	}
	if _, err := n.Get(t.Context(), "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("get after delete: %v", err)
	}
	put(t, n, "short", "v", 30*time.Millisecond)
	until(t, func() bool { _, err := n.Get(t.Context(), "short"); return errors.Is(err, client.ErrMiss) })
}

func TestBounds(t *testing.T) {
	_, n, other := near(t, nearcache.Options{MaxEntries: 10, MaxBytes: 20 << 10, MaxAge: time.Hour})
	for i := range 30 {
		put(t, other, fmt.Sprint(i), "v", client.NoExpiry)
		if _, err := n.Get(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	get := func(key string) func() bool {
		return func() bool {
			hits := n.Stats().Hits
			_, err := n.Get(t.Context(), key)
			return err == nil && n.Stats().Hits > hits
		}
	}
	for i := range 20 {
		until(t, get(fmt.Sprint(i)))
	}
	if s := n.Stats(); s.Entries != 10 || s.Evictions == 0 {
		t.Errorf("more or less than 10 entries: %+v", s)
	}
	for i := range 5 {
		put(t, other, fmt.Sprint("large", i), string(make([]byte, 8<<10)), client.NoExpiry)
		until(t, get(fmt.Sprint("large", i)))
		if s := n.Stats(); s.Bytes > 20<<10 {
			t.Errorf("more than 20 KiB: %+v", s)
		}
	}
	put(t, other, "huge", string(make([]byte, 20<<10)), client.NoExpiry)
	for range 5 {
		if get("huge")() {
			t.Error("a value that does not fit is kept")
		}
	}
}

func TestMaxAge(t *testing.T) {
	_, n, other := near(t, nearcache.Options{MaxAge: time.Nanosecond})
	put(t, other, "k", "v", client.NoExpiry)
	for range 20 {
		wantNear(t, n, "k", "v")
	}
	if s := n.Stats(); s.Hits > 0 {
		t.Errorf("%d values were served that were too old", s.Hits)
	}
}

// While the watch is lost nothing is served from memory, and what was kept before is not served afterwards.
func TestLost(t *testing.T) {
	soon := client.Transport{IdleTimeout: 400 * time.Millisecond, KeepAlive: 100 * time.Millisecond}
	b, n, other := near(t, nearcache.Options{MaxAge: time.Hour}, client.WithTransport(soon))
	kept := func() bool {
		hits := n.Stats().Hits
		_, err := n.Get(t.Context(), "k")
		return err == nil && n.Stats().Hits > hits
	}
	put(t, other, "k", "before", client.NoExpiry)
	until(t, kept)
	b.Kick()
	until(t, func() bool { return !n.Stats().Up || n.Stats().Resets > 1 })
	until(t, kept)
	b.Kill()
	until(t, func() bool { return !n.Stats().Up })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if v, err := n.Get(ctx, "k"); err == nil {
		t.Errorf("%q is served while the broker is gone", v)
	}
	b.Revive(t)
	until(t, func() bool { return n.Stats().Up })
	if v, err := n.Get(t.Context(), "k"); err == nil {
		t.Errorf("%q is served, of another life of the broker", v)
	}
	if err := n.Close(); err != nil || n.Stats().Up || n.Stats().Entries > 0 {
		t.Errorf("closed: %v, %+v", err, n.Stats())
	}
	put(t, n, "k", "closed", client.NoExpiry)
	wantNear(t, n, "k", "closed")
}

// Readers and writers of several clients work on few keys over real connections: no reader goes back in time.
func TestConcurrently(t *testing.T) {
	_, n, other := near(t, nearcache.Options{MaxEntries: 3})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for g := range 3 {
		wg.Go(func() {
			seen := make(map[string]string)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprint("k", i%5)
				v, err := n.Get(t.Context(), key)
				if err == nil && string(v) < seen[key] {
					t.Errorf("reader %d: %s of %s after %s", g, v, key, seen[key])
				}
				if err == nil {
					seen[key] = string(v)
				}
			}
		})
	}
	for i := range 1000 {
		var c putter = other
		if i%4 == 0 {
			c = n
		}
		put(t, c, fmt.Sprint("k", i%5), fmt.Sprintf("%08d", i), client.NoExpiry)
		if i%4 == 0 {
			wantNear(t, n, fmt.Sprint("k", i%5), fmt.Sprintf("%08d", i))
		}
	}
	close(stop)
	wg.Wait()
	if s := n.Stats(); s.Hits == 0 || s.Invalidations == 0 {
		t.Errorf("nothing was tried: %+v", s)
	}
}

func TestRefused(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t, client.WithoutExtensions())
	cache := c.Cache(felixtest.Namespace, felixtest.Cache)
	if _, err := nearcache.New(cache, nearcache.Options{MaxAge: -1}); !errors.Is(err, client.ErrInvalidOption) {
		t.Errorf("a negative age: %v", err)
	}
	n, err := nearcache.New(cache, nearcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, n, "k", "v", client.NoExpiry)
	for range 3 {
		wantNear(t, n, "k", "v")
	}
	if s := n.Stats(); s.Up || s.Hits > 0 || s.Misses != 3 {
		t.Errorf("without the extension: %+v", s)
	}
	_ = c.Close()
	if _, err := n.Get(t.Context(), "k"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("of a client that is closed: %v", err)
	}
	_ = n.Close()
	n, err = nearcache.New(cache, nearcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Get(t.Context(), "k"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("made of a client that is closed: %v", err)
	}
	_ = n.Close()
}

// It ends with its client.
func TestEndsWithClient(t *testing.T) {
	before := goleak.IgnoreCurrent()
	b, err := felixtest.New()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(t.Context(), b.Addr(), b.Options()...)
	if err != nil {
		t.Fatal(err)
	}
	n, err := nearcache.New(c.Cache(felixtest.Namespace, felixtest.Cache), nearcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { return n.Stats().Up })
	_ = c.Close()
	b.Close()
	goleak.VerifyNone(t, before)
	if n.Stats().Up {
		t.Error("up without a client")
	}
}

func TestNotMade(t *testing.T) {
	if _, err := nearcache.New(nil, nearcache.Options{}); !errors.Is(err, client.ErrNotMade) {
		t.Errorf("of no cache: %v", err)
	}
	ofNothing, err := nearcache.New(new(client.Cache), nearcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]*nearcache.Cache{"nil": nil, "zero": {}, "of a zero cache": ofNothing} {
		t.Run(name, func(t *testing.T) {
			_, getErr := n.Get(t.Context(), "k")
			putErr := n.Put(t.Context(), "k", nil, client.NoExpiry)
			_, putIfErr := n.PutIf(t.Context(), "k", nil, client.NoExpiry, 0)
			_, deleteErr := n.Delete(t.Context(), "k")
			for i, err := range []error{getErr, putErr, putIfErr, deleteErr} {
				if !errors.Is(err, client.ErrNotMade) {
					t.Errorf("method %d: %v", i, err)
				}
			}
			if s := n.Stats(); s.Up || s.Entries > 0 {
				t.Errorf("%+v", s)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAlloc(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	_, n, other := near(t, nearcache.Options{MaxAge: time.Hour})
	put(t, other, "k", "value", client.NoExpiry)
	until(t, func() bool { wantNear(t, n, "k", "value"); return n.Stats().Hits > 0 })
	dst := make([]byte, 0, 16)
	if allocs := testing.AllocsPerRun(100, func() { dst, _ = n.AppendGet(t.Context(), dst[:0], "k") }); allocs != 0 {
		t.Errorf("%v allocations for a value that is kept", allocs)
	}
}

// BenchmarkNearCache compares a get of a value that is kept with one that goes to the broker, on loopback.
func BenchmarkNearCache(b *testing.B) {
	_, n, other := near(b, nearcache.Options{MaxAge: time.Hour})
	for _, size := range []int{256, 4096} {
		key := fmt.Sprint(size)
		put(b, other, key, string(bytes.Repeat([]byte("v"), size)), client.NoExpiry)
		until(b, func() bool {
			hits := n.Stats().Hits
			_, err := n.Get(b.Context(), key)
			return err == nil && n.Stats().Hits > hits
		})
		b.Run(fmt.Sprintf("near/size=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			var dst []byte
			for b.Loop() {
				dst, _ = n.AppendGet(b.Context(), dst[:0], key)
			}
		})
		b.Run(fmt.Sprintf("network/size=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := other.Get(b.Context(), key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
