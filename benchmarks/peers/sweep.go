package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/program"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
)

// A sweep finds the best settings of each system for each shape: knob after knob, in the order of knobsOf, it tries all
// values, alternating, with the best values of the knobs before, and keeps the one with the best median of the row's
// first figure. A value has to be better than the one without a sweep by minGain, so that noise sets nothing.

// sweepName is the command.
const sweepName = "sweep"

// minGain is by how much a value has to be better.
const minGain = 0.02

// kept are the sweeps that the tables are made with.
//
//go:embed sweep.json
var kept []byte

// sweepFile is what sweeps found.
type sweepFile struct {
	Sweeps []sweepRecord `json:"sweeps"`
	Best   []best        `json:"best"`
}

// sweepRecord says where findings come from.
type sweepRecord struct {
	Command     string              `json:"command"`
	Commit      string              `json:"commit"`
	Began       time.Time           `json:"began"`
	Rounds      int                 `json:"rounds"`
	Duration    string              `json:"duration"` // of a run
	Versions    map[string]string   `json:"versions"`
	Missing     []string            `json:"missing,omitempty"` // systems that this machine does not have
	Environment loadgen.Environment `json:"environment"`
	Machine     machineState        `json:"machine"`
}

// best are the settings of a system for a row.
type best struct {
	Row      string   `json:"row"`
	System   string   `json:"system"`
	Sweep    int      `json:"sweep"` // index of the record
	Settings settings `json:"settings"`
	Tried    []tried  `json:"tried"`
}

// tried is a knob with its values, all other settings equal.
type tried struct {
	Knob   string       `json:"knob"`
	Values []triedValue `json:"values"`
}

type triedValue struct {
	Value   int       `json:"value"`
	Figures []float64 `json:"figures"` // one for each round
	Error   string    `json:"error,omitempty"`
}

// readSweeps reads a file, or what is kept if the name is empty.
func readSweeps(name string) (*sweepFile, error) {
	b := kept
	if name != "" {
		var err error
		if b, err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	f := new(sweepFile)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return nil, fmt.Errorf("sweep %s: %w", name, err)
	}
	for _, e := range f.Best {
		if e.Sweep < 0 || e.Sweep >= len(f.Sweeps) {
			return nil, fmt.Errorf("sweep %s: %s of %s is of a sweep %d, and there are %d", name, e.Row, e.System, e.Sweep, len(f.Sweeps))
		}
	}
	return f, nil
}

func (f *sweepFile) find(row, system string) *best {
	i := slices.IndexFunc(f.Best, func(b best) bool { return b.Row == row && b.System == system })
	if i < 0 {
		return nil
	}
	return &f.Best[i]
}

// add puts the findings of a sweep in place of older ones of the same rows and systems, and leaves out sweeps of which
// nothing remains.
func (f *sweepFile) add(rec sweepRecord, found []best) {
	f.Best = slices.DeleteFunc(f.Best, func(old best) bool {
		return slices.ContainsFunc(found, func(b best) bool { return b.Row == old.Row && b.System == old.System })
	})
	for _, b := range found {
		b.Sweep = len(f.Sweeps)
		f.Best = append(f.Best, b)
	}
	all := append(f.Sweeps, rec)
	f.Sweeps = nil
	for i, s := range all {
		number := -1
		for j := range f.Best {
			if b := &f.Best[j]; b.Sweep == i {
				if number < 0 {
					number = len(f.Sweeps)
					f.Sweeps = append(f.Sweeps, s)
				}
				b.Sweep = number
			}
		}
	}
}

func (f *sweepFile) save(name string) error {
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// settingsOf returns the settings of a system for a row, and whether a sweep found them.
func (o *options) settingsOf(row, system string) (set settings, swept bool) {
	set = defaults(knobsOf(system))
	if !strings.HasSuffix(system, defaultSuffix) && o.sweeps != nil {
		if b := o.sweeps.find(row, system); b != nil {
			swept = true
			maps.Copy(set, b.Settings)
		}
	}
	maps.Copy(set, o.fixed)
	return set, swept
}

// runSweep is the command `peers sweep`.
func runSweep(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := options{
		gogc: "400", command: strings.Join(append([]string{"bench-peers", sweepName}, args...), " "),
		rounds: 3, duration: time.Second, warmup: 200 * time.Millisecond, maxDuration: 20 * time.Second,
	}
	flags := program.Flags("peers "+sweepName, stderr)
	only := o.add(flags)
	table := flags.String("table", peersSuite.name, "whose shapes: "+peersSuite.name+" or "+floorSuite.name)
	systems := flags.String("systems", "", "`names` separated by commas; all of the table and Felix if empty")
	out := flags.String("out", "", "`file` to record in: findings of the same shapes and systems are replaced; none prints alone")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	fail := func(status int, err error) int {
		fmt.Fprintln(stderr, "peers:", err)
		return status
	}
	err := o.check(flags, *only)
	if err != nil {
		return fail(2, err)
	}
	s := &peersSuite
	switch *table {
	case peersSuite.name:
	case floorSuite.name:
		s = &floorSuite
	default:
		return fail(2, fmt.Errorf("--table %q: want %s or %s", *table, peersSuite.name, floorSuite.name))
	}
	names := felixName + "," + s.against
	if *systems != "" {
		names = *systems
	}
	if o.against, err = systemNames("--systems", names); err != nil {
		return fail(2, err)
	}
	f := &sweepFile{Sweeps: []sweepRecord{}, Best: []best{}}
	if *out != "" {
		if f, err = readSweeps(*out); errors.Is(err, fs.ErrNotExist) {
			f = &sweepFile{}
		} else if err != nil {
			return fail(1, err)
		}
	}
	rec := sweepRecord{
		Command: o.command, Commit: o.commit, Began: time.Now().UTC().Truncate(time.Second), Rounds: o.rounds, Duration: o.duration.String(),
		Versions: map[string]string{}, Environment: loadgen.CurrentEnvironment(),
	}
	o.against = slices.DeleteFunc(o.against, func(system string) bool {
		p, _ := peerOf(system)
		if p == nil {
			return false
		}
		version, err := p.version()
		if err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", system, err)
			rec.Missing = append(rec.Missing, system)
			return true
		}
		rec.Versions[p.title] = version
		return false
	})
	watch := watchMachine()
	var found []best
	for _, r := range s.rows(true) {
		if !o.only.MatchString(r.name) || r.name == pipeName {
			continue
		}
		for _, system := range o.against {
			b, err := sweepRow(ctx, &o, &r, system, stderr)
			if err != nil {
				return fail(1, err)
			}
			found = append(found, *b)
			fmt.Fprintf(stdout, "%s: %s: %s\n", r.name, system, b.Settings.text(knobsOf(system)))
		}
	}
	rec.Machine = watch()
	fmt.Fprintf(stdout, "Machine: %s.\n", rec.Machine)
	if len(found) == 0 {
		return fail(1, errors.New("nothing was swept"))
	}
	if *out == "" {
		return 0
	}
	f.add(rec, found)
	if err := f.save(*out); err != nil {
		return fail(1, err)
	}
	return 0
}

// sweepRow finds the settings of a system for a row.
func sweepRow(ctx context.Context, o *options, r *row, system string, stderr io.Writer) (*best, error) {
	return searchKnobs(r, system, o.rounds, func(set settings) (float64, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		fmt.Fprintf(stderr, "%s: %s: %s ... ", r.name, system, set.text(knobsOf(system)))
		out, err := runWorker(ctx, o, job{System: system, Shape: r.shape(o, set), Set: set})
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 0, err
		}
		fmt.Fprintln(stderr, out.summary())
		return r.metrics[0].of(out), nil
	})
}

// searchKnobs tries the knobs of a system one after the other. A value that fails in one round is not taken; if all
// fail, that is the error.
func searchKnobs(r *row, system string, rounds int, measure func(settings) (float64, error)) (*best, error) {
	b := &best{Row: r.name, System: system, Settings: defaults(knobsOf(system))}
	lower := r.metrics[0].lower
	for _, k := range knobsOf(system) {
		candidates := k.candidates(r.load)
		if len(candidates) < 2 {
			continue
		}
		t := tried{Knob: k.name}
		for _, v := range candidates {
			t.Values = append(t.Values, triedValue{Value: v})
		}
		var first error
		for range rounds {
			for i := range t.Values {
				v := &t.Values[i]
				if v.Error != "" {
					continue
				}
				set := maps.Clone(b.Settings)
				set[k.name] = v.Value
				figure, err := measure(set)
				if errors.Is(err, context.Canceled) {
					return nil, err
				}
				if err != nil {
					v.Error = err.Error()
					if first == nil {
						first = err
					}
					continue
				}
				v.Figures = append(v.Figures, figure)
			}
		}
		chosen := -1
		for i := range t.Values {
			v := &t.Values[i]
			if v.Error != "" {
				continue
			}
			if chosen < 0 || better(stats.Median(v.Figures), stats.Median(t.Values[chosen].Figures), chosen == 0, lower) {
				chosen = i
			}
		}
		if chosen < 0 {
			return nil, fmt.Errorf("%s: %s: all values of %s failed: %w", r.name, system, k.name, first)
		}
		b.Settings[k.name] = t.Values[chosen].Value
		b.Tried = append(b.Tried, t)
	}
	return b, nil
}

// better reports whether a figure is better than another, and by minGain if that is the one without a sweep.
func better(a, b float64, usual, lower bool) bool {
	gain := a/b - 1
	if lower {
		gain = b/a - 1
	}
	if usual {
		return gain >= minGain
	}
	return gain > 0
}
