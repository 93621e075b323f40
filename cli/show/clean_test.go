package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// evil has everything that a text of a stranger could do to a terminal or to a log that
// a program reads: sequences, C0 and C1 characters, what reorders or hides text, bytes that
// are no UTF-8, lines that look like drainctl's, and workflow commands.
const evil = "a\x1b[5;35mb\x1b]0;title\x07\x1b[2J\x1b[?1049h\x00\x08\x7f\u009b31m\u0085\u2028\u2029" +
	"\u202e\u2066\u200b\u200d\u2060\ufeff\u00ad\u3164\ufe0f\U000e0041\x9b\xff\t##[add-mask]x" +
	"\r::add-mask::x\r\n::error::FORGED\nFORGED: line\ndrainctl: FORGED\r"

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain text, é 語 é":            "plain text, é 語 é",
		"\x1b[31m":                     `\x1b[31m`,
		"a\r\nb\tc":                    `a\r\nb\tc`,
		"\u009b2J\u202e\u200b\ufeff":   `\u009b2J\u202e\u200b\ufeff`,
		"\xff\x9b\xe2\x80":             `\xff\x9b\xe2\x80`,
		"\U000e0041\ufe0f\u3164\ufffd": `\U000e0041\ufe0f\u3164` + "\ufffd",
		`my\x2dapp.service`:            `my\x2dapp.service`,
		"\x01\x7f":                     `\x01\x7f`,
	} {
		if got := Clean(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
		if again := Clean(Clean(text)); again != want {
			t.Errorf("%q becomes %q when it is cleaned twice", text, again)
		}
	}
	if got, want := cleanOutput("\x1b[31mred\x1b[0m \x1b]0;t\a\tx\r\n"), `red \x1b]0;t\a x`; got != want {
		t.Errorf("the output of a program becomes %q, want %q", got, want)
	}
}

// fill puts a text into every string that a value has, and something into all the rest.
func fill(v reflect.Value, text string, yes bool, depth int) {
	switch v.Interface().(type) {
	case json.RawMessage:
		b, _ := json.Marshal(text)
		v.Set(reflect.ValueOf(json.RawMessage(b)))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1700000000, 0)))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("fe80::1").WithZone(text)))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(text), 80)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(yes)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Pointer:
		if depth > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), text, yes, depth-1)
		}
	case reflect.Slice:
		if depth > 0 {
			n := 1
			if depth > 9 {
				n = 2
			}
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(v.Index(i), text+strings.Repeat("2", i), yes, depth-1)
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text, yes, depth-1)
		fill(value, text, yes, depth-1)
		v.SetMapIndex(key, value)
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf([]string{text}))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), text, yes, depth)
			}
		}
	}
}

func filled[T any](text string, yes bool) T {
	var v T
	fill(reflect.ValueOf(&v).Elem(), text, yes, 12)
	return v
}

// keepKnown gives the enumerations in an event back the values on which what is shown
// depends.
func keepKnown(e event.Event, step plan.StepName, d plan.Direction) event.Event {
	h := e.Head()
	h.Step, h.Direction = step, d
	switch e := e.(type) {
	case *event.Planned:
		e.Plan.Spec.Kind = spec.Run
	case *event.Result:
		e.ExitCode = spec.Partial
		e.Stands.Standing = spec.Changed
	}
	return e
}

// evilEvents are all events, each in every direction, with a text in every string.
func evilEvents(t testing.TB, text string) (all []event.Event) {
	t.Helper()
	names, err := os.ReadFile("../../testdata/field_names.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(names)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), ".")
		if _, err := event.Parse(fmt.Appendf(nil, `{"event":%q}`, name)); err == nil {
			known[name] = true
		}
	}
	if len(known) < 26 {
		t.Fatalf("%d events are known", len(known))
	}
	for _, step := range []plan.StepName{plan.StepMarkDown, plan.StepWait, plan.StepService, plan.StepWork, plan.StepName(text)} {
		for i, d := range []plan.Direction{plan.Forward, plan.Reverse} {
			for name := range known {
				e, _ := event.Parse(fmt.Appendf(nil, `{"event":%q}`, name))
				fill(reflect.ValueOf(e).Elem(), text, i == 0, 12)
				all = append(all, event.Stamp(keepKnown(e, step, d)))
			}
		}
	}
	slices.SortStableFunc(all, func(a, b event.Event) int { return rank(a) - rank(b) })
	return all
}

// rank is the order in which events come.
func rank(e event.Event) int {
	switch e.(type) {
	case *event.OperationStarted:
		return -2
	case *event.Planned:
		return -1
	case *event.Result:
		return 1
	}
	return 0
}

// own are the sequences that drainctl itself prints.
var own = regexp.MustCompile(`\x1b\[(0|1|2|22|31|32|33)(;(0|1|2|22))?m|\x1b\[\d*[AHJK]|\x1b[78]|\x1b\[\?(1049|2026|25)[hl]|\r\n`)

// wantClean complains about what a terminal would act on in an output, and about lines
// that a stranger's text has made.
func wantClean(t *testing.T, what, out string) {
	t.Helper()
	text := own.ReplaceAllString(out, "\n")
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && size == 1 || !isVisible(r) && r != '\n' && r != '\t' && r != '\r' || r == '\r' && !strings.HasPrefix(text[i:], "\r\x1b") && !strings.HasSuffix(what, "live") {
			t.Fatalf("%s: %q in %q", what, r, text[max(0, i-100):min(len(text), i+30)])
		}
	}
	for line := range strings.Lines(text) {
		if what == "page" {
			break // a line end is a blank there
		}
		line = strings.TrimLeft(line, "\r")
		// On a terminal a long word is parted, and may go on at the beginning of a line.
		if strings.HasPrefix(line, "FORGED") && !strings.HasSuffix(what, "live") || strings.HasPrefix(line, "drainctl: FORGED") {
			t.Errorf("%s: a line %q", what, line)
		}
	}
}

// viewed is everything that a view for people can show.
func viewed(t testing.TB, v View, text string) {
	for _, e := range evilEvents(t, text) {
		v.Event(e)
	}
	for _, yes := range []bool{true, false} {
		v.Status(filled[*status.Status](text, yes))
		v.Checks(checksOf(text, yes))
		v.History(filled[[]status.HistoryEntry](text, yes), []string{text})
		v.Operation(Operation{ID: text, Events: evilEvents(t, text), Truncated: 1, Next: filled[[]spec.Command](text, yes)})
		v.Config([]string{text}, filled[[]ConfigValue](text, yes))
		v.Signal(spec.Kind(text), yes)
	}
	v.Trace(text, text)
	if v := TextOf(v); v != nil {
		v.Commands(filled[*status.Status](text, true), []string{"--lb", text})
		v.Initialized(text, filled[[]plan.LBPlan](text, false), []string{"--lb", text})
		v.Welcome(text)
		v.Warn(errors.New(text))
	}
}

// checksOf is a report of every check, with each result.
func checksOf(text string, yes bool) *drain.CheckReport {
	r := filled[*drain.CheckReport](text, yes)
	r.Checks = r.Checks[:1]
	for name := range checkTexts {
		c := r.Checks[0]
		c.Name = name
		r.Checks = append(r.Checks, c)
	}
	for _, name := range []event.CheckName{event.CheckSSH, event.CheckSudo, event.CheckAgent, event.CheckConfiguration, event.CheckServer, event.CheckNginx, event.CheckUnit, event.CheckCounter} {
		c := r.Checks[0]
		c.Name, c.Result = name, event.CheckOK
		r.Checks = append(r.Checks, c)
	}
	return r
}

// Whatever is in a string of an event or of a report, no renderer for people prints
// anything that a terminal acts on, but its own sequences.
func TestNothingRawIsShown(t *testing.T) {
	for _, options := range []Options{{}, {Verbose: true}} {
		var out, errOut bytes.Buffer
		viewed(t, NewText(&out, &errOut, options), evil)
		wantClean(t, "text", out.String())
		wantClean(t, "errors", errOut.String())

		var screenOut bytes.Buffer
		live := NewText(&screenOut, &errOut, options)
		live.screen = &screen{out: &screenOut}
		viewed(t, live, evil)
		watch := NewWatch(live, time.Second)
		watch.Status(filled[*status.Status](evil, true))
		wantClean(t, "live", screenOut.String())
		for _, text := range []string{"title", "FORGED"} {
			if !strings.Contains(screenOut.String(), text) {
				t.Errorf("%q is not shown at all", text)
			}
		}
	}
	var page bytes.Buffer
	if err := WritePage(&page, Operation{ID: evil, Events: evilEvents(t, evil)}, "test"); err != nil {
		t.Fatal(err)
	}
	wantClean(t, "page", page.String())
	conf := FirstConfig(spec.Spec{LBs: []string{evil}}, filled[[]plan.LBPlan](evil, false), map[string]string{evil: evil})
	wantClean(t, "first configuration", conf)
}

// JSON has no such character either, and its values are what they were.
func TestJSONKeepsItsValues(t *testing.T) {
	for _, e := range evilEvents(t, evil) {
		var out bytes.Buffer
		NewJSON(&out, io.Discard, Options{}).Event(e)
		wantClean(t, "JSON", out.String())
		if strings.Count(out.String(), "\n") != 1 {
			t.Fatalf("%s is not one line", e.Head().Event)
		}
		plain, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		if err := errors.Join(json.Unmarshal(out.Bytes(), &got), json.Unmarshal(plain, &want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: other values: %v", e.Head().Event, err)
		}
	}
}

// isCommand tells whether GitHub's runner takes a line for a workflow command, by
// ActionCommand.cs of actions/runner. It ends a line at a lone CR, too.
func isCommand(line string) bool {
	text := strings.TrimSpace(line)
	return strings.HasPrefix(text, "::") || strings.Contains(text, "##[")
}

// No text of a stranger becomes a workflow command on GitHub, in any view.
func TestNoWorkflowCommandOfOthers(t *testing.T) {
	t.Setenv("GITHUB_ACTIONS", "true")
	ours := regexp.MustCompile(`^::(group::\d+/\d+ |group::  |endgroup::$|error title=drainctl::|group::.*rolling back$)`)
	for _, text := range []string{evil, "::add-mask::x", " ::error::x", "##[add-mask]x", "%0A::add-mask::x"} {
		var out, errOut, jsonOut bytes.Buffer
		viewed(t, NewGithub(NewText(&out, &errOut, Options{Verbose: true})), text)
		viewed(t, NewText(&out, &errOut, Options{Verbose: true}), text)
		for _, line := range strings.FieldsFunc(out.String()+errOut.String(), func(r rune) bool { return r == '\n' || r == '\r' }) {
			switch {
			case isCommand(line) && !ours.MatchString(line):
				t.Fatalf("with %q: a line %q", text, line)
			case ours.MatchString(line) && strings.Contains(line, "%0A::add-mask"):
				t.Fatalf("with %q: the data of a command has a line end: %q", text, line)
			}
		}
		viewed(t, NewJSON(&jsonOut, &jsonOut, Options{Verbose: true}), text)
		for line := range strings.Lines(jsonOut.String()) {
			if isCommand(line) {
				t.Fatalf("with %q: JSON %q", text, line)
			}
		}
	}
}

// The job's summary has no Markdown, no HTML and no link of others.
func TestSummaryIsNotAlive(t *testing.T) {
	const text = "</code><script>x</script>\n\n[a](http://b) ![c](d) `e` | @f #1 **g**\n\n# h\n<!-- " + evil
	r := &Record{command: text, backends: []string{text}, Spec: spec.Spec{Targets: []string{text}}, result: filled[*event.Result](text, true),
		steps: []stepRecord{{step: plan.StepName(text), backends: []string{text}, err: text}}}
	r.result.ExitCode = spec.Partial
	file := filepath.Join(t.TempDir(), "summary.md")
	if err := WriteSummary(file, r); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(file)
	wantClean(t, "summary", string(b))
	got := strings.TrimSuffix(string(b), "\n\n")
	if strings.Contains(got, "\n\n") {
		t.Errorf("an empty line ends the HTML:\n%s", got)
	}
	tags := regexp.MustCompile(`</?(h3|code|table|tr|th|td|p|br)>`).ReplaceAllString(got, "")
	outside := regexp.MustCompile(`(?s)<code>.*?</code>`).ReplaceAllString(got, "")
	if strings.ContainsAny(tags, "<>") || strings.ContainsAny(outside, "[]`@#*|!") {
		t.Errorf("alive:\n%s", got)
	}
}

// Labels are read back as the texts that they were.
func TestMetricLabelsSurvive(t *testing.T) {
	const text = "a\"b\\c\nd{e=\"f\"} 1\r# HELP x\n" + evil
	r := NewRecord(text)
	r.open, r.result = map[string]int{text: 1}, &event.Result{}
	r.steps = []stepRecord{{step: plan.StepName(text), direction: plan.Direction(text)}}
	st := filled[*status.Status](text, true)
	st.LBs[0].JournalError = ""
	file := filepath.Join(t.TempDir(), "drainctl.prom")
	if err := WriteMetrics(file, r, spec.Spec{LBs: []string{text}}, st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(f)
	if err != nil {
		t.Fatal(err)
	}
	want, seen := strings.ToValidUTF8(text, "\uFFFD"), 0
	for name, family := range families {
		if !strings.HasPrefix(name, "drainctl_") {
			t.Errorf("a metric %s", name)
		}
		for _, m := range family.Metric {
			seen += countLabels(m, want)
		}
	}
	if seen < 8 {
		t.Errorf("%d labels are the text, want 8 or more", seen)
	}
}

func countLabels(m *dto.Metric, value string) (n int) {
	for _, l := range m.Label {
		if l.GetValue() == value {
			n++
		}
	}
	return n
}

func FuzzClean(f *testing.F) {
	f.Add(evil)
	f.Fuzz(func(t *testing.T, text string) {
		var out, errOut bytes.Buffer
		v := NewText(&out, &errOut, Options{})
		v.Trace(text, text)
		v.Event(event.Stamp(&event.Warning{Text: text}))
		v.Event(event.Stamp(&event.StepFailed{Error: text}))
		v.History([]status.HistoryEntry{{ID: text, Began: &event.OperationStarted{User: text, Host: text, Reason: text, Targets: []string{text}}}}, []string{text})
		for _, r := range out.String() + errOut.String() {
			if !isVisible(r) && r != '\n' {
				t.Fatalf("%q shows %q", text, r)
			}
		}
		if got := Clean(text); Clean(got) != got || !utf8.ValidString(got) {
			t.Fatalf("%q becomes %q", text, got)
		}
		quoted, err := json.Marshal(text)
		var before, after string
		if err == nil {
			err = errors.Join(json.Unmarshal(quoted, &before), json.Unmarshal(cleanJSON(quoted), &after))
		}
		if err != nil || before != after {
			t.Fatalf("%q as JSON becomes %q: %v", before, after, err)
		}
	})
}
