package lab_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// The terminal closes in the middle of the wait, as when a laptop does: the drain is
// taken back, though nobody is told any more.
func TestTerminalCloses(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := startLoad(t, l, app)
	s := openStream(t, l, app)
	// script(1) holds the other side of the terminal.
	c := start(t, l, "script", "-qefc", "drainctl drain "+app.Addr+" -s "+lab.AppUnit, "/dev/null")
	c.until("2/3")
	c.until("192.168.1.2 (")
	c.signal(unix.SIGKILL)
	eventually(t, "the journal says that it was rolled back", func() bool {
		all := operations(t, l)
		return len(all) == 1 && all[0].result() == "rolled back"
	})
	last := operations(t, l)[0].records
	if end := last[len(last)-1]; end.Event != "result" || end.Code != 130 {
		t.Errorf("the history ends with %+v, want exit code 130", end)
	}
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	s.echoes(t)
	servesAgain(t, load, app)
	nothingInterrupted(t, l)
	noneFailed(t, load)
}

// Whoever reads the output goes away after the first line, of one output or of both: the
// drain goes on to its end.
func TestOutputCloses(t *testing.T) {
	l := labFor(t)
	app, before := l.Apps[0], configuration(t, l)
	load := lightLoad(t, l, app)
	closing := func(command, pipe string) {
		line := "drainctl " + command + " " + app.Addr + " -s " + lab.AppUnit + " " + pipe + " head -n 1; exit ${PIPESTATUS[0]}"
		on(t, l, "bash", "-c", line).wants(t, 0)
		lastEnds(t, l, "done")
	}
	closing("drain", "|")
	stoppedIdle(t, app)
	sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
	closing("undrain", "2>&1 |")
	sameFiles(t, before, configuration(t, l))
	servesAgain(t, load, app)
	noneFailed(t, load)
}
