package lab_test

import (
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The cable to the backend is pulled in the middle of the wait and plugged in again ten
// seconds later: the drain goes on, and what is open there ends well.
func TestCutInTheWaitAndBack(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	s := openStream(t, l, app)
	c := waitingDrain(t, l, before)
	onlyOpen(t, app, 1)
	if err := app.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	if err := app.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.echoes(t)
	s.end()
	c.wait().wants(t, 0, "192.168.1.10 is drained", "my-web-app is inactive")
	stoppedIdle(t, app)
	lastEnds(t, l, "done")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// onlyOpen waits until so many connections are open at an app, and no more.
func onlyOpen(t *testing.T, app *lab.Machine, n int) {
	t.Helper()
	eventually(t, "what the load had open at "+app.Name+" has ended", func() bool {
		return strings.Count(mustRun(t, app, "ss", "-Htn", "state", "established", "( sport = :8080 )"), "\n") == n
	})
}

// A backend that is gone for good: how much is open there is not known, so nothing is
// stopped, and all is as before when the time is up.
func TestCutForGood(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	writeOnLB(t, l, "/root/.ssh/config", "ConnectTimeout 2\n", 0o600)
	s := openStream(t, l, app)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--timeout", "5s")
	c.until(" open, from 192.168.1.2 ")
	if err := app.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.wait().wants(t, 1, "the open connections could not be counted when the time was up", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	lastEnds(t, l, "rolled back")
	if err := app.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.echoes(t)
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// sshd goes away in the wait, with all that is logged in, and comes back.
func TestSSHRefusedInTheWait(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	s := openStream(t, l, app)
	c := waitingDrain(t, l, before)
	mustRun(t, app, "systemctl", "stop", "ssh")
	endSSHSessions(t, app)
	c.until("cannot be counted now, trying again")
	c.until("connection refused") // it may say first that its session broke off
	mustRun(t, app, "systemctl", "start", "ssh")
	s.echoes(t)
	s.end()
	c.wait().wants(t, 0, "192.168.1.10 is drained")
	stoppedIdle(t, app)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// endSSHSessions kills what sshd runs for those who are logged in on a host.
func endSSHSessions(t *testing.T, m *lab.Machine) {
	t.Helper()
	mustRun(t, m, "sh", "-c", `for p in /proc/[0-9]*; do
	  case $(tr '\000' ' ' <"$p/cmdline" 2>/dev/null) in "sshd: root"*) kill -9 "${p#/proc/}";; esac
	done; :`)
}

// The right to stop the app is taken away while the drain waits: it is taken back, and
// the rule that is missing is named.
func TestSudoAsksForAPasswordInTheEnd(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)
	s := openStream(t, l, app)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--ssh-user", lab.DeployUser)
	c.until(" open, from 192.168.1.2 ")
	mustRun(t, app, "rm", lab.SudoersPath)
	s.end()
	c.wait().wants(t, 1, "sudo would ask for a password", "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app",
		"everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	lastEnds(t, l, "rolled back")
	servesAgain(t, load, app)
	noneFailed(t, load)
}
