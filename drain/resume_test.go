package drain

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// interrupted is an operation as the state has it, on a server of its own.
func interrupted(id string, k spec.Kind, target string, result journal.Result) journal.Operation {
	return journal.Operation{ID: id, Kind: string(k), Targets: []string{target}, User: "ann", Host: "desk", Result: result,
		Began: time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local), Spec: json.RawMessage(`{}`),
		Servers: []journal.Located{{Server: journal.Server{Module: "http", Upstream: "web", Address: target}}}}
}

func TestFindUnfinished(t *testing.T) {
	const a, b = "20260504-120000.000-aaaa", "20260504-120001.000-bbbb"
	one := []journal.Operation{interrupted(a, spec.Drain, "10.0.0.1:80", "")}
	two := append(slices.Clone(one), interrupted(b, spec.Undrain, "10.0.0.2:80", journal.ResultPartial))
	done := []journal.Operation{interrupted(a, spec.Drain, "10.0.0.1:80", journal.ResultDone)}
	left := []journal.Operation{interrupted(a, spec.Drain, "10.0.0.1:80", journal.ResultNotDrained)}
	continued := append(slices.Clone(one), interrupted(b, spec.Drain, "10.0.0.1:80", journal.ResultDone))
	again := append(slices.Clone(one), interrupted(b, spec.Drain, "10.0.0.1:80", ""))
	for _, test := range []struct {
		name string
		ops  []journal.Operation
		ask  string
		want string // ID, or what the error says
	}{
		{"the only one", one, "", a},
		{"by its ID", two, b, b},
		{"by its target", two, "10.0.0.1:80", a},
		{"by its target, written another way", []journal.Operation{interrupted(a, spec.Drain, "LocalHost:80", "")}, "localhost:80", a},
		{"left by --on-timeout leave", left, "", a},
		{"the latest on a server", again, "", b},
		{"which of two", two, "", "2 operations were interrupted\nhint: name one by its ID: " + a + " (drain 10.0.0.1:80 by ann on desk, 2026-05-04 12:00:00), " + b},
		{"none", nil, "", "no operation was interrupted"},
		{"done", done, "", "no operation was interrupted"},
		{"none of that name", one, "10.0.0.9", "no operation 10.0.0.9 was interrupted\nhint: there is " + a},
		{"none at all of that name", nil, a, "no operation " + a + " was interrupted, or another one has continued it"},
		{"continued by another", continued, a, "no operation " + a + " was interrupted, or another one has continued it"},
	} {
		op, err := spec.FindUnfinished(journal.State{Operations: test.ops}, test.ask)
		switch {
		case err == nil && op.ID != test.want:
			t.Errorf("%s: %s, want %s", test.name, op.ID, test.want)
		case err != nil && (spec.ExitOf(err) != spec.Usage || !strings.HasPrefix(err.Error(), test.want)):
			t.Errorf("%s: exit %d, %v; want %s", test.name, spec.ExitOf(err), err, test.want)
		}
	}
}

// A resume continues what nobody else has continued meanwhile.
func TestResumeOfWhatIsContinued(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.broken(r.spec(spec.Drain), faultBefore, "reload nginx"); err == nil {
		t.Fatal("the run has not noticed that it is dead")
	}
	resumed, err := Resumed(t.Context(), r.spec(""), r.unit.addr, Options{Connect: connector{r}})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.status(); s.State != status.StateInterrupted || s.Operation == nil || s.Operation.ID != resumed.Continues || s.Next[0].Words[1] != "resume" {
		t.Errorf("status %q, %+v", s.State, s.Next)
	}
	if _, err := r.run(resumed); err != nil || r.read() != r.drained() || r.unit.active() {
		t.Fatalf("resume: %v", err)
	}
	if s := r.state(); len(s.Operations) != 1 || s.Operations[0].ID != resumed.Continues || len(s.Marks) != 1 {
		t.Errorf("left %s, %d marks", listOf(s.Operations), len(s.Marks))
	}
	if _, err := r.run(resumed); spec.ExitOf(err) != spec.Usage || !strings.Contains(err.Error(), "or another one has continued it") {
		t.Errorf("resumed twice: exit %d, %v", spec.ExitOf(err), err)
	}
	if _, err := r.run(r.spec(spec.Undrain)); err != nil || r.read() != r.was || !r.unit.active() {
		t.Fatalf("undrain: %v", err)
	}
}

// An LB is lost in a drain and stays dead. The command that the drain prints resumes it on the other
// LB, and says once which one it leaves out; also when only the dead one has the operation.
func TestResumeWithoutDeadLB(t *testing.T) {
	t.Parallel()
	p := newPool(t, 2)
	dead := poolFault{who: "lb1", call: "connect", kind: linkBreaks}
	p.fault = poolFault{who: "lb1", call: "load", kind: lbGone}
	drain := p.firstOf(1, spec.Drain)
	drain.Service = "" // lb1 may still send requests to the app
	out := p.run(drain)
	out.ended(t, spec.Partial, spec.Changed, "")
	if !slices.ContainsFunc(out.result.Next, func(c spec.Command) bool {
		return c.Words[1] == "resume" && strings.Contains(c.Reason, "--skip-unreachable-lb 1 while lb1")
	}) {
		t.Fatalf("next: %+v", out.result.Next)
	}
	resume := func() (spec.Spec, *told, error) {
		l := &told{}
		sp := p.spec("")
		sp.SkipUnreachable = 1
		p.fault = dead
		sp, err := Resumed(t.Context(), sp, "", Options{Connect: p, Emit: l.emit})
		return sp, l, err
	}
	sp, before, err := resume()
	if err != nil {
		t.Fatal(err)
	}
	again := p.run(sp)
	again.ended(t, spec.Done, "", "")
	if skips := append(eventsOf[*event.LBSkipped](before), eventsOf[*event.LBSkipped](again.told)...); len(skips) != 1 || skips[0].LB != "lb1" {
		t.Errorf("left out: %+v", skips)
	}
	if got := p.lbs[0].out(); len(got) != 1 {
		t.Errorf("lb0 is without %v", got)
	}
	p.putBack()

	p.run(drain)
	p.lbs[0].state.Operations[0].Result, p.lbs[1].state.Operations[0].Result = journal.ResultDone, journal.ResultPartial
	_, only, err := resume()
	p.over()
	if skips := eventsOf[*event.LBSkipped](only); spec.ExitOf(err) != spec.Usage || len(skips) != 1 || skips[0].LB != "lb1" {
		t.Errorf("exit %d, %v; left out: %+v", spec.ExitOf(err), err, skips)
	}
}

// A stateLB has a journal.
type stateLB struct {
	balancer.Balancer
	caller journal.Recorder
	state  journal.State
}

func (s stateLB) Caller() journal.Recorder                     { return s.caller }
func (s stateLB) State(context.Context) (journal.State, error) { return s.state, nil }
func (stateLB) Close() error                                   { return nil }

// stateLBs are LBs by their names.
type stateLBs map[string]stateLB

func (s stateLBs) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	return s[name], nil
}

func (stateLBs) Backend(context.Context, plan.Backend) (remote.Host, error) { return nil, nil }

// Each LB says who recorded an operation: where one has it from another user, whichever, that
// user's settings need consent, and only root resumes it.
func TestResumeOfAnotherUsersOnOneLB(t *testing.T) {
	root, ann, bob := journal.Recorder{Name: "root"}, journal.Recorder{UID: 1001, Name: "ann"}, journal.Recorder{UID: 1002, Name: "bob"}
	for _, test := range []struct {
		caller  journal.Recorder
		consent bool
		says    string // the refusal; empty: it is resumed
	}{
		{root, false, "--service app"},
		{root, true, ""},
		{ann, true, "they can resume it, and root can"},
	} {
		for _, of := range []string{"lb1", "lb2"} {
			sp := spec.Default("")
			sp.LBs, sp.AsRecorded = []string{"lb1", "lb2"}, test.consent
			lbs := stateLBs{}
			for _, name := range sp.LBs {
				op := interrupted("20260504-120000.000-aaaa", spec.Drain, "10.0.0.1:80", "")
				op.Spec, op.Recorder = json.RawMessage(`{"service":"app"}`), &test.caller
				if name == of {
					op.Recorder = &bob
				}
				lbs[name] = stateLB{caller: test.caller, state: journal.State{Operations: []journal.Operation{op}}}
			}
			got, err := Resumed(t.Context(), sp, "", Options{Connect: lbs})
			switch {
			case test.says == "" && (err != nil || got.Service != "app"):
				t.Errorf("%s, with bob's on %s: service %q, %v", test.caller.Name, of, got.Service, err)
			case test.says != "" && (spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), test.says)):
				t.Errorf("%s, with bob's on %s: exit %d, %v; want %q", test.caller.Name, of, spec.ExitOf(err), err, test.says)
			}
		}
	}
}

// What is in the journal's directory, history is read as far as it can be.
func TestReadHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	sp := r.spec(spec.Drain)
	sp.Reason = "new kernel"
	if _, err := r.run(sp); err != nil {
		t.Fatal(err)
	}
	if _, err := r.broken(r.spec(spec.Undrain), faultBefore, "call load"); err == nil {
		t.Fatal("the run has not noticed that it is dead")
	}
	read := func() ([]status.HistoryEntry, []string) {
		t.Helper()
		entries, unreadable, err := status.ReadHistory(t.Context(), r.spec(""), connector{r})
		if err != nil {
			t.Fatal(err)
		}
		return entries, unreadable
	}
	entries, unreadable := read()
	if len(entries) != 2 || len(unreadable) > 0 {
		t.Fatalf("%d operations, unreadable %q", len(entries), unreadable)
	}
	drain, undrain := entries[0], entries[1]
	if drain.Began.Kind != spec.Drain || drain.Began.Reason != "new kernel" || drain.Began.User != "tester" || drain.Ended == nil || drain.Ended.Result != journal.ResultDone || drain.Ended.ExitCode != spec.Done {
		t.Errorf("the drain is %+v, %+v", drain.Began, drain.Ended)
	}
	if undrain.Began.Kind != spec.Undrain || undrain.Ended != nil {
		t.Errorf("the undrain that crashed is %+v, %+v", undrain.Began, undrain.Ended)
	}
	events, unread, err := status.ReadOperation(t.Context(), r.spec(""), drain.ID, connector{r})
	if err != nil || unread != 0 {
		t.Fatalf("%d unread, %v", unread, err)
	}
	var steps []plan.StepName
	for _, e := range events {
		if e.Head().Operation != drain.ID || e.Head().Time.IsZero() {
			t.Errorf("an event of %q at %s", e.Head().Operation, e.Head().Time)
		}
		if s, ok := e.(*event.StepDone); ok {
			steps = append(steps, s.Step)
		}
	}
	if !slices.Equal(steps, []plan.StepName{plan.StepMarkDown, plan.StepWait, plan.StepService}) {
		t.Errorf("the history has the steps %q", steps)
	}
	if _, _, err := status.ReadOperation(t.Context(), r.spec(""), "20260101-000000.000-aaaa", connector{r}); spec.ExitOf(err) != spec.Usage {
		t.Errorf("an operation that never was: %v", err)
	}

	// A truncated line, a later version's event, and files that are no history.
	dir := filepath.Join(r.stateDir(), "history")
	f, err := os.OpenFile(filepath.Join(dir, drain.ID+".jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"event":"teleported","time":"2026-01-01T00:00:00Z"}` + "\n" + `{"event":"result","ti`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	const foreign = "20260101-000000.000-aaaa"
	for name, text := range map[string]string{foreign + ".jsonl": "no JSON\n", "notes.txt": "mine\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entries, unreadable = read()
	if len(entries) != 2 || entries[0].Truncated != 1 || len(unreadable) != 1 || !strings.Contains(unreadable[0], foreign) {
		t.Errorf("%d operations, unreadable %q", len(entries), unreadable)
	}
	again, unread, err := status.ReadOperation(t.Context(), r.spec(""), drain.ID, connector{r})
	if err != nil || unread != 2 || len(again) != len(events) {
		t.Errorf("%d events, %d unread, %v; want %d and 2", len(again), unread, err, len(events))
	}
}

// Each event is read back from the history as it was written.
func TestEventsSurvive(t *testing.T) {
	for _, e := range event.All() {
		name := e.Head().Event
		e.Head().Step, e.Head().LB = plan.StepWait, "lb1"
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		back, err := event.Parse(line)
		if err != nil || reflect.TypeOf(back) != reflect.TypeOf(e) {
			t.Fatalf("%s came back as %T: %v", name, back, err)
		}
		if again, err := json.Marshal(back); err != nil || string(again) != string(line) {
			t.Errorf("%s, %v; want %s", again, err, line)
		}
	}
	for _, line := range []string{"", "{}", "[]", `{"event":"teleported"}`, `{"event":"step_done","changed":"x"}`} {
		if e, err := event.Parse([]byte(line)); err == nil {
			t.Errorf("%q is the event %+v", line, e)
		}
	}
}
