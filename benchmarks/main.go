// Command benchmarks measures what Felix does on this machine, one subcommand for each table. It prints the list
// without arguments; docs/measure/benchmarks.md says how to read the tables. Comparisons with other systems, with their
// clients, are in the module benchmarks/peers, and the comparison of two commits is compare/run.sh.
//
// What one package costs by itself is measured next to its code. All packages together, publisher, broker and
// subscriptions over real QUIC on loopback, are also measured by BenchmarkPublishDeliver here, whose output benchstat
// reads:
//
//	go test -run '^$' -bench PublishDeliver -benchtime 1x -count 5 ./benchmarks
//
// The measuring itself is left to package loadgen.
package main

import (
	"github.com/felix-mq/felix/benchmarks/cachelife"
	"github.com/felix-mq/felix/benchmarks/cost"
	"github.com/felix-mq/felix/benchmarks/endtoend"
	"github.com/felix-mq/felix/benchmarks/gate"
	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

func main() {
	brokerproc.Serve()
	program.Main(program.Commands(
		"benchmarks",
		program.Command{Name: "endtoend", About: "throughput and latency of a broker, at several fan-outs (about a minute)", Run: endtoend.Run},
		program.Command{Name: "cost", About: "what a delivery, an idle subscription and an idle topic cost the broker (about eight minutes)", Run: cost.Run},
		program.Command{Name: "cache-ttl", About: "how far from the end of a cache entry's lifetime its end is seen, under load (about half a minute)", Run: cachelife.TTL},
		program.Command{Name: "cache-churn", About: "what a broker holds while ten times its cache's budget goes through it (about ten minutes)", Run: cachelife.Churn},
		program.Command{Name: "gate", About: "fail if a micro benchmark allocates or executes more than is recorded (about 30 seconds)", Run: gate.Run},
	))
}
