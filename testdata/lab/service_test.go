package lab_test

import (
	"testing"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A backend whose app has died already is drained like any other: the clients are
// served by the others all along.
func TestDrainOfDeadApp(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	mustRun(t, app, "systemctl", "kill", "-s", "KILL", lab.AppUnit)
	eventually(t, "the app is dead", func() bool { return state(t, app, lab.AppUnit) == "failed" })
	load := startLoad(t, l, l.Apps[1])
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "my-web-app is failed", "is drained")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0, "my-web-app is active")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// Of a backend that nobody reaches it is not known whether anything is open there; on
// the load balancer it is.
func TestDrainOfDeadHost(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	writeOnLB(t, l, "/root/.ssh/config", "ConnectTimeout 2\n", 0o600)
	if err := app.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	serving := workers(t, l)
	for _, args := range [][]string{{"-s", lab.AppUnit}, {"-s", lab.AppUnit, "--poll", "lb"}, {}} {
		drainctl(t, l, append([]string{"drain", app.Addr}, args...)...).wants(t, 4, "192.168.1.10", "nothing was touched")
		untouched(t, before, configuration(t, l))
		sameWorkers(t, serving, workers(t, l))
	}
	drainctl(t, l, "drain", app.Addr, "--poll", "lb").wants(t, 0, "nothing was stopped")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	if err := app.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
}

// A stop that fails takes the drain back: the app runs, and is in the pool.
func TestStopFails(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	const broken = "#!/bin/sh\nif [ \"$1\" = stop ]; then echo Connection timed out >&2; exit 1; fi\nexec /usr/bin/systemctl \"$@\"\n"
	if err := app.WriteFile(t.Context(), "/usr/local/bin/systemctl", []byte(broken), 0o755); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, l, app)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).
		wants(t, 1, "stop my-web-app on root@192.168.1.10", "Connection timed out", "everything is as it was before")
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// notUndrained checks that an undrain that failed has left the server out of the pool
// and the app stopped, as after the drain.
func notUndrained(t *testing.T, l *lab.Lab, drained map[string]file, serving []int) {
	t.Helper()
	sameFiles(t, drained, configuration(t, l))
	sameWorkers(t, serving, workers(t, l))
	eventually(t, "the app does not run", func() bool {
		now := state(t, l.Apps[0], lab.AppUnit)
		return now == "inactive" || now == "failed"
	})
}

// An app that does not start stays out of the pool, and the reason is in its own words.
func TestStartFails(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained, serving := configuration(t, l), workers(t, l)
	undrain := []string{"undrain", app.Addr, "-s", lab.AppUnit}

	// systemd takes a simple service for started as soon as its process is there.
	options(t, app, "-fail-start")
	drainctl(t, l, append(undrain, "--health-timeout", "20s")...).
		wants(t, 1, "database migration 42 has failed", "everything is as it was before")
	notUndrained(t, l, drained, serving)

	mustRun(t, app, "sh", "-ec", "mkdir -p /etc/systemd/system/my-web-app.service.d && cd /etc/systemd/system/my-web-app.service.d &&"+
		" printf '[Service]\\nExecStartPre=/bin/sh -c \"echo no disk space >&2; exit 3\"\\n' >pre.conf && systemctl daemon-reload")
	drainctl(t, l, undrain...).wants(t, 1, "start my-web-app on root@192.168.1.10", "no disk space", "everything is as it was before")
	notUndrained(t, l, drained, serving)
}

// An app that does not become healthy stays out of the pool, and is stopped again.
func TestHealthNeverComes(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained, serving := configuration(t, l), workers(t, l)
	undrain := []string{"undrain", app.Addr, "-s", lab.AppUnit, "--health-timeout", "2s"}

	options(t, app, "-listen-after 10m")
	drainctl(t, l, undrain...).wants(t, 1, "not healthy after 2s", "connection refused", "everything is as it was before")
	notUndrained(t, l, drained, serving)

	options(t, app, "-healthy-after 10m")
	drainctl(t, l, append(undrain, "--health", "http://192.168.1.10:8080/health")...).
		wants(t, 1, "not healthy after 2s", "status 503", "warming up", "everything is as it was before")
	notUndrained(t, l, drained, serving)
}

// With --health the app gets no request before it says that it is healthy.
func TestHealthURL(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	const warmUp = 2 * time.Second
	load := startLoad(t, l, app)
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	options(t, app, "-healthy-after "+warmUp.String())
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit, "--health", "http://192.168.1.10:8080/health").
		wants(t, 0, "healthy: 3 of 3 checks passed")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)

	all := events(t, app)
	boot := len(all) - 1
	for all[boot].Kind != "BOOT" {
		boot--
	}
	if first := all[boot+1]; first.Time.Before(all[boot].Time.Add(warmUp)) {
		t.Errorf("the app was healthy %s after it started, and got its first request after %s", warmUp, first.Time.Sub(all[boot].Time))
	}
}
