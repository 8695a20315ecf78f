package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// durable returns a change of configuration that keeps streams in a file system.
func durable(fs vfs.FS, dir string, more ...func(*broker.Config)) func(*broker.Config) {
	return func(c *broker.Config) {
		c.Storage.FS, c.Storage.Dir, c.Storage.Headroom = fs, dir, 0
		for _, f := range more {
			f(c)
		}
	}
}

// life is a broker that ends within a test.
type life struct {
	*broker.Dev
	served chan error
}

func begin(t *testing.T, change func(*broker.Config)) *life {
	t.Helper()
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	change(&cfg)
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: []string{"demo", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	l := &life{d, make(chan error, 1)}
	go func() { l.served <- d.Serve(context.Background()) }()
	return l
}

func (l *life) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := l.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-l.served; !errors.Is(err, broker.ErrShutdown) {
		t.Errorf("serve ended with %v", err)
	}
}

func checkBuffers(t *testing.T) {
	t.Helper()
	before := buf.Live()
	t.Cleanup(func() {
		if n := buf.Live() - before; n != 0 {
			t.Errorf("%d chunks not given back", n)
		}
	})
}

// wantOffsets reads events that have consecutive offsets from first on.
func wantOffsets(ctx context.Context, t *testing.T, s *client.Subscription, first uint64, payloads ...string) {
	t.Helper()
	for i, want := range payloads {
		ev, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if ev.IsGap() {
			t.Fatalf("event %d: a gap %+v", i, ev)
		}
		if string(ev.Payload) != want || ev.Offset != first+uint64(i) {
			t.Fatalf("event %d: got %q at %d, want %q at %d", i, ev.Payload, ev.Offset, want, first+uint64(i))
		}
	}
}

func numbered(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprintf("event %d", i))
	}
	return all
}

func publishAll(ctx context.Context, t *testing.T, c *client.Client, stream string, payloads []string) {
	t.Helper()
	p := c.Publisher("default", stream)
	for _, m := range payloads {
		if err := p.Publish(ctx, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDurableRestart publishes, restarts the broker and finds all events under their offsets, with and without
// extensions, live and replayed.
func TestDurableRestart(t *testing.T) {
	checkBuffers(t)
	dir := t.TempDir()
	ctx := testContext(t)
	d := begin(t, durable(nil, dir))
	c := connect(t, d.Dev)
	live := subscribe(t, c, "demo")
	plain := connect(t, d.Dev, client.WithoutExtensions())
	livePlain := subscribe(t, plain, "demo")
	publishAll(ctx, t, c, "demo", numbered(0, 10))
	wantOffsets(ctx, t, live, 0, numbered(0, 10)...)
	wantOffsets(ctx, t, livePlain, 0, numbered(0, 10)...)
	publishAll(ctx, t, c, "other", numbered(0, 3))
	at, _ := live.Position()
	c.Close()
	plain.Close()
	d.end(t)

	d = begin(t, durable(nil, dir))
	defer d.end(t)
	c = connect(t, d.Dev)
	resumed := subscribe(t, c, "demo", client.FromPosition(at))
	publishAll(ctx, t, c, "demo", numbered(10, 12))
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, 12)...)
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromOffset(7)), 7, numbered(7, 12)...)
	wantOffsets(ctx, t, subscribe(t, c, "other", client.FromEarliest()), 0, numbered(0, 3)...)
	wantOffsets(ctx, t, resumed, 10, numbered(10, 12)...)
	if p, _ := resumed.Position(); p.Epoch != at.Epoch || p.Offset != 12 {
		t.Errorf("position %+v after the restart, want epoch %d and offset 12", p, at.Epoch)
	}
	_, err := c.Subscribe(ctx, "default", "demo", client.FromOffset(13), client.WithoutResume())
	var cursor *client.CursorError
	if !errors.As(err, &cursor) || cursor.TooOld || cursor.Available != 12 {
		t.Errorf("a start in the future: %v", err)
	}
	c.Close()
}

// TestDurableReplies pipelines publishes of all forms to streams of all kinds, and other requests, on one control
// stream, and gets one answer for each, in the order of requests. All events are there in that order.
func TestDurableReplies(t *testing.T) {
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data"))
	defer d.end(t)
	early := catalog.AckMemory
	for name, s := range map[string]catalog.Stream{"memory": {}, "early": {Durable: true, Ack: &early}} {
		if err := d.PutStream(d.Tenant, "default", name, s); err != nil {
			t.Fatal(err)
		}
	}
	p := dialPeer(t, d.Dev)
	ctl := p.open(p.auth())
	ctl.next()
	const rounds = 400
	streams := []string{"demo", "memory", "early", "other", "nowhere"}
	go func() {
		var out []byte
		for i := range rounds {
			for k, stream := range streams {
				id := uint64(i*(len(streams)+1) + k)
				payload := fmt.Appendf(nil, "%d", i)
				if i%2 == 0 {
					out = codec.AppendPublishBatchAcked(out, id, codec.AckPerBatch, d.Tenant, "default", stream, [][]byte{payload})
				} else {
					out = codec.AppendPublish(out, d.Tenant, "default", stream, payload, codec.AckPerMessage, id, true)
				}
			}
			out = codec.AppendCachePut(out, d.Tenant, "default", "primary", "key", make([]byte, 100), uint64(i*(len(streams)+1)+len(streams)), true, 0, false)
		}
		ctl.send(out)
	}()
	for want := range uint64(rounds * (len(streams) + 1)) {
		id, text := ctl.next()
		known := int(want)%(len(streams)+1) != 4
		if id != want || known != (text == "") {
			t.Fatalf("reply %d is for request %d: %q", want, id, text)
		}
	}
	ctx := testContext(t)
	c := connect(t, d.Dev)
	var want []string
	for i := range rounds {
		want = append(want, fmt.Sprint(i))
	}
	for _, stream := range []string{"demo", "early", "other"} {
		wantOffsets(ctx, t, subscribe(t, c, stream, client.FromEarliest()), 0, want...)
	}
	c.Close()
}

// next reads a reply and returns the request that it answers, and its text.
func (c *control) next() (id uint64, text string) {
	c.t.Helper()
	_ = c.s.Recv().SetReadDeadline(time.Now().Add(within))
	f, err := c.fr.Next()
	if err != nil {
		c.t.Fatal(err)
	}
	if f.Header.Flags == codec.LayoutPublishAck {
		a, err := codec.ParsePublishAck(f.Payload())
		if err != nil {
			c.t.Fatal(err)
		}
		return a.RequestID, string(a.Message)
	}
	var m codec.Message
	if err := codec.ParseMessage(f.Payload(), &m); err != nil {
		c.t.Fatal(err)
	}
	return m.RequestID, string(m.Text)
}

// TestDurableAwaitsSync holds the disk's syncs up: nothing is acknowledged or delivered of a stream of class device
// meanwhile, while streams in memory go on.
func TestDurableAwaitsSync(t *testing.T) {
	checkBuffers(t)
	gate := make(chan struct{})
	var held atomic.Bool
	fs := vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, _ string) error {
		if op == vfs.OpSync && held.Load() {
			<-gate
		}
		return nil
	}}
	d := begin(t, durable(fs, "data"))
	defer d.end(t)
	if err := d.PutStream(d.Tenant, "default", "memory", catalog.Stream{}); err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() {
		held.Store(false)
		close(gate)
	})
	defer release()
	ctx := testContext(t)
	c, other := connect(t, d.Dev), connect(t, d.Dev)
	s, m := subscribe(t, c, "demo"), subscribe(t, c, "memory")
	held.Store(true)
	result := make(chan error, 1)
	var acked atomic.Bool
	go func() {
		err := c.Publisher("default", "demo").Publish(ctx, []byte("durable"))
		acked.Store(true)
		result <- err
	}()
	for range 20 {
		if err := other.Publisher("default", "memory").Publish(ctx, []byte("memory")); err != nil {
			t.Fatal(err)
		}
		wantEvents(ctx, t, m, "memory")
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if ev, err := s.Next(short); err == nil {
		t.Errorf("%q was delivered before its sync", ev.Payload)
	}
	if acked.Load() {
		t.Error("acknowledged before its sync")
	}
	release()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	wantOffsets(ctx, t, s, 0, "durable")
	c.Close()
}

// TestDurableFailingDisk makes a sync fail: the publish is in doubt, nothing more is accepted, readiness says so, and
// what was acknowledged can still be read, now and after a restart.
func TestDurableFailingDisk(t *testing.T) {
	checkBuffers(t)
	var broken atomic.Bool
	disk := &vfs.Mem{}
	fs := vfs.Faulty{FS: disk, Before: func(op vfs.Op, _ string) error {
		if op == vfs.OpSync && broken.Load() {
			return syscall.EIO
		}
		return nil
	}}
	d := begin(t, durable(fs, "data"))
	ctx := testContext(t)
	c := connect(t, d.Dev)
	publishAll(ctx, t, c, "demo", numbered(0, 5))
	if err := d.StorageError(); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	p := c.Publisher("default", "demo")
	for range 3 {
		err := p.Publish(ctx, []byte("doubtful"))
		if !errors.Is(err, client.ErrStorage) || !errors.Is(err, client.ErrInDoubt) || client.Retryable(err) {
			t.Fatalf("a publish with a broken disk: %v", err)
		}
	}
	broken.Store(false)
	if err := p.Publish(ctx, []byte("late")); !errors.Is(err, client.ErrStorage) {
		t.Fatalf("a publish after the disk was broken: %v", err)
	}
	if d.StorageError() == nil {
		t.Error("ready with a broken disk")
	}
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, 5)...)
	c.Close()
	d.end(t)

	d = begin(t, durable(disk.Restart(), "data"))
	defer d.end(t)
	c = connect(t, d.Dev)
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, 5)...)
	c.Close()
}

// TestDurableFullDisk has no space left: publishes are refused and can be made again, reads go on, and so do publishes
// when there is space.
func TestDurableFullDisk(t *testing.T) {
	checkBuffers(t)
	fs := &vfs.Mem{}
	fs.SetFree(1 << 30)
	d := begin(t, durable(fs, "data", func(c *broker.Config) { c.Storage.Headroom = 1 << 20 }))
	defer d.end(t)
	ctx := testContext(t)
	c := connect(t, d.Dev)
	publishAll(ctx, t, c, "demo", numbered(0, 2))
	fs.SetFree(1<<20 - 1)
	p := c.Publisher("default", "demo")
	n := 2
	err := p.Publish(ctx, []byte("event 2"))
	for ; err == nil; err = p.Publish(ctx, fmt.Appendf(nil, "event %d", n)) {
		n++
	}
	if !errors.Is(err, client.ErrOverloaded) || !client.Retryable(err) || errors.Is(err, client.ErrInDoubt) {
		t.Fatalf("a publish to a full disk: %v", err)
	}
	if err := d.StorageError(); err != nil {
		t.Errorf("not ready with a full disk: %v", err)
	}
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, n)...)
	fs.SetFree(1 << 30)
	for ; err != nil; err = p.Publish(ctx, fmt.Appendf(nil, "event %d", n)) {
		if !client.Retryable(err) {
			t.Fatal(err)
		}
	}
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromOffset(uint64(n))), uint64(n), fmt.Sprintf("event %d", n))
	c.Close()
}

// TestDurableSlowSubscriber publishes far more than a queue and replay hold to subscribers that do not read: none loses
// anything, and the publisher does not wait for them.
func TestDurableSlowSubscriber(t *testing.T) {
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data", func(c *broker.Config) {
		c.QueueCapacity, c.ReplayBytes, c.Storage.SegmentBytes = 4, 8<<10, 64<<10
	}))
	defer d.end(t)
	ctx := testContext(t)
	c, slow := connect(t, d.Dev), connect(t, d.Dev, client.WithTransport(client.Transport{StreamWindow: 16 << 10}))
	var subs []*client.Subscription
	for range 4 {
		subs = append(subs, subscribe(t, slow, "demo"))
	}
	const n = 3000
	payload := bytes.Repeat([]byte("x"), 1000)
	p := c.Publisher("default", "demo")
	var publishing sync.WaitGroup
	publishMany(ctx, t, p, payload, n)
	var reading sync.WaitGroup
	for _, s := range subs {
		reading.Go(func() {
			for want := range uint64(n + 100) {
				ev, err := s.Next(ctx)
				if err != nil || ev.IsGap() || ev.Offset != want {
					t.Errorf("got %+v, %v, want offset %d", ev.Gap, err, want)
					return
				}
			}
		})
	}
	publishing.Go(func() {
		for range 100 {
			if err := p.Publish(ctx, payload); err != nil {
				t.Error(err)
			}
		}
	})
	publishing.Wait()
	reading.Wait()
	if n := metric(t, d.Dev, "felix_log_fallbacks_total"); n == 0 {
		t.Error("no subscription has read on from the log")
	}
	c.Close()
	slow.Close()
}

// TestDurableRetentionGap lets retention remove what a subscriber is about to read: it hears exactly how many events
// it has lost, and gets all others. A start below what is kept is refused.
func TestDurableRetentionGap(t *testing.T) {
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data", func(c *broker.Config) {
		c.QueueCapacity, c.ReplayBytes, c.Storage.SegmentBytes, c.Storage.RetainEvery = 4, 8<<10, 32<<10, 1
	}))
	defer d.end(t)
	ctx := testContext(t)
	c, slow := connect(t, d.Dev), connect(t, d.Dev, client.WithTransport(client.Transport{StreamWindow: 16 << 10}))
	s := subscribe(t, slow, "demo")
	plain := subscribe(t, connect(t, d.Dev, client.WithoutExtensions(), client.WithTransport(client.Transport{StreamWindow: 16 << 10})), "demo")
	payload := bytes.Repeat([]byte("x"), 1000)
	p := c.Publisher("default", "demo")
	const n = 3000
	publishMany(ctx, t, p, payload, n)
	if err := d.PutStream(d.Tenant, "default", "demo", catalog.Stream{Durable: true, RetentionEvents: 100}); err != nil {
		t.Fatal(err)
	}
	base := uint64(0)
	for base < n-200 { // files go one by one
		if err := ctx.Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		for _, st := range d.StreamStats() {
			if st.Stream == "demo" {
				base = st.Log.Base
			}
		}
	}
	if base > n-100 {
		t.Fatalf("base %d of %d events, want 100 of them and less than a file more", base, n)
	}
	_, err := c.Subscribe(ctx, "default", "demo", client.FromOffset(base-1), client.WithoutResume())
	var cursor *client.CursorError
	if !errors.As(err, &cursor) || !cursor.TooOld || cursor.Available != base {
		t.Errorf("a start below the base: %v", err)
	}
	next, lost := uint64(0), uint64(0)
	for next < n {
		ev, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Gap != nil {
			if ev.Gap.Reason != client.GapExpired || lost > 0 {
				t.Fatalf("a gap %+v after one of %d", ev.Gap, lost)
			}
			lost = ev.Gap.Lost
			if next+lost != base {
				t.Errorf("a gap of %d events at %d, and the log begins at %d", lost, next, base)
			}
			next += lost
		}
		if ev.Payload != nil {
			if ev.Offset != next {
				t.Fatalf("offset %d, want %d", ev.Offset, next)
			}
			next++
		}
	}
	if lost == 0 {
		t.Error("nothing was lost")
	}
	jumps := 0
	for next = 0; next < n; next++ {
		ev, err := plain.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Offset != next {
			jumps++
			next = ev.Offset
		}
	}
	if jumps != 1 || next != n {
		t.Errorf("%d jumps of offsets without extensions", jumps)
	}
	if got := metric(t, d.Dev, "felix_log_expired_events_total"); got < float64(lost) {
		t.Errorf("%v events expired, want at least %d", got, lost)
	}
	c.Close()
	slow.Close()
}

// TestDurableCatalog changes streams between durable and not, and reads what is said of them in a catalog.
func TestDurableCatalog(t *testing.T) {
	quorum := catalog.AckQuorum
	cfg := broker.DefaultConfig()
	from := &catalog.Catalog{Tenants: map[string]catalog.Tenant{"t": {Namespaces: map[string]catalog.Namespace{"n": {Streams: map[string]catalog.Stream{
		"b": {Durable: true}, "a": {Durable: true}, "c": {},
	}}}}}}
	if err := cfg.CheckCatalog(from); err == nil || !strings.Contains(err.Error(), "t/n/a, t/n/b") {
		t.Errorf("durable streams without a data directory: %v", err)
	}
	cfg.Storage.Dir = "data"
	if err := cfg.CheckCatalog(from); err != nil {
		t.Error(err)
	}
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data"))
	defer d.end(t)
	if err := d.PutStream(d.Tenant, "default", "demo", catalog.Stream{Durable: true, Ack: &quorum}); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("class quorum: %v", err)
	}
	ctx := testContext(t)
	c := connect(t, d.Dev)
	publishAll(ctx, t, c, "demo", numbered(0, 3))
	s := subscribe(t, c, "demo")
	if err := d.PutStream(d.Tenant, "default", "demo", catalog.Stream{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(ctx); !errors.Is(err, client.ErrEnded) {
		t.Errorf("a subscription of a stream that is not durable any more: %v", err)
	}
	publishAll(ctx, t, c, "demo", []string{"in memory"})
	if err := d.PutStream(d.Tenant, "default", "demo", catalog.Stream{Durable: true}); err != nil {
		t.Fatal(err)
	}
	publishAll(ctx, t, c, "demo", numbered(3, 4))
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, 4)...)
	d.RemoveStream(d.Tenant, "default", "demo")
	if err := d.AddDurableStream(d.Tenant, "default", "demo"); err != nil {
		t.Fatal(err)
	}
	publishAll(ctx, t, c, "demo", numbered(4, 5))
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, numbered(0, 5)...)
	c.Close()
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestStreamStaysWithoutStorage wants a stream to become durable that cannot: it stays as it was.
func TestStreamStaysWithoutStorage(t *testing.T) {
	d := begin(t, func(*broker.Config) {})
	defer d.end(t)
	ctx := testContext(t)
	c := connect(t, d.Dev)
	s := subscribe(t, c, "demo")
	err := d.PutStream(d.Tenant, "default", "demo", catalog.Stream{Durable: true})
	if err == nil || !strings.Contains(err.Error(), "default/demo stays as it was: there is no data directory") {
		t.Errorf("a durable stream without a data directory: %v", err)
	}
	publishAll(ctx, t, c, "demo", []string{"still here"})
	wantEvents(ctx, t, s, "still here")
	c.Close()
}

// TestShutdownWithHangingDisk shuts a broker down whose disk does not answer: that ends, and says what is left. When
// the disk answers again the data directory is closed in order.
func TestShutdownWithHangingDisk(t *testing.T) {
	broker.SetDiskGrace(t, time.Millisecond)
	gate := make(chan struct{})
	var held atomic.Bool
	mem := &vfs.Mem{}
	fs := vfs.Faulty{FS: mem, Before: func(op vfs.Op, _ string) error {
		if held.Load() && (op == vfs.OpSync || op == vfs.OpRead) {
			<-gate
		}
		return nil
	}}
	release := sync.OnceFunc(func() { close(gate) })
	defer release()
	logs := &logBuffer{}
	d := begin(t, durable(fs, "data", func(c *broker.Config) {
		c.ReplayBytes, c.Logger = 4<<10, slog.New(slog.NewTextHandler(logs, nil))
	}))
	ctx := testContext(t)
	c := connect(t, d.Dev, client.WithWhileDown(client.WhileDownFail)) // or the publish would wait for another broker
	publishAll(ctx, t, c, "demo", []string{strings.Repeat("a", 10<<10), strings.Repeat("b", 10<<10)})
	held.Store(true)
	subscribe(t, c, "demo", client.FromEarliest()) // which reads the log
	waiting := make(chan error, 1)
	go func() { waiting <- c.Publisher("default", "demo").Publish(ctx, []byte("never")) }()
	over, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := d.Shutdown(over); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-d.served; !errors.Is(err, broker.ErrShutdown) {
		t.Errorf("serve ended with %v", err)
	}
	if err := <-waiting; err == nil {
		t.Error("acknowledged, and never synced")
	}
	if text := logs.String(); !strings.Contains(text, "storage not closed") {
		t.Errorf("the log does not say what is left:\n%s", text)
	}
	c.Close()
	release()
	for {
		s, err := storage.Open("data", storage.Options{FS: mem})
		if errors.Is(err, storage.ErrInUse) && ctx.Err() == nil {
			runtime.Gosched()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		break
	}
}

// TestDurableCompressed publishes compressed batches, whose events are stored one by one, and one that is corrupt.
func TestDurableCompressed(t *testing.T) {
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data"))
	defer d.end(t)
	ctx := testContext(t)
	c := connect(t, d.Dev, client.WithCompression())
	var batch [][]byte
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprintf("%0200d", i))
		batch = append(batch, []byte(want[i]))
	}
	if err := c.Publisher("default", "demo").Publish(ctx, batch...); err != nil {
		t.Fatal(err)
	}
	if n := metric(t, d.Dev, "felix_decompressed_batches_total"); n != 1 {
		t.Fatalf("%v batches decompressed", n)
	}
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromOffset(50)), 50, want[50:]...)
	c.Close()
}

// TestDurableWhileItIsUsed makes streams durable that publishers have already used: the first publish afterwards is
// answered when it is on the device, and a compressed one is kept as single events.
func TestDurableWhileItIsUsed(t *testing.T) {
	checkBuffers(t)
	var broken atomic.Bool
	fs := vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, _ string) error {
		if op == vfs.OpSync && broken.Load() {
			return syscall.EIO
		}
		return nil
	}}
	d := begin(t, durable(fs, "data"))
	defer d.end(t)
	ctx := testContext(t)
	c := connect(t, d.Dev, client.WithCompression())
	var batch [][]byte
	want := numbered(0, 600)
	for _, text := range want {
		batch = append(batch, []byte(text))
	}
	put := func(durable bool) {
		t.Helper()
		for _, name := range []string{"packed", "plain"} {
			if err := d.PutStream(d.Tenant, "default", name, catalog.Stream{Durable: durable}); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(false)
	packed, plain := c.Publisher("default", "packed"), c.Publisher("default", "plain")
	publish := func(p *client.Publisher, batch ...[]byte) {
		t.Helper()
		if err := p.Publish(ctx, batch...); err != nil {
			t.Fatal(err)
		}
	}
	publish(packed, batch...)
	put(true)
	publish(packed, batch...)
	wantOffsets(ctx, t, subscribe(t, c, "packed", client.FromEarliest()), 0, want...)
	put(false)
	publish(plain, []byte("x"))
	put(true)
	broken.Store(true)
	if err := plain.Publish(ctx, []byte("y")); !errors.Is(err, client.ErrStorage) {
		t.Errorf("a publish with a broken disk: %v", err)
	}
	c.Close()
}

// TestDurableSince begins subscriptions with the first event since a time.
func TestDurableSince(t *testing.T) {
	checkBuffers(t)
	d := begin(t, durable(&vfs.Mem{}, "data", func(c *broker.Config) { c.Storage.SegmentBytes = 200 }))
	defer d.end(t)
	if err := d.AddStream(d.Tenant, "default", "memory"); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	c := connect(t, d.Dev)
	var times []time.Time // before each event
	all := numbered(0, 8)
	for i := range all {
		times = append(times, time.Now())
		publishAll(ctx, t, c, "demo", all[i:i+1])
		publishAll(ctx, t, c, "memory", all[i:i+1])
		time.Sleep(2 * time.Millisecond) // the time has milliseconds
	}
	for i, at := range times {
		wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromTime(at)), uint64(i), all[i:]...)
	}
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromTime(time.Unix(0, 0))), 0, all...)
	wantOffsets(ctx, t, subscribe(t, c, "memory", client.FromTime(time.Now())), 0, all...)
	late := subscribe(t, c, "demo", client.FromTime(time.Now().Add(time.Hour)))
	publishAll(ctx, t, c, "demo", []string{"late"})
	wantOffsets(ctx, t, late, 8, "late")
	plain := connect(t, d.Dev, client.WithoutExtensions())
	if _, err := plain.Subscribe(ctx, "default", "demo", client.FromTime(times[0])); !errors.Is(err, client.ErrUnsupported) {
		t.Errorf("a time without the extension: %v", err)
	}
	c.Close()
}

// publishMany publishes the payload n times, and returns when all are acknowledged.
func publishMany(ctx context.Context, t *testing.T, p *client.Publisher, payload []byte, n int) {
	t.Helper()
	for range n {
		p.PublishAsync(ctx, payload, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}
