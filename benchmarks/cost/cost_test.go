package cost

import (
	"slices"
	"testing"

	"github.com/google/pprof/profile"

	"github.com/felix-mq/felix/profiles"
)

// sample is one whose stack has these functions, the leaf first, each list inlined into its last.
func sample(values []int64, stack ...[]string) *profile.Sample {
	s := &profile.Sample{Value: values}
	for _, inlined := range stack {
		l := &profile.Location{}
		for _, f := range inlined {
			l.Line = append(l.Line, profile.Line{Function: &profile.Function{Name: f}})
		}
		s.Location = append(s.Location, l)
	}
	return s
}

// An allocation is charged to the nearest of Felix and quic-go on its stack, whichever of them calls the other.
func TestAccount(t *testing.T) {
	const ours, theirs, std = "github.com/felix-mq/felix/quicx.F", "github.com/quic-go/quic-go.F", "crypto/aes.F"
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "alloc_objects"}, {Type: "alloc_space"}, {Type: "inuse_objects"}, {Type: "inuse_space"}},
		Sample: []*profile.Sample{
			sample([]int64{1, 10, 1, 10}, []string{std}, []string{theirs}, []string{ours}),
			sample([]int64{2, 20, 1, 10}, []string{std}, []string{ours}, []string{theirs}),
			sample([]int64{4, 40, 1, 10}, []string{std, ours, theirs}),
			sample([]int64{8, 80, 0, 0}, []string{std}),
			sample([]int64{16, 160, 0, 0}, []string{"github.com/felix-mq/felix/loadgen/brokerproc.F"}),
		},
	}
	a := accountOf(p)
	for room, want := range map[string]usage{
		profiles.QuicGo: {1, 10, 10}, "quicx": {6, 60, 20}, profiles.Elsewhere: {8, 80, 0}, profiles.Measuring: {16, 160, 0},
	} {
		if a[room] != want {
			t.Errorf("%s: %+v, want %+v", room, a[room], want)
		}
	}
	if got, want := a.ours(), (usage{14, 140, 20}); got != want {
		t.Errorf("ours: %+v, want %+v", got, want)
	}
	if got, want := a.rooms(func(u usage) float64 { return u.bytes }), []string{profiles.Measuring, profiles.Elsewhere, "quicx", profiles.QuicGo}; !slices.Equal(got, want) {
		t.Errorf("rooms %v, want %v", got, want)
	}
	if got, want := a.since(account{"quicx": {1, 1, 30}})["quicx"], (usage{5, 59, -10}); got != want {
		t.Errorf("difference %+v, want %+v", got, want)
	}
}

func TestArithmetic(t *testing.T) {
	if got, want := ratios([]float64{1, 2, 3, 2}), []float64{0.5, 1, 1.5, 1}; !slices.Equal(got, want) {
		t.Errorf("ratios %v, want %v", got, want)
	}
}
