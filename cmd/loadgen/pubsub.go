package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// pubsub is `loadgen` and `loadgen pubsub`.
func pubsub(c *command) {
	config := c.pubsubFlags(fmt.Sprintf("time to publish (default %v, or until the volume suffices, %v at most)",
		loadgen.DefaultDuration, loadgen.DefaultMaxDuration))
	c.head, c.tail = pubsubHead, pubsubTail+sweepTail+compareTail+exitTail
	c.prepare = func() (runner, error) {
		cfg, err := config()
		return func(ctx context.Context, o loadgen.Observer) (report.Result, error) {
			cfg.Observer = o
			return present(loadgen.Run(ctx, cfg))
		}, err
	}
}

// soak is `loadgen soak`.
func soak(c *command) {
	config := c.pubsubFlags(fmt.Sprintf("time to publish (default %v)", loadgen.DefaultSoakDuration))
	c.head, c.tail = soakHead, pubsubTail+exitTail
	c.prepare = func() (runner, error) {
		cfg, err := config()
		return func(ctx context.Context, o loadgen.Observer) (report.Result, error) {
			cfg.Observer = o
			return present(loadgen.RunSoak(ctx, cfg))
		}, err
	}
}

// present returns a result as an interface, which is nil if the pointer is.
func present[T any, P interface {
	*T
	report.Result
}](p P, err error) (report.Result, error) {
	if p == nil {
		return nil, err
	}
	return p, err
}

// pubsubFlags binds the flags of the two scenarios that publish, and returns what makes a configuration of them.
func (c *command) pubsubFlags(durationHelp string) func() (loadgen.Config, error) {
	flags := loadgen.Config{Payload: loadgen.DefaultPayload}
	var kind, slowMode string
	var window int
	c.group("Load", func(f *pflag.FlagSet) {
		f.IntVar(&flags.Fanout, "fanout", loadgen.DefaultFanout, "subscriptions to each topic, each of which must receive every event of it")
		f.Var((*sizeValue)(&flags.Payload), "payload", fmt.Sprintf("`size` of an event in bytes or with a unit, as in 4KiB; the first %d bytes are a stamp of order and time", loadgen.StampLen))
		f.StringVar(&kind, "payload-kind", loadgen.Random.String(), "the other bytes: random (incompressible), json (compressible) or zero")
		f.BoolVar(&flags.Compress, "compress", false, "compress batches that shrink, once at the publisher")
		f.IntVar(&flags.Batch, "batch", loadgen.DefaultBatch, "events in one publish")
		f.IntVar(&window, "window", loadgen.DefaultWindow, "batches of each publisher in flight until all subscriptions have them; 1 is a closed loop, 0 unbounded")
		f.Float64Var(&flags.Rate, "rate", 0, "`events` per second of an open loop, in place of a window; latency counts from when a batch is due")
		f.IntVar(&flags.Topics, "topics", 1, "topics; on a broker that is there they are called --stream followed by -0, -1 …")
		f.IntVar(&flags.Publishers, "publishers", 1, "publishers of each topic, each number on a connection of its own")
		f.IntVar(&flags.Streams, "streams", 1, "streams that topics are spread over on each of these connections")
		f.IntVar(&flags.Conns, "conns", loadgen.DefaultConns, "connections that the subscriptions are spread over")
		f.IntVar(&flags.SlowSubs, "slow-subs", 0, "further subscriptions that are slow; queues then drop instead of waiting")
		f.StringVar(&slowMode, "slow-mode", string(loadgen.Stop), "what these do: stop reads nothing, trickle a frame every 200 ms")
		f.Uint64Var(&flags.Seed, "seed", 0, "seed of the payloads")
		sweepable(f)
	})
	c.group("Length", func(f *pflag.FlagSet) {
		f.Int64Var(&flags.Total, "total", 0, "`events` to publish, instead of a duration")
		f.DurationVar(&flags.Duration, "duration", 0, durationHelp)
		f.DurationVar(&flags.Warmup, "warmup", loadgen.DefaultWarmup, "time to publish before the clock starts")
	})
	c.group("Delivery", func(f *pflag.FlagSet) {
		f.BoolVar(&flags.AllowDrops, "allow-drops", false, "count drops instead of failing; queues then drop instead of waiting")
		f.DurationVar(&flags.IdleTimeout, "idle-timeout", loadgen.DefaultIdleTimeout, "fail when a subscription waits so long for an event")
	})
	c.outputFlags()
	c.targetFlags("stream", "demo")
	return func() (loadgen.Config, error) {
		cfg := flags
		cfg.SlowMode = loadgen.SlowMode(slowMode)
		cfg.Interval = c.output.interval
		switch {
		case c.flags.Changed("window") && window == 0:
			cfg.Window = loadgen.Unbounded
		case c.flags.Changed("window"):
			cfg.Window = window
		}
		if cfg.Warmup == 0 {
			cfg.Warmup = 1 // one batch
		}
		var kindErr, brokerErr error
		cfg.Kind, kindErr = loadgen.ParsePayloadKind(kind)
		cfg.Target, cfg.Processes, cfg.Tune, brokerErr = c.broker()
		if cfg.Target != nil {
			cfg.Processes = 0 // or it would be refused
		}
		zeroErr := c.atLeastOne("fanout", "payload", "batch", "topics", "publishers", "streams", "conns", "processes")
		return cfg, errors.Join(zeroErr, kindErr, brokerErr, c.nameFlags(cfg.Validate()))
	}
}

const pubsubHead = `Usage: loadgen [pubsub] [flags]
       loadgen cache|connect|soak|compare [flags]

Publishes to topics of a Felix broker over QUIC, delivers to many subscriptions, and reports latency and throughput.
Every event must arrive: received = published × fanout, or the run fails.

  loadgen --fanout 64 --payload 4096                     throughput, broker in this process
  loadgen --fanout 10 --payload 1024 --batch 1 --window 1
                                                         latency of a lone event, closed loop
  loadgen --fanout 10 --rate 50000 --processes 2         latency at a given load, broker in a process of its own
  loadgen --fanout 10 --slow-subs 100 --slow-mode trickle
                                                         do slow subscriptions hurt the others?
  loadgen --fanout 1,10,64 --payload 256,4096 --trials 5 --out results
                                                         all six, in five rounds, with tables and plots
  loadgen --fanout 10 --trials 5 --compare results       has it become slower?
  loadgen --addr broker:5000 --ca ca.pem --stream demo   a broker that is already there

The other scenarios, each with a help of its own: cache loads the cache, connect makes connections, soak publishes for
long and watches what grows, compare compares two reports.
`

const soakHead = `Usage: loadgen soak [flags]

Publishes for long, at 20,000 events per second unless --rate or --window says otherwise, and samples memory,
goroutines, drops and latency. The run is divided into four parts, its beginning left out. It fails if memory at its
peak is more than 25 % higher in the last part than in the first, or if goroutines are 10 % more.

  loadgen soak --duration 8h --fanout 10 --out soak      overnight, with a timeline
  loadgen soak --slow-subs 20 --slow-mode trickle        with subscriptions that do not keep up
  loadgen soak --processes 2                             the broker's memory by itself
`

const pubsubTail = `
A broker that loadgen starts is tuned by the FELIX_* variables of cmd/broker; its queues wait for space unless a flag
above or FELIX_SUB_QUEUE_POLICY says otherwise.

A run must move at least 32 times what can be under way at one moment, which is window × batch × payload, or about
5 MB for each subscription without a window: a smaller one would measure buffers, and is refused. An open loop is not;
its rate is given, and a broker that cannot follow shows in the latencies.
`
