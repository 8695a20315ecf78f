package conformance

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed skipped.txt
var skippedText string

// skip is a line of skipped.txt.
type skip struct{ when, id, reason string }

// skipsFor returns the cases that do not run, with the reasons: those that a line of skipped.txt names, as far as its
// condition holds. Nothing else skips a case, so the list is complete by itself; a line without a case, and a case that
// cannot run and has no line, are errors.
func skipsFor(cases []Case, f *Fixture, o Options) (map[string]string, error) {
	conditions := map[string]bool{
		"always":    true,
		"quick":     !o.Long,
		"reference": f.Reference,
		"fixed":     o.CreateStream == nil,
	}
	known := make(map[string]bool, len(cases))
	for _, c := range cases {
		known[c.ID] = true
	}
	reasons := make(map[string]string)
	for _, s := range parseSkips(skippedText) {
		holds, ok := conditions[s.when]
		switch {
		case !ok:
			return nil, fmt.Errorf("conformance: skipped.txt: unknown condition %q", s.when)
		case !known[s.id]:
			return nil, fmt.Errorf("conformance: skipped.txt: no case %q", s.id)
		case holds && reasons[s.id] == "":
			reasons[s.id] = s.reason
		}
	}
	for _, c := range cases {
		if c.run == nil && reasons[c.ID] == "" {
			return nil, fmt.Errorf("conformance: case %q cannot run and skipped.txt does not say why", c.ID)
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
