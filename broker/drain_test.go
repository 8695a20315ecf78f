package broker

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

// A drain waits for what is queued as long as its budget lasts, and not longer than it takes.
func TestAwaitQuiet(t *testing.T) {
	for _, c := range []struct {
		name                 string
		quietAt, budget, end time.Duration
		movesUntil           time.Duration
		want                 bool
		took                 time.Duration
	}{
		{"quiet already", 0, time.Hour, time.Hour, 0, true, 0},
		{"quiet later", 12 * time.Millisecond, time.Hour, time.Hour, 0, true, 15 * time.Millisecond},
		{"out of budget", time.Hour, time.Second, time.Hour, 0, false, time.Second},
		{"slow, but moving", time.Minute, time.Hour, time.Hour, time.Hour, true, time.Minute},
		{"stuck after a while", time.Hour, time.Hour, time.Hour, 10 * time.Second, true, 12 * time.Second},
		{"connection ends", time.Hour, time.Hour, 7 * time.Millisecond, 0, false, 7 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), c.budget)
				defer cancel()
				life, end := context.WithTimeout(t.Context(), c.end)
				defer end()
				got := awaitQuiet(ctx, life, 2*time.Second, func() bool { return time.Since(began) >= c.quietAt }, func() uint64 {
					return uint64(min(time.Since(began), c.movesUntil) / time.Millisecond)
				})
				if got != c.want || time.Since(began) != c.took {
					t.Errorf("%t after %v, want %t after %v", got, time.Since(began), c.want, c.took)
				}
			})
		})
	}
}

// A drain frees publishers that wait for space, while what is queued can still be taken.
func TestDrainFreesPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := fanout.NewHub(fanout.Options{})
		defer hub.Close()
		topic := hub.Register(fanout.Key{Stream: "s"}, fanout.Policy{Overflow: ring.Block, QueueItems: 1, ReplayBytes: -1})
		s, err := topic.Subscribe(fanout.From{}, fanout.SubscriptionOptions{Wake: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		publish := func(wait time.Duration) error {
			chunk := buf.Get(100)
			defer chunk.Release()
			f := fanout.NewFrame(chunk, chunk.Bytes()[:100], 1)
			defer f.Release()
			_, err := topic.Publish(t.Context(), f, wait)
			return err
		}
		if err := publish(0); err != nil {
			t.Fatal(err)
		}
		blocked := make(chan error, 1)
		go func() { blocked <- publish(-1) }()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		select {
		case err := <-blocked:
			t.Fatalf("a publisher without space did not wait: %v", err)
		default:
		}
		began := time.Now()
		hub.Drain()
		if r, _ := (&control{stream: stream{}}).refusal(<-blocked); r == nil || time.Since(began) != 0 {
			t.Errorf("refusal %v after %v", r, time.Since(began))
		}
		ds, _ := s.Take(nil, 1)
		if len(ds) != 1 {
			t.Fatalf("%d deliveries left", len(ds))
		}
		ds[0].Frame.Release()
	})
}

// Events that are published while a subscription is made with replay come once and in order, wherever the two meet.
func TestReplayMeetsLive(t *testing.T) {
	for between := range 6 {
		synctest.Test(t, func(t *testing.T) {
			hub := fanout.NewHub(fanout.Options{})
			defer hub.Close()
			topic := hub.Register(fanout.Key{Stream: "s"}, fanout.Policy{})
			published := 0
			publish := func(n int) {
				for range n {
					chunk := buf.Get(100)
					f := fanout.NewFrame(chunk, chunk.Bytes()[:100], 1+published%3)
					chunk.Release()
					if _, err := topic.Publish(t.Context(), f, 0); err != nil {
						t.Fatal(err)
					}
					f.Release()
					published++
				}
			}
			publish(5)
			woken := make(chan struct{}, 100)
			s, err := topic.Subscribe(fanout.From{At: true, Offset: 4}, fanout.SubscriptionOptions{
				Wake: func() { woken <- struct{}{} },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			done := make(chan struct{})
			next := uint64(4)
			go func() {
				defer close(done)
				for {
					ds, ended := s.Take(nil, 1)
					if ended {
						return
					}
					if len(ds) == 0 {
						<-woken
						continue
					}
					for _, d := range ds {
						if d.Reason != fanout.GapNone || d.Next != next {
							t.Errorf("delivery of %d, want %d, gap %v", d.Next, next, d.Reason)
						}
						next = d.Frame.First() + uint64(d.Frame.Count())
						d.Frame.Release()
					}
					time.Sleep(time.Millisecond) // slower than the publisher
				}
			}()
			publish(between)
			time.Sleep(time.Duration(between) * time.Millisecond)
			publish(10)
			hub.Remove(topic.Key())
			<-done
			if want := topic.Stats().Next; next != want {
				t.Errorf("received up to %d, want %d", next, want)
			}
		})
	}
}
