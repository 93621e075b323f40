package show

import (
	"fmt"
	"strings"
	"time"
)

// A chart is a waitCurve as the template of a page asks for it: drawn in a box of fixed
// numbers, which is stretched to the page. Its texts are beside it, and are not
// stretched.
type chart struct {
	*waitCurve
	Ref string // of its title, in the page
}

// The box.
const (
	chartWidth  = 600
	chartHeight = 120
)

func (chart) Width() int           { return chartWidth }
func (chart) Height() int          { return chartHeight }
func (c chart) Summary() string    { return c.summary() }
func (c chart) Limits() string     { return c.limits() }
func (c chart) LengthText() string { return took(c.Length) }

// Peak is the most connections; 0: there is nothing to draw.
func (c chart) Peak() int { return c.peak() }

// Top is the greatest number that is drawn.
func (c chart) Top() int { return max(1, c.peak(), c.Threshold) }

func (c chart) x(at time.Duration) float64 {
	return chartWidth * at.Seconds() / max(c.Length.Seconds(), 1e-9)
}

func (c chart) y(open int) float64 {
	return chartHeight * (1 - float64(open)/float64(c.Top()))
}

// Line is the curve as steps: the count is what it was until another one is read.
func (c chart) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "M0 %.1f", c.y(c.first()))
	for _, p := range c.Points[1:] {
		fmt.Fprintf(&b, "H%.1fV%.1f", c.x(p.At), c.y(p.Open))
	}
	fmt.Fprintf(&b, "H%d", chartWidth)
	return b.String()
}

// Area is what is below the line.
func (c chart) Area() string { return fmt.Sprintf("%sV%dH0Z", c.Line(), chartHeight) }

// Grid is a line at the half of what is drawn.
func (chart) Grid() string { return fmt.Sprintf("M0 %dH%d", chartHeight/2, chartWidth) }

// ThresholdLine is where the wait is over; empty: at the bottom.
func (c chart) ThresholdLine() string {
	if c.Threshold <= 0 {
		return ""
	}
	return fmt.Sprintf("M0 %.1fH%d", c.y(c.Threshold), chartWidth)
}

// LimitLine is when the time was up; empty: it was not.
func (c chart) LimitLine() string {
	if !c.timedOut() {
		return ""
	}
	return fmt.Sprintf("M%.1f 0V%d", min(c.x(c.Limit), chartWidth-1), chartHeight)
}

// StuckText says why the wait was not over.
func (c chart) StuckText() string {
	if c.Stuck == nil || !c.Failed {
		return ""
	}
	return stuckSummary(c.Stuck) + ", open for up to " + span(c.Stuck.OpenFor.Duration())
}

// HeldTexts are the connections that held on longest.
func (c chart) HeldTexts() (texts []string) {
	for _, h := range c.Held {
		texts = append(texts, heldText(h, ""))
	}
	return texts
}

// A reading is a point of the curve, in words.
type reading struct {
	After string
	Open  int
}

// Readings are the points of the curve, for who does not see it.
func (c chart) Readings() (all []reading) {
	for _, p := range c.Points {
		all = append(all, reading{took(p.At), p.Open})
	}
	return all
}
