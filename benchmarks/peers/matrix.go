package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/felix-mq/felix/loadgen"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
)

// matrixSuite measures Felix alone, over the sizes, fanouts and batches by which the Rust implementation is measured.
var matrixSuite = suite{
	name:     "matrix",
	about:    "Felix over payloads, fanouts and batches",
	rows:     matrixRows,
	defaults: options{rounds: 5, duration: 2 * time.Second, warmup: 300 * time.Millisecond, maxDuration: time.Minute},
	report:   writeMatrix,
	plots:    plotMatrix,
}

// The axes. As in the Rust implementation's tool an event is a stamp and as many bytes as the axis says; rates count
// both.
var (
	matrixPayloads = []int{0, 256, 1024, 4096, 16384}
	matrixFanouts  = []int{1, 10, 64, 256}
)

// trimVolume is how many bytes a cell may have to deliver, to all subscriptions together, to be measured without -full.
const trimVolume = 3 << 30

func matrixRows(full bool) []row {
	var all []row
	for _, payload := range matrixPayloads {
		for _, fanout := range matrixFanouts {
			for _, s := range []shape{matrixSingle(payload, fanout), matrixBatches(payload, fanout)} {
				// A run moves 32 times what can be under way.
				if volume := 32 * s.Window * s.Batch * s.Payload * s.Fanout; volume > trimVolume && !full {
					continue
				}
				if s.Window == 1 {
					all = append(all, rowOf(s, p50, p99, p999))
				} else {
					all = append(all, rowOf(s, throughput, deliveries))
				}
			}
		}
	}
	return all
}

func matrixSingle(payload, fanout int) shape {
	return single(loadgen.StampLen+payload, fanout, min(fanout, 8))
}

func matrixBatches(payload, fanout int) shape {
	return batches(loadgen.StampLen+payload, fanout, min(fanout, 8))
}

func writeMatrix(out io.Writer, o *options, results []outcome) {
	fmt.Fprintf(out, "Median of %d runs, each with fresh processes, and the range in parentheses. An event is as many bytes as its line says\n"+
		"and a stamp of 16; rates count both. Subscriptions share up to 8 connections. Everything on loopback with TLS 1.3,\n"+
		"nothing unaccounted. A cell that was not measured is empty.\n", o.rounds)
	cells := func(of func(payload, fanout int) shape, text func(runs []outcome) string) {
		t := program.Table{{"Payload"}}
		for _, fanout := range matrixFanouts {
			t[0] = append(t[0], fmt.Sprintf("fanout %d", fanout))
		}
		for _, payload := range matrixPayloads {
			line := []string{size(payload)}
			for _, fanout := range matrixFanouts {
				name := rowOf(of(payload, fanout)).name
				runs := runsOf(results, name)[felixName]
				switch {
				case len(runs) > 0:
					line = append(line, text(runs))
				case failure(results, name, felixName) != "":
					line = append(line, "failed")
				default:
					line = append(line, "")
				}
			}
			t = append(t, line)
		}
		t.Write(out, 1)
	}
	figure := func(m metric, scale float64, form string) func([]outcome) string {
		return func(runs []outcome) string {
			v := values(runs, m.of)
			for i := range v {
				v[i] /= scale
			}
			return stats.Spread(form, v)
		}
	}
	fmt.Fprintf(out, "\nBatches of 64, MB/s delivered to all subscriptions together:\n\n")
	cells(matrixBatches, figure(throughput, 1, "%.0f"))
	fmt.Fprintf(out, "\nThe same in millions of deliveries per second:\n\n")
	cells(matrixBatches, figure(deliveries, 1e6, "%.2f"))
	fmt.Fprintf(out, "\nOne event at a time, which every subscription has received when the next one leaves: p50 / p99 / p999 in µs, medians:\n\n")
	cells(matrixSingle, func(runs []outcome) string {
		var parts []string
		for _, m := range []metric{p50, p99, p999} {
			parts = append(parts, fmt.Sprintf("%.0f", stats.Median(values(runs, m.of))))
		}
		return strings.Join(parts, " / ")
	})
	fmt.Fprintf(out, "\nOf these the p50 with its range:\n\n")
	cells(matrixSingle, figure(p50, 1, "%.0f"))
	var all []outcome
	for _, r := range results {
		if r.Error == "" {
			all = append(all, r)
		}
	}
	fmt.Fprintf(out, "\nPackets lost in all runs together: %s.\n", lost(all, felixName))
}
