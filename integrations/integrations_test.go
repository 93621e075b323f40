// Package integrations_test tries what other programs run drainctl with: the Ansible
// collection, the GitHub action and the GitLab template. The lab's tests use the
// collection on real hosts.
package integrations_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// limit bounds a run of a tool; it is for machines that are slow or busy.
const limit = 5 * time.Minute

// run runs a command in a directory, and gives all that it says.
func run(t *testing.T, dir string, env []string, words ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, append(environ(), env...), 5*time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// environ is the environment without what the tester has set for other runs.
func environ() []string {
	all := []string{}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "DRAINCTL_") {
			all = append(all, kv)
		}
	}
	return append(all, "LANG=C.UTF-8")
}

func mustRun(t *testing.T, dir string, env []string, words ...string) string {
	t.Helper()
	out, err := run(t, dir, env, words...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

// build builds drainctl, and gives its path.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "drainctl")
	mustRun(t, "..", []string{"CGO_ENABLED=0"}, "go", "build", "-o", path, ".")
	return path
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func says(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("it does not say %q:\n%s", w, out)
		}
	}
}
