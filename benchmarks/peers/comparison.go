package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
)

// peersSuite compares Felix with other systems that users could choose: each of them has lines of its own.
var peersSuite = suite{
	name:  "peers",
	about: "Felix next to NATS, Redis and Mosquitto, each in the clear and with TLS 1.3",
	rows:  peersRows,
	against: strings.Join([]string{
		natsName + plainSuffix, natsName, redisName + plainSuffix, redisName, mosquittoName + plainSuffix, mosquittoName,
	}, ","),
	swept:    true,
	defaults: options{rounds: 5, duration: 1500 * time.Millisecond, warmup: 200 * time.Millisecond, maxDuration: 20 * time.Second},
	report:   writePeers,
	plots:    plotPeers,
}

// peersRows give each subscription a connection of its own, as consumers in processes of their own have it. A
// connection of Redis or Mosquitto could not bear more than one.
func peersRows(bool) []row {
	var all []row
	for _, payload := range []int{256, 4096} {
		for _, fanout := range []int{1, 10, 64} {
			all = append(all, rowOf(batches(payload, fanout, fanout), throughput, cpu))
		}
	}
	all = append(all, rowOf(documents(batches(4096, 10, 10)), throughput, cpu))
	for _, fanout := range []int{1, 10, 64} {
		all = append(all, rowOf(single(1024, fanout, fanout), p50, p99, p999))
	}
	return all
}

func writePeers(out io.Writer, o *options, results []outcome) {
	fmt.Fprintf(out, "Median of %d alternating runs, each with fresh processes, and the range in parentheses. Ratios are medians of\n"+
		"the ratios of single rounds. Each system runs with the settings with which a sweep found it at its best for that load.\n"+
		"One publisher; each subscription has a connection of its own. Everything on loopback, nothing unaccounted.\n", o.rounds)
	for _, kind := range []struct{ prefix, head string }{
		{"throughput", "Throughput: 64 events at a time, random bytes, at most 1 MiB in flight unless the settings say otherwise; payload delivered to\nall subscriptions together. More MB/s are better, and less processor time for a gigabyte: that of all processes of a run,\nwith its start and end."},
		{"json", "The same with JSON documents, which Felix compresses. What is delivered is counted as it was published."},
		{"latency", "Latency: 1 KiB, one event at a time, publish to receipt. Less is better."},
	} {
		var t program.Table
		for _, r := range peersRows(true) {
			if runs := runsOf(results, r.name); strings.HasPrefix(r.name, kind.prefix) && len(runs) > 0 {
				t = r.compare(t, o, results)
			}
		}
		if t != nil {
			fmt.Fprintf(out, "\n%s\n\n", kind.head)
			t.Write(out, 3)
		}
	}
	fmt.Fprint(out, "\n", lostMeans, "\n")
	writeSetups(out, o)
}

// compare appends a line for each system.
func (r *row) compare(t program.Table, o *options, results []outcome) program.Table {
	if t == nil {
		head := []string{"Load", "System", "Settings"}
		for _, m := range r.metrics {
			head = append(head, m.name)
		}
		for _, m := range r.metrics {
			head = append(head, "Felix ÷ it, "+m.name)
		}
		t = program.Table{append(head, "lost")}
	}
	runs := runsOf(results, r.name)
	name := r.title() // in the first line only
	for _, system := range r.systems(o.against) {
		set, _ := o.settingsOf(r.name, system)
		line := []string{name, title(system), set.text(knobsOf(system))}
		name = ""
		if why := failure(results, r.name, system); len(runs[system]) == 0 {
			line = append(line, why)
			t = append(t, append(line, make([]string, len(t[0])-len(line))...))
			continue
		}
		for _, m := range r.metrics {
			line = append(line, stats.Spread(cmp.Or(m.form, "%.0f"), values(runs[system], m.of)))
		}
		for _, m := range r.metrics {
			var ratio string
			if system != felixName {
				ratio, _ = compare(ratios(runs[felixName], runs[system], m.of), limit{})
			}
			line = append(line, ratio)
		}
		t = append(t, append(line, lost(runs[system], system)))
	}
	return t
}

// title is the load for people.
func (r *row) title() string {
	subscriptions := "1 subscription"
	if r.load.Fanout > 1 {
		subscriptions = fmt.Sprintf("%d subscriptions", r.load.Fanout)
	}
	return size(r.load.Payload) + " to " + subscriptions
}

func size(bytes int) string {
	if bytes >= 1<<20 && bytes%(1<<20) == 0 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	if bytes >= 1<<10 && bytes%(1<<10) == 0 {
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d B", bytes)
}

// writeSetups says how each system was set up.
func writeSetups(out io.Writer, o *options) {
	fmt.Fprint(out, "\nHow each is set up, all without persistence, TLS 1.3 with a self-signed ECDSA certificate:\n\n"+
		"- Felix: a broker with its defaults, queues that make the publisher wait, package client; QUIC, which has no form in the clear.\n")
	told := map[*peer]bool{}
	for _, system := range o.against {
		p, _ := peerOf(system)
		if p == nil || told[p] {
			continue
		}
		told[p] = true
		version, err := p.version()
		if err != nil {
			version = err.Error()
		}
		fmt.Fprintf(out, "- %s %s: %s\n", p.title, version, p.setup)
	}
	fmt.Fprint(out, "\nSettings that a sweep tries, the default first:\n\n")
	for _, k := range allKnobs(o.against) {
		fmt.Fprintf(out, "- %s: %s; %s\n", k.name, k.about, k.text())
	}
}
