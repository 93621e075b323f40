package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/drainctl/drainctl/drain/spec"
)

// A machine has the configuration files of a test.
type machine struct{ system, own, dir string }

// newMachine has a drainctl.yaml for the machine and one for the user; "": none.
func newMachine(t *testing.T, system, own string) machine {
	t.Helper()
	dir := t.TempDir()
	m := machine{dir + "/system.yaml", dir + "/drainctl.yaml", dir}
	for path, text := range map[string]string{m.system: system, m.own: own} {
		if text != "" {
			write(t, path, text)
		}
	}
	before := systemConfig
	t.Cleanup(func() { systemConfig = before })
	systemConfig = m.system
	t.Setenv("XDG_CONFIG_HOME", dir)
	return m
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every key that the file may have arrives where its flag arrives, and is not said to
// have been given.
func TestEveryKeyArrives(t *testing.T) {
	known := arrivals()
	keys := 0
	for _, name := range []string{"defaults", "nginx"} {
		for flag, field := range sectionFields(name) {
			keys++
			value, a := yamlValue(field, known[flag]), known[flag]
			newMachine(t, "", fmt.Sprintf("%s:\n  %s: %s\n", name, flag, value))
			h := hear(append([]string{"config"}, commandHas(newApp(newSession(nil, nil)).Command("config"), a.with)...)...)
			if h.code != 0 || !reflect.DeepEqual(a.got(h), a.want) || slices.Contains(h.spec.Given, flag) {
				t.Errorf("%s: %s: %s: exit code %d %s, %v, want %v; given %q", name, flag, value, h.code, h.err, a.got(h), a.want, h.spec.Given)
			}
		}
	}
	for _, name := range []string{"upstreams", "backends"} {
		for flag, field := range sectionFields(name) {
			keys++
			a := known[flag]
			newMachine(t, "", fmt.Sprintf("%s:\n  app1:\n    %s: %s\n", name, flag, yamlValue(field, a)))
			h := hear("config", "app1")
			raw, got := map[string]map[string]json.RawMessage{"upstreams": h.spec.PerUpstream, "backends": h.spec.PerBackend}[name]["app1"], heard{}
			if err := json.Unmarshal(raw, &got.spec.Settings); err != nil || h.code != 0 || !reflect.DeepEqual(a.got(&got), a.want) {
				t.Errorf("%s in %s: exit code %d %s, %s: %v, want %v", flag, name, h.code, h.err, raw, a.got(&got), a.want)
			}
		}
	}
	t.Logf("%d keys", keys)
}

// yamlValue is a flag's value as the file has it.
func yamlValue(field reflect.Value, a arrival) string {
	switch {
	case field.Kind() == reflect.Slice:
		return "[" + a.value + "]"
	case field.Kind() == reflect.String:
		return fmt.Sprintf("%q", a.value)
	}
	return a.value
}

// A flag stands before the environment, that before the file; there a backend before
// its upstream, that before the defaults. Of the machine's file, where the user has an
// own one, only how nginx is run holds.
func TestConfigPrecedence(t *testing.T) {
	m := newMachine(t, `
groups: {prod: [lb1]}
defaults: {timeout: 1m, stop-timeout: 1m, interval: 1s}
upstreams: {pool: {min-up: 2}}
nginx: {keep: 3, state-dir: /srv/state}
`, `
groups: {prod: [lb2, "lb3:22"], old: [lb0]}
defaults: {timeout: 2m, interval: 2s, ignore-peer: [10.1.0.0/16, 192.168.1.3], on-timeout: leave, batch: 25%, max-generations: 2, canary-wait: 1m}
upstreams: {pool: {threshold: 4}}
backends: {"192.168.1.10:8080": {timeout: 3m}}
nginx: {keep: 4}
`)
	h := hear("drain", "192.168.1.10:8080", "--interval", "3s")
	if h.code != 0 || h.spec.Timeout != 2*time.Minute || h.spec.StopTimeout != 2*time.Minute || h.spec.Interval != 3*time.Second {
		t.Errorf("exit code %d %s: %+v", h.code, h.err, h.spec)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.168.1.3/32")}; !reflect.DeepEqual(h.spec.IgnorePeers, want) {
		t.Errorf("ignored peers %v", h.spec.IgnorePeers)
	}
	if per := string(h.spec.PerUpstream["pool"]); per != `{"threshold":4}` {
		t.Errorf("the pool has %s", per)
	}
	if per := string(h.spec.PerBackend["192.168.1.10:8080"]); per != `{"timeout_ns":180000000000}` {
		t.Errorf("the backend has %s", per)
	}
	if h.spec.Nginx != (spec.Nginx{Keep: 4}) {
		t.Errorf("nginx %+v: want that of the user's file alone, the machine's is for its agent to read", h.spec.Nginx)
	}
	if !slices.Equal(h.spec.Given, []string{"interval"}) {
		t.Errorf("given %q", h.spec.Given)
	}
	if !reflect.DeepEqual(h.spec.Rollout, spec.Rollout{}) || h.spec.OnTimeout != spec.TimeoutLeave {
		t.Errorf("a drain has the rolling run's %+v, on timeout %s", h.spec.Rollout, h.spec.OnTimeout)
	}
	h = hear("run", "a")
	if r := h.spec.Rollout; h.code != 0 || r.Batch != "25%" || r.MaxGenerations == nil || *r.MaxGenerations != 2 || h.spec.OnTimeout != spec.TimeoutRollback {
		t.Errorf("run: exit code %d %s: %+v, on timeout %s, for which it has no flag", h.code, h.err, r, h.spec.OnTimeout)
	}
	for _, c := range []struct{ line, lbs string }{
		{"history --group prod", "lb2 lb3:22"},
		{"status --group old --lb lb2 --group prod", "lb2 lb0 lb3:22"},
		{"resume --group old", "lb0"},
	} {
		h := hear(strings.Fields(c.line)...)
		if h.code != 0 || join(h.spec.LBs) != c.lbs || h.spec.Nginx != (spec.Nginx{}) {
			t.Errorf("%s: exit code %d %s, load balancers %q, nginx %+v", c.line, h.code, h.err, h.spec.LBs, h.spec.Nginx)
		}
	}
	hear("history", "--group", "prd").refused(t, "--group prd: no such group\ndrainctl: hint: did you mean prod?\ndrainctl: hint: there is old, prod")

	t.Setenv("DRAINCTL_STOP_TIMEOUT", "5m")
	other := m.dir + "/other.yaml"
	write(t, other, "defaults: {interval: 9s}\n")
	h = hear("config", "--config", other, "--timeout", "7m")
	want := map[string]string{"stop-timeout": "5m environment", "timeout": "7m flag", "interval": "9s " + other + ":1", "min-up": "1 built-in", "keep": "3 " + m.system + ":5", "batch": "1 built-in", "max-generations": "<nil> built-in"}
	for _, v := range h.values {
		if text := want[v.Key]; text != "" && (v.Section == "defaults" || v.Section == "nginx") {
			if got := fmt.Sprint(v.Value, " ", v.From); got != text {
				t.Errorf("%s is %q, want %q", v.Key, got, text)
			}
			delete(want, v.Key)
		}
	}
	if len(want) > 0 || h.code != 0 {
		t.Errorf("exit code %d %s; not shown: %v", h.code, h.err, want)
	}
	if err := os.Remove(m.own); err != nil {
		t.Fatal(err)
	}
	if h := hear("drain", "a"); h.code != 0 || h.spec.Interval != time.Second || string(h.spec.PerUpstream["pool"]) != `{"min_up":2}` {
		t.Errorf("without an own file: exit code %d %s, %+v", h.code, h.err, h.spec)
	}
	hear("history", "--config", m.dir+"/none.yaml").refused(t, "none.yaml: no such file")
}

// The settings of one backend, as the plan would have them.
func TestConfigOfTarget(t *testing.T) {
	newMachine(t, "", `
defaults: {service: all, timeout: 1m, threshold: 1, interval: 1s, poll: lb}
upstreams: {pool: {service: pool, timeout: 2m, threshold: 2}, http/pool: {ssh-user: web}, other: {service: no}}
backends:
  192.168.1.10: {timeout: 3m, threshold: 3}
  192.168.1.10:8080: {threshold: 4}
`)
	got := map[string]string{}
	for _, v := range hear("config", "192.168.1.10:8080", "--upstream", "pool", "--interval", "5s").values {
		got[v.Key] = fmt.Sprint(v.Value, " ", v.From[strings.LastIndex(v.From, ":")+1:])
	}
	want := map[string]string{"service": "pool 3", "timeout": "3m 5", "threshold": "4 6", "interval": "5s flag", "poll": "lb 2", "ssh-user": "web 3", "min-up": "1 built-in"}
	for key, text := range want {
		if got[key] != text {
			t.Errorf("%s is %q, want %q", key, got[key], text)
		}
	}
	hear("config", "a", "b").refused(t, "config takes one TARGET")
}

// badFiles are files with an error, and what is said of it after the file's name.
// Those that the schema cannot see are so marked.
var badFiles = []struct {
	text, because string
	unseen        bool
}{
	{text: "defalts: {}", because: `:1: unknown key "defalts" in the file` + "\ndrainctl: hint: did you mean defaults?"},
	{text: "timeout: 2m", because: `:1: unknown key "timeout" in the file`},
	{text: "defaults:\n  timout: 2m", because: `:2: unknown key "timout" in defaults` + "\ndrainctl: hint: did you mean timeout?"},
	{text: "defaults:\n  nginx-conf: /x", because: `:2: unknown key "nginx-conf" in defaults` + "\ndrainctl: hint: it belongs in nginx"},
	{text: "defaults:\n  lb: [lb1]", because: `:2: unknown key "lb" in defaults` + "\ndrainctl: hint: it is for the command line alone"},
	{text: "defaults: {reboot: true}", because: `"reboot" in defaults` + "\ndrainctl: hint: it is for the command line alone"},
	{text: "defaults: {batch: 0}", because: `batch "0": say a number`},
	{text: "defaults: {max-failures: -1}", because: `max-failures -1: must not be negative`},
	{text: "defaults: {max-generations: -1}", because: `max-generations -1: must not be negative`},
	{text: "defaults: {on-failure: panic}", because: `on-failure "panic" is none of leave, undrain`},
	{text: "upstreams:\n  pool:\n    batch: 2", because: `:3: unknown key "batch" in upstreams: pool` + "\ndrainctl: hint: it belongs in defaults"},
	{text: "x: &x {service: a}\nbackends: {app1: {<<: *x}}", because: `unknown key "x" in the file`},
	{text: "backends: {app1: {<<: {service: a}}}", because: `a key in backends: app1 is no text`, unseen: true},
	{text: "defaults: {force: true}", because: `"force" in defaults` + "\ndrainctl: hint: it is for the command line alone"},
	{text: "backends:\n  app1:\n    on-timeout: stop", because: `:3: unknown key "on-timeout" in backends: app1` + "\ndrainctl: hint: it belongs in defaults"},
	{text: "backends: {app1: {min-up: 2}}", because: `"min-up" in backends: app1` + "\ndrainctl: hint: it belongs in upstreams"},
	{text: "upstreams: {pool: {min_up: 2}}", because: `"min_up" in upstreams: pool` + "\ndrainctl: hint: did you mean min-up?"},
	{text: "nginx: {service: app}", because: `"service" in nginx`},
	{text: "defaults:\n  timeout: 2m\n  timeout: 3m", because: `:3: "timeout" stands twice in defaults: on line 2 as well`, unseen: true},
	{text: "backends:\n  APP1: {}\n  app1: {}", because: `stands twice in backends`, unseen: true},
	{text: "backends: {app;1: {}}", because: "does not belong in a host name", unseen: true},
	{text: "defaults: {timeout: 300}", because: `:1: timeout: "300" is not a duration`},
	{text: "defaults: {interval: 0}", because: `:1: interval 0s: must be longer than 0`},
	{text: "defaults: {timeout: -1s}", because: `:1: timeout -1s: must not be negative`},
	{text: "defaults: {threshold: many}", because: `:1: threshold: "many" is not a whole number`},
	{text: "defaults: {threshold: \"3\"}", because: `:1: threshold: write 3 without quotes`},
	{text: "defaults: {threshold: 010}", because: `is 10 meant?`, unseen: true},
	{text: "defaults: {threshold: -1}", because: `threshold -1: must not be negative`},
	{text: "defaults: {parallel: 0}", because: `parallel 0: must be 1 or more`},
	{text: "defaults: {allow-direct: yes}", because: `allow-direct: "yes" is not true or false`},
	{text: "defaults: {poll: netstat}", because: `:1: poll "netstat" is none of ss, lb, stub_status`},
	{text: "defaults: {service: 7}", because: `service: write 7 in quotes`},
	{text: "defaults: {service: ../x}", because: `is not the name of a unit`, unseen: true},
	{text: "defaults: {service: }", because: `service: a single value is missing here`},
	{text: "defaults: {health: [tcp]}", because: `health: a single value is missing here`},
	{text: "defaults: {service: []}", because: `service must be a list, such as [a, b]`},
	{text: "defaults: {service: [[a]]}", because: `service: a single value is missing here`},
	{text: "defaults: {ssh-port: 65536}", because: `ssh-port 65536: must be from 1 to 65535`},
	{text: "defaults: {health: udp}", because: `health: neither "tcp" nor a URL`, unseen: true},
	{text: "defaults: {status-url: /status}", because: `status-url: "/status" is not an http or https URL`, unseen: true},
	{text: "defaults: {health: 'http://user:pw@a/'}", because: `health: "http://xxxxx@a/": it holds a secret`, unseen: true},
	{text: "backends: {a: {status-url: 'http://user:pw@a/'}}", because: `status-url: "http://xxxxx@a/": it holds a secret`, unseen: true},
	{text: "defaults: {ignore-peer: 10.0.0.0/8}", because: `ignore-peer must be a list`},
	{text: "defaults: {ignore-peer: [monitor]}", because: `ignore-peer: "monitor" is not an address or a network`},
	{text: "nginx: {state-dir: x}", because: `state-dir x: say the absolute path`},
	{text: "nginx: {reload-command: \"'x\"}", because: `reload-command "'x": not a command line`, unseen: true},
	{text: "groups: {prod: lb1}", because: `group prod must be a list`},
	{text: "groups: {prod: []}", because: `group prod must be a list`},
	{text: "groups:\n  prod:\n    - lb1\n    - user@", because: `: group prod "user@": say HOST`, unseen: true},
	{text: "defaults: [timeout]", because: `defaults must be keys with values`},
	{text: "just text", because: `:1: the file must be keys with values`},
	{text: "a: [1\nb: x", because: `:2: did not find expected ',' or ']'`, unseen: true},
	{text: "defaults: {}\n---\ndefaults: {}", because: `:2: a second document`, unseen: true},
	{text: "defaults: {service: *nope}", because: `:1: unknown anchor`, unseen: true},
}

// goodFiles make sense.
var goodFiles = []string{
	"", "# nothing yet\n", "defaults:\n", "---\ngroups: {}\n", "defaults: {timeout: 0}", "defaults: {batch: 25%}",
	"defaults: &d {service: app}\nbackends: {app1: *d}",
	"defaults: {service: [app.socket, app]}",
	`
groups: {prod: [deploy@lb1, lb2:2222]}
defaults: {timeout: 1h30m, health: tcp, ignore-peer: ["2001:db8::/32", 10.0.0.1], allow-direct: true, on-timeout: leave, reload-timeout: 1.5s, batch: 2, pause: 30s, max-generations: 0}
upstreams: {http/pool: {min-up: 2, poll: stub_status, status-url: "http://{host}:8081/status"}}
backends:
  "[2001:db8::1]:8080": {ssh-host: 10.0.0.10, ssh-user: deploy, ssh-port: 2222, identity: /root/key}
  unix:/run/app.sock: {service: app@1.service}
nginx: {nginx: /opt/nginx, nginx-conf: /srv/nginx.conf, test-command: docker exec lb nginx -t, reload-command: kill -HUP 1, state-dir: /srv/state, keep: 50}
`,
}

func TestConfigFiles(t *testing.T) {
	for _, bad := range badFiles {
		t.Run(bad.text, func(t *testing.T) {
			m := newMachine(t, "", bad.text)
			hear("status").refused(t, m.own, bad.because)
			m = newMachine(t, bad.text, "")
			hear("agent").refused(t, m.system, bad.because)
		})
	}
	for _, text := range goodFiles {
		newMachine(t, "", text)
		if h := hear("drain", "a"); h.code != 0 {
			t.Errorf("%s: exit code %d %s", text, h.code, h.err)
		}
	}
	t.Setenv("HOME", "/home/ann")
	newMachine(t, "", "defaults: {identity: ~/.ssh/deploy}")
	if h := hear("drain", "a"); h.spec.SSH.Identity != "/home/ann/.ssh/deploy" {
		t.Errorf("identity %q: %s", h.spec.SSH.Identity, h.err)
	}
}

// configChecker checks a file by the schema.
func configChecker(t *testing.T) func(text string) error {
	t.Helper()
	text, err := json.Marshal(configSchema())
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("drainctl.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("drainctl.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(text string) error {
		var file any
		if err := yaml.Unmarshal([]byte(text), &file); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return schema.Validate(file)
	}
}

// What the schema says of a file is what drainctl says of it.
func TestConfigSchema(t *testing.T) {
	check := configChecker(t)
	for _, text := range goodFiles {
		if err := check(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, bad := range badFiles {
		if !bad.unseen && check(bad.text) == nil {
			t.Errorf("the schema allows %s", bad.text)
		}
	}
}

// The agent reads the machine's file alone, as far as root alone may write it, and
// takes from it how nginx is run. Its flags stand before that.
func TestAgentsConfig(t *testing.T) {
	m := newMachine(t, "nginx: {nginx-conf: /srv/nginx.conf, reload-command: a b}\ndefaults: {timeout: 1m}\n", "nginx: {keep: 9}\n")
	t.Setenv("DRAINCTL_CONFIG", m.own)
	h := hear("agent", "--reload-command", "c d")
	if want := (spec.Nginx{Conf: "/srv/nginx.conf", ReloadCommand: "c d"}); h.code != 0 || h.spec.Nginx != want {
		t.Errorf("exit code %d %s, %+v, want %+v", h.code, h.err, h.spec.Nginx, want)
	}
	hear("agent", "--config", m.own).refused(t, "unknown flag --config for agent")
	if os.Getuid() != 0 {
		t.Fatal("only root can give a file away: run the tests as root")
	}
	if err := os.Chown(m.system, nobodyID, 0); err != nil {
		t.Fatal(err)
	}
	hear("agent").refused(t, filepath.Base(m.system)+" must be owned by root")
	hear("status").refused(t, filepath.Base(m.system)+" must be owned by root")
}

// As root drainctl reads a file only if nobody but root can have written it, whatever
// names the file.
func TestConfigThatOthersCanWrite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("only root can give a file away: run the tests as root")
	}
	chown := func(path string) error { return os.Lchown(path, nobodyID, 0) }
	for name, c := range map[string]struct {
		change  func(m machine) error
		because string // the rule, "" if the file is read
	}{
		"as it is":                        {func(machine) error { return nil }, ""},
		"a file of another":               {func(m machine) error { return chown(m.own) }, "drainctl.yaml must be owned by root"},
		"a file of a group":               {func(m machine) error { return os.Chmod(m.own, 0o664) }, "drainctl.yaml must not be writable by its group or by others"},
		"a file of all":                   {func(m machine) error { return os.Chmod(m.own, 0o646) }, "drainctl.yaml must not be writable by its group or by others"},
		"a directory of another":          {func(m machine) error { return chown(m.dir) }, " must be owned by root"},
		"a directory of a group":          {func(m machine) error { return os.Chmod(m.dir, 0o775) }, " must not be writable by its group or by others"},
		"a directory with the sticky bit": {func(m machine) error { return os.Chmod(m.dir, 0o777|os.ModeSticky) }, ""},
		"a directory above, of another":   {func(m machine) error { return chown(filepath.Dir(m.dir)) }, " must be owned by root"},
		"a link":                          {func(m machine) error { return link(m, "there/../there/x.yaml") }, ""},
		"a link of another":               {func(m machine) error { return errors.Join(link(m, "there/x.yaml"), chown(m.own)) }, "drainctl.yaml must be owned by root"},
		"a link to a directory of another": {func(m machine) error { return errors.Join(link(m, m.dir+"/there/x.yaml"), chown(m.dir+"/there")) },
			"/there must be owned by root"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, "", "defaults: {timeout: 7m}\n")
			if err := c.change(m); err != nil {
				t.Fatal(err)
			}
			for _, line := range [][]string{{"status"}, {"status", "--config", m.own}} {
				if h := hear(line...); c.because != "" {
					h.refused(t, m.own+" is not safe to use: ", c.because)
				} else if h.code != 0 {
					t.Errorf("%q: exit code %d %s", line, h.code, h.err)
				}
			}
			systemConfig = m.own
			t.Setenv("XDG_CONFIG_HOME", "/no-such")
			if h := hear("agent"); c.because != "" {
				h.refused(t, m.own+" is not safe to use: ", c.because)
			} else if h.code != 0 {
				t.Errorf("agent: exit code %d %s", h.code, h.err)
			}
		})
	}
}

// link has the user's file moved to there/x.yaml, and a link to it instead.
func link(m machine, to string) error {
	return errors.Join(os.Mkdir(m.dir+"/there", 0o755), os.Rename(m.own, m.dir+"/there/x.yaml"), os.Symlink(to, m.own))
}
