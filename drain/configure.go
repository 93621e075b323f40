package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// configure brings the servers of a batch to a wanted state on every LB: down
// forward, not down in reverse. All files are written and tested before any LB
// is reloaded.
type configure struct{}

func (configure) name() StepName { return StepMarkDown }

func (configure) run(ctx context.Context, b *batch, d Direction, s Scope) Verdict {
	switch {
	case s != ThisOperation:
		return b.configure(ctx, d)
	case b == b.o.whole:
		return b.o.restore(ctx)
	}
	return b.revert(ctx, d)
}

// configure edits, tests and reloads. What a rolling run puts back is put back on
// every LB, whatever one of them says.
func (b *batch) configure(ctx context.Context, d Direction) Verdict {
	again := func(ctx context.Context, lb *LB) (LBPlan, error) {
		part, err := lb.ask(ctx, b.query())
		if err == nil {
			err = newPlan(b.plan.Spec, []LBPlan{part}, false).Verdict()
		}
		return part, err
	}
	v := b.applyAll(ctx, b.plan.LBs, nginx.Want{Down: d == Forward}, again, d == Reverse && b.o.plan.Spec.Kind == Run)
	if v.Err == nil {
		v.Detail = b.detail(d)
	}
	return v
}

// revert undoes what this operation has configured on the servers of a batch that
// is not all of it, in the direction that leads back: on every LB, whatever one of
// them says.
func (b *batch) revert(ctx context.Context, d Direction) Verdict {
	want := nginx.Want{Down: d == Forward}
	q := b.query()
	q.Preflight, q.Want, q.Unmanaged, q.Returning = false, &want, true, nil
	// Of what is found, only what was configured here.
	ask := func(ctx context.Context, lb *LB) (LBPlan, error) {
		now, err := lb.ask(ctx, q)
		if err != nil {
			return now, err
		}
		did := b.part(lb).Report.Servers
		now.Report.Servers = slices.DeleteFunc(now.Report.Servers, func(s balancer.Server) bool {
			return !slices.ContainsFunc(did, func(was balancer.Server) bool {
				return was.Configure && was.Server == s.Server && was.File == s.File
			})
		})
		return now, nil
	}
	parts, err := b.o.askEach(ctx, ask)
	v := b.applyAll(ctx, parts, want, ask, true)
	if err != nil {
		return failed(true, join(err, v.Err))
	}
	return v
}

// askEach asks every LB, and makes connections that broke anew. The part of one that
// does not answer is empty, and its name too.
func (o *Operation) askEach(ctx context.Context, ask asker) ([]LBPlan, error) {
	return gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		part, err := LBPlan{}, o.usable(ctx, lb)
		if err == nil {
			part, err = ask(ctx, lb)
		}
		if err != nil {
			part = LBPlan{Report: &balancer.Report{}}
		}
		return part, err
	})
}

// An asker asks an LB for its part.
type asker func(context.Context, *LB) (LBPlan, error)

// applyAll edits and tests every LB that has a part, and reloads those that need it:
// all or nothing, or, on the way back, each that can be.
func (b *batch) applyAll(ctx context.Context, parts []LBPlan, want nginx.Want, again asker, each bool) Verdict {
	lbs := b.o.lbs
	reload := make([]bool, len(lbs))
	err := lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		i := slices.Index(lbs, lb)
		if parts[i].LB == "" {
			return nil
		}
		lb.without(want, parts[i].Report.Servers)
		// There is no way back without what somebody else has pending.
		a, err := b.apply(ctx, lb, parts[i].change(want, each || b.plan.Spec.Allow.Pending), func() (balancer.Change, error) {
			part, err := again(ctx, lb)
			if err != nil {
				return balancer.Change{}, err
			}
			return part.change(want, each || b.plan.Spec.Allow.Pending), nil
		})
		reload[i] = a.NeedsReload && err == nil
		return err
	})
	changed := slices.ContainsFunc(lbs, func(lb *LB) bool { return lb.edited }) || slices.Contains(reload, true)
	if err != nil && !each {
		return failed(changed, err)
	}
	reloadErr := lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		if !reload[slices.Index(lbs, lb)] {
			return nil
		}
		return b.o.reload(ctx, lb)
	})
	for i, lb := range lbs {
		if parts[i].LB != "" && lb.loaded {
			lb.with(want, parts[i].Report)
		}
	}
	if err = join(err, reloadErr); err != nil {
		return failed(changed, err)
	}
	return Verdict{Changed: changed}
}

// without notes what an LB may be without from now on.
func (lb *LB) without(want nginx.Want, servers []balancer.Server) {
	for _, s := range servers {
		if want.Down && !slices.Contains(lb.out, s.Address) {
			lb.out = append(lb.out, s.Address)
		}
	}
}

// with notes what an LB was seen to have again.
func (lb *LB) with(want nginx.Want, r *balancer.Report) {
	back := r.Returning
	if !want.Down {
		back = append(slices.Clone(back), r.Servers...)
	}
	lb.out = slices.DeleteFunc(lb.out, func(address string) bool {
		return slices.ContainsFunc(back, func(s balancer.Server) bool { return s.Address == address })
	})
}

// join is errors.Join, with a single error as it is.
func join(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	return errors.Join(a, b)
}

// detail says what the servers are now; the ones that an undrain leaves down are
// not its doing.
func (b *batch) detail(d Direction) Detail {
	var detail Detail
	for _, lb := range b.plan.LBs {
		wanted, stay := sides(lb.Report.Servers, b.plan.Spec.Kind)
		detail.StayDown = append(detail.StayDown, names(stay)...)
		if d == Forward {
			detail.Down = append(detail.Down, names(wanted)...)
		} else {
			detail.Up = append(detail.Up, names(wanted)...)
		}
		detail.Up = append(detail.Up, names(lb.Report.Returning)...)
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

// apply edits and tests one LB. Files that have changed since they were planned
// are planned again, and the guards asked again.
func (b *batch) apply(ctx context.Context, lb *LB, c balancer.Change, again func() (balancer.Change, error)) (a balancer.Applied, err error) {
	for try := 0; ; try++ {
		lb.loaded = false
		a, err = lb.Apply(ctx, c)
		if balancer.CodeOf(err) != balancer.CodeChanged || try == attempts {
			break
		}
		b.o.emit(&Warning{Header: Header{LB: lb.Name, Step: StepMarkDown}, Text: fmt.Sprintf("%v: planning again", err)})
		if c, err = again(); err != nil {
			return a, err
		}
	}
	head := Header{LB: lb.Name, Step: StepMarkDown}
	for _, text := range a.Notices {
		b.o.emit(&Warning{Header: head, Text: text})
	}
	if err != nil {
		return a, err
	}
	lb.edited, lb.loaded = lb.edited || len(a.Edited) > 0, !a.NeedsReload
	if len(a.Stale) > 0 {
		b.o.emit(&NotLoaded{Header: head, Files: a.Stale})
	}
	if len(a.Edited) > 0 {
		b.o.emit(&Edited{Header: head, Edits: a.Edited, Diff: a.Diff})
	}
	return a, nil
}

func (o *Operation) reload(ctx context.Context, lb *LB) error {
	g, err := lb.Reload(ctx, balancer.ReloadRequest{Timeout: o.plan.Spec.ReloadTimeout})
	if err != nil {
		return err
	}
	lb.loaded = true
	o.emit(&Reloaded{Header: Header{LB: lb.Name, Step: StepMarkDown}, Generation: g})
	return nil
}

// restore undoes what this operation did, on every LB, whatever one of them says.
func (o *Operation) restore(ctx context.Context) Verdict {
	changed := make([]bool, len(o.lbs))
	err := o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		if err := o.usable(ctx, lb); err != nil {
			return err
		}
		done, err := lb.Restore(ctx, balancer.ReloadRequest{Timeout: o.plan.Spec.ReloadTimeout})
		for _, text := range done.Notices {
			o.emit(&Warning{Header: Header{LB: lb.Name, Step: StepMarkDown}, Text: text})
		}
		changed[slices.Index(o.lbs, lb)] = done.Changed
		if err == nil {
			lb.edited, lb.loaded, lb.out = false, true, nil
		}
		return err
	})
	if err != nil {
		return failed(true, err)
	}
	return Verdict{Changed: slices.Contains(changed, true), Detail: Detail{Restored: true}}
}

// release tells the journals that the operation is done with the servers of a
// batch, which it has put back.
func (b *batch) release(ctx context.Context, progress []byte) error {
	b.o.taken = slices.DeleteFunc(b.o.taken, func(name string) bool { return slices.Contains(namesOf(b.members), name) })
	return b.o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		if err := b.o.usable(ctx, lb); err != nil {
			return err
		}
		return lb.Record(ctx, balancer.Recorded{Lines: lb.takeHistory(), Released: b.keysOf(lb), Progress: progress})
	})
}

// keysOf is the servers of a batch, for the journal of one LB.
func (b *batch) keysOf(lb *LB) (keys []journal.Server) {
	for _, s := range b.part(lb).Report.Servers {
		if !slices.Contains(keys, s.Server) {
			keys = append(keys, s.Server)
		}
	}
	return keys
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
