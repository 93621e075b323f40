package show

import (
	"crypto/rand"
	"fmt"
	"html"
	"os"
	"strings"

	"github.com/drainctl/drainctl/drain"
)

// OnGithub tells whether this is a job of GitHub Actions.
func OnGithub() bool { return os.Getenv("GITHUB_ACTIONS") == "true" }

// A githubView is the text with workflow commands of GitHub Actions: each step is
// a group, and a failure is an annotation.
type githubView struct {
	*Text
	grouped bool
}

// NewGithub is the text for a job of GitHub Actions.
func NewGithub(v *Text) View {
	v.stepMark, v.screen = "::group::", nil
	return &githubView{Text: v}
}

func (v *githubView) Event(e drain.Event) {
	switch e := e.(type) {
	case *drain.StepStarted, *drain.RollingBack:
		v.group(true)
	case *drain.BatchStarted:
		v.group(false)
	case *drain.Result:
		v.group(false)
		v.end(e)
		return
	}
	v.Text.Event(e)
}

// group ends the group that is open; with begin, another one follows.
func (v *githubView) group(begin bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.grouped {
		v.line("::endgroup::")
	}
	v.grouped = begin
}

// end shows how it ended. What the app has logged is not to be taken for commands.
func (v *githubView) end(r *drain.Result) {
	token := rand.Text()
	if len(r.Log) > 0 {
		fmt.Fprintf(v.err, "::stop-commands::%s\n", token)
	}
	v.Text.Event(r)
	if len(r.Log) > 0 {
		fmt.Fprintf(v.err, "::%s::\n", token)
	}
	if r.ExitCode != drain.Done {
		escape := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
		fmt.Fprintf(v.err, "::error title=drainctl::%s\n", escape.Replace(outcome(r)))
	}
}

// WriteSummary adds what was done to the job's summary, a file in Markdown.
func WriteSummary(file string, r *Record) error {
	cell := func(text string) string {
		return strings.NewReplacer("|", "\\|", "\n", "<br>").Replace(html.EscapeString(text))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "### %s\n\n", cell(summaryTitle(r)))
	if len(r.steps) > 0 {
		fmt.Fprintf(&text, "| %s |\n|---|---|---|---|\n", strings.Join(summaryHead, " | "))
	}
	for _, s := range r.steps {
		fmt.Fprint(&text, "|")
		for _, column := range summaryRow(s) {
			fmt.Fprintf(&text, " %s |", cell(column))
		}
		fmt.Fprintln(&text)
	}
	fmt.Fprintf(&text, "\n%s\n\n", cell(outcome(r.result)))
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
