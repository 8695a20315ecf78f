package isolation

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// good is a round in which B feels nothing.
func good() round {
	l := latencies{Deliver: time.Millisecond, Get: time.Millisecond, Connect: 4 * time.Millisecond}
	return round{
		Control: l, Under: l, Calls: 1000, Before: 40 << 20, Peak: 100 << 20, Bound: 160 << 20, After: 41 << 20, Back: time.Second, IsBack: true,
	}
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		worsen func(*round)
		says   string
	}{
		"good":                        {func(*round) {}, ""},
		"below the floor":             {func(r *round) { r.Under.Deliver, r.Under.Get, r.Under.Connect = callFloor, callFloor, connectFloor }, ""},
		"twice as slow above it":      {func(r *round) { r.Control.Deliver, r.Under.Deliver = 10*time.Millisecond, 20*time.Millisecond }, ""},
		"memory within its slack":     {func(r *round) { r.Peak = r.Bound / 10 * 11 }, ""},
		"a call of B fails":           {func(r *round) { r.Errors = map[string]int{"get: miss": 1} }, `1 of 3000 calls of B fail, most with "get: miss"`},
		"B makes no call":             {func(r *round) { r.Calls = 0 }, "B made no call"},
		"slow deliveries":             {func(r *round) { r.Under.Deliver = callFloor + 1e6 }, "p99 of publish→deliver 5.0 ms, allowed 4.0"},
		"slow gets":                   {func(r *round) { r.Control.Get, r.Under.Get = 10*time.Millisecond, 21*time.Millisecond }, "p99 of get 21.0 ms, allowed 20.0"},
		"slow connections":            {func(r *round) { r.Under.Connect = time.Second }, "p99 of connect 1000.0 ms, allowed 10.0"},
		"memory beyond the bound":     {func(r *round) { r.Peak = 200 << 20 }, "200 MiB resident, allowed 192"},
		"memory that stays":           {func(r *round) { r.IsBack, r.Away = false, "90 MiB resident, allowed 56" }, "not back within 10s: 90 MiB"},
		"what the attacker has found": {func(r *round) { r.Faults = []string{"A may get what is B's"} }, "A may get what is B's"},
	} {
		t.Run(name, func(t *testing.T) {
			rounds := []round{good(), good(), good()}
			for i := range rounds {
				c.worsen(&rounds[i])
				if strings.HasPrefix(name, "a call") && i > 0 {
					rounds[i].Errors = nil // one in all rounds is enough
				}
			}
			r := judge(attack{name: "x"}, rounds)
			got := strings.Join(r.Failures, "; ")
			if c.says == "" && got != "" || !strings.Contains(got, c.says) || len(r.Failures) > 1 {
				t.Errorf("judged %q, want %q", got, c.says)
			}
			var row bytes.Buffer
			r.print(&row)
			if strings.Contains(row.String(), "FAILS") != (c.says != "") {
				t.Errorf("the row is %s", row.String())
			}
			if (failures([]*result{r}) == 1) != (c.says != "") {
				t.Error("the exit code would be another")
			}
		})
	}
}

// One slow round of three is noise; memory, errors and faults of one round count.
func TestJudgeTakesMedians(t *testing.T) {
	slow, large, stays, faulty := good(), good(), good(), good()
	slow.Under = latencies{Deliver: time.Second, Get: time.Second, Connect: time.Second}
	large.Peak = 300 << 20
	stays.IsBack, stays.Away = false, "memory"
	faulty.Faults = []string{"fault"}
	for want, r := range map[string]round{"": slow, "300 MiB resident, allowed 192": large, "not back within 10s: memory": stays, "fault": faulty} {
		if got := strings.Join(judge(attack{}, []round{good(), r, good()}).Failures, "; "); got != want {
			t.Errorf("judged %q, want %q", got, want)
		}
	}
	if r := judge(attack{}, nil); len(r.Failures) == 0 {
		t.Error("an attack that was not measured holds")
	}
}

func TestBack(t *testing.T) {
	l := good().Control
	for _, c := range []struct {
		l           latencies
		before, now int64
		ok          bool
	}{
		{l, 40 << 20, 56 << 20, true},
		{l, 40 << 20, 57 << 20, false},
		{l, 1000 << 20, 1050 << 20, true},
		{l, 1000 << 20, 1051 << 20, false},
		{l, 40 << 20, 0, true},
		{latencies{Deliver: time.Second}, 40 << 20, 40 << 20, false},
	} {
		if ok, away := back(c.l, l.allowed(), c.before, c.now); ok != c.ok || ok != (away == "") {
			t.Errorf("%d → %d: %v %q, want %v", c.before, c.now, ok, away, c.ok)
		}
	}
}

func TestAttacksAreDescribed(t *testing.T) {
	names := map[string]bool{}
	for _, a := range attacks {
		if a.name == "" || a.does == "" || a.breaks == "" || a.run == nil || names[a.name] {
			t.Errorf("attack %q is not complete, or there twice", a.name)
		}
		names[a.name] = true
	}
	if len(attacks) < 40 {
		t.Errorf("%d attacks", len(attacks))
	}
	if _, err := choose([]string{"no such attack"}); err == nil {
		t.Error("an attack that does not exist was chosen")
	}
}

func TestFillIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "isolation.md")
	first, second := attacks[0].name, attacks[1].name
	results := []*result{judge(attack{name: second}, nil), judge(attack{name: first}, []round{good()})}
	if err := os.WriteFile(file, []byte("no place\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fillIn(file, results); err == nil {
		t.Error("a table was put where there is no place for one")
	}
	if err := os.WriteFile(file, []byte("# Title\n<!-- isolation -->\nolder\n<!-- end of isolation -->\nEnd\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantTable := func(rows ...string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "| "); ok {
				got = append(got, strings.Fields(name)[0]+map[bool]string{true: " FAILS"}[strings.Contains(line, "FAILS")])
			}
		}
		if !slices.Equal(got, append([]string{"A", "---"}, rows...)) {
			t.Errorf("the rows are %q, want %q", got, rows)
		}
		if !strings.HasPrefix(string(text), "# Title\n<!-- isolation -->\n") || !strings.HasSuffix(string(text), "<!-- end of isolation -->\nEnd\n") || strings.Contains(string(text), "older") {
			t.Errorf("the document is\n%s", text)
		}
	}
	if err := fillIn(file, results); err != nil {
		t.Fatal(err)
	}
	wantTable(first, second+" FAILS")
	if err := fillIn(file, []*result{judge(attack{name: second}, []round{good()})}); err != nil {
		t.Fatal(err)
	}
	wantTable(first, second)
}

func TestFlags(t *testing.T) {
	for want, all := range map[int][][]string{
		0: {{"--list"}, {"--help"}},
		2: {{"--only", "nothing"}, {"--rounds", "0"}, {"--duration", "1h"}, {"--set", "X=1"}, {"--set", "FELIX_X"}, {"x"}, {"--nothing"}},
	} {
		for _, args := range all {
			var out, log bytes.Buffer
			if got := Run(t.Context(), args, &out, &log); got != want || want == 2 && log.Len() == 0 {
				t.Errorf("%q: status %d, want %d; %s", args, got, want, log.String())
			}
		}
	}
}
