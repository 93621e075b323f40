package drain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A told is the events of a run.
type told struct{ events []Event }

func (l *told) tell(e Event) { l.events = append(l.events, e) }

// warnings is what an operator was warned of.
func (l *told) warnings() string {
	var texts []string
	for _, e := range l.events {
		if w, ok := e.(Warned); ok {
			texts = append(texts, w.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// begun is a run on the rig that has taken no step yet.
func (r *rig) begun(op Operation) (*run, *told) {
	r.t.Helper()
	l := &told{}
	plan, err := Read(r.t.Context(), r.request(op, r.clean()))
	if err != nil {
		r.t.Fatal(err)
	}
	run := newRun(plan, l.tell)
	if err := run.begin(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return run, l
}

// reload has nginx load what the file says, and waits until it serves.
func (r *rig) reload() {
	r.t.Helper()
	time.Sleep(apart)
	before := r.workers()
	if err := syscall.Kill(r.master, syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	r.until("a new generation serves", func() bool {
		now := r.workers()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	})
}

// reloadSlowly has nginx load what the file says, and returns while the earlier workers
// still serve beside the new ones.
func (r *rig) reloadSlowly() {
	r.t.Helper()
	time.Sleep(apart)
	before := r.workers()
	r.signal(before, syscall.SIGSTOP)
	if err := syscall.Kill(r.master, syscall.SIGHUP); err != nil {
		r.t.Fatal(err)
	}
	r.until("a new worker serves", func() bool { return len(r.workers()) > len(before) })
	time.AfterFunc(3*settleInterval, func() { r.signal(before, syscall.SIGCONT) })
}

func (r *rig) signal(pids []string, s syscall.Signal) {
	for _, pid := range pids {
		if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, s) != nil {
			r.t.Errorf("signal %v to worker %s", s, pid)
		}
	}
}

// While it waits, a drain sees within one interval that somebody else has nginx
// serve the target again, or may have.
func TestWatch(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(r *rig)
		want string // the drift; empty: there is none
	}{
		{"nothing", func(*rig) {}, ""},
		{"a reload", func(r *rig) { r.reload() }, ""},
		{"a note", func(r *rig) { r.write("# a note\n" + r.drained()) }, ""},
		{"a note, and a reload", func(r *rig) { r.write("# a note\n" + r.drained()); r.reload() }, ""},
		{"a note, and a reload that is under way", func(r *rig) { r.write("# a note\n" + r.drained()); r.reloadSlowly() }, ""},
		{"the same bytes written anew", func(r *rig) { r.write(r.drained()) }, ""},
		{"down taken away", func(r *rig) { r.write(r.was) }, "somebody took down away from the configuration: "},
		{"down taken away, and a reload", func(r *rig) { r.write(r.was); r.reload() }, "somebody took down away from the configuration, and nginx was reloaded: "},
		{"another line for the target", func(r *rig) {
			r.write(strings.Replace(r.drained(), "upstream app {", "upstream app {\n        server "+r.unit.addr+" weight=2;", 1))
		}, "somebody took down away from the configuration: "},
		{"the server taken away", func(r *rig) {
			r.write(strings.Replace(r.drained(), "server "+r.unit.addr+" down;", "", 1))
		}, " is in no upstream of "},
		{"down taken away, a reload, and down put back", func(r *rig) {
			r.write(r.was)
			r.reload()
			time.Sleep(2 * reloadGap)
			r.write(r.drained())
		}, "somebody reloaded nginx and then changed "},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			run, _ := r.begun(Drain)
			if _, _, err := run.close.forward(t.Context()); err != nil {
				t.Fatal(err)
			}
			w := newWatch(run.close, time.Hour)
			if err := w.look(t.Context(), false); err != nil {
				t.Fatalf("before: %v", err)
			}
			test.do(r)
			if err := w.look(t.Context(), false); err != nil {
				t.Fatalf("it looked before its time: %v", err)
			}
			err := w.look(t.Context(), true)
			var drift *driftError
			if test.want == "" {
				if err != nil {
					t.Fatalf("got %v, want none", err)
				}
				return
			}
			if !errors.As(err, &drift) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			// What it does then.
			if _, _, err := run.close.undo(t.Context()); err != nil {
				t.Fatalf("the way back: %v", err)
			}
			if now := r.read(); strings.Contains(now, " down;") {
				t.Fatalf("after the way back the file is\n%s", now)
			}
		})
	}
}

// Somebody who writes a file not atomically leaves it half written for a moment.
// That is looked at again, but never taken for seen.
func TestWatchOfWhatCannotBeRead(t *testing.T) {
	r := newRig(t)
	run, _ := r.begun(Drain)
	if _, _, err := run.close.forward(t.Context()); err != nil {
		t.Fatal(err)
	}
	const says = "whether nginx still keeps requests away could not be seen: "
	w := newWatch(run.close, 0)
	r.write(r.drained()[:200])
	for look := 1; look < maxStrikes; look++ {
		if err := w.look(t.Context(), false); err != nil {
			t.Fatalf("look %d: %v", look, err)
		}
	}
	if err := w.look(t.Context(), false); err == nil || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want %q", err, says)
	}
	r.write(r.drained())
	if err := w.look(t.Context(), true); err != nil {
		t.Fatalf("whole again: %v", err)
	}
	// The last look before the stop must have seen.
	r.write(r.drained()[:200])
	if err := w.look(t.Context(), true); err == nil || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want %q", err, says)
	}
}

// part is the part of the only load balancer, as it is on disk now.
func (r *rig) part(run *run) *LBPlan {
	r.t.Helper()
	plan, err := Read(r.t.Context(), run.req)
	if err != nil {
		r.t.Fatal(err)
	}
	return &plan.LBs[0]
}

func TestPending(t *testing.T) {
	r := newRig(t)
	run, _ := r.begun(Drain)
	ask := func(running nginx.Running) (string, string) {
		t.Helper()
		findings, warnings, err := run.pending(t.Context(), r.part(run), running)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, f := range findings {
			texts = append(texts, f.Text+" | "+f.Override)
		}
		return strings.Join(texts, "\n"), strings.Join(warnings, "\n")
	}
	running := func() nginx.Running {
		t.Helper()
		now, err := run.req.LBs[0].running(t.Context(), run.plan.LBs[0].Conf)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	check := func(what, refused, wantRefused, warned, wantWarned string) {
		t.Helper()
		for _, c := range [][2]string{{refused, wantRefused}, {warned, wantWarned}} {
			if !strings.Contains(c[0], c[1]) || (c[1] == "" && c[0] != "") {
				t.Errorf("%s: %q, want %q", what, c[0], c[1])
			}
		}
	}

	refused, warned := ask(running())
	check("as loaded", refused, "", warned, "")

	r.write(r.was + "# theirs\n")
	refused, warned = ask(running())
	check("changed", refused, "changed on disk after nginx was last loaded (", warned, "")
	if want := r.conf + " (" + time.Now().Format("2006-01-02 "); !strings.Contains(refused, want) || !strings.HasSuffix(refused, " | --accept-pending") {
		t.Errorf("changed: %q, want %q and the flag", refused, want)
	}
	run.req.Allow.Pending = true
	refused, warned = ask(running())
	check("changed, and accepted", refused, "", warned, "changed on disk after nginx was last loaded (")
	run.req.Allow.Pending = false

	// A clock that was set back makes files look as if they came from the future.
	back := running()
	back.Now = back.Now.Add(-time.Hour)
	refused, warned = ask(back)
	check("the clock was set back", refused, "", warned, "the clock of this machine was set back: whether nginx has loaded these files cannot be told: "+r.conf)

	// What another drainctl has announced since the journal was read is not
	// somebody else's unfinished work, and neither is what it has put back.
	j := run.req.LBs[0].journal(run.req)
	if err := j.write(t.Context(), "20260101-000000.000-othr", Record{Kind: RecordBegin, Begin: &Begin{ID: "20260101-000000.000-othr", Operation: Drain, Target: "10.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	if err := j.write(t.Context(), "20260101-000000.000-othr", Record{Kind: RecordEdit, Edit: &Edited{Path: r.conf, Before: "x", After: sha(r.read())}}); err != nil {
		t.Fatal(err)
	}
	part := r.part(run)
	part.Ledger = nil
	if findings, _, err := run.pending(t.Context(), part, running()); err != nil || len(findings) > 0 {
		t.Errorf("another drainctl's: %v, %v", findings, err)
	}

	r.write(r.was + "# theirs again\n")
	refused, warned = ask(running())
	check("changed again", refused, "changed on disk", warned, "")
	r.reload()
	time.Sleep(apart)
	refused, warned = ask(running())
	check("loaded", refused, "", warned, "")
}

// What a reload of the way back does, by what it finds.
func TestReloadBack(t *testing.T) {
	closed := func(t *testing.T, conf func(string) string) (*rig, *run, *closing, *told) {
		t.Helper()
		r := newRig(t)
		if conf != nil {
			r.was = conf(r.was)
			r.write(r.was)
			r.reload()
			time.Sleep(apart)
		}
		run, l := r.begun(Drain)
		if _, _, err := run.close.forward(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r, run, run.close.lbs[0], l
	}
	t.Run("nothing was sent", func(t *testing.T) {
		r, run, c, _ := closed(t, nil)
		c.sent = false
		before := r.workers()
		if err := run.close.reloadBack(t.Context(), c); err != nil || !slices.Equal(before, r.workers()) {
			t.Errorf("%v, workers %v became %v", err, before, r.workers())
		}
	})
	t.Run("all is well", func(t *testing.T) {
		r, run, c, l := closed(t, nil)
		changed, text, err := run.close.undo(t.Context())
		if err != nil || !changed || text != "configuration as before" || c.sent || len(c.written) > 0 || l.warnings() != "" {
			t.Errorf("%t %q %v, %+v, warned of %q", changed, text, err, c, l.warnings())
		}
		if r.read() != r.was || !r.served()[r.unit.addr] {
			t.Errorf("the target is not served:\n%s", r.read())
		}
		// Once more there is nothing to do.
		before := r.workers()
		if changed, _, err := run.close.undo(t.Context()); changed || err != nil || !slices.Equal(before, r.workers()) {
			t.Errorf("again: %t %v", changed, err)
		}
	})
	t.Run("somebody has broken the file", func(t *testing.T) {
		r, run, c, _ := closed(t, nil)
		r.write(strings.Replace(r.drained(), "access_log off;", "access_log off; nonsense on;", 1))
		_, _, err := run.close.undo(t.Context())
		if err == nil || !strings.Contains(err.Error(), "the files hold nothing of this run any more, but nginx refuses them as they are now") || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("got %v", err)
		}
		if strings.Contains(r.read(), " down;") || !c.sent {
			t.Errorf("sent %t, the file is\n%s", c.sent, r.read())
		}
	})
	t.Run("somebody else has unfinished work", func(t *testing.T) {
		r, run, _, l := closed(t, nil)
		r.write("# halfway through\n" + r.read())
		if _, _, err := run.close.undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r.read() != "# halfway through\n"+r.was {
			t.Errorf("the file is\n%s", r.read())
		}
		if !strings.Contains(l.warnings(), "so a reload would put it live: "+r.conf) {
			t.Errorf("warned of %q", l.warnings())
		}
	})
	t.Run("nginx takes the reload and does not load", func(t *testing.T) {
		zone := func(key string) func(string) string {
			return func(conf string) string {
				return strings.Replace(conf, "access_log off;", "access_log off; limit_req_zone "+key+" zone=one:1m rate=100r/s;", 1)
			}
		}
		r, run, c, l := closed(t, zone("$binary_remote_addr"))
		// The generation that serves has the target down, and goes on with it:
		// that must not pass for being as before.
		r.write(strings.Replace(r.read(), "$binary_remote_addr", "$http_host", 1))
		_, _, err := run.close.undo(t.Context())
		if err == nil || !strings.Contains(err.Error(), "the files are as before, but nginx was not seen to load them") || !strings.Contains(err.Error(), "limit_req") {
			t.Errorf("got %v", err)
		}
		if !c.sent {
			t.Error("it is taken for loaded")
		}
		// Where nginx has not even loaded this run's own change, it has all along
		// what it had before.
		c.before = c.after
		c.sent = true
		if err := run.close.reloadBack(t.Context(), c); err != nil || !strings.Contains(l.warnings(), "it goes on with the one it had before this run") {
			t.Errorf("got %v, warned of %q", err, l.warnings())
		}
	})
}

// A closing knows what it has written, and writes nobody's file over.
func TestClosing(t *testing.T) {
	r := newRig(t)
	run, l := r.begun(Drain)
	h := &meddler{Host: r.clean()}
	run.close.lbs[0].lb.Host = h
	c := run.close.lbs[0]

	// Somebody writes between the reading and the writing, again and again.
	h.before = func() { r.write(r.read() + "# theirs\n") }
	run.req.Allow.Pending = true
	changed, _, err := run.close.forward(t.Context())
	if !errors.Is(err, remote.ErrChanged) || changed || len(c.written) > 0 || c.sent {
		t.Fatalf("changed %t, %v, %+v", changed, err, c)
	}
	if want := r.was + strings.Repeat("# theirs\n", rereads+1); r.read() != want {
		t.Fatalf("the file is\n%s", r.read())
	}
	// Once, and it is read again.
	r.write(r.was)
	r.reload()
	time.Sleep(apart)
	once := false
	h.before = func() {
		if !once {
			once = true
			r.write("# theirs\n" + r.read())
		}
	}
	changed, text, err := run.close.forward(t.Context())
	if err != nil || !changed || !strings.HasSuffix(text, ": down") || len(c.written) != 1 || !c.sent {
		t.Fatalf("changed %t %q, %v, %+v", changed, text, err, c)
	}
	if r.read() != "# theirs\n"+r.drained() {
		t.Fatalf("the file is\n%s", r.read())
	}
	if w := l.warnings(); !strings.Contains(w, "would put it live") {
		t.Errorf("warned of %q", w)
	}
	// What the journal says is there now is what is: one line of ours.
	ledger, err := ReadJournal(t.Context(), c.lb, run.req.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	mark := ledger.Mark(c.part.Servers[0])
	if len(ledger.Operations) != 1 || mark == nil || mark.Lines() != 1 {
		t.Fatalf("%d operations, and the mark %+v", len(ledger.Operations), mark)
	}
	if out := run.edits[len(run.edits)-1]; out.After != sha(r.read()) {
		t.Errorf("the last edit announced is %+v", out)
	}
	// The way back meets somebody's writing too.
	once = false
	if _, _, err := run.close.undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.read() != "# theirs\n# theirs\n"+r.was {
		t.Fatalf("the file is\n%s", r.read())
	}
}

// A meddler is a host on which somebody else is at work.
type meddler struct {
	remote.Host
	before func() // a replacement
}

func (m *meddler) Replace(ctx context.Context, path string, was, now []byte) error {
	m.before()
	return m.Host.Replace(ctx, path, was, now)
}

// A journal that cannot be written ends a run before anything is touched; one
// that is full later on ends it with everything taken back.
func TestJournalCannotBeWritten(t *testing.T) {
	r := newRig(t)
	req := r.request(Drain, r.clean())
	if err := os.MkdirAll(filepath.Join(r.stateDir(), "claims"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.stateDir(), "operations"), []byte("no directory"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := r.run(t.Context(), t.Context(), req)
	if err == nil || KindOf(err) == PartDone || !strings.Contains(err.Error(), "operations") || r.read() != r.was {
		t.Errorf("got %v, the file is\n%s", err, r.read())
	}
}
