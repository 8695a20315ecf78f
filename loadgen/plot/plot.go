// Package plot draws what runs of package loadgen have measured, as PNG for screens and as SVG for documents. Each
// picture says what it shows, by what command it was made and where.
//
// It is a package of its own because drawing brings fonts and rasterizers along, which a program that only measures can
// do without. Begin at [WriteFiles]; other programs that measure draw theirs with [Picture] and [Grid].
package plot

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// colors are told apart by those who see red and green alike, too (Okabe and Ito, Color universal design, 2008).
var colors = []color.Color{
	color.RGBA{0x00, 0x72, 0xB2, 0xFF},
	color.RGBA{0xD5, 0x5E, 0x00, 0xFF},
	color.RGBA{0x00, 0x9E, 0x73, 0xFF},
	color.RGBA{0xCC, 0x79, 0xA7, 0xFF},
	color.RGBA{0xE6, 0x9F, 0x00, 0xFF},
	color.RGBA{0x56, 0xB4, 0xE9, 0xFF},
	color.RGBA{0x33, 0x33, 0x33, 0xFF},
}

// WriteFiles draws the percentiles of all cells, the timeline of each, and maps of what was swept, and writes each
// picture twice.
func WriteFiles(r *report.Report, dir string) error {
	pictures := map[string]*Picture{"percentiles": percentiles(r)}
	for _, c := range r.Cells {
		pictures[c.FileName()+".timeline"] = timeline(r, c)
	}
	if len(r.Cells) > 1 {
		for i, m := range r.Cells[0].Trials[0].Metrics {
			pictures["map."+strings.ReplaceAll(m.Name, " ", "-")] = heatMap(r, i)
		}
	}
	errs := make([]error, 0, 2*len(pictures))
	for name, p := range pictures {
		for _, suffix := range []string{".png", ".svg"} {
			errs = append(errs, p.WriteFile(filepath.Join(dir, name+suffix)))
		}
	}
	return errors.Join(errs...)
}

// newPicture makes a picture of something that a report has measured.
func newPicture(r *report.Report, load string, title string) *Picture {
	return &Picture{Title: []string{title, load}, Caption: r.Provenance(), Height: Height}
}

// newPlot adds a plot to the picture, below the others.
func newPlot(p *Picture, x, y string) *plot.Plot {
	q := New(x, y)
	p.Rows = append(p.Rows, []*plot.Plot{q})
	return q
}

// percentiles draws the latency at each percentile, for each cell.
func percentiles(r *report.Report) *Picture {
	load := r.Cells[0].Load
	if len(r.Cells) > 1 {
		load = fmt.Sprintf("%s: %d loads", r.Scenario, len(r.Cells))
	}
	p := newPicture(r, load, "Latency by percentile (lower is better)")
	q := newPlot(p, "percentile p, spaced by 1/(1−p)", "latency")
	q.Y.Scale, q.Y.Tick.Marker = plot.LogScale{}, durationTicks{}
	q.X.Scale = plot.LogScale{}
	q.Add(plotter.NewGrid())
	q.Legend.Top, q.Legend.Left = true, true
	most := 100.0
	for i, c := range r.Cells {
		h := c.Histogram()
		if h == nil {
			continue
		}
		points := percentilePoints(h.CumulativeDistributionWithTicks(8), h.TotalCount())
		most = math.Max(most, points[len(points)-1].X)
		name := c.Name()
		if name == "" {
			name = "all deliveries and calls"
		}
		addLine(q, name, points, i)
	}
	q.X.Min, q.X.Max = 1, most
	q.X.Tick.Marker = percentileTicks(most)
	widen(&q.Y)
	return p
}

// percentilePoints are latencies in microseconds over 1/(1−p), which is how many samples there are for each that is
// worse.
func percentilePoints(all []hdrhistogram.Bracket, samples int64) plotter.XYs {
	points := make(plotter.XYs, 0, len(all))
	for _, b := range all {
		x := float64(samples)
		if b.Quantile < 100 {
			x = math.Min(x, 1/(1-b.Quantile/100))
		}
		points = append(points, plotter.XY{X: x, Y: math.Max(float64(b.ValueAt)/1e3, 0.1)})
	}
	return points
}

// percentileTicks are 0, 50, 90, 99 % and so on.
func percentileTicks(most float64) plot.ConstantTicks {
	ticks := plot.ConstantTicks{{Value: 1, Label: "0 %"}, {Value: 2, Label: "50 %"}, {Value: 4, Label: "75 %"}}
	for x, digits := 10.0, 0; x <= most; x *= 10 {
		ticks = append(ticks, plot.Tick{Value: x, Label: strconv.FormatFloat(100-100/x, 'f', max(digits-1, 0), 64) + " %"})
		digits++
	}
	return ticks
}

// durationTicks labels a logarithmic axis of microseconds with units.
type durationTicks struct{}

func (durationTicks) Ticks(least, most float64) []plot.Tick {
	var ticks []plot.Tick
	for decade := math.Pow10(int(math.Floor(math.Log10(least)))); decade <= most; decade *= 10 {
		for i := 1.0; i < 10; i++ {
			v := decade * i
			if v < least*0.999 || v > most*1.001 {
				continue
			}
			t := plot.Tick{Value: v}
			// Within few decades those between are wanted, too.
			if i == 1 || (most/least < 2000 && (i == 2 || i == 5)) {
				t.Label = micros(v)
			}
			ticks = append(ticks, t)
		}
	}
	return ticks
}

func micros(us float64) string {
	switch {
	case us < 1e3:
		return fmt.Sprintf("%.4g µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.4g ms", us/1e3)
	}
	return fmt.Sprintf("%.4g s", us/1e6)
}

// quantity writes a number with the prefix that suits its size.
func quantity(v float64) string {
	switch {
	case v < 1e4:
		return fmt.Sprintf("%.4g", v)
	case v < 1e6:
		return fmt.Sprintf("%.4g k", v/1e3)
	}
	return fmt.Sprintf("%.4g M", v/1e6)
}

// quantityTicks labels a linear axis in steps of 1, 2 or 5 times a power of ten.
type quantityTicks struct{}

func (quantityTicks) Ticks(least, most float64) []plot.Tick {
	const about = 5
	step := math.Pow10(int(math.Floor(math.Log10((most - least) / about))))
	for _, f := range []float64{1, 2, 5, 10} {
		if (most-least)/(step*f) <= about {
			step *= f
			break
		}
	}
	var ticks []plot.Tick
	for i := math.Ceil(least / step); i*step <= most; i++ {
		ticks = append(ticks, plot.Tick{Value: i * step, Label: quantity(i * step)})
	}
	return ticks
}

// widen leaves space above and below on a logarithmic axis, so that at least one label is on it.
func widen(a *plot.Axis) {
	a.Min, a.Max = a.Min/1.5, a.Max*1.5
}

// addLine adds a line of that number to a plot; it has points where they are few.
func addLine(q *plot.Plot, name string, points plotter.XYs, number int) {
	line, err := plotter.NewLine(points)
	if err != nil {
		return // no points
	}
	line.Color = colors[number%len(colors)]
	line.Width = 2
	if turn := number / len(colors); turn > 0 { // out of colors
		line.Dashes = []vg.Length{vg.Length(8 / turn), vg.Length(2 + 2*turn)}
	}
	q.Add(line)
	if len(points) <= 30 {
		dots := &plotter.Scatter{XYs: points, GlyphStyle: draw.GlyphStyle{Color: line.Color, Radius: 3, Shape: draw.CircleGlyph{}}}
		q.Add(dots)
	}
	if name != "" {
		q.Legend.Add(name, line)
	}
}

// timeline draws what happened when, one trial after the other.
func timeline(r *report.Report, c *report.Cell) *Picture {
	title := "Timeline: rate, latency and memory by interval"
	if len(c.Trials) > 1 {
		title += fmt.Sprintf(", %d trials one after the other", len(c.Trials))
	}
	p := newPicture(r, c.Load, title)
	type curve struct {
		name string
		of   func(*loadgen.Interval) float64
	}
	panel := func(label string, logarithmic bool, curves ...curve) {
		q := newPlot(p, "", label)
		q.Add(plotter.NewGrid())
		q.Legend.Top = true
		most := 0.0
		for number, curve := range curves {
			start, name := 0.0, curve.name
			for _, t := range c.Trials {
				var points plotter.XYs
				end := 0.0
				for i := range t.Measured.Intervals {
					interval := &t.Measured.Intervals[i]
					end = interval.Start + interval.Seconds
					// The rest at the end of a run is too short for a rate.
					y := curve.of(interval)
					if (i > 0 && interval.Seconds < t.Measured.Intervals[0].Seconds/4) || y == 0 && logarithmic {
						continue
					}
					points = append(points, plotter.XY{X: start + interval.Start + interval.Seconds/2, Y: y})
					most = math.Max(most, y)
				}
				addLine(q, name, points, number)
				start, name = start+end, ""
			}
		}
		if logarithmic && most > 0 {
			q.Y.Scale, q.Y.Tick.Marker = plot.LogScale{}, durationTicks{}
			widen(&q.Y)
			return
		}
		q.Y.Min, q.Y.Max = 0, math.Max(most*1.15, 1)
		q.Y.Tick.Marker = quantityTicks{}
	}
	rate := []curve{{"rate", func(i *loadgen.Interval) float64 { return i.Rate }}}
	memory := []curve{
		{"RSS", func(i *loadgen.Interval) float64 { return float64(i.Process.RSS) / (1 << 20) }},
		{"heap", func(i *loadgen.Interval) float64 { return float64(i.Process.Heap) / (1 << 20) }},
	}
	goroutines := []curve{{"goroutines", func(i *loadgen.Interval) float64 { return float64(i.Process.Goroutines) }}}
	var dropped uint64
	server := false
	for _, t := range c.Trials {
		for _, i := range t.Measured.Intervals {
			dropped += i.Dropped
			server = server || i.Server != nil
		}
	}
	if dropped > 0 {
		rate = append(rate, curve{"dropped", func(i *loadgen.Interval) float64 { return float64(i.Dropped) / i.Seconds }})
	}
	if server {
		of := func(get func(*loadgen.Resources) float64) func(*loadgen.Interval) float64 {
			return func(i *loadgen.Interval) float64 {
				if i.Server == nil {
					return 0
				}
				return get(i.Server)
			}
		}
		memory = append(memory,
			curve{"broker RSS", of(func(s *loadgen.Resources) float64 { return float64(s.RSS) / (1 << 20) })},
			curve{"broker heap", of(func(s *loadgen.Resources) float64 { return float64(s.Heap) / (1 << 20) })})
		goroutines = append(goroutines, curve{"broker", of(func(s *loadgen.Resources) float64 { return float64(s.Goroutines) })})
	}
	what := map[string]string{"cache": "calls", "connect": "connections"}[r.Scenario]
	panel(cmp.Or(what, "deliveries")+"/s", false, rate...)
	panel("latency", true,
		curve{"p50", func(i *loadgen.Interval) float64 { return i.Latency.P50 }},
		curve{"p99", func(i *loadgen.Interval) float64 { return i.Latency.P99 }},
		curve{"max", func(i *loadgen.Interval) float64 { return i.Latency.Max }})
	panel("memory, MiB", false, memory...)
	if r.Scenario == "soak" {
		panel("goroutines", false, goroutines...)
	}
	p.Rows[len(p.Rows)-1][0].X.Label.Text = "seconds"
	// All panels show the same time, and have their legends next to it.
	last := 0.0
	for _, row := range p.Rows {
		last = math.Max(last, row[0].X.Max)
	}
	for _, row := range p.Rows {
		row[0].X.Min, row[0].X.Max = 0, last*1.22
		row[0].X.Tick.Marker = quantityTicks{}
	}
	return p
}

// newGrid has a column for each value of the first axis, and a row for each combination of the others.
func newGrid(r *report.Report, metric int) *Grid {
	g := new(Grid)
	index := func(of *[]string, name string) int {
		i := slices.Index(*of, name)
		if i < 0 {
			i = len(*of)
			*of = append(*of, name)
		}
		return i
	}
	type place struct{ column, row int }
	at := make(map[place]float64)
	for _, c := range r.Cells {
		rest := report.Cell{Axes: c.Axes[1:]}
		where := place{index(&g.Columns, c.Axes[0].Value), index(&g.Rows, rest.Name())}
		for _, t := range c.Trials {
			at[where] += t.Metrics[metric].Value / float64(len(c.Trials))
		}
	}
	for column := range g.Columns {
		g.Values = append(g.Values, make([]float64, len(g.Rows)))
		for row := range g.Rows {
			g.Values[column][row] = math.NaN()
			if v := at[place{column, row}]; v > 0 {
				g.Values[column][row] = v
			}
		}
	}
	return g
}

// heatMap draws one figure for all cells.
func heatMap(r *report.Report, metric int) *Picture {
	g := newGrid(r, metric)
	m := r.Cells[0].Trials[0].Metrics[metric]
	better := "lower"
	if m.HigherIsBetter {
		better = "higher"
	}
	title := fmt.Sprintf("%s in %s (%s is better)", m.Name, m.Unit, better)
	if n := len(r.Cells[0].Trials); n > 1 {
		title += fmt.Sprintf(", mean of %d trials", n)
	}
	p := newPicture(r, fmt.Sprintf("%s: colors are on a logarithmic scale, lighter is more", r.Scenario), title)
	text := quantity
	if m.Unit == "µs" {
		text = micros
	}
	g.Draw(newPlot(p, r.Cells[0].Axes[0].Name, ""), text)
	return p
}
