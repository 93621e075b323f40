package lab_test

import (
	"strings"
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// sendsTo returns the apps that answer through an LB.
func sendsTo(t *testing.T, l *lab.Lab, lb *lab.Machine) string {
	t.Helper()
	seen := map[string]bool{}
	for range 12 {
		out := mustRun(t, l.Client, "curl", "-sS", "--fail", "--max-time", "10", "http://"+lb.Addr+"/")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		seen[strings.TrimPrefix(lines[len(lines)-1], "END ")] = true
	}
	var names []string
	for _, app := range l.Apps {
		if seen[app.Name] {
			names = append(names, app.Name)
		}
	}
	return strings.Join(names, " ")
}

// The nginx of lb2 is stopped: its file is edited, there and back. When it takes over it sends nothing to
// the drained app. One that takes over in the middle of the edit is reloaded.
func TestStandbyLoadBalancer(t *testing.T) {
	l := fleetFor(t)
	app, before := l.Apps[0], []map[string]file{configurationOf(t, l.LB), configurationOf(t, l.LB2)}
	mustRun(t, l.LB2, "systemctl", "stop", "nginx")
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{Targets: []string{lab.LBAddr + ":80"}})
	if err != nil {
		t.Fatal(err)
	}
	waitBusy(t, app)
	isDown := func(is bool) {
		t.Helper()
		for i, lb := range l.LBs() {
			want := before[i]
			if is {
				want = withDown(t, want, lab.NginxConfPath, app1Line)
			}
			sameFiles(t, want, configurationOf(t, lb))
		}
	}
	drain := []string{"drain", app.Addr, "-s", lab.AppUnit}
	atDesk(t, l, drain...).wait().wants(t, 4, "use --allow-stopped-nginx")
	isDown(false)
	dry := atDesk(t, l, append(drain, "--allow-stopped-nginx", "--dry-run")...).wait()
	dry.wants(t, 0, lab.LB2Addr, "nginx is not running: its files are edited and tested")
	atDesk(t, l, append(drain, "--allow-stopped-nginx")...).wait().
		wants(t, 0, "is drained", "my-web-app is inactive", "nginx is not running: its files are edited and tested")
	stoppedIdle(t, app)
	isDown(true)
	mustRun(t, l.LB2, "systemctl", "start", "nginx")
	if got := sendsTo(t, l, l.LB2); got != "app2 app3" {
		t.Errorf("lb2 sends to %s", got)
	}
	mustRun(t, l.LB2, "systemctl", "stop", "nginx")
	atDesk(t, l, "undrain", app.Addr).wait().wants(t, 0, "is back", "nginx is not running")
	isDown(false)
	servesAgain(t, load, app)

	// What tests the configuration right before the edit, after the test of the plan, has nginx started.
	const takeOver = "#!/bin/sh\n/usr/sbin/nginx \"$@\" || exit\ncase \"$*\" in *-t*) echo >>/root/tests; [ $(wc -l </root/tests) != 2 ] || systemctl start nginx ;; esac\n"
	if err := l.LB2.WriteFile(t.Context(), "/usr/local/sbin/nginx", []byte(takeOver), 0o755); err != nil {
		t.Fatal(err)
	}
	defer mustRun(t, l.LB2, "rm", "-f", "/usr/local/sbin/nginx", "/root/tests")
	atDesk(t, l, append(drain, "--allow-stopped-nginx")...).wait().wants(t, 0, "is drained")
	if got := sendsTo(t, l, l.LB2); got != "app2 app3" {
		t.Errorf("lb2 sends to %s", got)
	}
	if n := mustRun(t, l.LB2, "sh", "-c", "wc -l </root/tests; systemctl is-active nginx"); n != "3\nactive\n" {
		t.Errorf("tests, and the state of nginx: %q, want one test before the edit that has started nginx, and one after it", n)
	}
	atDesk(t, l, "undrain", app.Addr).wait().wants(t, 0, "is back")
	isDown(false)
	if got := sendsTo(t, l, l.LB2); got != "app1 app2 app3" {
		t.Errorf("lb2 sends to %s", got)
	}
	servesAgain(t, load, app)
	noneFailed(t, load)
}
