package isolation

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
)

// What B may feel. All of it stands above the table.
const (
	// maxRatio bounds B's p99 under attack by that without.
	maxRatio = 2
	// A p99 up to its floor passes whatever the ratio is. Without an attack it is below a millisecond, and one turn
	// after a goroutine that handles a burst of packets takes some milliseconds, as a handshake does.
	callFloor    = 4 * time.Millisecond
	connectFloor = 10 * time.Millisecond
	// memorySlack is what resident memory may be above the memory limit that goes with the budgets.
	memorySlack = 0.2
	// Afterwards memory must be back at what it was before, within the greater of the two.
	backSlack      = 0.05
	backSlackBytes = 16 << 20 // to which the garbage collector lets a heap grow in any case, with GOGC=400
	// maxBack bounds the time until it is, and until B's p99 is.
	maxBack = 10 * time.Second
)

// latencies are B's 99th percentiles.
type latencies struct {
	Deliver time.Duration // from when a publish was due to the delivery
	Get     time.Duration
	Connect time.Duration // a new connection, authentication included
}

// allowed returns what each of them may be, by those without an attack.
func (l latencies) allowed() latencies {
	return latencies{
		Deliver: max(maxRatio*l.Deliver, callFloor), Get: max(maxRatio*l.Get, callFloor), Connect: max(maxRatio*l.Connect, connectFloor),
	}
}

// above says which of them are above the allowed ones.
func (l latencies) above(allowed latencies) (said []string) {
	for _, c := range []struct {
		what      string
		p99, most time.Duration
	}{
		{"publish→deliver", l.Deliver, allowed.Deliver}, {"get", l.Get, allowed.Get}, {"connect", l.Connect, allowed.Connect},
	} {
		if c.p99 > c.most {
			said = append(said, fmt.Sprintf("p99 of %s %.1f ms, allowed %.1f", c.what, ms(c.p99), ms(c.most)))
		}
	}
	return said
}

// medians returns the median of each.
func medians(all []latencies) latencies {
	of := func(get func(latencies) time.Duration) time.Duration {
		return time.Duration(stats.MedianOf(all, func(l latencies) float64 { return float64(get(l)) }))
	}
	return latencies{
		Deliver: of(func(l latencies) time.Duration { return l.Deliver }),
		Get:     of(func(l latencies) time.Duration { return l.Get }),
		Connect: of(func(l latencies) time.Duration { return l.Connect }),
	}
}

// round is one measurement of an attack. Memory is resident, in bytes.
type round struct {
	Control, Under latencies
	Calls          int            // of B under attack
	Errors         map[string]int // of those, by text
	Before, Peak   int64
	Bound          int64 // of memory, without slack
	After          int64
	Back           time.Duration // until memory and p99 were back
	IsBack         bool
	Away           string   // what was not back
	Did            string   // what the attacker says that it did
	Faults         []string // what it or B found that must not be
}

// result is a row of the table.
type result struct {
	Attack, Does, Breaks string
	Rounds               []round
	Control, Under       latencies
	Calls, Errors        int
	Before, Peak, Bound  int64 // of the round with the most memory against its bound
	Back                 time.Duration
	Failures             []string
}

// judge sums the rounds of an attack up, and says what is wrong.
func judge(a attack, rounds []round) *result {
	r := &result{Attack: a.name, Does: a.does, Breaks: a.breaks, Rounds: rounds}
	if len(rounds) == 0 {
		r.Failures = []string{"was not measured"}
		return r
	}
	var control, under []latencies
	texts, away, faults := map[string]int{}, "", []string{}
	over := -1.0
	for _, n := range rounds {
		control, under = append(control, n.Control), append(under, n.Under)
		r.Calls += n.Calls
		for text, count := range n.Errors {
			texts[text] += count
			r.Errors += count
		}
		if share := float64(n.Peak) / float64(n.Bound); share > over {
			over, r.Before, r.Peak, r.Bound = share, n.Before, n.Peak, n.Bound
		}
		r.Back = max(r.Back, n.Back)
		if !n.IsBack {
			away = n.Away
		}
		for _, f := range n.Faults {
			if !slices.Contains(faults, f) {
				faults = append(faults, f)
			}
		}
	}
	r.Control, r.Under = medians(control), medians(under)
	if r.Calls == 0 {
		r.Failures = append(r.Failures, "B made no call")
	}
	if r.Errors > 0 {
		r.Failures = append(r.Failures, fmt.Sprintf("%d of %d calls of B fail, most with %q", r.Errors, r.Calls, most(texts)))
	}
	r.Failures = append(r.Failures, r.Under.above(r.Control.allowed())...)
	if float64(r.Peak) > float64(r.Bound)*(1+memorySlack) {
		r.Failures = append(r.Failures, fmt.Sprintf("%.0f MiB resident, allowed %.0f", mib(r.Peak), mib(r.Bound)*(1+memorySlack)))
	}
	if away != "" {
		r.Failures = append(r.Failures, fmt.Sprintf("not back within %v: %s", maxBack, away))
	}
	r.Failures = append(r.Failures, faults...)
	return r
}

// most returns the text with the highest count.
func most(texts map[string]int) (text string) {
	for t, n := range texts {
		if n > texts[text] || n == texts[text] && (text == "" || t < text) {
			text = t
		}
	}
	return text
}

// back reports whether B's p99 and resident memory are back, and else what is not.
func back(l, allowed latencies, before, now int64) (ok bool, away string) {
	said := l.above(allowed)
	if most := before + max(int64(backSlack*float64(before)), backSlackBytes); now > most {
		said = append(said, fmt.Sprintf("%.0f MiB resident, allowed %.0f", mib(now), mib(most)))
	}
	return len(said) == 0, strings.Join(said, ", ")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func mib(n int64) float64        { return float64(n) / (1 << 20) }

const (
	headLine = "| %-22s | %-14s | %-22s | %-12s | %-14s | %-14s | %6s | %s |\n"
	bodyLine = "| %-22s | %6d of %-5d | %6.1f, %-14.1f | %4.1f, %-6.1f | %5.1f, %-7.1f | %5.0f of %-5.0f | %6.1f | %s |\n"
)

func printHead(w io.Writer) {
	fmt.Fprintf(w, headLine, "A", "errors of B", "publish→deliver p99 ms", "get p99 ms", "connect p99 ms", "memory MiB", "back s", "verdict")
	fmt.Fprintf(w, headLine, "---", "---:", "---:", "---:", "---:", "---:", "---:", "---")
}

func (r *result) print(w io.Writer) {
	verdict := "holds"
	if len(r.Failures) > 0 {
		verdict = "**FAILS**: " + strings.Join(r.Failures, "; ")
	}
	fmt.Fprintf(w, bodyLine, r.Attack, r.Errors, r.Calls, ms(r.Control.Deliver), ms(r.Under.Deliver), ms(r.Control.Get), ms(r.Under.Get),
		ms(r.Control.Connect), ms(r.Under.Connect), mib(r.Peak), mib(r.Bound)*(1+memorySlack), r.Back.Seconds(), verdict)
}

// rules is what stands above the table.
func rules() string {
	return fmt.Sprintf("Each p99 is two: without an attack and with it; medians of the rounds. Allowed are no error of B, a p99 of %d times that "+
		"without or %v (connect: %v), whichever is more, resident memory up to the memory limit of the budgets and connections and %.0f %% (the second figure), "+
		"and p99 and memory back within %v, memory at what it was before within %.0f %% or %d MiB, whichever is more. By then A has gone: its connections are "+
		"closed, its streams and caches removed.\n",
		maxRatio, callFloor, connectFloor, memorySlack*100, maxBack, backSlack*100, backSlackBytes>>20)
}

// fillIn puts rows into the table of a document, in the order of the attacks. Rows of other attacks stay as they are.
func fillIn(file string, results []*result) error {
	return program.FillIn(file, "isolation", func(old []byte) []byte {
		rows := make(map[string][]byte)
		for line := range bytes.Lines(old) {
			if cells := bytes.SplitN(line, []byte("|"), 3); len(cells) == 3 {
				rows[string(bytes.TrimSpace(cells[1]))] = line
			}
		}
		for _, r := range results {
			var row bytes.Buffer
			r.print(&row)
			rows[r.Attack] = row.Bytes()
		}
		var table bytes.Buffer
		fmt.Fprintf(&table, "\n%s\n", rules())
		printHead(&table)
		for _, a := range attacks {
			table.Write(rows[a.name])
		}
		table.WriteByte('\n')
		return table.Bytes()
	})
}
