package show

import (
	"bytes"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// What is left changed is said of each LB and each service, and what nginx was not seen to load.
func TestStandsText(t *testing.T) {
	open := 2
	lb := func(change func(*spec.LBStands)) spec.Stands {
		s := spec.LBStands{LB: "lb1", Servers: []string{"10.0.0.1:80 in pool"}, Edited: true, Loaded: true}
		change(&s)
		return spec.Stands{Standing: spec.Changed, LBs: []spec.LBStands{s}}
	}
	const on = "on lb1, 10.0.0.1:80 in pool in the configuration: "
	for _, test := range []struct {
		stands spec.Stands
		want   string
	}{
		{spec.Stands{Standing: spec.AsBefore}, "everything is as it was before"},
		{lb(func(s *spec.LBStands) { s.Down = true }), on + "marked down"},
		{lb(func(s *spec.LBStands) { s.Down, s.Loaded = true, false }), on + "marked down, but nginx was not seen to load it"},
		{lb(func(s *spec.LBStands) {}), on + "not marked down any more"},
		{lb(func(s *spec.LBStands) { s.Loaded = false }), on + "not marked down any more, but nginx was not seen to load it"},
		{lb(func(s *spec.LBStands) { s.Down, s.Edited = true, false }), on + "as it was before"},
		{lb(func(s *spec.LBStands) { s.Edited, s.Loaded = false, false }), on + "as it was before, but nginx was not seen to load it again"},
		{lb(func(s *spec.LBStands) { s.Down, s.Unknown = true, "it is gone" }), on + "not known (last seen marked down): it is gone"},
		{lb(func(s *spec.LBStands) { s.Servers = nil }), ""},
		{spec.Stands{Standing: spec.Changed, Services: []spec.ServiceStand{{Unit: "app", Backend: "app1", Touched: true}, {Unit: "app", Backend: "app2"}}, Open: &open},
			"app on app1: stopped or started by this run; see systemctl status app; app on app2: not touched by this run; 2 connections left"},
	} {
		if got := standsText(test.stands); got != test.want {
			t.Errorf("%+v:\n%q, want\n%q", test.stands, got, test.want)
		}
	}
}

// The summary names what an undrain leaves down, and says where nothing changed.
func TestSummary(t *testing.T) {
	service := []spec.ServiceStand{{Unit: "app", Backend: "app1"}}
	const outside = "as it was marked down outside drainctl (--force clears it)"
	for _, test := range []struct {
		result event.Result
		want   string
	}{
		{event.Result{Kind: spec.Drain, Services: service, Changed: true}, "a is drained, and app on app1 is stopped"},
		{event.Result{Kind: spec.Drain}, "a is drained; nothing was stopped (no --service); unchanged"},
		{event.Result{Kind: spec.Undrain, Services: service, Changed: true}, "a is back: app on app1 runs, and nginx sends requests to it"},
		{event.Result{Kind: spec.Undrain, StayDown: []string{"a:81 in pool"}, Changed: true}, "a is back: nginx sends requests to it; a:81 in pool stays down, " + outside},
		{event.Result{Kind: spec.Undrain, StayDown: []string{"a:80 in pool"}, AllDown: true}, "a stays down, " + outside + "; unchanged"},
		{event.Result{Kind: spec.Run, Done: []string{"a", "b"}, Changed: true}, "2 backends done and back in the pool"},
	} {
		test.result.Targets = []string{"a"}
		if got := summary(&test.result); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// With several LBs, each finding begins with the name of its LB.
func TestFindingsNameTheirLB(t *testing.T) {
	p := &plan.Plan{DryRun: true, ExitCode: spec.Refused, LBs: []plan.LBPlan{{LB: "lb1", Report: &balancer.Report{}}, {LB: "lb2", Report: &balancer.Report{}}}, Findings: []spec.Finding{
		{Code: "pending", LB: "lb1", Text: "changed on disk", Warning: true},
		{Code: balancer.ProblemRunning, LB: "lb2", Text: "nginx is not running\nhint: start it"},
		{Code: "locked", Text: "of no LB"},
	}}
	show := func(p *plan.Plan) string {
		var out bytes.Buffer
		v := NewText(&out, &out, Options{Plain: true})
		v.Event(event.Stamp(&event.Planned{Plan: p}))
		v.Event(event.Stamp(&event.Result{Kind: spec.Drain, ExitCode: spec.Refused, Findings: p.Findings}))
		return out.String()
	}
	says := func(what string, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if got := show(p); !strings.Contains(got, text) {
				t.Errorf("%s: no %q in\n%s", what, text, got)
			}
		}
	}
	says("a dry run", "warning: lb1: changed on disk\n", "refused: lb2: nginx is not running\n", "refused: of no LB\n")
	p.DryRun = false
	says("a run", "warning: lb1: changed on disk\n", "drainctl: error: lb2: nginx is not running\n", "drainctl: error: of no LB\n")
	p.LBs = p.LBs[1:]
	says("one LB", "warning: changed on disk\n", "drainctl: error: nginx is not running\n")
}

// Nothing of how a run ended is left out.
func TestEndOfARun(t *testing.T) {
	var out bytes.Buffer
	v := NewText(&out, &out, Options{Plain: true})
	v.Event(event.Stamp(&event.Result{
		Kind: spec.Run, ExitCode: spec.Partial, Error: "app2: it fails", Done: []string{"app1"}, Untouched: []string{"app4"}, Skipped: []plan.Skip{{Backend: "app3", Reason: "--only-if: exit status 1"}},
		Backends: []event.BackendResult{{Backend: "app2", Result: "partial", Error: "it fails"}}, Log: []string{"boom"},
		Next: []spec.Command{{Words: []string{"drainctl", "resume", "x"}, Reason: "continues"}},
	}))
	const want = `done: app1
skipped: app3: --only-if: exit status 1
failed, and out of the pool: app2: it fails
not begun: app4
drainctl: error: app2: it fails
the last log lines of the app:
  boom
drainctl: next: drainctl resume x   (continues)
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}

// A check that failed says what overrides it.
func TestFailedCheck(t *testing.T) {
	var out bytes.Buffer
	NewText(&out, &out, Options{Plain: true}).Checks(&drain.CheckReport{Checks: []event.Check{
		{LB: "lb1", Name: event.CheckPending, Result: event.CheckFailed, Finding: &spec.Finding{Text: "files changed", Override: "--accept-pending"}},
	}})
	if want := "FAILED       lb1  pending  files changed; hint: use --accept-pending to override\n1 check: 0 ok, 1 failed\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// The list of the history warns of an operation whose lines could not all be read.
func TestTruncatedHistory(t *testing.T) {
	var out bytes.Buffer
	NewText(&out, &out, Options{Plain: true}).History([]status.HistoryEntry{{ID: "a", Began: &event.OperationStarted{}, Truncated: 1}, {ID: "b", Began: &event.OperationStarted{}}}, []string{"c"})
	_, warnings, _ := strings.Cut(out.String(), "warning: ")
	if want := "a: 1 line could not be read: cut short by a crash or a full disk\nwarning: c has no operation and was skipped\n"; warnings != want {
		t.Errorf("%q, want %q", warnings, want)
	}
}

// The first Ctrl-C says what is done about what is changed.
func TestInterruptedText(t *testing.T) {
	for _, test := range []struct {
		kind           spec.Kind
		touched, first bool
		want           string
	}{
		{spec.Drain, false, true, "interrupted: nothing is changed yet; "},
		{spec.Run, false, true, "interrupted: nothing is changed yet; "},
		{spec.Drain, true, true, "interrupted: rolling back; "},
		{spec.Run, true, true, "interrupted: no further batch begins, and this one is put back first; "},
		{spec.Run, true, false, "interrupted again: stopping at once"},
	} {
		if got := interruptedText(&progress{touched: test.touched}, test.kind, test.first); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s, touched %t, first %t: %q, want %q", test.kind, test.touched, test.first, got, test.want)
		}
	}
}

// How an app ended is said with its state.
func TestServiceText(t *testing.T) {
	for _, test := range []struct{ active, result, want string }{
		{"inactive", "", "app is inactive"},
		{"active", "", "app is active"},
		{"failed", "timeout", "app is failed: it did not end in time, and systemd killed it (Result=timeout)"},
		{"failed", "signal", "app is failed: a signal killed it (Result=signal)"},
		{"failed", "core-dump", "app is failed: it crashed (Result=core-dump)"},
		{"failed", "watchdog", "app is failed: it no longer answered systemd's watchdog (Result=watchdog)"},
		{"failed", "oom-kill", "app is failed: the kernel killed it for memory (Result=oom-kill)"},
		{"failed", "exit-code", "app is failed: it ended with an error (Result=exit-code)"},
		{"failed", "protocol", "app is failed (Result=protocol)"},
	} {
		s := event.ServiceState{Unit: "app", Backend: "app1", Active: test.active, Result: test.result}
		if got, want := words(&event.StepDone{Detail: event.Detail{Services: []event.ServiceState{s}}}), "done: "+test.want; got != want {
			t.Errorf("%s: %q, want %q", test.result, got, want)
		}
		if got := seenText(event.Check{Name: event.CheckUnit, Seen: event.Seen{Service: &s}}); got != test.want {
			t.Errorf("check: %q, want %q", got, test.want)
		}
	}
}
