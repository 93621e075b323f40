package remote

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// routeWith resolves app1 with a configuration of the given text, as OpenSSH
// understands it, and checks the hosts on the way.
func routeWith(t *testing.T, text string, jumps ...string) (endpoint, error) {
	t.Helper()
	needTool(t, "ssh")
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	route, err := SSH{Address: "app1", ConfigFile: path}.route(limit(t, time.Minute))
	if err != nil {
		return endpoint{}, err
	}
	var names []string
	for _, e := range route[:len(route)-1] {
		names = append(names, e.name())
	}
	if !slices.Equal(names, jumps) {
		t.Errorf("through %q, not %q", names, jumps)
	}
	e := route[len(route)-1]
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	short := func(s *string) { *s = strings.Replace(*s, me.HomeDir+"/", "HOME/", 1) }
	for i := range e.identities {
		short(&e.identities[i].path)
	}
	for i := range e.knownHosts {
		short(&e.knownHosts[i])
	}
	short(&e.agent)
	short(&e.revoked)
	if e.user == me.Username {
		e.user = "me"
	}
	return e, nil
}

func TestSSHConfig(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	t.Setenv("DRAINCTL_TEST_DIR", "/elsewhere")
	named := func(paths ...string) (all []identity) {
		for _, p := range paths {
			all = append(all, identity{path: p})
		}
		return all
	}
	standard, err := routeWith(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(standard.identities, identity{path: "HOME/.ssh/id_ed25519"}) {
		t.Errorf("identities: %v", standard.identities)
	}
	want := endpoint{
		alias: "app1", host: "app1", port: 22, user: "me", agent: "/agent", identities: standard.identities, timeout: defaultDialTimeout,
		knownHosts: []string{"HOME/.ssh/known_hosts", "HOME/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
	}
	if !reflect.DeepEqual(standard, want) {
		t.Errorf("\ngot  %+v\nwant %+v", standard, want)
	}
	for _, c := range []struct {
		name, text string
		want       func(*endpoint)
		jumps      []string
	}{
		{name: "host, user, port", text: "Host app1\n  HostName 10.0.0.1\n  User deploy\n  Port 2222\n", want: func(e *endpoint) { e.host, e.user, e.port = "10.0.0.1", "deploy", 2222 }},
		{name: "others", text: "Host app2\n  HostName 10.0.0.1\n", want: func(*endpoint) {}},
		{name: "the first value holds", text: "Host app*\n User one\nHost *\n User two\n Port 23\n", want: func(e *endpoint) { e.user, e.port = "one", 23 }},
		{name: "conditions", text: "Match originalhost app1 exec \"true\"\n Port 24\nMatch exec \"false\"\n User no\n", want: func(e *endpoint) { e.port = 24 }},
		{name: "a condition that leaves something behind", text: "Match exec \"sleep 5 & true\"\n Port 24\n", want: func(e *endpoint) { e.port = 24 }},
		{name: "tokens in the name", text: "HostName %h.example.com\n", want: func(e *endpoint) { e.host = "app1.example.com" }},
		{name: "tokens in files", text: "HostName x\nUser u\nPort 5\nIdentityFile ~/keys/%r@%h:%p-%n-%%-%k\nUserKnownHostsFile ${DRAINCTL_TEST_DIR}/%h \"%d/with space\" /z\nGlobalKnownHostsFile none\nIdentityAgent ~/agent-%h\nHostKeyAlias web\nRevokedHostKeys ~/r-%h\n", want: func(e *endpoint) {
			e.host, e.user, e.port = "x", "u", 5
			e.identities = named("HOME/keys/u@x:5-app1-%-web")
			e.knownHosts = []string{"/elsewhere/x", "HOME/with space", "/z"}
			e.agent, e.keyAlias, e.revoked = "HOME/agent-x", "web", "HOME/r-x"
		}},
		{name: "variables", text: "IdentityFile ${DRAINCTL_TEST_DIR}/key\nIdentityAgent ${DRAINCTL_TEST_DIR}/a\n", want: func(e *endpoint) {
			e.identities, e.agent = named("/elsewhere/key"), "/elsewhere/a"
		}},
		{name: "identities add up", text: "Host app1\n IdentityFile /a\nHost *\n IdentityFile /b\n IdentitiesOnly yes\n CertificateFile /c\n", want: func(e *endpoint) {
			e.identities = named("/a", "/b")
			e.onlyThese, e.certificates = true, []string{"/c"}
		}},
		{name: "no identities", text: "IdentityFile none\nIdentityAgent none\n", want: func(e *endpoint) { e.identities, e.agent = nil, "" }},
		{name: "agent by variable", text: "IdentityAgent $DRAINCTL_TEST_DIR\n", want: func(e *endpoint) { e.agent = "/elsewhere" }},
		{name: "jumps", text: "Host app1\n ProxyJump a,%r@b:23\n User u\n", want: func(e *endpoint) { e.user = "u" }, jumps: []string{"root@a", "u@b:23"}},
		{name: "no jump", text: "Host app1\n ProxyJump none\nHost *\n ProxyJump a\n", want: func(*endpoint) {}},
		{name: "times", text: "ConnectTimeout 1m\n", want: func(e *endpoint) { e.timeout = time.Minute }},
		{name: "no proxy command", text: "ProxyCommand none\n", want: func(*endpoint) {}},
		{name: "what cannot weaken the check", text: "StrictHostKeyChecking no\nCheckHostIP no\nNoHostAuthenticationForLocalhost yes\n", want: func(*endpoint) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := standard
			want.identities, want.knownHosts = slices.Clone(standard.identities), slices.Clone(standard.knownHosts)
			c.want(&want)
			got, err := routeWith(t, c.text, c.jumps...)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
			}
		})
	}
	for text, want := range map[string]string{
		"Port x\n":                             "line 1",
		"HostName %q\n":                        "%q",
		"IdentityFile %C\n":                    "%C",
		"IdentityFile x%\n":                    "nothing after it",
		"IdentityFile ${NOT_SET_AT_ALL}\n":     "NOT_SET_AT_ALL",
		"IdentityFile ~no-such-user/x\n":       "no-such-user",
		"ProxyCommand nc %q\n":                 "%q",
		"ProxyCommand -\n":                     "standard input",
		"ProxyCommand x\nProxyUseFdpass yes\n": "ProxyUseFdpass",
		"KnownHostsCommand /x %t\n":            "%t",
		"KnownHostsCommand x\n":                "not an absolute path",
		"KnownHostsCommand /x \"\n":            "quote",
		"Match nonsense y\n":                   "nonsense",
	} {
		if _, err := routeWith(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, alias := range []string{"", "-oProxyCommand=x", "a b", "user@host", "a\nb", "a/b"} {
		if _, err := (SSH{Address: alias, ConfigFile: "none"}).route(limit(t, time.Minute)); err == nil {
			t.Errorf("%q: no error", alias)
		}
	}
	if _, err := (SSH{Address: "a", ConfigFile: filepath.Join(t.TempDir(), "nowhere")}).route(limit(t, time.Minute)); err == nil {
		t.Error("a file that is named and not there: no error")
	}
	route, err := SSH{Address: "[2001:db8::1]", User: "other", Port: 7, ConfigFile: "none", Identity: "/first", KnownHosts: "/known", DialTimeout: time.Second}.route(limit(t, time.Minute))
	if err != nil || route[0].name() != "other@[2001:db8::1]:7" || route[0].identities[0] != (identity{"/first", true}) ||
		!slices.Equal(route[0].knownHosts, []string{"/known"}) || route[0].timeout != time.Second {
		t.Errorf("what is given goes before: %+v, %v", route, err)
	}
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte("Host app1\n ProxyJump a,b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	route, err = SSH{Address: "app1", ConfigFile: config, Identity: "/first"}.route(limit(t, time.Minute))
	if err != nil || len(route) != 3 {
		t.Fatalf("%+v, %v", route, err)
	}
	for i, e := range route {
		if given := slices.Contains(e.identities, identity{"/first", true}); given != (i == 2) {
			t.Errorf("the key for app1 is shown to %s: %t", e.name(), given)
		}
	}
}

// TestNoSSH is a machine without OpenSSH's client.
func TestNoSSH(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := (SSH{Address: "app1"}).Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "openssh-client") {
		t.Errorf("got %v", err)
	}
}

func TestParseJump(t *testing.T) {
	type jump struct {
		user, host string
		port       int
	}
	for in, want := range map[string]jump{
		"a": {"", "a", 0}, "u@a": {"u", "a", 0}, "u@a:22": {"u", "a", 22}, "ssh://u@a:22": {"u", "a", 22}, "ssh://a/": {"", "a", 0},
		"[2001:db8::1]": {"", "2001:db8::1", 0}, "u@[2001:db8::1]:2222": {"u", "2001:db8::1", 2222}, "2001:db8::1": {"", "2001:db8::1", 0},
		"u@x@a": {"u@x", "a", 0}, " a ": {"", "a", 0},
	} {
		user, host, port, err := parseJump(in)
		if got := (jump{user, host, port}); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "u@", "a:", "a:x", "a:0", "a:99999", "[::1]x", "[::1]:", ":22", "[", "[]"} {
		if user, host, port, err := parseJump(bad); err == nil {
			t.Errorf("%q: %q %q %d, no error", bad, user, host, port)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	out, err := exec.Command("ssh", "-G", "-F", "none", "app1").Output()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(out))
	f.Add("hostname a\nuser b\nport 22\nidentityfile ~/%r${HOME}\nproxyjump a,[::1]:2\nuserknownhostsfile /a b /c\n")
	f.Fuzz(func(t *testing.T, out string) {
		e, jumps, err := parseEndpoint("app1", out)
		if err != nil {
			return
		}
		if e.host == "" || e.user == "" || e.port < 1 || e.port > 65535 || e.timeout <= 0 {
			t.Errorf("%+v", e)
		}
		for _, j := range jumps {
			if _, host, _, err := parseJump(j); err == nil && host == "" {
				t.Errorf("%q", j)
			}
		}
	})
}
