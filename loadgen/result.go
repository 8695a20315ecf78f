package loadgen

import (
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// Result is what a run measured. Its JSON form is stable: members are added, not renamed.
type Result struct {
	Config ConfigResult `json:"config"`

	Published   uint64 `json:"published"`   // measured events
	Expected    uint64 `json:"expected"`    // published × fanout
	Delivered   uint64 `json:"delivered"`   // events received by all subscriptions together
	Dropped     uint64 `json:"dropped"`     // events that did not come, if drops were allowed
	Unaccounted uint64 `json:"unaccounted"` // expected − delivered − dropped; 0 in a valid run

	// Latency is from the publish, or in an open loop from when it was due, to the receipt, of every delivery.
	Latency Latency `json:"latency"`

	Seconds                 float64 `json:"seconds"` // from the first measured publish to the last receipt
	PublishedPerSecond      float64 `json:"published_per_second"`
	DeliveredPerSecond      float64 `json:"delivered_per_second"`
	DeliveredBytesPerSecond float64 `json:"delivered_bytes_per_second"` // of payload

	// Open loops only: batches that left more than a millisecond late, and how late all left.
	LateBatches int64    `json:"late_batches"`
	SendLag     *Latency `json:"send_lag,omitempty"`

	// LongestPublish is the longest time in µs from when a batch left or was due to its acknowledgement, if each batch
	// was acknowledged.
	LongestPublish float64 `json:"longest_publish_us,omitempty"`

	PacketsLost      int64 `json:"packets_lost"`       // of those that publisher and subscriptions sent
	UDPReceiveErrors int64 `json:"udp_receive_errors"` // dropped for lack of space on this machine, by all processes

	Measurement
}

// ConfigResult is the part of [Config] that a result is judged by, with defaults filled in.
type ConfigResult struct {
	Topics      int     `json:"topics"`
	Publishers  int     `json:"publishers"`
	Streams     int     `json:"streams"`
	Fanout      int     `json:"fanout"`
	Payload     int     `json:"payload"`
	PayloadKind string  `json:"payload_kind"`
	Batch       int     `json:"batch"`
	Window      int     `json:"window"`         // batches in flight; 0 is unbounded
	Rate        float64 `json:"rate,omitempty"` // events per second of an open loop
	Conns       int     `json:"conns"`
	SlowSubs    int     `json:"slow_subs"`
	SlowMode    string  `json:"slow_mode,omitempty"`
	AllowDrops  bool    `json:"allow_drops"`
	Compress    bool    `json:"compress"`
	Seed        uint64  `json:"seed"`
	Broker      string  `json:"broker"`          // "embedded", "process", "external" or "other"
	Addr        string  `json:"addr,omitempty"`  // of an external one
	Total       int64   `json:"total,omitempty"` // measured events, in place of a duration
	Seconds     float64 `json:"duration_s"`
	Warmup      float64 `json:"warmup_s"`
}

// brokerOf says where the broker of a run is, in the words of [BrokerInfo].
func brokerOf(t *Target, processes int) (kind, addr string) {
	switch {
	case t != nil:
		return "external", t.Addr
	case processes == 2:
		return "process", ""
	}
	return "embedded", ""
}

// brokerText is the part of a load that tells brokers apart.
func brokerText(kind, addr string) string {
	switch kind {
	case "external":
		return ", broker at " + addr
	case "process":
		return ", broker in a process of its own"
	}
	return ""
}

func describe(c Config) ConfigResult {
	r := ConfigResult{
		Topics: c.Topics, Publishers: c.Publishers, Streams: c.Streams,
		Fanout: c.Fanout, Payload: c.Payload, PayloadKind: c.Kind.String(), Batch: c.Batch, Window: max(c.Window, 0),
		Rate: c.Rate, Conns: c.Conns, SlowSubs: c.SlowSubs, AllowDrops: c.AllowDrops,
		Compress: c.Compress, Seed: c.Seed, Total: c.Total, Seconds: c.Duration.Seconds(), Warmup: c.Warmup.Seconds(),
	}
	r.Broker, r.Addr = brokerOf(c.Target, c.Processes)
	if c.SlowSubs > 0 {
		r.SlowMode = string(c.SlowMode)
	}
	return r
}

// Load says in one line what load the result is of.
func (r *Result) Load() string {
	c := &r.Config
	s := fmt.Sprintf("fanout %d over %s, payload %d B %s, batch %d, ", c.Fanout, plural(c.Conns, "connection"), c.Payload, c.PayloadKind, c.Batch)
	switch {
	case c.Rate > 0:
		s += fmt.Sprintf("open loop at %s msg/s", count(c.Rate))
	case c.Window == 0:
		s += "window unbounded"
	default:
		s += fmt.Sprintf("window %d", c.Window)
	}
	if c.Topics > 1 || c.Publishers > 1 || c.Streams > 1 {
		s += fmt.Sprintf(", %s with %s each over %s", plural(c.Topics, "topic"), plural(c.Publishers, "publisher"), plural(c.Streams, "stream"))
	}
	if c.SlowSubs > 0 {
		s += fmt.Sprintf(", %s (%s)", plural(c.SlowSubs, "slow subscription"), c.SlowMode)
	}
	if c.AllowDrops {
		s += ", drops allowed"
	}
	if c.Compress {
		s += ", compressed"
	}
	return s + brokerText(c.Broker, c.Addr)
}

// Parameters returns what a load is made of.
func (r *Result) Parameters() any { return r.Config }

// Metrics returns the figures that runs of this load are compared by.
func (r *Result) Metrics() []Metric {
	m := latencyMetrics("", &r.Latency)
	if r.Config.Rate > 0 { // the rate is given
		return m
	}
	return append([]Metric{{Name: "delivered", Unit: "msg/s", Value: r.DeliveredPerSecond, HigherIsBetter: true}}, m...)
}

// Metric is one figure of a result.
type Metric struct {
	Name           string  `json:"name"`
	Unit           string  `json:"unit"`
	Value          float64 `json:"value"`
	HigherIsBetter bool    `json:"higher_is_better"`
}

// latencyMetrics are those of a series. Tails beyond p99 are not among them: of few trials they tell little.
func latencyMetrics(prefix string, l *Latency) []Metric {
	return []Metric{
		{Name: prefix + "p50", Unit: "µs", Value: l.P50},
		{Name: prefix + "p99", Unit: "µs", Value: l.P99},
	}
}

// WriteText writes the result for people.
func (r *Result) WriteText(out io.Writer) error {
	w := &lines{out: out}
	c := &r.Config
	w.printf("load       %s", r.Load())
	if c.SlowSubs > 0 {
		w.printf("slow       the broker dropped %s events", count(float64(r.Broker.DroppedEvents)))
	}
	w.printf("broker     %s", r.Broker.String())
	w.printf("machine    %s", r.Environment.String())
	w.printf("")
	w.printf("published  %s events, %s/s", count(float64(r.Published)), count(r.PublishedPerSecond))
	w.printf("delivered  %s of %s, %s msg/s, %.1f MB/s over %.2f s", count(float64(r.Delivered)),
		count(float64(r.Expected)), count(r.DeliveredPerSecond), r.DeliveredBytesPerSecond/1e6, r.Seconds)
	if c.AllowDrops {
		w.printf("drops      %s, unaccounted %d", count(float64(r.Dropped)), r.Unaccounted)
	} else {
		w.printf("lossless   unaccounted %d", r.Unaccounted)
	}
	w.printf("latency    %s", r.Latency.text())
	if r.Latency.Clamped > 0 {
		w.printf("           %s samples were outside 0 to %v", count(float64(r.Latency.Clamped)), maxLatency)
	}
	if r.SendLag != nil {
		w.printf("pacing     %d batches more than %v late; sent after their time by p50 %s  p99 %s  max %s",
			r.LateBatches, lateAfter, micros(r.SendLag.P50), micros(r.SendLag.P99), micros(r.SendLag.Max))
	}
	w.printf("network    %d packets lost by the load generator, %s by the broker, %d UDP datagrams dropped by this machine",
		r.PacketsLost, r.Broker.losses(), r.UDPReceiveErrors)
	if c.Rate == 0 && (c.Window != 1 || c.Batch != 1) {
		w.printf("")
		w.printf("Latencies under full load are mostly time in queues. See them without with --batch 1 --window 1,")
		w.printf("and at a load of your choice with --rate.")
	}
	return w.err
}

// lines writes lines until one cannot be written.
type lines struct {
	out io.Writer
	err error
}

func (l *lines) printf(format string, args ...any) {
	if l.err == nil {
		_, l.err = fmt.Fprintf(l.out, format+"\n", args...)
	}
}

func (l *Latency) text() string {
	return fmt.Sprintf("p50 %s  p90 %s  p99 %s  p999 %s  max %s  mean %s",
		micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max), micros(l.Mean))
}

// withoutAnswer says how many calls had no answer, or nothing if all had one.
func withoutAnswer(hung, notBegun int64) string {
	if hung == 0 && notBegun == 0 {
		return ""
	}
	s := fmt.Sprintf("%s calls had no answer by the timeout or the end of the run", count(float64(hung)))
	if notBegun > 0 {
		s += fmt.Sprintf(", %s were due and never begun, since no caller was free", count(float64(notBegun)))
	}
	return s + "; they count with the time that they have waited"
}

// micros writes microseconds in the unit that suits their size.
func micros(us float64) string {
	switch {
	case us < 1e4:
		return fmt.Sprintf("%.0f µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.2f s", us/1e6)
}

func count(n float64) string { return humanize.Comma(int64(n + 0.5)) }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// String is the state of a run as one short line.
func (p Progress) String() string {
	if p.WarmingUp {
		return fmt.Sprintf("warming up %5.1f s", p.Elapsed.Seconds())
	}
	s := fmt.Sprintf("%5.1f s  %s/s  p99 %s  %s dropped", p.Elapsed.Seconds(), count(p.Rate), micros(p.P99), count(float64(p.Dropped)))
	if p.Remaining > 0 {
		s += fmt.Sprintf("  %v to go", p.Remaining.Round(time.Second))
	}
	return s
}
