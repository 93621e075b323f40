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
	from := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "::stop-commands::") })
	app := slices.Index(lines, "  ::error::mine")
	if from < 0 || app < from {
		t.Fatalf("%q", lines)
	}
	to := slices.Index(lines, "::"+strings.TrimPrefix(lines[from], "::stop-commands::")+"::")
	if to < app || lines[len(lines)-1] != "::error title=drainctl::50%25%0Aof it%0D" {
		t.Errorf("%q", lines)
	}
	r := &Record{command: "drain", result: &drain.Result{ExitCode: drain.Failed, Error: "a|b <script>"}, steps: []stepRecord{{err: "x | y\nz"}}}
	file := filepath.Join(t.TempDir(), "summary.md")
	if err := WriteSummary(file, r); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	if !strings.Contains(string(text), `failed: x \| y<br>z |`) || !strings.Contains(string(text), "a\\|b &lt;script&gt;") {
		t.Errorf("%s", text)
	}
}
