package show

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
)

// What is shown on GitHub is no workflow command, unless it is ours.
func TestGitHubEscapes(t *testing.T) {
	var out, errOut bytes.Buffer
	v := NewGithub(NewText(&out, &errOut, Options{}))
	v.Event(event.Stamp(&event.Result{ExitCode: spec.Failed, Error: "50%\nof it\r", Log: []string{"::error::mine"}}))
	lines := strings.Split(strings.TrimSpace(errOut.String()), "\n")
	if !slices.Contains(lines, `  \x3a:error::mine`) || lines[len(lines)-1] != `::error title=drainctl::50%25%0Aof it\r` {
		t.Errorf("%q", lines)
	}
	r := &Record{command: "drain", result: &event.Result{ExitCode: spec.Failed, Error: "a|b <script>"}, steps: []stepRecord{{err: "x | y\nz"}}}
	file := filepath.Join(t.TempDir(), "summary.md")
	if err := WriteSummary(file, r); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	if !strings.Contains(string(text), "<td><code>failed: x | y<br>z</code></td>") || !strings.Contains(string(text), "<p><code>a|b &lt;script&gt;</code></p>") {
		t.Errorf("%s", text)
	}
}
