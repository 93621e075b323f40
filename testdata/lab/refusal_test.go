package lab_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// What a run would need and does not have is found before anything is touched.
func TestRefusals(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	line := []string{"drain", app.Addr, "-s", lab.AppUnit}
	for _, test := range []struct {
		name  string
		on    *lab.Machine
		spoil string // a script that takes something away
		mend  string // and one that gives it back
		args  []string
		says  []string
	}{
		{name: "unit that does not exist", args: []string{"drain", app.Addr, "-s", "my-wep-app"},
			says: []string{"my-wep-app", "no such unit"}},
		{name: "sudo that asks for a password", args: append(line, "--ssh-user", lab.NoSudoUser),
			says: []string{"sudo would ask for a password",
				"nosudo ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app"}},
		{name: "no sshd", on: app, spoil: "systemctl stop ssh", mend: "systemctl start ssh", args: line,
			says: []string{"192.168.1.10", "connection refused"}},
		{name: "key that the backend does not take", on: app, spoil: "mv /root/.ssh/authorized_keys /root/.ssh/a", mend: "mv /root/.ssh/a /root/.ssh/authorized_keys",
			args: line, says: []string{"root@192.168.1.10"}},
		{name: "nginx that fails its test", on: l.LB, spoil: "echo 'upstream broken { serve 1; }' >/etc/nginx/conf.d/broken.conf", mend: "rm /etc/nginx/conf.d/broken.conf",
			args: line, says: []string{`unknown directive "serve" in /etc/nginx/conf.d/broken.conf:1`}},
		{name: "no ss", on: app, spoil: "mount --bind /bin/false /usr/bin/ss", mend: "umount /usr/bin/ss", args: line,
			says: []string{"count the open connections", "ss ended with exit status 1"}},
		{name: "last live server", args: append(line, "--min-up", "3"), says: []string{"would keep 2 live servers, fewer than 3", "--min-up 2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.spoil != "" {
				mustRun(t, test.on, "sh", "-ec", test.spoil)
				defer mustRun(t, test.on, "sh", "-ec", test.mend)
			}
			refused(t, l, test.args, test.says...)
		})
	}
}

// refused runs drainctl and checks that it touches nothing, and says that and why.
func refused(t *testing.T, l *lab.Lab, args []string, says ...string) ending {
	t.Helper()
	files, serving := configuration(t, l), workers(t, l)
	end := drainctl(t, l, args...).wants(t, 4, append(says, "nothing was touched")...)
	untouched(t, files, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	for _, app := range l.Apps {
		wantState(t, app, "active")
	}
	return end
}

// Without nginx there are no workers to compare, and nobody who could be reloaded.
func TestRefusalWithoutNginx(t *testing.T) {
	l := labFor(t)
	mustRun(t, l.LB, "systemctl", "stop", "nginx")
	before := configuration(t, l)
	drainctl(t, l, "drain", l.Apps[0].Addr, "-s", lab.AppUnit).wants(t, 4, "nginx is not running", "nothing was touched")
	untouched(t, before, configuration(t, l))
	wantState(t, l.Apps[0], "active")
}

// The nginx of a standby load balancer may be stopped. The refusal says which one that is.
func TestRefusalNamesTheStandby(t *testing.T) {
	l := fleetFor(t)
	mustRun(t, l.LB2, "systemctl", "stop", "nginx")
	before := configuration(t, l)
	atDesk(t, l, "drain", l.Apps[0].Addr, "-s", lab.AppUnit).wait().
		wants(t, 4, "error: deploy@"+lab.LB2Addr+": ", "nginx is not running", "nothing was touched")
	untouched(t, before, configuration(t, l))
	wantState(t, l.Apps[0], "active")
}

// All that is missing is said at once: an operator mends it in one go.
func TestRefusalListsAllThatIsMissing(t *testing.T) {
	l := labFor(t)
	mustRun(t, l.LB, "sh", "-ec", "systemctl stop nginx; echo 'upstream broken { serve 1; }' >/etc/nginx/conf.d/broken.conf")
	mustRun(t, l.Apps[0], "mount", "--bind", "/bin/false", "/usr/bin/ss")
	defer mustRun(t, l.Apps[0], "umount", "/usr/bin/ss")
	before := configuration(t, l)
	end := drainctl(t, l, "drain", l.Apps[0].Addr, "-s", "my-wep-app", "--ssh-user", lab.NoSudoUser, "--min-up", "3").
		wants(t, 4, "nginx is not running", `unknown directive "serve"`, "no such unit", "sudo would ask for a password",
			"count the open connections", "ss ended with exit status 1", "fewer than 3", "nothing was touched")
	if n := strings.Count(end.stderr, "drainctl: error:"); n < 6 {
		t.Errorf("it lists %d errors, want 6:\n%s", n, end.stderr)
	}
	untouched(t, before, configuration(t, l))
	wantState(t, l.Apps[0], "active")
}

var addLine = regexp.MustCompile(`add to (/root/.ssh/known_hosts): (.*)`)

// A host key that is not known is refused with the line to add, and with that line
// added it is known.
func TestUnknownHostKey(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	mustRun(t, l.LB, "ssh-keygen", "-q", "-R", app.Addr)
	end := refused(t, l, []string{"drain", app.Addr, "-s", lab.AppUnit}, "the host key of 192.168.1.10 is not known", fingerprint(t, app))
	followKeyAdvice(t, l, end)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
}

// A host key that has changed is refused with the command that forgets the old one and
// the line to add.
func TestChangedHostKey(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	mustRun(t, app, "sh", "-ec", "rm /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key;"+
		" ssh-keygen -q -t ecdsa -N '' -f /etc/ssh/ssh_host_ecdsa_key; systemctl restart ssh")
	end := refused(t, l, []string{"drain", app.Addr, "-s", lab.AppUnit}, "the host key of 192.168.1.10 has changed", "somebody may be in between", fingerprint(t, app))
	remove := regexp.MustCompile(`ssh-keygen -R 192\.168\.1\.10 -f /root/.ssh/known_hosts`).FindString(end.stderr)
	if remove == "" {
		t.Fatalf("it does not say how to forget the old key:\n%s", end.stderr)
	}
	mustRun(t, l.LB, strings.Fields(remove)...)
	followKeyAdvice(t, l, end)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
}

// fingerprint is of the host's Ed25519 key, as the host itself shows it.
func fingerprint(t *testing.T, m *lab.Machine) string {
	t.Helper()
	fields := strings.Fields(mustRun(t, m, "ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub"))
	if len(fields) < 2 {
		t.Fatalf("ssh-keygen -lf says %q", fields)
	}
	return fields[1]
}

// followKeyAdvice adds the line that a refusal names to the file it names, and sees
// that ssh itself is content with it.
func followKeyAdvice(t *testing.T, l *lab.Lab, end ending) {
	t.Helper()
	found := addLine.FindStringSubmatch(end.stderr)
	if found == nil {
		t.Fatalf("it names no line to add:\n%s", end.stderr)
	}
	mustRun(t, l.LB, "sh", "-ec", `printf '%s\n' "$2" >>"$1"`, "add", found[1], found[2])
	mustRun(t, l.LB, "ssh", "-o", "BatchMode=yes", "-o", "HostKeyAlgorithms=ssh-ed25519", lab.App1Addr, "true")
}

// A dry run needs no root, no SSH and no running nginx: it says what it did not check.
func TestDryRunAsNobody(t *testing.T) {
	l := labFor(t)
	files, serving := configuration(t, l), workers(t, l)
	line := []string{"drainctl", "drain", l.Apps[0].Addr, "--dry-run", "-s", lab.AppUnit}
	nobody := append([]string{"runuser", "-u", "nobody", "--"}, line...)
	on(t, l, nobody...).wants(t, 0, "-        server 192.168.1.10:8080;\n+        server 192.168.1.10:8080 down;\n",
		"not checked: nginx's own test", "not checked: SSH to 192.168.1.10")
	on(t, l, line...).wants(t, 0)
	untouched(t, files, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))

	mustRun(t, l.LB, "systemctl", "stop", "nginx")
	on(t, l, nobody...).wants(t, 0)
	untouched(t, files, configuration(t, l))
}

// Colours are for a terminal, and only where they are wanted.
func TestColours(t *testing.T) {
	l := labFor(t)
	const dry = "drainctl drain 192.168.1.10 --dry-run"
	for _, test := range []struct {
		name, command string
		colours       bool
	}{
		{"terminal", dry, true},
		{"no-color", dry + " --no-color", false},
		{"NO_COLOR", "NO_COLOR=1 " + dry, false},
		{"dumb terminal", "TERM=dumb " + dry, false},
		{"pipe", dry + " | cat", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			// script(1) runs the command on a terminal of its own.
			out := on(t, l, "script", "-qec", test.command, "/dev/null").wants(t, 0, "server 192.168.1.10:8080 down;").stdout
			if coloured := strings.Contains(out, "\x1b[32m+        server 192.168.1.10:8080 down;"); coloured != test.colours {
				t.Errorf("coloured %t, want %t: %q", coloured, test.colours, out)
			}
			if !test.colours && strings.Contains(out, "\x1b") {
				t.Errorf("there are escapes in %q", out)
			}
		})
	}
}
