// Package show is everything that is shown of a run: to a person as text, to a
// program as JSON, and to those who are told at its end.
package show

import (
	"io"
	"os"

	"github.com/mattn/go-isatty"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// A View shows what happens: as text for a person, or as JSON for a program. A
// write that fails is ignored: who stops reading does not stop a drain.
type View interface {
	Event(event.Event)
	Status(*status.Status)
	Checks(*drain.CheckReport)
	History(entries []status.HistoryEntry, unreadable []string)
	Operation(Operation)
	Config(files []string, values []ConfigValue)
	Trace(host, command string)
	Signal(kind spec.Kind, first bool)
	Pause(func()) // keeps quiet while somebody types
}

// Options are what a view is asked for.
type Options struct {
	Plain, Verbose bool
	Document       bool // JSON is one document, not a line for each event
}

// A FanOut is a view whose events others are told as well.
type FanOut struct {
	View
	Others []func(event.Event)
}

// Event implements [View].
func (f FanOut) Event(e event.Event) {
	f.View.Event(e)
	for _, tell := range f.Others {
		tell(e)
	}
}

// TextOf is the text that a view shows; nil where it shows something else.
func TextOf(v View) *Text {
	if f, ok := v.(FanOut); ok {
		v = f.View
	}
	text, _ := v.(*Text)
	return text
}

// IsTerminal tells whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
