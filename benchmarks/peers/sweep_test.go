package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The search takes the best value of each knob with those of the knobs before, unless it gains too little or fails.
func TestSearchKnobs(t *testing.T) {
	throughputRow := rowOf(batches(256, 10, 10), throughput)
	latencyRow := rowOf(single(1024, 1, 1), p50)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		row     row
		measure func(settings) (float64, error)
		want    settings // other than the defaults
		failed  string   // knob of which all values do
	}{
		"a peak": {
			throughputRow, func(s settings) (float64, error) {
				figure := 100.0
				if s[inFlight] == 4<<20 {
					figure = 150
				}
				if s[serverProcs] == 0 && s[inFlight] == 4<<20 { // good with much in flight only
					figure = 220
				}
				return figure, nil
			},
			settings{inFlight: 4 << 20, serverProcs: 0},
			"",
		},
		"too little": {
			throughputRow, func(s settings) (float64, error) { return 100 + float64(s[inFlight])/(20<<20), nil }, settings{}, "",
		},
		"less is better": {
			latencyRow, func(s settings) (float64, error) { return 50 + float64(s[serverProcs])*10, nil }, settings{serverProcs: 0}, "",
		},
		"the best fails": {
			throughputRow, func(s settings) (float64, error) {
				if s[inFlight] == 16<<20 {
					return 0, broken
				}
				return 100 + float64(s[inFlight]>>20), nil
			},
			settings{inFlight: 4 << 20},
			"",
		},
		"all fail": {throughputRow, func(settings) (float64, error) { return 0, broken }, nil, inFlight},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			b, err := searchKnobs(&tc.row, natsName, 3, func(s settings) (float64, error) {
				calls++
				return tc.measure(s)
			})
			if tc.failed != "" {
				if !errors.Is(err, broken) || !strings.Contains(err.Error(), tc.failed) {
					t.Errorf("got %+v, %v", b, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := defaults(natsPeer.knobs)
			maps.Copy(want, tc.want)
			if !maps.Equal(b.Settings, want) {
				t.Errorf("got %v, want %v", b.Settings, want)
			}
			kept := 0
			for _, tried := range b.Tried {
				for _, v := range tried.Values {
					if kept += len(v.Figures); len(v.Figures) != 3 && v.Error == "" {
						t.Errorf("%s %d has %d figures, want 3", tried.Knob, v.Value, len(v.Figures))
					}
				}
			}
			if failed := calls - kept; name != "the best fails" && failed != 0 || failed > 1 {
				t.Errorf("%d of %d measurements are not recorded", failed, calls)
			}
			if tc.row.load.Window == 1 && b.Tried[0].Knob == inFlight {
				t.Error("one event in flight, and the window was tried")
			}
		})
	}
}

// Much in flight to many subscriptions would be more than queues hold.
func TestCandidates(t *testing.T) {
	for fanout, want := range map[int]int{1: 4, 10: 4, 64: 3} {
		if got := inFlightKnob.candidates(shape{Fanout: fanout, Window: 2}); len(got) != want {
			t.Errorf("fanout %d: %v", fanout, got)
		}
	}
}

// A sweep replaces what is known of its shapes and systems and nothing else.
func TestSweepFile(t *testing.T) {
	f := new(sweepFile)
	f.add(sweepRecord{Commit: "one"}, []best{{Row: "a", System: "x"}, {Row: "a", System: "y"}, {Row: "b", System: "x"}})
	f.add(sweepRecord{Commit: "two"}, []best{{Row: "a", System: "x", Settings: settings{inFlight: 7}}})
	if len(f.Sweeps) != 2 || len(f.Best) != 3 {
		t.Fatalf("got %+v", f)
	}
	if b := f.find("a", "x"); f.Sweeps[b.Sweep].Commit != "two" || b.Settings[inFlight] != 7 {
		t.Errorf("got %+v of %s", b, f.Sweeps[b.Sweep].Commit)
	}
	if b := f.find("b", "x"); f.Sweeps[b.Sweep].Commit != "one" {
		t.Errorf("got %+v", b)
	}
	f.add(sweepRecord{Commit: "three"}, []best{{Row: "a", System: "y"}, {Row: "b", System: "x"}})
	if len(f.Sweeps) != 2 || f.Sweeps[0].Commit != "two" || f.Sweeps[f.find("a", "y").Sweep].Commit != "three" {
		t.Errorf("a sweep of which nothing remains is kept: %+v", f)
	}
	file := filepath.Join(t.TempDir(), "sweep.json")
	if err := f.save(file); err != nil {
		t.Fatal(err)
	}
	again, err := readSweeps(file)
	if err != nil || len(again.Best) != 3 || again.find("a", "x").Settings[inFlight] != 7 {
		t.Errorf("%+v, %v", again, err)
	}
	for text, want := range map[string]string{
		`{"sweeps": [], "best": [{"row": "a", "system": "x", "sweep": 0}]}`: "of a sweep 0",
		`{"rows": []}`: "unknown field",
		`not JSON`:     "invalid character",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSweeps(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What is kept names shapes, systems and knobs that there are.
func TestKeptSweeps(t *testing.T) {
	f, err := readSweeps("")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, r := range append(peersRows(true), floorRows(true)...) {
		rows[r.name] = true
	}
	for _, b := range f.Best {
		if !rows[b.Row] {
			t.Errorf("no table has the shape %s", b.Row)
		}
		if _, err := systemNames("", b.System); err != nil {
			t.Error(err)
			continue
		}
		known := defaults(knobsOf(b.System))
		for name := range b.Settings {
			if _, ok := known[name]; !ok {
				t.Errorf("%s has no setting %s", b.System, name)
			}
		}
	}
}

func TestSettingsOf(t *testing.T) {
	f := new(sweepFile)
	f.add(sweepRecord{}, []best{{Row: "r", System: natsName, Settings: settings{inFlight: 1 << 20, serverProcs: 0}}})
	o := &options{sweeps: f}
	knobs := knobsOf(natsName)
	for _, tc := range []struct {
		row, system string
		fixed       settings
		text        string
		swept       bool
	}{
		{"r", natsName, nil, "in_flight 1 MiB, server_procs 0", true},
		{"r", natsName + defaultSuffix, nil, unset, false},
		{"s", natsName, nil, unset, false},
		{"r", natsName + plainSuffix, nil, unset, false},
		{"r", natsName, settings{serverProcs: 1}, "in_flight 1 MiB", true},
	} {
		o.fixed = tc.fixed
		set, swept := o.settingsOf(tc.row, tc.system)
		if set.text(knobs) != tc.text || swept != tc.swept {
			t.Errorf("%s of %s: %s, swept %t", tc.system, tc.row, set.text(knobs), swept)
		}
	}
	load := batches(256, 10, 10)
	if s := (settings{inFlight: 1 << 20}).shape(load); s.Window != 64 || s.Volume != enoughVolume {
		t.Errorf("got %+v", s)
	}
	one := single(256, 10, 10)
	if s := (settings{inFlight: 1 << 20}).shape(one); s != one {
		t.Errorf("a load of one event at a time became %+v", s)
	}
}

// Each value of each knob gives a run in which everything arrives, with the systems that this machine has.
func TestEveryKnob(t *testing.T) {
	for name, p := range peers {
		for _, k := range p.knobs {
			if k.name == serverProcs || k.name == loadProcs { // of processes
				continue
			}
			for _, v := range k.values[1:] {
				t.Run(strings.ReplaceAll(name+" "+k.name+" "+k.valueText(v), " ", "-"), func(t *testing.T) {
					if _, err := p.version(); err != nil {
						skipMissing(t, err)
					}
					set := defaults(p.knobs)
					set[k.name] = v
					s := shape{Fanout: 2, Conns: 2, Payload: 64, Batch: 8, Window: 3, Duration: time.Millisecond, MaxDuration: time.Hour}
					if k.name == inFlight {
						s.Payload, s.Batch = 4096, 64
						s = set.shape(s)
						s.Volume = 1
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					res, err := runPeer(ctx, s, p, true, set)
					if err != nil {
						t.Fatal(err)
					}
					if res.Published == 0 || res.Delivered != 2*res.Published || res.Unaccounted != 0 {
						t.Errorf("got %+v", res)
					}
				})
			}
		}
	}
}

// The whole way of a sweep: it is recorded with the state of the machine, and a table is made with it.
func TestSweepAndTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sweep.json")
	var out, errs bytes.Buffer
	short := []string{"--rounds", "1", "--duration", "5ms", "--warmup", "1ms", "--only", "^latency.*fanout=1/"}
	args := append([]string{sweepName, "--systems", felixName, "--out", file, "--commit", "abc"}, short...)
	if status := command(t.Context(), args, &out, &errs); status != 0 {
		t.Fatalf("status %d\n%s", status, &errs)
	}
	f, err := readSweeps(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Best) != 1 || len(f.Best[0].Tried) != 2 || f.Sweeps[0].Commit != "abc" || f.Sweeps[0].Environment.CPUs == 0 {
		t.Errorf("got %+v", f)
	}
	if !strings.Contains(out.String(), "latency/payload=1024/fanout=1/conns=1: felix: ") || !strings.Contains(out.String(), "Machine: ") {
		t.Errorf("printed %s", &out)
	}
	out.Reset()
	args = append([]string{peersSuite.name, "--settings", file, "--against", "felix@default,nats-plain"}, short...)
	if status := command(t.Context(), args, &out, &errs); status != 0 {
		t.Fatalf("status %d\n%s", status, &errs)
	}
	for _, want := range []string{
		"| Felix, defaults | defaults", "\nSettings: found by bench-peers sweep ", "\nNot swept for every load above, and then with the defaults: Felix, defaults, NATS.\n",
		"\nMeanwhile ", "\n- in_flight: ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestSweepArguments(t *testing.T) {
	for _, args := range [][]string{
		{"--rounds", "0"}, {"--duration", "0s"}, {"--only", "("}, {"--table", "mars"}, {"--systems", "mars"}, {"more"}, {"--mars"},
	} {
		var out, errs bytes.Buffer
		if status := runSweep(t.Context(), args, &out, &errs); status != 2 || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: status %d, said %q", args, status, &errs)
		}
	}
	var out, errs bytes.Buffer
	if status := runSweep(t.Context(), []string{"--help"}, &out, &errs); status != 0 || !strings.Contains(errs.String(), "--systems") {
		t.Errorf("--help: status %d, said %q", status, &errs)
	}
	for _, args := range [][]string{{"--against", "felix"}, {"--settings", "nosuch.json"}} {
		errs.Reset()
		if status := command(t.Context(), append([]string{"peers"}, args...), &out, &errs); status != 2 || errs.Len() == 0 {
			t.Errorf("%v: status %d, said %q", args, status, &errs)
		}
	}
}

// Others is a part of the machine, whatever it does.
func TestMachineState(t *testing.T) {
	m := watchMachine()()
	if m.Others > 1.5 || m.Others < 0 && m.Others != -1 {
		t.Errorf("got %+v", m)
	}
	for state, want := range map[machineState]string{
		{Others: -1}:   "unknown",
		{Others: 0.01}: "others used 1 % of the processors",
		{Others: 0.5}:  "NOT QUIET",
	} {
		if !strings.Contains(state.String(), want) {
			t.Errorf("%+v: %s", state, state)
		}
	}
}
