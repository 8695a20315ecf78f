package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// titles of the systems in the table.
var titles = map[string]string{felixName: "Felix", relayName: "Relay", natsName: "NATS TLS"}

// writeReport writes the table and what has to be known to read it.
func writeReport(out io.Writer, o *options, results []outcome) {
	fmt.Fprintf(out, "Median of %d alternating runs, each with fresh processes, and the range in parentheses. Ratios are medians of\n"+
		"the ratios of single rounds. Throughput: batches of 64, delivered to all subscriptions together. Latency: 1 KiB,\n"+
		"one event at a time, publish to receipt. Payloads cannot be compressed; everything on loopback, nothing unaccounted.\n\n", o.rounds)
	writeTable(out, o.against, results)
	writePipe(out, results)
	writeEnvironment(out, o, results)
}

func writeTable(out io.Writer, against []string, results []outcome) {
	t := table{line(against, "Shape", "Figure",
		func(system string) string { return titles[system] },
		func(other string) (string, string) { return "Felix / " + titles[other], "wanted" })}
	for _, r := range rows() {
		runs := runsOf(results, r.name)
		if len(runs) == 0 || r.name == pipeName {
			continue
		}
		name := r.name // in the first line only
		for _, m := range r.metrics {
			t = append(t, line(against, name, m.name,
				func(system string) string { return spread(values(runs[system], m.of)) },
				func(other string) (string, string) {
					return compare(ratios(runs[felixName], runs[other], m.of), m.limits[other])
				}))
			name = ""
		}
		t = append(t, line(against, "", "lost",
			func(system string) string { return lost(runs[system], system) },
			func(string) (string, string) { return "", "" }))
	}
	t.write(out)
	fmt.Fprint(out, "\nlost: packets that QUIC declared lost + datagrams that the kernel dropped, or TCP segments sent again; all rounds\n"+
		"together, connecting and warming up included (of Felix's client, the measured time alone), and for Felix of how many\n"+
		"packets of its broker. The kernel's figures are those of the whole machine. Many of them measure recovery.\n")
}

// line puts the cells of a line together: a value for Felix and each of the others, and two cells for each comparison.
func line(against []string, shape, figure string, value func(system string) string, compare func(other string) (ratio, wanted string)) []string {
	cells := append(make([]string, 0, 3+3*len(against)), shape, figure, value(felixName))
	for _, other := range against {
		cells = append(cells, value(other))
	}
	for _, other := range against {
		ratio, wanted := compare(other)
		cells = append(cells, ratio, wanted)
	}
	return cells
}

// runsOf returns the runs of a row by system.
func runsOf(results []outcome, row string) map[string][]outcome {
	runs := map[string][]outcome{}
	for _, r := range results {
		if r.Row == row {
			runs[r.System] = append(runs[r.System], r)
		}
	}
	return runs
}

func values(runs []outcome, of func(*outcome) float64) []float64 {
	all := make([]float64, len(runs))
	for i := range runs {
		all[i] = of(&runs[i])
	}
	return all
}

// ratios pairs the runs of the same round.
func ratios(a, b []outcome, of func(*outcome) float64) []float64 {
	var all []float64
	for i := range a {
		for j := range b {
			if a[i].Round == b[j].Round {
				all = append(all, of(&a[i])/of(&b[j]))
			}
		}
	}
	return all
}

// median of no values is not a number.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func spread(values []float64) string {
	if len(values) == 0 {
		return "failed"
	}
	return fmt.Sprintf("%.0f (%.0f–%.0f)", median(values), slices.Min(values), slices.Max(values))
}

// compare returns the cells of a comparison: the ratio, and what it should be, if anything.
func compare(ratios []float64, wanted limit) (ratio, verdict string) {
	if len(ratios) == 0 {
		return "", ""
	}
	m := median(ratios)
	ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", m, slices.Min(ratios), slices.Max(ratios))
	switch {
	case wanted == limit{}:
	case wanted.met(m):
		verdict = wanted.String() + " met"
	default:
		verdict = wanted.String() + " **missed**"
	}
	return ratio, verdict
}

func lost(runs []outcome, system string) string {
	var packets, sent, udp, tcp int64
	for _, r := range runs {
		packets += r.Result.PacketsLost + int64(r.Result.Broker.PacketsLost)
		sent += int64(r.Result.Broker.PacketsSent)
		udp += r.UDPDropped
		tcp += r.TCPRetransmitted
	}
	if system == natsName {
		return fmt.Sprint(tcp)
	}
	if packets > 0 && sent > 0 {
		return fmt.Sprintf("%d + %d, 1 in %d", packets, udp, sent/packets)
	}
	return fmt.Sprintf("%d + %d", packets, udp)
}

func writePipe(out io.Writer, results []outcome) {
	runs := runsOf(results, pipeName)[pipeName]
	if len(runs) == 0 {
		return
	}
	var lost uint64
	for _, r := range runs {
		lost += r.Pipe.PacketsLost
	}
	fmt.Fprintf(out, "\nPipe, one stream over one hop: %s MB/s, %d packets lost.\n",
		spread(values(runs, func(o *outcome) float64 { return o.Pipe.BytesPerSecond / 1e6 })), lost)
}

// writeEnvironment says where the figures come from. loadgen tells it, so it is that of the first run of Felix.
func writeEnvironment(out io.Writer, o *options, results []outcome) {
	procs := "as the runtime chooses"
	if o.procs > 0 {
		procs = fmt.Sprint(o.procs)
	}
	fmt.Fprintf(out, "\nProcesses: publisher and subscriptions in one, the system under test in another with GOMAXPROCS %s; GOGC %s in all.\n"+
		"Measured time %v a run after %v of warm-up.\n", procs, o.gogc, o.duration, o.warmup)
	for _, r := range results {
		if r.System != felixName {
			continue
		}
		e, b := r.Result.Environment, r.Result.Broker
		if e.Commit == "" {
			e.Commit = o.commit
		}
		fmt.Fprintf(out, "Machine: %s.\nBroker's socket: buffers of %d KiB in and %d KiB out, GRO %t, GSO %t.\n",
			e.String(), b.ReceiveBuffer>>10, b.SendBuffer>>10, b.GRO, b.GSO)
		return
	}
}

// table is lines of cells, the head first.
type table [][]string

// write aligns the columns, so that the table can be read as it is.
func (t table) write(out io.Writer) {
	widths := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for n, line := range t {
		for i, cell := range line {
			fmt.Fprintf(out, "| %-*s ", widths[i], cell)
		}
		fmt.Fprintln(out, "|")
		if n > 0 {
			continue
		}
		for i := range line {
			if i < 2 {
				fmt.Fprint(out, "|", strings.Repeat("-", widths[i]+2))
			} else {
				fmt.Fprint(out, "|", strings.Repeat("-", widths[i]+1), ":")
			}
		}
		fmt.Fprintln(out, "|")
	}
}
