package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
)

// summary is what is kept of the results of a release: the figures of each load, without the single runs.
type summary struct {
	Tables []summaryTable `json:"tables"`
}

type summaryTable struct {
	Name        string              `json:"name"` // of the suite
	Command     string              `json:"command"`
	Commit      string              `json:"commit"`
	Began       time.Time           `json:"began"`
	Rounds      int                 `json:"rounds"`
	Environment loadgen.Environment `json:"environment"`
	Machine     string              `json:"machine,omitempty"` // what else it did meanwhile
	Variables   []string            `json:"variables,omitempty"`
	Rows        []summaryRow        `json:"rows"`
}

// summaryRow is one figure of one system under one load, over all rounds.
type summaryRow struct {
	Load   string  `json:"load"`
	Figure string  `json:"figure"` // with its unit
	System string  `json:"system"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// shownTables are the suites whose figures the documents show.
var shownTables = []string{floorSuite.name, peersSuite.name}

// runDocs brings the summary of a release up to date with a directory of results, if one is named, and puts its figures
// into documents. What the directory does not have stays as it is.
func runDocs(_ context.Context, args []string, _, stderr io.Writer) int {
	flags := program.Flags("peers docs", stderr)
	from := flags.String("from", "", "`directory` of results to take into the summary first")
	file := flags.String("summary", "", "`file` with the summary of a release")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if *file == "" || *from == "" && flags.NArg() == 0 {
		fmt.Fprintln(stderr, "peers: want --summary file, and --from directory or the documents")
		return 2
	}
	sum, err := updateSummary(*file, *from)
	for _, document := range flags.Args() {
		if err == nil {
			err = program.FillIn(document, "results", func([]byte) []byte {
				text := bytes.NewBufferString("\n")
				sum.write(text)
				return append(text.Bytes(), '\n')
			})
			if durable, missing := os.ReadFile(filepath.Join(*from, durableName+".md")); err == nil && *from != "" && missing == nil {
				err = program.FillIn(document, durableName, func([]byte) []byte {
					return slices.Concat([]byte("\n"), durable, []byte("\n"))
				})
			}
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "peers:", err)
		return 1
	}
	return 0
}

// updateSummary reads the summary in a file, replaces the tables that the directory has, and writes it back. Without a
// directory it only reads.
func updateSummary(file, from string) (*summary, error) {
	sum := &summary{}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, sum)
	} else if from != "" && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil || from == "" {
		return sum, err
	}
	for i := range suites {
		b, err := os.ReadFile(filepath.Join(from, suites[i].name+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		rec := record{}
		if err == nil {
			err = json.Unmarshal(b, &rec)
		}
		if err != nil {
			return nil, err
		}
		table := summarize(suites[i].name, &rec)
		if at := slices.IndexFunc(sum.Tables, func(t summaryTable) bool { return t.Name == table.Name }); at >= 0 {
			sum.Tables[at] = table
		} else {
			sum.Tables = append(sum.Tables, table)
		}
	}
	b, err = json.Marshal(sum)
	if err != nil {
		return nil, err
	}
	// One line for each table and row, so that a difference can be read.
	for _, begin := range []string{`{"name":`, `{"load":`} {
		b = bytes.ReplaceAll(b, []byte(begin), []byte("\n"+begin))
	}
	return sum, os.WriteFile(file, append(b, '\n'), 0o644)
}

func summarize(name string, rec *record) summaryTable {
	t := summaryTable{
		Name: name, Command: rec.Command, Commit: rec.Commit, Began: rec.Began,
		Environment: rec.Environment, Variables: rec.Variables,
	}
	if rec.Machine != (machineState{}) {
		t.Machine = rec.Machine.String()
	}
	var loads []string
	for _, r := range rec.Runs {
		t.Rounds = max(t.Rounds, r.Round+1)
		if !slices.Contains(loads, r.Row) {
			loads = append(loads, r.Row)
		}
	}
	for _, load := range loads {
		runs := runsOf(rec.Runs, load)
		for _, m := range figuresOf(load) {
			var systems []string
			for _, r := range rec.Runs { // in the order in which they were measured
				if len(runs[r.System]) > 0 && !slices.Contains(systems, r.System) {
					systems = append(systems, r.System)
				}
			}
			for _, system := range systems {
				v := values(runs[system], m.of)
				t.Rows = append(t.Rows, summaryRow{
					Load: load, Figure: m.name, System: system,
					Median: sixDigits(stats.Median(v)), Low: sixDigits(slices.Min(v)), High: sixDigits(slices.Max(v)),
				})
			}
		}
	}
	return t
}

// figuresOf are the metrics that count for a load.
func figuresOf(load string) []metric {
	switch {
	case load == pipeName:
		return []metric{{name: throughput.name, of: func(o *outcome) float64 { return o.Pipe.BytesPerSecond / 1e6 }}}
	case strings.HasPrefix(load, "latency/"):
		return []metric{p50, p99, p999}
	}
	return []metric{throughput}
}

func sixDigits(v float64) float64 {
	short, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
	if err != nil {
		return v
	}
	return short
}

// write writes the medians of all systems side by side, and where they come from.
func (s *summary) write(out io.Writer) {
	var systems []string
	for _, t := range s.Tables {
		for _, r := range t.Rows {
			if r.System != pipeName && slices.Contains(shownTables, t.Name) && !slices.Contains(systems, r.System) {
				systems = append(systems, r.System)
			}
		}
	}
	head := []string{"Run", "Load", "Figure"}
	for _, system := range systems {
		head = append(head, title(system))
	}
	lines := program.Table{head}
	var origins []string
	for _, t := range s.Tables {
		if !slices.Contains(shownTables, t.Name) {
			continue
		}
		var key string
		for _, r := range t.Rows {
			if r.System == pipeName {
				continue
			}
			if k := r.Load + r.Figure; k != key {
				key = k
				line := append([]string{t.Name, loadTitle(r.Load), r.Figure}, make([]string, len(systems))...)
				lines = append(lines, line)
			}
			lines[len(lines)-1][3+slices.Index(systems, r.System)] = fmt.Sprintf("%.0f", r.Median)
		}
		e := t.Environment
		e.Commit = "" // of the tool: the same
		origin := fmt.Sprintf("- %s: commit %s, %s, %d rounds, `%s`; %s", t.Name, t.Commit, t.Began.Format("2006-01-02 15:04 UTC"), t.Rounds, t.Command, e.String())
		if t.Machine != "" {
			origin += "; " + t.Machine
		}
		origins = append(origins, origin+".")
	}
	lines.Write(out, 3)
	fmt.Fprintf(out, "\n%s\n", strings.Join(origins, "\n"))
}

// shapeName is the name that rowOf gives to a load.
var shapeName = regexp.MustCompile(`^(\w+)/payload=(\d+)/fanout=(\d+)/conns=(\d+)$`)

// loadTitle is a load for people, from its name.
func loadTitle(name string) string {
	m := shapeName.FindStringSubmatch(name)
	if m == nil {
		return name
	}
	payload, err := strconv.Atoi(m[2])
	if err != nil {
		return name
	}
	batch := " × 64"
	if m[1] == "latency" {
		batch = " × 1"
	}
	if m[1] == "json" {
		batch += ", JSON"
	}
	return fmt.Sprintf("%s%s to %s on %s", size(payload), batch, m[3], m[4])
}
