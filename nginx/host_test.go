package nginx

import (
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"testing"
)

// memory is files that are on no disk.
type memory map[string]string

func (m memory) ReadFile(name string) (string, error) {
	src, ok := m[name]
	switch {
	case !ok:
		return "", &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	case len(src) > MaxFileSize:
		return "", &os.PathError{Op: "read", Path: name, Err: ErrTooLarge}
	}
	return src, nil
}

func (m memory) Glob(pattern string) ([]string, error) {
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

// mainConf is where parse puts the configuration it is given.
const mainConf = "/etc/nginx/nginx.conf"

// parse reads a configuration of one file, or fails the test.
func parse(t testing.TB, src string) *Config {
	t.Helper()
	return parseFiles(t, memory{mainConf: src})
}

func parseFiles(t testing.TB, files memory) *Config {
	t.Helper()
	c, err := load(t.Context(), files, mainConf)
	if err != nil {
		t.Fatalf("load: %v", err)
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
	said, err := exec.Command("nginx", flag, "-q", "-p", dir, "-c", dir+"/nginx.conf",
		"-g", "user www-data; pid "+dir+"/test.pid; error_log stderr;").CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(said), err == nil
}
