package main

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
	"time"
)

// Size of a plot, in SVG's units.
const (
	plotWidth, plotHeight                     = 860, 260
	leftMargin, rightMargin, topMargin, below = 76, 16, 12, 34
)

// series is one line, or with dots one cloud of points. Color is the number of one
// of the page's colours, 1 to 4.
type series struct {
	name  string
	color int
	dots  bool
	at    []time.Duration
	value []float64
}

// plot is values over the time of a run.
type plot struct {
	title, note string
	span        time.Duration
	// warm and after bound what is shaded as not counted and as disturbed; zero:
	// nothing.
	warm, after time.Duration
	// log has the axis grow by factors; format writes its values.
	log    bool
	format func(float64) string
	// line is a value that is marked across; 0: none.
	line     float64
	lineName string
	series   []series
}

// axis maps values to heights.
type axis struct {
	low, high float64
	log       bool
	ticks     []float64
}

// newAxis takes in all values, from 0 or, by factors, from the power of ten below
// the smallest.
func newAxis(p plot) axis {
	low, high := math.Inf(1), p.line
	for _, s := range p.series {
		for _, v := range s.value {
			high = max(high, v)
			if v > 0 {
				low = min(low, v)
			}
		}
	}
	if high <= 0 {
		high = 1
	}
	if p.log {
		// At most eight powers of ten: what is smaller lies on the ground.
		low = min(max(low, high/1e7), high)
		a := axis{low: math.Pow(10, math.Floor(math.Log10(low))), high: math.Pow(10, math.Ceil(math.Log10(high))), log: true}
		if a.high <= a.low {
			a.high = a.low * 10
		}
		for t := a.low; t <= a.high*1.001; t *= 10 {
			a.ticks = append(a.ticks, t)
		}
		return a
	}
	step := math.Pow(10, math.Floor(math.Log10(high/4)))
	for _, factor := range []float64{1, 2, 2.5, 5, 10} {
		if step*factor*5 >= high {
			step *= factor
			break
		}
	}
	a := axis{high: math.Ceil(high/step-1e-9) * step}
	for i := range int(math.Round(a.high/step)) + 1 {
		a.ticks = append(a.ticks, float64(i)*step)
	}
	return a
}

// y is a value's height on the plot.
func (a axis) y(v float64) float64 {
	part := v / a.high
	if a.log {
		part = math.Log(max(v, a.low)/a.low) / math.Log(a.high/a.low)
	}
	return topMargin + (1-min(max(part, 0), 1))*(plotHeight-topMargin-below)
}

func (p plot) x(at time.Duration) float64 {
	return leftMargin + at.Seconds()/max(p.span.Seconds(), 1e-9)*(plotWidth-leftMargin-rightMargin)
}

// SVG draws the plot. All text in it is escaped.
func (p plot) SVG() template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, plotWidth, plotHeight, html.EscapeString(p.title))
	shade := func(from, to time.Duration, class string) {
		fmt.Fprintf(&b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"/>`, class, p.x(from), topMargin, p.x(to)-p.x(from), plotHeight-topMargin-below)
	}
	if p.warm > 0 {
		shade(0, p.warm, "warm")
	}
	if p.after > 0 {
		shade(p.after, p.span, "disturbed")
	}
	a := newAxis(p)
	for _, t := range a.ticks {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
			leftMargin, plotWidth-rightMargin, a.y(t), a.y(t), leftMargin-8, a.y(t)+4, html.EscapeString(p.format(t)))
	}
	for _, at := range timeTicks(p.span) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, p.x(at), plotHeight-12, at)
	}
	if p.line > 0 {
		fmt.Fprintf(&b, `<line class="mark" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, leftMargin, plotWidth-rightMargin, a.y(p.line), a.y(p.line))
	}
	for _, s := range p.series {
		p.draw(&b, a, s)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // numbers, and text that was escaped
}

func (p plot) draw(b *strings.Builder, a axis, s series) {
	if s.dots {
		for i, at := range s.at {
			fmt.Fprintf(b, `<circle class="d%d" cx="%.1f" cy="%.1f" r="2.5"><title>%s: %s</title></circle>`,
				s.color, p.x(at), a.y(s.value[i]), html.EscapeString(s.name), html.EscapeString(p.format(s.value[i])))
		}
		return
	}
	fmt.Fprintf(b, `<polyline class="s%d" points="`, s.color)
	for i, at := range s.at {
		fmt.Fprintf(b, "%.1f,%.1f ", p.x(at), a.y(s.value[i]))
	}
	b.WriteString(`"/>`)
}

// timeTicks are at most eleven round times.
func timeTicks(span time.Duration) []time.Duration {
	step := time.Second
	for _, s := range []time.Duration{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600} {
		if step = s * time.Second; span/step <= 10 {
			break
		}
	}
	var all []time.Duration
	for at := time.Duration(0); at <= span; at += step {
		all = append(all, at)
	}
	return all
}

// Title, Note and Legend are for the page.
func (p plot) Title() string { return p.title }

// Note says what the plot shows.
func (p plot) Note() string { return p.note }

// Legend names the series with their colours.
func (p plot) Legend() []struct {
	Name  string
	Class string
} {
	var all []struct {
		Name  string
		Class string
	}
	for _, s := range p.series {
		all = append(all, struct {
			Name  string
			Class string
		}{s.name, fmt.Sprintf("k%d", s.color)})
	}
	if p.line > 0 {
		all = append(all, struct {
			Name  string
			Class string
		}{p.lineName, "km"})
	}
	return all
}
