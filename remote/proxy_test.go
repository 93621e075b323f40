package remote

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proxied is a server that only a ProxyCommand leads to.
type proxied struct {
	t      *testing.T
	a, c   *server
	config string
	known  string
	pid    string // file
}

// newProxied makes the hosts a, which leads to others, and c.
func newProxied(t *testing.T) *proxied {
	t.Helper()
	makeUsers(t)
	p := &proxied{t: t, a: startServer(t, serverOptions{}), c: startServer(t, serverOptions{})}
	p.config, p.known, p.pid = filepath.Join(p.c.dir, "config"), filepath.Join(p.c.dir, "all_known"), filepath.Join(p.c.dir, "pid")
	p.write(p.known, p.line(p.a)+p.line(p.c))
	return p
}

func (p *proxied) write(path, text string) {
	p.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proxied) line(s *server) string { return s.name() + " " + s.hostKey(p.t, "ed25519") + "\n" }

// ssh is how to reach c with more lines of configuration.
func (p *proxied) ssh(lines string) SSH {
	p.write(p.config, fmt.Sprintf("%s\nHost a\n Port %d\n IdentityFile %s\nHost c\n Port %d\n IdentityFile %s\nHost *\n HostName 127.0.0.1\n User %s\n UserKnownHostsFile %s\n GlobalKnownHostsFile none\n",
		lines, p.a.port, p.a.key, p.c.port, p.c.key, opUser, p.known))
	return SSH{Address: "c", ConfigFile: p.config}
}

// leads is a ProxyCommand that leads through a, after a script. %h, %p and %r are for ssh to fill in.
func (p *proxied) leads(script string) string {
	p.write(filepath.Join(p.c.dir, "proxy"), "echo $$ >>"+p.pid+"\n"+script+"\nexec ssh -F "+p.config+` -l "$3" -W "$1:$2" a`+"\n")
	return "Host c\n ProxyCommand sh " + filepath.Join(p.c.dir, "proxy") + " %h %p %r\n"
}

// ended checks that the proxy commands ran, and are gone.
func (p *proxied) ended(want int) {
	p.t.Helper()
	text, _ := os.ReadFile(p.pid)
	pids := strings.Fields(string(text))
	if len(pids) != want {
		p.t.Errorf("%d proxy commands have run, not %d", len(pids), want)
	}
	for _, word := range pids {
		pid, _ := strconv.Atoi(word)
		eventually(p.t, "the proxy command has ended", func() bool { return syscall.Kill(-pid, 0) != nil })
	}
	os.Remove(p.pid)
}

func TestProxyCommand(t *testing.T) {
	t.Parallel()
	p := newProxied(t)
	t.Run("through it", func(t *testing.T) {
		h := connect(t, p.ssh(p.leads("")))
		if r := sh(t, h, `echo "$SSH_CONNECTION"`); !strings.Contains(string(r.Stdout), fmt.Sprint(" ", p.c.port)) {
			t.Errorf("arrived at %q, not %d", r.Stdout, p.c.port)
		}
		if logins(t, p.a) != 1 {
			t.Error("nobody came through a")
		}
		for _, s := range []*server{p.a, p.c} {
			s.cut(t)
			eventually(t, "the host is back", func() bool {
				_, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}})
				return err == nil
			})
		}
		h.Close()
		p.ended(3)
	})
	t.Run("the first host on the way has one", func(t *testing.T) {
		d := startServer(t, serverOptions{})
		p.write(p.known, p.line(p.a)+p.line(p.c)+p.line(d))
		how := p.ssh(fmt.Sprintf("Host d\n Port %d\n IdentityFile %s\n ProxyJump c\n", d.port, d.key) + p.leads(""))
		how.Address = "d"
		connect(t, how).Close()
		p.ended(1)
	})
	t.Run("it writes the host's key", func(t *testing.T) {
		p.write(p.known, p.line(p.a))
		connect(t, p.ssh(p.leads("echo '"+strings.TrimSpace(p.line(p.c))+"' >>"+p.known))).Close()
		p.ended(1)
	})
	t.Run("an unknown host", func(t *testing.T) {
		p.write(p.known, p.line(p.a))
		_, err := p.ssh(p.leads("")).Connect(limit(t, time.Minute))
		var refused *HostKeyError
		if !errors.As(err, &refused) || refused.Host != p.c.name() {
			t.Errorf("got %v", err)
		}
		p.ended(1)
		p.write(p.known, p.line(p.a)+p.line(p.c))
	})
	for _, c := range []struct{ name, script, want string }{
		{"it fails", "echo no route >&2; exit 3", "ProxyCommand: exit status 3: no route"},
		{"it says nothing", "exec true", "ProxyCommand: exit status 0"},
		{"it hangs", "echo open the page and log in >&2; exec sleep 1000", "no answer within 1s: open the page and log in"},
		{"it hangs, and will not end", "trap '' TERM HUP; sleep 1000; sleep 1000", "no answer within 1s"},
		{"it is no host", "echo 'HTTP/1.0 403 Forbidden'; exec sleep 1000", "no answer within 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.ssh("ConnectTimeout 1\n" + p.leads(c.script)).Connect(limit(t, time.Minute))
			if !errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			p.ended(1)
		})
	}
	t.Run("it fails later", func(t *testing.T) {
		h := connect(t, p.ssh(p.leads(fmt.Sprintf(`exec 3<&0; ssh -F %s -W "$1:$2" a <&3 3<&- & exec 3<&-; echo $! >%s.ssh; wait; echo the tunnel is gone >&2; exit 4`, p.config, p.pid))))
		s, err := h.Start(limit(t, time.Minute), Command{Args: []string{"cat"}})
		if err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(p.pid + ".ssh")
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		_ = syscall.Kill(pid, syscall.SIGTERM)
		if _, err := s.Wait(); !errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "exit status 4: ") || !strings.Contains(err.Error(), "the tunnel is gone") {
			t.Errorf("got %v", err)
		}
		h.Close()
		p.ended(1)
	})
	t.Run("ctx ends", func(t *testing.T) {
		if _, err := p.ssh(p.leads("exec sleep 1000")).Connect(limit(t, time.Second)); err == nil {
			t.Error("no error")
		}
		p.ended(1)
	})
	// What a configuration of nginx may have as a name is no script.
	t.Run("a name for the shell", func(t *testing.T) {
		for _, name := range []string{"a;touch$IFS" + p.pid, "$(id)", "`id`", "a'b", "a|b", `a\b`} {
			how := p.ssh("")
			how.Address = name
			if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "not a host name") {
				t.Errorf("%q: %v", name, err)
			}
			how = p.ssh("Host c\n HostName " + name + "\n ProxyCommand touch " + p.pid + " %h\n")
			if _, err := how.Connect(limit(t, time.Minute)); err == nil {
				t.Errorf("%q: no error", name)
			}
			how = p.ssh(p.leads(""))
			how.User = name
			if _, err := how.Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "shell") && !strings.Contains(err.Error(), "invalid") {
				t.Errorf("the user %q: %v", name, err)
			}
			p.ended(0)
		}
	})
}

func TestKnownHostsCommand(t *testing.T) {
	t.Parallel()
	p := newProxied(t)
	script := filepath.Join(p.c.dir, "keys")
	line := "KnownHostsCommand /bin/sh " + script + " %H %n %p %I\n"
	keys := func(text string) SSH {
		p.write(script, text)
		p.write(p.known, "")
		return p.ssh(line)
	}
	connect(t, keys(fmt.Sprintf(`test "$*" = "%s c %d HOSTNAME" && echo '%s'`, p.c.name(), p.c.port, strings.TrimSpace(p.line(p.c)))))
	for name, c := range map[string]struct{ script, want string }{
		"fails":         {"echo no such host >&2; exit 1", "KnownHostsCommand: exit status 1: no such host"},
		"prints none":   {"true", "is not known"},
		"hangs":         {"exec sleep 1000", "within"},
		"another key":   {"echo '" + strings.TrimSpace(strings.Replace(p.line(p.a), p.a.name(), p.c.name(), 1)) + "'", "known is KnownHostsCommand:1: "},
		"a revoked key": {"echo '@revoked * " + p.c.hostKey(t, "ed25519") + "'", "is revoked"},
		"prints much":   {"exec yes", "it printed more than"},
	} {
		t.Run(name, func(t *testing.T) {
			how := keys(c.script)
			how.DialTimeout = 5 * time.Second
			_, err := how.Connect(limit(t, time.Minute))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "-f KnownHostsCommand") {
				t.Errorf("got %v", err)
			}
		})
	}
}
