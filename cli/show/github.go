package show

import (
	"fmt"
	"html"
	"io"
	"os"
	"strings"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// OnGithub tells whether this is a job of GitHub Actions.
func OnGithub() bool { return os.Getenv("GITHUB_ACTIONS") == "true" }

// githubData escapes the data of a workflow command, as @actions/core does (escapeData).
var githubData = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")

// githubCommand prints a workflow command.
func githubCommand(out io.Writer, command, data string) {
	fmt.Fprintf(out, "::%s::%s\n", command, githubData.Replace(data))
}

// noCommand makes a line one that GitHub's runner takes for no workflow command: it looks
// for :: after leading white space, and for ##[ anywhere (ActionCommand.cs of actions/runner).
func noCommand(line string) string {
	if text := strings.TrimSpace(line); strings.HasPrefix(text, "::") {
		line = strings.Replace(line, ":", `\x3a`, 1)
	}
	return strings.ReplaceAll(line, "##[", `\x23#[`)
}

// A githubView is the text with workflow commands of GitHub Actions: each step is
// a group, and a failure is an annotation.
type githubView struct {
	*Text
	open bool // a group is
}

// NewGithub is the text for a job of GitHub Actions.
func NewGithub(v *Text) View {
	v.onGithub, v.grouped, v.screen = true, true, nil
	return &githubView{Text: v}
}

func (v *githubView) Event(e event.Event) {
	switch e := e.(type) {
	case *event.StepStarted:
		if !e.Rollback { // it is in the group of the rollback
			v.group(true)
		}
	case *event.RollingBack:
		v.group(true)
	case *event.BatchStarted:
		v.group(false)
	case *event.Result:
		v.group(false)
		defer v.annotate(e)
	}
	v.Text.Event(e)
}

// group ends the group that is open; with begin, another one follows.
func (v *githubView) group(begin bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open {
		githubCommand(v.out, "endgroup", "")
	}
	v.open = begin
}

// annotate makes a failure an annotation.
func (v *githubView) annotate(r *event.Result) {
	if r.ExitCode != spec.Done {
		githubCommand(v.err, "error title=drainctl", outcome(cleaned(r)))
	}
}

// WriteSummary adds what was done to the job's summary, a file in Markdown. All of it is
// HTML without an empty line, in which Markdown means nothing; and what is code in it,
// GitHub makes no link of.
func WriteSummary(file string, r *Record) error {
	code := func(text string) string {
		return "<code>" + strings.ReplaceAll(html.EscapeString(cleanLines(text)), "\n", "<br>") + "</code>"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "<h3>%s</h3>\n", code(summaryTitle(r)))
	if len(r.steps) > 0 {
		fmt.Fprintf(&text, "<table>\n<tr><th>%s</th></tr>\n", strings.Join(summaryHead, "</th><th>"))
	}
	for _, s := range r.steps {
		fmt.Fprint(&text, "<tr>")
		for _, column := range summaryRow(s) {
			fmt.Fprintf(&text, "<td>%s</td>", code(column))
		}
		fmt.Fprintln(&text, "</tr>")
	}
	if len(r.steps) > 0 {
		fmt.Fprintln(&text, "</table>")
	}
	fmt.Fprintf(&text, "<p>%s</p>\n\n", code(outcome(r.result)))
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text.String())
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return fmt.Errorf("write the job summary: %w", err)
	}
	return nil
}
