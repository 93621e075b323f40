package lab_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// Ctrl-C and SIGTERM in the middle of the wait take the drain back.
func TestInterruptRollsBack(t *testing.T) {
	t.Parallel()
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			l := labFor(t)
			app, before := l.Apps[0], configuration(t, l)
			load := startLoad(t, l, app)
			h := hold(t, l, app, 80)
			c := waitingDrain(t, l, before)
			c.signal(signal)
			c.wait().wants(t, 130, "interrupted", "everything is as it was before")
			sameFiles(t, before, configuration(t, l))
			wantState(t, app, "active")
			if !h.open(t) {
				t.Error("the open request was cut")
			}
			servesAgain(t, load, app)
			noneFailed(t, load)
		})
	}
}

// waitingDrain starts a drain of the first app and returns when it waits for what is
// open there.
func waitingDrain(t *testing.T, l *lab.Lab, before map[string]file) *typed {
	t.Helper()
	c := start(t, l, "drainctl", "drain", l.Apps[0].Addr, "-s", lab.AppUnit)
	c.until("\n2/3 ")
	c.until(" open, from 192.168.1.2 ")
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	return c
}

// A second signal stops at once, wherever the taking back is: it says what stands, and
// the command that it names goes on from there.
func TestSecondInterruptSaysWhatStands(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	hold(t, l, app, 80)
	c := waitingDrain(t, l, before)
	c.signal(unix.SIGINT)
	c.signal(unix.SIGINT)
	end := c.wait()
	switch end.code {
	case 130:
		end.wants(t, 130, "everything is as it was before")
	case 5:
		end.wants(t, 5, "drainctl: state: ", "192.168.1.10:8080 in backend_servers")
		mustRun(t, l.LB, "nginx", "-t")
		wantState(t, app, "active")
		on(t, l, end.next(t)...).wants(t, 0)
	default:
		t.Errorf("exit code %d, want 130 or 5:\n%s%s", end.code, end.stdout, end.stderr)
	}
	t.Logf("exit code %d: %s", end.code, strings.TrimSpace(end.stderr))
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	servesAgain(t, load, app)
	noneFailed(t, load)
}

// An undrain that is interrupted while the app warms up stops it again.
func TestInterruptOfUndrain(t *testing.T) {
	l := labFor(t)
	app := l.Apps[0]
	drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
	drained, serving := configuration(t, l), workers(t, l)
	options(t, app, "-listen-after 10m")
	c := start(t, l, "drainctl", "undrain", app.Addr, "-s", lab.AppUnit)
	c.until("\n2/3 ")
	c.signal(unix.SIGINT)
	c.wait().wants(t, 130, "interrupted", "everything is as it was before")
	notUndrained(t, l, drained, serving)
}
