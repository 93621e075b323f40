package show

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/html"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

const histories = "../../testdata/histories/"

var update = flag.Bool("update", false, "write what is shown of the recorded operations anew")

// recorded is an operation of the lab, as its history had it.
func recorded(t testing.TB, name string) Operation {
	t.Helper()
	text, err := os.ReadFile(histories + name + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, text)
}

// parsed has what can be read of a history.
func parsed(t testing.TB, text []byte) Operation {
	t.Helper()
	op := Operation{ID: "20261125-031858.465-fx77"}
	for line := range bytes.Lines(text) {
		e, err := event.Parse(line)
		if err != nil {
			op.Truncated++
			continue
		}
		op.Events = append(op.Events, e)
	}
	op.Next = status.Unended(spec.Spec{}, op.ID, op.Events)
	return op
}

// timelineText is the timeline of an operation.
func timelineText(op Operation) string {
	var out bytes.Buffer
	NewText(&out, &out, Options{}).Operation(op)
	return out.String()
}

func inUTC(t *testing.T) {
	was := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = was })
}

// Each recorded operation is shown as the file beside it says, and fits 80 columns
// but for commands, which are typed as they are.
func TestTimeline(t *testing.T) {
	inUTC(t)
	files, err := filepath.Glob(histories + "*.jsonl")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d recorded operations, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		got, golden := timelineText(recorded(t, name)), histories+name+".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is shown as\n%s\nwant\n%s", name, got, want)
		}
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.HasPrefix(line, "next: ") {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}

// What the events do not say in the order of a plain drain.
func TestTimelineOf(t *testing.T) {
	at := func(second int) event.Header {
		return event.Header{Time: time.Date(2026, 11, 25, 23, 59, second, 0, time.Local)}
	}
	step := func(second int, name plan.StepName, d plan.Direction) event.Header {
		h := at(second)
		h.Step, h.Direction = name, d
		return h
	}
	on := func(h event.Header, lb string) event.Header { h.LB = lb; return h }
	of := func(h event.Header, target string) event.Header { h.Target = target; return h }
	wait := func(second int) event.Header { return step(second, plan.StepWait, plan.Forward) }
	for name, c := range map[string]struct {
		events []event.Event
		want   []string
	}{
		"two backends of which one fails, and the other goes on": {
			[]event.Event{
				&event.OperationStarted{Header: at(0), Targets: []string{"10.0.0.1", "10.0.0.2"}},
				&event.StepStarted{Header: wait(1)},
				&event.Waiting{Header: of(wait(1), "10.0.0.1"), Open: 5, Limit: 3},
				&event.StepFailed{Header: of(wait(4), "10.0.0.1"), Error: "not drained"},
				&event.RollingBack{Header: of(at(4), "10.0.0.1"), Error: "not drained"},
				&event.StepDone{Header: step(5, plan.StepMarkDown, plan.Reverse), Changed: true},
				&event.StepStarted{Header: step(6, plan.StepService, plan.Forward)},
				&event.StepDone{Header: step(7, plan.StepService, plan.Forward), Changed: true},
			},
			[]string{"step wait 10.0.0.1,10.0.0.2 failed [failed: 10.0.0.1: not drained]", "rollback rolling back []", "undo clear down 10.0.0.1 done []", "step stop service 10.0.0.2 done []"},
		},
		"two backends, of which one is stopped with connections open": {
			[]event.Event{
				&event.OperationStarted{Header: at(0), Targets: []string{"10.0.0.1", "10.0.0.2"}},
				&event.StepStarted{Header: wait(1)},
				&event.StepFailed{Header: of(wait(4), "10.0.0.1"), Error: "not drained"},
				&event.StepFailed{Header: of(wait(4), "10.0.0.2"), Error: "10.0.0.2 is gone"},
				&event.StoppingAnyway{Header: of(wait(4), "10.0.0.1")},
				&event.StepStarted{Header: step(6, plan.StepService, plan.Forward)},
			},
			[]string{
				"step wait 10.0.0.1,10.0.0.2 failed [failed: 10.0.0.1: not drained|failed: 10.0.0.2 is gone|warning: 10.0.0.1: the time is up, the service is stopped anyway: what is still open is cut]",
				"step stop service 10.0.0.1 no end []",
			},
		},
		"what comes after the end of its step": {
			[]event.Event{
				&event.StepStarted{Header: wait(1)},
				&event.StepFailed{Header: wait(4), Error: "not drained"},
				&event.StoppingAnyway{Header: wait(4)},
			},
			[]string{"step wait failed [failed: not drained|warning: the time is up, the service is stopped anyway: what is still open is cut]"},
		},
		"a rollback whose edits come before its step is named": {
			[]event.Event{
				&event.RollingBack{Header: at(4), Error: "no"},
				&event.Reloaded{Header: on(step(5, plan.StepMarkDown, ""), "lb1")},
				&event.StepDone{Header: step(6, plan.StepMarkDown, plan.Reverse), Changed: true, Detail: event.Detail{Restored: true}},
			},
			[]string{"rollback rolling back [failed: no]", "undo clear down done [a new generation serves: 0 workers|configuration as before]"},
		},
		"the same on both LBs, and what is of one": {
			[]event.Event{
				&event.StepStarted{Header: step(1, plan.StepMarkDown, plan.Forward)},
				&event.NotLoaded{Header: on(step(1, plan.StepMarkDown, ""), "lb1"), Files: []string{"f"}},
				&event.Warning{Header: on(step(1, plan.StepMarkDown, ""), "lb1"), Text: "w"},
				&event.Warning{Header: on(step(1, plan.StepMarkDown, ""), "lb2"), Text: "w"},
			},
			[]string{"step mark down no end [warning: f was changed after nginx was last loaded (on lb1)|warning: w (on every LB)]"},
		},
		"between steps": {
			[]event.Event{
				&event.LBSkipped{Header: on(at(0), "lb3"), Error: "refused"},
				&event.BatchStarted{Header: at(1), Number: 1, Of: 2, Backends: []string{"a"}},
				&event.Paused{Header: at(2), For: 60},
			},
			[]string{"note [warning: lb3 cannot be reached and is left out; it may still send requests to the target: refused]", "batch batch 1/2 []", "note [pausing for 1m]"},
		},
		"nothing": {nil, nil},
	} {
		op := newTimeline(Operation{ID: "x", Events: c.events})
		var got []string
		for _, e := range op.Entries {
			var notes []string
			for _, n := range e.Notes {
				notes = append(notes, noteText(op, n))
			}
			words := strings.Fields(strings.Join([]string{string(e.Kind), e.Title, strings.Join(e.Of, ","), e.result()}, " "))
			got = append(got, strings.Join(words, " ")+" ["+strings.Join(notes, "|")+"]")
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%q\nwant\n%q", name, got, c.want)
		}
		timelineText(Operation{ID: "x", Events: c.events})
	}
}

// An LB that was left out is none of the operation's.
func TestTimelineWithoutAnLB(t *testing.T) {
	head := func(lb string) event.Header { return event.Header{LB: lb} }
	tl := newTimeline(Operation{Events: []event.Event{
		&event.OperationStarted{Header: head("lb1")}, &event.LBSkipped{Header: head("lb3"), Error: "no route"}, &event.Reloaded{Header: head("lb2")},
	}})
	if !slices.Equal(tl.LBs, []string{"lb1", "lb2"}) {
		t.Errorf("on %q", tl.LBs)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "first:"},
		{"short", "first:short"},
		{strings.Repeat("word ", 16), "first:" + strings.Repeat("word ", 14) + "word|  word"},
		{strings.Repeat("語 ", 30), "first:" + strings.Repeat("語 ", 24) + "語|  " + strings.Repeat("語 ", 4) + "語"},
		{"a " + strings.Repeat("x", 100) + " b", "first:a|  " + strings.Repeat("x", 100) + "|  b"},
		{"a\x1b[2J\nb", `first:a\x1b[2J b`},
	} {
		if got := strings.Join(Wrap("first:", "  ", cleanLines(c.text), historyWidth), "|"); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.text, got, c.want)
		}
	}
}

func TestCurveOfValues(t *testing.T) {
	for _, c := range []struct {
		values []int
		width  int
		want   string
	}{
		{nil, 10, ""},
		{[]int{0, 0}, 10, "▁▁"},
		{[]int{1000, 1, 0}, 10, "█▂▁"},
		{[]int{7, 6, 5, 4, 3, 2, 1, 0}, 8, "█▇▆▅▄▃▂▁"},
		{[]int{8, 0, 0, 4}, 2, "█▅"},
		{[]int{-1, 1}, 0, ""},
	} {
		if got := curve(c.values, c.width); got != c.want {
			t.Errorf("curve(%v, %d) = %q, want %q", c.values, c.width, got, c.want)
		}
	}
}

func TestChart(t *testing.T) {
	e := &entry{}
	for i, open := range []int{3, 5, 2} {
		e.reading(&event.Waiting{Open: open, Elapsed: spec.Seconds(i * 2), Threshold: 2, Limit: 10})
	}
	w := chart{e.Curves[0], "c"}
	w.close(8 * time.Second)
	if got, want := w.Line(), "M0 48.0H150.0V0.0H300.0V72.0H600"; got != want {
		t.Errorf("the line is %s, want %s", got, want)
	}
	if got, want := w.ThresholdLine()+" "+w.LimitLine(), "M0 72.0H600 "; got != want {
		t.Errorf("threshold and limit are %s, want %s", got, want)
	}
	w.Failed = true
	w.close(10 * time.Second)
	if got, want := w.LimitLine(), "M599.0 0V120"; got != want {
		t.Errorf("the limit is %s, want %s", got, want)
	}
	if got, want := w.summary(), "3 at first, 5 at most, 2 at the end, when the time was up"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// elements are the tags of a page, with the names of their attributes.
func elements(t *testing.T, page []byte) (all []string) {
	for z := html.NewTokenizer(bytes.NewReader(page)); ; {
		switch z.Next() {
		case html.ErrorToken:
			return all
		case html.StartTagToken, html.SelfClosingTagToken, html.EndTagToken, html.CommentToken:
			token := z.Token()
			text := token.Type.String() + " " + token.Data
			for _, a := range token.Attr {
				text += " " + a.Key
			}
			all = append(all, text)
		}
	}
}

// hostile has every text of an operation be the same one.
func hostile(events []event.Event, text string) (all []event.Event) {
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				fill(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				// What a step is decides where it stands.
				if name := v.Type().Field(i).Name; v.Field(i).CanSet() && name != "Step" && name != "Direction" && name != "Kind" {
					fill(v.Field(i))
				}
			}
		case reflect.Slice:
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.String:
			v.SetString(text)
		}
	}
	for _, e := range events {
		fill(reflect.ValueOf(e))
		all = append(all, e)
	}
	return all
}

// FuzzHostileText: whatever stands in an operation, the page has the elements that
// it has with a harmless text in its place.
func FuzzHostileText(f *testing.F) {
	for _, text := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onload='x`, "</style></title></pre>", "<!--", "]]>", "a&lt;b", "\x00\xff\u202e", "{{.}}", "--><svg/onload=x>", "javascript:x", "\x1b[31m",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		// Lines are elements: of a diff, and of what is so at the end.
		text = "t" + strings.NewReplacer("\n", " ", "\r", " ").Replace(text)
		page := func(text string) []byte {
			op := recorded(t, "stuck")
			op.ID, op.Events = text, hostile(op.Events, text)
			op.Next = []spec.Command{{Words: []string{text}, Reason: text, On: text}}
			var b bytes.Buffer
			if err := WritePage(&b, op, text); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		}
		got, want := elements(t, page(text)), elements(t, page("tame"))
		if !slices.Equal(got, want) {
			t.Errorf("with %q the page has the elements\n%q\nwant\n%q", text, got, want)
		}
		if out := timelineText(Operation{ID: text, Events: hostile(recorded(t, "stuck").Events, text)}); strings.ContainsAny(out, "\x1b\a\b") {
			t.Errorf("with %q a terminal is told %q", text, out)
		}
	})
}

// FuzzHistory: whatever a history holds, it is shown.
func FuzzHistory(f *testing.F) {
	files, err := filepath.Glob(histories + "*.jsonl")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"event":"waiting","open":-5,"elapsed":1e300,"limit":-1}` + "\n" + `{"event":"step_done","elapsed":-1e300,"step":"wait","detail":{"open":9}}` + "\n" +
		`{"event":"checked","checks":[{"check":"nginx"},{"check":"unit"},{"check":"counter"}]}` + "\n" + `{"event":"result","state":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		op := parsed(t, text)
		timelineText(op)
		if err := WritePage(&bytes.Buffer{}, op, "test"); err != nil {
			t.Error(err)
		}
	})
}
