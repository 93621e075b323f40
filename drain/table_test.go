package drain

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

func TestFates(t *testing.T) {
	late, bad, stuck := Verdict{Outcome: StepTimedOut}, Verdict{Outcome: StepError}, Verdict{Outcome: Irreversible}
	on := func(k spec.Kind, o spec.OnTimeout, f spec.OnFailure) spec.Spec {
		return spec.Spec{Kind: k, OnTimeout: o, Rollout: spec.Rollout{OnFailure: f}}
	}
	for _, test := range []struct {
		spec   spec.Spec
		phases []plan.Phase
		v      Verdict
		want   fate
	}{
		{on(spec.Drain, spec.TimeoutRollback, ""), plan.Paths[spec.Drain], Verdict{}, proceed},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureLeave), plan.Paths[spec.Run], Verdict{}, proceed},
		{on(spec.Drain, spec.TimeoutRollback, ""), []plan.Phase{plan.Draining}, late, rollBack},
		{on(spec.Drain, spec.TimeoutLeave, ""), []plan.Phase{plan.Draining}, late, leave},
		{on(spec.Drain, spec.TimeoutStop, ""), []plan.Phase{plan.Draining}, late, stopAnyway},
		{on(spec.Drain, spec.TimeoutStop, ""), plan.Paths[spec.Drain], bad, rollBack},
		{on(spec.Drain, spec.TimeoutLeave, ""), plan.Paths[spec.Drain], bad, rollBack},
		{on(spec.Drain, spec.TimeoutRollback, ""), []plan.Phase{plan.Stopping}, stuck, leave},
		{on(spec.Undrain, spec.TimeoutRollback, ""), plan.Paths[spec.Undrain], bad, rollBack},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureLeave), []plan.Phase{plan.Marking, plan.Draining, plan.Stopping}, bad, rollBack},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureLeave), []plan.Phase{plan.Draining}, late, rollBack},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureLeave), []plan.Phase{plan.Stopping}, stuck, rollBack},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureUndrain), []plan.Phase{plan.Working}, bad, rollBack},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureLeave), []plan.Phase{plan.Working}, bad, leave},
		{on(spec.Run, spec.TimeoutRollback, spec.FailureUndrain), []plan.Phase{plan.Starting, plan.Checking, plan.Clearing}, bad, leave},
	} {
		for _, p := range test.phases {
			if got := fateOf(test.spec, p, test.v); got != test.want {
				t.Errorf("%s, --on-timeout %s, --on-failure %s, %s, outcome %d: fate %d, want %d", test.spec.Kind, test.spec.OnTimeout, test.spec.Rollout.OnFailure, p, test.v.Outcome, got, test.want)
			}
		}
	}
}

// The way back leads through what was done, and nothing else.
func TestReverses(t *testing.T) {
	for _, test := range []struct {
		kind    spec.Kind
		reached plan.Phase
		touched bool
		unit    string
		want    []plan.Phase
	}{
		{spec.Drain, plan.Marking, false, "app", []plan.Phase{plan.Clearing}},
		{spec.Drain, plan.Stopping, false, "app", []plan.Phase{plan.Clearing}},
		{spec.Drain, plan.Stopping, true, "app", []plan.Phase{plan.Starting, plan.Checking, plan.Clearing}},
		{spec.Run, plan.Working, false, "", []plan.Phase{plan.Checking, plan.Clearing}},
		{spec.Run, plan.Working, false, "app", []plan.Phase{plan.Starting, plan.Checking, plan.Clearing}},
		{spec.Run, plan.Stopping, true, "app", []plan.Phase{plan.Starting, plan.Checking, plan.Clearing}},
		{spec.Undrain, plan.Starting, false, "app", nil},
		{spec.Undrain, plan.Starting, true, "app", []plan.Phase{plan.Draining, plan.Stopping}},
		{spec.Undrain, plan.Checking, true, "app", []plan.Phase{plan.Draining, plan.Stopping}},
		{spec.Undrain, plan.Clearing, true, "app", []plan.Phase{plan.Marking, plan.Draining, plan.Stopping}},
		{spec.Undrain, plan.Clearing, false, "", []plan.Phase{plan.Marking}},
	} {
		r := &row{Backend: &backend.Backend{}, reached: test.reached}
		if test.unit != "" {
			r.Units = []*backend.Unit{{Service: remote.Service{Unit: test.unit}, Touched: test.touched}}
		}
		var got []plan.Phase
		path := []plan.Phase{plan.Starting, plan.Checking, plan.Clearing}
		if test.kind == spec.Undrain {
			path = []plan.Phase{plan.Marking, plan.Draining, plan.Stopping}
		}
		for _, p := range path {
			if r.reverses(p) {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s that reached %s, touched %t, unit %q: %v, want %v", test.kind, test.reached, test.touched, test.unit, got, test.want)
		}
	}
}

// A backendOf is how one backend of an ending is.
type backendOf struct {
	end     End
	reached plan.Phase
	why     error
	stuck   error
	late    bool
}

func endingOf(k spec.Kind, err error, backends ...backendOf) ending {
	e := ending{spec: spec.Spec{Kind: k, Targets: []string{"10.0.0.1", "10.0.0.2"}}, id: journal.NewID(time.Now(), ""), begun: true, err: err}
	report := &balancer.Report{}
	for i, b := range backends {
		address := fmt.Sprintf("10.0.0.%d", i+1)
		r := &row{Backend: &backend.Backend{Name: address}, plan: plan.Backend{Name: address, Targets: []string{address}}, end: b.end, reached: b.reached, phase: b.reached, changed: b.reached > plan.NotBegun}
		if b.why != nil {
			r.why = failed(true, b.why)
			if b.late {
				r.why = Verdict{Outcome: StepTimedOut, Err: &backend.TimedOutError{Count: remote.Count{Open: 2}}}
			}
		}
		if b.stuck != nil {
			r.rollbackWhy = failed(true, b.stuck)
		}
		e.rows = append(e.rows, r)
		report.Servers = append(report.Servers, balancer.Server{Located: journal.Located{Server: keyed(address + ":80"), Down: true}, Name: "pool"})
	}
	e.lbs, e.seen = []plan.LBPlan{{LB: "lb1", Report: report}}, []seenLB{{report: report, loaded: true}}
	return e
}

func TestResults(t *testing.T) {
	bad := errors.New("bad")
	good, back := backendOf{end: done, reached: plan.Stopping}, backendOf{end: rolledBack, reached: plan.Stopping, why: bad}
	late := backendOf{end: rolledBack, reached: plan.Draining, why: bad, late: true}
	open := backendOf{end: notDrained, reached: plan.Draining, why: bad, late: true}
	stuck := backendOf{end: left, reached: plan.Stopping, why: bad}
	lost := backendOf{end: left, reached: plan.Stopping, why: bad, stuck: errors.New("worse")}
	refused := &balancer.Error{Code: balancer.CodeRefused, Message: "no", Override: "--yes"}
	for _, test := range []struct {
		name     string
		e        ending
		exit     spec.Exit
		result   journal.Result
		standing spec.Standing
		next     []string // the commands
	}{
		{"drained", endingOf(spec.Drain, nil, good, good), spec.Done, journal.ResultDone, "", nil},
		{"undrained", endingOf(spec.Undrain, nil, good), spec.Done, journal.ResultDone, "", nil},
		{"one rolled back alone, for want of time", endingOf(spec.Drain, nil, good, late), spec.TimedOut, journal.ResultDone, spec.Changed, []string{"undrain"}},
		{"one rolled back alone", endingOf(spec.Drain, nil, good, back), spec.Partial, journal.ResultDone, spec.Changed, []string{"undrain"}},
		{"all rolled back", endingOf(spec.Drain, nil, back, back), spec.Failed, journal.ResultRolledBack, spec.AsBefore, nil},
		{"all rolled back, for want of time", endingOf(spec.Drain, nil, late, late), spec.TimedOut, journal.ResultRolledBack, spec.AsBefore, nil},
		{"rolled back after Ctrl-C", endingOf(spec.Drain, spec.ErrInterrupted, backendOf{end: rolledBack, reached: plan.Draining, why: spec.ErrInterrupted}), spec.Interrupted, journal.ResultRolledBack, spec.AsBefore, nil},
		{"one left not drained", endingOf(spec.Drain, nil, good, open), spec.TimedOut, journal.ResultNotDrained, spec.Changed, []string{"resume", "undrain"}},
		{"stopped anyway", endingOf(spec.Drain, nil, backendOf{end: done, reached: plan.Stopping, why: bad, late: true}), spec.TimedOut, journal.ResultDone, spec.Changed, []string{"undrain"}},
		{"one does not stop", endingOf(spec.Drain, nil, stuck, good), spec.Partial, journal.ResultPartial, spec.Changed, []string{"resume"}},
		{"the rollback fails", endingOf(spec.Drain, bad, lost), spec.Partial, journal.ResultPartial, spec.Changed, []string{"undrain", "resume"}},
		{"the rollback of an undrain fails", endingOf(spec.Undrain, bad, lost), spec.Partial, journal.ResultPartial, spec.Changed, []string{"resume"}},
		{"the rollback of one fails, and another was rolled back", endingOf(spec.Drain, nil, back, lost), spec.Partial, journal.ResultPartial, spec.Changed, []string{"undrain", "resume"}},
		{"an LB refuses the first edit", endingOf(spec.Drain, refused, backendOf{end: rolledBack, why: refused}), spec.Refused, journal.ResultRolledBack, spec.Untouched, nil},
		{"an LB refuses, and another one was edited", endingOf(spec.Drain, refused, backendOf{end: rolledBack, reached: plan.Marking, why: refused}), spec.Failed, journal.ResultRolledBack, spec.AsBefore, nil},
		{"a run is done", endingOf(spec.Run, nil, good, good), spec.Done, journal.ResultDone, "", nil},
		{"a run ends early", endingOf(spec.Run, bad, good, backendOf{}), spec.Failed, journal.ResultPartial, spec.AllBack, []string{"resume"}},
		{"a run ends before it does anything", endingOf(spec.Run, bad, backendOf{}, backendOf{}), spec.Failed, journal.ResultRolledBack, spec.AllBack, nil},
		{"the gate is closed at first", endingOf(spec.Run, errGate, backendOf{}, backendOf{}), spec.Refused, journal.ResultRolledBack, spec.Untouched, nil},
		{"the gate is closed later", endingOf(spec.Run, errGate, good, backendOf{}), spec.Failed, journal.ResultPartial, spec.AllBack, []string{"resume"}},
		{"a run leaves one out", endingOf(spec.Run, nil, good, backendOf{end: left, reached: plan.Working, why: bad}), spec.Partial, journal.ResultPartial, spec.Changed, []string{"resume", "undrain"}},
		{"a run puts one back", endingOf(spec.Run, nil, good, back), spec.Failed, journal.ResultPartial, spec.AllBack, []string{"resume"}},
		{"a run is interrupted between two batches", endingOf(spec.Run, spec.ErrInterrupted, good, backendOf{}), spec.Interrupted, journal.ResultPartial, spec.AllBack, []string{"resume"}},
		{"a run is interrupted twice", endingOf(spec.Run, spec.ErrInterrupted, good, backendOf{reached: plan.Working}), spec.Partial, journal.ResultPartial, spec.Changed, []string{"resume", "undrain"}},
	} {
		r, err := resultOf(test.e)
		standing := spec.Standing("")
		if r.Stands != nil {
			standing = r.Stands.Standing
		}
		var next []string
		for _, c := range r.Next {
			next = append(next, c.Words[1])
		}
		if r.ExitCode != test.exit || r.Result != test.result || standing != test.standing || !slices.Equal(next, test.next) {
			t.Errorf("%s: exit %d, %q, %q, next %q; want %d, %q, %q, %q", test.name, r.ExitCode, r.Result, standing, next, test.exit, test.result, test.standing, test.next)
		}
		if (err == nil) != (test.exit == spec.Done) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if r, _ := resultOf(endingOf(spec.Drain, refused, backendOf{end: rolledBack, why: refused})); len(r.Findings) != 1 || r.Findings[0].Override != "--yes" {
		t.Errorf("the refusal is %+v", r.Findings)
	}
	if r, _ := resultOf(endingOf(spec.Drain, nil, good, open)); r.Stands.Open == nil || *r.Stands.Open != 2 || len(r.Backends) != 1 {
		t.Errorf("%+v, %+v", r.Stands, r.Backends)
	}
}

// The next commands are about what is left, and have the flags that say where it is.
func TestNextCommands(t *testing.T) {
	bad := errors.New("bad")
	good, out, late := backendOf{end: done, reached: plan.Stopping}, backendOf{end: left, reached: plan.Working, why: bad}, backendOf{end: notDrained, reached: plan.Draining, why: bad, late: true}
	back := backendOf{end: rolledBack, reached: plan.Draining, why: bad, late: true}
	lost := backendOf{end: left, reached: plan.Draining, why: bad, stuck: errors.New("worse")}
	const where = " --lb lb1 --lb lb2"
	for _, test := range []struct {
		name  string
		e     ending
		gone  int // LBs that could not be asked at the end
		next  []string
		while string // in the reasons
	}{
		{"one is not drained", endingOf(spec.Drain, nil, good, late), 0, []string{"drainctl resume ID" + where, "drainctl undrain 10.0.0.1 10.0.0.2 --upstream pool" + where}, ""},
		{"one was rolled back", endingOf(spec.Drain, nil, good, back), 0, []string{"drainctl undrain 10.0.0.1 --upstream pool" + where}, ""},
		{"one was rolled back, and a rollback failed", endingOf(spec.Drain, nil, back, lost), 0, []string{"drainctl undrain 10.0.0.2 --upstream pool" + where, "drainctl resume ID" + where}, ""},
		{"one undrain was rolled back", endingOf(spec.Undrain, nil, good, back), 0, []string{"drainctl undrain 10.0.0.1 10.0.0.2 --upstream pool" + where}, ""},
		{"a run leaves one out", endingOf(spec.Run, nil, good, out), 0, []string{"drainctl resume ID" + where, "drainctl undrain 10.0.0.2 --upstream pool" + where}, ""},
		{"an LB is gone", endingOf(spec.Run, nil, out, good), 1, []string{"drainctl resume ID" + where, "drainctl undrain 10.0.0.1 --upstream pool" + where}, "; with --skip-unreachable-lb 1 while lb1 cannot be reached"},
		{"all LBs are gone", endingOf(spec.Run, nil, out, good), 2, []string{"drainctl resume ID" + where, "drainctl undrain 10.0.0.1 --upstream pool" + where}, ""},
	} {
		e := test.e
		e.spec.LBs, e.spec.Upstreams, e.spec.Given = []string{"lb1", "lb2"}, []string{"pool"}, []string{"upstream", "timeout"}
		e.lbs, e.seen = append(e.lbs, plan.LBPlan{LB: "lb2", Report: e.lbs[0].Report}), append(e.seen, e.seen[0])
		for i := range test.gone {
			e.seen[i] = seenLB{err: bad}
		}
		r, _ := resultOf(e)
		var next []string
		for _, c := range r.Next {
			next = append(next, strings.Replace(c.String(), e.id, "ID", 1))
			if strings.Contains(c.Reason, "--skip-unreachable-lb") != (test.while != "") || !strings.HasSuffix(c.Reason, test.while) {
				t.Errorf("%s: the reason is %q", test.name, c.Reason)
			}
		}
		if !slices.Equal(next, test.next) {
			t.Errorf("%s: next %q, want %q", test.name, next, test.next)
		}
	}
}

// Whatever the table says: a resume is offered only where the journal has something to resume, and
// what is left in another state is never said to be as before.
func TestResultsAreTruthful(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	ends := []End{"", done, rolledBack, notDrained, left, skipped}
	for range 20_000 {
		k := []spec.Kind{spec.Drain, spec.Undrain, spec.Run}[random.IntN(3)]
		var all []backendOf
		for range 1 + random.IntN(3) {
			b := backendOf{end: ends[random.IntN(len(ends))], reached: plan.Paths[k][random.IntN(len(plan.Paths[k]))], late: random.IntN(2) == 0}
			if random.IntN(2) == 0 || b.end != done {
				b.why = errors.New("bad")
			}
			if b.end == left && random.IntN(2) == 0 {
				b.stuck = errors.New("worse")
			}
			all = append(all, b)
		}
		e := endingOf(k, nil, all...)
		r, _ := resultOf(e)
		isLeft := slices.ContainsFunc(e.rows, (*row).isPartial)
		unfinished := (&journal.Operation{Result: r.Result}).Unfinished()
		resumes := slices.ContainsFunc(r.Next, func(c spec.Command) bool { return c.Words[1] == "resume" })
		text, _ := json.Marshal(r)
		switch {
		case resumes && !unfinished:
			t.Fatalf("a resume is offered, and the journal has %q: %s", r.Result, text)
		case isLeft && (r.ExitCode != spec.Partial || r.Stands.Standing != spec.Changed || !unfinished):
			t.Fatalf("something is left: %s", text)
		case isLeft && len(r.Next) == 0:
			t.Fatalf("it is not said what to do next: %s", text)
		case r.ExitCode == spec.Done && slices.ContainsFunc(all, func(b backendOf) bool { return b.why != nil }):
			t.Fatalf("something failed: %s", text)
		}
	}
}

// A table that was written down is read as it was.
func TestTableSurvives(t *testing.T) {
	was := table{Steps: 3, Rows: []savedRow{{Backend: "a", Phase: plan.Draining, Reached: plan.Stopping, Active: true, Dependents: []string{"worker.service"}}, {Backend: "b", End: left}}}
	text, err := json.Marshal(was)
	if err != nil {
		t.Fatal(err)
	}
	var is table
	if err := json.Unmarshal(text, &is); err != nil || !reflect.DeepEqual(is, was) {
		t.Errorf("%s is read as %+v, %v", text, is, err)
	}
	if err := json.Unmarshal([]byte(`{"rows":[{"phase":"flying"}]}`), &is); err == nil {
		t.Error("a phase that is none")
	}
}

// An app that does not end in time after --on-timeout stop is told to end once, and the backend is
// named once. What is said to be next works.
func TestAppThatDoesNotEndAfterTheTimeout(t *testing.T) {
	p := newPool(t, 2)
	slow := p.apps[0]
	slow.open, slow.slow = 1, true
	sp := p.spec(spec.Drain)
	sp.Targets, sp.OnTimeout = sp.Targets[:2], spec.TimeoutStop
	shortenLimits(t, &sp, slow)
	text, err := spec.Settings{Timeout: 20 * time.Millisecond, StopTimeout: 20 * time.Millisecond}.Only("timeout", "stop-timeout")
	if err != nil {
		t.Fatal(err)
	}
	sp.PerBackend[slow.name] = text
	out := p.run(sp)
	out.ended(t, spec.Partial, spec.Changed, "has not ended within 20ms")
	out.truthful(p)
	if b := out.result.Backends; len(b) != 1 || b[0].Backend != slow.name {
		t.Errorf("the backends that ended otherwise: %+v", b)
	}
	slow.ending, slow.slow, slow.active, slow.open = false, false, false, 0
	resumed(p).ended(t, spec.Done, "", "")
	if !slices.Equal(p.lbs[0].out(), []string{p.apps[0].name + ":8080", p.apps[1].name + ":8080"}) {
		t.Errorf("out are %v", p.lbs[0].out())
	}
	p.putBack()
}

// Each step that is done was begun before, also on the way back, and what happens in it says which
// way it goes.
func TestStepsAreAnnounced(t *testing.T) {
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} {
		p := newPool(t, 2)
		sp := func(k spec.Kind) spec.Spec {
			s := p.spec(k)
			s.Targets = s.Targets[:2]
			return s
		}
		if k == spec.Undrain {
			p.run(sp(spec.Drain)).ended(t, spec.Done, "", "")
		}
		p.apps[1].noStop, p.apps[1].noStart = k != spec.Undrain, k == spec.Undrain
		out := p.run(sp(k))
		type step struct {
			name plan.StepName
			d    plan.Direction
		}
		begun, undone := map[step]int{}, 0
		for _, e := range eventsOf[event.Event](out.told) {
			h := e.Head()
			at := step{h.Step, h.Direction}
			switch e := e.(type) {
			case *event.StepStarted:
				begun[at]++
				if e.Rollback {
					undone++
				}
			case *event.StepDone:
				if begun[at]--; begun[at] < 0 {
					t.Errorf("%s: %v is done, and was not begun", k, at)
				}
			case *event.Edited, *event.Reloaded:
				if begun[at] < 1 {
					t.Errorf("%s: %s of %v, which was not begun", k, e.Head().Event, at)
				}
			}
		}
		if undone == 0 && k != spec.Undrain {
			t.Errorf("%s: no step of the rollback was announced", k)
		}
	}
}

// A backend that was rolled back is in no later step, nor in what the next command does.
func TestStepsAfterARollback(t *testing.T) {
	for _, k := range []spec.Kind{spec.Drain, spec.Run} {
		p := newPool(t, 2)
		sp := p.spec(k)
		if sp.Rollout.Batch, sp.Rollout.MaxFailures = "2", 1; k == spec.Drain {
			sp.Targets = sp.Targets[:2]
		}
		p.apps[0].open = 1
		shortenLimits(t, &sp, p.apps[0])
		out, restored, steps := p.run(sp), false, 0
		for _, e := range out.events {
			var names any = e.Head().Target
			switch e := e.(type) {
			case *event.StepStarted:
				names = e.Description
			case *event.StepDone:
				names = e.Detail
				restored = restored || e.Detail.Restored
			case *event.BatchStarted:
				names = e.Backends
			case *event.Result:
				continue
			}
			if !restored {
				continue
			}
			steps++
			if text, _ := json.Marshal(names); strings.Contains(string(text), p.apps[0].name) {
				t.Errorf("%s: %s names %s", k, e.Head().Event, text)
			}
		}
		if steps == 0 {
			t.Errorf("%s: no step came after the rollback", k)
		}
		for _, c := range out.result.Next {
			if slices.Contains(c.Words, p.apps[0].name) {
				t.Errorf("%s: next is %s", k, c)
			}
		}
	}
}

// The commands of a result hold no flag that another user wrote into a target or an ID.
func TestNextCommandsHoldNoFlagOfOthers(t *testing.T) {
	const good = "127.0.0.2"
	reader := spec.Default("")
	reader.Nginx.StateDir, reader.Given = "/reader", []string{"state-dir"}
	for _, bad := range []string{"--reload-command=x", "-x", "a b", "x\ny", "$(x)"} {
		e := ending{spec: reader, id: bad}
		undrain := e.undrain([]string{bad, good, bad}, "puts it back")
		if len(undrain) != 1 || undrain[0].String() != "drainctl undrain "+good+" --state-dir /reader" {
			t.Errorf("with %q: %q", bad, undrain)
		}
		if resume := e.resume("continues"); len(resume) > 0 {
			t.Errorf("with %q: %q", bad, resume)
		}
	}
}
