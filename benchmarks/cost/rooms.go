package cost

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"github.com/felix-mq/felix/profiles"
)

// account is what each package has allocated, and holds of that.
type account map[string]usage

type usage struct{ objects, bytes, heldBytes float64 }

func (u usage) minus(o usage) usage {
	return usage{u.objects - o.objects, u.bytes - o.bytes, u.heldBytes - o.heldBytes}
}

// accountOf sums up a profile of allocations by package.
func accountOf(p *profile.Profile) account {
	index := make(map[string]int)
	for i, t := range p.SampleType {
		index[t.Type] = i
	}
	a := account{}
	for _, s := range p.Sample {
		value := func(name string) float64 { return float64(s.Value[index[name]]) }
		room := profiles.Owner(s)
		u := a[room]
		u.objects += value("alloc_objects")
		u.bytes += value("alloc_space")
		u.heldBytes += value("inuse_space")
		a[room] = u
	}
	return a
}

// since returns what came to a since before.
func (a account) since(before account) account {
	d := account{}
	for room, u := range a {
		d[room] = u.minus(before[room])
	}
	return d
}

// ours sums up what neither quic-go nor the measurement itself is charged.
func (a account) ours() (u usage) {
	for room, r := range a {
		if room != profiles.QuicGo && room != profiles.Measuring {
			u.objects += r.objects
			u.bytes += r.bytes
			u.heldBytes += r.heldBytes
		}
	}
	return u
}

// rooms returns the names of the rooms, those with the most first.
func (a account) rooms(most func(usage) float64) []string {
	return slices.SortedFunc(maps.Keys(a), func(x, y string) int {
		return cmp.Or(cmp.Compare(most(a[y]), most(a[x])), strings.Compare(x, y))
	})
}
