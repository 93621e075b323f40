package nginx

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/command"
)

func TestParseBuild(t *testing.T) {
	cases := []struct {
		name, out string
		want      Build
	}{
		{"Debian", `nginx version: nginx/1.22.1
built with OpenSSL 3.0.22 25 Aug 2026 (running with OpenSSL 3.0.19 27 Jan 2026)
TLS SNI support enabled
configure arguments: --with-cc-opt='-g -O2 -ffile-prefix-map=/build/nginx-1.22.1=. -Wformat' --with-ld-opt='-Wl,-z,relro -fPIC' --prefix=/usr/share/nginx --conf-path=/etc/nginx/nginx.conf --http-log-path=/var/log/nginx/access.log --error-log-path=stderr --lock-path=/var/lock/nginx.lock --pid-path=/run/nginx.pid --modules-path=/usr/lib/nginx/modules
`, Build{"1.22.1", "/usr/share/nginx", "/etc/nginx/nginx.conf", "/run/nginx.pid", ""}},
		{"nginx.org", `nginx version: nginx/1.28.0
built by gcc 12.2.0 (Debian 12.2.0-14)
configure arguments: --prefix=/etc/nginx --sbin-path=/usr/sbin/nginx --conf-path=/etc/nginx/nginx.conf --error-log-path=/var/log/nginx/error.log --pid-path=/var/run/nginx.pid --with-cc-opt='-g -O2'
`, Build{"1.28.0", "/etc/nginx", "/etc/nginx/nginx.conf", "/var/run/nginx.pid", "/var/log/nginx/error.log"}},
		{"Ubuntu", "nginx version: nginx/1.24.0 (Ubuntu)\nconfigure arguments: --prefix=/usr/share/nginx --conf-path=/etc/nginx/nginx.conf --error-log-path=/var/log/nginx/error.log --pid-path=/run/nginx.pid\n",
			Build{"1.24.0", "/usr/share/nginx", "/etc/nginx/nginx.conf", "/run/nginx.pid", "/var/log/nginx/error.log"}},
		{"no arguments", "nginx version: nginx/1.31.5\nconfigure arguments:\n",
			Build{"1.31.5", "/usr/local/nginx", "/usr/local/nginx/conf/nginx.conf", "/usr/local/nginx/logs/nginx.pid", "/usr/local/nginx/logs/error.log"}},
		{"openresty", "nginx version: openresty/1.25.3.1\nconfigure arguments: --prefix=/usr/local/openresty/nginx --with-cc-opt='-O2 --prefix=/no' --add-module=../x\n",
			Build{"1.25.3.1", "/usr/local/openresty/nginx", "/usr/local/openresty/nginx/conf/nginx.conf", "/usr/local/openresty/nginx/logs/nginx.pid", "/usr/local/openresty/nginx/logs/error.log"}},
		{"relative paths, and one with a blank", "nginx version: nginx/1.26.0\nconfigure arguments: --prefix='/opt/my nginx' --conf-path=etc/n.conf --pid-path=run/n.pid --error-log-path=/dev/null\n",
			Build{"1.26.0", "/opt/my nginx", "/opt/my nginx/etc/n.conf", "/opt/my nginx/run/n.pid", "/dev/null"}},
		{"a quote in a value", "nginx version: nginx/1.28.0\nconfigure arguments: --with-cc-opt='-DBUILD=it's' --prefix=/srv/nginx\n",
			Build{"1.28.0", "/srv/nginx", "/srv/nginx/conf/nginx.conf", "/srv/nginx/logs/nginx.pid", "/srv/nginx/logs/error.log"}},
	}
	for _, c := range cases {
		if got := parseBuild(c.out); got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"ok": "#!/bin/sh\necho 'nginx version: nginx/1.22.1' >&2", "text": "nginx", "broken": "#!/bin/sh\necho 'cannot load libpcre'; exit 1",
		"slow": "#!/bin/sh\nsleep 60", "format": "no program\x00",
	})
	for _, name := range []string{"ok", "broken", "slow", "format"} {
		if err := os.Chmod(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := (Binary{Path: dir + "/ok"}).Build(t.Context()); err != nil || b.Version != "1.22.1" {
		t.Errorf("Build = %+v, %v", b, err)
	}
	for _, name := range []string{"missing", "text", "format", "."} {
		if _, _, err := Find(t.Context(), Binary{Path: dir + "/" + name}); !errors.Is(err, ErrNoBinary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var ce *CommandError
	if _, err := (Binary{Path: dir + "/broken"}).Build(t.Context()); !errors.As(err, &ce) || ce.Error() != dir+"/broken -V: cannot load libpcre" {
		t.Errorf("broken: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (Binary{Path: dir + "/slow"}).Build(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoBinary) {
		t.Errorf("a binary that does not answer: %v", err)
	}
}

func TestFind(t *testing.T) {
	needNginx(t)
	t.Setenv("PATH", t.TempDir())
	b, build, err := Find(t.Context(), Binary{})
	if err != nil || !slices.Contains(usualBinaries, b.Path) || build.Version == "" {
		t.Fatalf("Find = %+v, %+v, %v", b, build, err)
	}
	b.Path = "/nowhere"
	if again, err := b.Build(t.Context()); err != nil || again != build {
		t.Errorf("the build is not remembered: %+v, %v", again, err)
	}
}

// A command ends with its context, and all that it has started.
func TestRunIsKilled(t *testing.T) {
	for _, script := range []string{"sleep 60 & echo $! >$0; wait", "trap '' TERM; sh -c 'echo $$ >$1; trap \"\" TERM; sleep 60; sleep 60' x $0; sleep 60"} {
		file := t.TempDir() + "/pid"
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		go func() {
			for !fileExists(file) && t.Context().Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(50 * time.Millisecond)
			cancel(why)
		}()
		began := time.Now()
		if _, _, err := run(ctx, "sh", "-c", script, file); !errors.Is(err, why) || time.Since(began) > generous/2 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		pid, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "what the command started is gone", func() bool {
			stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

func TestRun(t *testing.T) {
	out, errOut, err := run(t.Context(), "sh", "-c", "ps -o sid= -p $$; echo $$; echo err >&2; sleep 60 &")
	if f := strings.Fields(out); err != nil || errOut != "err\n" || len(f) != 2 || f[0] != f[1] {
		t.Errorf("a session of its own, and something left behind: %q, %q, %v", out, errOut, err)
	}
	for want, args := range map[int][]string{7: {"sh", "-c", "exit 7"}, 128 + 9: {"sh", "-c", "kill -9 $$"}, 127: {"drainctl-no-such-command"}, 126: {"/etc"}} {
		var ce *CommandError
		if _, _, err := run(t.Context(), args...); !errors.As(err, &ce) || ce.Code != want {
			t.Errorf("%q: %v, want code %d", args, err, want)
		}
	}
}

// A command that prints more than its bound is an error, also when it succeeds: what it
// printed is not whole. What it prints costs a bounded amount of memory.
func TestRunBoundsTheOutput(t *testing.T) {
	for _, script := range []string{"exec yes", "exec yes >&2", "exec tr '\\0' x </dev/zero", "trap '' PIPE TERM; head -c 9000000 /dev/zero; exit 0"} {
		began := time.Now()
		out, errOut, err := run(t.Context(), "sh", "-c", script)
		if !errors.Is(err, command.TooLongError(maxOutput)) || len(out)+len(errOut) > 0 || len(err.Error()) > 200 || time.Since(began) > generous/2 {
			t.Errorf("%s: %d and %d bytes, %v", script, len(out), len(errOut), err)
		}
	}
	var failed *CommandError
	if _, _, err := run(t.Context(), "sh", "-c", "seq 100000; exit 1"); !errors.As(err, &failed) || len(failed.Lines) != maxLines || failed.Lines[maxLines-1] != "100000" {
		t.Errorf("an error has %d lines", len(failed.Lines))
	}
}

func TestBuildOfRealNginx(t *testing.T) {
	needNginx(t)
	b, err := Binary{Path: "nginx"}.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b.Version == "" || !strings.HasPrefix(b.Conf, "/") || !strings.HasPrefix(b.PID, "/") || !strings.HasPrefix(b.Prefix, "/") {
		t.Errorf("Build = %+v", b)
	}
	if _, err := (Binary{Path: "/nowhere/nginx"}).Build(t.Context()); !errors.Is(err, ErrNoBinary) {
		t.Errorf("a binary that does not exist: %v", err)
	}
}

func TestCommandError(t *testing.T) {
	e := commandError([]string{"nginx", "-t"}, 1, "nginx: [warn] something\r\n\nnginx: [emerg] unknown directive \"x\" in /a:1\nnginx: configuration file /a test failed\n")
	if want := "nginx -t: nginx: [emerg] unknown directive \"x\" in /a:1"; e.Error() != want {
		t.Errorf("error is %q, want %q", e, want)
	}
	e = commandError([]string{"systemctl", "reload", "nginx"}, 5, "Unit nginx.service\n not loaded\n")
	if want := "systemctl reload nginx: Unit nginx.service\n   not loaded"; e.Error() != want {
		t.Errorf("error is %q, want %q", e, want)
	}
	e = commandError([]string{"false"}, 1, "")
	if want := "false: exit status 1, and it printed nothing"; e.Error() != want || e.Unprivileged() {
		t.Errorf("error is %q, want %q", e, want)
	}
}

func TestUnprivileged(t *testing.T) {
	denied := `nginx: [alert] could not open error log file: open() "/var/log/nginx/error.log" failed (13: Permission denied)
2026/01/02 03:04:05 [warn] 1#1: the "user" directive makes sense only if the master process runs with super-user privileges, ignored in /etc/nginx/nginx.conf:1
2026/01/02 03:04:05 [emerg] 1#1: open() "/run/nginx.pid" failed (13: Permission denied)
nginx: configuration file /etc/nginx/nginx.conf test failed
`
	if !commandError(nil, 1, denied).Unprivileged() {
		t.Error("want of permission is not seen")
	}
	if commandError(nil, 1, denied+"2026/01/02 03:04:05 [emerg] 1#1: unknown directive \"x\"\n").Unprivileged() {
		t.Error("a broken configuration is taken for want of permission")
	}
}

func TestTestOfRealNginx(t *testing.T) {
	needNginx(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"nginx.conf":  "pid " + dir + "/pid; error_log stderr; events {}\n",
		"broken.conf": "pid " + dir + "/pid; error_log stderr; events {}\nhttp { upstream u { server a b c; } }\n",
	})
	b := Binary{Path: "nginx", Conf: dir + "/nginx.conf"}
	if err := b.Test(t.Context()); err != nil {
		t.Error(err)
	}
	b.Conf = dir + "/broken.conf"
	var ce *CommandError
	if err := b.Test(t.Context()); !errors.As(err, &ce) || ce.Code != 1 || len(ce.Lines) != 1 ||
		!strings.Contains(ce.Lines[0], "[emerg]") || !strings.Contains(ce.Lines[0], dir+"/broken.conf:2") {
		t.Errorf("a broken configuration: %v", err)
	}
	b.TestCommand, b.ReloadCommand = []string{"true"}, []string{"false"}
	if err := b.Test(t.Context()); err != nil {
		t.Errorf("a test command of the operator's: %v", err)
	}
	if err := b.Reload(t.Context(), Process{}); !errors.As(err, &ce) || !slices.Equal(ce.Command, []string{"false"}) {
		t.Errorf("a reload command of the operator's: %v", err)
	}
}
