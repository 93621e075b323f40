package nginx

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// localHost is this machine.
type localHost struct{}

func (localHost) ReadFile(_ context.Context, name string) ([]byte, error) { return os.ReadFile(name) }

// Glob is glob(3) without flags: names with a leading dot are only matched by a
// pattern that has it, a pattern whose bracket is not closed is a plain name, a
// dangling symbolic link is found by a pattern, and all is sorted bytewise.
func (localHost) Glob(_ context.Context, pattern string) ([]string, error) {
	found := []string{""}
	for i, part := range strings.Split(pattern, "/") {
		if i == 0 {
			continue // what is left of the first slash
		}
		var next []string
		for _, dir := range found {
			next = append(next, globIn(dir, part)...)
		}
		found = next
	}
	slices.Sort(found)
	return found, nil
}

func globIn(dir, part string) []string {
	pattern := strings.ReplaceAll(part, "[!", "[^")
	if _, err := path.Match(pattern, ""); err != nil || !strings.ContainsAny(part, "*?[") {
		if _, err := os.Lstat(dir + "/" + part); err != nil {
			return nil
		}
		return []string{dir + "/" + part}
	}
	entries, _ := os.ReadDir(dir + "/")
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && !strings.HasPrefix(part, ".") {
			continue
		}
		if ok, _ := path.Match(pattern, e.Name()); ok {
			found = append(found, dir+"/"+e.Name())
		}
	}
	return found
}

func (localHost) Exec(ctx context.Context, args ...string) (string, string, int, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return stdout.String(), stderr.String(), exit.ExitCode(), nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", err.Error(), 127, nil // as a shell has it
	}
	return stdout.String(), stderr.String(), 0, err
}

// memory is a host that has files and nothing else.
type memory map[string]string

func (m memory) ReadFile(_ context.Context, name string) ([]byte, error) {
	src, ok := m[name]
	if !ok {
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	}
	return []byte(src), nil
}

func (m memory) Glob(_ context.Context, pattern string) ([]string, error) {
	var found []string
	for name := range m {
		if ok, err := path.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found, nil
}

func (memory) Exec(context.Context, ...string) (string, string, int, error) {
	return "", "", 0, errors.New("this host runs nothing")
}

// mainConf is where load puts the configuration it is given.
const mainConf = "/etc/nginx/nginx.conf"

// load reads a configuration of one file, or fails the test.
func load(t testing.TB, src string) *Config {
	t.Helper()
	return loadFiles(t, memory{mainConf: src})
}

func loadFiles(t testing.TB, files memory) *Config {
	t.Helper()
	c, err := Load(t.Context(), files, mainConf)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return c
}

// target parses a target, or fails the test.
func target(t testing.TB, s string) Target {
	t.Helper()
	parsed, err := ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// streamModule is where Debian and Ubuntu put nginx's stream module.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// needNginx fails the test where there is no nginx with stream to ask.
func needNginx(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Fatalf("this test asks the real nginx: %v; install nginx-light", err)
	}
	if _, err := os.Stat(streamModule); err != nil {
		t.Fatalf("this test asks the real nginx for stream: %v; install libnginx-mod-stream", err)
	}
}

// write puts files below dir, by their names relative to it.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, src := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// ask runs nginx -t, or -T, on the main file of dir, and returns all that it
// prints. nginx gives its temporary directories to the user it is to run as,
// even in a test: the one named here is the one that has them on Debian and
// Ubuntu.
func ask(t testing.TB, dir, flag string) (out string, ok bool) {
	t.Helper()
	stdout, stderr, code, err := localHost{}.Exec(t.Context(), "nginx", flag, "-q", "-p", dir, "-c", dir+"/nginx.conf",
		"-g", "user www-data; pid "+dir+"/test.pid; error_log stderr;")
	if err != nil {
		t.Fatal(err)
	}
	return stdout + stderr, code == 0
}
