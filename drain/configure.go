package drain

import (
	"context"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
)

// A round is one reconciliation of a batch.
type round struct {
	*batch
	Phase
	want      balancer.Want
	returning []*row // that come back in the same edit
	// back tells that the servers return to the pool, or are as before again: an LB that fails
	// then keeps no other LB from it.
	back bool
}

// reconcile brings the servers of a batch to a wanted state on every LB: all or nothing on the way
// there, every file written and tested before any LB is reloaded; on the way back on as many LBs
// as possible. What a rolling run has made healthy comes back with the edit that
// takes the next batch out.
func (b *batch) reconcile(ctx context.Context, p Phase, undo bool) Verdict {
	m := round{batch: b, Phase: p, want: balancer.Back, back: undo || p == clearing && b.o.plan.Spec.Kind == Run}
	switch {
	case undo:
		m.want = balancer.AsBefore
	case p == marking:
		m.want, m.returning = balancer.Out, b.o.returning()
	}
	changed, err := m.onAll(ctx)
	switch {
	case err != nil:
		return Verdict{Outcome: StepError, Err: err, Changed: changed || m.back}
	case undo:
		return Verdict{Changed: changed, Detail: Detail{Restored: true}}
	}
	for _, r := range m.returning {
		r.end = ended
	}
	return Verdict{Changed: changed, Detail: m.detail()}
}

// onAll stages and loads on all LBs. It reports whether one of them was changed.
func (m round) onAll(ctx context.Context) (changed bool, err error) {
	lbs := m.o.lbs
	staged := make([]balancer.Staged, len(lbs))
	stage := func(ctx context.Context, lb *LB) (err error) {
		staged[slices.Index(lbs, lb)], err = m.stage(ctx, lb)
		return err
	}
	load := func(ctx context.Context, lb *LB) error {
		if staged[slices.Index(lbs, lb)].NeedsLoad {
			return m.load(ctx, lb)
		}
		return nil
	}
	if m.back {
		err = lbs.each(ctx, func(ctx context.Context, lb *LB) error {
			err := m.o.usable(ctx, lb)
			if err == nil {
				err = stage(ctx, lb)
			}
			if err == nil {
				err = load(ctx, lb)
			}
			return err
		})
	} else if err = lbs.each(ctx, stage); err == nil {
		err = lbs.each(ctx, load)
	}
	changed = slices.ContainsFunc(staged, func(s balancer.Staged) bool { return s.NeedsLoad || len(s.Edited) > 0 })
	return changed, err
}

// request returns the request for one LB. On the way back it accepts files that others have changed
// since the plan: their changes are loaded too, since there is no other way back.
func (m round) request(lb *LB) balancer.StageRequest {
	spec := m.o.plan.Spec
	q := balancer.StageRequest{Force: spec.Kind == Undrain && spec.Force, AcceptPending: m.back || spec.Allow.Pending}
	if !m.back {
		q.Files = m.part(lb).Report.Files
	}
	add := func(want balancer.Want, servers []balancer.Server) {
		if len(servers) > 0 {
			q.Wants = append(q.Wants, balancer.Wanted{Want: want, Servers: keysOf(servers)})
		}
	}
	add(m.want, m.servers(lb, m.rows))
	add(balancer.Back, m.o.whole.servers(lb, m.returning))
	return q
}

// attempts bounds how often an LB is planned again because somebody else edits its files at the
// same time.
const attempts = 5

// stage edits and tests one LB. Files that have changed since they were planned are planned again,
// and the guards asked again.
func (m round) stage(ctx context.Context, lb *LB) (staged balancer.Staged, err error) {
	head := m.head(lb)
	for try := 0; ; try++ {
		q := m.request(lb)
		if len(q.Wants) == 0 {
			return staged, nil
		}
		lb.loaded = false
		staged, err = lb.Stage(ctx, q)
		if balancer.CodeOf(err) != balancer.CodeChanged || try == attempts {
			break
		}
		m.o.emit(&Warning{Header: head, Text: fmt.Sprintf("%v: planning again", err)})
		if err = m.planAgain(ctx, lb); err != nil {
			return staged, err
		}
	}
	for _, text := range staged.Notices {
		m.o.emit(&Warning{Header: head, Text: text})
	}
	if err != nil {
		return staged, err
	}
	lb.loaded = !staged.NeedsLoad
	if len(staged.Stale) > 0 {
		m.o.emit(&NotLoaded{Header: head, Files: staged.Stale})
	}
	if len(staged.Edited) > 0 {
		m.o.emit(&Edited{Header: head, Edits: staged.Edited, Diff: staged.Diff})
	}
	return staged, nil
}

// load has one LB load what was staged there.
func (m round) load(ctx context.Context, lb *LB) error {
	loaded, err := lb.Load(ctx, balancer.LoadRequest{Timeout: m.o.plan.Spec.ReloadTimeout})
	if err != nil {
		return err
	}
	for _, text := range loaded.Notices {
		m.o.emit(&Warning{Header: m.head(lb), Text: text})
	}
	lb.loaded = true
	m.o.emit(&Reloaded{Header: m.head(lb), Generation: loaded.Generation})
	return nil
}

// head returns the header of an event on one LB.
func (m round) head(lb *LB) Header {
	return Header{LB: lb.Name, Step: m.step(), Direction: m.direction()}
}

// spec returns the spec of the batch alone. For a batch of a rolling run it is a drain.
func (b *batch) spec() Spec {
	spec := b.o.plan.Spec
	spec.Targets = targetsOf(b.rows)
	if spec.Kind == Run {
		spec.Kind = Drain
	}
	return spec
}

// plan asks one LB for the plan of the batch. Other backends of a rolling run return with it.
func (b *batch) plan(ctx context.Context, lb *LB) (LBPlan, error) {
	q := query(b.spec())
	q.Targets, q.Returning = targetsOf(rowsOn(lb.Name, b.rows)), targetsOf(rowsOn(lb.Name, b.o.returning()))
	if len(q.Targets) > 0 {
		return lb.ask(ctx, q)
	}
	report := *b.part(lb).Report // nothing is to be done there
	report.Servers, report.Upstreams = nil, nil
	return LBPlan{lb.Name, &report}, nil
}

// planAgain plans the part of one LB again, and asks the guards.
func (b *batch) planAgain(ctx context.Context, lb *LB) error {
	part, err := b.plan(ctx, lb)
	if err == nil {
		err = newPlan(b.spec(), []LBPlan{part}, false).Verdict()
	}
	if err == nil {
		i := slices.Index(b.o.lbs, lb)
		b.lbs[i] = part
		b.o.learn(i, part)
	}
	return err
}

// detail returns the servers that are up now, those that are down, and those that an undrain leaves
// down because somebody else marked them.
func (m round) detail() (detail Detail) {
	undrain := m.o.plan.Spec.Kind == Undrain
	for _, lb := range m.o.lbs {
		servers := m.servers(lb, m.rows)
		if m.want == balancer.Out {
			detail.Down = append(detail.Down, names(servers)...)
			detail.Up = append(detail.Up, names(m.o.whole.servers(lb, m.returning))...)
			continue
		}
		stays := func(s balancer.Server) bool { return s.Down && !s.Managed && !(undrain && s.Configure) }
		var up, down []balancer.Server
		for _, s := range servers {
			if stays(s) {
				down = append(down, s)
			} else {
				up = append(up, s)
			}
		}
		detail.Up = append(detail.Up, names(up)...)
		detail.StayDown = append(detail.StayDown, names(down)...)
	}
	for _, list := range []*[]string{&detail.Down, &detail.Up, &detail.StayDown} {
		*list = once(*list)
	}
	return detail
}

// once is a list without what is in it before.
func once(list []string) []string {
	var kept []string
	for _, s := range list {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}
