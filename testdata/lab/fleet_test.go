package lab_test

import (
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
	"github.com/drainctl/drainctl/testdata/lab/traffic"
)

// deployAtDesk types drainctl on the desk of a fleet, as the user deploy.
func deployAtDesk(t *testing.T, l *lab.Lab, args ...string) ending {
	t.Helper()
	return startAt(t, l, l.Desk, lab.As(lab.DeployUser, append([]string{"drainctl"}, args...)...)...).wait()
}

// A fleet is what its tests take for granted: from the desk everything is reached over the
// jump host, and nothing directly; and what deploy may do with sudo is these lines.
func TestFleetIsReachedOverTheJumpHostOnly(t *testing.T) {
	l := fleetFor(t)
	ssh := func(m *lab.Machine, command string, options ...string) ending {
		line := append([]string{"ssh", "-o", "BatchMode=yes"}, options...)
		return startAt(t, l, l.Desk, lab.As(lab.DeployUser, append(line, m.Addr, command)...)...).wait()
	}
	for _, m := range append(l.LBs(), l.Apps...) {
		ssh(m, "id -un; hostname").wants(t, 0, "deploy\n"+m.Name)
		ssh(m, "true", "-o", "ProxyJump=none").wants(t, 255, "Permission denied")
	}
	for _, lb := range l.LBs() {
		want := "deploy ALL=(root) NOPASSWD: /usr/bin/drainctl agent\n"
		if rules := mustRun(t, lb, "sh", "-c", "cat /etc/sudoers.d/*"); rules != want {
			t.Errorf("on %s sudo allows %q, want %q", lb.Name, rules, want)
		}
	}
	ssh(l.Apps[0], "sudo -n systemctl stop my-web-app && sudo -n systemctl start my-web-app").wants(t, 0)
	ssh(l.Apps[0], "sudo -n systemctl restart my-web-app").wants(t, 1, "a password is required")
}

// An operator who may do as little as the README asks for drains from a third host, over a
// jump host and with both load balancers under load. One of them is drained, and the other
// one sends on until its turn comes.
func TestDrainFromTheDesk(t *testing.T) {
	l := fleetFor(t)
	app, before, other := l.Apps[0], configurationOf(t, l.LB), configurationOf(t, l.LB2)
	load := startLoad(t, l, app)
	line := []string{app.Addr, "--lb", lab.DeployUser + "@" + lab.LBAddr}
	drainctlSays := func(command string, flags ...string) ending {
		return deployAtDesk(t, l, append(append([]string{command}, line...), flags...)...)
	}

	// lb2 has not been told, and its requests keep the app from being stopped.
	drainctlSays("drain", "--service", lab.AppUnit, "--timeout", "3s").
		wants(t, 3, lab.LB2Addr+" still opens connections", "everything is as it was before")
	sameFiles(t, before, configurationOf(t, l.LB))
	wantState(t, app, "active")

	drainctlSays("drain", "--poll", "lb", "--verbose").
		wants(t, 0, "[deploy@"+lab.LBAddr+"]", "sudo -n drainctl agent", "is drained")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configurationOf(t, l.LB))
	sameFiles(t, other, configurationOf(t, l.LB2))
	deployAtDesk(t, l, "status", "--lb", lab.DeployUser+"@"+lab.LBAddr).wants(t, 0, "drained by deploy on desk")
	drainctlSays("undrain").wants(t, 0, "is back")

	// With lb2 drained by hand the app is stopped, and nobody sees it.
	down := withDown(t, other, lab.NginxConfPath, app1Line)
	if err := l.LB2.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: down[lab.NginxConfPath].text}); err != nil {
		t.Fatal(err)
	}
	drainctlSays("drain", "--service", lab.AppUnit).wants(t, 0, "is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configurationOf(t, l.LB))
	goesOn(t, load, 100)
	drainctlSays("undrain").wants(t, 0, "is back")
	wantState(t, app, "active")
	sameFiles(t, before, configurationOf(t, l.LB))
	if err := l.LB2.WriteConf(t.Context(), map[string]string{lab.NginxConfPath: lab.NginxConf}); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, other, configurationOf(t, l.LB2))
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	bothServed(t, l, noneFailed(t, load))
}

// bothServed checks that every load balancer has had its share of the load.
func bothServed(t *testing.T, l *lab.Lab, s traffic.Summary) {
	t.Helper()
	for _, lb := range l.LBs() {
		if n := s.Targets[lb.Addr+":80"]; n < 100 {
			t.Errorf("%d requests and streams went through %s, want 100 or more: %v", n, lb.Name, s.Targets)
		}
	}
}
