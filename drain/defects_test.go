package drain

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// broken is a run into one fault: of the first operation whose name has match in
// it.
func (r *rig) broken(sp spec.Spec, kind fault, match string) (*faulty, error) {
	r.t.Helper()
	f := &faulty{t: r.t, rig: r, kind: kind, match: match}
	err := f.run(sp)
	if f.what == "" {
		r.t.Fatalf("no operation %q: %v", match, err)
	}
	return f, err
}

// hold opens a connection to the app, and keeps it.
func (r *rig) hold() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.unit.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// status is the status of the target.
func (r *rig) status() status.ServerStatus {
	r.t.Helper()
	st, err := status.Read(r.t.Context(), r.spec(""), connector{r})
	if err != nil || len(st.LBs) != 1 || len(st.LBs[0].Servers) != 1 {
		r.t.Fatalf("%+v, %v", st, err)
	}
	return st.LBs[0].Servers[0]
}

// An undrain --force that crashed is resumed with the force: it clears what it
// was to clear. A plain undrain still refuses.
func TestResumeOfUndrainForce(t *testing.T) {
	for _, at := range []string{"call stage back", "replace ", "reload nginx"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.write(r.drained())
			r.reload()
			r.unit.stop()
			sp := r.spec(spec.Undrain)
			sp.Service, sp.Force = "app", true
			if _, err := r.broken(sp, faultBefore, at); err == nil {
				t.Fatal("the run has not noticed that it is dead")
			}
			if at == "call stage back" { // nothing is cleared yet
				if _, err := r.run(r.spec(spec.Undrain)); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), "marked down outside drainctl") {
					t.Errorf("undrain without --force: exit %d, %v", spec.ExitOf(err), err)
				}
			}
			resumed, err := Resumed(t.Context(), r.spec(""), "", Options{Connect: connector{r}})
			if err != nil {
				t.Fatal(err)
			}
			if resumed.Kind != spec.Undrain || !resumed.Force || resumed.Service != "app" {
				t.Errorf("resumed: %+v", resumed)
			}
			if _, err := r.run(resumed); err != nil {
				t.Fatal(err)
			}
			if r.read() != r.was || !r.unit.active() || !r.served()[r.unit.addr] {
				t.Errorf("after the resume the app is active: %t, and the configuration:\n%s", r.unit.active(), r.read())
			}
			if s := r.state(); len(s.Operations) > 0 {
				t.Errorf("left: %s", listOf(s.Operations))
			}
		})
	}
}

// Only servers that come back are asked for their health.
func TestUndrainOfAHostWithAPortThatStaysDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ip, _, _ := net.SplitHostPort(r.unit.addr)
	r.was = strings.Replace(r.was, "# the target", "# the target\n        server "+ip+":1 down;", 1)
	r.write(r.was)
	r.reload()
	host := func(k spec.Kind) spec.Spec {
		s := r.spec(k)
		s.Targets, s.MinUp, s.HealthTimeout = []string{ip}, 0, 2*time.Second
		return s
	}
	if _, err := r.run(host(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(r.read(), " down;"); n != 3 {
		t.Fatalf("%d servers are down:\n%s", n, r.read())
	}
	l, err := r.run(host(spec.Undrain))
	if err != nil || r.read() != r.was || !r.unit.active() {
		t.Fatalf("%v, and the configuration:\n%s", err, r.read())
	}
	done := eventsOf[*event.StepDone](l)
	if stay := done[len(done)-1].Detail.StayDown; !slices.Equal(stay, []string{ip + ":1 in app"}) {
		t.Errorf("stays down: %q", stay)
	}
}

// A stop that fails after --on-timeout stop is rolled back with the health wait.
func TestStopThatFailsAfterTheTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.hold()
	r.unit.stopFail = "Job for app.service failed."
	sp := r.spec(spec.Drain)
	sp.OnTimeout, sp.Timeout = spec.TimeoutStop, 100*time.Millisecond
	l, err := r.run(sp)
	var f *spec.Failure
	if !errors.As(err, &f) || f.Exit != spec.Failed || f.Stands.Standing != spec.AsBefore || !strings.Contains(err.Error(), "Job for app.service failed.") {
		t.Fatalf("exit %d: %v", spec.ExitOf(err), err)
	}
	if len(eventsOf[*event.StoppingAnyway](l)) != 1 || len(eventsOf[*event.RollingBack](l)) != 1 {
		t.Error("not told of the stop, or of the rollback")
	}
	if n := len(eventsOf[*event.HealthChecked](l)); n != healthChecks {
		t.Errorf("%d health checks before the server came back", n)
	}
	if r.read() != r.was || !r.unit.active() {
		t.Errorf("the app is active: %t, and the configuration:\n%s", r.unit.active(), r.read())
	}
}

// An undrain counts as the drain did, and so does its rollback.
func TestUndrainCountsAsTheDrainDid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	sp := r.spec(spec.Drain)
	sp.Counter, sp.Threshold, sp.Interval = spec.CounterLB, 7, 123*time.Millisecond
	if _, err := r.run(sp); err != nil {
		t.Fatal(err)
	}
	f, err := r.broken(r.spec(spec.Undrain), faultFail, "reload nginx")
	if spec.ExitOf(err) != spec.Failed || r.unit.active() || r.read() != r.drained() {
		t.Fatalf("exit %d (%v), active %t:\n%s", spec.ExitOf(err), err, r.unit.active(), r.read())
	}
	readings := eventsOf[*event.Waiting](&f.told)
	if len(readings) == 0 || readings[0].Threshold != 7 {
		t.Errorf("the rollback waited with %+v", readings)
	}
	op, err := Prepare(t.Context(), r.spec(spec.Undrain), Options{Connect: connector{r}, Emit: valid})
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	if s := op.Plan().Spec; s.Counter != spec.CounterLB || s.Threshold != 7 || s.Interval != sp.Interval || s.Service != "app" {
		t.Errorf("the undrain's own: %+v", s)
	}
	if _, ok := op.whole.rows[0].Counter.(lbCounter); !ok {
		t.Errorf("it counts with %T", op.whole.rows[0].Counter)
	}
}

// What was interrupted before it had begun leaves nothing behind.
func TestInterruptedBeforeItBegan(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	check := func(what string, err error, exit spec.Exit) {
		t.Helper()
		var f *spec.Failure
		if !errors.As(err, &f) || f.Exit != exit || f.Stands.Standing != spec.Untouched {
			t.Errorf("%s: exit %d, %v", what, spec.ExitOf(err), err)
		}
		entries, unreadable, err := status.ReadHistory(t.Context(), r.spec(""), connector{r})
		if err != nil || len(entries) > 0 || len(unreadable) > 0 {
			t.Errorf("%s: the history has %+v, unreadable %q, %v", what, entries, unreadable, err)
		}
		if s := r.state(); len(s.Operations) > 0 || r.read() != r.was || !r.unit.active() {
			t.Errorf("%s: left %s", what, listOf(s.Operations))
		}
	}
	for _, at := range []string{"call lock", "call begin", "journal: begin", "journal: new history"} {
		_, err := r.broken(r.spec(spec.Drain), faultHang, at)
		check(at+" hangs", err, spec.Interrupted)
	}
	for _, at := range []string{"journal: begin", "journal: new history"} {
		_, err := r.broken(r.spec(spec.Drain), faultFail, at)
		check(at+" fails", err, spec.Failed)
	}
	// Ctrl-C between the checks and the beginning.
	soft, interrupt := context.WithCancelCause(t.Context())
	op, err := Prepare(soft, r.spec(spec.Drain), Options{Connect: connector{r}, Emit: valid})
	if err != nil {
		t.Fatal(err)
	}
	interrupt(spec.ErrInterrupted)
	err = op.Run(t.Context(), soft)
	op.Close()
	check("interrupted in between", err, spec.Interrupted)
}

// Only a signal is an interrupt: an LB that is lost while the operation begins is a failure.
func TestLostLinkIsNoInterrupt(t *testing.T) {
	t.Parallel()
	for range 20 { // the loss may be noticed before the call has failed, or after
		p := newPool(t, 2)
		p.fault = poolFault{who: "lb1", call: "begin", kind: lbGone}
		sp := p.spec(spec.Drain)
		sp.Targets = sp.Targets[:1]
		p.run(sp).ended(t, spec.Failed, spec.Untouched, "broke")
	}
}

// Who waits for another operator's lock plans with what stands when that one has
// ended.
func TestWaitForALockPlansAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.run(r.spec(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	first, err := Prepare(ctx, r.spec(spec.Undrain), Options{Connect: connector{r}, Emit: valid, bounds: shortBounds})
	if err != nil {
		t.Fatal(err)
	}
	waits, ended := make(chan *event.LockAwaited, 1), make(chan error, 1)
	second := r.spec(spec.Drain)
	second.Wait = true
	var accepted *plan.Plan
	accept := func(p *plan.Plan) error { accepted = p; return nil }
	go func() {
		ended <- run(ctx, ctx, second, Options{Connect: connector{r}, bounds: shortBounds, Accept: accept, Emit: func(e event.Event) {
			if e, ok := e.(*event.LockAwaited); ok {
				waits <- e
			}
		}})
	}()
	select {
	case e := <-waits:
		if e.Holder == nil || e.Holder.Kind != string(spec.Undrain) || e.Holder.User != "tester" {
			t.Errorf("waits for %+v", e.Holder)
		}
	case err := <-ended:
		t.Fatalf("it has not waited: %v", err)
	}
	if err := first.Run(ctx, ctx); err != nil {
		t.Fatal(err)
	}
	if r.read() != r.was || !r.unit.active() {
		t.Fatalf("the undrain has left\n%s", r.read())
	}
	first.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if accepted.Unchanged() || accepted.LBs[0].Report.Servers[0].Down {
		t.Error("it has planned with what it had read before")
	}
	if r.read() != r.drained() || r.unit.active() {
		t.Errorf("the drain that waited has left the app active: %t, and\n%s", r.unit.active(), r.read())
	}
}

// Who holds a lock is told from the moment it is held, before there is an
// operation of theirs in the journal; and it is not the author of an earlier one
// that crashed.
func TestLockTellsItsHolder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	crashed := r.spec(spec.Drain)
	crashed.User = "bob"
	if _, err := r.broken(crashed, faultBefore, "call stage out"); err == nil {
		t.Fatal("bob's has not crashed")
	}
	ann := r.spec(spec.Drain)
	ann.User, ann.Host, ann.Reason = "ann", "desk", "new kernel"
	op, err := Prepare(t.Context(), ann, Options{Connect: connector{r}, Emit: valid})
	if err != nil {
		t.Fatal(err)
	}
	defer op.Close()
	eve := r.spec(spec.Undrain)
	eve.User = "eve"
	_, err = r.run(eve)
	ip, _, _ := net.SplitHostPort(r.unit.addr)
	var refusal *spec.Refusal
	if spec.ExitOf(err) != spec.Refused || !errors.As(err, &refusal) || refusal.Findings[0].Override != "--wait" {
		t.Fatalf("exit %d: %v", spec.ExitOf(err), err)
	}
	for _, says := range []string{ip + " is locked by drain " + r.unit.addr + " by ann on desk, ", `, "new kernel"`, "(operation " + op.id + ")"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q, want %q in it", err, says)
		}
	}
	if strings.Contains(err.Error(), "bob") {
		t.Errorf("%q names the author of the one that crashed", err)
	}
}

// A server whose lock is held is not simply up, although nothing was touched yet.
func TestStatusWhileItIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, test := range []struct {
		kind       spec.Kind
		during, at status.State
	}{{spec.Drain, status.StateDraining, status.StateUp}, {spec.Undrain, status.StateUndraining, status.StateDrained}} {
		if test.kind == spec.Undrain {
			if _, err := r.run(r.spec(spec.Drain)); err != nil {
				t.Fatal(err)
			}
		}
		if s := r.status(); s.State != test.at || s.Holder != nil {
			t.Errorf("before the %s: %q, held by %+v", test.kind, s.State, s.Holder)
		}
		op, err := Prepare(t.Context(), r.spec(test.kind), Options{Connect: connector{r}, Emit: valid})
		if err != nil {
			t.Fatal(err)
		}
		if s := r.status(); s.State != test.during || s.Holder == nil || s.Holder.User != "tester" || s.Holder.ID != op.id {
			t.Errorf("while the %s checks: %q, held by %+v", test.kind, s.State, s.Holder)
		}
		op.Close()
		if s := r.status(); s.State != test.at || s.Holder != nil {
			t.Errorf("after it was given up: %q, held by %+v", s.State, s.Holder)
		}
	}
}

// What --on-timeout leave leaves is a state of its own: down, not drained, the
// app running, with the count. One resume, or one undrain, goes on from there.
func TestOnTimeoutLeave(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	held := r.hold()
	sp := r.spec(spec.Drain)
	sp.OnTimeout, sp.Timeout = spec.TimeoutLeave, 100*time.Millisecond
	_, err := r.run(sp)
	var f *spec.Failure
	if !errors.As(err, &f) || f.Exit != spec.TimedOut || f.Stands.Standing != spec.Changed || f.Stands.Open == nil || *f.Stands.Open != 1 {
		t.Fatalf("exit %d, %+v", spec.ExitOf(err), f)
	}
	if lb := f.Stands.LBs[0]; !lb.Down || !lb.Edited || !lb.Loaded {
		t.Errorf("stands: %+v", lb)
	}
	if s := f.Stands.Services[0]; s.Touched {
		t.Errorf("stands: %+v", s)
	}
	if r.read() != r.drained() || !r.unit.active() {
		t.Fatalf("the app is active: %t, and the configuration:\n%s", r.unit.active(), r.read())
	}
	s := r.status()
	if s.State != status.StateNotDrained || s.Operation == nil || s.Operation.Open != 1 || s.Operation.Result != journal.ResultNotDrained {
		t.Errorf("status %q, %+v", s.State, s.Operation)
	}
	if len(s.Next) != 2 || s.Next[0].Words[1] != "resume" || s.Next[1].Words[1] != "undrain" {
		t.Errorf("next: %+v", s.Next)
	}
	entries, _, err := status.ReadHistory(t.Context(), r.spec(""), connector{r})
	if err != nil || len(entries) != 1 || entries[0].Ended == nil || entries[0].Ended.Result != journal.ResultNotDrained || *entries[0].Ended.Stands.Open != 1 {
		t.Fatalf("history %+v, %v", entries, err)
	}
	held.Close()
	resumed, err := Resumed(t.Context(), r.spec(""), "", Options{Connect: connector{r}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.run(resumed); err != nil || r.unit.active() || r.read() != r.drained() {
		t.Fatalf("resume: %v, active %t", err, r.unit.active())
	}
	if s := r.status(); s.State != status.StateDrained {
		t.Errorf("status %q", s.State)
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil || !r.unit.active() || r.read() != r.was {
		t.Fatalf("undrain: %v, active %t", err, r.unit.active())
	}
	// And straight back.
	held = r.hold()
	if _, err = r.run(sp); spec.ExitOf(err) != spec.TimedOut {
		t.Fatal(err)
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil || !r.unit.active() || r.read() != r.was || len(r.state().Operations) > 0 {
		t.Fatalf("undrain of what was left: %v, active %t", err, r.unit.active())
	}
	held.Close()
}

// The other ends of a timeout.
func TestOnTimeoutRollbackAndStop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.hold()
	sp := r.spec(spec.Drain)
	sp.Timeout = 100 * time.Millisecond
	_, err := r.run(sp)
	var f *spec.Failure
	if !errors.As(err, &f) || f.Exit != spec.TimedOut || f.Stands.Standing != spec.AsBefore || r.read() != r.was || !r.unit.active() {
		t.Fatalf("rollback: exit %d, %+v, active %t", spec.ExitOf(err), f, r.unit.active())
	}
	sp.OnTimeout = spec.TimeoutStop
	if _, err = r.run(sp); !errors.As(err, &f) || f.Exit != spec.TimedOut || r.read() != r.drained() || r.unit.active() {
		t.Fatalf("stop: exit %d, %+v, active %t", spec.ExitOf(err), f, r.unit.active())
	}
	if s := r.status(); s.State != status.StateDrained {
		t.Errorf("status %q", s.State)
	}
}

// Repeating what took effect changes nothing, and a journal that cannot be
// written ends a run before anything is touched.
func TestRepeatedAndUnwritable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain} {
		if _, err := r.run(r.spec(k)); err != nil {
			t.Fatal(err)
		}
		before := r.workers()
		l, err := r.run(r.spec(k))
		if err != nil || !slices.Equal(before, r.workers()) || len(eventsOf[*event.Edited](l)) > 0 {
			t.Errorf("%s again: %v", k, err)
		}
		for _, e := range eventsOf[*event.StepDone](l) {
			if e.Changed {
				t.Errorf("%s again changed something: %+v", k, e)
			}
		}
	}
	if err := os.RemoveAll(filepath.Join(r.stateDir(), "history")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.stateDir(), "history"), []byte("no directory"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := r.run(r.spec(spec.Drain))
	if err == nil || spec.ExitOf(err) == spec.Partial || !strings.Contains(err.Error(), "history") || r.read() != r.was || !r.unit.active() {
		t.Errorf("exit %d, %v, the file is\n%s", spec.ExitOf(err), err, r.read())
	}
	if s := r.state(); len(s.Operations) > 0 {
		t.Errorf("left %s", listOf(s.Operations))
	}
}
