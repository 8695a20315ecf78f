package main

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen"
)

// size is the value of a flag that counts bytes.
type size int

// String implements pflag.Value.
func (s *size) String() string { return strconv.Itoa(int(*s)) }

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	n, err := settings.ParseSize(text)
	if err == nil && int64(int(n)) != n {
		err = fmt.Errorf("%q is out of range", text)
	}
	*s = size(n)
	return err
}

// Type implements pflag.Value.
func (s *size) Type() string { return "size" }

func (a *app) newBench() *cobra.Command {
	var cfg loadgen.Config
	format := formatTable
	payload := size(loadgen.DefaultPayload)
	c := &cobra.Command{
		Use:   "bench [STREAM]",
		Short: "Measure latency and throughput, of a broker in this process or at a stream",
		Long: `Measure latency from publish to delivery, and throughput, with every event accounted for: of a broker that is started
in this process, or, if a stream is named, of the one that the context leads to. Nobody else may publish to the stream
meanwhile. The command loadgen does the same and more, and is optimized by a profile, as the broker is: its figures
are better.`,
		Example: `  felix bench --fanout 64 --payload 4096
  felix bench --batch 1 --window 1            # latency of a lone event
  felix bench demo --rate 10000 --duration 10s`,
		Args: arguments(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Payload = int(payload)
			for name, value := range map[string]int{"fanout": cfg.Fanout, "payload": cfg.Payload, "batch": cfg.Batch} {
				if value < 1 {
					return usagef("--%s %d: want at least 1", name, value)
				}
			}
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
			var last atomic.Pointer[loadgen.Progress]
			cfg.Progress = func(p loadgen.Progress) { last.Store(&p) }
			if isTerminal(errOut) {
				cfg.Progress = func(p loadgen.Progress) {
					last.Store(&p)
					fmt.Fprintf(errOut, "\r\x1b[K%v", p)
				}
				clear = func() { fmt.Fprint(errOut, "\r\x1b[K") }
			}
			result, err := loadgen.Run(c.Context(), cfg)
			clear()
			if p := last.Load(); err != nil && c.Context().Err() != nil && p != nil {
				fmt.Fprintf(errOut, "in the %v until the interrupt: %d published, %d delivered, %d dropped; at last %.0f/s, p99 %.0f µs\n",
					p.Elapsed.Round(time.Millisecond), p.Published, p.Delivered, p.Dropped, p.Rate, p.P99)
			}
			if err != nil && cfg.Target != nil && last.Load() == nil && isConnectFailure(c.Context(), err) {
				err = connectError{err, cfg.Target.Addr, flagAddr}
			}
			if err != nil {
				return err
			}
			if format != formatTable {
				return printJSON(c.OutOrStdout(), format, result)
			}
			return asOutput(result.WriteText(c.OutOrStdout()))
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.Fanout, "fanout", loadgen.DefaultFanout, "`subscriptions`, each of which must receive every event")
	f.Var(&payload, "payload", "`size` of an event, such as 256 or 4KiB")
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
