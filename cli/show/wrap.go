package show

import (
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Wrap has a text fit a width, with indents for its first line and for the others. A
// word stays whole, hyphens and all: it may be a path, a flag or an ID that is copied.
// A width of 0 is no limit.
func Wrap(first, indent, text string, width int) (lines []string) {
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		switch {
		case empty:
		case width <= 0 || ansi.StringWidth(line)+1+ansi.StringWidth(word) <= width:
			line += " "
		default:
			lines, line = append(lines, line), indent
		}
		line, empty = line+word, false
	}
	return append(lines, line)
}

// width is the terminal's columns; 0: the output is none.
func (v *Text) width() int {
	if v.screen == nil {
		return 0
	}
	width, _ := v.screen.size()
	return width
}

// told prints a text, on a terminal in lines that fit.
func (v *Text) told(first, indent, text string) {
	for _, line := range Wrap(first, indent, text, v.width()) {
		v.line("%s", line)
	}
}
