package drain

import (
	"context"
	"errors"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A CheckReport is all checks: of the LBs, then of the backends.
type CheckReport struct {
	Checks   []event.Check `json:"checks"`
	ExitCode spec.Exit     `json:"exit_code"`
}

// Count is how many checks ended so.
func (r *CheckReport) Count(result event.CheckResult) (n int) {
	for _, c := range r.Checks {
		if c.Result == result {
			n++
		}
	}
	return n
}

// failures is what speaks against a run.
func failures(checks []event.Check) (all []spec.Finding) {
	for _, c := range checks {
		if c.Result == event.CheckFailed {
			all = append(all, *c.Finding)
		}
	}
	return all
}

// A checker collects the checks of one place.
type checker struct {
	lb, backend string
	checks      []event.Check
}

// add notes a check that was made, one for each finding.
func (c *checker) add(name event.CheckName, seen event.Seen, found ...spec.Finding) {
	check := event.Check{LB: c.lb, Backend: c.backend, Name: name, Result: event.CheckOK, Seen: seen}
	for _, f := range found {
		if check.Finding, check.Result = &f, event.CheckFailed; f.Warning {
			check.Result = event.CheckWarning
		}
		c.checks = append(c.checks, check)
	}
	if len(found) == 0 {
		c.checks = append(c.checks, check)
	}
}

// skip notes checks that could not be made, as the one that they need has failed.
func (c *checker) skip(needs event.CheckName, names ...event.CheckName) {
	for _, name := range names {
		c.checks = append(c.checks, event.Check{LB: c.lb, Backend: c.backend, Name: name, Result: event.NotChecked, Needs: needs})
	}
}

// try makes a check, unless one that it needs has failed.
func (c *checker) try(broken, name event.CheckName, check func() (event.Seen, []spec.Finding)) {
	if broken != "" {
		c.skip(broken, name)
		return
	}
	seen, found := check()
	c.add(name, seen, found...)
}

// reach notes the checks of reaching a host, which err ended. It tells which of
// them failed. Of host key and login nothing is known when either fails: it may
// have been a jump host's.
func (c *checker) reach(names []event.CheckName, err error, f spec.Finding, seen func(event.CheckName) event.Seen) (broken event.CheckName) {
	if err != nil {
		if broken = brokenBy(err, f); !slices.Contains(names, broken) {
			broken = event.CheckAgent
		}
	}
	passed := broken != event.CheckSSH && broken != event.CheckHostKey
	for _, name := range names {
		switch {
		case name == broken:
			c.add(name, event.Seen{}, f)
			passed = false
		case passed:
			c.add(name, seen(name))
		default:
			c.skip(broken, name)
		}
	}
	return broken
}

// brokenBy is the check that an error of reaching a host is about.
func brokenBy(err error, f spec.Finding) event.CheckName {
	var key *remote.HostKeyError
	var login *remote.AuthError
	var sudo *remote.SudoError
	switch {
	case errors.As(err, &key):
		return event.CheckHostKey
	case errors.As(err, &login), errors.Is(err, remote.ErrConnection), f.Code == "ssh":
		return event.CheckSSH
	case errors.As(err, &sudo):
		return event.CheckSudo
	}
	return event.CheckAgent
}

// findingOf is an error as a finding.
func findingOf(err error, code string) spec.Finding {
	var r *spec.Refusal
	if errors.As(err, &r) && len(r.Findings) == 1 {
		return r.Findings[0]
	}
	f := spec.Finding{Code: code, Text: err.Error()}
	var e *balancer.Error
	if errors.As(err, &e) {
		f.Override = e.Override
	}
	return f
}

// CheckAll tries all that a run of spec would need: of the LBs, and of the backends
// where spec names targets or upstreams. It locks and changes nothing, but for a
// copy of this program on an LB that has none, which it needs to look. One check
// that fails hides no other, and is no error.
func CheckAll(ctx context.Context, sp spec.Spec, c fleet.Connector) (*CheckReport, error) {
	if err := sp.Check(); err != nil {
		return nil, err
	}
	o := newOperation(sp, Options{Connect: c})
	defer o.Close()
	lbs, _ := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (*lbLook, error) {
		return reachLB(ctx, lb, sp), nil
	})
	all := o.lbs
	o.lbs = nil
	for i, l := range lbs {
		if l.broken == "" {
			o.lbs = append(o.lbs, all[i])
		}
	}
	if len(sp.Upstreams) > 0 {
		// An LB that does not have them says so below.
		sp, _ = o.expand(ctx, sp)
	}
	_ = o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		lbs[slices.Index(all, lb)].look(ctx, lb, sp)
		return nil
	})
	r := &CheckReport{}
	var reports []plan.LBPlan
	isKnown := true // what each LB has
	o.lbs = nil     // from here on those that have a report, each beside it
	for i, l := range lbs {
		if isKnown = isKnown && l.Report != nil; l.Report != nil {
			_, l.twin = l.TwinIn(reports)
		}
		switch {
		case l.Report != nil && l.twin == "":
			reports, o.lbs = append(reports, l.LBPlan), append(o.lbs, all[i])
		case all[i].Balancer != nil:
			_ = all[i].Balancer.Close()
		}
	}
	for _, l := range lbs {
		l.check(sp, reports)
		r.Checks = append(r.Checks, l.checks...)
	}
	o.plan = plan.New(sp, reports, false)
	o.whole = o.newWhole()
	if isKnown {
		// What no LB has is no backend.
		o.whole.rows = slices.DeleteFunc(o.whole.rows, func(m *row) bool { return m.plan.Servers == 0 })
	}
	r.Checks = append(r.Checks, o.checkBackends(ctx)...)
	if ctx.Err() != nil {
		return nil, spec.BeforeTouching(ctx, context.Cause(ctx))
	}
	r.ExitCode = spec.ExitOf(r.Refusal())
	return r, nil
}

// Refusal returns the failure of the checks that failed; nil if there is none.
func (r *CheckReport) Refusal() error {
	if found := failures(r.Checks); len(found) > 0 {
		return spec.Refuse(found...)
	}
	return nil
}
