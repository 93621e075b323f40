package lab_test

import (
	"testing"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A request that is open when the time is up: what each --on-timeout makes of it. All
// of them end with 3.
func TestTimeout(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	drained := withDown(t, before, lab.NginxConfPath, app1Line)
	h := hold(t, l, app, 80)
	line := []string{"drain", app.Addr, "-s", lab.AppUnit, "--timeout", "1s"}

	t.Run("rollback", func(t *testing.T) {
		drainctl(t, l, line...).wants(t, 3, "not drained after 1s: 1 connection open", "from 192.168.1.2 (1)", "everything is as it was before")
		sameFiles(t, before, configuration(t, l))
		wantState(t, app, "active")
		if !h.open(t) {
			t.Error("the open request was cut")
		}
		eventually(t, "app1 gets requests again", func() bool {
			n := len(events(t, app))
			mustRun(t, l.Client, "curl", "-sS", "--fail", "http://"+lab.LBAddr+"/")
			return len(events(t, app)) > n
		})
	})
	t.Run("leave", func(t *testing.T) {
		left := drainctl(t, l, append(line, "--on-timeout", "leave")...).wants(t, 3, "1 connection open", "marked down")
		sameFiles(t, drained, configuration(t, l))
		wantState(t, app, "active")
		if !h.open(t) {
			t.Error("the open request was cut")
		}
		if next := left.next(t); next[1] != "resume" {
			t.Errorf("next it says %q, want a resume", next)
		}
	})
	t.Run("stop", func(t *testing.T) {
		drainctl(t, l, append(line, "--on-timeout", "stop")...).wants(t, 3, "1 connection open", "what is still open is cut", "my-web-app is inactive")
		sameFiles(t, drained, configuration(t, l))
		wantState(t, app, "inactive")
		all := events(t, app)
		if last := all[len(all)-1]; last.Kind != "TERM" || last.Open != 1 {
			t.Errorf("the app's last event is %+v, want its stop with the request open", last)
		}
	})
	drainctl(t, l, "undrain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
}

// A threshold lets that many be open, and no more.
func TestThreshold(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	hold(t, l, app, 80)
	hold(t, l, app, 80)
	line := []string{"drain", app.Addr, "--timeout", "1s", "--threshold"}
	drainctl(t, l, append(line, "1")...).wants(t, 3, "2 connections open")
	drainctl(t, l, append(line, "2")...).wants(t, 0, "2 connections open after")
}
