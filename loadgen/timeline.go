package loadgen

import (
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/internal/child"
)

// Measurement is what the results of all scenarios have in common.
type Measurement struct {
	Broker      BrokerInfo  `json:"broker"`
	Environment Environment `json:"environment"`
	Intervals   []Interval  `json:"intervals,omitempty"`

	// Series are all latencies by what was measured, in nanoseconds.
	Series []Series `json:"-"`
}

// Series is all latencies of one kind, which is also the histogram's tag.
type Series struct {
	Tag       string
	Histogram *hdrhistogram.Histogram
}

// Measured returns m, by which results of all scenarios can be told alike.
func (m *Measurement) Measured() *Measurement { return m }

// Interval is what happened between two moments of a measurement.
type Interval struct {
	Start   float64 `json:"start_s"` // since the measurement began
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"per_second"` // deliveries or calls
	Dropped uint64  `json:"dropped"`    // events that the broker's queues dropped, if it was started for the run
	Latency Latency `json:"latency"`

	Process Resources  `json:"process"`          // of this process, at the end
	Server  *Resources `json:"server,omitempty"` // of the broker's, if it has one of its own and was started for the run
}

// Resources are what a process holds at one moment.
type Resources = child.Resources

// recorder is the histogram of one worker, which is taken away at the end of each interval. The lock costs the worker
// little, since nobody else wants it but then, and for as long as it takes to exchange two pointers.
type recorder struct {
	mu  sync.Mutex
	lat latencies // guarded by mu
}

func (r *recorder) record(ns, n int64) {
	r.mu.Lock()
	r.lat.record(ns, n)
	r.mu.Unlock()
}

// exchange leaves an empty histogram in place of the one that it returns.
func (r *recorder) exchange(empty latencies) latencies {
	r.mu.Lock()
	defer r.mu.Unlock()
	full := r.lat
	r.lat = empty
	return full
}

// timeline gathers what all workers record, by interval and altogether. Workers are added before it begins; then it has
// one owner at a time.
type timeline struct {
	observer Observer
	broker   *startedBroker // nil if it is not Felix
	base     time.Time      // of all moments here
	series   []*series

	start, last int64 // of the measurement and the current interval, ns
	dropped     uint64
	intervals   []Interval
	spare       latencies // empty
	one, sum    latencies // of an interval; empty otherwise
}

type series struct {
	tag       string
	recorders []*recorder
	total     latencies
}

func newTimeline(o Observer, b *startedBroker, base time.Time, tags ...string) *timeline {
	t := &timeline{observer: o, broker: b, base: base, spare: newLatencies(), one: newLatencies(), sum: newLatencies()}
	for _, tag := range tags {
		t.series = append(t.series, &series{tag: tag, total: newLatencies()})
	}
	return t
}

// recorder adds a worker to a series.
func (t *timeline) recorder(series int) *recorder {
	r := &recorder{lat: newLatencies()}
	t.series[series].recorders = append(t.series[series].recorders, r)
	return r
}

// begin starts the first interval.
func (t *timeline) begin(now int64) {
	t.start, t.last = now, now
	t.dropped = t.brokerSample().DroppedEvents
}

func (t *timeline) brokerSample() brokerSample {
	if t.broker == nil {
		return brokerSample{}
	}
	return t.broker.sample()
}

// due reports whether the current interval has ended.
func (t *timeline) due(now int64) bool { return now-t.last >= int64(t.observer.Interval) }

// end ends the current interval.
func (t *timeline) end(now int64) {
	for _, s := range t.series {
		for _, r := range s.recorders {
			full := r.exchange(t.spare)
			t.one.merge(&full)
			full.reset()
			t.spare = full
			runtime.Gosched() // what is measured goes on meanwhile
		}
		if t.observer.OnInterval != nil {
			h := t.one.histogram()
			h.SetTag(s.tag)
			h.SetStartTimeMs(t.base.Add(time.Duration(t.last)).UnixMilli())
			h.SetEndTimeMs(t.base.Add(time.Duration(now)).UnixMilli())
			t.observer.OnInterval(h)
		}
		s.total.merge(&t.one)
		t.sum.merge(&t.one)
		t.one.reset()
	}
	sample := t.brokerSample()
	i := Interval{
		Start: time.Duration(t.last - t.start).Seconds(), Seconds: time.Duration(now - t.last).Seconds(),
		Dropped: max(sample.DroppedEvents, t.dropped) - t.dropped, Latency: t.sum.summary(), Process: child.Held(), Server: sample.Resources,
	}
	if i.Seconds > 0 {
		i.Rate = float64(i.Latency.Samples) / i.Seconds
	}
	t.intervals = append(t.intervals, i)
	t.last, t.dropped = now, max(sample.DroppedEvents, t.dropped)
	t.sum.reset()
}

// p99 is that of the last interval that has ended, in microseconds.
func (t *timeline) p99() float64 {
	if len(t.intervals) == 0 {
		return 0
	}
	return t.intervals[len(t.intervals)-1].Latency.P99
}

// measurement is what the timeline has gathered.
func (t *timeline) measurement() Measurement {
	m := Measurement{Environment: CurrentEnvironment(), Intervals: t.intervals}
	for _, s := range t.series {
		if !s.total.empty() {
			m.Series = append(m.Series, Series{s.tag, s.total.histogram()})
		}
	}
	return m
}
