package fanout

import (
	"context"
	"fmt"
	"testing"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/race"
	"github.com/felix-mq/felix/ring"
)

// fleet is a topic with subscriptions whose consumers take what they are woken for on the publisher's goroutine.
type fleet struct {
	hub   *Hub
	topic *Topic
	subs  []*Subscription
	woken []int
	out   []Delivery
}

func newFleet(tb testing.TB, n int, p Policy) *fleet {
	f := &fleet{hub: NewHub(Options{})}
	tb.Cleanup(f.hub.Close)
	f.topic = f.hub.Register(testKey, p)
	for i := range n {
		s, err := f.topic.Subscribe(From{}, SubscriptionOptions{Wake: func() { f.woken = append(f.woken, i) }})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(s.Close)
		f.subs = append(f.subs, s)
	}
	return f
}

// publish publishes a slice of chunk and lets everybody who is woken take it.
func (f *fleet) publish(tb testing.TB, chunk *buf.Chunk, size int) {
	frame := NewFrame(chunk, chunk.Bytes()[:size:size], 64)
	frame.NumberAt(12)
	_, err := f.topic.Publish(context.Background(), frame, 0)
	frame.Release()
	if err != nil {
		tb.Fatal(err)
	}
	f.drain()
}

func (f *fleet) drain() {
	for _, i := range f.woken {
		for {
			f.out, _ = f.subs[i].Take(f.out[:0], 64<<10)
			if len(f.out) == 0 {
				break
			}
			for k := range f.out {
				if frame := f.out[k].Frame; frame != nil {
					frame.Release()
				}
				f.out[k] = Delivery{}
			}
		}
	}
	f.woken = f.woken[:0]
}

// TestAlloc shows that an event on its way from a publisher to 64 subscriptions allocates nothing, whatever the policy,
// with and without replay, and also while subscriptions lose events.
func TestAlloc(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	for _, overflow := range []ring.Overflow{ring.DropNew, ring.DropOld, ring.Block} {
		for _, replay := range []int{-1, 256 << 10} {
			t.Run(fmt.Sprintf("%v/replay=%d", overflow, replay), func(t *testing.T) {
				f := newFleet(t, 64, Policy{Overflow: overflow, ReplayBytes: replay})
				chunk := buf.Get(64 << 10)
				defer chunk.Release()
				for range 500 { // rings, pools and replay reach their size
					f.publish(t, chunk, 5000)
				}
				if n := testing.AllocsPerRun(200, func() { f.publish(t, chunk, 5000) }); n != 0 {
					t.Errorf("%v allocations for each published frame", n)
				}
			})
		}
	}
	t.Run("full rings", func(t *testing.T) {
		f := newFleet(t, 64, noReplay(ring.DropOld, 4))
		chunk := buf.Get(64 << 10)
		defer chunk.Release()
		stuck := func() {
			frame := NewFrame(chunk, chunk.Bytes()[:100:100], 1)
			if _, err := f.topic.Publish(context.Background(), frame, 0); err != nil {
				t.Fatal(err)
			}
			frame.Release()
		}
		for range 100 {
			stuck()
		}
		if n := testing.AllocsPerRun(200, stuck); n != 0 {
			t.Errorf("%v allocations for each frame that displaces another", n)
		}
		f.drain()
	})
	t.Run("lookup", func(t *testing.T) {
		f := newFleet(t, 1, Policy{})
		tenant, namespace, stream := []byte(testKey.Tenant), []byte(testKey.Namespace), []byte(testKey.Stream)
		if n := testing.AllocsPerRun(200, func() {
			if f.hub.Lookup(tenant, namespace, stream) != f.topic {
				t.Fatal("not found")
			}
		}); n != 0 {
			t.Errorf("%v allocations for each look-up", n)
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	for _, subs := range []int{1, 10, 64, 1024} {
		b.Run(fmt.Sprintf("subs=%d", subs), func(b *testing.B) {
			f := newFleet(b, subs, Policy{})
			chunk := buf.Get(64 << 10)
			defer chunk.Release()
			b.ReportAllocs()
			for b.Loop() { // ends with all rings empty: what the consumers do is part of it
				f.publish(b, chunk, 16<<10)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*subs), "ns/delivery")
		})
	}
}

// BenchmarkPublishPastStalled shows that stalled subscriptions cost a publish nothing.
func BenchmarkPublishPastStalled(b *testing.B) {
	for _, stalled := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("stalled=%d", stalled), func(b *testing.B) {
			f := newFleet(b, 10+stalled, noReplay(ring.DropNew, 4))
			chunk := buf.Get(64 << 10)
			defer chunk.Release()
			for range 10 {
				frame := NewFrame(chunk, chunk.Bytes()[:100:100], 1)
				if _, err := f.topic.Publish(context.Background(), frame, 0); err != nil {
					b.Fatal(err)
				}
				frame.Release()
				f.woken = f.woken[:0]
				for i := range 10 {
					f.woken = append(f.woken, i)
				}
				f.drain()
			}
			b.ReportAllocs()
			for b.Loop() {
				f.publish(b, chunk, 100)
			}
		})
	}
}
