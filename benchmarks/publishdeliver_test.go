package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/felix-mq/felix/loadgen"
)

// BenchmarkPublishDeliver runs a publisher, an embedded broker and its subscriptions in one process. One operation is
// a whole run with connections of its own, so the metrics that count are those it reports, not ns/op, which it hides.
// Batches of 64 keep 4 batches in flight and measure throughput; single events are a closed loop and measure latency.
func BenchmarkPublishDeliver(b *testing.B) {
	for _, fanout := range []int{1, 10, 64} {
		for _, payload := range []int{256, 4096} {
			for _, batch := range []int{1, 64} {
				b.Run(fmt.Sprintf("fanout=%d/payload=%d/batch=%d", fanout, payload, batch), func(b *testing.B) {
					cfg := loadgen.Config{Fanout: fanout, Payload: payload, Batch: batch, Warmup: 100 * time.Millisecond}
					if batch == 1 {
						cfg.Window, cfg.Total = 1, 4000
					} else {
						// 256 batches: twice the least that loadgen accepts at this window.
						cfg.Window, cfg.Total = 4, 256*int64(batch)
					}
					benchmark(b, cfg)
				})
			}
		}
	}
}

func benchmark(b *testing.B, cfg loadgen.Config) {
	var seconds, p50, p99, p999 float64
	var delivered uint64
	for b.Loop() {
		res, err := loadgen.Run(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		delivered += res.Delivered
		seconds += res.Seconds
		p50 += res.Latency.P50
		p99 += res.Latency.P99
		p999 += res.Latency.P999
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(delivered)/seconds, "events/s")
	b.ReportMetric(float64(delivered)*float64(cfg.Payload)/seconds/1e6, "MB/s")
	b.ReportMetric(p50/n, "p50-µs")
	b.ReportMetric(p99/n, "p99-µs")
	b.ReportMetric(p999/n, "p999-µs")
}
