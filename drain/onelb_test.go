package drain

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// Two names of the command line lead to one load balancer, as its address and a virtual IP do. It is
// worked on once, and the second name is said.
func TestTwoNamesOfOneLB(t *testing.T) {
	const said = "vip is lb1 by another name"
	r := newRig(t)
	of := func(k spec.Kind) spec.Spec {
		sp := r.spec(k)
		sp.LBs, sp.Counter = []string{"lb1", "vip"}, spec.CounterLB
		return sp
	}
	only := func(what string, warnings string, lbs []plan.LBPlan) {
		t.Helper()
		if strings.Count(warnings, said) != 1 || len(lbs) != 1 || lbs[0].LB != "lb1" {
			t.Errorf("%s: of %d LBs, the first is worked on; warned of %q", what, len(lbs), warnings)
		}
	}
	l := &told{}
	p, err := DryRun(t.Context(), of(spec.Drain), Options{Connect: connector{r}, Emit: l.emit})
	if err != nil {
		t.Fatal(err)
	}
	only("dry run", l.warnings(), p.LBs)
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} {
		sp := of(k)
		if k == spec.Run {
			sp.Rollout.Command = []string{"true"}
		}
		var lbs []plan.LBPlan
		l := &told{}
		err := run(t.Context(), t.Context(), sp, Options{Connect: connector{r}, Emit: l.emit, bounds: shortBounds, Accept: func(p *plan.Plan) error {
			lbs = p.LBs
			return nil
		}})
		if err != nil {
			t.Errorf("%s: %v", k, err)
		}
		only(string(k), l.warnings(), lbs)
	}
	if r.read() != r.was {
		t.Error("the configuration is not as it was")
	}
	checks, err := CheckAll(t.Context(), of(spec.Drain), connector{r})
	if err != nil {
		t.Fatal(err)
	}
	if bad, n := resultsOf(checks, "vip"); n != 5 || !slices.Equal(bad, []string{"configuration: " + string(event.CheckWarning)}) || !strings.Contains(checks.text(), said) {
		t.Errorf("check: %d of vip: %q", n, bad)
	}
	st, err := status.Read(t.Context(), of(spec.Drain), connector{r})
	if err != nil {
		t.Fatal(err)
	}
	if len(st.LBs) != 1 || !strings.Contains(strings.Join(st.LBs[0].Warnings, "\n"), said) {
		t.Errorf("status: %+v", st)
	}
}

// text is what the checks found.
func (r *CheckReport) text() string {
	var texts []string
	for _, c := range r.Checks {
		if c.Finding != nil {
			texts = append(texts, c.Finding.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// A record is cleared, and an operation resumed, on one of the two.
func TestTwoNamesOfOneLBLater(t *testing.T) {
	r := newRig(t)
	drain := r.spec(spec.Drain)
	drain.Counter = spec.CounterLB
	if _, err := r.run(drain); err != nil {
		t.Fatal(err)
	}
	if err := r.journal().Update(t.Context(), func(s *journal.State) error {
		s.Operations[0].Result = ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	names := spec.Spec{Kind: spec.Drain, LBs: []string{"lb1", "vip"}, Nginx: drain.Nginx, Given: drain.Given}
	full, err := Resumed(t.Context(), names, "", Options{Connect: connector{r}})
	if err != nil {
		t.Fatal(err)
	}
	full.LBs = names.LBs
	if l, err := r.run(full); err != nil || !strings.Contains(l.warnings(), "vip is lb1") {
		t.Errorf("resume: %v, %q", err, l.warnings())
	}
	r.decommission()
	sp := r.spec(spec.Forget)
	sp.LBs = names.LBs
	if _, err := Forget(context.Background(), sp, Options{Connect: connector{r}}, false); err != nil {
		t.Errorf("forget: %v", err)
	}
}
