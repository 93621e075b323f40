package lab_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// How often things are killed. "make torture" asks for more.
var (
	kills = flag.Int("kills", 12, "how often drainctl is killed")
	cuts  = flag.Int("cuts", 3, "how often sshd's sessions on the backend are killed, and how often nginx's workers")
	seed  = flag.Uint64("seed", 0, "of what is drawn by lot; 0: another one each time")
)

// A lot draws what is done when. The same seed draws the same.
type lot struct{ *rand.Rand }

func drawLots(t *testing.T) lot {
	t.Helper()
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("the same again: -seed %d", n)
	return lot{rand.New(rand.NewPCG(n, 0))}
}

// upTo draws a time.
func (l lot) upTo(d time.Duration) time.Duration { return time.Duration(l.Int64N(int64(d))) }

// A moment is when drainctl is killed: some time after it has said something.
type moment struct {
	said  string
	after time.Duration
}

// moment draws one of all steps alike, however long each takes: the short ones are where
// things change.
func (l lot) moment(command string) moment {
	type phase struct {
		said string
		most time.Duration
	}
	steps := []phase{{"", 800 * time.Millisecond}, {"\n1/3 ", 200 * time.Millisecond}, {"edited and tested", 200 * time.Millisecond}}
	if command == "drain" {
		steps = append(steps, phase{"\n2/3 ", 3 * time.Second}, phase{"\n3/3 ", 100 * time.Millisecond})
	} else {
		steps = append(steps, phase{"\n2/3 ", 600 * time.Millisecond}, phase{"\n3/3 ", 200 * time.Millisecond})
	}
	step := steps[l.IntN(len(steps))]
	return moment{step.said, l.upTo(step.most)}
}

// come waits for the moment; it is over when the command is.
func (m moment) come(t *testing.T, c *typed, ended <-chan ending) {
	t.Helper()
	for began := time.Now(); !strings.Contains(c.stdout.String(), m.said); time.Sleep(time.Millisecond) {
		if len(ended) > 0 {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s does not say %q:\n%s%s", c.line, m.said, c.stdout, c.stderr)
		}
	}
	time.Sleep(m.after)
}

// drainctl is killed, with the signal that nobody can prepare for, at random moments of
// drains and undrains under load. Whatever it was at: the configuration is whole, one
// undrain puts everything back as it was, and no request is cut.
func TestKilledAtRandom(t *testing.T) {
	l := labFor(t)
	startsUnlimited(t, l)
	by, before := drawLots(t), configuration(t, l)
	load := tortureLoad(t, l)
	reached, late := map[string]int{}, 0
	hit := func(app *lab.Machine, command string) (at string, n int) {
		at, inTime := killed(t, l, app, command, by.moment(command))
		wholeConfiguration(t, before, configuration(t, l), app)
		if !inTime {
			late++
			return at, 0
		}
		reached[at]++
		return at, 1
	}
	for n := 0; n < *kills; {
		if late > *kills {
			t.Fatalf("%d times it was done before it could be killed, and %d times not", late, n)
		}
		app := l.Apps[by.IntN(len(l.Apps))]
		command := []string{"drain", "undrain"}[by.IntN(2)]
		if command == "undrain" {
			drainctl(t, l, "drain", app.Addr, "-s", lab.AppUnit).wants(t, 0)
		}
		at, one := hit(app, command)
		n += one
		if by.IntN(3) == 0 {
			goOn(t, l, app, command)
		}
		// The putting back is not spared either.
		for n < *kills && by.IntN(4) == 0 {
			again, one := hit(app, "undrain")
			n += one
			at += ", then after " + again
		}
		putBack(t, l, app, before)
		if t.Failed() {
			t.Fatalf("kill %d: %s of %s, killed after %s", n, command, app.Name, at)
		}
		servesAgain(t, load, app)
	}
	tell(reached, "killed after %s")
	fmt.Printf("drainctl was killed %d times; %d times more it was done sooner\n", *kills, late)
	noneFailed(t, load)
	for _, app := range l.Apps {
		stoppedIdleAlways(t, app)
	}
}

// putBack checks what one undrain after any fault must do: nothing is left of the drain.
func putBack(t *testing.T, l *lab.Lab, app *lab.Machine, before map[string]file) {
	t.Helper()
	drainctl(t, l, "undrain", app.Addr).wants(t, 0)
	sameFiles(t, before, configuration(t, l))
	wantState(t, app, "active")
	nothingInterrupted(t, l)
}

// startsUnlimited lets the apps be started more often than systemd likes: it refuses the
// sixth start within ten seconds.
func startsUnlimited(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, app := range l.Apps {
		dropIn(t, app, "[Unit]\nStartLimitIntervalSec=0\n")
	}
}

// tortureLoad is light, so that the waits are short and many rounds are run.
func tortureLoad(t *testing.T, l *lab.Lab) *lab.Load {
	t.Helper()
	load, err := l.StartLoad(t.Context(), lab.LoadOptions{Clients: 12, Streams: 2, Limit: 3 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return load
}

// killed runs a command and kills it at a moment. It tells what the command had written
// down last, and whether it was killed before it was done.
func killed(t *testing.T, l *lab.Lab, app *lab.Machine, command string, m moment) (at string, inTime bool) {
	t.Helper()
	noted := len(operations(t, l))
	c := start(t, l, "drainctl", command, app.Addr, "-s", lab.AppUnit)
	kill := aim(t, l, c)
	ended := make(chan ending, 1)
	go func() { ended <- c.wait() }()
	m.come(t, c, ended)
	kill()
	end := <-ended
	switch all := operations(t, l); {
	case end.code == 0:
		return command + ": done", false
	case end.code != 128+int(unix.SIGKILL) && end.code != -1:
		t.Errorf("%s ended with %d before it was killed:\n%s%s", end.line, end.code, end.stdout, end.stderr)
		return "error", true
	case len(all) == noted:
		return command + ": nothing", true
	default:
		return all[len(all)-1].reached(), true
	}
}

// aim looks for a command's process beforehand, so that the kill comes at the moment it
// is meant for. The process is held by a descriptor: its number may be another's by then.
func aim(t *testing.T, l *lab.Lab, c *typed) (kill func()) {
	t.Helper()
	pid, err := l.LB.PID(c.cmd)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
		_ = unix.Close(fd)
	}
}

// wholeConfiguration checks that each file has all of its old bytes or of its new ones.
func wholeConfiguration(t *testing.T, before, now map[string]file, app *lab.Machine) {
	t.Helper()
	drained := withDown(t, before, lab.NginxConfPath, fmt.Sprintf("server %s:%d;", app.Addr, lab.AppPort))
	for name, f := range now {
		if text := f.text; text != before[name].text && text != drained[name].text {
			t.Errorf("%s is neither as before nor as drained:\n%s", name, text)
		}
	}
}

// goOn resumes what was killed, if that had come as far as to say what it does.
func goOn(t *testing.T, l *lab.Lab, app *lab.Machine, command string) {
	t.Helper()
	end := drainctl(t, l, "resume")
	if end.code == 2 {
		end.wants(t, 2, "no operation was interrupted")
		return
	}
	end.wants(t, 0)
	if command == "drain" {
		if now := state(t, app, lab.AppUnit); now != "inactive" {
			t.Errorf("after the resume %s on %s is %s, want inactive", lab.AppUnit, app.Name, now)
		}
	}
}

// stoppedIdleAlways checks by the app's own record that it never held anything when it
// was told to stop.
func stoppedIdleAlways(t *testing.T, app *lab.Machine) {
	t.Helper()
	stops := 0
	for _, e := range events(t, app) {
		if e.Kind == "TERM" {
			stops++
			if e.Open != 0 {
				t.Errorf("%s was stopped with %d requests open at %s", app.Name, e.Open, e.Time)
			}
		}
	}
	t.Logf("%s was stopped %d times", app.Name, stops)
}

// What sshd runs for drainctl on the backend is killed at random moments of drains under
// load: the drain goes on, or it is taken back.
func TestSSHSessionsKilledAtRandom(t *testing.T) {
	l := labFor(t)
	startsUnlimited(t, l)
	by, before := drawLots(t), configuration(t, l)
	load := tortureLoad(t, l)
	app := l.Apps[0]
	codes := map[string]int{}
	for range *cuts {
		c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
		at := by.moment("drain")
		end := whileRunning(t, c, at, func() { endSSHSessions(t, app) })
		codes[fmt.Sprintf("exit code %d after %q", end.code, at.said)]++
		whatItSays(t, l, app, before, end)
		putBack(t, l, app, before)
		if t.Failed() {
			t.Fatalf("sessions killed %s after %q:\n%s%s", at.after, at.said, end.stdout, end.stderr)
		}
		servesAgain(t, load, app)
	}
	tell(codes, "%s")
	fmt.Printf("the SSH sessions of a drain were killed %d times\n", *cuts)
	noneFailed(t, load)
	stoppedIdleAlways(t, app)
}

// whileRunning does something at a moment of a command, and waits for its end.
func whileRunning(t *testing.T, c *typed, m moment, do func()) ending {
	t.Helper()
	ended := make(chan ending, 1)
	go func() { ended <- c.wait() }()
	m.come(t, c, ended)
	do()
	return <-ended
}

// whatItSays checks that a drain which may have failed has left what it says: drained,
// or as before. Before the first edit a fault is a refusal.
func whatItSays(t *testing.T, l *lab.Lab, app *lab.Machine, before map[string]file, end ending) {
	t.Helper()
	switch end.code {
	case 0:
		sameFiles(t, withDown(t, before, lab.NginxConfPath, app1Line), configuration(t, l))
		wantState(t, app, "inactive")
	case 1, 4:
		if !strings.Contains(end.stderr, "everything is as it was before") && !strings.Contains(end.stderr, "nothing was touched") {
			t.Errorf("it does not say what stands:\n%s", end.stderr)
		}
		sameFiles(t, before, configuration(t, l))
		wantState(t, app, "active")
	default:
		t.Errorf("exit code %d:\n%s%s", end.code, end.stdout, end.stderr)
	}
}

// A worker of nginx is killed at random moments of drains: its master starts another,
// which is no new generation. There is no load: what a worker holds dies with it.
func TestWorkersKilledAtRandom(t *testing.T) {
	l := labFor(t)
	startsUnlimited(t, l)
	by, before := drawLots(t), configuration(t, l)
	app := l.Apps[0]
	codes := map[string]int{}
	for range *cuts {
		at, held := by.moment("drain"), &stream{}
		if at.said != "\n3/3 " { // which does not come while anything is open
			held = openStream(t, l, app)
		}
		victims, which := workers(t, l), by.Int()
		c := start(t, l, "drainctl", "drain", app.Addr, "-s", lab.AppUnit)
		end := whileRunning(t, c, at, func() {
			killOnLB(l, victims[which%len(victims)])
			held.end()
		})
		codes[fmt.Sprintf("exit code %d after %q", end.code, at.said)]++
		whatItSays(t, l, app, before, end)
		putBack(t, l, app, before)
		if t.Failed() {
			t.Fatalf("a worker killed %s after %q:\n%s%s", at.after, at.said, end.stdout, end.stderr)
		}
	}
	tell(codes, "%s")
	fmt.Printf("a worker of nginx was killed %d times in a drain\n", *cuts)
	stoppedIdleAlways(t, app)
}

// killOnLB kills a process by its number on the load balancer, if it still runs.
func killOnLB(l *lab.Lab, pid int) {
	_, _ = l.LB.Run(context.Background(), "kill", "-KILL", fmt.Sprint(pid))
}

// tell prints how often there was what.
func tell(counts map[string]int, format string) {
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Printf("%4d "+format+"\n", counts[what], what)
	}
}
