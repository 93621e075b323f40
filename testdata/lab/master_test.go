package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// nginx's test passes before the edit and fails after it: the old bytes are put back,
// and nginx was never told to load anything.
func TestEditedConfigurationIsRefused(t *testing.T) {
	l := labFor(t)
	app, before, serving := l.Apps[0], configuration(t, l), workers(t, l)
	const script = "#!/bin/sh\nnginx -t || exit\nif grep -n ' down;' /etc/nginx/nginx.conf >&2; then echo 'policy: no server may be down' >&2; exit 3; fi\n"
	writeOnLB(t, l, "/root/policy", script, 0o755)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--test-command", "/root/policy").
		wants(t, 1, "the edited configuration was refused", "policy: no server may be down", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
	lastEnds(t, l, "rolled back")
	nothingInterrupted(t, l)
	// What was put back is newer on disk than what nginx has loaded, and the same.
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// A reload that takes ten seconds is waited for: until then the old workers send
// requests to the backend, and it is not stopped.
func TestReloadTakesTenSeconds(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	freeze(t, l)
	c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
	c.until("edited and tested")
	edited := time.Now()
	time.Sleep(10 * time.Second)
	if said := c.stdout.String(); strings.Contains(said, "\n2/3 ") {
		t.Errorf("it did not wait for the reload:\n%s", said)
	}
	thaw(t, l)
	c.wait().wants(t, 0, "a new generation serves", "is drained")
	stoppedIdle(t, app)
	stillAccepted(t, app, edited)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// freeze holds nginx's master up, which its workers do not notice. It goes on at the
// latest when the test ends.
func freeze(t *testing.T, l *lab.Lab) {
	t.Helper()
	mustRun(t, l.LB, "sh", "-c", "kill -STOP $(cat /run/nginx.pid)")
	t.Cleanup(func() { signalMaster(t, l, "CONT") })
}

func thaw(t *testing.T, l *lab.Lab) {
	t.Helper()
	signalMaster(t, l, "CONT")
}

// A reload that does not come in time is taken back, and whenever nginx gets to it, it
// loads what was there before.
func TestReloadComesTooLate(t *testing.T) {
	l := labFor(t)
	app, before, serving := l.Apps[0], configuration(t, l), workers(t, l)
	load := lightLoad(t, l, app)
	freeze(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--reload-timeout", "2s").
		wants(t, 1, "nginx was busy for 2s", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
	thaw(t, l)
	eventually(t, "nginx has carried out the reload", func() bool {
		now := workers(t, l)
		return len(now) > 0 && now[0] != serving[0]
	})
	servesAgain(t, load, app)
	noneFailed(t, load)
	nothingInterrupted(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// nginx is stopped while the drain waits. The backend is not stopped, the file is put
// back, and what is said to go on does so once nginx runs again.
func TestNginxStoppedInTheWait(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	openStream(t, l, app)
	c := waitingDrain(t, l, before)
	mustRun(t, l.LB, "systemctl", "stop", "nginx")
	end := c.wait().wants(t, 5, "nginx is not running", "drainctl: state: ", "my-web-app on 192.168.1.10: not touched by this run")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	drainctl(t, l, "status").wants(t, 0, "interrupted")
	mustRun(t, l.LB, "systemctl", "start", "nginx")
	drainctl(t, l, "resume").wants(t, 0, "is drained")
	wantState(t, app, "inactive")
	on(t, l, end.next(t)...).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	nothingInterrupted(t, l)
}

// nginx is restarted while the drain waits, as an upgrade of its package does. It serves
// with the server down, so the drain goes on.
func TestNginxRestartedInTheWait(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	hold(t, l, app, 80)
	c := waitingDrain(t, l, before)
	mustRun(t, l.LB, "systemctl", "restart", "nginx")
	c.wait().wants(t, 0, "is drained")
	wantState(t, app, "inactive")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// The journal was written by a clock that was an hour ahead, and has been set back since.
func TestClockJumpsBack(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)
	s := openStream(t, l, app)
	c := waitingDrain(t, l, before)
	s.end()
	c.wait().wants(t, 0, "is drained")
	stoppedIdle(t, app)
	drainedInTheFuture(t, l)
	drainctl(t, l, "status", app.Addr).wants(t, 0, "drained by ")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	servesAgain(t, load, app)
	nothingInterrupted(t, l)

	// What comes after is not mixed up with what came before.
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// drainedInTheFuture gives the last operation the name and the times that it has when it
// was done an hour from now, before the clock was set back.
func drainedInTheFuture(t *testing.T, l *lab.Lab) {
	t.Helper()
	id := lastEnds(t, l, "done").id
	began, err := time.Parse("20060102-150405.000", id[:len("20060102-150405.000")])
	if err != nil {
		t.Fatal(err)
	}
	later := began.Add(time.Hour).Format("20060102-150405.000") + id[len("20060102-150405.000"):]
	dir := stateDir + "/history/"
	mustRun(t, l.LB, "sh", "-ec", fmt.Sprintf("sed 's/%[1]s/%[2]s/' %[3]s%[1]s.jsonl >%[3]s%[2]s.jsonl; rm %[3]s%[1]s.jsonl; sed -i 's/%[1]s/%[2]s/' %[4]s/state.json", id, later, dir, stateDir))
}

// The app's own last words say why it never gets healthy, and it is stopped again.
func TestHealthNeverComesWithTheAppsLastWords(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained, serving := configuration(t, l), workers(t, l)
	options(t, app, "-listen-after 10m")
	dropIn(t, app, "[Service]\nExecStartPre=/bin/echo waiting for the database at db1\n")
	drainctl(t, l, "undrain", app.Addr, "--health-timeout", "2s").
		wants(t, 1, "not healthy after 2s", "the last log lines of the app:", "waiting for the database at db1", "everything is as it was before")
	notUndrained(t, l, drained, serving)
	lastEnds(t, l, "rolled back")
	drainctl(t, l, "status").wants(t, 0, "drained by ")

	options(t, app, "")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	nothingInterrupted(t, l)
}

func dropIn(t *testing.T, app *lab.Machine, text string) {
	t.Helper()
	if err := app.WriteFile(t.Context(), "/etc/systemd/system/my-web-app.service.d/test.conf", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app, "systemctl", "daemon-reload")
}

// A stop that hangs is waited for as long as --stop-timeout says. It cannot be taken
// back: drainctl says what stands, and both of the commands it names work.
func TestStopHangs(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	dropIn(t, app, "[Service]\nTimeoutStopSec=infinity\n")
	options(t, app, "-ignore-term")
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	load := lightLoad(t, l, app)
	drained := withDown(t, before, lab.NginxConfPath, app1Line)

	end := drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "--stop-timeout", "2s").
		wants(t, 5, "has not ended within 2s", "deactivating", "marked down", "systemctl kill --signal=KILL my-web-app")
	sameFiles(t, drained, configuration(t, l))
	drainctl(t, l, "status").wants(t, 0, "interrupted", "drainctl resume ")

	// It goes on waiting, and is as patient as it was.
	resumed := start(t, l, end.next(t)...)
	resumed.until("\n3/3 ")
	mustRun(t, app, "systemctl", "kill", "--signal=KILL", lab.AppUnit)
	resumed.wait().wants(t, 0, "is drained")
	sameFiles(t, drained, configuration(t, l))
	if now := state(t, app, lab.AppUnit); now != "inactive" && now != "failed" {
		t.Errorf("the app is %s", now)
	}
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// To interrupt a stop that hangs does not end it: the app cannot be started again before
// it has ended. That is waited for as long as the stop was, and the server stays down.
func TestInterruptInAStopThatHangs(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	dropIn(t, app, "[Service]\nTimeoutStopSec=infinity\n")
	options(t, app, "-ignore-term")
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	load := lightLoad(t, l, app)
	drain := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit, "--stop-timeout", "3s")
	eventually(t, "systemd stops the app", func() bool { return state(t, app, lab.AppUnit) == "deactivating" })
	drain.signal(unix.SIGINT)
	drain.wait().wants(t, 5, "interrupted; the rollback failed too", "has not ended within 3s", "systemctl kill --signal=KILL my-web-app", "marked down")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))

	mustRun(t, app, "systemctl", "kill", "--signal=KILL", lab.AppUnit)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "is back")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

func signalMaster(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	pid, err := l.LB.ReadFile(context.Background(), "/run/nginx.pid")
	if err == nil {
		_, err = l.LB.Run(context.Background(), "kill", "-"+name, strings.TrimSpace(string(pid)))
	}
	if err != nil {
		t.Error(err)
	}
}
