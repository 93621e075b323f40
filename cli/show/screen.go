package show

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"
)

// A screen is some rows at the end of what a terminal shows, which are drawn anew in
// place. It asks the terminal nothing, catches no signal, changes no mode and leaves
// the cursor visible, so that nothing is to be restored, however the program ends.
//
// The cursor waits in the first of the rows: wherever a resize moves them, wrapping
// some, all that is to be erased is below it. bubbletea, mpb and go-pretty count the
// rows back up from the last one, and leave some behind when a terminal gets
// narrower; ansi, which bubbletea is made of, measures and cuts.
type screen struct {
	out           io.Writer
	ascii         bool   // the terminal shows no more than that
	drawn         string // what stands there; empty: nothing
	width, height int    // when it was drawn
}

// newScreen is the screen of a terminal; nil for one that cannot move its cursor,
// and for what is no terminal.
func newScreen(out io.Writer) *screen {
	if !IsTerminal(out) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	locale := strings.ToLower(cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG")))
	return &screen{out: out, ascii: !strings.Contains(strings.ReplaceAll(locale, "-", ""), "utf8")}
}

// size is the terminal's; a terminal that does not know its own is taken for a common
// one.
func (s *screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok {
		width, height, _ = term.GetSize(int(f.Fd()))
	}
	return cmp.Or(width, 80), cmp.Or(height, 24)
}

// plain replaces what a terminal without UTF-8 cannot show.
var plain = strings.NewReplacer("✓", "+", "✗", "x", "▸", ">", "·", "-", "↺", "<", "…", "~",
	"▁", "_", "▂", ".", "▃", ":", "▄", "-", "▅", "=", "▆", "+", "▇", "*", "█", "#")

func (s *screen) text(text string) string {
	if s.ascii {
		return plain.Replace(text)
	}
	return text
}

// draw shows rows in place of those that stand there. What it overwrites it does not
// erase first: that would flicker.
func (s *screen) draw(rows []string, width, height int) {
	if len(rows) == 0 {
		s.clear()
		return
	}
	for i, row := range rows {
		rows[i] = s.text(ansi.Truncate(row, width-1, "…")) + ansi.EraseLineRight
	}
	text := strings.Join(rows, "\r\n") + ansi.EraseScreenBelow
	if text == s.drawn && width == s.width && height == s.height {
		return
	}
	up := "\r"
	if len(rows) > 1 {
		up += ansi.CursorUp(len(rows) - 1)
	}
	fmt.Fprint(s.out, s.home(width, height), text, up, ansi.SaveCursor)
	s.drawn, s.width, s.height = text, width, height
}

// home goes to the first row. Enter, typed, has moved the cursor, but not where it
// was saved; a resize has moved both, and only the cursor keeps to its row.
func (s *screen) home(width, height int) string {
	if s.drawn == "" || width != s.width || height != s.height {
		return "\r"
	}
	return ansi.RestoreCursor
}

// clear erases the rows: what is written next stands in their place.
func (s *screen) clear() {
	if s.drawn != "" {
		fmt.Fprint(s.out, s.home(s.size()), ansi.EraseScreenBelow)
		s.drawn = ""
	}
}
