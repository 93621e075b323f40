package drain

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

func TestFates(t *testing.T) {
	late, bad, stuck := Verdict{Outcome: StepTimedOut}, Verdict{Outcome: StepError}, Verdict{Outcome: Irreversible}
	on := func(k Kind, o OnTimeout, f OnFailure) Spec {
		return Spec{Kind: k, OnTimeout: o, Rollout: Rollout{OnFailure: f}}
	}
	for _, test := range []struct {
		spec   Spec
		phases []Phase
		v      Verdict
		want   fate
	}{
		{on(Drain, TimeoutRollback, ""), paths[Drain], Verdict{}, proceed},
		{on(Run, TimeoutRollback, FailureLeave), paths[Run], Verdict{}, proceed},
		{on(Drain, TimeoutRollback, ""), []Phase{draining}, late, rollBack},
		{on(Drain, TimeoutLeave, ""), []Phase{draining}, late, leave},
		{on(Drain, TimeoutStop, ""), []Phase{draining}, late, stopAnyway},
		{on(Drain, TimeoutStop, ""), paths[Drain], bad, rollBack},
		{on(Drain, TimeoutLeave, ""), paths[Drain], bad, rollBack},
		{on(Drain, TimeoutRollback, ""), []Phase{stopping}, stuck, leave},
		{on(Undrain, TimeoutRollback, ""), paths[Undrain], bad, rollBack},
		{on(Run, TimeoutRollback, FailureLeave), []Phase{marking, draining, stopping}, bad, rollBack},
		{on(Run, TimeoutRollback, FailureLeave), []Phase{draining}, late, rollBack},
		{on(Run, TimeoutRollback, FailureLeave), []Phase{stopping}, stuck, rollBack},
		{on(Run, TimeoutRollback, FailureUndrain), []Phase{working}, bad, rollBack},
		{on(Run, TimeoutRollback, FailureLeave), []Phase{working}, bad, leave},
		{on(Run, TimeoutRollback, FailureUndrain), []Phase{starting, checking, clearing}, bad, leave},
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
		kind    Kind
		reached Phase
		touched bool
		unit    string
		want    []Phase
	}{
		{Drain, marking, false, "app", []Phase{clearing}},
		{Drain, stopping, false, "app", []Phase{clearing}},
		{Drain, stopping, true, "app", []Phase{starting, checking, clearing}},
		{Run, working, false, "", []Phase{checking, clearing}},
		{Run, working, false, "app", []Phase{starting, checking, clearing}},
		{Run, stopping, true, "app", []Phase{starting, checking, clearing}},
		{Undrain, starting, false, "app", nil},
		{Undrain, starting, true, "app", []Phase{draining, stopping}},
		{Undrain, checking, true, "app", []Phase{draining, stopping}},
		{Undrain, clearing, true, "app", []Phase{marking, draining, stopping}},
		{Undrain, clearing, false, "", []Phase{marking}},
	} {
		r := &row{Backend: &backend.Backend{Touched: test.touched, Service: remote.Service{Unit: test.unit}}, reached: test.reached}
		var got []Phase
		path := []Phase{starting, checking, clearing}
		if test.kind == Undrain {
			path = []Phase{marking, draining, stopping}
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
	reached Phase
	why     error
	stuck   error
	late    bool
}

func endingOf(k Kind, err error, backends ...backendOf) ending {
	e := ending{spec: Spec{Kind: k, Targets: []string{"10.0.0.1", "10.0.0.2"}}, id: journal.NewID(time.Now(), ""), begun: true, err: err}
	report := &balancer.Report{}
	for i, b := range backends {
		address := fmt.Sprintf("10.0.0.%d", i+1)
		r := &row{Backend: &backend.Backend{Name: address}, plan: Backend{Name: address, Targets: []string{address}}, end: b.end, reached: b.reached, phase: b.reached, changed: b.reached > waiting}
		if b.why != nil {
			r.why = failed(true, b.why)
			if b.late {
				r.why = Verdict{Outcome: StepTimedOut, Err: &backend.TimedOutError{Count: remote.Count{Open: 2}}}
			}
		}
		if b.stuck != nil {
			r.stuck = failed(true, b.stuck)
		}
		e.rows = append(e.rows, r)
		report.Servers = append(report.Servers, balancer.Server{Server: keyed(address + ":80"), Name: "pool", Down: true})
	}
	e.lbs, e.seen = []LBPlan{{LB: "lb1", Report: report}}, []seenLB{{report: report, loaded: true}}
	return e
}

func TestResults(t *testing.T) {
	bad := errors.New("bad")
	done, back := backendOf{end: ended, reached: stopping}, backendOf{end: rolledBack, reached: stopping, why: bad}
	late := backendOf{end: rolledBack, reached: draining, why: bad, late: true}
	open := backendOf{end: notDrained, reached: draining, why: bad, late: true}
	stuck := backendOf{end: left, reached: stopping, why: bad}
	lost := backendOf{end: left, reached: stopping, why: bad, stuck: errors.New("worse")}
	refused := &balancer.Error{Code: balancer.CodeRefused, Message: "no", Override: "--yes"}
	for _, test := range []struct {
		name     string
		e        ending
		exit     Exit
		result   journal.Result
		standing Standing
		next     []string // the commands
	}{
		{"drained", endingOf(Drain, nil, done, done), Done, journal.ResultDone, "", nil},
		{"undrained", endingOf(Undrain, nil, done), Done, journal.ResultDone, "", nil},
		{"one rolled back alone, for want of time", endingOf(Drain, nil, done, late), TimedOut, journal.ResultDone, Changed, []string{"undrain"}},
		{"one rolled back alone", endingOf(Drain, nil, done, back), Partial, journal.ResultDone, Changed, []string{"undrain"}},
		{"all rolled back", endingOf(Drain, nil, back, back), Failed, journal.ResultRolledBack, AsBefore, nil},
		{"all rolled back, for want of time", endingOf(Drain, nil, late, late), TimedOut, journal.ResultRolledBack, AsBefore, nil},
		{"rolled back after Ctrl-C", endingOf(Drain, ErrInterrupted, backendOf{end: rolledBack, reached: draining, why: ErrInterrupted}), Interrupted, journal.ResultRolledBack, AsBefore, nil},
		{"one left not drained", endingOf(Drain, nil, done, open), TimedOut, journal.ResultNotDrained, Changed, []string{"resume", "undrain"}},
		{"stopped anyway", endingOf(Drain, nil, backendOf{end: ended, reached: stopping, why: bad, late: true}), TimedOut, journal.ResultDone, Changed, []string{"undrain"}},
		{"one does not stop", endingOf(Drain, nil, stuck, done), Partial, journal.ResultPartial, Changed, []string{"resume"}},
		{"the rollback fails", endingOf(Drain, bad, lost), Partial, journal.ResultPartial, Changed, []string{"undrain", "resume"}},
		{"the rollback of an undrain fails", endingOf(Undrain, bad, lost), Partial, journal.ResultPartial, Changed, []string{"resume"}},
		{"the rollback of one fails, and another was rolled back", endingOf(Drain, nil, back, lost), Partial, journal.ResultPartial, Changed, []string{"undrain", "resume"}},
		{"an LB refuses the first edit", endingOf(Drain, refused, backendOf{end: rolledBack, why: refused}), Refused, journal.ResultRolledBack, Untouched, nil},
		{"an LB refuses, and another one was edited", endingOf(Drain, refused, backendOf{end: rolledBack, reached: marking, why: refused}), Failed, journal.ResultRolledBack, AsBefore, nil},
		{"a run is done", endingOf(Run, nil, done, done), Done, journal.ResultDone, "", nil},
		{"a run ends early", endingOf(Run, bad, done, backendOf{}), Failed, journal.ResultPartial, AllBack, []string{"resume"}},
		{"a run ends before it does anything", endingOf(Run, bad, backendOf{}, backendOf{}), Failed, journal.ResultRolledBack, AllBack, nil},
		{"the gate is closed at first", endingOf(Run, errGate, backendOf{}, backendOf{}), Refused, journal.ResultRolledBack, Untouched, nil},
		{"the gate is closed later", endingOf(Run, errGate, done, backendOf{}), Failed, journal.ResultPartial, AllBack, []string{"resume"}},
		{"a run leaves one out", endingOf(Run, nil, done, backendOf{end: left, reached: working, why: bad}), Partial, journal.ResultPartial, Changed, []string{"resume", "undrain"}},
		{"a run puts one back", endingOf(Run, nil, done, back), Failed, journal.ResultPartial, AllBack, []string{"resume"}},
		{"a run is interrupted between two batches", endingOf(Run, ErrInterrupted, done, backendOf{}), Interrupted, journal.ResultPartial, AllBack, []string{"resume"}},
		{"a run is interrupted twice", endingOf(Run, ErrInterrupted, done, backendOf{reached: working}), Partial, journal.ResultPartial, Changed, []string{"resume", "undrain"}},
	} {
		r, err := resultOf(test.e)
		standing := Standing("")
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
		if (err == nil) != (test.exit == Done) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if r, _ := resultOf(endingOf(Drain, refused, backendOf{end: rolledBack, why: refused})); len(r.Findings) != 1 || r.Findings[0].Override != "--yes" {
		t.Errorf("the refusal is %+v", r.Findings)
	}
	if r, _ := resultOf(endingOf(Drain, nil, done, open)); r.Stands.Open == nil || *r.Stands.Open != 2 || len(r.Backends) != 1 {
		t.Errorf("%+v, %+v", r.Stands, r.Backends)
	}
}

// Whatever the table says: a resume is offered only where the journal has something to resume, and
// what is left in another state is never said to be as before.
func TestResultsAreTruthful(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	ends := []End{"", ended, rolledBack, notDrained, left, skipped}
	for range 20_000 {
		k := []Kind{Drain, Undrain, Run}[random.IntN(3)]
		var all []backendOf
		for range 1 + random.IntN(3) {
			b := backendOf{end: ends[random.IntN(len(ends))], reached: paths[k][random.IntN(len(paths[k]))], late: random.IntN(2) == 0}
			if random.IntN(2) == 0 || b.end != ended {
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
		resumes := slices.ContainsFunc(r.Next, func(c Command) bool { return c.Words[1] == "resume" })
		text, _ := json.Marshal(r)
		switch {
		case resumes && !unfinished:
			t.Fatalf("a resume is offered, and the journal has %q: %s", r.Result, text)
		case isLeft && (r.ExitCode != Partial || r.Stands.Standing != Changed || !unfinished):
			t.Fatalf("something is left: %s", text)
		case isLeft && len(r.Next) == 0:
			t.Fatalf("it is not said what to do next: %s", text)
		case r.ExitCode == Done && slices.ContainsFunc(all, func(b backendOf) bool { return b.why != nil }):
			t.Fatalf("something failed: %s", text)
		}
	}
}

// A table that was written down is read as it was.
func TestTableSurvives(t *testing.T) {
	was := table{Steps: 3, Rows: []savedRow{{Backend: "a", Phase: draining, Reached: stopping, Active: true}, {Backend: "b", End: left}}}
	text, err := json.Marshal(was)
	if err != nil {
		t.Fatal(err)
	}
	var is table
	if err := json.Unmarshal(text, &is); err != nil || !slices.Equal(is.Rows, was.Rows) || is.Steps != was.Steps {
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
	spec := p.spec(Drain)
	spec.Targets, spec.OnTimeout = spec.Targets[:2], TimeoutStop
	shortenLimits(t, &spec, slow)
	text, err := Settings{Timeout: 20 * time.Millisecond, StopTimeout: 20 * time.Millisecond}.Only("timeout", "stop-timeout")
	if err != nil {
		t.Fatal(err)
	}
	spec.PerBackend[slow.name] = text
	out := p.run(spec)
	out.ended(t, Partial, Changed, "has not ended within 20ms")
	out.truthful(p)
	if b := out.result.Backends; len(b) != 1 || b[0].Backend != slow.name {
		t.Errorf("the backends that ended otherwise: %+v", b)
	}
	slow.ending, slow.slow, slow.active, slow.open = false, false, false, 0
	resumed(p).ended(t, Done, "", "")
	if !slices.Equal(p.lbs[0].out(), []string{p.apps[0].name + ":8080", p.apps[1].name + ":8080"}) {
		t.Errorf("out are %v", p.lbs[0].out())
	}
	p.putBack()
}

// Each step that is done was begun before, also on the way back, and what happens in it says which
// way it goes.
func TestStepsAreAnnounced(t *testing.T) {
	for _, k := range []Kind{Drain, Undrain, Run} {
		p := newPool(t, 2)
		spec := func(k Kind) Spec {
			s := p.spec(k)
			s.Targets = s.Targets[:2]
			return s
		}
		if k == Undrain {
			p.run(spec(Drain)).ended(t, Done, "", "")
		}
		p.apps[1].noStop, p.apps[1].noStart = k != Undrain, k == Undrain
		out := p.run(spec(k))
		type step struct {
			name StepName
			d    Direction
		}
		begun, undone := map[step]int{}, 0
		for _, e := range eventsOf[Event](out.told) {
			h := e.Head()
			at := step{h.Step, h.Direction}
			switch e := e.(type) {
			case *StepStarted:
				begun[at]++
				if e.Rollback {
					undone++
				}
			case *StepDone:
				if begun[at]--; begun[at] < 0 {
					t.Errorf("%s: %v is done, and was not begun", k, at)
				}
			case *Edited, *Reloaded:
				if begun[at] < 1 {
					t.Errorf("%s: %s of %v, which was not begun", k, e.Head().Event, at)
				}
			}
		}
		if undone == 0 && k != Undrain {
			t.Errorf("%s: no step of the rollback was announced", k)
		}
	}
}

// The commands of a result hold no flag that another user wrote into a target or an ID.
func TestNextCommandsHoldNoFlagOfOthers(t *testing.T) {
	const good = "127.0.0.2"
	reader := DefaultSpec("")
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
