package gate

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/plant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCompare(t *testing.T) {
	recorded := []row{{"a", 0, 100, 1}, {"b", 2, 100, 1}, {"c", 1, 100, 1}, {"d", 1, 100, 1}}
	for _, c := range []struct {
		name  string
		now   []row
		worse bool
		says  string
	}{
		{"the same", recorded, false, ""},
		{"one more", []row{recorded[0], {Name: "b", Allocations: 3}, recorded[2], recorded[3]}, true, "WORSE   b: 3 allocations, recorded 2"},
		{"one less", []row{recorded[0], {Name: "b", Allocations: 1}, recorded[2], recorded[3]}, false, "better  b: 1 allocations, recorded 2"},
		{"a new one", append([]row{{Name: "e"}}, recorded...), true, "NEW     e"},
		{"one gone", recorded[1:], true, "GONE    a"},
	} {
		var out bytes.Buffer
		if worse := compareAllocations(&out, recorded, c.now); worse != c.worse || !strings.HasPrefix(out.String(), c.says) {
			t.Errorf("%s: worse %v, want %v; says %q, want %q", c.name, worse, c.worse, &out, c.says)
		}
	}
	for _, c := range []struct {
		counts []float64
		worse  bool
		says   string
	}{
		{[]float64{100, 102.9, 97.1, 100}, false, ""},
		{[]float64{100, 103.1, 100, 100}, true, "WORSE   b: 103.1 instructions, recorded 100.0: +3.1 %"},
		{[]float64{100, 100, 90, 100}, false, "better  c: 90.0 instructions, recorded 100.0: -10.0 %"},
	} {
		var out bytes.Buffer
		if worse := compareInstructions(&out, recorded, c.counts); worse != c.worse || !strings.HasPrefix(out.String(), c.says) {
			t.Errorf("%v: worse %v, want %v; says %q, want %q", c.counts, worse, c.worse, &out, c.says)
		}
	}
}

// TestPlanted makes codec.ParsePublishBatch a tenth slower, and another function allocate: the gate has to see both.
func TestPlanted(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	ctx := t.Context()
	if _, err := findCounter(ctx); err != nil {
		t.Skip(err)
	}
	const held = "codec/ParsePublishBatch/items=64/size=256"
	plain := measured(t, held)
	planted := measured(t, held, plant.Overlay(t, "codec", "var planted int\nvar kept *int\n", map[string]string{
		"func ParsePublishBatch(": "for range 48 {\nplanted++\n}",
		"func ParseHeader(":       "kept = new(int)",
	}))
	ratio := planted[0].Instructions / plain[0].Instructions
	t.Logf("%.1f instructions, %.1f with the plant: × %.3f", plain[0].Instructions, planted[0].Instructions, ratio)
	if ratio < 1.05 || ratio > 1.12 {
		t.Errorf("the plant is × %.3f, which is not the tenth it is meant to be", ratio)
	}
	var out bytes.Buffer
	if !compareInstructions(&out, plain[:1], []float64{planted[0].Instructions}) || !strings.Contains(out.String(), "WORSE") {
		t.Errorf("a tenth more instructions pass: %q", &out)
	}
	out.Reset()
	if !compareAllocations(&out, plain, planted) || !strings.Contains(out.String(), "WORSE   codec/ParseHeader: 1 allocations, recorded 0") {
		t.Errorf("an allocation passes: %q", &out)
	}
}

// measured measures a build of codec's benchmarks. The first row is that of the benchmark whose instructions are
// counted.
func measured(t *testing.T, held string, flags ...string) []row {
	t.Helper()
	b, err := build(t.Context(), []string{"codec"}, flags...)
	if err != nil {
		t.Fatal(err)
	}
	defer b.remove()
	rows, err := b.allocations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts, err := b.counts(t.Context(), []row{{Name: held, Instructions: 1, Repeats: 4000}})
	if err != nil {
		t.Fatal(err)
	}
	return append([]row{{Name: held, Instructions: counts[0], Repeats: 4000}}, rows...)
}
