package felixtest_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/client/internal/clienttest"
)

// guard bounds a test that hangs.
const guard = time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	t.Cleanup(cancel)
	return ctx
}

// impatient makes a client that notices a loss soon and tries again soon.
func impatient() []client.Option {
	return []client.Option{
		client.WithTransport(client.Transport{IdleTimeout: 400 * time.Millisecond, KeepAlive: 100 * time.Millisecond}),
		client.WithBackoff(time.Millisecond, 20*time.Millisecond),
	}
}

func subscribe(t *testing.T, c *client.Client, opts ...client.SubscribeOption) *client.Subscription {
	t.Helper()
	s, err := c.Subscribe(testContext(t), felixtest.Namespace, felixtest.Stream, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func want(t *testing.T, s *client.Subscription, payloads ...string) {
	t.Helper()
	for _, w := range payloads {
		ev, err := s.Next(testContext(t))
		if err != nil || string(ev.Payload) != w {
			t.Fatalf("got %q, %v, want %q", ev.Payload, err, w)
		}
	}
}

func TestStart(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	b.AddStream(t, "orders")
	b.AddCache(t, "sessions")
	ctx := testContext(t)
	s := subscribe(t, c)
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(ctx, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	want(t, s, "hello")
	if err := c.Publisher(felixtest.Namespace, "orders").Publish(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Cache(felixtest.Namespace, "sessions").Put(ctx, "k", nil, time.Minute); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkStart shows how soon a broker is up.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		broker, err := felixtest.New()
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		broker.Close()
		b.StartTimer()
	}
}

// TestKick resumes where it was.
func TestKick(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t, impatient()...)
	s := subscribe(t, c)
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	var all []string
	for i := range 30 {
		payload := fmt.Sprint(i)
		err := pub.Publish(testContext(t), []byte(payload))
		for client.Retryable(err) && !errors.Is(err, client.ErrInDoubt) {
			err = pub.Publish(testContext(t), []byte(payload))
		}
		switch {
		case err == nil:
			all = append(all, payload)
		case !errors.Is(err, client.ErrInDoubt):
			t.Fatal(err)
		}
		if i%10 == 5 {
			b.Kick()
		}
	}
	for next := uint64(0); len(all) > 0; next++ {
		ev, err := s.Next(testContext(t))
		if err != nil || ev.Gap != nil || ev.Offset != next {
			t.Fatalf("offset %d, want %d, gap %v, %v", ev.Offset, next, ev.Gap, err)
		}
		if string(ev.Payload) == all[0] { // others were in doubt
			all = all[1:]
		}
	}
}

// TestRestart loses what a broker had in memory, with notice.
func TestRestart(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t, impatient()...)
	s := subscribe(t, c)
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	if err := pub.Publish(testContext(t), []byte("before")); err != nil {
		t.Fatal(err)
	}
	want(t, s, "before")
	b.Restart(t)
	if err := pub.Publish(testContext(t), []byte("after")); err != nil && !errors.Is(err, client.ErrInDoubt) {
		t.Fatal(err)
	}
	if err := pub.Publish(testContext(t), []byte("last")); err != nil {
		t.Fatal(err)
	}
	ev, err := s.Next(testContext(t))
	if err != nil || ev.Gap == nil || ev.Gap.Reason != client.GapEpoch {
		t.Fatalf("got %q, gap %v, %v", ev.Payload, ev.Gap, err)
	}
	if string(ev.Payload) == "after" {
		want(t, s, "last")
	}
}

// TestRestartUnheard restarts the broker of a subscription that is as quiet as all connections but one, and whose
// connection is younger than the last reply on that one: it has to learn of the restart from a third connection, which
// is older than that reply and had one after the subscription was made.
func TestRestartUnheard(t *testing.T) {
	b := felixtest.Start(t, func(cfg *broker.Config) { cfg.IdleTimeout, cfg.KeepAlive = 20*time.Minute, 10*time.Minute })
	c := b.Connect(t, append(impatient(), client.WithTransport(client.Transport{IdleTimeout: 20 * time.Minute, KeepAlive: 10 * time.Minute}))...)
	cache, pub := c.Cache(felixtest.Namespace, felixtest.Cache), c.Publisher(felixtest.Namespace, felixtest.Stream)
	if err := cache.Put(testContext(t), "k", nil, client.NoExpiry); err != nil {
		t.Fatal(err)
	}
	s := subscribe(t, c)
	if err := pub.Publish(testContext(t), []byte("before")); err != nil {
		t.Fatal(err)
	}
	want(t, s, "before")
	b.Restart(t)
	if _, err := cache.Get(testContext(t), "k"); !errors.Is(err, client.ErrDisconnected) && !errors.Is(err, client.ErrMiss) {
		t.Fatal(err)
	}
	if batch, err := s.NextBatch(testContext(t)); err != nil || batch.Gap == nil || batch.Gap.Reason != client.GapEpoch {
		t.Errorf("gap %v, %v", batch.Gap, err)
	}
}

// TestWatch watches a cache through all that may happen to a broker: each loss of the connection is a reset, and what
// is put after a reset is reported.
func TestWatch(t *testing.T) {
	b := felixtest.Start(t)
	b.AddCache(t, "sessions")
	c := b.Connect(t, impatient()...)
	cache := c.Cache(felixtest.Namespace, "sessions")
	next, stop := iter.Pull2(cache.Watch(testContext(t)))
	defer stop()
	reset := func() {
		t.Helper()
		if e, err, _ := next(); err != nil || e.Kind != client.CacheReset {
			t.Fatalf("%v of %q, %v, want a reset", e.Kind, e.Key, err)
		}
	}
	put := func(key string) {
		t.Helper()
		err := cache.Put(testContext(t), key, nil, client.NoExpiry)
		for client.Retryable(err) {
			err = cache.Put(testContext(t), key, nil, client.NoExpiry)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(key string) {
		t.Helper()
		if e, err, _ := next(); err != nil || e.Kind != client.CacheSet || string(e.Key) != key {
			t.Fatalf("%v of %q, %v, want a set of %s", e.Kind, e.Key, err, key)
		}
	}
	reset()
	put("a")
	want("a")
	for _, lose := range []func(){b.Kick, func() { b.Restart(t) }} {
		lose()
		reset()
		put("b")
		want("b")
	}
	b.Pause()
	paused := make(chan struct{})
	go func() { put("c"); close(paused) }()
	b.Resume()
	<-paused
	want("c")
	b.RemoveCache(t, "sessions")
	b.AddCache(t, "sessions")
	for {
		e, err, _ := next()
		if err != nil {
			t.Fatalf("the cache was removed and is back: %v", err)
		}
		if e.Kind == client.CacheReset {
			break
		}
		if e.Kind != client.CacheDeleted {
			t.Errorf("%v of %q while the cache is removed", e.Kind, e.Key)
		}
	}
	put("d")
	want("d")
}

// TestWatchForbidden watches without the permission to read.
func TestWatchForbidden(t *testing.T) {
	b := felixtest.Start(t)
	token, err := b.Token(time.Hour, "cache.write:*")
	if err != nil {
		t.Fatal(err)
	}
	c := b.Connect(t, append(impatient(), client.WithToken(felixtest.Tenant, token))...)
	for _, err := range c.Cache(felixtest.Namespace, felixtest.Cache).Watch(testContext(t)) {
		if refusal, ok := errors.AsType[*client.BrokerError](err); !ok || refusal.Message != "forbidden" {
			t.Errorf("got %v", err)
		}
	}
}

// TestPauseAndLose delays what is delivered and loses nothing.
func TestPauseAndLose(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	s := subscribe(t, c)
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	b.Pause()
	f := clienttest.PublishAsync(testContext(t), pub, []byte("paused"))
	short, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
	defer cancel()
	if err := f.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	b.Resume()
	if err := f.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	want(t, s, "paused")
	b.Lose(0.2)
	for i := range 50 {
		if err := pub.Publish(testContext(t), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		want(t, s, fmt.Sprint(i))
	}
}

func TestRefuse(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	b.Refuse(true)
	if _, err := c.Subscribe(testContext(t), felixtest.Namespace, felixtest.Stream); !errors.Is(err, client.ErrAuth) || client.Retryable(err) {
		t.Errorf("got %v", err)
	}
	b.Refuse(false)
	subscribe(t, c)
}

// TestTokenSource goes on with another token when the one of a subscription has expired.
func TestTokenSource(t *testing.T) {
	b := felixtest.Start(t)
	asked := make(chan struct{}, 100)
	c, err := client.Connect(testContext(t), b.Addr(), append(impatient(), client.WithTLS(b.TLS()),
		client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
			asked <- struct{}{}
			return b.Token(time.Hour)
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := subscribe(t, c)
	n := len(asked)
	b.Kick()
	next := make(chan error, 1)
	go func() { _, err := s.Next(testContext(t)); next <- err }()
	for range n {
		<-asked
	}
	<-asked // for the subscription that resumes
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(testContext(t), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-next; err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if _, err = client.Connect(testContext(t), b.Addr(), client.WithTLS(b.TLS()),
		client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) { return "", broken })); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestWhileDown publishes while the broker is gone, with each policy.
func TestWhileDown(t *testing.T) {
	// down returns a client that knows that its broker is gone.
	down := func(t *testing.T, policy client.WhileDown) (*felixtest.Broker, *client.Publisher, *client.Client) {
		t.Helper()
		b := felixtest.Start(t)
		lost := make(connHook, 10)
		c := b.Connect(t, append(impatient(), client.WithWhileDown(policy), client.WithWhileDownBytes(100), client.WithHooks(lost))...)
		pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
		if err := pub.Publish(testContext(t), []byte("up")); err != nil {
			t.Fatal(err)
		}
		b.Kill()
		<-lost
		return b, pub, c
	}
	t.Run("fail", func(t *testing.T) {
		b, pub, _ := down(t, client.WhileDownFail)
		for _, err := range []error{pub.Publish(testContext(t), nil), pub.Send(testContext(t), nil), clienttest.PublishAsync(testContext(t), pub, nil).Wait(testContext(t))} {
			if !errors.Is(err, client.ErrDisconnected) || errors.Is(err, client.ErrInDoubt) || !client.Retryable(err) {
				t.Errorf("got %v", err)
			}
		}
		b.Revive(t)
		for pub.Publish(testContext(t), nil) != nil && testContext(t).Err() == nil {
			time.Sleep(time.Millisecond)
		}
	})
	t.Run("block", func(t *testing.T) {
		b, pub, _ := down(t, client.WhileDownBlock)
		short, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
		defer cancel()
		if err := pub.Publish(short, nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("got %v", err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := pub.Publish(testContext(t), nil); err != nil {
					t.Error(err)
				}
			})
		}
		b.Revive(t)
		wg.Wait()
	})
	t.Run("buffer", func(t *testing.T) {
		b, pub, c := down(t, client.WhileDownBuffer)
		var futures []clienttest.Outcome
		for i := range 10 {
			if i%2 == 0 {
				futures = append(futures, clienttest.PublishAsync(testContext(t), pub, fmt.Append(nil, i)))
			} else if err := pub.Send(testContext(t), fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		short, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
		defer cancel()
		if err := pub.Publish(short, []byte("given up")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("given up: %v", err)
		}
		if err := pub.Publish(testContext(t), make([]byte, 100)); !errors.Is(err, client.ErrBufferFull) || !client.Retryable(err) {
			t.Errorf("buffer full: %v", err)
		}
		sync := make(chan error, 1)
		go func() { sync <- pub.Publish(testContext(t), []byte("last")) }()
		b.Revive(t)
		if err := c.Flush(testContext(t)); err != nil {
			t.Errorf("flush: %v", err)
		}
		for _, f := range futures {
			if err := f.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
		}
		if err := <-sync; err != nil {
			t.Error(err)
		}
		s := subscribe(t, c, client.FromEarliest())
		for i := range 10 {
			want(t, s, fmt.Sprint(i))
		}
		want(t, s, "last")
	})
	t.Run("buffer, closed", func(t *testing.T) {
		_, pub, c := down(t, client.WhileDownBuffer)
		f := clienttest.PublishAsync(testContext(t), pub, []byte("never sent"))
		c.Close()
		if err := f.Wait(testContext(t)); !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("got %v", err)
		}
	})
}

// connHook receives something when a connection is lost.
type connHook chan struct{}

func (h connHook) OnConnect(string) {}

func (h connHook) OnDisconnect(string, error) {
	select {
	case h <- struct{}{}:
	default:
	}
}

func (h connHook) OnConnectFailed(string, error) {}

// TestChaos kills the broker while publishers publish and subscribers read. Each acknowledged event is delivered or
// lies inside a gap that was reported; each publish has an outcome, and those that were not acknowledged are in doubt.
func TestChaos(t *testing.T) {
	const kills, subscribers, publishers = 4, 3, 3
	b := felixtest.Start(t)
	ctx, stop := context.WithCancel(testContext(t))
	defer stop()
	c := b.Connect(t, impatient()...)
	ledgers := make([]*ledger, subscribers)
	var readers sync.WaitGroup
	for i := range ledgers {
		s, l := subscribe(t, c), &ledger{at: make(map[string]int)}
		ledgers[i] = l
		readers.Go(func() {
			for {
				batch, err := s.NextBatch(ctx)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("subscriber %d: %v", i, err)
					return
				}
				l.take(batch)
			}
		})
	}
	var acked atomic.Int64
	published := make([][]string, publishers) // acknowledged, in order
	var writers sync.WaitGroup
	writing, stopWriting := context.WithCancel(ctx)
	for i := range publishers {
		pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
		writers.Go(func() {
			for k := 0; writing.Err() == nil; k++ {
				payload := fmt.Sprint(i, " ", k)
				switch err := pub.Publish(ctx, []byte(payload)); {
				case err == nil:
					published[i] = append(published[i], payload)
					acked.Add(1)
				case !errors.Is(err, client.ErrInDoubt):
					t.Errorf("publish: %v", err)
				}
			}
		})
	}
	for range kills {
		for n := acked.Load(); acked.Load() < n+200 && ctx.Err() == nil; {
			time.Sleep(time.Millisecond)
		}
		b.Restart(t)
	}
	stopWriting()
	writers.Wait()
	// When this is acknowledged everything has arrived. The first attempts may be on a connection of the last broker.
	last := c.Publisher(felixtest.Namespace, felixtest.Stream)
	for k, err := 0, client.ErrInDoubt; errors.Is(err, client.ErrInDoubt); k++ {
		err = last.Publish(ctx, fmt.Append(nil, "again ", k))
		if err != nil && !errors.Is(err, client.ErrInDoubt) {
			t.Fatal(err)
		}
	}
	if err := last.Publish(ctx, []byte("end")); err != nil {
		t.Fatal(err)
	}
	for i, l := range ledgers {
		for !l.has("end") && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		l.mu.Lock()
		missing := 0
		for _, events := range published {
			// What is missing lies between two events with a gap in between.
			before, pending := 0, ""
			for _, e := range append(events, "end") {
				switch gaps, ok := l.at[e]; {
				case !ok:
					missing++
					pending = e
				case pending != "" && gaps == before:
					t.Errorf("subscriber %d: %q is missing without a gap", i, pending)
					fallthrough
				default:
					before, pending = gaps, ""
				}
			}
		}
		for _, twice := range l.twice {
			t.Errorf("subscriber %d: %q twice", i, twice)
		}
		t.Logf("subscriber %d: %d acknowledged, %d delivered, %d missing, %d gaps", i, acked.Load(), len(l.at), missing, l.gaps)
		l.mu.Unlock()
	}
	stop()
	readers.Wait()
}

// ledger is what one subscriber has received.
type ledger struct {
	mu    sync.Mutex     // guards all below
	at    map[string]int // the number of gaps in front of each
	gaps  int
	twice []string
}

func (l *ledger) take(b client.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.Gap != nil {
		l.gaps++
	}
	for _, p := range b.Payloads() {
		if _, ok := l.at[string(p)]; ok {
			l.twice = append(l.twice, string(p))
		}
		l.at[string(p)] = l.gaps
	}
}

func (l *ledger) has(payload string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.at[payload]
	return ok
}
