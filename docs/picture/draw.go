package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"time"

	"github.com/hinshun/vt10x"
)

// What a cell measures, in pixels, and how long the end is shown.
const (
	cellWidth, cellHeight = 8.4, 18
	margin                = 14
	hold                  = 6 * time.Second
)

// A line is one line of a terminal: its spans of one style each.
type line []span

type span struct {
	at    int // column
	text  string
	style string // attributes of SVG
}

// linesOf is what a terminal shows.
func linesOf(screen vt10x.Terminal) []line {
	screen.Lock()
	defer screen.Unlock()
	lines := make([]line, rows)
	for y := range rows {
		for x := range columns {
			cell := screen.Cell(x, y)
			if cell.Char == ' ' || cell.Char == 0 {
				continue
			}
			l, style := &lines[y], styleOf(cell)
			if n := len(*l) - 1; n >= 0 && (*l)[n].style == style && x-(*l)[n].end() <= 1 {
				last := &(*l)[n]
				last.text += strings.Repeat(" ", x-last.end()) + string(cell.Char)
				continue
			}
			*l = append(*l, span{x, string(cell.Char), style})
		}
	}
	return lines
}

func (s span) end() int { return s.at + len([]rune(s.text)) }

func same(a, b []line) bool {
	return slices.EqualFunc(a, b, func(a, b line) bool { return slices.Equal(a, b) })
}

// palette is the first colours of a terminal, readable on the background.
var palette = []string{"#6e7681", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#e6edf3"}

// bold is what vt10x calls attrBold.
const bold = 1 << 2

func styleOf(cell vt10x.Glyph) string {
	text := ""
	if cell.FG.ANSI() {
		text = fmt.Sprintf(` fill="%s"`, palette[cell.FG%8])
	}
	if cell.Mode&bold != 0 {
		text += ` font-weight="bold"`
	}
	return text
}

// draw draws frames one after the other, again and again. Where nothing moves, the last
// one is seen.
func draw(frames []frame) string {
	var total time.Duration
	frames[len(frames)-1].shown = hold
	for _, f := range frames {
		total += f.shown
	}
	width, height := columns*cellWidth+2*margin, rows*cellHeight+2*margin
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" role="img" aria-label="A terminal: drainctl drains a backend, step by step">
<style>svg{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#e6edf3}text{white-space:pre}g{visibility:hidden}g:last-of-type{visibility:visible}
@media(prefers-reduced-motion:no-preference){g{animation:%.1fs step-end infinite}`, width, height, total.Seconds())
	var at time.Duration
	percent := func(d time.Duration) string { return fmt.Sprintf("%.3f%%", 100*d.Seconds()/total.Seconds()) }
	for i, f := range frames {
		fmt.Fprintf(&svg, "#f%d{animation-name:k%d}@keyframes k%d{0%%{visibility:hidden}%s{visibility:visible}%s{visibility:hidden}}\n", i, i, i, percent(at), percent(at+f.shown))
		at += f.shown
	}
	fmt.Fprintf(&svg, "}</style>\n<rect width=\"100%%\" height=\"100%%\" rx=\"8\" fill=\"#0d1117\"/>\n")
	for i, f := range frames {
		fmt.Fprintf(&svg, `<g id="f%d">`, i)
		for y, l := range f.lines {
			for _, s := range l {
				fmt.Fprintf(&svg, `<text x="%.1f" y="%d" textLength="%.1f"%s>%s</text>`, margin+float64(s.at)*cellWidth, margin+14+y*cellHeight, float64(s.end()-s.at)*cellWidth, s.style, html.EscapeString(s.text))
			}
		}
		fmt.Fprintln(&svg, "</g>")
	}
	fmt.Fprintln(&svg, "</svg>")
	return svg.String()
}
