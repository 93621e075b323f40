package balancer

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/drainctl/drainctl/nginx"
)

// An nginx that does not say at first what it is, as while it is installed anew, is asked again while it
// tests the configuration. The race detector sees to the rest.
func TestPlanAsksTheBinaryAgain(t *testing.T) {
	dir := t.TempDir()
	binary, conf := filepath.Join(dir, "nginx"), filepath.Join(dir, "nginx.conf")
	for path, text := range map[string]string{
		binary: "#!/bin/sh\ncase $1 in -V) mkdir " + dir + "/asked 2>&- && exit 1; echo 'nginx version: nginx/1.22.1' >&2 ;; esac\n",
		conf:   "events {}\nhttp { upstream web { server 10.0.0.1; server 10.0.0.2; } }\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l := NewLocal(Options{Nginx: nginx.Binary{Path: binary, Conf: conf}, StateDir: filepath.Join(dir, "state"), Around: func(what string, do func() error) error {
		if what == "nginx -t" {
			time.Sleep(time.Second) // the binary is asked again meanwhile
		}
		return do()
	}})
	defer l.Close()
	r, err := l.Plan(t.Context(), Query{Targets: []string{"10.0.0.1"}, Preflight: true, Want: Out})
	if err != nil || len(r.Servers) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}
