// Package profiles reads pprof profiles of a broker by package of this module, and checks that hot paths do
// nothing that they must not. Capturing them is left to profiles/capture.
//
// Begin at [Owner] and [Check].
package profiles

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// Names for code that is not in packages of Felix.
const (
	QuicGo    = "quic-go"
	Measuring = "(measuring)"
	Elsewhere = "(elsewhere)" // below no package of Felix nor of quic-go
	Crypto    = "crypto"
	Syscalls  = "syscalls"
	Runtime   = "runtime"
	Library   = "(libraries)"
)

// Owner says whose an allocation, a wait or a moment is: that of the first function from the leaf that is in a package
// of Felix or in quic-go, whatever it calls.
func Owner(s *profile.Sample) string {
	room := Elsewhere
	for f := range functions(s) {
		if r := roomOfFunction(f); r != "" {
			room = r
			break
		}
	}
	return room
}

// Self says in whose code a moment was spent: that of the leaf alone.
func Self(s *profile.Sample) string {
	for f := range functions(s) {
		if room := roomOfFunction(f); room != "" {
			return room
		}
		for _, k := range kinds {
			if strings.HasPrefix(f, k.prefix) {
				return k.room
			}
		}
		return Library
	}
	return Elsewhere
}

var kinds = []struct{ prefix, room string }{
	{"crypto/", Crypto},
	{"vendor/golang.org/x/crypto/", Crypto},
	{"golang.org/x/crypto/", Crypto},
	{"syscall.", Syscalls},
	{"internal/runtime/syscall", Syscalls},
	{"runtime.", Runtime},
	{"runtime/", Runtime},
	{"internal/", Runtime},
	{"sync.", Runtime},
	{"sync/", Runtime},
}

// functions yields the names of a stack's functions, the leaf first; what was inlined comes before what it was inlined
// into.
func functions(s *profile.Sample) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, l := range s.Location {
			for _, line := range l.Line {
				if !yield(line.Function.Name) {
					return
				}
			}
		}
	}
}

// roomOfFunction returns the package of a function of Felix, below the module; "" for those of others.
func roomOfFunction(name string) string {
	if strings.HasPrefix(name, "github.com/quic-go/quic-go") {
		return QuicGo
	}
	rest, ok := strings.CutPrefix(name, "github.com/felix-mq/felix/")
	if !ok {
		return ""
	}
	slash := strings.LastIndexByte(rest[:strings.IndexAny(rest+"([", "([")], '/') + 1 // types of arguments have slashes too
	end := strings.IndexByte(rest[slash:], '.')
	room := rest[:slash+max(end, 0)]
	if slices.ContainsFunc([]string{"benchmarks/", "loadgen/", "profiles/", "internal/child"}, func(measures string) bool { return strings.HasPrefix(room, measures) }) {
		return Measuring
	}
	return room
}

// Share is a package's part of a CPU profile.
type Share struct {
	Room      string
	Self, All float64 // of its code, and with what that calls in the runtime and in libraries
}

// Shares returns the packages of a CPU profile, those with the most first.
func Shares(p *profile.Profile) []Share {
	self, all, total := make(map[string]float64), make(map[string]float64), 0.0
	at := valueIndex(p, "cpu")
	for _, s := range p.Sample {
		v := float64(s.Value[at])
		total += v
		self[Self(s)] += v
		all[Owner(s)] += v
	}
	rooms := make(map[string]bool)
	for _, m := range []map[string]float64{self, all} {
		for room := range m {
			rooms[room] = true
		}
	}
	list := make([]Share, 0, len(rooms))
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		list = append(list, Share{room, self[room] / total, all[room] / total})
	}
	slices.SortStableFunc(list, func(a, b Share) int { return cmp.Compare(max(b.Self, b.All), max(a.Self, a.All)) })
	return list
}

// valueIndex returns the place of a sample type in the values of samples, or -1.
func valueIndex(p *profile.Profile, name string) int {
	return slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == name })
}
