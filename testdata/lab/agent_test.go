package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// oneSession has sshd give one session at a time to a connection.
func oneSession(t *testing.T, m *lab.Machine) {
	t.Helper()
	if err := m.WriteFile(t.Context(), "/etc/ssh/sshd_config.d/one.conf", []byte("MaxSessions 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, m, "systemctl", "restart", "ssh")
}

// A user whose whole right on the load balancer is one line in sudoers drains from a
// third host, through a jump host, under load. Every host gives one session at a time.
func TestDrainThroughTheAgentWithOneSudoLine(t *testing.T) {
	l := labFor(t)
	app, jump, desk, before := l.Apps[0], l.Apps[1], l.Apps[2], configuration(t, l)
	elsewhere(t, l, desk)
	config := fmt.Sprintf("Host %s\n    User deploy\n    ProxyJump root@%s\n", lab.LBAddr, jump.Addr)
	if err := desk.WriteFile(t.Context(), "/root/.ssh/config", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*lab.Machine{l.LB, app} {
		oneSession(t, m)
	}
	load := startLoad(t, l, app)
	lb := "--lb=" + lab.LBAddr
	startAt(t, l, desk, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--ssh-user", lab.DeployUser, lb, "--verbose").wait().
		wants(t, 0, "[deploy@"+lab.LBAddr+"]", "sudo -n drainctl agent", "sudo -n systemctl stop my-web-app", "is drained")
	stoppedIdle(t, app)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	startAt(t, l, desk, "drainctl", "status", lb).wait().wants(t, 0, "drained by root on app3")
	startAt(t, l, desk, "drainctl", "undrain", app.Addr, lb).wait().wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	// The line allows the agent as it is, and no other journal or command.
	startAt(t, l, desk, "drainctl", "drain", app.Addr, lb, "--reload-command", "touch /tmp/mine").wait().wants(t, 4, "may not run as root", "nothing was touched")
	// The same user on the load balancer itself.
	on(t, l, "runuser", "-u", lab.DeployUser, "--", "drainctl", "drain", app.Addr, "--poll", "lb").wants(t, 0, "is drained")
	on(t, l, "runuser", "-u", lab.DeployUser, "--", "drainctl", "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// A load balancer without drainctl is served by a copy, once; one of another kind of
// machine is told apart.
func TestAgentIsCopied(t *testing.T) {
	l := labFor(t)
	desk := l.Apps[2]
	elsewhere(t, l, desk)
	mustRun(t, l.LB, "mv", "/usr/bin/drainctl", "/root/drainctl.away")
	t.Cleanup(func() {
		if _, err := l.LB.Run(context.Background(), "sh", "-c", "rm -rf /usr/local/bin/uname /var/cache/drainctl; mv /root/drainctl.away /usr/bin/drainctl"); err != nil {
			t.Error(err)
		}
	})
	status := func() ending { return startAt(t, l, desk, "drainctl", "status", lbFlag).wait() }
	status().wants(t, 0, "has no drainctl: this one was copied to /var/cache/drainctl/", "192.168.1.10:8080")
	if again := status().wants(t, 0, "192.168.1.10:8080"); strings.Contains(again.stdout, "copied") {
		t.Errorf("it was copied twice:\n%s", again.stdout)
	}
	startAt(t, l, desk, "drainctl", "status", "--lb=deploy@"+lab.LBAddr).wait().wants(t, 4, "may not run as root")
	mustRun(t, l.LB, "rm", "-r", "/var/cache/drainctl")
	writeOnLB(t, l, "/usr/local/bin/uname", "#!/bin/sh\necho Linux aarch64\n", 0o755)
	status().wants(t, 4, "does not run on root@192.168.1.2 (Linux aarch64)", "install the package")
}

// Whatever login shell root has on the load balancer and on the backend.
func TestAnyLoginShell(t *testing.T) {
	l := labFor(t)
	app, desk, before := l.Apps[0], l.Apps[2], configuration(t, l)
	elsewhere(t, l, desk)
	t.Cleanup(func() {
		for _, m := range []*lab.Machine{l.LB, app} {
			if _, err := m.Run(context.Background(), "sed", "-i", "s,^root:.*,root:x:0:0:root:/root:/bin/bash,", "/etc/passwd"); err != nil {
				t.Error(err)
			}
		}
	})
	for _, shell := range []string{"dash", "fish", "tcsh", "zsh"} {
		path := strings.TrimSpace(mustRun(t, l.LB, "sh", "-c", "command -v "+shell))
		for _, m := range []*lab.Machine{l.LB, app} {
			mustRun(t, m, "sed", "-i", "s,^root:.*,root:x:0:0:root:/root:"+path+",", "/etc/passwd")
		}
		startAt(t, l, desk, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, lbFlag).wait().wants(t, 0, "is drained")
		startAt(t, l, desk, "drainctl", "undrain", app.Addr, lbFlag).wait().wants(t, 0, "is back")
		sameFiles(t, before, configuration(t, l))
	}
	nothingInterrupted(t, l)
}

// An agent that was paused for longer than its client may be silent, as the whole machine
// may be, has its locks when it goes on: it reads what the client has sent meanwhile.
func TestPausedAgentKeepsItsLocks(t *testing.T) {
	l := labFor(t)
	a := attack(t, l)
	a.mustAsk("lock", `{"backends":["192.168.1.10"],"holder":{"name":"","kind":"drain","user":"x","host":"y"}}`)
	pid := agentPID(t, l)
	gone := a.pings()
	for range 3 {
		mustRun(t, l.LB, "kill", "-STOP", pid)
		time.Sleep(40 * time.Second)
		mustRun(t, l.LB, "kill", "-CONT", pid)
		time.Sleep(10 * time.Second)
	}
	select {
	case <-gone:
		t.Errorf("the agent has ended: %s", a.stderr)
	default:
	}
	drainctl(t, l, "drain", "192.168.1.10").wants(t, 4, "is locked by")
}
