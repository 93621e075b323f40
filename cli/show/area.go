package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// On a terminal the steps are one list: those that are over are lines that stay, and
// below them is the area, with the step that runs, what it waits for, and those that
// are still to come.

// A row of the area; one of a higher rank is left out before those of a lower one.
type row struct {
	rank int
	text string
}

// The ranks.
const (
	rankStep = iota
	rankCount
	rankStuck
	rankCurve
	rankHeld
	rankFooter
	rankPending
)

const (
	indent      = "      "
	narrow      = 60 // columns, in fewer there is no room for that
	maxCurve    = 60
	maxPending  = 5
	redrawEvery = 250 * time.Millisecond
)

// draw shows the area as it is now, and sees to it that it stays so.
func (v *Text) draw() {
	if v.screen == nil || v.paused {
		return
	}
	if v.run.name == "" {
		v.screen.clear()
		return
	}
	width, height := v.screen.size()
	v.screen.draw(v.area(width, height, time.Now()), width, height)
	if v.tick == nil {
		v.tick = time.AfterFunc(redrawEvery, func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.tick = nil
			v.draw()
		})
	}
}

// clear makes room for a line.
func (v *Text) clear() {
	if v.screen != nil {
		v.screen.clear()
	}
	v.log.printed()
}

// onScreen shows an event that is shown in another way on a terminal than in a log, and
// tells whether it is such a one.
func (v *Text) onScreen(e event.Event, notes []*waitRow) bool {
	switch e := e.(type) {
	case *event.StepStarted, *event.Edited, *event.Reloaded, *event.Rebooting, *event.Waiting, *event.HealthChecked:
	case *event.StepDone:
		v.stepDone(e, notes)
	case *event.StepFailed:
		name, place := v.run.named(e.Step, e.Direction)
		v.line("%s", v.screen.text(fmt.Sprintf("%s %s%s%s: failed: %s", v.bad.Sprint("✗"), v.bold.Sprint(place), v.on(e), name, oneLine(e.Error))))
	default:
		return false
	}
	return true
}

// stepDone is the lines that stay of a step.
func (v *Text) stepDone(e *event.StepDone, notes []*waitRow) {
	name, place := v.run.named(e.Step, e.Direction)
	state, mark := "done", v.good.Sprint("✓")
	switch {
	case v.run.undoes(e.Direction):
		name, state, mark = stepText(e.Step, e.Direction.Opposite()), "rolled back", v.warn.Sprint("↺")
	case !e.Changed && e.Step != plan.StepWait:
		state = "unchanged"
	}
	v.line("%s", v.screen.text(fmt.Sprintf("%s %s%s: %s in %s", mark, v.bold.Sprint(place), name, state, took(e.Elapsed.Duration()))))
	rest := *e // what the line above does not say
	rest.Detail.Down, rest.Detail.Up = nil, nil
	for _, text := range done(&rest) {
		v.told(indent, indent+"  ", text)
	}
	for _, n := range notes {
		if e.Step == plan.StepMarkDown && n.text != pendingText {
			v.told(indent, indent+"  ", v.owner(n, v.fleet)+n.text)
		}
	}
}

// owner is the beginning of a row: whose it is, where there are several.
func (v *Text) owner(r *waitRow, several bool) string {
	if !several || r.name == "" {
		return ""
	}
	return r.name + ": "
}

// oneLine joins the lines of a text.
func oneLine(text string) string {
	return strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", " ")
}

// lowest is the rows that an area may have on the lowest of terminals.
const lowest = 8

// area is the rows for a terminal of some size: half of it, for one that gets half as
// wide makes two of each row, and what it scrolls away then cannot be erased.
func (v *Text) area(width, height int, now time.Time) []string {
	room := max(height/2, min(height-1, lowest))
	var rows []row
	if !v.run.over {
		rows = v.running(width, room, now)
	}
	if v.run.interrupted {
		rows = append(rows, row{rankStep, v.warn.Sprint("  " + footer(&v.run))})
	} else {
		rows = append(rows, row{rankFooter, v.faint.Sprint("  " + footer(&v.run))})
	}
	for _, text := range v.run.pending() {
		rows = append(rows, row{rankPending, v.faint.Sprint(text)})
	}
	return fit(rows, room)
}

// running is the step that runs, and what it waits for.
func (v *Text) running(width, room int, now time.Time) []row {
	p, in := &v.run, indent
	if width < narrow {
		in = "  "
	}
	waited := p.waited()
	state := ": running, " + span(now.Sub(p.began))
	if p.what.Limit > 0 && len(waited) > 0 {
		state += " of " + span(p.what.Limit.Duration())
	}
	name := ansi.Truncate(p.name+p.how, max(10, width-1-ansi.StringWidth("▸ "+p.place()+state)), "…")
	rows := []row{{rankStep, v.warn.Sprint("▸") + " " + v.bold.Sprint(p.place()) + name + v.bold.Sprint(state)}}
	for _, r := range p.shown(room) {
		rows = append(rows, row{rankCount, in + v.rowText(r, width)})
	}
	for _, r := range waited {
		if r.waiting != nil && r.waiting.Stuck != nil {
			text := v.owner(r, v.many) + stuckText(r.waiting.Stuck)
			for _, line := range Wrap("", "", text, max(10, width-1-len(in))) {
				rows = append(rows, row{rankStuck, in + v.warn.Sprint(line)})
			}
		}
	}
	if len(p.rows) == 1 && len(p.rows[0].counts.values) > 0 {
		rows = append(rows, row{rankCurve, in + curveText(p.rows[0], width-1-len(in))})
	}
	for _, text := range p.held() {
		rows = append(rows, row{rankHeld, in + v.faint.Sprint(text)})
	}
	if text := outlook(p, now); text != "" {
		rows = append(rows, row{rankCurve, in + text})
	}
	return rows
}

// fit leaves out what does not fit, the least important rows first.
func fit(rows []row, height int) (text []string) {
	for len(rows) > max(1, height) {
		last := 0
		for i, r := range rows {
			if r.rank >= rows[last].rank {
				last = i
			}
		}
		rows = slices.Delete(rows, last, last+1)
	}
	for _, r := range rows {
		text = append(text, r.text)
	}
	return text
}

// rowText is what is known of an LB or a backend; of one of several, in a word or two
// and with a curve.
func (v *Text) rowText(r *waitRow, width int) string {
	several := len(v.run.rows) > 1
	text := r.text
	switch {
	case r.waiting != nil && several && r.done:
		text = fmt.Sprintf("%-14s%s", r.short, v.good.Sprint("✓ drained"))
	case r.waiting != nil && several:
		text = fmt.Sprintf("%-14s%s", r.short, curve(r.counts.values, min(maxCurve, width/3)))
	case r.waiting != nil && r.waiting.Error == "":
		text = openFrom(r.waiting)
	case r.healthError != "":
		text = oneLine(checksText(r))
	case r.short != "" && r.waiting == nil:
		text = r.short
	default:
		text = oneLine(text)
	}
	return v.owner(r, several || v.many || v.fleet && r.short == "") + text
}

// curveText is the curve of what alone is waited for, and how high it is.
func curveText(r *waitRow, width int) string {
	text := fmt.Sprintf("  %d at most", slices.Max(r.counts.values))
	return curve(r.counts.values, min(maxCurve, width-len(text))) + text
}

// place is the number of the step that is under way.
func (p *progress) place() string {
	if p.of == 0 || p.number == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d ", p.number, p.of)
}

// undoes tells whether a step is taken the other way than the one that was begun: in
// a rollback.
func (p *progress) undoes(d plan.Direction) bool { return p.rollingBack || d != p.direction }

// named is what a step is called, and its number.
func (p *progress) named(step plan.StepName, d plan.Direction) (name, place string) {
	if p.undoes(d) {
		return stepText(step, d), ""
	}
	return p.name, p.place()
}

// shown is the rows that are shown: where there are too many for a terminal, those
// of which the most is left, and one that sums the others up.
func (p *progress) shown(height int) []*waitRow {
	room := max(3, height-9)
	if len(p.rows) <= room {
		return p.rows
	}
	all := slices.Clone(p.rows)
	slices.SortStableFunc(all, func(a, b *waitRow) int {
		if a.done != b.done {
			return map[bool]int{true: 1, false: -1}[a.done]
		}
		return cmp.Compare(b.open, a.open)
	})
	return append(all[:room-1:room-1], &waitRow{text: moreText(all[room-1:])})
}

// held is the connections that hold on longest, of all backends.
func (p *progress) held() (texts []string) {
	type held struct {
		event.Held
		of string
	}
	var all []held
	for _, r := range p.waited() {
		if r.waiting != nil {
			for _, h := range r.waiting.Held {
				all = append(all, held{h, r.name})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b held) int { return cmp.Compare(b.OpenFor, a.OpenFor) })
	for _, h := range all[:min(len(all), event.MaxHeld)] {
		texts = append(texts, heldText(h.Held, map[bool]string{true: h.of}[len(p.rows) > 1]))
	}
	return texts
}

// pending is the steps that are still to come, or the batches.
func (p *progress) pending() (texts []string) {
	if p.rollingBack {
		return nil
	}
	for i, s := range p.steps {
		if i >= p.last && len(p.batches) == 0 && p.kind != spec.Run {
			texts = append(texts, fmt.Sprintf("· %d/%d %s: pending", i+1, len(p.steps), title(s.Step, s.Direction, s.Description)))
		}
	}
	for i, names := range p.batches {
		if i >= p.batch {
			texts = append(texts, fmt.Sprintf("· batch %d/%d %s: pending", i+1, len(p.batches), strings.Join(names, ", ")))
		}
	}
	if n := len(texts); n > maxPending {
		texts = append(texts[:maxPending-1], fmt.Sprintf("· and %d more", n-maxPending+1))
	}
	return texts
}
