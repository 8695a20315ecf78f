package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/felix-mq/felix/loadgen"
)

// UnlikeError refuses a comparison of what cannot be compared: its figures would differ for another reason than the
// code.
type UnlikeError struct {
	Differences []string // each names what differs, and both values
}

func (e *UnlikeError) Error() string {
	return "report: the runs are unlike, so their figures say nothing about the code:\n  " + strings.Join(e.Differences, "\n  ")
}

// source is where trials come from.
type source struct {
	name, commit string
	environment  loadgen.Environment
}

func (r *Report) from(name string) []source {
	if len(r.sources) > 0 {
		return r.sources
	}
	return []source{{name, r.Commit, r.Environment}}
}

// CheckEnvironment returns an [UnlikeError] if the trials of a report were made on another machine or by another kind
// of build than those of that environment would be. Commits may differ.
func CheckEnvironment(base *Report, e loadgen.Environment) error {
	head := Report{Environment: e}
	if d := unlikeSources(base.from("base"), head.from("this")); len(d) > 0 {
		return &UnlikeError{d}
	}
	return nil
}

// unlikeSources compares where and how trials were made. Within a side the commits have to be equal as well.
func unlikeSources(base, head []source) (differences []string) {
	add := func(d string) {
		if !slices.Contains(differences, d) {
			differences = append(differences, d)
		}
	}
	first := base[0]
	for _, s := range slices.Concat(base[1:], head) {
		for _, d := range unlikeEnvironments(&first.environment, &s.environment) {
			add(fmt.Sprintf("%s (%s; %s)", d, first.name, s.name))
		}
	}
	for _, side := range [][]source{base, head} {
		for _, s := range side[1:] {
			if s.commit != side[0].commit {
				add(fmt.Sprintf("trials of one side are of two commits: %s and %s (%s; %s)", side[0].commit, s.commit, side[0].name, s.name))
			}
		}
	}
	return differences
}

func unlikeEnvironments(a, b *loadgen.Environment) (differences []string) {
	for _, f := range []struct {
		what string
		a, b any
	}{
		{"machine: processor", a.CPU, b.CPU},
		{"machine: number of processors", a.CPUs, b.CPUs},
		{"machine: kernel", a.Kernel, b.Kernel},
		{"machine: system", a.OS, b.OS},
		{"machine: most bytes of a receive buffer", a.ReceiveBufferMax, b.ReceiveBufferMax},
		{"machine: most bytes of a send buffer", a.SendBufferMax, b.SendBufferMax},
		{"GOMAXPROCS", a.GOMAXPROCS, b.GOMAXPROCS},
		{"variables", a.Variables, b.Variables},
		{"build: Go", a.Go, b.Go},
		{"build: profile (PGO)", a.PGO, b.PGO},
		{"build: tags", a.Tags, b.Tags},
		{"build: race detector", a.Race, b.Race},
	} {
		if f.a != f.b {
			differences = append(differences, fmt.Sprintf("%s: %s and %s", f.what, valueText(f.a), valueText(f.b)))
		}
	}
	return differences
}

func valueText(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		if v == "" {
			return "none"
		}
		return v
	}
	return fmt.Sprint(v)
}

// pair is a load of which both sides have trials.
type pair struct{ base, head *Cell }

// pairs finds for each load of head that of base. differences say which loads have no equal in base; these are paired
// with the load that is most like them. Loads of base alone are left out, and named.
func pairs(base, head *Report) (all []pair, differences, leftOut []string) {
	free := slices.Clone(base.Cells)
	take := func(c *Cell) { free = slices.DeleteFunc(free, func(f *Cell) bool { return f == c }) }
	var unlike []*Cell
	for _, h := range head.Cells {
		if len(h.Trials) == 0 {
			continue
		}
		i := slices.IndexFunc(free, func(b *Cell) bool { return b.same(h) })
		if i < 0 {
			unlike = append(unlike, h)
			continue
		}
		all = append(all, pair{free[i], h})
		take(free[i])
	}
	for _, h := range unlike {
		var closest *Cell
		var least []string
		for _, b := range free {
			if d := b.unlike(h); closest == nil || len(d) < len(least) {
				closest, least = b, d
			}
		}
		if closest == nil {
			differences = append(differences, fmt.Sprintf("load: base has none to compare with %q", h.Load))
			continue
		}
		for _, d := range least {
			differences = append(differences, fmt.Sprintf("load: %s (%q)", d, h.Load))
		}
		all = append(all, pair{closest, h})
		take(closest)
	}
	for _, b := range free {
		leftOut = append(leftOut, b.Load)
	}
	return all, differences, leftOut
}

// same reports whether the trials of two cells are of the same load.
func (c *Cell) same(other *Cell) bool {
	return c.Load == other.Load && reflect.DeepEqual(c.parameters(), other.parameters())
}

// parameters are those of the load by name, or nil if the report does not have them.
func (c *Cell) parameters() map[string]any {
	var m map[string]any
	if json.Unmarshal(c.Config, &m) != nil { // none, or not an object
		return nil
	}
	return m
}

// unlike names the parameters that differ.
func (c *Cell) unlike(other *Cell) (differences []string) {
	a, b := c.parameters(), other.parameters()
	if a == nil || b == nil {
		if c.Load != other.Load {
			return []string{fmt.Sprintf("%q and %q", c.Load, other.Load)}
		}
		return []string{"a report does not record the parameters of its load: it was made by an older loadgen"}
	}
	names := maps.Clone(a)
	maps.Copy(names, b)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !reflect.DeepEqual(a[name], b[name]) {
			differences = append(differences, fmt.Sprintf("%s: %s and %s", name, valueText(a[name]), valueText(b[name])))
		}
	}
	if len(differences) == 0 && c.Load != other.Load { // another scenario with the same parameters
		differences = append(differences, fmt.Sprintf("%q and %q", c.Load, other.Load))
	}
	return differences
}
