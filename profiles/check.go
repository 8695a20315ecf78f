package profiles

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// Rule is something that must not happen on a hot path.
type Rule struct {
	Name    string
	Value   string         // type of the samples' values: "alloc_objects", "delay", "cpu"
	Rooms   []string       // whose doing it is; see [Owner]
	Through *regexp.Regexp // of a function that the package called; nil for any
	// Limit is how much of it one site may have for each operation. Pools that a collection has emptied, queues that
	// grow and a lock that is met once in a while stay below it; what happens each time does not. Where it is 0 a
	// single sample is too much.
	Limit float64
}

var innermost = []string{"codec", "ring", "fanout"}

// Rules are those for a broker's profiles, by operations: deliveries of published batches, or requests of the cache.
// Limits are in allocations, nanoseconds of waiting, and nanoseconds of processor time.
var Rules = []Rule{
	{Name: "allocation", Value: "alloc_objects", Rooms: innermost, Limit: 0.2},
	{ // in processor time, because profiles of allocations leave the runtime's functions out
		Name: "map growth", Value: "cpu", Rooms: append([]string{"broker", "cache", "quicx"}, innermost...), Limit: 0,
		Through: regexp.MustCompile(`^internal/runtime/maps\..*([gG]row|rehash|split)`),
	},
	{Name: "contended lock", Value: "delay", Rooms: innermost, Limit: 2000},
	{Name: "look at the clock", Value: "cpu", Rooms: innermost, Limit: 0, Through: regexp.MustCompile(`^time\.(Now|Since|Until|now)$`)},
}

// Violation is a site that breaks a rule.
type Violation struct {
	Rule  string
	Per   float64  // for each operation
	Stack []string // from the leaf to the function of the package
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %.4g for each operation\n\t%s", v.Rule, v.Per, strings.Join(v.Stack, "\n\t"))
}

// Check applies those rules to a profile that are about its values, and returns the sites that break them, the worst of
// each rule first. operations is how many there were while the profile was taken.
func Check(p *profile.Profile, rules []Rule, operations float64) (violations []Violation) {
	for _, r := range rules {
		at := valueIndex(p, r.Value)
		if at < 0 {
			continue
		}
		sites := make(map[string]*Violation)
		for _, s := range p.Sample {
			stack := r.site(s)
			if stack == nil {
				continue
			}
			key := strings.Join(stack, "\n")
			if sites[key] == nil {
				sites[key] = &Violation{Rule: r.Name, Stack: stack}
			}
			sites[key].Per += float64(s.Value[at]) / operations
		}
		found := slices.DeleteFunc(slices.Collect(maps.Values(sites)), func(v *Violation) bool { return v.Per <= r.Limit })
		slices.SortFunc(found, func(a, b *Violation) int {
			return cmp.Or(cmp.Compare(b.Per, a.Per), slices.Compare(a.Stack, b.Stack))
		})
		for _, v := range found {
			violations = append(violations, *v)
		}
	}
	return violations
}

// site returns the stack of a sample up to its owner's function, or nil if the rule is not about it.
func (r *Rule) site(s *profile.Sample) (stack []string) {
	through := r.Through == nil
	for f := range functions(s) {
		stack = append(stack, f)
		if room := roomOfFunction(f); room != "" {
			if through && slices.Contains(r.Rooms, room) {
				return stack
			}
			return nil
		}
		through = through || r.Through.MatchString(f)
	}
	return nil
}
