package drain

import (
	"context"
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// reconcile brings the servers of a batch to a wanted state on every LB. Backends of a rolling run that
// are healthy again come back with the edit that takes the next batch out.
func (b *batch) reconcile(ctx context.Context, p plan.Phase, undo bool) Verdict {
	want := balancer.Back
	var returning []*row
	switch {
	case undo:
		want = balancer.AsBefore
	case p == plan.Marking:
		want, returning = balancer.Out, b.o.returning()
	}
	back := undo || p == plan.Clearing && b.o.plan.Spec.Kind == spec.Run
	changed, err := b.o.lbs.Reconcile(ctx, fleet.Round{
		Header: event.Header{Step: p.Step(), Direction: p.Direction()}, BestEffort: back,
		Request: func(lb *fleet.LB) balancer.StageRequest { return b.request(lb, want, returning, back) },
		Replan:  b.planAgain, ReloadTimeout: b.o.plan.Spec.ReloadTimeout, Locks: b.o.locks(), Emit: b.o.emit,
	})
	switch {
	case err != nil:
		return Verdict{Outcome: StepError, Err: err, Changed: changed || back}
	case undo:
		return Verdict{Changed: changed, Detail: event.Detail{Restored: true}}
	}
	for _, r := range returning {
		r.end = done
	}
	return Verdict{Changed: changed, Detail: b.detail(want, returning)}
}

// request returns the request for one LB. On the way back it accepts files that others have changed
// since the plan: their changes are loaded too, since there is no other way back.
func (b *batch) request(lb *fleet.LB, want balancer.Want, returning []*row, back bool) balancer.StageRequest {
	sp := b.o.plan.Spec
	q := balancer.StageRequest{Force: sp.Kind == spec.Undrain && sp.Force, AcceptPending: back || sp.Allow.Pending, AllowStopped: sp.Allow.StoppedNginx}
	if !back {
		q.Files = b.part(lb).Report.Files
	}
	add := func(want balancer.Want, servers []balancer.Server) {
		if len(servers) > 0 {
			q.Wants = append(q.Wants, balancer.Wanted{Want: want, Servers: keysOf(servers)})
		}
	}
	add(want, b.servers(lb, b.rows))
	add(balancer.Back, b.o.whole.servers(lb, returning))
	return q
}

// spec returns the spec of the batch alone. For a batch of a rolling run it is a drain.
func (b *batch) spec() spec.Spec {
	sp := b.o.plan.Spec
	sp.Targets = targetsOf(b.rows)
	if sp.Kind == spec.Run {
		sp.Kind = spec.Drain
	}
	return sp
}

// plan asks one LB for the plan of the batch. Other backends of a rolling run return with it.
func (b *batch) plan(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
	q := plan.Query(b.spec())
	q.Targets, q.Returning = targetsOf(rowsOn(lb.Name, b.rows)), targetsOf(rowsOn(lb.Name, b.o.returning()))
	if len(q.Targets) > 0 {
		return lb.Ask(ctx, q)
	}
	report := *b.part(lb).Report // nothing is to be done there
	report.Servers, report.Upstreams = nil, nil
	report.Files = nil // which others may return in: their edit is not planned
	return plan.LBPlan{LB: lb.Name, Report: &report}, nil
}

// planAgain plans the part of one LB again, and asks the guards.
func (b *batch) planAgain(ctx context.Context, lb *fleet.LB) error {
	part, err := b.plan(ctx, lb)
	if err == nil {
		err = plan.New(b.spec(), []plan.LBPlan{part}, false).Refusal()
	}
	if err == nil {
		err = b.checkCounted(part)
	}
	if err == nil {
		i := slices.Index(b.o.lbs, lb)
		b.lbs[i] = part
		b.o.learn(i, part)
	}
	return err
}

// checkCounted refuses a server that was added since the operation began, if the counter on its backend
// does not count its connections.
func (b *batch) checkCounted(part plan.LBPlan) error {
	for _, r := range b.rows {
		if r.Sockets == nil {
			continue
		}
		for _, s := range serversOf(part, []*row{r}) {
			if a, err := nginx.ParseAddress(s.Address); err != nil || !slices.Contains(r.plan.Ports, a.Port) {
				return spec.Refuse(spec.Finding{Code: "uncounted", LB: part.LB, Text: fmt.Sprintf(
					"%s was added since this operation began, and its connections are not counted on %s", s.Address, r.Host.Name())})
			}
		}
	}
	return nil
}

// detail returns the servers that are up now, those that are down, and those that an undrain leaves
// down because somebody else marked them.
func (b *batch) detail(want balancer.Want, returning []*row) (detail event.Detail) {
	undrain := b.o.plan.Spec.Kind == spec.Undrain
	for _, lb := range b.o.lbs {
		servers := b.servers(lb, b.rows)
		if want == balancer.Out {
			detail.Down = append(detail.Down, plan.ServerNames(servers)...)
			detail.Up = append(detail.Up, plan.ServerNames(b.o.whole.servers(lb, returning))...)
			continue
		}
		stays := func(s balancer.Server) bool { return s.Down && !s.Managed && !(undrain && s.NeedsEdit) }
		var up, down []balancer.Server
		for _, s := range servers {
			if stays(s) {
				down = append(down, s)
			} else {
				up = append(up, s)
			}
		}
		detail.Up = append(detail.Up, plan.ServerNames(up)...)
		detail.StayDown = append(detail.StayDown, plan.ServerNames(down)...)
	}
	for _, list := range []*[]string{&detail.Down, &detail.Up, &detail.StayDown} {
		*list = plan.Once(*list)
	}
	return detail
}
