package drain

import (
	"context"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
)

// configure brings the servers of the plan to a wanted state on every LB: down
// forward, not down in reverse. All files are written and tested before any LB
// is reloaded.
type configure struct{ o *Operation }

func (*configure) name() StepName { return StepMarkDown }

func (c *configure) run(ctx context.Context, d Direction, s Scope) Verdict {
	if s == ThisOperation {
		return c.restore(ctx)
	}
	plans := make(map[*LB]LBPlan, len(c.o.lbs))
	for i, lb := range c.o.lbs {
		plans[lb] = c.o.plan.LBs[i]
	}
	reload := make([]bool, len(c.o.lbs))
	err := c.o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		a, err := c.apply(ctx, lb, plans[lb])
		reload[slices.Index(c.o.lbs, lb)] = a.NeedsReload
		return err
	})
	changed := slices.ContainsFunc(c.o.lbs, func(lb *LB) bool { return lb.edited }) || slices.Contains(reload, true)
	if err != nil {
		return failed(changed, err)
	}
	err = c.o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		if !reload[slices.Index(c.o.lbs, lb)] {
			return nil
		}
		return c.reload(ctx, lb)
	})
	if err != nil {
		return failed(changed, err)
	}
	return Verdict{Changed: changed, Detail: c.detail(d)}
}

// detail says what the servers are now; the ones that an undrain leaves down are
// not its doing.
func (c *configure) detail(d Direction) Detail {
	var detail Detail
	for _, lb := range c.o.plan.LBs {
		wanted, stay := sides(lb.Report.Servers, c.o.plan.Spec.Kind)
		detail.StayDown = append(detail.StayDown, names(stay)...)
		if d == Forward {
			detail.Down = append(detail.Down, names(wanted)...)
		} else {
			detail.Up = append(detail.Up, names(wanted)...)
		}
	}
	return detail
}

// attempts bounds how often an LB is planned again because somebody else edits
// its files at the same time.
const attempts = 5

// apply edits and tests one LB. Files that have changed since they were planned
// are planned again, and the guards asked again.
func (c *configure) apply(ctx context.Context, lb *LB, part LBPlan) (a balancer.Applied, err error) {
	spec := c.o.plan.Spec
	for try := 0; ; try++ {
		lb.loaded = false
		a, err = lb.Apply(ctx, part.change(spec))
		if balancer.CodeOf(err) != balancer.CodeChanged || try == attempts {
			break
		}
		c.o.emit(&Warning{Header: Header{LB: lb.Name, Step: StepMarkDown}, Text: fmt.Sprintf("%v: planning again", err)})
		if part, err = report(ctx, lb, spec); err != nil {
			return a, err
		}
		if err := newPlan(spec, []LBPlan{part}, false).Verdict(); err != nil {
			return a, err
		}
	}
	head := Header{LB: lb.Name, Step: StepMarkDown}
	for _, text := range a.Notices {
		c.o.emit(&Warning{Header: head, Text: text})
	}
	if err != nil {
		return a, err
	}
	lb.edited, lb.loaded = len(a.Edited) > 0, !a.NeedsReload
	if len(a.Stale) > 0 {
		c.o.emit(&NotLoaded{Header: head, Files: a.Stale})
	}
	if lb.edited {
		c.o.emit(&Edited{Header: head, Edits: a.Edited})
	}
	return a, nil
}

func (c *configure) reload(ctx context.Context, lb *LB) error {
	g, err := lb.Reload(ctx, balancer.ReloadRequest{Timeout: c.o.plan.Spec.ReloadTimeout})
	if err != nil {
		return err
	}
	lb.loaded = true
	c.o.emit(&Reloaded{Header: Header{LB: lb.Name, Step: StepMarkDown}, Generation: g})
	return nil
}

// restore undoes what this operation did, on every LB, whatever one of them says.
func (c *configure) restore(ctx context.Context) Verdict {
	changed := make([]bool, len(c.o.lbs))
	err := c.o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		if err := c.o.usable(ctx, lb); err != nil {
			return err
		}
		done, err := lb.Restore(ctx, balancer.ReloadRequest{Timeout: c.o.plan.Spec.ReloadTimeout})
		for _, text := range done.Notices {
			c.o.emit(&Warning{Header: Header{LB: lb.Name, Step: StepMarkDown}, Text: text})
		}
		changed[slices.Index(c.o.lbs, lb)] = done.Changed
		if err == nil {
			lb.edited, lb.loaded = false, true
		}
		return err
	})
	if err != nil {
		return failed(true, err)
	}
	return Verdict{Changed: slices.Contains(changed, true), Detail: Detail{Restored: true}}
}
