package main

import (
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/internal/program"
)

// floorSuite compares Felix with what the transport allows, and with NATS: its columns are the systems.
var floorSuite = suite{
	name:     "floor",
	about:    "Felix next to a bare relay and NATS with TLS, with the budget of each figure",
	rows:     floorRows,
	against:  relayName + "," + natsName,
	swept:    true,
	defaults: options{rounds: 5, duration: 3 * time.Second, warmup: time.Second, maxDuration: 12 * time.Second},
	report:   writeFloor,
}

// floorRows are all shapes, with the budget of the project: throughput in batches of 64, then a closed loop of single
// events.
func floorRows(bool) []row {
	var all []row
	for _, payload := range []int{256, 4096} {
		for _, fanout := range []int{1, 10, 64} {
			limits := map[string]limit{relayName: {true, 0.90}}
			switch {
			case fanout > 1 && payload == 256:
				limits[natsName] = limit{true, 2.0}
			case fanout > 1:
				limits[natsName] = limit{true, 0.92}
			}
			all = append(all, rowOf(batches(payload, fanout, min(fanout, 8)), throughput.wanted(limits)))
		}
	}
	for _, fanout := range []int{10, 64} {
		limits := map[string]limit{natsName: {true, 1.6}}
		all = append(all, rowOf(documents(batches(4096, fanout, 8)), throughput.wanted(limits)))
	}
	for _, l := range []struct {
		fanout, conns  int
		p50, p99, p999 float64 // against NATS; 0 is none
	}{
		{1, 1, 0.7, 1.0, 1.0},
		{10, 8, 0.7, 1.0, 1.0},
		{64, 8, 1.2, 0, 0.5},
		{64, 64, 0.9, 1.0, 1.0},
	} {
		limits := func(relay, nats float64) map[string]limit {
			m := map[string]limit{}
			for name, value := range map[string]float64{relayName: relay, natsName: nats} {
				if value > 0 {
					m[name] = limit{false, value}
				}
			}
			return m
		}
		all = append(all, rowOf(single(1024, l.fanout, l.conns),
			p50.wanted(limits(1.15, l.p50)), p99.wanted(limits(0, l.p99)), p999.wanted(limits(1.25, l.p999))))
	}
	return append(all, row{name: pipeName, load: shape{Fanout: 1, Conns: 1}})
}

func writeFloor(out io.Writer, o *options, results []outcome) {
	fmt.Fprintf(out, "Median of %d alternating runs, each with fresh processes, and the range in parentheses. Ratios are medians of\n"+
		"the ratios of single rounds. Throughput: batches of 64, delivered to all subscriptions together. Latency: 1 KiB,\n"+
		"one event at a time, publish to receipt. Payloads are random bytes, but for json: documents, which Felix compresses.\n"+
		"Everything on loopback, nothing unaccounted.\n\n", o.rounds)
	pipes := runsOf(results, pipeName)[pipeName]
	line := func(shape, figure string, value func(string) string, compare func(string) (string, string), pipe string) []string {
		cells := append(make([]string, 0, 4+3*len(o.against)), shape, figure, value(felixName))
		for _, other := range o.against {
			cells = append(cells, value(other))
		}
		for _, other := range o.against {
			ratio, wanted := compare(other)
			cells = append(cells, ratio, wanted)
		}
		return append(cells, pipe)
	}
	t := program.Table{line("Shape", "Figure", title, func(other string) (string, string) { return "Felix / " + title(other), "wanted" }, "Felix / pipe")}
	for _, r := range floorRows(true) {
		runs := runsOf(results, r.name)
		if len(runs) == 0 || r.name == pipeName {
			continue
		}
		name := r.name // in the first line only
		for _, m := range r.metrics {
			var pipe string
			if m.name == throughput.name {
				pipe, _ = compare(pairs(runs[felixName], pipes, func(a, b *outcome) float64 { return m.of(a) / pipeRate(b) }), limit{})
			}
			t = append(t, line(name, m.name,
				func(system string) string { return spread(values(runs[system], m.of)) },
				func(other string) (string, string) {
					return compare(ratios(runs[felixName], runs[other], m.of), m.limits[other])
				}, pipe))
			name = ""
		}
		t = append(t, line("", "lost",
			func(system string) string { return lost(runs[system], system) },
			func(string) (string, string) { return "", "" }, ""))
	}
	t.Write(out, 2)
	fmt.Fprint(out, "\n", lostMeans, "\n")
	fmt.Fprint(out, "\nSettings, each with those with which a sweep found it at its best:\n\n")
	for _, r := range floorRows(true) {
		if len(runsOf(results, r.name)) == 0 || r.name == pipeName {
			continue
		}
		for _, system := range r.systems(o.against) {
			if set, _ := o.settingsOf(r.name, system); set.text(knobsOf(system)) != unset {
				fmt.Fprintf(out, "- %s: %s: %s\n", r.name, title(system), set.text(knobsOf(system)))
			}
		}
	}
	fmt.Fprintf(out, "- all others: %s\n", unset)
	if len(pipes) > 0 {
		var lost uint64
		for _, r := range pipes {
			lost += r.Pipe.PacketsLost
		}
		fmt.Fprintf(out, "\nPipe, one stream over one hop: %s MB/s, %d packets lost.\n", spread(values(pipes, pipeRate)), lost)
	}
}

func pipeRate(o *outcome) float64 { return o.Pipe.BytesPerSecond / 1e6 }
