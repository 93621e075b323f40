package show

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain"
)

// What is shown on GitHub is no workflow command, unless it is ours.
func TestGitHubEscapes(t *testing.T) {
	var out, errOut bytes.Buffer
	v := NewGithub(NewText(&out, &errOut, Options{}))
	v.Event(drain.Stamp(&drain.Result{ExitCode: drain.Failed, Error: "50%\nof it\r", Log: []string{"::error::mine"}}))
	lines := strings.Split(strings.TrimSpace(errOut.String()), "\n")
	if !slices.Contains(lines, `  \x3a:error::mine`) || lines[len(lines)-1] != `::error title=drainctl::50%25%0Aof it\r` {
		t.Errorf("%q", lines)
	}
	r := &Record{command: "drain", result: &drain.Result{ExitCode: drain.Failed, Error: "a|b <script>"}, steps: []stepRecord{{err: "x | y\nz"}}}
	file := filepath.Join(t.TempDir(), "summary.md")
	if err := WriteSummary(file, r); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	if !strings.Contains(string(text), "<td><code>failed: x | y<br>z</code></td>") || !strings.Contains(string(text), "<p><code>a|b &lt;script&gt;</code></p>") {
		t.Errorf("%s", text)
	}
}
