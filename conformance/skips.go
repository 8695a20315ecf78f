package conformance

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed skipped.txt
var skippedText string

// skip is a line of a list of skips.
type skip struct{ when, id, reason string }

// skipsFor returns the cases that do not run, with the reasons: those that a line of skipped.txt names, as far as its
// condition holds. A case that cannot run and has no line is an error.
func skipsFor(cases []Case, f *Fixture, o Options) (map[string]string, error) {
	var ids []string
	for _, c := range cases {
		ids = append(ids, c.ID)
	}
	reasons, err := ReadSkips(skippedText, ids, map[string]bool{
		"always":    true,
		"quick":     !o.Long,
		"reference": f.Reference,
		"fixed":     o.CreateStream == nil,
		"memory":    f.DurableStream == "",
	})
	if err != nil {
		return nil, fmt.Errorf("conformance: skipped.txt: %w", err)
	}
	for _, c := range cases {
		if c.run == nil && reasons[c.ID] == "" {
			return nil, fmt.Errorf("conformance: case %q cannot run and skipped.txt does not say why", c.ID)
		}
	}
	return reasons, nil
}

// ReadSkips reads a list of cases that do not run and returns the reasons by id. Each line has a condition, an id and
// the reason; it counts if the condition holds, and the first that does is the reason. Empty lines and those that begin
// with # mean nothing. Nothing else may skip a case, so the list is complete by itself: an unknown condition, and a
// line without its case, are errors.
func ReadSkips(text string, ids []string, conditions map[string]bool) (map[string]string, error) {
	reasons := make(map[string]string)
	for _, s := range parseSkips(text) {
		holds, ok := conditions[s.when]
		switch {
		case !ok:
			return nil, fmt.Errorf("unknown condition %q", s.when)
		case !slices.Contains(ids, s.id):
			return nil, fmt.Errorf("no case %q", s.id)
		case holds && reasons[s.id] == "":
			reasons[s.id] = s.reason
		}
	}
	return reasons, nil
}

func parseSkips(text string) []skip {
	var skips []skip
	for line := range strings.Lines(text) {
		when, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if when == "" || strings.HasPrefix(when, "#") {
			continue
		}
		id, reason, _ := strings.Cut(strings.TrimSpace(rest), " ")
		skips = append(skips, skip{when, id, strings.TrimSpace(reason)})
	}
	return skips
}
