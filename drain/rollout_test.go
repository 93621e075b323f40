package drain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

// worked has the work of a run write each backend into a file, and gives them.
func worked(t *testing.T, s *Spec) func() []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "worked")
	s.Rollout.Command = []string{"sh", "-c", `echo "$DRAINCTL_HOST" >>"$1"`, "sh", file}
	return func() []string {
		b, _ := os.ReadFile(file)
		return strings.Fields(string(b))
	}
}

// n batches cost n + 1 reloads on each LB; with a pause between them, 2n.
func TestRolloutReloads(t *testing.T) {
	for _, test := range []struct {
		apps    int
		batch   string
		pause   time.Duration
		reloads int
	}{
		{3, "1", 0, 4}, {3, "1", time.Millisecond, 6}, {5, "2", 0, 4}, {4, "50%", 0, 3}, {4, "10%", 0, 5}, {2, "1", 0, 3},
	} {
		p := newPool(t, 2, test.apps)
		spec := p.spec(Run)
		done := worked(t, &spec)
		spec.Rollout.Batch, spec.Rollout.Pause = test.batch, test.pause
		v := p.visit()
		if err := v.run(spec); err != nil {
			t.Fatal(err)
		}
		for _, lb := range p.lbs {
			if lb.reloads != test.reloads {
				t.Errorf("%+v: %d reloads on %s", test, lb.reloads, lb.name)
			}
		}
		got := done()
		slices.Sort(got)
		if !slices.Equal(got, p.hosts()) {
			t.Errorf("%+v: worked on %q", test, got)
		}
		p.allBack(fmt.Sprint(test))
	}
}

// What becomes of a run in which something fails, and of what it is told to do
// then.
func TestRolloutFails(t *testing.T) {
	const first, second, third = "192.168.1.10", "192.168.1.11", "192.168.1.12"
	fails := func(host string) func(*pool, *Spec) {
		return func(_ *pool, s *Spec) { s.Rollout.Command = []string{"sh", "-c", `test "$DRAINCTL_HOST" != ` + host} }
	}
	and := func(changes ...func(*pool, *Spec)) func(*pool, *Spec) {
		return func(p *pool, s *Spec) {
			for _, c := range changes {
				c(p, s)
			}
		}
	}
	gate := t.TempDir()
	rollout := func(change func(*Rollout)) func(*pool, *Spec) { return func(_ *pool, s *Spec) { change(&s.Rollout) } }
	for _, test := range []struct {
		name            string
		change          func(*pool, *Spec)
		exit            Exit
		result          journal.Result
		done, out, left []string
	}{
		{"the work, and it stays out", fails(second), Partial, journal.ResultPartial, []string{first}, []string{second}, []string{third}},
		{"the work, and it is put back", and(fails(second), rollout(func(r *Rollout) { r.OnFailure = FailureUndrain })), Failed, journal.ResultPartial, []string{first}, nil, []string{third}},
		{"the work of the first", fails(first), Partial, journal.ResultPartial, nil, []string{first}, []string{second, third}},
		{"one may fail", and(fails(second), rollout(func(r *Rollout) { r.MaxFailures = 1 })), Partial, journal.ResultPartial, []string{first, third}, []string{second}, nil},
		{"one of a batch", and(fails(first), rollout(func(r *Rollout) { r.Batch = "2" })), Partial, journal.ResultPartial, []string{second}, []string{first}, []string{third}},
		{"it is not drained in time", func(p *pool, _ *Spec) { p.apps[second].busy = 3 }, Failed, journal.ResultPartial, []string{first}, nil, []string{third}},
		{"one of a batch is not drained in time", and(func(p *pool, _ *Spec) { p.apps[first].busy = 3 }, rollout(func(r *Rollout) { r.Batch, r.MaxFailures = "2", 1 })), Failed, journal.ResultPartial, []string{second, third}, nil, nil},
		{"its service does not stop", func(p *pool, _ *Spec) { p.apps[second].stuck = true }, Failed, journal.ResultPartial, []string{first}, nil, []string{third}},
		{"it never gets healthy", func(p *pool, _ *Spec) { p.apps[second].ill = true }, Partial, journal.ResultPartial, []string{first}, []string{second}, []string{third}},
		{"the gate is closed", rollout(func(r *Rollout) { r.Gate = "false" }), Refused, journal.ResultRolledBack, nil, nil, []string{first, second, third}},
		{"the gate closes", func(_ *pool, s *Spec) { s.Rollout.Gate = "sh -c 'mkdir " + filepath.Join(gate, "closed") + "'" }, Failed, journal.ResultPartial, []string{first}, nil, []string{second, third}},
		{"a guard", func(p *pool, s *Spec) { s.Rollout.Batch, s.MinUp = "2", 2 }, Refused, "", nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2, 3)
			spec := p.spec(Run)
			test.change(p, &spec)
			p.shorten(&spec)
			v := p.visit()
			err := v.run(spec)
			if ExitOf(err) != test.exit {
				t.Fatalf("exit %d (%v), want %d", ExitOf(err), err, test.exit)
			}
			if out := p.out(); !slices.Equal(out, test.out) {
				t.Errorf("out of the pool: %q, want %q", out, test.out)
			}
			if test.result == "" {
				return
			}
			var f *Failure
			if errors.As(err, &f); test.exit == Partial && (f.Stands.Standing != Changed || len(f.Next) < 2) || test.exit == Failed && f.Stands.Standing != AllBack {
				t.Errorf("stands %+v, next %+v", f.Stands, f.Next)
			}
			r := v.result
			if r.Result != test.result || !slices.Equal(r.Done, test.done) || !slices.Equal(r.Untouched, test.left) {
				t.Errorf("result %q, done %q, left %q; want %q, %q, %q", r.Result, r.Done, r.Untouched, test.result, test.done, test.left)
			}
			for _, app := range p.apps {
				app.ill, app.stuck, app.busy = false, false, 0
			}
			p.undrain(test.name)
		})
	}
}

// A run that stopped is resumed: what is done is not done again, and in the end
// all is.
func TestRolloutResumed(t *testing.T) {
	p := newPool(t, 2, 3)
	spec := p.spec(Run)
	done := worked(t, &spec)
	p.apps["192.168.1.11"].ill = true
	p.shorten(&spec)
	if err := p.visit().run(spec); ExitOf(err) != Partial {
		t.Fatal(err)
	}
	p.apps["192.168.1.11"].ill = false
	v := p.visit()
	resumed, err := Resumed(t.Context(), p.spec(""), "", v)
	if err != nil {
		t.Fatal(err)
	}
	resumed.HealthTimeout = patience
	if err := v.run(resumed); err != nil {
		t.Fatal(err)
	}
	if got := done(); !slices.Equal(got, []string{"192.168.1.10", "192.168.1.11", "192.168.1.11", "192.168.1.12"}) {
		t.Errorf("worked on %q", got)
	}
	p.allBack("resumed")
}

// What somebody has taken out is no part of the run, and stays as it is; so does
// what --only-if says no to.
func TestRolloutSkips(t *testing.T) {
	p := newPool(t, 2, 4)
	theirs := p.spec(Drain)
	theirs.Targets, theirs.User = []string{"192.168.1.12"}, "bob"
	if err := p.visit().run(theirs); err != nil {
		t.Fatal(err)
	}
	p.lbs[0].down["192.168.1.13"+poolPort], p.lbs[1].down["192.168.1.13"+poolPort] = true, true
	p.lbs[0].loaded["192.168.1.13"+poolPort], p.lbs[1].loaded["192.168.1.13"+poolPort] = true, true
	spec := p.spec(Run)
	done := worked(t, &spec)
	spec.MinUp = 1
	v := p.visit()
	if err := v.run(spec); err != nil {
		t.Fatal(err)
	}
	if got := done(); !slices.Equal(got, []string{"192.168.1.10", "192.168.1.11"}) {
		t.Errorf("worked on %q", got)
	}
	if r := v.result; len(r.Skipped) != 2 || !strings.Contains(r.Skipped[0].Reason, "drained by bob") || !strings.Contains(r.Skipped[1].Reason, "outside drainctl") {
		t.Errorf("skipped %+v", r.Skipped)
	}
	if out := p.out(); !slices.Equal(out, []string{"192.168.1.12", "192.168.1.13"}) || p.apps["192.168.1.12"].active {
		t.Errorf("out of the pool: %q", out)
	}
	for _, lb := range p.lbs {
		if len(lb.state.Marks) != 1 || len(lb.state.Operations) != 1 || lb.state.Operations[0].User != "bob" {
			t.Errorf("the journal has %+v", lb.state)
		}
	}

	p = newPool(t, 1, 2)
	spec = p.spec(Run)
	done = worked(t, &spec)
	spec.Rollout.OnlyIf = "test -n {host}" // the fake says no to an odd number of characters
	p.apps["192.168.1.9"] = p.apps["192.168.1.10"]
	delete(p.apps, "192.168.1.10")
	spec.Targets = p.hosts()
	v = p.visit()
	if err := v.run(spec); err != nil {
		t.Fatal(err)
	}
	if r := v.result; len(r.Skipped) != 1 || len(r.Done) != 1 || !slices.Equal(done(), r.Done) || r.Done[0] == r.Skipped[0].Backend {
		t.Errorf("skipped %+v, done %q, worked on %q", r.Skipped, r.Done, done())
	}
}

// After the canary somebody is asked, or a time passes.
func TestRolloutCanary(t *testing.T) {
	for _, answer := range []bool{true, false} {
		p := newPool(t, 1, 3)
		spec := p.spec(Run)
		spec.Rollout.Canary, spec.Rollout.Batch = true, "2"
		v, asked := p.visit(), ""
		err := v.run(spec, func(o *Options) {
			o.Ask = func(_ context.Context, question string) (bool, error) {
				asked = question
				if out := p.out(); len(out) > 0 {
					t.Errorf("asked while %q are out", out)
				}
				return answer, nil
			}
		})
		if !strings.Contains(asked, "192.168.1.10 is done") || (err == nil) != answer {
			t.Errorf("asked %q: %v", asked, err)
		}
		if n := len(v.result.Done); n != map[bool]int{true: 3, false: 1}[answer] {
			t.Errorf("answer %t: %d done", answer, n)
		}
		p.undrain("canary")
	}
	p := newPool(t, 1, 2)
	spec := p.spec(Run)
	spec.Rollout.Canary, spec.Rollout.CanaryWait = true, time.Millisecond
	v := p.visit()
	if err := v.run(spec); err != nil || len(eventsOf[*Paused](&v.told)) != 1 || p.lbs[0].reloads != 4 {
		t.Errorf("%v, %d reloads", err, p.lbs[0].reloads)
	}
	p.allBack("canary wait")
}

// Ctrl-C ends a run when the batch under way is back in the pool.
func TestRolloutInterrupted(t *testing.T) {
	for name, when := range map[string]func(Event) bool{
		"in the wait": func(e Event) bool { w, ok := e.(*Waiting); return ok && w.Target == "192.168.1.11" },
		"in the work": func(e Event) bool {
			s, ok := e.(*StepStarted)
			return ok && s.Step == StepWork
		},
		"between two batches": func(e Event) bool { b, ok := e.(*BatchStarted); return ok && b.Number == 2 },
	} {
		p := newPool(t, 2, 3)
		spec := p.spec(Run)
		v := p.visit()
		soft, interrupt := context.WithCancelCause(t.Context())
		o := Options{Connect: v, bounds: shortBounds, Emit: func(e Event) {
			v.told.emit(e)
			if when(e) {
				interrupt(ErrInterrupted)
			}
		}}
		err := v.runWith(t.Context(), soft, spec, o)
		if ExitOf(err) != Interrupted || len(p.out()) > 0 || len(v.result.Done) != 1 {
			t.Errorf("%s: exit %d (%v), out %q, done %q", name, ExitOf(err), err, p.out(), v.result.Done)
		}
		resumed, err := Resumed(t.Context(), p.spec(""), "", v)
		if err == nil {
			err = v.run(resumed)
		}
		if err != nil || len(v.result.Done) != 3 {
			t.Errorf("%s, and resumed: %v, done %q", name, err, v.result.Done)
		}
		p.allBack(name)
	}
}

// Each call of a run fails once. Then no LB sends requests to an app that is
// stopped, what is said of it is true, and one undrain puts everything back.
func TestRolloutEveryCallFails(t *testing.T) {
	everyCall(t, func(p *pool, v *visit, err error, what string) {
		if out := p.out(); ExitOf(err) != Partial && len(out) > 0 {
			t.Errorf("%s: exit %d (%v), and %q are out", what, ExitOf(err), err, out)
		}
	}, false)
}

// The process is gone at each call of a run. One undrain puts everything back, or
// one resume does the rest: what was recorded as done is not done again.
func TestRolloutEveryCrash(t *testing.T) {
	everyCall(t, nil, true)
}

// everyCall runs into a fault at each call of a run, and mends what it left by an
// undrain, and by a resume where there is something to resume.
func everyCall(t *testing.T, holds func(*pool, *visit, error, string), crash bool) {
	clean := newPool(t, 2, 3).visit()
	if err := clean.run(clean.spec(Run)); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var cases atomic.Int32
	slots := make(chan struct{}, casesAtOnce)
	for at := range clean.calls {
		for _, by := range []string{"undrain", "resume"} {
			all.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				if oneCall(t, at+1, crash, by, holds) {
					cases.Add(1)
				}
			})
		}
	}
	all.Wait()
	t.Logf("%d cases of %d calls", cases.Load(), clean.calls)
}

// oneCall runs into one fault. It is false where the run came to its end before.
func oneCall(t *testing.T, at int, crash bool, by string, holds func(*pool, *visit, error, string)) bool {
	p := newPool(t, 2, 3)
	spec := p.spec(Run)
	done := worked(t, &spec)
	v := p.visit()
	v.at, v.crash = at, crash
	err := v.run(spec)
	if v.what == "" {
		return false
	}
	what := fmt.Sprintf("call %d (%s) fails, crash %t, exit %d (%v)", at, v.what, crash, ExitOf(err), err)
	recorded := map[string]bool{}
	resumable := false
	for _, lb := range p.lbs {
		lb.locked = false
		resumable = resumable || len(lb.state.Unfinished()) > 0
		for host, app := range p.apps {
			if !app.active && !lb.loaded[host+poolPort] {
				t.Errorf("%s: %s sends requests to %s, which is stopped", what, lb.name, host)
			}
		}
		for _, op := range lb.state.Operations {
			for _, host := range progressOf(op).Done {
				recorded[host] = true
			}
		}
	}
	if holds != nil {
		holds(p, v, err, what)
	}
	if by == "undrain" || !resumable {
		p.undrain(what)
		return true
	}
	before := len(done())
	v = p.visit()
	resumed, err := Resumed(t.Context(), p.spec(""), "", v)
	if err == nil {
		err = v.run(resumed)
	}
	if err != nil {
		t.Errorf("%s: resume: %v", what, err)
		return true
	}
	for _, host := range done()[before:] {
		if recorded[host] {
			t.Errorf("%s: resume has done %s again", what, host)
		}
	}
	if all := done(); !slices.Equal(slices.Compact(slices.Sorted(slices.Values(all))), p.hosts()) {
		t.Errorf("%s: worked on %q", what, all)
	}
	p.allBack(what + ", and a resume")
	return true
}

// Of several targets, one that fails is rolled back alone, and the rest goes on;
// with --together all of them are rolled back. The journal has what stands, and one
// undrain ends it.
func TestSeveralTargets(t *testing.T) {
	const good, bad = "192.168.1.10", "192.168.1.11"
	for _, test := range []struct {
		name   string
		kind   Kind
		change func(*poolApp, *Spec)
		exit   Exit
		out    []string // of the pool, in the end
	}{
		{"nothing fails", Drain, func(*poolApp, *Spec) {}, Done, []string{good, bad}},
		{"one is not drained in time", Drain, func(a *poolApp, _ *Spec) { a.busy = 2 }, TimedOut, []string{good}},
		{"one is not drained in time, and is left", Drain, func(a *poolApp, s *Spec) { a.busy, s.OnTimeout = 2, TimeoutLeave }, TimedOut, []string{good, bad}},
		{"one is not drained in time, and is stopped", Drain, func(a *poolApp, s *Spec) { a.busy, s.OnTimeout = 2, TimeoutStop }, TimedOut, []string{good, bad}},
		{"one does not stop", Drain, func(a *poolApp, _ *Spec) { a.stuck = true }, Partial, []string{good}},
		{"together, one is not drained in time", Drain, func(a *poolApp, s *Spec) { a.busy, s.Together = 2, true }, TimedOut, nil},
		{"together, one does not stop", Drain, func(a *poolApp, s *Spec) { a.stuck, s.Together = true, true }, Failed, nil},
		{"one is ill", Undrain, func(a *poolApp, _ *Spec) { a.ill = true }, Partial, []string{bad}},
		{"together, one is ill", Undrain, func(a *poolApp, s *Spec) { a.ill, s.Together = true, true }, Failed, []string{good, bad}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2, 3)
			spec := p.spec(test.kind)
			spec.Targets = []string{good, bad}
			if test.kind == Undrain {
				first := p.spec(Drain)
				first.Targets = spec.Targets
				if err := p.visit().run(first); err != nil {
					t.Fatal(err)
				}
			}
			app := p.apps[bad]
			test.change(app, &spec)
			p.shorten(&spec)
			v := p.visit()
			err := v.run(spec)
			if ExitOf(err) != test.exit || !slices.Equal(p.out(), test.out) {
				t.Fatalf("exit %d (%v), out of the pool %q; want %d, %q", ExitOf(err), err, p.out(), test.exit, test.out)
			}
			leave, stop := spec.OnTimeout == TimeoutLeave, spec.OnTimeout == TimeoutStop
			for host, app := range p.apps {
				out := slices.Contains(test.out, host)
				if wantActive := !out || leave && host == bad; app.active != wantActive {
					t.Errorf("the app on %s is active: %t", host, app.active)
				}
			}
			if one := len(v.result.Backends); one != 0 && (v.result.Backends[0].Backend != bad || err == nil) || one == 0 && len(test.out) == 1 {
				t.Errorf("backends that ended in another way: %+v", v.result.Backends)
			}
			for _, lb := range p.lbs {
				for _, host := range p.hosts() {
					marked := len(lb.state.MarksOn(journal.Server{Module: "http", Upstream: "pool", Address: host + poolPort})) > 0
					if marked != slices.Contains(test.out, host) {
						t.Errorf("%s in the journal of %s is marked: %t", host, lb.name, marked)
					}
				}
				if leave && (len(lb.state.Operations) != 1 || len(lb.state.Operations[0].NotDrained) != 1) {
					t.Errorf("left: %+v", lb.state.Operations)
				}
			}
			if (leave || stop) && v.result.Result == journal.ResultRolledBack {
				t.Errorf("result %q", v.result.Result)
			}
			app.busy, app.stuck, app.ill = 0, false, false
			p.undrain(test.name)
		})
	}
}
