package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// An agent runs programs only from directories in which nobody but root can put one.
func TestAgentPathHasRootsDirectoriesOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a directory to another user")
	}
	top := "/run/" + filepath.Base(t.TempDir()) + t.Name() // below /tmp no directory is safe
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := func(name string, mode os.FileMode, uid int) string {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, 0); err != nil {
			t.Fatal(err)
		}
		return path
	}
	safe := dir("safe", 0o755, 0)
	link := filepath.Join(top, "link")
	bad := []string{
		dir("group", 0o775, 0), dir("others", 0o757, 0), dir("sticky", 0o777|os.ModeSticky, 0),
		dir("theirs", 0o755, 1000), filepath.Join(top, "missing"), dir("theirs/below", 0o755, 0), link,
	}
	if err := os.Symlink("theirs/below", link); err != nil {
		t.Fatal(err)
	}
	path := safe
	for _, b := range bad {
		path += ":" + b
	}
	if got := safeDirs(path); !slices.Equal(got, []string{safe}) {
		t.Errorf("safe are %v, want %s alone", got, safe)
	}
	if got := safeDirs(agentPath); !slices.Contains(got, "/usr/bin") {
		t.Errorf("of the agent's path there is only %v", got)
	}
}

// Of the environment an agent keeps what sudo says of its caller. To clean it again
// changes nothing, so that the agent starts again once.
func TestAgentEnvironment(t *testing.T) {
	env := agentEnv([]string{"PATH=/tmp", "NGINX=3;4;", "LD_PRELOAD=x", "SUDO_UID=1000", "SUDO_COMMAND=x", "SUDO_UIDX=1", "SUDO_USER=a=b"})
	want := []string{env[0], "LC_ALL=C", "SUDO_UID=1000", "SUDO_USER=a=b"}
	if !slices.Equal(env, want) || env[0] == "PATH=/tmp" {
		t.Errorf("environment %q", env)
	}
	if again := agentEnv(env); !slices.Equal(again, env) {
		t.Errorf("%q becomes %q", env, again)
	}
}
