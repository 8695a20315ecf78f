package main

import (
	"errors"
	"fmt"
	"image/color"
	"slices"

	gonum "gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen/plot"
)

// panelHeight is the height of a row of a picture, in points.
const panelHeight = 220

// pictureOf is a picture of rows of panels. keep adds the caption.
func pictureOf(title string, rows ...[]*gonum.Plot) *plot.Picture {
	return &plot.Picture{Title: []string{title}, Rows: rows, Height: vg.Length(len(rows)*panelHeight + 100)}
}

func newPanel(title, x, y string) *gonum.Plot {
	p := plot.New(x, y)
	p.Title.Text, p.Title.Padding = title, 4
	return p
}

// bar is a system's figure in one panel: the median of all rounds and their range.
type bar struct {
	name   string
	values []float64 // none if it was not measured
	color  color.Color
}

// barPanel draws one horizontal bar for each system, the first on top.
func barPanel(title, unit string, bars []bar) (*gonum.Plot, error) {
	p := newPanel(title, unit, "")
	p.X.Min = 0
	p.X.Tick.Marker = gonum.TickerFunc(func(low, high float64) []gonum.Tick {
		ticks := gonum.DefaultTicks{}.Ticks(low, high)
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
		text.TextStyle[0].YAlign = draw.YCenter
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
func plotPeers(o *options, results []outcome) (map[string]*plot.Picture, error) {
	rates, times := make([][]*gonum.Plot, 2), make([][]*gonum.Plot, 2)
	var errs []error
	panel := func(into *[]*gonum.Plot, r *row, m metric, unit string) {
		runs := runsOf(results, r.name)
		var bars []bar
		for _, system := range r.systems(o.against) {
			bars = append(bars, bar{title(system), values(runs[system], m.of), colorOf(system)})
		}
		p, err := barPanel(r.title(), unit, bars)
		*into, errs = append(*into, p), append(errs, err)
	}
	for _, r := range peersRows(true) {
		switch {
		case r.load.Window == 1:
			panel(&times[0], &r, p50, "p50 µs")
			panel(&times[1], &r, p99, "p99 µs")
		case r.load.Kind != 0: // told in the table
		case r.load.Payload == 256:
			panel(&rates[0], &r, throughput, "MB/s")
		default:
			panel(&rates[1], &r, throughput, "MB/s")
		}
	}
	const legend = ". Felix orange, peers with TLS 1.3 dark, in the clear light; median and range of all rounds"
	return map[string]*plot.Picture{
		"throughput": pictureOf("Payload delivered per second"+legend, rates...),
		"latency":    pictureOf("Publish to receipt, one event at a time"+legend, times...),
	}, errors.Join(errs...)
}

// plotMatrix draws heat maps of payload and fanout.
func plotMatrix(_ *options, results []outcome) (map[string]*plot.Picture, error) {
	panel := func(title string, m metric, of func(payload, fanout int) shape) *gonum.Plot {
		g := &plot.Grid{}
		for _, payload := range matrixPayloads {
			g.Rows = append(g.Rows, size(payload))
		}
		for _, fanout := range matrixFanouts {
			g.Columns = append(g.Columns, fmt.Sprint(fanout))
			var column []float64
			for _, payload := range matrixPayloads {
				runs := runsOf(results, rowOf(of(payload, fanout)).name)[felixName]
				column = append(column, stats.Median(values(runs, m.of)))
			}
			g.Values = append(g.Values, column)
		}
		p := newPanel(title, "fanout", "payload")
		g.Draw(p, func(v float64) string { return fmt.Sprintf("%.0f", v) })
		return p
	}
	return map[string]*plot.Picture{"heat": pictureOf("Felix over payload and fanout; medians, lighter is more", []*gonum.Plot{
		panel("Batches of 64: MB/s delivered to all together", throughput, matrixBatches),
		panel("One event at a time: p50 in µs", p50, matrixSingle),
		panel("One event at a time: p99 in µs", p99, matrixSingle),
	})}, nil
}
