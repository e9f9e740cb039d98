package main

import (
	"fmt"
	"math"
	"strings"
)

// panel is what grows on the way across and what of it becomes.
type panel struct {
	name, unit string
	at         []float64
	// series are messages a second, by contender, a value for each of at.
	series []series
}

type series struct {
	name   string
	spread []spread
}

// panelsOf are those of the scenario growth.
func panelsOf(outcomes []*outcome) (panels []panel) {
	for _, g := range grown() {
		p := panel{name: g.name, unit: g.unit}
		for _, out := range outcomes {
			if out.Scenario != "growth: "+g.name {
				continue
			}
			p.at = append(p.at, out.At)
			for i, r := range out.Results {
				if i == len(p.series) {
					p.series = append(p.series, series{name: r.Name})
				}
				p.series[i].spread = append(p.series[i].spread, spreadOf(values(r.Runs, perSecond)))
			}
		}
		if len(p.at) > 0 {
			panels = append(panels, p)
		}
	}
	return panels
}

// markdown is the panel as a table.
func (p panel) markdown() string {
	rows := [][]string{{p.unit}}
	for _, s := range p.series {
		rows[0] = append(rows[0], s.name+", messages/s")
	}
	for i, v := range p.at {
		row := []string{fmt.Sprintf("%.0f", v)}
		for _, s := range p.series {
			row = append(row, s.spread[i].String())
		}
		rows = append(rows, row)
	}
	var text strings.Builder
	text.WriteString("\n")
	writeRows(&text, rows)
	return text.String()
}

// The measures of the chart, in pixels.
const (
	panelWidth, panelHeight = 300, 220
	left, right             = 56, 16
	top, bottom             = 34, 40
	columns                 = 3
)

// chart draws the panels as SVG, in colours that are seen on light and on dark.
func chart(panels []panel) string {
	var text strings.Builder
	rows := (len(panels) + columns - 1) / columns
	fmt.Fprintf(&text, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[2]d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="11" role="img">
<title>Messages a second against what grows</title>
<rect width="100%%" height="100%%" fill="#ffffff"/>
`, columns*panelWidth, rows*panelHeight)
	for i, p := range panels {
		fmt.Fprintf(&text, `<g transform="translate(%d %d)">`+"\n", i%columns*panelWidth, i/columns*panelHeight)
		p.draw(&text)
		text.WriteString("</g>\n")
	}
	text.WriteString("</svg>\n")
	return text.String()
}

func (p panel) draw(text *strings.Builder) {
	most := 0.0
	for _, s := range p.series {
		for _, v := range s.spread {
			most = max(most, v.Max)
		}
	}
	step := niceStep(most / 4)
	most = max(math.Ceil(most/step), 1) * step
	// What grows doubles: the way across is logarithmic.
	first, last := math.Log2(p.at[0]), math.Log2(p.at[len(p.at)-1])
	x := func(v float64) float64 {
		if first == last {
			return left
		}
		return left + (math.Log2(v)-first)/(last-first)*(panelWidth-left-right)
	}
	y := func(v float64) float64 { return panelHeight - bottom - v/most*(panelHeight-top-bottom) }

	fmt.Fprintf(text, `<text x="%d" y="16" font-weight="bold" fill="#222222">messages/s against %s</text>`+"\n", left, p.unit)
	for v := 0.0; v <= most; v += step {
		fmt.Fprintf(text, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end" fill="#555555">%.0f</text>`+"\n",
			left, panelWidth-right, y(v), y(v), left-6, y(v)+4, v)
	}
	for _, v := range p.at {
		fmt.Fprintf(text, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555555">%.0f</text>`+"\n", x(v), panelHeight-bottom+16, v)
	}
	colours := map[string]string{floor: "#999999", theRelay: "#0b66c3"}
	for n, s := range p.series {
		colour := colours[s.name]
		var points []string
		for i, v := range s.spread {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(p.at[i]), y(v.Median)))
			fmt.Fprintf(text, `<line x1="%.1[1]f" x2="%.1[1]f" y1="%.1[2]f" y2="%.1[3]f" stroke="%[4]s" stroke-opacity="0.5"/><circle cx="%.1[1]f" cy="%.1[5]f" r="3" fill="%[4]s"/>`+"\n",
				x(p.at[i]), y(v.Min), y(v.Max), colour, y(v.Median))
		}
		fmt.Fprintf(text, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n",
			strings.Join(points, " "), colour, left+n*60, panelHeight-6, colour, s.name)
	}
}

// niceStep is 1, 2 or 5 times a power of ten, at least v.
func niceStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(max(v, 1))))
	for _, times := range []float64{1, 2, 5} {
		if times*power >= v {
			return times * power
		}
	}
	return 10 * power
}
