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
	futures := make([]*client.Future, 4)
	held := make([]held, 4)
	for i := range futures {
		futures[i] = pub.PublishAsync(p.ctx, fmt.Append(nil, i))
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
	short, stop := context.WithTimeout(p.ctx, time.Millisecond)
	defer stop()
	if err := futures[1].Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that ends: %v", err)
	}
	held[1].conn.ShutDown()
	for _, i := range []int{1, 3} {
		<-futures[i].Done()
		if err := futures[i].Wait(p.ctx); !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, client.ErrDisconnected) {
			t.Errorf("connection lost: %v", err)
		}
	}
	canceled, cancel := context.WithCancel(p.ctx)
	cancel()
	if err := pub.PublishAsync(canceled, nil).Wait(p.ctx); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("canceled: %v", err)
	}
	if err := c.Publisher("\xff", "demo").PublishAsync(p.ctx, nil).Wait(p.ctx); !errors.Is(err, client.ErrInvalidName) {
		t.Errorf("invalid name: %v", err)
	}
}

// TestPublishAsyncTimesOut gets no acknowledgement.
func TestPublishAsyncTimesOut(t *testing.T) {
	patiently(t, 50*time.Millisecond, func(p *peer, limit time.Duration) bool {
		n, requests := hold()
		p.serve(n)
		c := p.connect(client.WithRequestTimeout(limit))
		err := c.Publisher("default", "demo").PublishAsync(p.ctx, nil).Wait(p.ctx)
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
			pub := p.connect(tc.opt).Publisher("default", "demo")
			first, second := pub.PublishAsync(p.ctx, tc.payload), pub.PublishAsync(p.ctx, tc.payload)
			a, b := p.next(requests), p.next(requests)
			short, stop := context.WithTimeout(p.ctx, 5*time.Millisecond)
			defer stop()
			if err := pub.PublishAsync(short, tc.payload).Wait(p.ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrInDoubt) {
				t.Errorf("above the window: %v", err)
			}
			third := begin(p, func() (*client.Future, error) { return pub.PublishAsync(p.ctx, make([]byte, 1<<16)), nil })
			p.must(a.ctl.Ack(a.Request, ""))
			p.must(b.ctl.Ack(b.Request, ""))
			p.must(first.Wait(p.ctx))
			p.must(second.Wait(p.ctx))
			f, _ := third()
			d := p.next(requests)
			p.must(d.ctl.Ack(d.Request, ""))
			p.must(f.Wait(p.ctx))
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
	pub.PublishFunc(p.ctx, batch("before"), func(error) { told.Store(true) })
	before := p.next(requests)
	flushed := do(p, func() error { return c.Flush(p.ctx) })
	short, stop := context.WithTimeout(p.ctx, 5*time.Millisecond)
	defer stop()
	if err := c.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a flush that ends: %v", err)
	}
	behind := pub.PublishAsync(p.ctx, []byte("behind"))
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
	f := pub.PublishAsync(p.ctx, nil)
	h := p.next(requests)
	drained := do(p, func() error { return c.Drain(p.ctx) })
	for err := error(nil); !errors.Is(err, client.ErrClosed); { // the drain begins about now
		short, stop := context.WithTimeout(p.ctx, time.Millisecond)
		err = pub.Publish(short, nil)
		stop()
	}
	if err := pub.Batcher(client.BatcherOptions{}).Add(p.ctx, nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("Add: %v", err)
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

// TestBatcher adds events while the broker holds up a write, and looks at the batches that come.
func TestBatcher(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect()
	var mu sync.Mutex
	var told []string
	o := client.BatcherOptions{MaxEvents: 3, MaxBytes: 10, Linger: time.Hour, Done: func(payloads [][]byte, err error) {
		mu.Lock()
		defer mu.Unlock()
		var all []string
		for _, b := range payloads {
			all = append(all, string(b))
		}
		told = append(told, fmt.Sprint(strings.Join(all, " "), err != nil))
	}}
	b := c.Publisher("default", "demo").Batcher(o)
	add := func(events ...string) {
		t.Helper()
		for _, e := range events {
			p.must(b.Add(p.ctx, []byte(e)))
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
	add("a", "b", "c")
	comes("", "a", "b", "c") // full by count
	add("12345", "67890")
	comes("no", "12345", "67890") // by bytes
	add("1", "a larger one than fits")
	comes("", "1")
	comes("", "a larger one than fits")
	add("x")
	flushed := do(p, func() error { return b.Flush(p.ctx) })
	comes("", "x")
	p.must(flushed())
	add("y")
	flushed = do(p, func() error { return c.Flush(p.ctx) })
	comes("", "y")
	p.must(flushed())
	add("z")
	closed := do(p, func() error { return b.Close(p.ctx) })
	comes("", "z")
	p.must(closed())
	if err := b.Add(p.ctx, nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(told)
	want := []string{"12345 67890true", "1false", "a b cfalse", "a larger one than fitsfalse", "xfalse", "yfalse", "zfalse"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// TestBatcherGathers lets many goroutines add, without lingering, while the broker ends streams at random, and again when
// it has stopped doing so: what they add then has to be acknowledged. Each event has one outcome; those that were
// acknowledged are delivered, in the order of their goroutine.
func TestBatcherGathers(t *testing.T) {
	const adders, rounds, events = 8, 5, 12 // twice that in each round; a scripted broker keeps 1024
	p := newPeer(t)
	broker := script.NewNormal()
	p.serve(broker)
	c := p.connect(quick())
	pub := c.Publisher("default", "demo")
	sub, err := c.Subscribe(p.ctx, "default", "demo", client.FromEarliest())
	p.must(err)
	defer sub.Close()
	var mu sync.Mutex
	acked, outcomes, batches := make(map[string]bool), 0, 0
	b := pub.Batcher(client.BatcherOptions{MaxEvents: 64, Done: func(payloads [][]byte, err error) {
		mu.Lock()
		defer mu.Unlock()
		batches++
		for _, e := range payloads {
			outcomes++
			if err == nil {
				acked[string(e)] = true
			} else if !client.Retryable(err) {
				t.Errorf("a batch: %v", err)
			}
		}
	}})
	rng := newRand(t)
	add := func(round, from int, meanwhile func()) {
		var work sync.WaitGroup
		for i := range adders {
			work.Go(func() {
				for k := from; k < from+events; k++ {
					p.must(b.Add(p.ctx, fmt.Appendf(nil, "%d %06d", i, round*2*events+k)))
				}
			})
		}
		meanwhile()
		work.Wait()
		p.must(b.Flush(p.ctx))
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
	t.Logf("%d batches, %d of %d events acknowledged", batches, len(acked), outcomes)
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
			t.Errorf("%q behind %q", e, last[who])
		}
		last[who] = e
		delete(acked, e)
	}
	if len(acked) > 0 {
		t.Errorf("%d acknowledged events were not delivered", len(acked))
	}
}
