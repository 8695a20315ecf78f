package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// connect is `loadgen connect`.
func connect(c *command) {
	flags := loadgen.DefaultConnectConfig()
	c.group("Load", func(f *pflag.FlagSet) {
		f.IntVar(&flags.Concurrency, "concurrency", flags.Concurrency, "callers, each with one attempt in flight")
		f.Float64Var(&flags.Rate, "rate", 0, "`attempts` per second of an open loop; latency counts from when one is due, a free caller or not")
		sweepable(f)
	})
	c.group("Length", func(f *pflag.FlagSet) {
		f.DurationVar(&flags.Duration, "duration", flags.Duration, "measured time")
		f.DurationVar(&flags.Warmup, "warmup", flags.Warmup, "time before that")
		f.DurationVar(&flags.Timeout, "timeout", flags.Timeout, "cancel an attempt after this time, and count it as hung; 0 leaves that to the client")
	})
	c.outputFlags()
	c.targetFlags("", "")
	c.head, c.tail = connectHead, "\nA broker that loadgen starts is tuned by the FELIX_* variables of cmd/broker.\n"+sweepTail+compareTail+exitTail
	c.prepare = func() (runner, error) {
		cfg := flags
		cfg.Interval = c.output.interval
		var err error
		cfg.Target, cfg.Processes, cfg.Tune, err = c.broker()
		return func(ctx context.Context, o loadgen.Observer) (report.Result, error) {
			cfg.Observer = o
			return present(loadgen.RunConnect(ctx, cfg))
		}, errors.Join(err, c.nameFlags(cfg.Validate()))
	}
}

const connectHead = `Usage: loadgen connect [flags]

Makes connections to a Felix broker and closes them again. Each is a QUIC handshake with TLS 1.3 and the reply to a
token; one that fails ends the run.

  loadgen connect --processes 2                          how many per second
  loadgen connect --rate 200 --concurrency 16            latency at a given load
  loadgen connect --concurrency 1,4,16 --out results     with tables and plots
`
