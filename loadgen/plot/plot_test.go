package plot

import (
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/plot/vg"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// sample makes a report of real runs of each fanout.
func sample(t *testing.T, trials int, fanouts ...int) *report.Report {
	t.Helper()
	r := &report.Report{
		Format: report.Format, Scenario: "soak", Command: "loadgen soak --fanout 1,2 " + strings.Repeat("--flag of a long command ", 10),
		Started: time.Now(), Environment: loadgen.CurrentEnvironment(),
	}
	for _, fanout := range fanouts {
		c := new(report.Cell)
		if len(fanouts) > 1 {
			c.Axes = []report.Axis{{Name: "fanout", Value: strconv.Itoa(fanout)}, {Name: "payload", Value: "128"}}
		}
		for range trials {
			cfg := loadgen.Config{Fanout: fanout, Payload: 128, Batch: 8, Window: 2, Total: 4000, Warmup: 1, IdleTimeout: time.Minute}
			cfg.Interval = 5 * time.Millisecond
			res, err := loadgen.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Add(res); err != nil {
				t.Fatal(err)
			}
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

func TestPictures(t *testing.T) {
	for name, tc := range map[string]struct {
		fanouts []int
		want    []string
	}{
		"one": {[]int{2}, []string{"percentiles", "run.timeline"}},
		"sweep": {[]int{1, 2}, []string{
			"fanout-1-payload-128.timeline", "fanout-2-payload-128.timeline", "map.delivered", "map.p50", "map.p99", "percentiles",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := sample(t, 2, tc.fanouts...)
			// As of a broker that has dropped and has a process of its own.
			for i := range r.Cells[0].Trials[0].Measured.Intervals {
				interval := &r.Cells[0].Trials[0].Measured.Intervals[i]
				interval.Dropped, interval.Server = 10, &loadgen.Resources{RSS: 1 << 25, Heap: 1 << 24, Goroutines: 50}
			}
			if err := WriteFiles(r, dir); err != nil {
				t.Fatal(err)
			}
			var names []string
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				check(t, filepath.Join(dir, f.Name()), r)
				if name, ok := strings.CutSuffix(f.Name(), ".png"); ok {
					names = append(names, name)
				}
			}
			if !slices.Equal(names, tc.want) || len(files) != 2*len(names) {
				t.Errorf("%d files, pictures %q, want %q", len(files), names, tc.want)
			}
		})
	}
}

// durationLabel is a latency with its unit, whichever the machine is fast enough for.
var durationLabel = regexp.MustCompile(`\d (µs|ms|s) `)

// check reads a picture.
func check(t *testing.T, file string, r *report.Report) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if strings.HasSuffix(file, ".png") {
		img, err := png.Decode(f)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if size := img.Bounds().Size(); size.X != Width || size.Y != Height {
			t.Errorf("%s is %v", file, size)
		}
		colors := make(map[any]bool)
		for x := 0; x < Width; x += 2 {
			for y := 0; y < Height; y += 2 {
				colors[img.At(x, y)] = true
				// Nothing reaches the edge, where it would be cut off.
				if x < margin/2 || y < margin/2 || x >= Width-margin/2 || y >= Height-margin/2 {
					if r, g, b, _ := img.At(x, y).RGBA(); r != 0xFFFF || g != 0xFFFF || b != 0xFFFF {
						t.Fatalf("%s: something is drawn at %d, %d", file, x, y)
					}
				}
			}
		}
		if len(colors) < 20 {
			t.Errorf("%s has %d colors", file, len(colors))
		}
		return
	}
	var text strings.Builder
	for in := xml.NewDecoder(f); ; {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if data, ok := token.(xml.CharData); ok {
			text.Write(data)
			text.WriteByte(' ')
		}
	}
	if !durationLabel.MatchString(text.String()) && !strings.Contains(file, "map") {
		t.Errorf("%s has no latency at its axis:\n%s", file, &text)
	}
	for _, want := range []string{"loadgen soak", r.Environment.Go, r.Environment.Kernel, "GRO", "better"} {
		if want == "better" && strings.Contains(file, "timeline") {
			continue
		}
		if !strings.Contains(strings.Join(strings.Fields(text.String()), " "), want) {
			t.Errorf("%s does not say %q:\n%s", file, want, &text)
		}
	}
}

func TestWrap(t *testing.T) {
	s := style(textSize)
	long := strings.Repeat("some words that go on ", 20)
	lines := wrap([]string{"short", long}, s, 400)
	if lines[0] != "short" || len(lines) < 5 {
		t.Errorf("got %q", lines)
	}
	for _, l := range lines {
		if s.Width(l) > 400 {
			t.Errorf("%q is %v wide", l, s.Width(l))
		}
	}
	if got := strings.Join(lines[1:], " "); got != strings.TrimSpace(long) {
		t.Errorf("got %q", got)
	}
	if word := strings.Repeat("x", 500); !slices.Equal(wrap([]string{word}, s, vg.Length(100)), []string{word}) {
		t.Error("a word that does not fit was lost")
	}
}

func TestTicks(t *testing.T) {
	labels := func(ticks []string) string { return strings.Join(ticks, " | ") }
	var got []string
	for _, tick := range percentileTicks(1e5) {
		got = append(got, tick.Label)
	}
	if want := "0 % | 50 % | 75 % | 90 % | 99 % | 99.9 % | 99.99 % | 99.999 %"; labels(got) != want {
		t.Errorf("got %s, want %s", labels(got), want)
	}
	for _, tc := range []struct {
		least, most float64
		want        string
	}{
		{90, 900, "100 µs | 200 µs | 500 µs"},
		{1, 2e6, "1 µs | 10 µs | 100 µs | 1 ms | 10 ms | 100 ms | 1 s"},
		{3e5, 4e6, "500 ms | 1 s | 2 s"},
	} {
		got = nil
		for _, tick := range (durationTicks{}).Ticks(tc.least, tc.most) {
			if tick.Label != "" {
				got = append(got, tick.Label)
			}
		}
		if labels(got) != tc.want {
			t.Errorf("from %v to %v: got %s, want %s", tc.least, tc.most, labels(got), tc.want)
		}
	}
	for _, most := range []float64{0.3, 1, 7, 60, 1234, 1e6, 28800} {
		ticks := quantityTicks{}.Ticks(0, most)
		if n := len(ticks); n < 3 || n > 6 || ticks[0].Value != 0 || ticks[n-1].Value > most*1.0001 {
			t.Errorf("up to %v: %v", most, ticks)
		}
	}
}

func TestGrid(t *testing.T) {
	r := new(report.Report)
	for _, c := range []struct {
		fanout, payload string
		values          []float64
	}{{"1", "256", []float64{10, 20}}, {"10", "256", []float64{30}}, {"10", "4096", []float64{40}}} {
		cell := &report.Cell{Axes: []report.Axis{{Name: "fanout", Value: c.fanout}, {Name: "payload", Value: c.payload}}}
		for _, v := range c.values {
			cell.Trials = append(cell.Trials, report.Trial{Metrics: []loadgen.Metric{{Value: v}}})
		}
		r.Cells = append(r.Cells, cell)
	}
	g := newGrid(r, 0)
	if !slices.Equal(g.Columns, []string{"1", "10"}) || !slices.Equal(g.Rows, []string{"payload=256", "payload=4096"}) {
		t.Errorf("got %+v", g)
	}
	if g.Values[0][0] != 15 || g.Values[1][0] != 30 || g.Values[1][1] != 40 || !math.IsNaN(g.Values[0][1]) {
		t.Errorf("got %v", g.Values)
	}
}
