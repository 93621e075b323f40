package drain

import (
	"context"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
)

// expand names the backends of a rolling run whose operator named none: all of
// the upstreams.
func (o *Operation) expand(ctx context.Context, spec Spec) (Spec, error) {
	if spec.Kind != Run || len(spec.Targets) > 0 {
		return spec, nil
	}
	reports, err := Gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		return lb.Ask(ctx, balancer.Query{Upstreams: spec.Upstreams})
	})
	for _, lb := range reports {
		if lb.Report == nil {
			continue
		}
		for _, s := range lb.Report.Servers {
			name := LockName(s.Address)
			if slices.ContainsFunc(lb.Report.Servers, func(o balancer.Server) bool { return LockName(o.Address) == name && o.Address != s.Address }) {
				name = s.Address // each port may be an app of its own
			}
			spec.Targets = once(append(spec.Targets, name))
		}
	}
	if err == nil && len(spec.Targets) == 0 {
		err = usage("upstream %s has no server", strings.Join(spec.Upstreams, ", "))
	}
	return spec, err
}

// planRun plans a rolling run: which backends are in it, in which batches, and
// what the guards say of each batch while the others are up.
func (o *Operation) planRun(ctx context.Context, spec Spec, reports []LBPlan, dry bool) (*Plan, error) {
	whole := newPlan(spec, reports, dry)
	skips, saved := notInPool(whole), savedTable(spec, reports)
	p := whole.only(func(b Backend) bool {
		return !slices.ContainsFunc(skips, func(s Skip) bool { return s.Backend == b.Name })
	})
	p.Skipped = skips
	backends := slices.Clone(p.Backends)
	// As the run takes them: what is out already comes first.
	slices.SortStableFunc(backends, func(a, b Backend) int { return b.down - a.down })
	var names []string
	for _, b := range backends {
		if r, ok := saved.row(b.Name); !ok || !r.isWorked() {
			names = append(names, b.Name)
		}
	}
	var err error
	if p.Batches, err = batches(spec.Rollout, names); err != nil {
		return nil, err
	}
	for _, lb := range p.LBs {
		lb.Report.Diff = "" // of all batches at once
	}
	for i, batch := range p.Batches {
		part := p.only(func(b Backend) bool { return slices.Contains(batch, b.Name) }).Spec
		part.Kind = Drain
		q := query(part)
		q.Preflight = false
		// What an earlier run has left down is back by then.
		q.Returning = slices.DeleteFunc(slices.Clone(p.Spec.Targets), func(t string) bool { return slices.Contains(part.Targets, t) })
		asked, err := Gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) { return lb.Ask(ctx, q) })
		if err != nil {
			return nil, err
		}
		planned := newPlan(part, asked, dry)
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
	p.ExitCode = ExitOf(p.Verdict())
	return p, nil
}

// notInPool is the backends that somebody has taken out of the pool, but for those
// that the run that is continued has.
func notInPool(p *Plan) (skips []Skip) {
	for _, b := range p.Backends {
		if !b.out() {
			continue
		}
		reason, ours := "it is marked down outside drainctl", false
		for _, lb := range p.LBs {
			op, resumes := continued(p.Spec, lb)
			for _, m := range lb.Report.State.Marks {
				if !matches(b.targets(), m.Address) {
					continue
				}
				ours = ours || resumes && m.Operation == op.ID
				if by, ok := lb.Report.State.Find(m.Operation); ok {
					reason = "it is drained by " + by.Who()
				}
			}
		}
		if !ours {
			skips = append(skips, Skip{Backend: b.Name, Reason: reason})
		}
	}
	return skips
}

// batches shares backends out.
func batches[T any](r Rollout, backends []T) (all [][]T, err error) {
	size, err := BatchSize(r.Batch, len(backends))
	if err != nil {
		return nil, usage("--batch %w", err)
	}
	if r.Canary && len(backends) > 1 {
		all, backends = append(all, backends[:1]), backends[1:]
	}
	return slices.AppendSeq(all, slices.Chunk(backends, size)), nil
}
