package profiles

import (
	"slices"
	"testing"

	"github.com/google/pprof/profile"
)

func TestRoomOfFunction(t *testing.T) {
	for name, want := range map[string]string{
		"github.com/felix-mq/felix/fanout.(*Topic).Publish":                          "fanout",
		"github.com/felix-mq/felix/internal/buf.Get":                                 "internal/buf",
		"github.com/felix-mq/felix/ring.(*Ring[go.shape.*uint8]).growLocked":         "ring",
		"github.com/felix-mq/felix/ring.New[github.com/felix-mq/felix/fanout.Frame]": "ring",
		"github.com/felix-mq/felix/loadgen/brokerproc.(*answerer).answer":            Measuring,
		"github.com/quic-go/quic-go.(*SendStream).Write":                             QuicGo,
		"github.com/quic-go/quic-go/internal/wire.GetStreamFrame":                    QuicGo,
		"github.com/felix-mq/felixology.Study":                                       "",
		"crypto/tls.(*Conn).quicReadHandshakeBytes":                                  "",
		"runtime.mallocgc": "",
	} {
		if got := roomOfFunction(name); got != want {
			t.Errorf("%s is of %q, want %q", name, got, want)
		}
	}
}

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

const (
	ours   = "github.com/felix-mq/felix/fanout.(*Topic).Publish"
	above  = "github.com/felix-mq/felix/broker.(*stream).offer"
	theirs = "github.com/quic-go/quic-go.(*Conn).run"
)

func TestShares(t *testing.T) {
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples"}, {Type: "cpu"}},
		Sample: []*profile.Sample{
			sample([]int64{1, 50}, []string{"crypto/internal/fips140/aes/gcm.gcmAesEnc"}, []string{theirs}),
			sample([]int64{1, 30}, []string{"runtime.memmove", ours}, []string{above}),
			sample([]int64{1, 20}, []string{above}),
		},
	}
	want := []Share{{Crypto, 0.5, 0}, {QuicGo, 0, 0.5}, {"fanout", 0, 0.3}, {Runtime, 0.3, 0}, {"broker", 0.2, 0.2}}
	if got := Shares(p); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestCheck(t *testing.T) {
	allocs := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "alloc_objects"}, {Type: "alloc_space"}},
		Sample: []*profile.Sample{
			sample([]int64{40, 1}, []string{"runtime.mallocgc"}, []string{ours}, []string{above}),
			sample([]int64{30, 1}, []string{"runtime.mallocgc"}, []string{ours}, []string{"another caller"}), // the same site
			sample([]int64{4, 1}, []string{"runtime.newobject"}, []string{ours}),                             // seldom
			sample([]int64{900, 1}, []string{"runtime.mallocgc"}, []string{theirs}, []string{ours}),
			sample([]int64{900, 1}, []string{"runtime.mallocgc"}, []string{above}),
		},
	}
	locks := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "contentions"}, {Type: "delay"}},
		Sample:     []*profile.Sample{sample([]int64{1, 300_000}, []string{"sync.(*Mutex).Unlock"}, []string{ours})},
	}
	cpu := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples"}, {Type: "cpu"}},
		Sample: []*profile.Sample{
			sample([]int64{1, 10}, []string{"runtime.nanotime1"}, []string{"time.now"}, []string{"time.Now", ours}),
			sample([]int64{1, 10}, []string{"time.Now"}, []string{above}),
			sample([]int64{1, 20}, []string{"internal/runtime/maps.(*table).rehash"}, []string{"runtime.mapassign_fast64"}, []string{above}),
			sample([]int64{1, 10}, []string{ours}),
		},
	}
	for _, c := range []struct {
		name string
		p    *profile.Profile
		want []string
		per  float64
	}{
		{"allocations", allocs, []string{"allocation"}, 0.7},
		{"locks", locks, []string{"contended lock"}, 3000},
		{"processor time", cpu, []string{"map growth", "look at the clock"}, 0.2},
	} {
		got := Check(c.p, Rules, 100)
		var names []string
		for _, v := range got {
			names = append(names, v.Rule)
		}
		if !slices.Equal(names, c.want) || got[0].Per != c.per {
			t.Errorf("%s: got %v, want %v, the first with %v", c.name, got, c.want, c.per)
		}
	}
	if got := Check(locks, Rules, 1000); got != nil {
		t.Errorf("below the limit: %v", got)
	}
}
