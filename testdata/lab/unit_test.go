package lab_test

import (
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// refusedUnit checks that check and drain find a unit that cannot come back, and that
// nothing was touched.
func refusedUnit(t *testing.T, l *lab.Lab, words ...string) {
	t.Helper()
	app, before, serving := l.Apps[0], configuration(t, l), workers(t, l)
	drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit).wants(t, 4, words...)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 4, append(words, "nothing was touched")...)
	untouched(t, before, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	wantState(t, app, "active")
}

// What systemd would not stop, or not start again, is refused before the drain, and before
// the undrain.
func TestUnitThatCannotComeBack(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)

	dropIn(t, app, "[Unit]\nRefuseManualStop=yes\n")
	refusedUnit(t, l, "my-web-app on root@192.168.1.10 cannot be stopped by systemctl", "RefuseManualStop")
	dropIn(t, app, "[Service]\nExecStart=\n")
	refusedUnit(t, l, "LoadState=bad-setting")
	dropIn(t, app, "[Service]\nKillMode=process\n")
	drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit).wants(t, 0, "KillMode=process", "1 warning")
	dropIn(t, app, "")

	mask := func(on bool) {
		script := "cp -n my-web-app.service /root; ln -sf /dev/null my-web-app.service"
		if !on {
			script = "rm my-web-app.service; cp /root/my-web-app.service ."
		}
		mustRun(t, app, "sh", "-ec", "cd /etc/systemd/system; "+script+"; systemctl daemon-reload")
	}
	mask(true)
	refusedUnit(t, l, "my-web-app on root@192.168.1.10 is masked", "systemctl unmask my-web-app")

	mask(false)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	mask(true)
	drainctl(t, l, "undrain", app.Addr).wants(t, 4, "is masked", "nothing was touched")
	mask(false)
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "my-web-app is active")
	sameFiles(t, before, configuration(t, l))
}

// A socket that would start the app again in the middle of a deploy is named.
func TestSocketActivation(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	const socket = lab.AppUnit + ".socket"
	if err := app.WriteFile(t.Context(), "/etc/systemd/system/"+socket, []byte("[Socket]\nListenStream=8090\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A socket is not started while its service runs.
	mustRun(t, app, "sh", "-ec", "systemctl daemon-reload; systemctl stop my-web-app; systemctl start my-web-app.socket my-web-app")
	defer mustRun(t, app, "systemctl", "stop", socket)
	refusedUnit(t, l, socket+", which is active, starts my-web-app on root@192.168.1.10 again",
		"hint: --service my-web-app.socket --service my-web-app stops it first")
}

// A socket stops before the app that it starts, so that nothing starts the app during a deploy. It
// starts before the app, too: systemd refuses to start it while the app runs.
func TestSocketAndService(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	const socket = lab.AppUnit + ".socket"
	if err := app.WriteFile(t.Context(), "/etc/systemd/system/"+socket, []byte("[Socket]\nListenStream=8090\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app, "systemctl", "daemon-reload")
	if out, err := app.Run(t.Context(), "systemctl", "start", socket); err == nil {
		t.Errorf("systemd starts a socket whose service is active: %s", out)
	}
	mustRun(t, app, "sh", "-ec", "systemctl stop my-web-app; systemctl start my-web-app.socket my-web-app")
	defer mustRun(t, app, "systemctl", "stop", socket)
	states := func(want string) {
		t.Helper()
		if got := state(t, app, socket) + " " + state(t, app, lab.AppUnit); got != want+" "+want {
			t.Errorf("the socket and the app are %s, want both %s", got, want)
		}
	}
	units := []string{"-s", socket, "-s", lab.AppUnit}

	drainctl(t, l, append([]string{"check", app.Addr}, units...)...).wants(t, 0)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit, "-s", socket).
		wants(t, 4, "hint: --service my-web-app.socket --service my-web-app stops it first", "nothing was touched")
	states("active")
	load := startLoad(t, l, app)
	drainctl(t, l, append([]string{"drain", app.Addr}, units...)...).
		wants(t, 0, "my-web-app.socket on 192.168.1.10 is inactive", "my-web-app on 192.168.1.10 is inactive", "is drained")
	if _, err := app.Run(t.Context(), "curl", "-sS", "-m", "2", "http://127.0.0.1:8090/"); err == nil {
		t.Error("the socket still takes connections")
	}
	states("inactive")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "my-web-app.socket on 192.168.1.10 is active", "my-web-app on 192.168.1.10 is active")
	states("active")
	noneFailed(t, load)

	// As after a crash between the two stops: the app still runs, and its socket does not.
	drainctl(t, l, append([]string{"drain", app.Addr}, units...)...).wants(t, 0)
	mustRun(t, app, "systemctl", "start", lab.AppUnit)
	drainctl(t, l, "undrain", app.Addr, "--health", "http://192.168.1.10:8080/health").
		wants(t, 0, "drainctl restarts my-web-app on root@192.168.1.10: systemd starts my-web-app.socket only while it does not run")
	states("active")
	sameFiles(t, before, configuration(t, l))
}

// An app that systemd had to kill is drained, and that it was killed is said.
func TestKilledApp(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	dropIn(t, app, "[Service]\nTimeoutStopSec=1\n")
	options(t, app, "-ignore-term")
	mustRun(t, app, "systemctl", "restart", lab.AppUnit)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).
		wants(t, 0, "my-web-app is failed: it did not end in time, and systemd killed it (Result=timeout)", "is drained")
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "my-web-app is active")
	sameFiles(t, before, configuration(t, l))
}

// A unit that requires the app is stopped with it, and runs again after the undrain. One
// that did not run is left alone. The right to start it is looked at first.
func TestDependentUnits(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	for _, name := range []string{"worker", "idle"} {
		unit := "[Unit]\nRequires=my-web-app.service\nAfter=my-web-app.service\n[Service]\nExecStart=/bin/sleep infinity\n"
		if err := app.WriteFile(t.Context(), "/etc/systemd/system/"+name+".service", []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, app, "systemctl", "daemon-reload")
	// systemd knows who requires a unit only once that one is loaded.
	mustRun(t, app, "systemctl", "start", "worker", "idle")
	mustRun(t, app, "systemctl", "stop", "idle")
	defer mustRun(t, app, "systemctl", "stop", "worker")

	drainctl(t, l, "check", app.Addr, "-s", lab.AppUnit, "--ssh-user", lab.DeployUser).
		wants(t, 0, "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl start worker.service")
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).
		wants(t, 0, "systemd stops worker.service with my-web-app on root@192.168.1.10", "is drained")
	if now := state(t, app, "worker"); now != "inactive" {
		t.Errorf("worker is %s after the drain", now)
	}
	drainctl(t, l, "undrain", app.Addr).wants(t, 0, "my-web-app on 192.168.1.10 is active", "worker.service on 192.168.1.10 is active")
	if worker, idle := state(t, app, "worker"), state(t, app, "idle"); worker != "active" || idle != "inactive" {
		t.Errorf("worker is %s and idle is %s after the undrain", worker, idle)
	}
	sameFiles(t, before, configuration(t, l))
}

// A proxy on the backend takes connections while the app is stopped: the drain says so, and
// the undrain asks for a URL of the app.
func TestAppBehindLocalProxy(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	const proxy = "events {}\nhttp { server { listen 8080; location / { proxy_pass http://127.0.0.1:8081; } } }\n"
	if err := app.WriteFile(t.Context(), lab.NginxConfPath, []byte(proxy), 0o644); err != nil {
		t.Fatal(err)
	}
	options(t, app, "-addr 127.0.0.1:8081")
	mustRun(t, app, "sh", "-ec", "systemctl restart my-web-app; systemctl start nginx")
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).
		wants(t, 0, "192.168.1.10:8080 still answers, though my-web-app is stopped", "still answering: 192.168.1.10:8080")
	wantState(t, app, "inactive")
	drainctl(t, l, "undrain", app.Addr).wants(t, 4, "a TCP connect would not show that it is back", "--health URL", "nothing was touched")
	wantState(t, app, "inactive")
	drainctl(t, l, "undrain", app.Addr, "--health", "http://192.168.1.10:8080/health").wants(t, 0, "healthy: 3 of 3 checks passed")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
}
