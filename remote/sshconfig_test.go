package remote

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// resolveWith resolves alias with a configuration of the given text.
func resolveWith(t *testing.T, text, alias string) (endpoint, error) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	path := filepath.Join(home, "config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadSSHConfig(path)
	if err != nil {
		return endpoint{}, err
	}
	c.user = "me"
	e, err := c.resolve(limit(t, time.Minute), alias, "", 0)
	for i := range e.identities {
		e.identities[i].path = strings.Replace(e.identities[i].path, home, "HOME", 1)
	}
	for i := range e.knownHosts {
		e.knownHosts[i] = strings.Replace(e.knownHosts[i], home, "HOME", 1)
	}
	e.agent = strings.Replace(e.agent, home, "HOME", 1)
	return e, err
}

func TestSSHConfig(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	t.Setenv("DRAINCTL_TEST_DIR", "/elsewhere")
	standard := endpoint{
		alias: "app1", host: "app1", port: 22, user: "me", agent: "/agent",
		identities: []identity{
			{path: "HOME/.ssh/id_ed25519"}, {path: "HOME/.ssh/id_ecdsa"}, {path: "HOME/.ssh/id_rsa"},
			{path: "HOME/.ssh/id_ed25519_sk"}, {path: "HOME/.ssh/id_ecdsa_sk"},
		},
		knownHosts: []string{"HOME/.ssh/known_hosts", "HOME/.ssh/known_hosts2", systemKnownHosts, systemKnownHosts + "2"},
	}
	for _, c := range []struct {
		name, text string
		want       func(*endpoint)
	}{
		{"empty", "", func(*endpoint) {}},
		{"host, user, port", "Host app1\n  HostName 10.0.0.1\n  User deploy\n  Port 2222\n", func(e *endpoint) { e.host, e.user, e.port = "10.0.0.1", "deploy", 2222 }},
		{"others", "Host app2\n  HostName 10.0.0.1\n", func(*endpoint) {}},
		{"the first value holds", "Host app*\n User one\nHost *\n User two\n Port 23\n", func(e *endpoint) { e.user, e.port = "one", 23 }},
		{"not", "Host * !app1\n User one\n", func(*endpoint) {}},
		{"equals signs, case, tabs, quotes, CRLF", "host=other\tapp1\r\n\thostname = \"10.0.0.1\"\r\n\tUSER\tdeploy\r\n", func(e *endpoint) { e.host, e.user = "10.0.0.1", "deploy" }},
		{"comments", "# x\nHost app1 # y\n User deploy # z\n", func(e *endpoint) { e.user = "deploy" }},
		{"match all", "Match all\n User deploy\n", func(e *endpoint) { e.user = "deploy" }},
		{"tokens in the name", "HostName %h.example.com\n", func(e *endpoint) { e.host = "app1.example.com" }},
		{"tokens in files", "HostName x\nUser u\nPort 5\nIdentityFile ~/keys/%r@%h:%p-%n-%%\nUserKnownHostsFile ${DRAINCTL_TEST_DIR}/%u \"%d/with space\"\nGlobalKnownHostsFile none\nIdentityAgent ~/agent\nHostKeyAlias web\n", func(e *endpoint) {
			e.host, e.user, e.port = "x", "u", 5
			e.identities = []identity{{path: "HOME/keys/u@x:5-app1-%", named: true}}
			e.knownHosts = []string{"/elsewhere/me", "HOME/with space"}
			e.agent, e.keyAlias = "HOME/agent", "web"
		}},
		{"identities add up", "Host app1\n IdentityFile /a\nHost *\n IdentityFile /b\n IdentitiesOnly yes\n CertificateFile /c\n", func(e *endpoint) {
			e.identities = []identity{{path: "/a", named: true}, {path: "/b", named: true}}
			e.onlyThese, e.certificates = true, []string{"/c"}
		}},
		{"no identities", "IdentityFile none\nIdentityAgent none\n", func(e *endpoint) { e.identities, e.agent = nil, "" }},
		{"agent by variable", "IdentityAgent $DRAINCTL_TEST_DIR\n", func(e *endpoint) { e.agent = "/elsewhere" }},
		{"jumps", "ProxyJump a,%r@b:22\nUser u\n", func(e *endpoint) { e.user, e.jumps = "u", []string{"a", "u@b:22"} }},
		{"no jump", "Host app1\n ProxyJump none\nHost *\n ProxyJump a\n", func(*endpoint) {}},
		{"times", "ConnectTimeout 1m\nRevokedHostKeys /r\n", func(e *endpoint) { e.timeout, e.revoked = time.Minute, "/r" }},
		{"no proxy command", "ProxyCommand none\n", func(*endpoint) {}},
		{"a jump before a command", "ProxyJump a\nProxyCommand nc %h %p\n", func(e *endpoint) { e.jumps = []string{"a"} }},
		{"what cannot weaken the check", "StrictHostKeyChecking no\nCheckHostIP no\nNoHostAuthenticationForLocalhost yes\n", func(*endpoint) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := standard
			want.identities, want.knownHosts = slices.Clone(standard.identities), slices.Clone(standard.knownHosts)
			c.want(&want)
			got, err := resolveWith(t, c.text, "app1")
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
			}
		})
	}
	for text, want := range map[string]string{
		"Port x\n":                         "not a port",
		"Port 0\n":                         "not a port",
		"Port 65536\n":                     "not a port",
		"HostName %q\n":                    "%q",
		"IdentityFile %C\n":                "%C",
		"IdentityFile ${NOT_SET_AT_ALL}\n": "NOT_SET_AT_ALL",
		"IdentityFile ~no-such-user/x\n":   "no-such-user",
		"ConnectTimeout soon\n":            "not a time",
		"ProxyCommand nc %h %p\n":          "ProxyJump",
		"HostName 100%\n":                  "nothing after it",
	} {
		if _, err := resolveWith(t, text, "app1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, alias := range []string{"", "-oProxyCommand=x", "a b", "user@host", "a\nb", "a/b"} {
		if _, err := resolveWith(t, "", alias); err == nil {
			t.Errorf("%q: no error", alias)
		}
	}
	if _, err := loadSSHConfig(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a file that is named and not there: no error")
	}
}

// TestSSHConfigMatch is what only ssh itself can answer.
func TestSSHConfigMatch(t *testing.T) {
	needTool(t, "ssh")
	const text = `
Match host 10.0.0.1 user deploy exec "true"
  Port 2222
  IdentityFile ~/.ssh/special
Match originalhost app2
  ProxyJump bastion:2200
Host app1
  HostName 10.0.0.1
  User deploy
Match exec "false"
  Port 3333
Match final all
  UserKnownHostsFile /known
`
	e, err := resolveWith(t, text, "app1")
	if err != nil || e.host != "10.0.0.1" || e.user != "deploy" || len(e.jumps) != 0 || !slices.Equal(e.knownHosts, []string{"/known", systemKnownHosts, systemKnownHosts + "2"}) {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = resolveWith(t, text, "app2")
	if err != nil || e.host != "app2" || !slices.Equal(e.jumps, []string{"bastion:2200"}) {
		t.Errorf("%+v, %v", e, err)
	}
	// Where ssh cannot be asked, or cannot read it either, the line is named.
	if _, err := resolveWith(t, "Host x\nMatch nonsense y\n", "app1"); err == nil || !strings.Contains(err.Error(), "line 2: a Match block") {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := resolveWith(t, text, "app1"); err == nil || !strings.Contains(err.Error(), "ssh -G") {
		t.Errorf("got %v", err)
	}
}

// TestSSHConfigFiles is the user's file before the system's, and what they include.
func TestSSHConfigFiles(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.MkdirAll(home+"/.ssh", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(home+"/.ssh/config", []byte("Include "+home+"/more*\nHost app1\n Port 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(home+"/more.conf", []byte("Host app1\n User deploy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"": "deploy@app1:5", "none": "me@app1", home + "/more.conf": "deploy@app1"} {
		c, err := loadSSHConfig(file)
		if err != nil {
			t.Fatal(err)
		}
		c.user = "me"
		e, err := c.resolve(context.Background(), "app1", "", 0)
		if err != nil || e.name() != want {
			t.Errorf("%q: %s, %v", file, e.name(), err)
		}
		if e, err = c.resolve(context.Background(), "app1", "other", 7); err != nil || e.name() != "other@app1:7" {
			t.Errorf("%q: what is given goes before: %s, %v", file, e.name(), err)
		}
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
		"u@x@a": {"u@x", "a", 0},
	} {
		user, host, port, err := parseJump(in)
		if got := (jump{user, host, port}); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "u@", "a:", "a:x", "a:0", "a:99999", "[::1]x", "[::1]:", ":22"} {
		if user, host, port, err := parseJump(bad); err == nil {
			t.Errorf("%q: %q %q %d, no error", bad, user, host, port)
		}
	}
}
