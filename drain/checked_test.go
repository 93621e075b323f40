package drain

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// The history says what was checked, on the LB and of the backend, and with which
// drainctl; and each edit has its diff.
func TestHistoryHasTheChecks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	options := Options{Connect: connector{r}, Version: "1.2.3"}
	if err := run(t.Context(), t.Context(), r.spec(spec.Drain), options); err != nil {
		t.Fatal(err)
	}
	entries, _, err := status.ReadHistory(t.Context(), r.spec(""), connector{r})
	if err != nil || len(entries) != 1 || entries[0].Began.Drainctl != "1.2.3" {
		t.Fatalf("%v, %d operations", err, len(entries))
	}
	events, _, err := status.ReadOperation(t.Context(), r.spec(""), entries[0].ID, connector{r})
	if err != nil {
		t.Fatal(err)
	}
	var names []event.CheckName
	diff := ""
	for _, e := range events {
		switch e := e.(type) {
		case *event.Checked:
			for _, c := range e.Checks {
				if c.Result != event.CheckOK && c.Result != event.CheckWarning {
					t.Errorf("%s is %s, and yet it was run", c.Name, c.Result)
				}
				names = append(names, c.Name)
			}
		case *event.Edited:
			diff += e.Diff
		}
	}
	for _, want := range []event.CheckName{event.CheckConfiguration, event.CheckTest, event.CheckPending, "live-servers", "direct-reference", event.CheckUnit, event.CheckCounter} {
		if !slices.Contains(names, want) {
			t.Errorf("the history has the checks %q, and not %s", names, want)
		}
	}
	// The lines around may hold what is secret.
	if lines := strings.Split(strings.TrimSpace(diff), "\n"); len(lines) != 5 || lines[3][0] != '-' || lines[4][0] != '+' || !strings.Contains(lines[4], " down;") {
		t.Errorf("the diff of the edit is %q", diff)
	}
}

// Whatever a guard finds is a check of the history.
func TestEveryGuardIsACheck(t *testing.T) {
	text, err := os.ReadFile("plan/guards.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := regexp.MustCompile(`Code: "([a-z-]+)"`).FindAllStringSubmatch(string(text), -1)
	if len(codes) < 15 {
		t.Fatalf("guards.go has %d codes", len(codes))
	}
	for _, code := range codes {
		name := event.CheckName(code[1])
		known := checkOf[code[1]] != "" || slices.Contains(guardChecks[spec.Drain], name) || slices.Contains(guardChecks[spec.Undrain], name)
		if !known && name != "missing" { // which is a warning about one LB of several
			t.Errorf("%s is no check", name)
		}
	}
}

// A warning about one LB is none of the checks of another.
func TestChecksOfEachLB(t *testing.T) {
	p := &plan.Plan{Spec: spec.Default(spec.Drain), Findings: []spec.Finding{{Code: "one-live-server", LB: "lb1", Text: "one", Warning: true}}}
	for _, name := range []string{"lb1", "lb2"} {
		report := &balancer.Report{Servers: []balancer.Server{{NeedsEdit: true}}}
		warned := slices.ContainsFunc(checksOf(p, plan.LBPlan{LB: name, Report: report}), func(c event.Check) bool { return c.Result == event.CheckWarning })
		if warned != (name == "lb1") {
			t.Errorf("%s is warned of: %t", name, warned)
		}
	}
}

// A large fleet's checks are bounded, and what is a warning is kept.
func TestChecksAreBounded(t *testing.T) {
	e := &event.Checked{}
	for i := range maxChecked + 50 {
		e.Checks = append(e.Checks, event.Check{Name: event.CheckName(fmt.Sprint(i)), Result: event.CheckOK})
	}
	e.Checks = append(e.Checks, event.Check{Name: "last", Result: event.CheckWarning})
	if bounded(e); len(e.Checks) != maxChecked || e.More != 51 || e.Checks[0].Name != "last" {
		t.Errorf("%d checks, %d more, %s first", len(e.Checks), e.More, e.Checks[0].Name)
	}
}
