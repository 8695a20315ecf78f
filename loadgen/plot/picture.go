package plot

import (
	"image/color"
	"io"
	"math"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/palette/moreland"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/felix-mq/felix/loadgen/report"
)

// Size of a picture. A PNG has a pixel for each of these points; text of 13 is legible at that size.
const (
	Width  = 1000
	Height = 700 // of those that this package draws

	titleSize = 18
	textSize  = 14
	smallSize = 12
	margin    = 14
	lineSkip  = 1.3
)

// Picture is rows of plots, with a title above and a caption below.
type Picture struct {
	Title, Caption []string       // lines; the first of the title is larger
	Rows           [][]*plot.Plot // of equal length
	Height         vg.Length
}

// sans is the face of all text: at these sizes serifs blur.
func sans(size vg.Length) font.Font {
	return font.From(font.Font{Typeface: plot.DefaultFont.Typeface, Variant: "Sans"}, size)
}

func style(size vg.Length) text.Style {
	return text.Style{Color: color.Black, Font: sans(size), Handler: plot.DefaultTextHandler, YAlign: draw.YTop}
}

// New makes a plot with texts of a size that suits a picture.
func New(x, y string) *plot.Plot {
	q := plot.New()
	q.Title.TextStyle.Font = sans(textSize)
	q.X.Label.Text, q.Y.Label.Text = x, y
	q.Legend.TextStyle.Font = sans(smallSize)
	q.Legend.Padding = 3
	q.Legend.ThumbnailWidth = 28
	for _, a := range []*plot.Axis{&q.X, &q.Y} {
		a.Label.TextStyle.Font = sans(textSize)
		a.Tick.Label.Font = sans(smallSize)
		a.Label.Padding = 4
	}
	return q
}

// WriteFile draws the picture into a file: SVG if its name says so, and else PNG.
func (p *Picture) WriteFile(file string) error {
	var c vg.CanvasWriterTo = vgsvg.New(Width, p.Height)
	if filepath.Ext(file) != ".svg" {
		c = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(Width, p.Height), vgimg.UseDPI(int(vg.Inch)))}
	}
	p.draw(draw.New(c))
	return report.WriteFile(file, func(w io.Writer) error {
		_, err := c.WriteTo(w)
		return err
	})
}

func (p *Picture) draw(c draw.Canvas) {
	c.SetColor(color.White)
	c.Fill(c.Path())
	c = draw.Crop(c, margin, -margin, margin, -margin)
	c.Max.Y -= write(c, p.Title[:1], style(titleSize))
	c.Max.Y -= write(c, p.Title[1:], style(textSize)) + margin/2
	small := style(smallSize)
	small.Color = color.Gray{0x40}
	caption := c
	caption.Max.Y = c.Min.Y + height(c, p.Caption, small)
	write(caption, p.Caption, small)
	c.Min.Y = caption.Max.Y + margin/2
	tiles := draw.Tiles{Rows: len(p.Rows), Cols: len(p.Rows[0]), PadX: margin, PadY: margin}
	for i, row := range plot.Align(p.Rows, tiles, c) {
		for j, tile := range row {
			p.Rows[i][j].Draw(tile)
		}
	}
}

// height is how much space write takes.
func height(c draw.Canvas, lines []string, s text.Style) vg.Length {
	return vg.Length(len(wrap(lines, s, c.Size().X))) * s.Font.Size * lineSkip
}

// write writes lines at the top of a canvas, broken where they are too long, and returns the height they took.
func write(c draw.Canvas, lines []string, s text.Style) vg.Length {
	at := c.Max.Y
	for _, line := range wrap(lines, s, c.Size().X) {
		c.FillText(s, vg.Point{X: c.Min.X, Y: at}, line)
		at -= s.Font.Size * lineSkip
	}
	return c.Max.Y - at
}

// wrap breaks lines at spaces so that each fits into a width.
func wrap(lines []string, s text.Style, width vg.Length) []string {
	var out []string
	for _, line := range lines {
		current := ""
		for word := range strings.FieldsSeq(line) {
			if next := strings.TrimSpace(current + " " + word); current == "" || s.Width(next) <= width {
				current = next
				continue
			}
			out = append(out, current)
			current = word
		}
		out = append(out, current)
	}
	return out
}

// Grid is a table of figures, which [Grid.Draw] makes a heat map of.
type Grid struct {
	Columns, Rows []string
	Values        [][]float64 // by column and row, not a number where there is none
}

// Dims implements plotter.GridXYZ.
func (g *Grid) Dims() (c, r int) { return len(g.Columns), len(g.Rows) }

// Z implements plotter.GridXYZ, on a logarithmic scale.
func (g *Grid) Z(c, r int) float64 { return math.Log(g.Values[c][r]) }

// X implements plotter.GridXYZ.
func (g *Grid) X(c int) float64 { return float64(c) }

// Y implements plotter.GridXYZ.
func (g *Grid) Y(r int) float64 { return float64(r) }

// Draw adds the grid to a plot: lighter is more. text is a figure for people.
func (g *Grid) Draw(q *plot.Plot, text func(float64) string) {
	heat := plotter.NewHeatMap(g, shades(moreland.Kindlmann().Palette(256).Colors()[50:240])) // without black and white
	if math.IsInf(heat.Max, 0) {                                                              // no figure
		heat.Min, heat.Max = 0, 1
	}
	if !(heat.Max > heat.Min) {
		heat.Max = heat.Min + 1
	}
	heat.NaN = color.Gray{0xDD}
	q.Add(heat)
	var dark, light plotter.XYLabels // on light cells and dark ones
	for c := range g.Columns {
		for row := range g.Rows {
			v := g.Values[c][row]
			label, on := "no result", &dark
			if !math.IsNaN(v) {
				label, on = text(v), &light
			}
			if (g.Z(c, row)-heat.Min)/(heat.Max-heat.Min) > 0.45 {
				on = &dark
			}
			on.XYs = append(on.XYs, plotter.XY{X: float64(c), Y: float64(row)})
			on.Labels = append(on.Labels, label)
		}
	}
	for on, ink := range map[*plotter.XYLabels]color.Color{&dark: color.Black, &light: color.White} {
		labels, err := plotter.NewLabels(on)
		if err != nil || len(on.Labels) == 0 {
			continue
		}
		for i := range labels.TextStyle {
			s := style(textSize)
			s.Color, s.XAlign, s.YAlign = ink, draw.XCenter, draw.YCenter
			labels.TextStyle[i] = s
		}
		q.Add(labels)
	}
	q.NominalX(g.Columns...)
	q.NominalY(g.Rows...)
	q.X.Tick.Label.Font, q.Y.Tick.Label.Font = sans(textSize), sans(textSize)
}

// shades is a palette.
type shades []color.Color

func (s shades) Colors() []color.Color { return s }
