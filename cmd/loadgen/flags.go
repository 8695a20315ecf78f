package main

import (
	"cmp"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen"
)

// Groups of flags, in the order of the help.
const (
	groupLoad   = "Load"
	groupEnd    = "Length"
	groupBroker = "Broker"
	groupOther  = "Delivery and output"
)

// newFlags binds every flag, once, in the group that the help shows it in.
func newFlags(cfg *loadgen.Config, o *options, stderr io.Writer) *pflag.FlagSet {
	all := pflag.NewFlagSet("loadgen", pflag.ContinueOnError)
	all.SetOutput(stderr)
	all.SortFlags = false
	groups := make(map[string]*pflag.FlagSet)
	var order []string
	group := func(name string, bind func(*pflag.FlagSet)) {
		g := pflag.NewFlagSet(name, pflag.ContinueOnError)
		g.SortFlags = false
		bind(g)
		all.AddFlagSet(g)
		groups[name] = g
		order = append(order, name)
	}
	group(groupLoad, func(f *pflag.FlagSet) {
		f.IntVar(&cfg.Fanout, "fanout", loadgen.DefaultFanout, "subscriptions, each of which must receive every event")
		f.IntVar(&cfg.Payload, "payload", loadgen.DefaultPayload, fmt.Sprintf("`bytes` of an event; the first %d are a stamp of order and time", loadgen.StampLen))
		f.StringVar(&o.kind, "payload-kind", loadgen.Random.String(), "the other bytes: random (incompressible), json (compressible) or zero")
		f.BoolVar(&cfg.Compress, "compress", false, "compress batches that shrink, once at the publisher")
		f.IntVar(&cfg.Batch, "batch", loadgen.DefaultBatch, "events in one publish")
		f.IntVar(&o.window, "window", loadgen.DefaultWindow, "batches in flight until all subscriptions have them; 1 is a closed loop, 0 unbounded")
		f.Float64Var(&cfg.Rate, "rate", 0, "`events` per second of an open loop, in place of a window; latency counts from when a batch is due")
		f.IntVar(&cfg.Conns, "conns", loadgen.DefaultConns, "connections that the subscriptions are spread over")
		f.IntVar(&cfg.SlowSubs, "slow-subs", 0, "further subscriptions that read nothing; queues then drop instead of waiting")
		f.Uint64Var(&cfg.Seed, "seed", 0, "seed of the payloads")
	})
	group(groupEnd, func(f *pflag.FlagSet) {
		f.Int64Var(&cfg.Total, "total", 0, "`events` to publish, instead of a duration")
		f.DurationVar(&cfg.Duration, "duration", 0, fmt.Sprintf("time to publish (default %v, or until the volume suffices, %v at most)", loadgen.DefaultDuration, loadgen.DefaultMaxDuration))
		f.DurationVar(&cfg.Warmup, "warmup", loadgen.DefaultWarmup, "time to publish before the clock starts")
	})
	group(groupOther, func(f *pflag.FlagSet) {
		f.BoolVar(&cfg.AllowDrops, "allow-drops", false, "count drops instead of failing; queues then drop instead of waiting")
		f.DurationVar(&cfg.IdleTimeout, "idle-timeout", loadgen.DefaultIdleTimeout, "fail when a subscription waits so long for an event")
		f.BoolVar(&o.json, "json", false, "print the result as one JSON object")
		f.BoolVar(&o.version, "version", false, "print the version")
	})
	group(groupBroker, func(f *pflag.FlagSet) {
		f.IntVar(&cfg.Processes, "processes", 1, "1 embeds a broker, 2 starts one as a process of its own")
		f.StringVar(&o.addr, "addr", "", "`host:port` of a broker that is already there")
		f.StringVar(&o.tenant, "tenant", cmp.Or(os.Getenv("FELIX_AUTH_TENANT"), "t1"), "its tenant [FELIX_AUTH_TENANT]")
		f.StringVar(&o.namespace, "namespace", "default", "its namespace")
		f.StringVar(&o.stream, "stream", "demo", "its stream, which nobody else may publish to meanwhile")
		f.StringVar(&o.token, "token", "", "Felix `token` [FELIX_AUTH_TOKEN]")
		f.StringVar(&o.authority, "ca", "", "PEM `file` of certificates to trust in place of the system's")
		f.BoolVar(&o.insecure, "insecure", false, "trust any certificate")
	})
	// Not as a default: the help would print it.
	o.token = os.Getenv("FELIX_AUTH_TOKEN")
	all.Usage = func() {
		fmt.Fprint(stderr, helpHead)
		for _, name := range order {
			fmt.Fprintf(stderr, "\n%s:\n%s", name, groups[name].FlagUsages())
		}
		fmt.Fprint(stderr, helpTail)
	}
	return all
}

const helpHead = `Usage: loadgen [flags]

Publishes to one stream of a Felix broker over QUIC, delivers to many subscriptions, and reports latency and
throughput. Every event must arrive: received = published × fanout, or the run fails.

  loadgen --fanout 64 --payload 4096                     throughput, broker in this process
  loadgen --fanout 10 --payload 1024 --batch 1 --window 1
                                                         latency of a lone event, closed loop
  loadgen --fanout 10 --rate 50000 --processes 2         latency at a given load, broker in a process of its own
  loadgen --fanout 10 --slow-subs 100                    do stalled subscriptions hurt the others?
  loadgen --addr broker:5000 --ca ca.pem --stream demo   a broker that is already there
`

const helpTail = `
A broker that loadgen starts is tuned by the FELIX_* variables of cmd/broker; its queues wait for room unless a flag
above or FELIX_SUB_QUEUE_POLICY says otherwise.

A run must move at least 32 times what can be under way at one moment, which is window × batch × payload, or about
5 MB for each subscription without a window: a smaller one would measure buffers, and is refused. An open loop is not;
its rate is given, and a broker that cannot follow shows in the latencies.

Exit status: 0 all accounted for; 1 the run failed, lost events or turned out too small; 2 usage.
`
