package main

import (
	"fmt"

	"github.com/felix-mq/felix/internal/stats"
)

// title is a system's name for people.
func title(system string) string {
	if base := baseName(system); base != system {
		return title(base) + ", defaults"
	}
	switch system {
	case felixName:
		return "Felix"
	case relayName:
		return "Relay"
	case pipeName:
		return "Pipe"
	}
	p, secure := peerOf(system)
	if secure {
		return p.title + " TLS"
	}
	return p.title
}

const lostMeans = "lost: packets that QUIC declared lost + datagrams that the kernel dropped, or TCP segments sent again; all rounds\n" +
	"together, connecting and warming up included (of Felix's client, the measured time alone), and for Felix of how many\n" +
	"packets of its broker. The kernel's figures are those of the whole machine. Many of them measure recovery."

// runsOf returns the runs of a row that did not fail, by system.
func runsOf(results []outcome, row string) map[string][]outcome {
	runs := map[string][]outcome{}
	for _, r := range results {
		if r.Row == row && r.Error == "" {
			runs[r.System] = append(runs[r.System], r)
		}
	}
	return runs
}

// failure returns why runs of a system failed, if they did.
func failure(results []outcome, row, system string) string {
	for _, r := range results {
		if r.Row == row && r.System == system && r.Error != "" {
			return r.Error
		}
	}
	return ""
}

func values(runs []outcome, of func(*outcome) float64) []float64 {
	all := make([]float64, len(runs))
	for i := range runs {
		all[i] = of(&runs[i])
	}
	return all
}

// ratios compares the runs of the same round.
func ratios(a, b []outcome, of func(*outcome) float64) []float64 {
	return pairs(a, b, func(x, y *outcome) float64 { return of(x) / of(y) })
}

func pairs(a, b []outcome, ratio func(a, b *outcome) float64) []float64 {
	var all []float64
	for i := range a {
		for j := range b {
			if a[i].Round == b[j].Round {
				all = append(all, ratio(&a[i], &b[j]))
			}
		}
	}
	return all
}

func spread(values []float64) string { return stats.Spread("%.0f", values) }

// compare returns the cells of a comparison: the ratio, and what it should be, if anything.
func compare(ratios []float64, wanted limit) (ratio, verdict string) {
	if len(ratios) == 0 {
		return "", ""
	}
	m := stats.Median(ratios)
	ratio = stats.Spread("%.2f", ratios)
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
	if p, _ := peerOf(system); p != nil {
		return fmt.Sprint(tcp)
	}
	if packets > 0 && sent > 0 {
		return fmt.Sprintf("%d + %d, 1 in %d", packets, udp, sent/packets)
	}
	return fmt.Sprintf("%d + %d", packets, udp)
}
