package drain

import (
	"context"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
)

// configure brings the servers of a batch to a wanted state on every LB: out of the pool
// forward, back in reverse, and as before on the way back from what this operation did. All
// files are written and tested before any LB is reloaded.
type configure struct{}

func (configure) name() StepName { return StepMarkDown }

func (configure) run(ctx context.Context, b *batch, d Direction, s Scope) Verdict {
	want := balancer.Back
	switch {
	case s == ThisOperation:
		want = balancer.AsBefore
	case d == Forward:
		want = balancer.Out
	}
	v := b.reconcile(ctx, want)
	switch {
	case v.Err != nil:
	case want == balancer.AsBefore:
		v.Detail = Detail{Restored: true}
	default:
		v.Detail = b.detail(d)
	}
	return v
}

// reconcile brings the batch's servers to a state on every LB: all or nothing on the way there;
// on the way back on each LB, whatever another one says.
func (b *batch) reconcile(ctx context.Context, want balancer.Want) Verdict {
	lbs, back := b.o.lbs, b.isWayBack(want)
	staged := make([]balancer.Staged, len(lbs))
	stage := func(ctx context.Context, lb *LB) (err error) {
		staged[slices.Index(lbs, lb)], err = b.stage(ctx, lb, want, back)
		return err
	}
	load := func(ctx context.Context, lb *LB) error {
		if staged[slices.Index(lbs, lb)].NeedsLoad {
			if err := b.o.load(ctx, lb, want); err != nil {
				return err
			}
		}
		b.noteBack(lb, want)
		return nil
	}
	var err error
	if back {
		err = lbs.each(ctx, func(ctx context.Context, lb *LB) error {
			err := b.o.usable(ctx, lb)
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
	v := Verdict{Changed: slices.ContainsFunc(lbs, func(lb *LB) bool { return lb.edited })}
	for _, s := range staged {
		v.Changed = v.Changed || s.NeedsLoad || len(s.Edited) > 0
	}
	if err != nil {
		v.Outcome, v.Err, v.Changed = StepError, err, v.Changed || back
	}
	return v
}

// isWayBack tells whether a state is one that is tried for on every LB: what this operation
// has done is undone, or what a rolling run has taken out comes back.
func (b *batch) isWayBack(want balancer.Want) bool {
	return want == balancer.AsBefore || want == balancer.Back && b.o.plan.Spec.Kind == Run
}

// request is what an LB is asked for. On the way back the files may have changed since the plan,
// and what others have changed in them is loaded too: there is no other way back.
func (b *batch) request(lb *LB, want balancer.Want, back bool) balancer.StageRequest {
	r := b.part(lb).Report
	q := balancer.StageRequest{
		Force: b.plan.Spec.Kind == Undrain && b.plan.Spec.Force, AcceptPending: back || b.plan.Spec.Allow.Pending,
	}
	if !back {
		q.Files = r.Files
	}
	add := func(want balancer.Want, servers []balancer.Server) {
		if len(servers) > 0 {
			q.Wants = append(q.Wants, balancer.Wanted{Want: want, Servers: keysOf(servers)})
		}
	}
	if add(want, r.Servers); want == balancer.Out {
		add(balancer.Back, r.Returning)
	}
	return q
}

// keysOf is servers for the journal of an LB, each once.
func keysOf(servers []balancer.Server) (keys []journal.Server) {
	for _, s := range servers {
		if !slices.Contains(keys, s.Server) {
			keys = append(keys, s.Server)
		}
	}
	return keys
}

// noteOut notes what an LB may be without from now on.
func (b *batch) noteOut(lb *LB, want balancer.Want) {
	for _, s := range b.part(lb).Report.Servers {
		if want == balancer.Out && !slices.Contains(lb.out, s.Address) {
			lb.out = append(lb.out, s.Address)
		}
	}
}

// noteBack notes what an LB was seen to have again. What an earlier run has left out is not
// among that when it is as before.
func (b *batch) noteBack(lb *LB, want balancer.Want) {
	r := b.part(lb).Report
	if want == balancer.AsBefore && b == b.o.whole {
		lb.edited, lb.out = false, nil
		return
	}
	back := r.Servers
	switch want {
	case balancer.Out:
		back = r.Returning
	case balancer.AsBefore:
		back = slices.DeleteFunc(slices.Clone(back), func(s balancer.Server) bool { return s.Down })
	}
	lb.out = slices.DeleteFunc(lb.out, func(address string) bool {
		return slices.ContainsFunc(back, func(s balancer.Server) bool { return s.Address == address })
	})
}

// detail says what the servers are now; the ones that an undrain leaves down are
// not its doing.
func (b *batch) detail(d Direction) Detail {
	var detail Detail
	for _, lb := range b.plan.LBs {
		if d == Forward {
			detail.Down = append(detail.Down, names(lb.Report.Servers)...)
			detail.Up = append(detail.Up, names(lb.Report.Returning)...)
			continue
		}
		stays := func(s balancer.Server) bool {
			return s.Down && !s.Managed && !(b.plan.Spec.Kind == Undrain && s.Configure) // by force
		}
		up := slices.DeleteFunc(slices.Clone(lb.Report.Servers), stays)
		detail.Up = append(detail.Up, names(up)...)
		stay := slices.DeleteFunc(slices.Clone(lb.Report.Servers), func(s balancer.Server) bool { return !stays(s) })
		detail.StayDown = append(detail.StayDown, names(stay)...)
	}
	for _, list := range []*[]string{&detail.Down, &detail.Up, &detail.StayDown} {
		*list = once(*list)
	}
	return detail
}

// query is what the LBs are asked for the batch.
func (b *batch) query() balancer.Query {
	q := query(b.plan.Spec)
	q.Returning = b.returning
	return q
}

// part is the part of one LB.
func (b *batch) part(lb *LB) LBPlan { return b.plan.LBs[slices.Index(b.o.lbs, lb)] }

// attempts bounds how often an LB is planned again because somebody else edits
// its files at the same time.
const attempts = 5

// stage edits and tests one LB. Files that have changed since they were planned
// are planned again, and the guards asked again.
func (b *batch) stage(ctx context.Context, lb *LB, want balancer.Want, back bool) (staged balancer.Staged, err error) {
	head := Header{LB: lb.Name, Step: StepMarkDown}
	for try := 0; ; try++ {
		q := b.request(lb, want, back)
		if len(q.Wants) == 0 {
			return staged, nil
		}
		b.noteOut(lb, want)
		lb.loaded = false
		staged, err = lb.Stage(ctx, q)
		if balancer.CodeOf(err) != balancer.CodeChanged || try == attempts {
			break
		}
		b.o.emit(&Warning{Header: head, Text: fmt.Sprintf("%v: planning again", err)})
		if err = b.planAgain(ctx, lb); err != nil {
			return staged, err
		}
	}
	for _, text := range staged.Notices {
		b.o.emit(&Warning{Header: head, Text: text})
	}
	if err != nil {
		return staged, err
	}
	lb.edited, lb.loaded = lb.edited || len(staged.Edited) > 0, !staged.NeedsLoad
	if want == balancer.AsBefore && b == b.o.whole {
		return staged, nil // the end of the step says so
	}
	if len(staged.Stale) > 0 {
		b.o.emit(&NotLoaded{Header: head, Files: staged.Stale})
	}
	if len(staged.Edited) > 0 {
		b.o.emit(&Edited{Header: head, Edits: staged.Edited, Diff: staged.Diff})
	}
	return staged, nil
}

// planAgain plans the part of one LB again, and asks the guards.
func (b *batch) planAgain(ctx context.Context, lb *LB) error {
	part, err := lb.ask(ctx, b.query())
	if err == nil {
		err = newPlan(b.plan.Spec, []LBPlan{part}, false).Verdict()
	}
	if err == nil {
		b.plan.LBs[slices.Index(b.o.lbs, lb)] = part
	}
	return err
}

func (o *Operation) load(ctx context.Context, lb *LB, want balancer.Want) error {
	loaded, err := lb.Load(ctx, balancer.LoadRequest{Timeout: o.plan.Spec.ReloadTimeout})
	if err != nil {
		return err
	}
	head := Header{LB: lb.Name, Step: StepMarkDown}
	for _, text := range loaded.Notices {
		o.emit(&Warning{Header: head, Text: text})
	}
	lb.loaded = true
	if want != balancer.AsBefore {
		o.emit(&Reloaded{Header: head, Generation: loaded.Generation})
	}
	return nil
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
