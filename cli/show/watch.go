package show

import (
	"fmt"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/drainctl/drainctl/drain/status"
)

// A Watch is the view of a person who keeps looking: each status is drawn over the
// last one, on the terminal's other screen, so that what was there before stays.
type Watch struct {
	*Text
	every time.Duration
	open  bool
	last  *status.Status
	at    time.Time // of it
}

// NewWatch is a watch for a status every so often. Nothing is drawn yet. It is nil
// where v does not show text on a terminal.
func NewWatch(v View, every time.Duration) *Watch {
	text := TextOf(v)
	if text == nil || text.screen == nil {
		return nil
	}
	return &Watch{Text: text, every: every}
}

// Status draws a status.
func (s *Watch) Status(st *status.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.at = cleaned(st), time.Now()
	s.draw()
}

// Redraw draws the last status again, after the terminal's size has changed.
func (s *Watch) Redraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		s.draw()
	}
}

// draw writes all lines at once, each over the one that was there, so that nothing
// flickers. What does not fit is said, and not scrolled.
func (s *Watch) draw() {
	width, height := s.screen.size()
	width-- // in the last column, some terminals erase what was just written
	lines := []string{s.faint.Sprint(ansi.Truncate(fmt.Sprintf("%s, every %s; Ctrl-C ends", s.at.Format(clockFormat), s.every), width, ""))}
	for _, line := range s.statusLines(s.last, width) {
		lines = append(lines, strings.Split(ansi.Hardwrap(line, width, true), "\n")...)
	}
	if s.last.Error != "" {
		for i, line := range strings.Split(ansi.Wrap("error: "+oneLine(s.last.Error), width-2, "/,"), "\n") {
			if i > 0 {
				line = "  " + line
			}
			lines = append(lines, s.bad.Sprint(line))
		}
	}
	if more := len(lines) - height; more > 0 {
		lines = append(lines[:height-1], ansi.Truncate(fmt.Sprintf("… %d more lines: name a TARGET or an --upstream", more+1), width, ""))
	}
	text := ansi.SetModeSynchronizedOutput
	if !s.open {
		text += ansi.SetModeAltScreenSaveCursor + ansi.HideCursor
		s.open = true
	}
	text += ansi.CursorHomePosition + strings.Join(lines, ansi.EraseLineRight+"\r\n") + ansi.EraseScreenBelow + ansi.ResetModeSynchronizedOutput
	fmt.Fprint(s.out, text)
}

// Trace shows nothing: there is no place for it.
func (s *Watch) Trace(string, string) {}

// Pause gives the terminal back while somebody types.
func (s *Watch) Pause(f func()) {
	s.Close()
	s.Text.Pause(f)
}

// Close gives the terminal back as it was.
func (s *Watch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		fmt.Fprint(s.out, ansi.ShowCursor+ansi.ResetModeAltScreenSaveCursor)
		s.open = false
	}
}
