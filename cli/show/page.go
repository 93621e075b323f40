package show

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// pageTemplate escapes whatever an operation holds: reasons, names and log lines are
// others' words.
var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"style": func() template.CSS { return template.CSS(pageCSS) }, //nolint:gosec // ours
	"join":  func(texts []string) string { return strings.Join(texts, ", ") },
	"exit":  exitText,
	"stamp": func(t time.Time) string { return t.Format(time.RFC3339) },
}).Parse(pageHTML))

// WritePage writes an operation as one page of HTML, which needs nothing else. maker
// is the version of drainctl that makes it.
func WritePage(w io.Writer, op Operation, maker string) error {
	p := newPage(newTimeline(cleaned(op)), maker)
	p.recorded = op.Events
	return pageTemplate.Execute(w, p)
}

// A page is a timeline as its template asks for it.
type page struct {
	*timeline
	Entries []pageEntry
	Diffs   []pageDiff
	Maker   string

	recorded []event.Event // as the history has them
}

type pageEntry struct {
	*entry
	t            *timeline
	BackendsText string
	Curves       []chart
}

type pageDiff struct {
	Title string
	Lines []diffLine
}

type fact struct {
	Name   string
	Values []string
}

func newPage(t *timeline, maker string) *page {
	p := &page{timeline: t, Maker: maker}
	batch := ""
	for i, e := range t.Entries {
		if e.Kind == entryBatch {
			batch = e.Title + ", "
		}
		pe := pageEntry{entry: e, t: t, BackendsText: strings.Join(append(e.Backends, e.Of...), ", ")}
		if n := len(e.Of); n > maxServersShown {
			pe.BackendsText = fmt.Sprintf("%d backends", n)
		}
		for j, w := range e.Curves {
			pe.Curves = append(pe.Curves, chart{w, fmt.Sprintf("curve-%d-%d", i, j)})
		}
		p.Entries = append(p.Entries, pe)
		for _, d := range e.Diffs {
			title := fmt.Sprintf("%s%s, %s%s", batch, e.title(), e.clock(), t.on(d.LBs))
			p.Diffs = append(p.Diffs, pageDiff{title, diffLines(d.Text)})
		}
	}
	return p
}

// Outcome is how it ended, in a word or two.
func (p *page) Outcome() string {
	if p.Ended == nil {
		return "not ended"
	}
	return string(p.Ended.Result)
}

// Mood is the colour of the outcome.
func (p *page) Mood() string {
	switch {
	case p.Ended == nil:
		return "warn"
	case p.Ended.ExitCode == spec.Done:
		return "good"
	}
	return "bad"
}

func (p *page) Standing() []string {
	if p.Ended == nil {
		return []string{unendedText}
	}
	return p.standing()
}

func (p *page) Next() []spec.Command {
	if p.Ended == nil {
		return p.Operation.Next
	}
	return p.Ended.Next
}

// Zone is the zone of the times.
func (p *page) Zone() string { return p.Began.Time.Local().Format("2006-01-02, MST (-07:00)") }

// Facts are who wanted what, when and why.
func (p *page) Facts() (all []fact) {
	add := func(name string, values ...string) {
		if values = slices.DeleteFunc(values, func(v string) bool { return v == "" }); len(values) > 0 {
			all = append(all, fact{name, values})
		}
	}
	b := p.Began
	add("Who", strings.TrimPrefix(strings.TrimSuffix(journal.By(b.Recorder, b.User, b.Host), " on "), " on "))
	add("Why", b.Reason)
	add("Began", zoned(b.Time))
	if r := p.Ended; r != nil {
		add("Ended", fmt.Sprintf("%s, after %s", zoned(r.Time), took(r.Time.Sub(b.Time))))
	}
	add("Load balancers", p.LBs...)
	var servers []string
	for i, s := range b.Servers {
		if i == maxServersShown {
			servers = append(servers, fmt.Sprintf("and %d more", len(b.Servers)-i))
			break
		}
		servers = append(servers, located(s))
	}
	add("Servers", servers...)
	add("Service", b.Service.String())
	add("Continues", b.Continues)
	add("drainctl", b.Drainctl)
	if p.Truncated > 0 {
		add("Not readable", truncatedText(p.Truncated))
	}
	return all
}

func zoned(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(clockFormat + " MST")
}

// What the template asks of an entry.
func (e pageEntry) Clock() string      { return e.clock() }
func (e pageEntry) TookText() string   { return e.took() }
func (e pageEntry) TitleText() string  { return e.title() }
func (e pageEntry) ResultText() string { return e.result() }

// Mood is the colour of an entry's result.
func (e pageEntry) Mood() string {
	switch e.result() {
	case "failed":
		return "bad"
	case "done":
		return "good"
	}
	return "warn"
}

// NoteTexts are the notes, each with the LBs that it is about.
func (e pageEntry) NoteTexts() (all []note) {
	for _, n := range e.Notes {
		all = append(all, note{Text: n.Text + e.t.on(n.LBs), Mood: n.Mood})
	}
	return all
}

// A checkRow is a check, with all places where it saw the same.
type checkRow struct {
	Name, Seen string
	Result     event.CheckResult
	Mood       string
	Where      []string
}

// CheckRows are the checks, those of several LBs that saw the same together.
func (p *page) CheckRows() (rows []checkRow) {
	for _, c := range p.Checks {
		r := checkRow{Name: checkText(c.Name), Result: c.Result, Mood: "good", Seen: seenText(c)}
		if c.Finding != nil {
			r.Seen = c.Finding.Text
		}
		if c.Result != event.CheckOK {
			r.Mood = "warn"
		}
		where := c.LB + c.Backend
		i := slices.IndexFunc(rows, func(had checkRow) bool {
			return had.Name == r.Name && had.Result == r.Result && had.Seen == r.Seen
		})
		if i < 0 { // beside what others saw
			for i = len(rows); i > 0 && rows[i-1].Name != r.Name; i-- {
			}
			if i == 0 {
				i = len(rows)
			}
			rows = slices.Insert(rows, i, r)
		}
		if !slices.Contains(rows[i].Where, where) {
			rows[i].Where = append(rows[i].Where, where)
		}
	}
	for i, r := range rows {
		if len(p.LBs) > 1 && slices.Equal(r.Where, p.LBs) {
			rows[i].Where = []string{"every LB"}
		}
	}
	return rows
}

// CheckSum says how many checks there were.
func (p *page) CheckSum() string { return p.checkSum() }

// maxRawEvents bounds the events of a page.
const maxRawEvents = 1000

// EventSum says how many events there are.
func (p *page) EventSum() string {
	text := count(len(p.Events), "event")
	if n := len(p.Events) - maxRawEvents; n > 0 {
		text += fmt.Sprintf(", and the first %d of them here; drainctl history %s --output json has all", maxRawEvents, p.ID)
	}
	return text
}

// RawEvents are the events as the history has them.
func (p *page) RawEvents() (lines []string) {
	for _, e := range p.recorded[:min(len(p.recorded), maxRawEvents)] {
		if line, err := json.Marshal(e); err == nil {
			lines = append(lines, string(cleanJSON(line)))
		}
	}
	return lines
}
