package broker

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

// BenchmarkScrape reads the metrics of a broker with 10 000 subscriptions of a stream that two publishers keep busy.
func BenchmarkScrape(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	cfg.QueuePolicy = ring.DropOld // all stay in the active set, as subscriptions that keep up do
	cfg.QueueCapacity = 8
	d, err := NewDev(cfg, DevOptions{Streams: []string{"demo"}})
	if err != nil {
		b.Fatal(err)
	}
	topic := d.hub.Lookup([]byte("t1"), []byte("default"), []byte("demo"))
	c := &conn{b: d.Broker, subs: make(map[uint64]*subscription)}
	for i := range uint64(10_000) {
		events, err := topic.Subscribe(fanout.From{}, fanout.SubscriptionOptions{Wake: func() {}})
		if err != nil {
			b.Fatal(err)
		}
		c.subs[i] = &subscription{c: c, id: i, events: events}
	}
	var stop atomic.Bool
	var publishers sync.WaitGroup
	for range 2 {
		publishers.Go(func() {
			chunk := buf.Get(1024)
			defer chunk.Release()
			for !stop.Load() {
				f := fanout.NewFrame(chunk, chunk.Bytes()[:100], 1)
				_, _ = topic.Publish(context.Background(), f, 0)
				f.Release()
				runtime.Gosched()
			}
		})
	}
	for b.Loop() {
		if _, err := d.Registry().Gather(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/scrape")
	stop.Store(true)
	publishers.Wait()
	for _, s := range c.subs {
		s.events.Close()
	}
	_ = d.Shutdown(context.Background())
}
