package show

import (
	"fmt"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/spec"
)

// Operation shows one operation of the history as a timeline.
func (v *Text) Operation(op Operation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := newTimeline(cleaned(op))
	v.line("%s %s %s", v.bold.Sprint(t.ID), t.Began.Kind, strings.Join(t.Began.Targets, ", "))
	for _, text := range t.asked() {
		v.wrapped("  ", "    ", text)
	}
	v.checked(t)
	v.line("")
	day := t.Began.Time.Local().Format(time.DateOnly)
	for _, e := range t.Entries {
		if d := e.At.Local().Format(time.DateOnly); d != day {
			day = d
			v.line("  %s", v.bold.Sprint(day))
		}
		v.entry(t, e)
	}
	v.ended(t)
	if t.Truncated > 0 {
		v.warning(truncatedText(t.Truncated))
	}
}

// checked says what was checked before it began, and of it what was a warning.
func (v *Text) checked(t *timeline) {
	if len(t.Checks) > 0 {
		v.wrapped("  ", "    ", t.checkSum())
	}
	var notes []*note
	for _, c := range t.Checks {
		if c.Finding != nil {
			notes = merge(notes, c.Finding.Text, c.LB, moodWarning)
		}
	}
	for _, n := range notes {
		v.wrapped("  ", "    ", noteText(t, n))
	}
}

// noteIndent is before what stands below the line of a step.
var noteIndent = strings.Repeat(" ", 20)

func (v *Text) entry(t *timeline, e *entry) {
	notes := e.Notes
	line := strings.TrimSpace(e.title() + "  " + strings.Join(e.Backends, ", "))
	switch {
	case e.Kind == entryBatch && e != t.Entries[0]:
		v.line("")
	case e.Kind == entryNote:
		line, notes = noteText(t, notes[0]), notes[1:]
	}
	mark := v.good
	switch e.result() {
	case "failed":
		mark = v.bad
	case "unchanged", "no end":
		mark = v.warn
	}
	lines := Wrap(fmt.Sprintf("  %s %7s  %-10s", e.clock(), e.took(), e.result()), noteIndent+"  ", line, historyWidth)
	if e.result() != "" {
		lines[0] = strings.Replace(lines[0], e.result(), mark.Sprint(e.result()), 1)
	}
	for _, line := range lines {
		v.line("%s", line)
	}
	if e.What != "" {
		v.wrapped(noteIndent, noteIndent+"  ", e.What)
	}
	for _, s := range e.Curves {
		v.waited(s, e.Result == "done")
	}
	for _, n := range notes {
		v.wrapped(noteIndent, noteIndent+"  ", noteText(t, n))
	}
}

// waited shows the connections of a wait, and, where it was not done, what held it.
func (v *Text) waited(s *waitCurve, done bool) {
	v.wrapped(noteIndent, noteIndent+"  ", s.draw()+" "+strings.TrimPrefix(s.Backend+": ", ": ")+s.summary())
	if done {
		return
	}
	if s.Stuck != nil {
		v.wrapped(noteIndent+"  ", noteIndent+"    ", stuckSummary(s.Stuck)+", open for up to "+span(s.Stuck.OpenFor.Duration()))
	}
	for _, h := range s.Held {
		v.wrapped(noteIndent+"  ", noteIndent+"    ", "held by "+heldText(h, ""))
	}
}

func noteText(t *timeline, n *note) string {
	text := n.Text + t.on(n.LBs)
	switch n.Mood {
	case moodWarning:
		return "warning: " + text
	case moodFailed:
		return "failed: " + text
	}
	return text
}

// ended shows how it ended, what is so, and what to type next.
func (v *Text) ended(t *timeline) {
	v.line("")
	next := t.Next
	if r := t.Ended; r == nil {
		v.line("%s", v.warn.Sprint(unendedText))
	} else {
		next = r.Next
		mark := v.bad
		if r.ExitCode == spec.Done {
			mark = v.good
		}
		v.line("  %s %7s  %s (exit code %d: %s)", r.Time.Local().Format("15:04:05"), took(r.Time.Sub(t.Began.Time)), mark.Sprint(r.Result), r.ExitCode, exitText(r.ExitCode))
		for _, text := range t.standing() {
			v.wrapped(noteIndent, noteIndent+"  ", text)
		}
		if len(r.Log) > 0 {
			v.line("  the last log lines of the app:")
		}
		for _, text := range r.Log {
			v.line("    %s", text)
		}
	}
	for _, c := range next {
		v.line("next: %s", nextText(c))
	}
}

// historyWidth is the columns of a timeline, wherever it is printed.
const historyWidth = 80

// wrapped prints a text with indents for its first line and for the others.
func (v *Text) wrapped(first, indent, text string) {
	for _, line := range Wrap(first, indent, text, historyWidth) {
		v.line("%s", line)
	}
}
