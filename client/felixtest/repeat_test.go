package felixtest_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// repeated is publishers of one durable stream that go on whatever happens, and what they have published.
type repeated struct {
	t     *testing.T
	stop  chan struct{}
	wg    sync.WaitGroup
	acked atomic.Int64

	mu   sync.Mutex
	sent map[string]int // by publisher: events
}

// patient are the options of a client that sees soon that a broker is gone, and waits for long until it is back.
func patient(more ...client.Option) []client.Option {
	return append(more, client.WithBackoff(time.Millisecond, 20*time.Millisecond), client.WithRequestTimeout(guard),
		client.WithTransport(client.Transport{KeepAlive: 100 * time.Millisecond, IdleTimeout: 500 * time.Millisecond}))
}

// publish publishes until all is stopped. No call may fail, and none may be in doubt.
func (r *repeated) publish(name string, p *client.Publisher, async bool) {
	r.wg.Go(func() {
		n := 0
		failed := func(err error) {
			if err != nil {
				r.t.Errorf("%s: %v", name, err)
			}
			r.acked.Add(1)
		}
		defer func() {
			failed(p.Flush(context.Background()))
			r.mu.Lock()
			r.sent[name] = n
			r.mu.Unlock()
		}()
		var pending atomic.Int64
		for ; ; n++ {
			select {
			case <-r.stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
			payload := fmt.Appendf(nil, "%s %d ", name, n)
			if n%5 == 0 { // worth compressing
				payload = append(payload, bytes.Repeat([]byte("x"), 1500)...)
			}
			if async && n%7 != 0 && pending.Load() < 200 {
				pending.Add(1)
				p.PublishAsync(context.Background(), payload, func(err error) {
					failed(err)
					pending.Add(-1)
				})
				continue
			}
			failed(p.Publish(context.Background(), payload))
		}
	})
}

// progress waits until some events more have been acknowledged.
func (r *repeated) progress(n int) {
	for want, limit := r.acked.Load()+int64(n), time.Now().Add(guard); r.acked.Load() < want; time.Sleep(time.Millisecond) {
		if r.t.Failed() || time.Now().After(limit) {
			r.t.Error("the publishers do not get on")
			return
		}
	}
}

// judge reads the stream up to a marker, and compares it with what was published: each event once, those of a publisher
// in the order of its calls, if they have one.
func (r *repeated) judge(c *client.Client, ordered func(name string) bool) (events int) {
	ctx, cancel := context.WithTimeout(context.Background(), guard)
	defer cancel()
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(ctx, []byte("marker 0 ")); err != nil {
		r.t.Fatal(err)
	}
	s, err := c.Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromEarliest())
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	seen, last := map[string]map[int]int{}, map[string]int{}
	for {
		ev, err := s.Next(ctx)
		if err != nil || ev.Gap != nil {
			r.t.Fatalf("gap %v, %v", ev.Gap, err)
		}
		var name string
		var n int
		if _, err := fmt.Sscanf(string(ev.Payload), "%s %d ", &name, &n); err != nil {
			r.t.Fatalf("%.40q: %v", ev.Payload, err)
		}
		if name == "marker" {
			break
		}
		if seen[name] == nil {
			seen[name], last[name] = map[int]int{}, -1
		}
		seen[name][n]++
		if ordered(name) && n <= last[name] {
			r.t.Errorf("%s: event %d after event %d", name, n, last[name])
		}
		last[name] = n
		events++
	}
	for name, sent := range r.sent {
		for n := range sent {
			if times := seen[name][n]; times != 1 {
				r.t.Errorf("%s: event %d was acknowledged, and is there %d times", name, n, times)
			}
		}
	}
	return events
}

// TestRepeat breaks connections, paths and brokers while publishers of a durable stream wait for acknowledgements. Not
// one of them hears of it, and each event is there once.
func TestRepeat(t *testing.T) {
	for name, opts := range map[string][]client.Option{
		"block":       nil,
		"buffer":      {client.WithWhileDown(client.WhileDownBuffer)},
		"compression": {client.WithCompression()},
		"round robin": {client.WithTransport(client.Transport{RoundRobin: true, PublishConns: 2, PublishStreams: 2})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := felixtest.Start(t, func(c *broker.Config) {
				c.Storage.Dir, c.Storage.Headroom, c.Storage.SegmentBytes = t.TempDir(), 0, 64<<10
			})
			r := &repeated{t: t, stop: make(chan struct{}), sent: map[string]int{}}
			c := b.Connect(t, patient(opts...)...)
			for i := range 2 {
				r.publish(fmt.Sprint("sync", i), c.Publisher(felixtest.Namespace, felixtest.Stream), false)
				r.publish(fmt.Sprint("async", i), c.Publisher(felixtest.Namespace, felixtest.Stream), true)
			}
			dice := rand.New(rand.NewPCG(1, uint64(len(name))))
			for i := range 8 {
				r.progress(1 + dice.IntN(200))
				switch i % 4 {
				case 0:
					b.Kick()
				case 1:
					b.Restart(t)
				case 2:
					b.Pause()
					time.Sleep(time.Duration(dice.IntN(900)) * time.Millisecond) // the idle timeout is within that
					b.Resume()
				case 3:
					b.Kill()
					time.Sleep(time.Duration(dice.IntN(300)) * time.Millisecond)
					b.Revive(t)
				}
			}
			close(r.stop)
			r.wg.Wait()
			n := r.judge(c, func(string) bool { return name != "round robin" })
			t.Logf("%d events", n)
		})
	}
}
