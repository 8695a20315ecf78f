package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/plot"
)

// Names of what is measured in addition to the peers.
const (
	felixName = "felix"
	relayName = "relay"
	pipeName  = "pipe"
)

// suite is a table that this program prints.
type suite struct {
	name     string
	about    string
	rows     func(full bool) []row
	against  string // what Felix is measured by
	swept    bool   // each system runs with the settings that a sweep found
	defaults options
	// report writes the table, and plots returns its pictures by their names.
	report func(out io.Writer, o *options, results []outcome)
	plots  func(o *options, results []outcome) (map[string]*plot.Picture, error)
}

var suites = []suite{floorSuite, peersSuite, matrixSuite}

// metric is a figure of a run, and what Felix is wanted to reach in it.
type metric struct {
	name   string
	lower  bool   // is better
	form   string // of its figures; empty is %.0f
	of     func(*outcome) float64
	limits map[string]limit // by the system that Felix is compared with
}

// Figures that the tables have. Those of latency are in µs.
var (
	throughput = metric{name: "MB/s", of: func(o *outcome) float64 { return o.Result.DeliveredBytesPerSecond / 1e6 }}
	cpu        = metric{name: "CPU s/GB", lower: true, form: "%.1f", of: func(o *outcome) float64 { return o.cpuPerGB() }}
	deliveries = metric{name: "deliveries/s", of: func(o *outcome) float64 { return o.Result.DeliveredPerSecond }}
	p50        = metric{name: "p50 µs", lower: true, of: func(o *outcome) float64 { return o.Result.Latency.P50 }}
	p99        = metric{name: "p99 µs", lower: true, of: func(o *outcome) float64 { return o.Result.Latency.P99 }}
	p999       = metric{name: "p999 µs", lower: true, of: func(o *outcome) float64 { return o.Result.Latency.P999 }}
)

func (m metric) wanted(limits map[string]limit) metric {
	m.limits = limits
	return m
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

// shape is a load of one publisher. Its fields mean what those of [loadgen.Config] mean, but that no warm-up is a
// batch.
type shape struct {
	Fanout  int `json:"fanout"`
	Conns   int `json:"conns"` // of the subscriptions; the publisher has one of its own
	Payload int `json:"payload"`
	Batch   int `json:"batch"`
	Window  int `json:"window"`

	Kind        loadgen.PayloadKind `json:"kind"`
	Volume      int                 `json:"volume,omitempty"`
	Warmup      time.Duration       `json:"warmup_ns"`
	Duration    time.Duration       `json:"duration_ns"`
	MaxDuration time.Duration       `json:"max_duration_ns"`
}

func (s shape) config() loadgen.Config {
	return loadgen.Config{
		Fanout: s.Fanout, Conns: s.Conns, Payload: s.Payload, Batch: s.Batch, Window: s.Window, Kind: s.Kind, Volume: s.Volume,
		Warmup: max(s.Warmup, 1), Duration: s.Duration, MaxDuration: s.MaxDuration,
	}
}

// row is one shape and the metrics that are printed for it.
type row struct {
	name    string
	load    shape // without times
	metrics []metric
}

// shape has the window of a system's settings and the times of a run. One that is slow to move the volume that a rate
// needs gets more.
func (r *row) shape(o *options, set settings) shape {
	s := set.shape(r.load)
	s.Warmup, s.Duration, s.MaxDuration = o.warmup, o.duration, max(o.maxDuration, o.duration)
	return s
}

// systems are those that the row is measured with, in order.
func (r *row) systems(against []string) []string {
	if r.name == pipeName {
		return []string{pipeName}
	}
	return slices.Concat([]string{felixName}, against)
}

// usualInFlight is about how many bytes of payload are under way at once in a run of batches. It is less than all the
// windows and queues together: the transport's own limits decide nothing, and nothing is lost.
const usualInFlight = 1 << 20

// batches is a shape of throughput: batches of 64, with about usualInFlight bytes under way, two batches at least and
// 16 at most.
func batches(payload, fanout, conns int) shape {
	const batch = 64
	window := min(max(usualInFlight/(batch*payload), 2), 16)
	return shape{Fanout: fanout, Conns: conns, Payload: payload, Batch: batch, Window: window}
}

// single is a shape of latency: one event is under way, and the next leaves when all subscriptions have it.
func single(payload, fanout, conns int) shape {
	return shape{Fanout: fanout, Conns: conns, Payload: payload, Batch: 1, Window: 1}
}

// documents are the same with payloads that can be compressed, which Felix then does.
func documents(s shape) shape {
	s.Kind = loadgen.JSON
	return s
}

func rowOf(s shape, metrics ...metric) row {
	kind := "throughput"
	switch {
	case s.Window == 1:
		kind = "latency"
	case s.Kind == loadgen.JSON:
		kind = "json"
	}
	return row{
		name: fmt.Sprintf("%s/payload=%d/fanout=%d/conns=%d", kind, s.Payload, s.Fanout, s.Conns),
		load: s, metrics: metrics,
	}
}
