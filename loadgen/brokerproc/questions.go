package brokerproc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"time"

	"github.com/google/pprof/profile"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/child"
)

// question is what a [Process] asks the broker's process.
type question struct {
	Ask     string
	Names   []string `json:",omitempty"` // of streams, or of a profile
	Durable bool     `json:",omitempty"` // streams
}

// What is asked.
const (
	askMetrics         = "metrics"
	askResources       = "resources"
	askCPUTime         = "cpu time"
	askMemory          = "memory"
	askProfile         = "profile" // of that name in runtime/pprof
	askContention      = "contention"
	askStartTrace      = "start trace"
	askTrace           = "trace"
	askStartCPUProfile = "start cpu profile"
	askCPUProfile      = "cpu profile"
	askAddStreams      = "add streams"
)

// answerer answers in the broker's process.
type answerer struct {
	dev        *broker.Dev
	cpu, trace bytes.Buffer // the CPU profile and the trace under way
}

// serve answers until there are no more questions.
func (a *answerer) serve(parent *child.Parent) error {
	for {
		var q question
		if err := parent.Receive(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		answer, err := a.answer(q)
		if err != nil {
			return fmt.Errorf("brokerproc: %s: %w", q.Ask, err)
		}
		if err := parent.Send(answer); err != nil {
			return err
		}
	}
}

func (a *answerer) answer(q question) (any, error) {
	switch q.Ask {
	case askMetrics:
		return Metrics(a.dev.Broker)
	case askResources:
		return child.Held(), nil
	case askCPUTime:
		return child.CPUTime()
	case askMemory:
		return memory(), nil
	case askProfile:
		collect()
		var b bytes.Buffer
		err := pprof.Lookup(q.Names[0]).WriteTo(&b, 0)
		return b.Bytes(), err
	case askContention:
		runtime.SetMutexProfileFraction(1)
		runtime.SetBlockProfileRate(1)
		return true, nil
	case askStartTrace:
		return true, trace.Start(&a.trace)
	case askTrace:
		trace.Stop()
		return a.trace.Bytes(), nil
	case askStartCPUProfile:
		a.cpu.Reset()
		return true, pprof.StartCPUProfile(&a.cpu)
	case askCPUProfile:
		pprof.StopCPUProfile()
		return a.cpu.Bytes(), nil
	case askAddStreams:
		add := a.dev.AddStream
		if q.Durable {
			add = a.dev.AddDurableStream
		}
		var errs []error
		for _, name := range q.Names {
			errs = append(errs, add(a.dev.Tenant, a.dev.Namespace, name))
		}
		return true, errors.Join(errs...)
	}
	return nil, fmt.Errorf("brokerproc: asked for %q", q.Ask)
}

// Metrics returns the counters and gauges of a broker, summed over their labels.
func Metrics(b *broker.Broker) (map[string]float64, error) {
	families, err := b.Registry().Gather()
	if err != nil {
		return nil, fmt.Errorf("brokerproc: reading the broker's metrics: %w", err)
	}
	all := make(map[string]float64, len(families))
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all, nil
}

// collect frees garbage, what pools and finalizers hold included, and completes the profile of allocations, which lags
// by two collections.
func collect() {
	for range 3 {
		runtime.GC()
	}
}

// Memory is what a broker's process holds after a collection.
type Memory struct {
	Heap, Stacks int64 // bytes
	Goroutines   int
}

func memory() Memory {
	collect()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return Memory{Heap: int64(m.HeapAlloc), Stacks: int64(m.StackInuse), Goroutines: runtime.NumGoroutine()}
}

// ask puts a question and reads the answer.
func (p *Process) ask(q question, answer any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc.Ask(q, answer)
}

// Metrics returns the broker's counters and gauges, as the function of that name does.
func (p *Process) Metrics() (m map[string]float64, err error) {
	err = p.ask(question{Ask: askMetrics}, &m)
	return m, err
}

// Resources returns what the broker's process holds, garbage included.
func (p *Process) Resources() (r child.Resources, err error) {
	err = p.ask(question{Ask: askResources}, &r)
	return r, err
}

// CPUTime returns the processor time that the broker's process has used.
func (p *Process) CPUTime() (d time.Duration, err error) {
	err = p.ask(question{Ask: askCPUTime}, &d)
	return d, err
}

// Memory returns what the broker's process holds.
func (p *Process) Memory() (m Memory, err error) {
	err = p.ask(question{Ask: askMemory}, &m)
	return m, err
}

// ExactAllocations is a variable for [Start] that makes [Process.Allocations] count every allocation, and the broker
// slow.
const ExactAllocations = "GODEBUG=memprofilerate=1"

// SampledAllocations makes it count one in 4 KiB, which hardly slows the broker.
const SampledAllocations = "GODEBUG=memprofilerate=4096"

// Allocations returns the profile of what the broker's process has allocated so far and of what it holds of that.
func (p *Process) Allocations() (*profile.Profile, error) { return p.Profile("allocs") }

// Profile returns a profile of the broker's process by its name in runtime/pprof, after a collection.
func (p *Process) Profile(name string) (*profile.Profile, error) {
	var b []byte
	if err := p.ask(question{Ask: askProfile, Names: []string{name}}, &b); err != nil {
		return nil, err
	}
	return profile.ParseData(b)
}

// RecordContention makes the profiles "mutex" and "block" record every wait from here on, which slows the broker.
func (p *Process) RecordContention() error {
	var ok bool
	return p.ask(question{Ask: askContention}, &ok)
}

// StartTrace begins an execution trace that [Process.Trace] ends.
func (p *Process) StartTrace() error {
	var ok bool
	return p.ask(question{Ask: askStartTrace}, &ok)
}

// Trace returns what the broker's process has done since [Process.StartTrace], for go tool trace.
func (p *Process) Trace() (b []byte, err error) {
	err = p.ask(question{Ask: askTrace}, &b)
	return b, err
}

// StartCPUProfile begins a profile that [Process.CPUProfile] ends.
func (p *Process) StartCPUProfile() error {
	var ok bool
	return p.ask(question{Ask: askStartCPUProfile}, &ok)
}

// CPUProfile returns what the broker's process has spent its time on since [Process.StartCPUProfile].
func (p *Process) CPUProfile() (*profile.Profile, error) {
	var b []byte
	if err := p.ask(question{Ask: askCPUProfile}, &b); err != nil {
		return nil, err
	}
	return profile.ParseData(b)
}

// AddStreams makes streams, more than an environment variable holds.
func (p *Process) AddStreams(names []string) error {
	var ok bool
	return p.ask(question{Ask: askAddStreams, Names: names}, &ok)
}

// AddDurableStreams makes durable streams of a broker that has a data directory.
func (p *Process) AddDurableStreams(names []string) error {
	var ok bool
	return p.ask(question{Ask: askAddStreams, Names: names, Durable: true}, &ok)
}
