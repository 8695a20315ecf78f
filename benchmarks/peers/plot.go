package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/palette"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/felix-mq/felix/internal/stats"
)

// picture is a file with panels in rows under a title, and lines that say where it comes from below.
type picture struct {
	title   string
	panels  [][]*plot.Plot // rows of equal length
	caption []string
	err     error // of a panel
}

// Sizes of a picture, at 96 dots per inch. The letters can be read where the picture is shown 1 000 dots wide.
const (
	pictureWidth = 900 // points, which are 1 200 dots
	panelHeight  = 190
	titleSize    = 15
	panelSize    = 12
	textSize     = 10.5
	captionSize  = 9
)

// save writes the picture as PNG.
func (p picture) save(file string) error {
	if p.err != nil {
		return fmt.Errorf("plot %q: %w", p.title, p.err)
	}
	var caption []string
	for _, line := range p.caption {
		caption = append(caption, wrap(line, 190)...)
	}
	foot := vg.Length(len(caption)+1) * captionSize * 1.3
	height := vg.Length(len(p.panels))*panelHeight + 2*titleSize + foot
	img := vgimg.NewWith(vgimg.UseWH(pictureWidth, height), vgimg.UseDPI(96))
	c := draw.New(img)
	c.SetColor(color.White)
	c.Fill(c.Path())

	style := plot.New().Title.TextStyle // for its font and handler
	style.XAlign, style.YAlign = draw.XLeft, draw.YTop
	style.Font.Size = titleSize
	c.FillText(style, vg.Point{X: 10, Y: c.Max.Y - 6}, p.title)
	style.Font.Size, style.Color = captionSize, color.Gray{90}
	for i, line := range caption {
		c.FillText(style, vg.Point{X: 10, Y: foot - vg.Length(i)*captionSize*1.3}, line)
	}
	tiles := draw.Tiles{
		Rows: len(p.panels), Cols: len(p.panels[0]), PadX: 14, PadY: 12, PadLeft: 8, PadRight: 14, PadTop: 2 * titleSize, PadBottom: foot + 6,
	}
	for i, row := range plot.Align(p.panels, tiles, c) {
		for j, tile := range row {
			if p.panels[i][j] != nil {
				p.panels[i][j].Draw(tile)
			}
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = vgimg.PngCanvas{Canvas: img}.WriteTo(f)
	return errors.Join(err, f.Close())
}

// wrap breaks a line at spaces.
func wrap(line string, width int) []string {
	var lines []string
	for word := range strings.FieldsSeq(line) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= width {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

func newPanel(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = panelSize
	p.Title.Padding = 4
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = textSize
		axis.Tick.Label.Font.Size = textSize
	}
	return p
}

// bar is a system's figure in one panel: the median of all rounds and their range.
type bar struct {
	name   string
	values []float64 // none if it was not measured
	color  color.Color
}

// barPanel draws one horizontal bar for each system, the first on top.
func barPanel(title, unit string, bars []bar) (*plot.Plot, error) {
	p := newPanel(title)
	p.X.Label.Text = unit
	p.X.Min = 0
	p.X.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick {
		ticks := plot.DefaultTicks{}.Ticks(low, high)
		for i := range ticks {
			if ticks[i].Label != "" {
				ticks[i].Label = fmt.Sprint(ticks[i].Value) // without the zeros after the point
			}
		}
		return ticks
	})
	slices.Reverse(bars)
	names := make([]string, len(bars))
	for i, b := range bars {
		names[i] = b.name
		label := "not measured"
		at := plotter.XYs{{X: 0, Y: float64(i)}}
		if len(b.values) > 0 {
			m := stats.Median(b.values)
			label = fmt.Sprintf("%.0f", m)
			chart, err := plotter.NewBarChart(plotter.Values{m}, 11)
			if err != nil {
				return nil, err
			}
			chart.Horizontal, chart.XMin, chart.Color, chart.LineStyle.Width = true, float64(i), b.color, 0
			whiskers, err := plotter.NewXErrorBars(struct {
				plotter.XYs
				plotter.XErrors
			}{
				plotter.XYs{{X: m, Y: float64(i)}},
				plotter.XErrors{{Low: slices.Min(b.values) - m, High: slices.Max(b.values) - m}},
			})
			if err != nil {
				return nil, err
			}
			p.Add(chart, whiskers)
			at[0].X = slices.Max(b.values)
		}
		text, err := plotter.NewLabels(plotter.XYLabels{XYs: at, Labels: []string{label}})
		if err != nil {
			return nil, err
		}
		text.TextStyle[0].Font.Size, text.TextStyle[0].YAlign = textSize, draw.YCenter
		text.Offset.X = 4
		p.Add(text)
	}
	p.NominalY(names...)
	p.X.Max *= 1.18 // space for the largest figure
	return p, nil
}

var (
	felixColor = color.RGBA{0xD5, 0x5E, 0x00, 0xFF}
	tlsColor   = color.RGBA{0x00, 0x72, 0xB2, 0xFF}
	plainColor = color.RGBA{0x9A, 0xB8, 0xCE, 0xFF}
)

func colorOf(system string) color.Color {
	switch _, secure := peerOf(system); {
	case baseName(system) == felixName:
		return felixColor
	case secure:
		return tlsColor
	}
	return plainColor
}

// plotPeers draws a panel for each load: throughput, and p50 over p99 of the latencies.
func plotPeers(o *options, results []outcome) map[string]picture {
	const colors = "Felix orange, peers with TLS 1.3 dark, in the clear light"
	rates := picture{title: "Payload delivered per second. " + colors + "; median and range of all rounds"}
	rates.panels = make([][]*plot.Plot, 2)
	times := picture{title: "Publish to receipt, one event at a time. " + colors + "; median and range of all rounds"}
	times.panels = make([][]*plot.Plot, 2)
	panel := func(into *picture, line int, r *row, m metric, unit string) {
		runs := runsOf(results, r.name)
		var bars []bar
		for _, system := range r.systems(o.against) {
			bars = append(bars, bar{title(system), values(runs[system], m.of), colorOf(system)})
		}
		p, err := barPanel(r.title(), unit, bars)
		into.err = errors.Join(into.err, err)
		into.panels[line] = append(into.panels[line], p)
	}
	for _, r := range peersRows(true) {
		switch {
		case r.load.Window == 1:
			panel(&times, 0, &r, p50, "p50 µs")
			panel(&times, 1, &r, p99, "p99 µs")
		case r.load.Kind != 0: // told in the table
		case r.load.Payload == 256:
			panel(&rates, 0, &r, throughput, "MB/s")
		default:
			panel(&rates, 1, &r, throughput, "MB/s")
		}
	}
	return map[string]picture{"throughput": rates, "latency": times}
}

// plotMatrix draws heat maps of payload and fanout.
func plotMatrix(_ *options, results []outcome) map[string]picture {
	panel := func(title string, m metric, of func(payload, fanout int) shape) (*plot.Plot, error) {
		z := make([][]float64, len(matrixPayloads))
		for i, payload := range matrixPayloads {
			for _, fanout := range matrixFanouts {
				runs := runsOf(results, rowOf(of(payload, fanout)).name)[felixName]
				z[i] = append(z[i], stats.Median(values(runs, m.of)))
			}
		}
		return heatPanel(title, z)
	}
	rates, err1 := panel("Batches of 64: MB/s delivered to all together", throughput, matrixBatches)
	times, err2 := panel("One event at a time: p50 in µs", p50, matrixSingle)
	tails, err3 := panel("One event at a time: p99 in µs", p99, matrixSingle)
	return map[string]picture{"heat": {
		title:  "Felix over payload and fanout; medians, darker is more",
		panels: [][]*plot.Plot{{rates, times, tails}},
		err:    errors.Join(err1, err2, err3),
	}}
}

// grid is a table of figures by payload and fanout; one that was not measured is not a number.
type grid [][]float64

func (g grid) Dims() (c, r int)   { return len(g[0]), len(g) }
func (g grid) Z(c, r int) float64 { return math.Log(g[r][c]) }
func (g grid) X(c int) float64    { return float64(c) }
func (g grid) Y(r int) float64    { return float64(r) }

func heatPanel(title string, z grid) (*plot.Plot, error) {
	p := newPanel(title)
	p.X.Label.Text, p.Y.Label.Text = "fanout", "payload"
	shades := palette.Palette(shadesOfBlue(64))
	heat := plotter.NewHeatMap(z, shades)
	if heat.Min >= heat.Max { // one figure, or none
		heat.Min, heat.Max = heat.Max-1, heat.Max+1
	}
	if math.IsInf(heat.Max, 0) {
		heat.Min, heat.Max = 0, 1
	}
	heat.NaN = color.Gray{235}
	p.Add(heat)
	var at plotter.XYLabels
	for r, line := range z {
		for c, v := range line {
			label := "–"
			if !math.IsNaN(v) {
				label = fmt.Sprintf("%.0f", v)
			}
			at.XYs, at.Labels = append(at.XYs, plotter.XY{X: float64(c), Y: float64(r)}), append(at.Labels, label)
		}
	}
	text, err := plotter.NewLabels(at)
	if err != nil {
		return nil, err
	}
	for i := range text.TextStyle {
		s := &text.TextStyle[i]
		s.Font.Size, s.XAlign, s.YAlign = font.Length(textSize), draw.XCenter, draw.YCenter
		if r, c := i/len(z[0]), i%len(z[0]); z.Z(c, r) > (heat.Min+heat.Max)/2 {
			s.Color = color.White
		}
	}
	p.Add(text)
	var payloads, fanouts []string
	for _, n := range matrixPayloads {
		payloads = append(payloads, size(n))
	}
	for _, n := range matrixFanouts {
		fanouts = append(fanouts, fmt.Sprint(n))
	}
	p.NominalX(fanouts...)
	p.NominalY(payloads...)
	return p, nil
}

// shadesOfBlue are that many colors from nearly white to dark.
type shadesOfBlue int

func (n shadesOfBlue) Colors() []color.Color {
	all := make([]color.Color, n)
	for i := range all {
		f := float64(i) / float64(n-1)
		all[i] = color.RGBA{uint8(235 - 235*f), uint8(243 - 180*f), uint8(250 - 130*f), 0xFF}
	}
	return all
}
