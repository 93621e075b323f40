package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// What init suggests is valid as well: with the mark before each suggestion taken away.
var suggestion = regexp.MustCompile(`(?m)^( *)# ?( *(?:- )?[A-Za-z-]+:(?: .*)?)$`)

// What init writes is as the schema and the reader have it, whatever upstreams are
// called, and so is what it suggests.
func TestFirstConfig(t *testing.T) {
	check := configChecker(t)
	var servers []balancer.Server
	for _, name := range []string{"web", "yes", "null", "1e3", "odd: name", "# no", "a\"b'c", "<<", "tab\there", "two\nlines", "\xff\xfe", "ü", strings.Repeat("x", 300), "{a}", "*b", "http/web"} {
		for i, module := range []string{"http", "stream"} {
			servers = append(servers, balancer.Server{Located: journal.Located{Server: journal.Server{Module: module, Upstream: name, Address: fmt.Sprint(name, i, ":80")}}, Name: name, Text: name + "\n: x"})
		}
	}
	lb := func(servers ...balancer.Server) plan.LBPlan {
		return plan.LBPlan{Report: &balancer.Report{ConfPath: "/etc/nginx/\nnginx: conf", Version: "1.22.1", Servers: servers, ShutdownTimeout: 90e9}}
	}
	for name, c := range map[string]struct {
		spec spec.Spec
		lbs  []plan.LBPlan
	}{
		"odd names":    {lbs: []plan.LBPlan{lb(servers...)}},
		"no upstream":  {lbs: []plan.LBPlan{lb()}},
		"two LBs":      {spec: spec.Spec{LBs: []string{"ann@lb1:22", "2001:db8::1"}}, lbs: []plan.LBPlan{lb(servers[0]), lb(servers...)}},
		"a way of its": {spec: spec.Spec{Nginx: spec.Nginx{Conf: "/srv/a b: c/nginx.conf", TestCommand: `docker exec "the lb" nginx -t`, Keep: 7}}, lbs: []plan.LBPlan{lb(servers[0])}},
	} {
		text := show.FirstConfig(c.spec, c.lbs, map[string]string{"web": "app@8080.service", "yes": `a\x2db@1.service`})
		for _, text := range []string{text, suggestion.ReplaceAllString(text, "$1$2")} {
			if err := newConfig().parse("x.yaml", []byte(text)); err != nil {
				t.Errorf("%s: %v\n%s", name, err, text)
			} else if err := check(text); err != nil {
				t.Errorf("%s: %v\n%s", name, err, text)
			}
		}
		read := newConfig()
		if err := read.parse("x.yaml", []byte(text)); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.lbs[0].Report.Servers {
			if _, ok := read.upstreams[s.Name]; !ok && s.Name != "\xff\xfe" {
				t.Errorf("%s: upstream %q is not in it", name, s.Name)
			}
		}
	}
}

// init writes where drainctl reads, and replaces nothing unasked.
func TestInit(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte("worker_shutdown_timeout 30s; events {} http { upstream a { server 127.0.0.9:80; server 127.0.0.10:80; server 127.0.0.11:80; } }"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", dir)
	was := systemConfig
	t.Cleanup(func() { systemConfig = was })
	systemConfig = filepath.Join(dir, "system.yaml")
	run := func(args ...string) (code int, out string) {
		var stdout, stderr strings.Builder
		code = newSession(&stdout, &stderr).run(append([]string{"drainctl", "init", "-c", conf, "--test-command", "true"}, args...))
		return code, stdout.String() + stderr.String()
	}
	code, printed := run("--config", "-")
	if code != 0 || !strings.Contains(printed, "\n  timeout: 30s\n") || !strings.Contains(printed, "\n    # min-up: 2\n") {
		t.Fatalf("exit code %d: %s", code, printed)
	}
	if code, out := run(); code != 0 || !strings.Contains(out, "wrote "+systemConfig) || !strings.Contains(out, "drainctl drain 127.0.0.9:80 --dry-run") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if text, err := os.ReadFile(systemConfig); err != nil || string(text) != printed {
		t.Errorf("%v: %s", err, text)
	}
	if code, out := run(); code != 4 || !strings.Contains(out, "there is a configuration file "+systemConfig+" already") || !strings.Contains(out, "--force") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if h := hear("drain", "127.0.0.9"); h.spec.Timeout.String() != "30s" || h.spec.Nginx.Conf != "" {
		t.Errorf("drain has %v %+v: %s", h.spec.Timeout, h.spec.Nginx, h.err)
	}
	// The operator's own file is read before the machine's.
	own := filepath.Join(dir, "drainctl.yaml")
	if err := os.WriteFile(own, []byte("defaults: {timeout: 1m}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := run(); code != 4 || !strings.Contains(out, own) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if code, out := run("--force"); code != 0 || !strings.Contains(out, "wrote "+own) {
		t.Errorf("exit code %d: %s", code, out)
	}
	other := filepath.Join(dir, "new", "other.yaml")
	if code, out := run("--config", other); code != 0 || !strings.Contains(out, "--config "+other) {
		t.Errorf("exit code %d: %s", code, out)
	}
}
