package status

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// hostileWords are what another user may have put where a target, an ID, a unit or a host
// belongs.
var hostileWords = []string{
	"--test-command=touch /HOSTILE", "--reload-command", "-cHOSTILE", "--lb=HOSTILE", "-", "--", "HOSTILE; touch /x", "$(HOSTILE)",
	"HOSTILE\nnext: x", "HOSTILE\x1b[2J", "HOSTILE\u202e", "HOSTILE) touch /x", "", " ",
}

// historyLB is an LB with the history of one operation.
type historyLB struct {
	balancer.Balancer
	caller, recorder *journal.Recorder
	lines            []json.RawMessage
	truncated        int
	unknown          bool // it has no such operation
}

func (h *historyLB) Caller() journal.Recorder { return *h.caller }
func (h *historyLB) Done() <-chan struct{}    { return nil }
func (h *historyLB) Close() error             { return nil }
func (h *historyLB) History(_ context.Context, q balancer.HistoryQuery) (balancer.History, error) {
	if q.ID == "" {
		return balancer.History{Operations: []journal.Entry{{ID: plantedID, Recorder: h.recorder, First: h.lines[0], Last: h.lines[len(h.lines)-1]}}}, nil
	}
	if h.unknown {
		return balancer.History{}, &balancer.Error{Code: balancer.CodeUnknown, Message: "no operation " + q.ID}
	}
	return balancer.History{History: journal.History{Recorder: h.recorder, Lines: h.lines, Truncated: h.truncated}}, nil
}

func (h *historyLB) LB(context.Context, string, spec.Nginx) (balancer.Balancer, error) { return h, nil }
func (h *historyLB) Backend(context.Context, plan.Backend) (remote.Host, error)        { return nil, nil }

const plantedID = "20260504-120000.000-evil"

// No word of a printed command is another user's flag, wherever the command comes from.
func TestPrintedCommandsHoldNoFlagOfOthers(t *testing.T) {
	const good = "127.0.0.2"
	reader := spec.Default("")
	reader.Nginx.StateDir, reader.Given = "/reader", []string{"state-dir"}
	flags := []string{"--state-dir", "/reader"}
	server := balancer.Server{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: good + ":8080"}}}
	for _, bad := range hostileWords {
		targets := []string{bad, good, bad}
		started := &event.OperationStarted{Targets: targets}
		result := &event.Result{Header: event.Header{Operation: bad}, Targets: targets, ExitCode: spec.Partial, Next: []spec.Command{
			{Words: []string{bad}, Reason: bad, On: bad},
			{Words: []string{"drainctl", bad}, Reason: bad},
			{Words: []string{"drainctl", "drain", good}, Reason: bad},
			{Words: []string{"drainctl", "resume", bad, bad}, Reason: bad},
			{Words: append([]string{"drainctl", "undrain", bad, good}, "--reload-command", bad), Reason: bad},
			{Words: []string{"drainctl", "undrain", good, "--upstream", bad}, Reason: bad},
			{Words: []string{"systemctl", "kill", "--signal=KILL", "sshd"}, On: bad, Reason: bad},
		}}
		foreign := &historyLB{caller: rootRecorder, recorder: deployRecorder, lines: []json.RawMessage{lineOf(t, started), lineOf(t, result)}}
		for name, c := range map[string]struct{ got, want []spec.Command }{
			"status": {next(reader, &journal.Operation{ID: bad, Kind: journal.KindDrain, Targets: targets}, server, "continues"),
				[]spec.Command{{Words: append([]string{"drainctl", "undrain", good}, flags...), Reason: "puts it back"}}},
			"status, of targets alone": {next(reader, &journal.Operation{ID: bad, Kind: journal.KindDrain, Targets: []string{bad}}, server, "continues"), nil},
			"status, of a run":         {next(reader, &journal.Operation{ID: bad, Kind: journal.KindRun}, balancer.Server{Located: journal.Located{Server: journal.Server{Address: bad}}}, "continues"), nil},
			"a history without an end": {Unended(reader, bad, []event.Event{started}), []spec.Command{
				{Words: append([]string{"drainctl", "status", good}, flags...), Reason: "says whether it still runs"},
				{Words: append([]string{"drainctl", "undrain", good}, flags...), Reason: "puts everything back instead"}}},
			"a unit": {KillCommand(bad, "app-1", "ends the app"), nil},
			"a host": {KillCommand("shop", "x"+bad+" ", "ends the app"), nil},
			"a history's end": {endOf(t, reader, foreign).Next, []spec.Command{
				{Words: append([]string{"drainctl", "resume", plantedID}, flags...), Reason: "continues"},
				{Words: append([]string{"drainctl", "undrain"}, append(validUnlessFlag(bad, good), flags...)...), Reason: "puts it back"}}},
			"the list of the history": {listed(t, reader, foreign).Next, []spec.Command{
				{Words: append([]string{"drainctl", "resume", plantedID}, flags...), Reason: "continues"},
				{Words: append([]string{"drainctl", "undrain"}, append(validUnlessFlag(bad, good), flags...)...), Reason: "puts it back"}}},
		} {
			c.want = slices.DeleteFunc(c.want, func(c spec.Command) bool { return len(c.Words) == 2+len(flags) && c.Words[1] == "undrain" })
			if !slices.EqualFunc(c.got, c.want, func(a, b spec.Command) bool {
				return slices.Equal(a.Words, b.Words) && a.Reason == b.Reason && a.On == b.On
			}) {
				t.Errorf("%s, with %q:\n%q, want\n%q", name, bad, c.got, c.want)
			}
			for _, c := range c.got {
				if text := c.String() + c.Reason + c.On; strings.Contains(text, "HOSTILE") {
					t.Errorf("%s, with %q: %q", name, bad, text)
				}
			}
		}
		if got := NameOr(bad, "it"); got != "it" {
			t.Errorf("%q is named %q", bad, got)
		}
	}
}

// validUnlessFlag is the targets of a recorded undrain: what follows a flag is not read.
func validUnlessFlag(bad, good string) []string {
	if spec.IsFlagLike(bad) {
		return nil
	}
	return []string{good}
}

// What a reader, or root, recorded stays as it is.
func TestCommandsOfTrustedRecordersStay(t *testing.T) {
	c := spec.Command{Words: []string{"drainctl", "undrain", "127.0.0.2", "--reload-command", "systemctl reload nginx", "--upstream", "pool"}, Reason: "puts it back"}
	r := &event.Result{Next: []spec.Command{c}}
	started := &event.OperationStarted{Targets: []string{"127.0.0.2"}}
	for _, who := range []struct {
		caller, recorder *journal.Recorder
		flag             string
	}{{rootRecorder, rootRecorder, "--reload-command"}, {deployRecorder, deployRecorder, "--reload-command"}, {deployRecorder, rootRecorder, "--reload-command"}, {rootRecorder, deployRecorder, "--upstream"}, {rootRecorder, nil, "--upstream"}} {
		lb := &historyLB{caller: who.caller, recorder: who.recorder, lines: []json.RawMessage{lineOf(t, started), lineOf(t, r)}}
		if got := endOf(t, spec.Default(""), lb).Next; len(got) != 1 || got[0].Words[3] != who.flag {
			t.Errorf("%v reads of %v: %q", who.caller, who.recorder, got)
		}
	}
}

// What several LBs have of one operation is told in the order of its times, each thing once.
// An LB that knows nothing of it hides nothing of the others.
func TestHistoryOfSeveralLBs(t *testing.T) {
	at := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	line := func(second int, lb string, e event.Event) json.RawMessage {
		e.Head().Time, e.Head().LB = at.Add(time.Duration(second)*time.Second), lb
		return lineOf(t, e)
	}
	begun := func(lb string) json.RawMessage {
		return line(0, lb, &event.OperationStarted{Targets: []string{"127.0.0.2"}})
	}
	end := line(5, "", &event.Result{})
	lbs := map[string]*historyLB{
		"lb1": {lines: []json.RawMessage{begun("lb1"), line(1, "lb1", &event.Edited{}), line(4, "lb1", &event.Reloaded{}), end}, truncated: 2},
		"lb2": {unknown: true},
		"lb3": {lines: []json.RawMessage{begun("lb3"), line(2, "lb3", &event.Edited{}), line(3, "lb3", &event.Reloaded{}), end}, truncated: 1},
	}
	sp, connector := spec.Default(""), historyLBs{}
	for name, lb := range lbs {
		lb.caller, lb.recorder = rootRecorder, rootRecorder
		sp.LBs, connector[name] = append(sp.LBs, name), lb
	}
	slices.Sort(sp.LBs)
	for _, names := range [][]string{sp.LBs, {"lb1", "lb3"}} {
		some := sp
		some.LBs = names
		events, unread, err := ReadOperation(t.Context(), some, plantedID, connector)
		if err != nil || unread != 3 {
			t.Errorf("of %q: %d unread, %v", names, unread, err)
		}
		var told []string
		for _, e := range events {
			told = append(told, fmt.Sprintf("%s %s", e.Head().Event, e.Head().LB))
		}
		if want := []string{"operation_started lb1", "edited lb1", "edited lb3", "reloaded lb3", "reloaded lb1", "result "}; !slices.Equal(told, want) {
			t.Errorf("of %q: told %q, want %q", names, told, want)
		}
	}
	for _, lb := range lbs {
		lb.unknown = true
	}
	if _, _, err := ReadOperation(t.Context(), sp, plantedID, connector); spec.ExitOf(err) != spec.Usage {
		t.Errorf("an operation that no LB knows: %v", err)
	}
}

// An operation that was resumed, and did not end then, has not ended.
func TestUnended(t *testing.T) {
	begun, resumed, end := &event.OperationStarted{Targets: []string{"127.0.0.2"}}, &event.OperationStarted{Targets: []string{"127.0.0.2"}, Continues: plantedID}, &event.Result{}
	for _, test := range []struct {
		events []event.Event
		next   bool
	}{
		{[]event.Event{begun}, true}, {[]event.Event{begun, end}, false},
		{[]event.Event{begun, end, resumed}, true}, {[]event.Event{begun, end, resumed, end}, false},
	} {
		if next := Unended(spec.Default(""), plantedID, test.events); (len(next) > 0) != test.next {
			t.Errorf("%d events: next %q", len(test.events), next)
		}
	}
}

func lineOf(t *testing.T, e event.Event) json.RawMessage {
	t.Helper()
	event.Stamp(e)
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// endOf is the end of an operation in its history.
func endOf(t *testing.T, reader spec.Spec, lb *historyLB) *event.Result {
	t.Helper()
	events, _, err := ReadOperation(t.Context(), reader, plantedID, lb)
	if err != nil || len(events) != 2 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	return events[1].(*event.Result)
}

// listed is the end of an operation in the list of the history.
func listed(t *testing.T, reader spec.Spec, lb *historyLB) *event.Result {
	t.Helper()
	entries, _, err := ReadHistory(t.Context(), reader, lb)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	return entries[0].Ended
}
