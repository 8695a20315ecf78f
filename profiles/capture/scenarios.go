package main

import (
	"context"
	"fmt"
	"time"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// scenario is a load: of the cache if fanout is 0.
type scenario struct {
	name                           string
	fanout, payload, batch, window int
}

// scenarios are those that can be asked for.
var scenarios = []scenario{
	{"pubsub-small", 1, 256, 64, 4},
	{"pubsub-large", 1, 4096, 64, 4},
	{"fanout", 64, 1024, 64, 4},
	{"latency", 10, 1024, 1, 1},
	{name: "cache"},
}

// pgoLoads stand for all loads: large and small events, alone and in batches, to few and to many subscriptions, and
// cache requests. All of them weigh the same.
func pgoLoads() (loads []scenario) {
	for _, fanout := range []int{1, 10, 64} {
		for _, payload := range []int{256, 4096} {
			for _, batch := range []int{1, 64} {
				loads = append(loads, scenario{fmt.Sprintf("fanout %d, %d B × %d", fanout, payload, batch), fanout, payload, batch, 4})
			}
		}
	}
	return append(loads, scenario{name: "cache"})
}

// run loads the broker for so long, and a little before.
func (s scenario) run(ctx context.Context, broker *brokerproc.Process, duration time.Duration) error {
	if s.fanout == 0 {
		load := loadgen.DefaultCacheConfig()
		load.Target, load.Keys, load.Value, load.Concurrency, load.Duration = loadgen.TargetOf(broker, "primary"), 16, 1024, 16, duration
		_, err := loadgen.RunCache(ctx, load)
		return err
	}
	_, err := loadgen.Run(ctx, loadgen.Config{
		Target: loadgen.TargetOf(broker, "demo"), Fanout: s.fanout, Payload: s.payload, Batch: s.batch, Window: s.window,
		Warmup: 100 * time.Millisecond, Duration: duration, MaxDuration: time.Minute,
	})
	return err
}

// operations are those between two counts of a broker, once for each subscription.
func (s scenario) operations(begin, end float64) float64 {
	return (end - begin) * float64(max(s.fanout, 1))
}

// operations returns how many publishes and cache requests a broker has carried out, and how many events and values it
// has handed out.
func operations(broker *brokerproc.Process) (done, delivered float64, err error) {
	m, err := broker.Metrics()
	gets := m["felix_cache_hits_total"] + m["felix_cache_misses_total"]
	return m["felix_published_batches_total"] + m["felix_cache_puts_total"] + gets, m["felix_delivered_events_total"] + gets, err
}
