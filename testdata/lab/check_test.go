package lab_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// says checks that a check of one place ended so, in a line of its own.
func says(t *testing.T, e ending, result, where, check, text string) {
	t.Helper()
	line := `(?m)^` + result + ` +` + regexp.QuoteMeta(where) + ` +` + check + ` +.*` + regexp.QuoteMeta(text)
	if !regexp.MustCompile(line).MatchString(e.stdout) {
		t.Errorf("%s: no line %s:\n%s%s", e.line, line, e.stdout, e.stderr)
	}
}

// Somebody who may do as little as the README asks for has everything tried from the
// desk. Then something is wrong on each host, and all of it is said at once, beside all
// that is well. Nothing is touched.
func TestCheckFromTheDesk(t *testing.T) {
	l := fleetFor(t)
	lb1, lb2 := lab.DeployUser+"@"+l.LB.Addr, lab.DeployUser+"@"+l.LB2.Addr
	check := func(flags ...string) ending {
		return deployAtDesk(t, l, append([]string{"check", "--upstream", "backend_servers", "--service", lab.AppUnit, "--lb", lb1, "--lb", lb2}, flags...)...)
	}
	left := func() string {
		var all []string
		for _, m := range append(l.LBs(), l.Apps...) {
			all = append(all, mustRun(t, m, "sh", "-c", "find /var/lib/drainctl /var/cache/drainctl 2>/dev/null; true"))
		}
		return strings.Join(all, "\n")
	}
	before, other, had := configurationOf(t, l.LB), configurationOf(t, l.LB2), left()
	well := check().wants(t, 0, "41 checks: 41 ok\n")
	for _, lb := range []string{lb1, lb2} {
		says(t, well, "ok", lb, "ssh", lb)
		says(t, well, "ok", lb, "sudo", "deploy may start the agent")
		says(t, well, "ok", lb, "server", "192.168.1.12:8080 in backend_servers")
		says(t, well, "ok", lb, "nginx", "2 workers")
		says(t, well, "ok", lb, "clock", "this machine's")
	}
	says(t, well, "ok", l.Apps[0].Addr, "sudo", "deploy may stop and start the unit")
	says(t, well, "ok", l.Apps[2].Addr, "counter", "0 connections open, by ss on 192.168.1.12")
	// The right to reboot is one more than these have.
	rebooting := check("--reboot").wants(t, 4, "44 checks: 41 ok, 3 failed\n")
	says(t, rebooting, "FAILED", l.Apps[0].Addr, "reboot", "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl reboot")

	if err := l.LB.WriteFile(t.Context(), "/etc/nginx/conf.d/new.conf", []byte("# half done\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, l.LB2, "systemctl", "stop", "nginx")
	mustRun(t, l.LB2, "sh", "-ec", "mkdir -p "+stateDir+"; mount -t tmpfs -o size=256k,mode=755 tmpfs "+stateDir)
	defer mustRun(t, l.LB2, "umount", "-l", stateDir)
	mustRun(t, l.Desk, lab.As(lab.DeployUser, "ssh-keygen", "-q", "-R", l.Apps[0].Addr)...)
	mustRun(t, l.Apps[1], "rm", lab.SudoersPath)
	mustRun(t, l.Apps[2], "systemctl", "stop", "ssh")
	spoiled := check().wants(t, 4, "41 checks: 26 ok, 6 failed, 9 not checked\n")
	says(t, spoiled, "FAILED", lb1, "pending", "/etc/nginx/conf.d/new.conf")
	says(t, spoiled, "FAILED", lb2, "nginx", "nginx is not running")
	says(t, spoiled, "ok", lb2, "nginx-test", "passed")
	says(t, spoiled, "not checked", lb2, "pending", "it needs nginx")
	says(t, spoiled, "FAILED", lb2, "space", "0 MB free")
	says(t, spoiled, "FAILED", l.Apps[0].Addr, "host-key", "is not known")
	says(t, spoiled, "not checked", l.Apps[0].Addr, "counter", "it needs host-key")
	says(t, spoiled, "ok", l.Apps[1].Addr, "unit", "my-web-app is active")
	says(t, spoiled, "FAILED", l.Apps[1].Addr, "sudo", "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app")
	says(t, spoiled, "ok", l.Apps[1].Addr, "counter", "0 connections open")
	says(t, spoiled, "FAILED", l.Apps[2].Addr, "ssh", "")

	// A journal where nothing can be written, and a load balancer that is gone.
	mustRun(t, l.LB2, "mount", "-o", "remount,ro", stateDir)
	mustRun(t, l.LB, "systemctl", "stop", "ssh")
	gone := check().wants(t, 4)
	says(t, gone, "FAILED", lb1, "ssh", "")
	says(t, gone, "not checked", lb1, "agent", "it needs ssh")
	says(t, gone, "FAILED", lb2, "journal", "read-only file system")
	says(t, gone, "ok", l.Apps[1].Addr, "counter", "0 connections open")

	mustRun(t, l.LB, "rm", "/etc/nginx/conf.d/new.conf")
	sameFiles(t, before, configurationOf(t, l.LB))
	sameFiles(t, other, configurationOf(t, l.LB2))
	if now := strings.Replace(left(), stateDir+"\n", "", 1); now != had { // the test's own mount
		t.Errorf("there is %q, and there was %q", now, had)
	}
}
