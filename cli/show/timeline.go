package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// An Operation is one operation of the history, as it was read.
type Operation struct {
	ID        string
	Events    []event.Event
	Truncated int            // lines that could not be read
	Next      []spec.Command // where it has not ended
}

// A timeline is an operation as a person reads it: its events put together into
// steps.
type timeline struct {
	Operation
	Began     *event.OperationStarted // never nil; empty where that line is lost
	Ended     *event.Result           // nil: it has not ended
	LBs       []string
	Entries   []*entry
	Checks    []event.Check
	Unchecked []string
	More      int // checks that were not kept

	step    *entry   // the latest one
	undoing bool     // a rollback is under way
	members []string // backends that the next step is for
	failing []string // of them, those that the latest step failed for
	rolled  []string // backends that are rolled back alone
}

// An entry of a timeline is a step, or what is between steps.
type entry struct {
	Kind       entryKind
	At         time.Time
	Took       time.Duration // of a step that has ended
	Title      string
	What       string   // that a step does
	Backends   []string // that an entry names
	Of         []string // the backends of a step
	Result     string   // of a step: done, unchanged, failed; empty: it has not ended
	Notes      []*note
	Curves     []*waitCurve
	Diffs      []*note
	key        event.Header // of a step: its name and direction
	last       time.Time    // of its events
	unfinished bool         // and the operation went on without its end
}

// An entryKind says what an entry is.
type entryKind string

const (
	entryStep     entryKind = "step"
	entryUndo     entryKind = "undo" // a step of a rollback
	entryBatch    entryKind = "batch"
	entryRollback entryKind = "rollback" // which begins here
	entryNote     entryKind = "note"
)

// A note is what has happened, and on which LBs; none: it is about no LB.
type note struct {
	Text string
	LBs  []string
	Mood mood
}

// A mood says how bad something is.
type mood string

const (
	moodPlain   mood = ""
	moodWarning mood = "warning"
	moodFailed  mood = "failed"
)

// newTimeline puts the events of an operation together.
func newTimeline(op Operation) *timeline {
	t := &timeline{Operation: op, Began: &event.OperationStarted{}}
	for _, e := range op.Events {
		_, skipped := e.(*event.LBSkipped)
		if lb := e.Head().LB; lb != "" && !skipped && !slices.Contains(t.LBs, lb) {
			t.LBs = append(t.LBs, lb)
		}
		t.add(e)
	}
	for _, e := range t.Entries {
		e.close()
	}
	return t
}

func (t *timeline) add(e event.Event) {
	h := e.Head()
	switch e := e.(type) {
	case *event.OperationStarted:
		t.started(e)
	case *event.Result:
		t.Ended = e
	case *event.Checked:
		t.Checks, t.More = append(t.Checks, e.Checks...), t.More+e.More
		t.Unchecked = append(t.Unchecked, e.Unchecked...)
	case *event.BatchStarted:
		t.forward()
		t.members = e.Backends
		t.entry(entryBatch, h, fmt.Sprintf("batch %d/%d", e.Number, e.Of)).Backends = e.Backends
	case *event.RollingBack:
		t.undoing = true
		if h.Target != "" {
			t.rolled = append(t.rolled, h.Target)
		}
		told := t.step.has(e.Error)
		if s := t.entry(entryRollback, h, words(e)); !told {
			s.note(e.Error, "", moodFailed)
		}
	case *event.StepStarted:
		if !e.Rollback {
			t.forward()
		}
		t.begin(h).What = describe(e.Step, e.Direction, e.Description)
	case *event.StepDone:
		t.of(h).done(e)
	case *event.StepFailed:
		t.failed(e)
	case *event.Waiting:
		t.of(h).reading(e)
	case *event.Edited:
		s := t.of(h)
		for _, text := range edits(e.Edits) {
			s.note(text, h.LB, moodPlain)
		}
		s.Diffs = merge(s.Diffs, cmp.Or(e.Diff, strings.Join(edits(e.Edits), "\n")), h.LB, moodPlain)
	default:
		t.happened(e)
	}
}

// started notes who began the operation, or resumed it.
func (t *timeline) started(e *event.OperationStarted) {
	t.members, t.Ended = e.Targets, nil
	if e.Continues == "" || t.Began.Time.IsZero() {
		t.Began = e
		return
	}
	t.entry(entryNote, e.Head(), "").note("resumed by "+journal.Who(e.Recorder, e.User, e.Host, "", e.Time), "", moodPlain)
}

// forward notes that the operation goes on, without the backends that it failed for.
func (t *timeline) forward() {
	t.members = slices.DeleteFunc(slices.Clone(t.members), func(m string) bool { return slices.Contains(t.failing, m) })
	t.undoing, t.failing, t.rolled = false, nil, nil
}

// happened notes what has no place of its own, under the step in which it happened.
func (t *timeline) happened(e event.Event) {
	text, lb, m := words(e), e.Head().LB, moodPlain
	switch e := e.(type) {
	case *event.StoppingAnyway: // it goes on all the same
		m, t.failing = moodWarning, slices.DeleteFunc(t.failing, func(f string) bool { return f == e.Target })
	case *event.Warning, *event.OtherClient, *event.NotLoaded:
		m = moodWarning
	case *event.LBSkipped, *event.BackendSkipped:
		m, lb = moodWarning, "" // which is in the text
	case *event.GenerationsAwaited, *event.AgentCopied:
		lb = ""
	}
	if text = t.about(e.Head(), text); text != "" {
		t.place(e.Head(), text).note(text, lb, m)
	}
}

// place is where a note on an event belongs: to its step, which may have ended, to
// what another LB has said, or between steps.
func (t *timeline) place(h *event.Header, text string) *entry {
	switch s := t.step; {
	case s != nil && (h.Step == s.key.Step || h.Step == "" && s.Result == ""):
		return s
	case h.Step != "":
		return t.of(h)
	}
	if n := len(t.Entries); n > 0 && t.Entries[n-1].Kind == entryNote && t.Entries[n-1].has(text) {
		return t.Entries[n-1]
	}
	return t.entry(entryNote, h, "")
}

func (t *timeline) entry(kind entryKind, h *event.Header, title string) *entry {
	e := &entry{Kind: kind, At: h.Time, last: h.Time, Title: title}
	if h.Target != "" {
		e.Backends = []string{h.Target}
	}
	t.Entries, t.step = append(t.Entries, e), nil
	return e
}

// begin is a step that begins.
func (t *timeline) begin(h *event.Header) *entry {
	kind := entryStep
	if t.undoing {
		kind = entryUndo
	}
	e := t.entry(kind, h, stepText(h.Step, h.Direction))
	e.key, e.Backends, e.Of, t.step = *h, nil, t.members, e
	if t.undoing && len(t.rolled) > 0 {
		e.Of = t.rolled
	}
	return e
}

// of is the step that an event is of.
func (t *timeline) of(h *event.Header) *entry {
	s := t.step
	if s == nil || h.Step != "" && !s.is(h) {
		s = t.begin(h)
	}
	if s.last = h.Time; s.key.Direction == "" && h.Direction != "" {
		s.key.Direction, s.Title = h.Direction, stepText(h.Step, h.Direction)
	}
	return s
}

// is tells whether an event is of this step. Some do not say its direction.
func (e *entry) is(h *event.Header) bool {
	same := h.Direction == "" || e.key.Direction == "" || h.Direction == e.key.Direction
	return e.Result == "" && h.Step == e.key.Step && same
}

func (e *entry) done(d *event.StepDone) {
	e.Result, e.Took = "done", max(0, d.Elapsed.Duration())
	if !d.Changed && d.Step != plan.StepWait {
		e.Result = "unchanged"
	}
	if began := d.Time.Add(-e.Took); began.Before(e.At) {
		e.At = began
	}
	for _, text := range done(d) {
		if d.Detail.Open == nil || len(e.Curves) == 0 { // the curve says it
			e.note(text, "", moodPlain)
		}
	}
	if d.Step != plan.StepWait && d.Step != plan.StepWork {
		e.What = "" // it is so
	}
	if d.Detail.Open != nil && len(e.Curves) == 1 {
		e.Curves[0].add(d.Detail.Waited, *d.Detail.Open)
	}
}

// failed notes that a step failed: for all of it, or for one backend after the other.
func (t *timeline) failed(f *event.StepFailed) {
	s := t.step
	again := s != nil && s.Result == "failed" && f.Step == s.key.Step && f.Direction == s.key.Direction
	if !again {
		s = t.of(f.Head())
	}
	t.undoing = true // what is not announced from here on
	if f.Target != "" {
		t.failing = append(t.failing, f.Target)
	}
	s.Result, s.Took = "failed", max(0, f.Time.Sub(s.At))
	s.note(t.about(f.Head(), f.Error), f.LB, moodFailed)
	for _, w := range s.Curves {
		w.Failed = w.Failed || f.Target == "" || f.Target == w.Backend
	}
}

// about names the backend that a text is about, where there are several.
func (t *timeline) about(h *event.Header, text string) string {
	if text == "" || h.Target == "" || len(t.Began.Targets) < 2 || strings.Contains(text, h.Target) {
		return text
	}
	return h.Target + ": " + text
}

// note adds what has happened. What is the same on several LBs is told once.
func (e *entry) note(text, lb string, m mood) {
	if text != "" {
		e.Notes = merge(e.Notes, text, lb, m)
	}
}

// has tells whether a note ends with a text.
func (e *entry) has(text string) bool {
	return e != nil && slices.ContainsFunc(e.Notes, func(n *note) bool { return strings.HasSuffix(n.Text, text) })
}

func merge(notes []*note, text, lb string, m mood) []*note {
	i := slices.IndexFunc(notes, func(n *note) bool { return n.Text == text })
	if i < 0 {
		i, notes = len(notes), append(notes, &note{Text: text, Mood: m})
	}
	if lb != "" && !slices.Contains(notes[i].LBs, lb) {
		notes[i].LBs = append(notes[i].LBs, lb)
	}
	return notes
}

// close completes a step once all events are read.
func (e *entry) close() {
	step := e.Kind == entryStep || e.Kind == entryUndo
	if step && e.Result == "" {
		e.unfinished, e.Took = true, max(0, e.last.Sub(e.At))
	}
	for _, s := range e.Curves {
		s.close(e.Took)
	}
	slices.SortStableFunc(e.Curves, func(a, b *waitCurve) int { return strings.Compare(a.Backend, b.Backend) })
}

// on says on which of several LBs something is so.
func (t *timeline) on(lbs []string) string {
	switch {
	case len(lbs) == 0, len(t.LBs) < 2:
		return ""
	case len(lbs) == len(t.LBs):
		return " (on every LB)"
	}
	return " (on " + strings.Join(lbs, ", ") + ")"
}

// began says when a step began, in the local zone.
func (e *entry) clock() string { return e.At.Local().Format("15:04:05") }

// took is how long a step took; empty: that is not known, or it is no step.
func (e *entry) took() string {
	if e.unfinished || e.Kind != entryStep && e.Kind != entryUndo {
		return ""
	}
	return took(e.Took)
}

func (e *entry) result() string {
	if e.unfinished {
		return "no end"
	}
	return e.Result
}

// title says that a step is of a rollback.
func (e *entry) title() string {
	if e.Kind == entryUndo {
		return "rollback: " + e.Title
	}
	return e.Title
}

// edits says what was changed in each file, to the byte.
func edits(all []journal.Edit) []string {
	var lines []string
	for _, e := range all {
		var texts []string
		for _, s := range e.Splices {
			text := fmt.Sprintf("%q removed at byte %d (line %d)", s.Old, s.At, s.Line)
			if s.New != "" {
				text = fmt.Sprintf("%q inserted at byte %d (line %d)", s.New, s.At, s.Line)
			}
			if !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
		lines = append(lines, fmt.Sprintf("edit %s: %s", e.Path, strings.Join(texts, ", ")))
	}
	return lines
}

// asked says who wanted what, a line each.
func (t *timeline) asked() (lines []string) {
	b := t.Began
	if b.User != "" {
		lines = append(lines, "by "+journal.Who(b.Recorder, b.User, b.Host, b.Reason, b.Time))
	}
	if b.Continues != "" {
		lines = append(lines, "continues "+b.Continues)
	}
	if b.Service != "" {
		lines = append(lines, "service "+b.Service.String())
	}
	if len(t.LBs) > 1 {
		lines = append(lines, "on "+strings.Join(t.LBs, ", "))
	}
	for _, s := range b.Servers {
		lines = append(lines, "server "+located(s))
	}
	return lines
}

func located(s journal.Located) string {
	down := ""
	if s.Down {
		down = ", down already"
	}
	return fmt.Sprintf("%s in %s (%s:%d)%s", s.Address, s.Upstream, s.File, s.Line, down)
}

// checkSum says how many checks there were before it began.
func (t *timeline) checkSum() string {
	r := drain.CheckReport{Checks: t.Checks}
	text := fmt.Sprintf("checked before it began: %d ok", r.Count(event.CheckOK))
	if n := r.Count(event.CheckWarning); n > 0 {
		text += ", " + count(n, "warning")
	}
	if t.More > 0 {
		text += fmt.Sprintf(" (and %d more, which were not kept)", t.More)
	}
	return text
}

// exitText is an exit code in words.
func exitText(code spec.Exit) string {
	switch code {
	case spec.Done:
		return "done, or unchanged"
	case spec.Failed:
		return "failed, and everything is as it was before"
	case spec.Usage:
		return "the request makes no sense"
	case spec.TimedOut:
		return "not drained in time"
	case spec.Refused:
		return "refused, and nothing was touched"
	case spec.Partial:
		return "a person must look"
	case spec.Interrupted:
		return "interrupted, and rolled back"
	}
	return "not known"
}

// unendedText is how an operation without an end is called.
const unendedText = "it has not ended, or did not live to say so"

// standing is what is so after the operation, a line each.
func (t *timeline) standing() (lines []string) {
	r := t.Ended
	if r.ExitCode == spec.Done {
		lines = append(lines, summary(r))
	}
	for _, line := range strings.Split(r.Error, "\n") {
		told := slices.ContainsFunc(r.Backends, func(b event.BackendResult) bool {
			return line == b.Error || line == b.Backend+": "+b.Error
		})
		if line != "" && !told {
			lines = append(lines, line)
		}
	}
	if s := r.Stands; s != nil {
		for _, part := range standsParts(*s) {
			lines = append(lines, "state: "+part)
		}
	}
	for _, b := range r.Backends {
		lines = append(lines, fmt.Sprintf("%s: %s: %s", endOf(b.Result), b.Backend, b.Error))
	}
	for _, s := range r.Skipped {
		lines = append(lines, fmt.Sprintf("skipped: %s: %s", s.Backend, s.Reason))
	}
	if len(r.Done) > 0 {
		lines = append(lines, "done: "+strings.Join(r.Done, ", "))
	}
	if len(r.Untouched) > 0 {
		lines = append(lines, "not begun: "+strings.Join(r.Untouched, ", "))
	}
	return lines
}
