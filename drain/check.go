package drain

import (
	"context"
	"errors"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// A CheckReport is all checks: of the LBs, then of the backends.
type CheckReport struct {
	Checks   []Check `json:"checks"`
	ExitCode Exit    `json:"exit_code"`
}

// Count is how many checks ended so.
func (r *CheckReport) Count(result CheckResult) (n int) {
	for _, c := range r.Checks {
		if c.Result == result {
			n++
		}
	}
	return n
}

// failures is what speaks against a run.
func failures(checks []Check) (all []Finding) {
	for _, c := range checks {
		if c.Result == CheckFailed {
			all = append(all, *c.Finding)
		}
	}
	return all
}

// A checker collects the checks of one place.
type checker struct {
	lb, backend string
	checks      []Check
}

// add notes a check that was made, one for each finding.
func (c *checker) add(name CheckName, seen Seen, found ...Finding) {
	check := Check{LB: c.lb, Backend: c.backend, Name: name, Result: CheckOK, Seen: seen}
	for _, f := range found {
		if check.Finding, check.Result = &f, CheckFailed; f.Warning {
			check.Result = CheckWarning
		}
		c.checks = append(c.checks, check)
	}
	if len(found) == 0 {
		c.checks = append(c.checks, check)
	}
}

// skip notes checks that could not be made, as the one that they need has failed.
func (c *checker) skip(needs CheckName, names ...CheckName) {
	for _, name := range names {
		c.checks = append(c.checks, Check{LB: c.lb, Backend: c.backend, Name: name, Result: NotChecked, Needs: needs})
	}
}

// try makes a check, unless one that it needs has failed.
func (c *checker) try(broken, name CheckName, check func() (Seen, []Finding)) {
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
func (c *checker) reach(names []CheckName, err error, f Finding, seen func(CheckName) Seen) (broken CheckName) {
	if err != nil {
		if broken = brokenBy(err, f); !slices.Contains(names, broken) {
			broken = CheckAgent
		}
	}
	passed := broken != CheckSSH && broken != CheckHostKey
	for _, name := range names {
		switch {
		case name == broken:
			c.add(name, Seen{}, f)
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
func brokenBy(err error, f Finding) CheckName {
	var key *remote.HostKeyError
	var login *remote.AuthError
	var sudo *remote.SudoError
	switch {
	case errors.As(err, &key):
		return CheckHostKey
	case errors.As(err, &login), errors.Is(err, remote.ErrConnection), f.Code == "ssh":
		return CheckSSH
	case errors.As(err, &sudo):
		return CheckSudo
	}
	return CheckAgent
}

// findingOf is an error as a finding.
func findingOf(err error, code string) Finding {
	var r *Refusal
	if errors.As(err, &r) && len(r.Findings) == 1 {
		return r.Findings[0]
	}
	f := Finding{Code: code, Text: err.Error()}
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
func CheckAll(ctx context.Context, spec Spec, c Connector) (*CheckReport, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	o := newOperation(spec, Options{Connect: c})
	defer o.Close()
	lbs := make([]*lbLook, len(o.lbs))
	_ = o.lbs.Each(ctx, func(ctx context.Context, lb *LB) error {
		lbs[slices.Index(o.lbs, lb)] = reachLB(ctx, lb, spec)
		return nil
	})
	all := o.lbs
	o.lbs = nil
	for i, l := range lbs {
		if l.broken == "" {
			o.lbs = append(o.lbs, all[i])
		}
	}
	if len(spec.Upstreams) > 0 {
		// An LB that does not have them says so below.
		spec, _ = o.expand(ctx, spec)
	}
	_ = o.lbs.Each(ctx, func(ctx context.Context, lb *LB) error {
		lbs[slices.Index(all, lb)].look(ctx, lb, spec)
		return nil
	})
	r := &CheckReport{}
	var reports []LBPlan
	o.lbs = nil // from here on those that have a report, each beside it
	for i, l := range lbs {
		switch {
		case l.Report != nil:
			reports, o.lbs = append(reports, l.LBPlan), append(o.lbs, all[i])
		case all[i].Balancer != nil:
			_ = all[i].Balancer.Close()
		}
	}
	for _, l := range lbs {
		l.check(spec, reports)
		r.Checks = append(r.Checks, l.checks...)
	}
	o.plan = newPlan(spec, reports, false)
	o.whole = o.newWhole()
	if len(reports) == len(all) {
		// What no LB has is no backend.
		o.whole.rows = slices.DeleteFunc(o.whole.rows, func(m *row) bool { return m.plan.servers == 0 })
	}
	r.Checks = append(r.Checks, o.checkBackends(ctx)...)
	if ctx.Err() != nil {
		return nil, beforeTouching(ctx, context.Cause(ctx))
	}
	r.ExitCode = ExitOf(r.Verdict())
	return r, nil
}

// Verdict is the failure of the checks that failed; nil if there is none.
func (r *CheckReport) Verdict() error {
	if found := failures(r.Checks); len(found) > 0 {
		return refuse(found...)
	}
	return nil
}
