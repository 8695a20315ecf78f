package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/internal/clienttest"
	"github.com/felix-mq/felix/conformance/script"
)

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestPublishAsync answers asynchronous publishes in every way.
func TestPublishAsync(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect()
	pub := c.Publisher("default", "demo")
	futures := make([]clienttest.Outcome, 4)
	held := make([]held, 4)
	for i := range futures {
		futures[i] = clienttest.PublishAsync(p.ctx, pub, fmt.Append(nil, i))
		held[i] = p.next(requests)
	}
	for i := range futures {
		if held[i].Payload() != fmt.Sprint(i) {
			t.Errorf("publish %d carries %q", i, held[i].Payload())
		}
	}
	p.must(held[2].ctl.Ack(held[2].Request, ""))
	p.must(futures[2].Wait(p.ctx))
	p.must(held[0].ctl.Ack(held[0].Request, "no"))
	if err := futures[0].Wait(p.ctx); !matchesRefusal(err) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("refused: %v", err)
	}
	held[1].conn.ShutDown()
	for _, i := range []int{1, 3} {
		if err := futures[i].Wait(p.ctx); !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, client.ErrDisconnected) {
			t.Errorf("connection lost: %v", err)
		}
	}
	canceled, cancel := context.WithCancel(p.ctx)
	cancel()
	if err := clienttest.PublishAsync(canceled, pub, nil).Wait(p.ctx); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("canceled: %v", err)
	}
	if err := clienttest.PublishAsync(p.ctx, c.Publisher("\xff", "demo"), nil).Wait(p.ctx); !errors.Is(err, client.ErrInvalidName) {
		t.Errorf("invalid name: %v", err)
	}
}

// TestPublishAsyncTimesOut gets no acknowledgement.
func TestPublishAsyncTimesOut(t *testing.T) {
	patiently(t, 50*time.Millisecond, func(p *peer, limit time.Duration) bool {
		n, requests := hold()
		p.serve(n)
		c := p.connect(client.WithRequestTimeout(limit))
		err := clienttest.PublishAsync(p.ctx, c.Publisher("default", "demo"), nil).Wait(p.ctx)
		select {
		case <-requests:
		default:
			return false
		}
		if !errors.Is(err, client.ErrTimeout) || !errors.Is(err, client.ErrInDoubt) {
			p.tb.Errorf("got %v", err)
		}
		return true
	})
}

// TestInFlight fills each window. What is above it waits, and its context ends that.
func TestInFlight(t *testing.T) {
	for _, tc := range []struct {
		name    string
		opt     client.Option
		payload []byte
	}{
		{"publishes", client.WithInFlight(2, 1<<20), nil},
		{"bytes", client.WithInFlight(100, 2000), make([]byte, 900)},
		{"more than all bytes", client.WithInFlight(2, 10), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			n, requests := hold()
			p.serve(n)
			pub := p.connect(tc.opt, alone()).Publisher("default", "demo")
			first, second := clienttest.PublishAsync(p.ctx, pub, tc.payload), clienttest.PublishAsync(p.ctx, pub, tc.payload)
			a, b := p.next(requests), p.next(requests)
			// One that waits for the window, and one in the batch after it.
			third, fourth := clienttest.PublishAsync(p.ctx, pub, make([]byte, 1<<16)), clienttest.PublishAsync(p.ctx, pub, tc.payload)
			short, stop := context.WithTimeout(p.ctx, 5*time.Millisecond)
			defer stop()
			if err := clienttest.PublishAsync(short, pub, tc.payload).Wait(p.ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
				t.Errorf("above the window: %v", err)
			}
			for _, publish := range []func(context.Context, ...[]byte) error{pub.Publish, pub.Send} {
				if err := publish(short, tc.payload); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
					t.Errorf("what must not overtake what was gathered: %v", err)
				}
			}
			p.must(a.ctl.Ack(a.Request, ""))
			p.must(b.ctl.Ack(b.Request, ""))
			p.must(first.Wait(p.ctx))
			p.must(second.Wait(p.ctx))
			for _, f := range []clienttest.Outcome{third, fourth} {
				d := p.next(requests)
				p.must(d.ctl.Ack(d.Request, ""))
				p.must(f.Wait(p.ctx))
			}
		})
	}
}

// TestFlush waits for what was published before, and for nothing else.
func TestFlush(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect()
	p.must(c.Flush(p.ctx)) // nothing
	pub := c.Publisher("default", "demo")
	var told atomic.Bool
	pub.PublishAsync(p.ctx, []byte("before"), func(error) { told.Store(true) })
	before := p.next(requests)
	flushed := do(p, func() error { return c.Flush(p.ctx) })
	short, stop := context.WithTimeout(p.ctx, 5*time.Millisecond)
	defer stop()
	if err := c.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a flush that ends: %v", err)
	}
	behind := clienttest.PublishAsync(p.ctx, pub, []byte("behind"))
	after := p.next(requests)
	p.must(before.ctl.Ack(before.Request, ""))
	p.must(flushed())
	if !told.Load() {
		t.Error("Flush returned before the callback did")
	}
	p.must(after.ctl.Ack(after.Request, ""))
	p.must(behind.Wait(p.ctx))

	// What asks for no acknowledgement is followed by an empty batch that does.
	p.must(pub.Send(p.ctx, []byte("sent")))
	if sent := p.next(requests); sent.Payload() != "sent" {
		t.Errorf("got %q", sent.Payload())
	}
	flush := func() (flushed func() error, barrier held) {
		flushed = do(p, func() error { return c.Flush(p.ctx) })
		if barrier = p.next(requests); len(barrier.Payloads) != 0 {
			t.Errorf("a flush publishes %q", barrier.Payloads)
		}
		return flushed, barrier
	}
	flushed, first := flush()
	again, second := flush() // the one under way proves nothing yet
	p.must(second.ctl.Ack(second.Request, ""))
	p.must(again())
	p.must(first.ctl.Ack(first.Request, "the stream does not exist"))
	p.must(flushed())
	p.must(c.Flush(p.ctx)) // nothing

	// It may have been lost.
	p.must(pub.Send(p.ctx, []byte("sent")))
	p.next(requests).conn.ShutDown()
	if err := c.Flush(p.ctx); !errors.Is(err, client.ErrInDoubt) {
		t.Errorf("the connection was lost: %v", err)
	}
}

// TestDrain lets what is under way end, and nothing else begin.
func TestDrain(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect()
	pub := c.Publisher("default", "demo")
	f := clienttest.PublishAsync(p.ctx, pub, nil)
	h := p.next(requests)
	drained := do(p, func() error { return c.Drain(p.ctx) })
	for err := error(nil); !errors.Is(err, client.ErrClosed); { // the drain begins about now
		short, stop := context.WithTimeout(p.ctx, time.Millisecond)
		err = pub.Publish(short, nil)
		stop()
	}
	if err := clienttest.PublishAsync(p.ctx, pub, nil).Wait(p.ctx); !errors.Is(err, client.ErrClosed) {
		t.Errorf("PublishAsync: %v", err)
	}
	p.must(h.ctl.Ack(h.Request, ""))
	for len(requests) > 0 {
		h := p.next(requests)
		_ = h.ctl.Ack(h.Request, "")
	}
	p.must(f.Wait(p.ctx))
	p.must(drained())
	if err := pub.Publish(p.ctx, nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after: %v", err)
	}
}

// TestBatches publishes events that linger, and looks at the batches that come.
func TestBatches(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect(client.WithBatching(client.Batching{MaxEvents: 3, MaxBytes: 10 + 2*4, Linger: time.Hour}))
	var mu sync.Mutex
	var told []string
	pub := c.Publisher("default", "demo")
	add := func(events ...string) {
		for _, e := range events {
			payload := []byte(e)
			pub.PublishAsync(p.ctx, payload, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprint(e, err != nil))
			})
			clear(payload) // it is the caller's
		}
	}
	comes := func(refusal string, want ...string) {
		t.Helper()
		h := p.next(requests)
		var got []string
		for _, b := range h.Payloads {
			got = append(got, string(b))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		p.must(h.ctl.Ack(h.Request, refusal))
	}
	add("a", "b")
	add("c") // full by count
	comes("", "a", "b", "c")
	add("12345", "67890")
	comes("no", "12345", "67890") // by bytes
	add("1", "a larger one than fits")
	comes("", "1")
	comes("", "a larger one than fits")
	for _, flush := range []func(context.Context) error{pub.Flush, c.Flush, c.Drain} {
		add("x")
		flushed := do(p, func() error { return flush(p.ctx) })
		comes("", "x")
		p.must(flushed())
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{"afalse", "bfalse", "cfalse", "12345true", "67890true", "1false", "a larger one than fitsfalse", "xfalse", "xfalse", "xfalse"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// TestPublishesStayInOrder mixes the ways to publish. Each call is made when the one before it has returned.
func TestPublishesStayInOrder(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect(client.WithBatching(client.Batching{Linger: time.Hour}))
	sub, err := c.Subscribe(p.ctx, "default", "demo")
	p.must(err)
	defer sub.Close()
	pub := c.Publisher("default", "demo")
	rng := newRand(t)
	const events = 900
	for i := range events {
		switch payload := fmt.Append(nil, i); rng.IntN(4) {
		case 0:
			p.must(pub.Publish(p.ctx, payload))
		case 1:
			p.must(pub.Send(p.ctx, payload))
		default:
			pub.PublishAsync(p.ctx, payload, nil)
		}
	}
	p.must(pub.Flush(p.ctx))
	for i := range events {
		ev, err := sub.Next(p.ctx)
		p.must(err)
		if string(ev.Payload) != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, ev.Payload)
		}
	}
}

// TestFailuresWithoutACallback are what Flush fails with, once: the first of each publisher, and the first of all.
func TestFailuresWithoutACallback(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect()
	first, second, good := c.Publisher("default", "demo"), c.Publisher("default", "demo"), c.Publisher("default", "demo")
	for i, pub := range []*client.Publisher{first, first, second, good} {
		pub.PublishAsync(p.ctx, nil, nil)
		h := p.next(requests)
		p.must(h.ctl.Ack(h.Request, []string{"one", "two", "three", ""}[i]))
	}
	for _, tc := range []struct {
		flush func(context.Context) error
		want  string
	}{{first.Flush, "one"}, {first.Flush, ""}, {second.Flush, "three"}, {good.Flush, ""}, {c.Flush, "one"}, {c.Flush, ""}} {
		err := tc.flush(p.ctx)
		if tc.want == "" && err != nil || tc.want != "" && (!matchesRefusal(err) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
	canceled, cancel := context.WithCancel(p.ctx)
	cancel()
	good.PublishAsync(canceled, nil, nil)
	if err := good.Flush(p.ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestBatchingIsChecked gives bounds that no batch can have.
func TestBatchingIsChecked(t *testing.T) {
	p := newPeer(t)
	for _, b := range []client.Batching{{MaxEvents: -1}, {MaxEvents: 1 << 17}, {MaxBytes: -1}, {MaxBytes: 1 << 30}, {Linger: -1}} {
		if _, err := client.Connect(p.ctx, p.Addr(), append(p.options(), client.WithBatching(b))...); err == nil || !strings.Contains(err.Error(), "batches of") {
			t.Errorf("%+v: %v", b, err)
		}
	}
}

// TestManyGather lets many goroutines publish, without lingering, while the broker ends streams at random, and again
// when it has stopped doing so: what they publish then has to be acknowledged. Each event has one outcome; those that
// were acknowledged are delivered, in the order of their goroutine.
func TestManyGather(t *testing.T) {
	const adders, rounds, events = 8, 5, 12 // twice that in each round; a scripted broker keeps 1024
	p := newPeer(t)
	broker := script.NewNormal()
	p.serve(broker)
	c := p.connect(quick(), client.WithBatching(client.Batching{MaxEvents: 64}))
	pub := c.Publisher("default", "demo")
	sub, err := c.Subscribe(p.ctx, "default", "demo", client.FromEarliest())
	p.must(err)
	defer sub.Close()
	var mu sync.Mutex
	acked, outcomes := make(map[string]bool), 0
	publish := func(e string) {
		pub.PublishAsync(p.ctx, []byte(e), func(err error) {
			mu.Lock()
			defer mu.Unlock()
			outcomes++
			if err == nil {
				acked[e] = true
			} else if !client.Retryable(err) {
				t.Errorf("%s: %v", e, err)
			}
		})
	}
	rng := newRand(t)
	add := func(round, from int, meanwhile func()) {
		var work sync.WaitGroup
		for i := range adders {
			work.Go(func() {
				for k := from; k < from+events; k++ {
					publish(fmt.Sprintf("%d %06d", i, round*2*events+k))
				}
			})
		}
		meanwhile()
		work.Wait()
		p.must(pub.Flush(p.ctx))
	}
	for round := range rounds {
		add(round, 0, func() { broker.Kill(rng) })
		for pub.Publish(p.ctx, []byte("again")) != nil { // once it is acknowledged, its stream is not one that was killed
			p.must(p.ctx.Err())
		}
		mu.Lock()
		before := len(acked)
		mu.Unlock()
		add(round, events, func() {})
		mu.Lock()
		if n := len(acked) - before; n != adders*events {
			t.Errorf("round %d: %d of %d events acknowledged by a broker that lives", round, n, adders*events)
		}
		mu.Unlock()
	}
	p.must(pub.Publish(p.ctx, []byte("end")))
	mu.Lock()
	defer mu.Unlock()
	if outcomes != 2*adders*rounds*events {
		t.Errorf("%d outcomes of %d events", outcomes, 2*adders*rounds*events)
	}
	t.Logf("%d of %d events acknowledged", len(acked), outcomes)
	last := make(map[string]string)
	for ev, err := range sub.Events(p.ctx) {
		p.must(err)
		e := string(ev.Payload)
		if e == "end" {
			break
		}
		if e == "again" {
			continue
		}
		who, _, _ := strings.Cut(e, " ")
		if last[who] >= e {
			t.Errorf("%q after %q", e, last[who])
		}
		last[who] = e
		delete(acked, e)
	}
	if len(acked) > 0 {
		t.Errorf("%d acknowledged events were not delivered", len(acked))
	}
}
