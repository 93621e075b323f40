package drain

import (
	"context"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// expand names the backends of a rolling run whose operator named none: all of
// the upstreams.
func (o *Operation) expand(ctx context.Context, sp spec.Spec) (spec.Spec, error) {
	if sp.Kind != spec.Run || len(sp.Targets) > 0 {
		return sp, nil
	}
	reports, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
		return lb.Ask(ctx, balancer.Query{Upstreams: sp.Upstreams})
	})
	for _, lb := range reports {
		if lb.Report == nil {
			continue
		}
		for _, s := range lb.Report.Servers {
			name := fleet.LockName(s.Address)
			if slices.ContainsFunc(lb.Report.Servers, func(o balancer.Server) bool { return fleet.LockName(o.Address) == name && o.Address != s.Address }) {
				name = s.Address // each port may be an app of its own
			}
			sp.Targets = plan.Once(append(sp.Targets, name))
		}
	}
	if err == nil && len(sp.Targets) == 0 {
		err = spec.UsageError("upstream %s has no server", strings.Join(sp.Upstreams, ", "))
	}
	return sp, err
}

// planRun plans a rolling run: which backends are in it, in which batches, and
// what the guards say of each batch while the others are up.
func (o *Operation) planRun(ctx context.Context, sp spec.Spec, reports []plan.LBPlan, dry bool) (*plan.Plan, error) {
	saved := savedTable(sp, reports)
	sp.Rollout.Canary = sp.Rollout.Canary && !saved.Answered
	whole := plan.New(sp, reports, dry)
	return o.planWithout(ctx, whole, notInPool(whole), saved)
}

// planWithout plans the batches of a rolling run without the backends that it leaves as they are.
func (o *Operation) planWithout(ctx context.Context, whole *plan.Plan, skips []plan.Skip, saved table) (*plan.Plan, error) {
	p := whole.Only(func(b plan.Backend) bool {
		return !slices.ContainsFunc(skips, func(s plan.Skip) bool { return s.Backend == b.Name })
	})
	p.Skipped, p.BatchDiffs = slices.Concat(whole.Skipped, skips), nil
	backends := slices.Clone(p.Backends)
	// As the run takes them: what is out already comes first.
	slices.SortStableFunc(backends, func(a, b plan.Backend) int { return b.Down - a.Down })
	var names []string
	for _, b := range backends {
		if r, ok := saved.row(b.Name); !ok || !r.isWorked() {
			names = append(names, b.Name)
		}
	}
	var err error
	if p.Batches, err = batches(p.Spec.Rollout, names); err != nil {
		return nil, err
	}
	for _, lb := range p.LBs {
		lb.Report.Diff = "" // of all batches at once
	}
	for i, batch := range p.Batches {
		part := p.Only(func(b plan.Backend) bool { return slices.Contains(batch, b.Name) }).Spec
		part.Kind = spec.Drain
		q := plan.Query(part)
		q.Preflight = false
		// What an earlier run has left down is back by then.
		q.Returning = slices.DeleteFunc(slices.Clone(p.Spec.Targets), func(t string) bool { return slices.Contains(part.Targets, t) })
		asked, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) { return lb.Ask(ctx, q) })
		if err != nil {
			return nil, err
		}
		planned := plan.New(part, asked, p.DryRun)
		for _, d := range planned.Diffs() {
			d.Batch = i + 1
			p.BatchDiffs = append(p.BatchDiffs, d)
		}
		for _, f := range planned.Findings {
			if !slices.Contains(p.Findings, f) {
				p.Findings = append(p.Findings, f)
			}
		}
	}
	p.ExitCode = spec.ExitOf(p.Refusal())
	return p, nil
}

// tryOnlyIf has a dry run ask --only-if, and leaves out the backends that say no. Like a run, it asks
// only if nothing else speaks against the run.
func (o *Operation) tryOnlyIf(ctx context.Context) error {
	if o.plan.Spec.Rollout.OnlyIf == "" || o.plan.Refusal() != nil {
		return nil
	}
	for _, found := range gather(o.whole.rows, func(m *row) []spec.Finding {
		c := &checker{backend: m.Name}
		o.login(ctx, m, c)
		return failures(c.checks)
	}) {
		o.plan.Findings = append(o.plan.Findings, found...)
	}
	if o.plan.ExitCode = spec.ExitOf(o.plan.Refusal()); o.plan.ExitCode != spec.Done {
		return nil
	}
	err := o.askOnlyIf(ctx)
	if err == nil {
		asked := *o.plan
		asked.OnlyIfAsked = true
		o.plan, err = o.planWithout(ctx, &asked, o.skipped, table{})
	}
	return err
}

// notInPool is the backends that somebody has taken out of the pool, or that another operation has
// marked down on some of the LBs, but for those that the run that is continued has.
func notInPool(p *plan.Plan) (skips []plan.Skip) {
	for _, b := range p.Backends {
		reason, ours, theirs := "it is marked down outside drainctl", false, false
		for _, lb := range p.LBs {
			op, resumes := continued(p.Spec, lb)
			for _, s := range serversOf(lb, []*row{{plan: b}}) {
				if !s.Down {
					continue
				}
				for _, m := range lb.Report.State.MarksOn(s.Server) {
					own := resumes && m.Operation == op.ID
					ours = ours || own
					if by, ok := lb.Report.State.Find(m.Operation); ok && !own {
						reason, theirs = "it is drained by "+by.Who(), true
					}
				}
			}
		}
		if !ours && (theirs || b.IsOut()) {
			skips = append(skips, plan.Skip{Backend: b.Name, Reason: reason})
		}
	}
	return skips
}

// batches shares backends out.
func batches[T any](r spec.Rollout, backends []T) (all [][]T, err error) {
	size, err := spec.BatchSize(r.Batch, len(backends))
	if err != nil {
		return nil, spec.UsageError("--batch %w", err)
	}
	if r.Canary && len(backends) > 1 {
		all, backends = append(all, backends[:1]), backends[1:]
	}
	return slices.AppendSeq(all, slices.Chunk(backends, size)), nil
}
