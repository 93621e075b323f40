package show

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// began is when the steps of these tests begin.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A shown is a view on a terminal of some size.
type shown struct {
	*Text
	out bytes.Buffer
}

func onTTY() *shown {
	s := &shown{Text: NewText(io.Discard, io.Discard, Options{})}
	s.Text.out, s.screen = &s.out, &screen{out: &s.out}
	return s
}

// tells has the view know of events, and draws nothing.
func (s *shown) tells(events ...event.Event) {
	for _, e := range events {
		e.Head().Time = began
		s.run.heed(event.Stamp(e))
	}
}

// area is what it shows some time after the step has begun.
func (s *shown) area(width, height int, after time.Duration) string {
	return strings.Join(s.Text.area(width, height, began.Add(after)), "\n")
}

func drainPlan(backends ...string) *event.Planned {
	p := &plan.Plan{Spec: spec.Spec{Kind: spec.Drain}, Steps: []plan.Step{
		{Step: plan.StepMarkDown, Direction: plan.Forward, Description: plan.Description{Servers: []string{"10.0.0.1:80 in pool"}}},
		{Step: plan.StepWait, Direction: plan.Forward, Description: plan.Description{Counter: "ss on app1", Limit: 300}},
		{Step: plan.StepService, Direction: plan.Forward, Description: plan.Description{Service: "app", Backend: "app1"}},
	}}
	for _, name := range backends {
		p.Backends = append(p.Backends, plan.Backend{Name: name})
	}
	return &event.Planned{Plan: p}
}

// starts begins a step of a plan.
func starts(p *event.Planned, number int) *event.StepStarted {
	s := p.Plan.Steps[number-1]
	return &event.StepStarted{Header: step(s.Step, s.Direction), Number: number, Of: len(p.Plan.Steps), Description: s.Description}
}

// reads is a reading some seconds after the wait has begun.
func reads(backend string, seconds, open int) *event.Waiting {
	e := waitsFor(backend, open)
	e.Elapsed, e.Limit, e.Peers = spec.Seconds(seconds), 300, []remote.Peer{{Addr: netip.MustParseAddr("10.0.0.9"), Count: open}}
	return e
}

// waits is a view in the wait of one backend, from 60 connections to 40.
func waits() *shown {
	p := drainPlan("app1")
	s := onTTY()
	s.tells(p, starts(p, 1), &event.StepDone{Header: step(plan.StepMarkDown, plan.Forward)}, starts(p, 2))
	for second := range 21 {
		s.tells(reads("app1", second, 60-second))
	}
	return s
}

func TestAreaOfAWait(t *testing.T) {
	s := waits()
	last := reads("app1", 20, 40)
	last.Held = []event.Held{
		{Address: "10.0.0.9", Port: 40312, LB: "lb1", OpenFor: 192, Idle: 12.3},
		{Address: "2001:db8::9", Port: 443, OpenFor: 61, Idle: 1},
	}
	last.Stuck = &event.Stuck{Reason: event.StuckUpgraded, Connections: 3, OpenFor: 720, ShutdownTimeout: 600, CanStop: true}
	stuck := waits()
	stuck.tells(last)
	interrupted := waits()
	interrupted.run.interrupted = true
	for _, test := range []struct {
		name          string
		s             *shown
		width, height int
		want          string
	}{
		{"80 columns", s, 80, 24, `
▸ 2/3 wait until no connection is open, by ss on app1: running, 20s of 5m
      40 open, from 10.0.0.9 (40)
      ███████████████████████████▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▆▆▆▆▆▆  60 at most
      about 40s left at this pace; after 5m: roll back
  Ctrl-C: roll back
· 3/3 stop app on app1: pending`},
		{"40 columns", s, 40, 24, `
▸ 2/3 wait until n…: running, 20s of 5m
  40 open, from 10.0.0.9 (40)
  ████████████▇▇▇▇▇▇▇▇▇▇▇▆▆  60 at most
  about 40s left at this pace; after 5m: roll back
  Ctrl-C: roll back
· 3/3 stop app on app1: pending`},
		{"stuck", stuck, 80, 24, `
▸ 2/3 wait until no connection is open, by ss on app1: running, 20s of 5m
      40 open, from 10.0.0.9 (40)
      3 upgraded connections (WebSocket?) have been open for 12m; they end when
      the client leaves, at worker_shutdown_timeout (10m), or with --on-timeout
      stop
      ███████████████████████████▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▆▆▆▆▆▆  60 at most
      10.0.0.9:40312 open 3m12s, idle 12s, by lb1
      [2001:db8::9]:443 open 1m1s, idle 1s
      after 5m: roll back
  Ctrl-C: roll back
· 3/3 stop app on app1: pending`},
		{"20 rows, half of them", stuck, 80, 20, `
▸ 2/3 wait until no connection is open, by ss on app1: running, 20s of 5m
      40 open, from 10.0.0.9 (40)
      3 upgraded connections (WebSocket?) have been open for 12m; they end when
      the client leaves, at worker_shutdown_timeout (10m), or with --on-timeout
      stop
      ███████████████████████████▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▆▆▆▆▆▆  60 at most
      10.0.0.9:40312 open 3m12s, idle 12s, by lb1
      [2001:db8::9]:443 open 1m1s, idle 1s
      after 5m: roll back
  Ctrl-C: roll back`},
		{"3 rows", stuck, 80, 3, `
▸ 2/3 wait until no connection is open, by ss on app1: running, 20s of 5m
      40 open, from 10.0.0.9 (40)`},
		{"interrupted, in 3 rows", interrupted, 80, 3, `
▸ 2/3 wait until no connection is open, by ss on app1: running, 20s of 5m
  Ctrl-C again: stop at once, and say what is left to undo`},
	} {
		if got := test.s.area(test.width, test.height, 20*time.Second); "\n"+got != test.want {
			t.Errorf("%s:\n%s\nwant%s", test.name, got, test.want)
		}
	}
	// A pace that is too slow is no promise.
	if got := s.area(80, 24, 290*time.Second); !strings.Contains(got, "at this pace not in time; after 5m") {
		t.Error(got)
	}
}

func TestAreaOfMany(t *testing.T) {
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprint("app", i+1))
	}
	p := drainPlan(names...)
	s := onTTY()
	s.many = true
	s.tells(p, starts(p, 2))
	for i, name := range names[1:] {
		s.tells(reads(name, 0, 40), reads(name, 1, max(0, 20-i)))
	}
	s.tells(&event.Waiting{Header: reads("app2", 1, 1).Header, Error: "ssh: gone", Limit: 300})
	const want = `
▸ 2/3 wait until no connection is open, by ss on app1: running, 1s of 5m
      app2: not countable ████▅
      app3: 19 open       ████▅
      app4: 18 open       ████▅
      app5: 17 open       ████▄
      and 26 more, 9 of them done, 136 open
      after 5m: roll back
  Ctrl-C: roll back
· 3/3 stop app on app1: pending`
	if got := s.area(80, 28, time.Second); "\n"+got != want {
		t.Errorf("%s\nwant%s", got, want)
	}
	if got := s.area(80, 120, time.Second); !strings.Contains(got, "      app1: pending\n") || !strings.Contains(got, "      app30: 0 open        ✓ drained\n") {
		t.Errorf("%s", got)
	}
}

// Each LB has a row while it is edited and reloaded, which stays as a line.
func TestAreaOfLBs(t *testing.T) {
	p := drainPlan("app1")
	for _, lb := range []string{"lb1", "lb2"} {
		p.Plan.LBs = append(p.Plan.LBs, plan.LBPlan{LB: lb, Report: &balancer.Report{}})
	}
	s := onTTY()
	s.fleet = true
	reloaded := &event.Reloaded{Header: step(plan.StepMarkDown, plan.Forward), Generation: balancer.Generation{Serving: 2}}
	reloaded.LB = "lb2"
	s.tells(p, starts(p, 1), reloaded)
	const want = `
▸ 1/3 mark 10.0.0.1:80 in pool down, test, reload, verify the n…: running, 0s
      lb1: pending
      lb2: a new generation serves: 2 workers
  Ctrl-C: roll back
· 2/3 wait until no connection is open: pending
· 3/3 stop app on app1: pending`
	if got := s.area(78, 24, 0); "\n"+got != want {
		t.Errorf("%s\nwant%s", got, want)
	}
	s.stepDone(&event.StepDone{Header: step(plan.StepMarkDown, plan.Forward), Changed: true, Elapsed: 1.24, Detail: event.Detail{Down: []string{"10.0.0.1:80 in pool"}}}, s.run.rows)
	if got, want := s.out.String(), "✓ 1/3 mark 10.0.0.1:80 in pool down: done in 1.2s\n      lb2: a new generation serves: 2 workers\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// An undrain shows the checks that have passed, and the last error.
func TestAreaOfHealth(t *testing.T) {
	s := onTTY()
	check := func(passed int, err string) *event.HealthChecked {
		return &event.HealthChecked{Header: step(plan.StepWait, plan.Reverse), Passed: passed, Needed: 3, Error: err}
	}
	s.tells(&event.StepStarted{Header: step(plan.StepWait, plan.Reverse), Number: 2, Of: 3, Description: plan.Description{Health: "tcp", Limit: 60}})
	for _, test := range []struct {
		event *event.HealthChecked
		want  string
	}{
		{check(0, "connection\nrefused"), "      not healthy yet: connection refused"},
		{check(1, ""), "      1 of 3 checks passed; before: connection refused"},
	} {
		s.tells(test.event)
		want := "▸ 2/3 wait until healthy: TCP connect from the load balancer: running, 3s of 1m\n" + test.want + "\n      after 1m: roll back\n  Ctrl-C: roll back"
		if got := s.area(120, 24, 3*time.Second); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
	}
}

// What stays of a run that is rolled back is a line or two a step, and nothing of the
// area.
func TestTranscript(t *testing.T) {
	p, s := drainPlan("app1"), onTTY()
	for _, e := range []event.Event{
		starts(p, 1), &event.Edited{}, &event.Reloaded{Generation: balancer.Generation{Serving: 2}},
		&event.StepDone{Header: step(plan.StepMarkDown, plan.Forward), Changed: true, Elapsed: 0.5},
		starts(p, 2), reads("app1", 0, 3), &event.WorkOutput{Header: event.Header{Target: "app1"}, Line: "a\x1b[2Jb\rc"},
		&event.StepFailed{Header: step(plan.StepWait, plan.Forward), Error: "not drained after 5m"},
		&event.RollingBack{Error: "not drained after 5m"},
		&event.StepDone{Header: step(plan.StepMarkDown, plan.Reverse), Changed: true, Elapsed: 12, Detail: event.Detail{Restored: true}},
		&event.Result{ExitCode: spec.TimedOut},
	} {
		s.Event(event.Stamp(e))
	}
	want := []string{
		"✓ 1/3 mark 10.0.0.1:80 in pool down: done in 0.5s", "      a new generation serves: 2 workers",
		`  app1: a\x1b[2Jb\rc`,
		"✗ 2/3 wait until no connection is open: failed: not drained after 5m",
		"rolling back",
		"↺ mark down: rolled back in 12s", "      configuration as before",
	}
	if got := onTerminal(80, 24, s.out.String()); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if raw := s.out.String(); !strings.Contains(raw, "3 open, from 10.0.0.9 (3)") || strings.Contains(raw, ansi.HideCursor) {
		t.Errorf("%q", raw)
	}
}

func TestStuckText(t *testing.T) {
	for _, test := range []struct {
		stuck event.Stuck
		want  string
	}{
		{event.Stuck{Reason: event.StuckUpgraded, Connections: 3, OpenFor: 720, ShutdownTimeout: 600, CanStop: true},
			"3 upgraded connections (WebSocket?) have been open for 12m; they end when the client leaves, at worker_shutdown_timeout (10m), or with --on-timeout stop"},
		{event.Stuck{Reason: event.StuckUpgraded, Connections: 1, OpenFor: 720},
			"1 upgraded connection (WebSocket?) has been open for 12m; it ends when the client leaves"},
		{event.Stuck{Reason: event.StuckSending, Connections: 2, OpenFor: 90, CanStop: true},
			"2 connections on which only the backend sends (a download, an event stream?) have been open for 1m30s; they end when all is sent or the client leaves, or with --on-timeout stop"},
		{event.Stuck{Reason: event.StuckSilent, Connections: 2, OpenFor: 90, ShutdownTimeout: 60},
			"2 connections on which nothing is sent (a slow request?) have been open for 1m30s; they end when the app answers or nginx gives up, or at worker_shutdown_timeout (1m)"},
		{event.Stuck{Reason: event.StuckClients, Connections: 2, OpenFor: 90, ShutdownTimeout: 60},
			"2 connections of other clients than the load balancers have been open for 1m30s; they end when the client leaves"},
	} {
		if got := stuckText(&test.stuck); got != test.want {
			t.Errorf("%s\nwant %s", got, test.want)
		}
	}
}

// A wait for several backends is over when all are: without an estimate for one, there is none.
func TestOutlookOfSeveral(t *testing.T) {
	for open, told := range map[int]bool{5: false, 0: true} {
		p := drainPlan("app1", "app2")
		s := onTTY()
		s.tells(p, starts(p, 1), &event.StepDone{Header: step(plan.StepMarkDown, plan.Forward)}, starts(p, 2))
		for second := range 21 {
			s.tells(reads("app1", second, 60-second), reads("app2", second, open))
		}
		if got := s.area(100, 20, 20*time.Second); strings.Contains(got, "left at this pace") != told {
			t.Errorf("with %d connections to app2:\n%s", open, got)
		}
	}
}

// A backend for which a step failed is not waited for in the next one.
func TestAreaWithoutWhatFailed(t *testing.T) {
	p := drainPlan("app1", "app2", "app3")
	s := onTTY()
	failed := &event.StepFailed{Header: step(plan.StepWait, plan.Forward), Error: "not drained"}
	failed.Target = "app2"
	s.tells(p, starts(p, 2), failed, starts(p, 2))
	if got := s.area(100, 20, time.Second); !strings.Contains(got, "app1") || strings.Contains(got, "app2") || !strings.Contains(got, "app3") {
		t.Errorf("%s", got)
	}
}

// In a log of several backends it is said which one is stuck.
func TestStuckOfSeveralInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.Planned{Plan: &plan.Plan{Backends: make([]plan.Backend, 2)}})
		emit(&event.StepStarted{Header: step(plan.StepWait, plan.Forward), Number: 2, Of: 3})
		e := waitsFor("b", 3)
		e.Stuck = &event.Stuck{Reason: event.StuckUpgraded, Connections: 3, OpenFor: 60}
		emit(e)
		emit(&event.Result{})
	})
	if !strings.Contains(out, "\n  b: 3 upgraded connections") {
		t.Errorf("%s", out)
	}
}

// An LB that is left out is a warning.
func TestLBLeftOutInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.LBSkipped{Header: event.Header{LB: "lb2"}, Error: "no route"})
		emit(&event.Result{})
	})
	if want := "  warning: lb2 cannot be reached and is left out; it may still send requests to the target: no route\n"; !strings.HasPrefix(out, want) {
		t.Errorf("%q, want %q", out, want)
	}
}

// In a log it is said once why a wait is stuck.
func TestStuckInALog(t *testing.T) {
	out := shows(t, func(emit func(event.Event)) {
		emit(&event.StepStarted{Header: step(plan.StepWait, plan.Forward), Number: 2, Of: 3})
		for range 5 {
			e := waitsFor("a", 3)
			e.Stuck = &event.Stuck{Reason: event.StuckUpgraded, Connections: 3, OpenFor: 60}
			emit(e)
		}
		emit(&event.Result{})
	})
	if strings.Count(out, "they end when the client leaves\n") != 1 {
		t.Errorf("%s", out)
	}
}
