package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

// ConnectConfig describes a run of connection attempts: each is a handshake, with TLS 1.3, and the authentication over
// it. Its numbers mean what they say; see [DefaultConnectConfig].
type ConnectConfig struct {
	Concurrency int     // callers, each with one attempt in flight
	Rate        float64 // attempts per second of an open loop, which start late if no caller is free; 0 is a closed loop
	Warmup      time.Duration
	Duration    time.Duration
	Timeout     time.Duration // of an attempt, which then counts as hung; 0 is that of the client

	Target    *Target                    // a broker that is there; nil starts one
	Processes int                        // 1 or 2, of a broker that is started
	Tune      func(*broker.Config) error // see [Config.Tune]

	Observer
}

// DefaultConnectConfig returns the load that runs without options.
func DefaultConnectConfig() ConnectConfig {
	return ConnectConfig{Concurrency: 4, Warmup: 500 * time.Millisecond, Duration: 5 * time.Second, Timeout: DefaultCallTimeout, Processes: 1}
}

// Validate reports every problem of the configuration.
func (c *ConnectConfig) Validate() error {
	var errs []error
	bad := func(cond bool, field, format string, args ...any) {
		if cond {
			errs = append(errs, &InvalidError{field, fmt.Sprintf(format, args...)})
		}
	}
	bad(c.Concurrency < 1 || c.Concurrency > maxPublishers, "Concurrency", "concurrency %d is not between 1 and %d", c.Concurrency, maxPublishers)
	bad(!(c.Rate >= 0 && c.Rate <= 1e9), "Rate", "rate %v is not between 0 and 1e9 attempts per second", c.Rate)
	bad(c.Interval < 0, "Interval", "interval %v", c.Interval)
	bad(c.Warmup < 0 || c.Duration <= 0, "Duration", "warm-up %v, duration %v", c.Warmup, c.Duration)
	bad(c.Timeout < 0, "Timeout", "timeout %v of an attempt is negative", c.Timeout)
	bad(c.Processes < 1 || c.Processes > 2, "Processes", "%d processes", c.Processes)
	return errors.Join(errs...)
}

// ConnectResult is the outcome of a run, in which no attempt was refused.
type ConnectResult struct {
	Concurrency int     `json:"concurrency"`
	OfferedRate float64 `json:"rate,omitempty"` // of an open loop
	Connections int64   `json:"connections"`
	Hung        int64   `json:"hung"`                   // attempts that had no answer by the timeout or the end of the run
	NotBegun    int64   `json:"not_begun"`              // of an open loop: attempts that were due, and no caller was free until the end of the run
	Rate        float64 `json:"connections_per_second"` // of those made in the measured time
	Seconds     float64 `json:"seconds"`
	Latency     Latency `json:"latency"`    // from the first packet, or when it was due, to the reply to the token, or as long as one waited
	LateCalls   int64   `json:"late_calls"` // of an open loop: attempts that began more than a millisecond late

	Config ConnectConfigResult `json:"config"`

	Measurement
}

// ConnectConfigResult is the part of [ConnectConfig] that a result is judged by.
type ConnectConfigResult struct {
	Concurrency int     `json:"concurrency"`
	Rate        float64 `json:"rate,omitempty"`
	Broker      string  `json:"broker"`         // "embedded", "process" or "external"
	Addr        string  `json:"addr,omitempty"` // of an external one
	Seconds     float64 `json:"duration_s"`
	Warmup      float64 `json:"warmup_s"`
	Timeout     float64 `json:"timeout_s"`
}

// Load says in one line what load the result is of.
func (r *ConnectResult) Load() string {
	s := "connections, " + plural(r.Concurrency, "caller")
	if r.OfferedRate > 0 {
		s += fmt.Sprintf(", open loop at %s/s", count(r.OfferedRate))
	}
	return s + brokerText(r.Config.Broker, r.Config.Addr)
}

// Parameters returns what a load is made of.
func (r *ConnectResult) Parameters() any { return r.Config }

// Metrics returns the figures that runs of this load are compared by.
func (r *ConnectResult) Metrics() []Metric {
	m := latencyMetrics("", &r.Latency)
	if r.OfferedRate > 0 { // the rate is given
		return m
	}
	return append([]Metric{{Name: "connections", Unit: "/s", Value: r.Rate, HigherIsBetter: true}}, m...)
}

// WriteText writes the result for people.
func (r *ConnectResult) WriteText(out io.Writer) error {
	w := &lines{out: out}
	w.printf("load       %s", r.Load())
	w.printf("broker     %s", r.Broker.String())
	w.printf("machine    %s", r.Environment.String())
	w.printf("")
	w.printf("connected  %s times, %s/s over %.2f s, none failed", count(float64(r.Connections)), count(r.Rate), r.Seconds)
	if note := withoutAnswer(r.Hung, r.NotBegun); note != "" {
		w.printf("hung       %s", note)
	}
	w.printf("latency    %s", r.Latency.text())
	if r.OfferedRate > 0 {
		w.printf("pacing     %d attempts more than %v late", r.LateCalls, lateAfter)
	}
	return w.err
}

// RunConnect loads a broker with connections. An attempt that fails ends the run.
func RunConnect(ctx context.Context, cfg ConnectConfig) (*ConnectResult, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b, err := startBroker(ctx, Config{Target: cfg.Target, Processes: cfg.Processes, Tune: cfg.Tune})
	if err != nil {
		return nil, err
	}
	l := callLoad{
		workers: cfg.Concurrency, rate: cfg.Rate, warmup: cfg.Warmup, duration: cfg.Duration, observer: cfg.Observer, broker: b,
		timeout: cfg.Timeout, kinds: []callShare{{"connect", 1}}, alarm: newAlarm,
		next: func(int) int { return 0 },
		call: func(ctx context.Context, _, _ int) (called, error) {
			began := time.Now()
			c, err := client.Connect(ctx, b.target.Addr, client.WithTLS(b.target.TLS), client.WithToken(b.target.Tenant, b.target.Token))
			took := time.Since(began)
			if err == nil {
				err = c.Close()
			}
			if err != nil {
				return called{}, fmt.Errorf("loadgen: connecting: %w", err)
			}
			return called{took: took, keys: 1}, nil
		},
	}
	calls, err := l.run(ctx)
	counters, stopErr := b.stop()
	if err = errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	k := &calls.kinds[0]
	if k.ended == 0 && k.hung > 0 {
		return nil, &NoAnswerError{Calls: k.hung}
	}
	r := &ConnectResult{
		Concurrency: cfg.Concurrency, OfferedRate: cfg.Rate, Seconds: calls.seconds, Latency: k.lat.summary(),
		Connections: k.ended, Hung: k.hung, NotBegun: k.notBegun, Rate: float64(k.keysInTime) / calls.seconds,
		LateCalls: calls.late, Measurement: calls.Measurement,
	}
	r.Config = ConnectConfigResult{
		Concurrency: cfg.Concurrency, Rate: cfg.Rate, Seconds: cfg.Duration.Seconds(), Warmup: cfg.Warmup.Seconds(), Timeout: cfg.Timeout.Seconds(),
	}
	r.Config.Broker, r.Config.Addr = brokerOf(cfg.Target, cfg.Processes)
	r.Broker = b.info
	r.Broker.BrokerCounters = counters
	return r, nil
}
