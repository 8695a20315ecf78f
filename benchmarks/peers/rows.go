package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/felix-mq/felix/benchmarks/floor/drive"
)

// Names of what is measured.
const (
	felixName = "felix"
	relayName = "relay"
	natsName  = "nats"
	pipeName  = "pipe"
)

// metric is a figure of a run, and what Felix is wanted to reach in it.
type metric struct {
	name   string
	of     func(*outcome) float64
	limits map[string]limit // by the system that Felix is compared with
}

// limit bounds the ratio of Felix's figure to another system's.
type limit struct {
	atLeast bool
	value   float64
}

func (l limit) String() string {
	if l.atLeast {
		return fmt.Sprintf("≥ %.2f", l.value)
	}
	return fmt.Sprintf("≤ %.2f", l.value)
}

// met allows for the two digits that are printed.
func (l limit) met(ratio float64) bool {
	ratio = math.Round(ratio*100) / 100
	if l.atLeast {
		return ratio >= l.value
	}
	return ratio <= l.value
}

// row is one shape and what is told of it.
type row struct {
	name    string
	load    drive.Shape // without times
	metrics []metric
}

func (r *row) shape(o *options) drive.Shape {
	s := r.load
	// A slow machine gets more time for the volume that a rate needs.
	s.Warmup, s.Duration, s.MaxDuration = o.warmup, o.duration, 3*o.duration
	return s
}

// systems are those that the row is measured with, in order.
func (r *row) systems(against []string) []string {
	if r.name == pipeName {
		return []string{pipeName}
	}
	return slices.Concat([]string{felixName}, against)
}

// inFlight is about how many bytes of payload are under way at once in a run of batches. It is less than all the windows
// and queues together: the transport's own limits decide nothing, and nothing is lost.
const inFlight = 1 << 20

// rows are all shapes, with the budget of the project: throughput in batches of 64, then a closed loop of single events.
func rows() []row {
	var all []row
	for _, payload := range []int{256, 4096} {
		for _, fanout := range []int{1, 10, 64} {
			limits := map[string]limit{relayName: {true, 0.90}}
			switch {
			case fanout > 1 && payload == 256:
				limits[natsName] = limit{true, 2.0}
			case fanout > 1:
				limits[natsName] = limit{true, 0.92}
			}
			s := drive.Shape{Fanout: fanout, Conns: min(fanout, 8), Payload: payload, Batch: 64}
			s.Window = min(16, inFlight/(s.Batch*s.Payload))
			all = append(all, row{name: nameOf(s), load: s, metrics: []metric{{
				"MB/s", func(o *outcome) float64 { return o.Result.DeliveredBytesPerSecond / 1e6 }, limits,
			}}})
		}
	}
	for _, l := range []struct {
		fanout, conns  int
		p50, p99, p999 float64 // against NATS; 0 is none
	}{
		{1, 1, 0.7, 1.0, 1.0},
		{10, 8, 0.7, 1.0, 1.0},
		{64, 8, 1.2, 0, 0.5},
		{64, 64, 0.9, 1.0, 1.0},
	} {
		s := drive.Shape{Fanout: l.fanout, Conns: l.conns, Payload: 1024, Batch: 1, Window: 1}
		limits := func(relay, nats float64) map[string]limit {
			m := map[string]limit{}
			for name, value := range map[string]float64{relayName: relay, natsName: nats} {
				if value > 0 {
					m[name] = limit{false, value}
				}
			}
			return m
		}
		all = append(all, row{name: nameOf(s), load: s, metrics: []metric{
			{"p50 µs", func(o *outcome) float64 { return o.Result.Latency.P50 }, limits(1.15, l.p50)},
			{"p99 µs", func(o *outcome) float64 { return o.Result.Latency.P99 }, limits(0, l.p99)},
			{"p999 µs", func(o *outcome) float64 { return o.Result.Latency.P999 }, limits(1.25, l.p999)},
		}})
	}
	return append(all, row{name: pipeName, load: drive.Shape{Fanout: 1, Conns: 1}})
}

func nameOf(s drive.Shape) string {
	kind := "throughput"
	if s.Window == 1 {
		kind = "latency"
	}
	return fmt.Sprintf("%s/payload=%d/fanout=%d/conns=%d", kind, s.Payload, s.Fanout, s.Conns)
}
