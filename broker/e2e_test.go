package broker_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds everything that a test waits for; it only ever passes when something is broken.
const within = time.Minute

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

// start runs a development broker on loopback and checks at the end that it gave all buffers back.
func start(t *testing.T, change func(*broker.Config)) *broker.Dev {
	t.Helper()
	before := buf.Live()
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	if change != nil {
		change(&cfg)
	}
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: []string{"demo", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("serve ended with %v", err)
		}
		if n := buf.Live() - before; n != 0 {
			t.Errorf("%d chunks not given back", n)
		}
	})
	return d
}

func connect(t *testing.T, d *broker.Dev, opts ...client.Option) *client.Client {
	t.Helper()
	all := append([]client.Option{client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token)}, opts...)
	c, err := client.Connect(testContext(t), d.Addr().String(), all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func subscribe(t *testing.T, c *client.Client, stream string, opts ...client.SubscribeOption) *client.Subscription {
	t.Helper()
	s, err := c.Subscribe(testContext(t), "default", stream, append(opts, client.WithoutResume())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func wantEvents(ctx context.Context, t *testing.T, s *client.Subscription, want ...string) {
	t.Helper()
	for _, w := range want {
		ev, err := s.Next(ctx)
		for err == nil && ev.IsGap() {
			ev, err = s.Next(ctx)
		}
		if err != nil {
			t.Fatalf("waiting for %q: %v", w, err)
		}
		if string(ev.Payload) != w {
			t.Fatalf("got event %q, want %q", ev.Payload, w)
		}
	}
}

func TestPublishSubscribe(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d)
	ctx := testContext(t)
	a, b := subscribe(t, c, "demo"), subscribe(t, c, "demo")
	other := subscribe(t, c, "other")
	p := c.Publisher("default", "demo")
	if err := p.Publish(ctx, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(ctx, []byte("two"), nil, []byte("three")); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(ctx, []byte("four")); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(ctx, []byte("five"), []byte("six")); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(ctx); err != nil {
		t.Fatalf("empty batch: %v", err)
	}
	for _, s := range []*client.Subscription{a, b} {
		wantEvents(ctx, t, s, "one", "two", "", "three", "four", "five", "six")
	}
	if err := c.Publisher("default", "other").Publish(ctx, []byte("else")); err != nil {
		t.Fatal(err)
	}
	wantEvents(ctx, t, other, "else")

	var refused *client.BrokerError
	if err := c.Publisher("default", "nowhere").Publish(ctx, []byte("x")); !errors.As(err, &refused) ||
		refused.Message != "stream not found: tenant=t1 namespace=default stream=nowhere" {
		t.Errorf("publish to an unknown stream: %v", err)
	}
	if err := p.Publish(ctx, []byte("after")); err != nil {
		t.Errorf("a refusal broke the stream: %v", err)
	}
	if _, err := c.Subscribe(ctx, "default", "nowhere"); !errors.As(err, &refused) {
		t.Errorf("subscribe to an unknown stream: %v", err)
	}
}

// TestDelay sets the time that a first event waits for others. Without it an event is on its way when its publish is
// acknowledged; with it, a machine that is not too busy shows that it is not.
func TestDelay(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.EventMaxDelayMicros = 100_000 })
	ctx := testContext(t)
	c := connect(t, d)
	sub := subscribe(t, c, "demo")
	waited := false
	for i := range 10 {
		before := metric(t, d, "felix_delivered_events_total")
		event := fmt.Sprint(i)
		if err := c.Publisher("default", "demo").Publish(ctx, []byte(event)); err != nil {
			t.Fatal(err)
		}
		waited = waited || metric(t, d, "felix_delivered_events_total") == before
		wantEvents(ctx, t, sub, event)
	}
	if !waited {
		t.Error("no event waited")
	}
}

func TestReplay(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d)
	ctx := testContext(t)
	p := c.Publisher("default", "demo")
	for i := range 10 {
		if err := p.Publish(ctx, fmt.Appendf(nil, "%d", 2*i), fmt.Appendf(nil, "%d", 2*i+1)); err != nil {
			t.Fatal(err)
		}
	}
	earliest := subscribe(t, c, "demo", client.FromEarliest())
	middle := subscribe(t, c, "demo", client.FromOffset(13))
	tail := subscribe(t, c, "demo", client.FromOffset(20))
	latest := subscribe(t, c, "demo", client.FromLatest())
	var refused *client.CursorError
	if _, err := c.Subscribe(ctx, "default", "demo", client.FromOffset(21)); !errors.As(err, &refused) ||
		refused.TooOld || refused.Requested != 21 || refused.Available != 20 {
		t.Errorf("start in the future: %v", err)
	}
	if err := p.Publish(ctx, []byte("live")); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		wantEvents(ctx, t, earliest, fmt.Sprint(i))
	}
	for i := 13; i < 20; i++ {
		wantEvents(ctx, t, middle, fmt.Sprint(i))
	}
	for _, s := range []*client.Subscription{earliest, middle, tail, latest} {
		wantEvents(ctx, t, s, "live")
	}
}

func TestCache(t *testing.T) {
	d := start(t, nil)
	a, b := connect(t, d).Cache("default", "primary"), connect(t, d).Cache("default", "primary")
	ctx := testContext(t)
	if _, err := a.Get(ctx, "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("get of nothing: %v", err)
	}
	for i, value := range []string{"one", "", "\x00\xff", "four"} {
		if err := a.Put(ctx, "k", []byte(value), client.NoExpiry); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(ctx, "k")
		if err != nil || string(got) != value {
			t.Errorf("put %d: got %q, %v, want %q", i, got, err, value)
		}
	}
	if err := a.Put(ctx, "k", []byte("stays"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(ctx, "k"); err != nil {
		t.Errorf("get of an entry without expiry: %v", err)
	}
	if err := a.Put(ctx, "k", []byte("over"), -time.Second); !errors.Is(err, client.ErrInvalidTTL) {
		t.Errorf("put with a lifetime that is over: %v", err)
	}
	var refused *client.BrokerError
	unknown := connect(t, d).Cache("default", "nothing")
	if _, err := unknown.Get(ctx, "k"); !errors.As(err, &refused) || refused.Message != "cache scope not found: t1/default/nothing" {
		t.Errorf("unknown cache: %v", err)
	}
	if err := a.Put(ctx, "k", []byte("again"), time.Hour); err != nil {
		t.Errorf("put after errors: %v", err)
	}
}

func TestAuthFailsAtConnect(t *testing.T) {
	d := start(t, nil)
	_, err := client.Connect(testContext(t), d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken("t1", "nonsense"))
	if !errors.Is(err, client.ErrAuth) {
		t.Errorf("connect with a bad token: %v", err)
	}
}

func TestContextEndsRead(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d)
	s := subscribe(t, c, "demo")
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("read with an ended context: %v", err)
	}
	ctx, cancel = context.WithTimeout(testContext(t), time.Millisecond)
	defer cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read until the deadline: %v", err)
	}
	if err := c.Publisher("default", "demo").Publish(testContext(t), []byte("still there")); err != nil {
		t.Fatal(err)
	}
	wantEvents(testContext(t), t, s, "still there")
}

func TestRemovedStreamEndsSubscriptions(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d)
	ctx := testContext(t)
	idle, queued := subscribe(t, c, "demo"), subscribe(t, c, "demo")
	if err := c.Publisher("default", "demo").Publish(ctx, []byte("last")); err != nil {
		t.Fatal(err)
	}
	wantEvents(ctx, t, idle, "last")
	d.RemoveStream("t1", "default", "demo")
	if _, err := idle.Next(ctx); !errors.Is(err, client.ErrEnded) {
		t.Errorf("idle subscription: %v", err)
	}
	wantEvents(ctx, t, queued, "last")
	if _, err := queued.Next(ctx); !errors.Is(err, client.ErrEnded) {
		t.Errorf("subscription with something queued: %v", err)
	}
}

// TestStoppedSubscribers is one publisher to 64 subscribers over 8 connections, two of one connection stopped: the
// other 62 get every event, and what the two lost is counted exactly.
func TestStoppedSubscribers(t *testing.T) {
	const subs, conns, batches, batchSize, payload = 64, 8, 100, 8, 1024
	for _, policy := range []ring.Overflow{ring.DropNew, ring.DropOld} {
		t.Run(policy.String(), func(t *testing.T) {
			d := start(t, func(cfg *broker.Config) {
				cfg.QueuePolicy = policy
				cfg.QueueBytes = 256 << 10
				cfg.RetainedBytes = 16 << 20
			})
			c := connect(t, d, client.WithTransport(client.Transport{EventConns: conns, StreamWindow: 64 << 10}))
			pub := connect(t, d)
			ctx := testContext(t)
			all := make([]*client.Subscription, subs)
			for i := range all {
				all[i] = subscribe(t, c, "demo")
			}
			// Connections are used round robin, so these two share one.
			stopped := map[int]bool{3: true, 3 + conns: true}

			// Lossless for those who read: the publisher goes on when all of them have the batch before the last.
			got := make(chan struct{}, subs*batches)
			fail := make(chan error, subs)
			for i, s := range all {
				if stopped[i] {
					continue
				}
				go func() {
					fail <- func() error {
						for n := uint64(0); n < batches*batchSize; {
							b, err := s.NextBatch(ctx)
							if err != nil {
								return fmt.Errorf("subscriber %d after %d events: %w", i, n, err)
							}
							for _, p := range b.Payloads() {
								if seq := binary.BigEndian.Uint64(p); seq != n {
									return fmt.Errorf("subscriber %d got event %d, want %d", i, seq, n)
								}
								n++
							}
							for range b.Len() / batchSize {
								got <- struct{}{}
							}
						}
						return nil
					}()
				}()
			}
			p := pub.Publisher("default", "demo")
			items := make([][]byte, batchSize)
			for n := range batches {
				for i := range items {
					items[i] = make([]byte, payload)
					binary.BigEndian.PutUint64(items[i], uint64(n*batchSize+i))
				}
				if err := p.Publish(ctx, items...); err != nil {
					t.Fatal(err)
				}
				for range subs - len(stopped) {
					select {
					case <-got:
					case err := <-fail:
						if err != nil {
							t.Fatal(err)
						}
						fail <- err
						<-got
					}
				}
			}
			for range subs - len(stopped) {
				if err := <-fail; err != nil {
					t.Fatal(err)
				}
			}

			dropped := metric(t, d, "felix_dropped_events_total")
			if dropped == 0 {
				t.Error("nothing was dropped for subscribers that do not read")
			}
			if retained := metric(t, d, "felix_retained_bytes"); retained > 4<<20 {
				t.Errorf("%v bytes retained", retained)
			}
			// The two read on. What they get and what was counted for them is everything, and nothing comes after it.
			want := int64(len(stopped)*batches*batchSize) - int64(dropped)
			var left atomic.Int64
			left.Store(want)
			drained, cancel := context.WithCancel(ctx)
			defer cancel()
			for i := range stopped {
				go func() {
					fail <- func() error {
						for last := uint64(0); ; {
							ev, err := all[i].Next(drained)
							if drained.Err() != nil {
								return ctx.Err()
							}
							if err != nil {
								return err
							}
							if ev.IsGap() {
								continue
							}
							seq := binary.BigEndian.Uint64(ev.Payload) + 1
							if seq <= last {
								return fmt.Errorf("event %d after %d", seq, last)
							}
							last = seq
							if left.Add(-1) == 0 {
								cancel()
							}
						}
					}()
				}()
			}
			for range stopped {
				if err := <-fail; err != nil {
					t.Fatalf("%v, with %d of %d events still to come; %v were counted as dropped", err, left.Load(), want, dropped)
				}
			}
			if err := p.Publish(ctx, []byte("after")); err != nil {
				t.Fatal(err)
			}
			for i := range stopped {
				wantEvents(ctx, t, all[i], "after")
			}
		})
	}
}

// metric reads one counter or gauge from the broker's registry.
func metric(t *testing.T, d *broker.Dev, name string) float64 {
	t.Helper()
	families, err := d.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			sum := 0.0
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
