package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/felix-mq/felix/benchmarks/floor"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/loadgen"
)

const workerName = "worker"

// job is one run for a worker.
type job struct {
	System string   `json:"system"`
	Shape  shape    `json:"shape"`
	Set    settings `json:"settings"`
}

// outcome is what a run came to.
type outcome struct {
	Round  int    `json:"round"`
	Row    string `json:"row"`
	System string `json:"system"`

	// How the system was set up, and whether that is the outcome of a sweep.
	Settings settings `json:"settings,omitempty"`
	Swept    bool     `json:"swept,omitempty"`

	Error  string            `json:"error,omitempty"` // why there is nothing else
	Result *loadgen.Result   `json:"result,omitempty"`
	Pipe   *floor.PipeResult `json:"pipe,omitempty"`
	// CPUSeconds is the processor time of all processes of the run, their start and end included. It tells more than
	// rates do on a machine that is not quiet.
	CPUSeconds float64 `json:"cpu_seconds"`
	// What the kernel counted meanwhile, on the whole machine.
	UDPDropped       int64 `json:"udp_dropped"`       // datagrams that did not fit into a socket's buffer
	TCPRetransmitted int64 `json:"tcp_retransmitted"` // segments
}

func (o *outcome) summary() string {
	switch {
	case o.Error != "":
		return o.Error
	case o.Pipe != nil:
		return fmt.Sprintf("%.0f MB/s", o.Pipe.BytesPerSecond/1e6)
	case o.Result.Config.Window == 1:
		l := &o.Result.Latency
		return fmt.Sprintf("%.0f/%.0f/%.0f µs", l.P50, l.P99, l.P999)
	}
	return fmt.Sprintf("%.0f MB/s, %.1f CPU-s/GB", o.Result.DeliveredBytesPerSecond/1e6, o.cpuPerGB())
}

// cpuPerGB is the processor time for each gigabyte of payload that was delivered in the measured time.
func (o *outcome) cpuPerGB() float64 {
	return o.CPUSeconds / (float64(o.Result.Delivered) * float64(o.Result.Config.Payload) / 1e9)
}

// grace is what a run may take beyond the times in its shape, to start, to wait for what is in flight, and to end.
const grace = 20 * time.Second

func (j *job) timeout() time.Duration { return j.Shape.Warmup + j.Shape.MaxDuration + grace }

// procsVar is the variable that the Go runtime reads.
const procsVar = "GOMAXPROCS"

// procsValue is empty, which the runtime takes for its own choice, for 0.
func procsValue(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// runWorker carries a run out in a fresh process. It is over when that process and what it started have gone.
func runWorker(ctx context.Context, o *options, j job) (*outcome, error) {
	// The worker has its own, shorter limit.
	ctx, cancel := context.WithTimeout(ctx, j.timeout()+2*grace)
	defer cancel()
	var out outcome
	p, err := child.Start(ctx, workerName, j, []string{"GOGC=" + o.gogc, procsVar + "=" + procsValue(j.Set[loadProcs])}, &out)
	if err != nil {
		return nil, err
	}
	if out.Error != "" {
		err = errors.New(out.Error)
	}
	err = errors.Join(err, p.Stop(nil))
	out.CPUSeconds = p.CPUTime().Seconds()
	return &out, err
}

// serveWorker is a worker's process: publisher and subscriptions of one run. It is ready when that is over.
func serveWorker(ctx context.Context, j job, parent *child.Parent) (any, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, j.timeout(), fmt.Errorf("no end after %v", j.timeout()))
	defer cancel()
	// For the processes that this one starts. Its own number was settled when it began.
	if err := os.Setenv(procsVar, procsValue(j.Set[serverProcs])); err != nil {
		return nil, err
	}
	udp, tcp := udpDropped(), tcpRetransmitted()
	out, err := carryOut(ctx, j)
	if err != nil {
		return nil, parent.Send(outcome{Error: err.Error()})
	}
	out.UDPDropped, out.TCPRetransmitted = udpDropped()-udp, tcpRetransmitted()-tcp
	return nil, parent.Send(out)
}

func udpDropped() int64       { return loadgen.KernelCounter("Udp:", "InErrors") }
func tcpRetransmitted() int64 { return loadgen.KernelCounter("Tcp:", "RetransSegs") }

func carryOut(ctx context.Context, j job) (out *outcome, err error) {
	out = &outcome{}
	switch baseName(j.System) {
	case felixName:
		out.Result, err = runFelix(ctx, j.Shape)
	case relayName:
		out.Result, err = floor.RunRelay(ctx, j.Shape.config(), nil)
	case pipeName:
		out.Pipe, err = floor.RunPipe(ctx, j.Shape.Warmup, j.Shape.Duration, nil)
	default:
		p, secure := peerOf(j.System)
		if p == nil {
			return nil, fmt.Errorf("unknown system %q", j.System)
		}
		out.Result, err = runPeer(ctx, j.Shape, p, secure, j.Set)
	}
	return out, err
}

// runFelix loads a broker in a process of its own.
func runFelix(ctx context.Context, s shape) (*loadgen.Result, error) {
	cfg := s.config()
	cfg.Processes, cfg.Compress = 2, s.Kind == loadgen.JSON
	return loadgen.Run(ctx, cfg)
}
