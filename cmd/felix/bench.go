package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/loadgen"
)

func (a *app) newBench() *cobra.Command {
	var cfg loadgen.Config
	format := formatTable
	c := &cobra.Command{
		Use:   "bench [STREAM]",
		Short: "Measure latency and throughput, of a broker in this process or at a stream",
		Long: `Measure latency from publish to delivery, and throughput, with every event accounted for: of a broker that is started in
this process, or, if a stream is named, of the one that the context leads to. Nobody else may publish to the stream
meanwhile. The command loadgen does the same and more, and is optimized by a profile, as the broker is: its figures are better.`,
		Example: `  felix bench --fanout 64 --payload 4096
  felix bench --batch 1 --window 1            # latency of a lone event
  felix bench demo --rate 10000 --duration 10s`,
		Args: arguments(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				target, err := a.target(args[0])
				if err != nil {
					return err
				}
				cfg.Target = target
			}
			if err := cfg.Validate(); err != nil {
				return usageError{error: err}
			}
			errOut := c.ErrOrStderr()
			clear := func() {}
			if isTerminal(errOut) {
				cfg.Progress = func(p loadgen.Progress) { fmt.Fprintf(errOut, "\r\x1b[K%v", p) }
				clear = func() { fmt.Fprint(errOut, "\r\x1b[K") }
			}
			result, err := loadgen.Run(c.Context(), cfg)
			clear()
			if err != nil {
				return err
			}
			if format != formatTable {
				return printJSON(c.OutOrStdout(), format, result)
			}
			return result.WriteText(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.Fanout, "fanout", loadgen.DefaultFanout, "`subscriptions`, each of which must receive every event")
	f.IntVar(&cfg.Payload, "payload", loadgen.DefaultPayload, "`bytes` of an event")
	f.IntVar(&cfg.Batch, "batch", loadgen.DefaultBatch, "`events` in one publish")
	f.IntVar(&cfg.Window, "window", 0, fmt.Sprintf("`batches` in flight until all subscriptions have them; 0 is %d, or without bound with --rate", loadgen.DefaultWindow))
	f.Float64Var(&cfg.Rate, "rate", 0, "`events` per second of an open loop, in place of a window")
	f.DurationVar(&cfg.Duration, "duration", 0, fmt.Sprintf("time to publish; 0 is %v, or until the volume suffices", loadgen.DefaultDuration))
	f.DurationVar(&cfg.Warmup, "warmup", 500*time.Millisecond, "time to publish before the clock starts")
	format.bind(c)
	return c
}

// target is the broker that the context leads to.
func (a *app) target(stream string) (*loadgen.Target, error) {
	r, err := a.resolve()
	if err != nil {
		return nil, err
	}
	t := &loadgen.Target{Addr: r.Addr, Tenant: r.Tenant, Namespace: r.Namespace, Stream: stream}
	if t.TLS, err = r.tls(); err != nil {
		return nil, err
	}
	if t.Token, err = r.readToken(); err != nil {
		return nil, usageError{error: fmt.Errorf("token: %w", err)}
	}
	return t, nil
}
