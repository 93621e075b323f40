package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// A member is one backend of a run: what the plan says of it, and the host.
type member struct {
	*backend.Backend
	plan Backend
}

// lbCounter is what the LBs themselves see: ss there, towards the servers, or
// the page of a stub_status that they ask for.
type lbCounter struct {
	lbs       fleet
	targets   []string
	statusURL string
}

// Count implements [backend.Counter].
func (c lbCounter) Count(ctx context.Context) (remote.Count, error) {
	lbs := c.lbs
	if c.statusURL != "" {
		lbs = lbs[:1] // the page is the same from everywhere
	}
	all, err := gather(ctx, lbs, func(ctx context.Context, lb *LB) (balancer.Connections, error) {
		return lb.Connections(ctx, balancer.ConnectionsQuery{Targets: c.targets, StatusURL: c.statusURL})
	})
	sum := remote.Count{}
	for _, n := range all {
		sum.Open += n.Open
	}
	return sum, err
}

// Close implements [backend.Counter].
func (lbCounter) Close() error { return nil }

func (o *Operation) newCounter(m *member) backend.Counter {
	set := m.plan.Settings
	url := m.plan.fill(set.StatusURL)
	switch {
	case set.Counter == CounterStubStatus && set.statusOnBackend():
		return backend.StatusCounter{Host: m.Host, URL: url}
	case set.Counter == CounterStubStatus:
		return lbCounter{lbs: o.lbs.of(m.plan), statusURL: url}
	case set.Counter == CounterLB, len(m.plan.Sockets) > 0:
		return lbCounter{lbs: o.lbs.of(m.plan), targets: m.plan.Targets}
	}
	c := remote.NewCounter(m.Host, m.plan.Ports)
	if m.plan.Address != "" {
		m.Clients = c
	}
	return c
}

// newWhole is the batch of all backends of the operation.
func (o *Operation) newWhole() *batch {
	b := &batch{o: o, plan: o.plan}
	for _, p := range o.plan.Backends {
		b.members = append(b.members, &member{Backend: &backend.Backend{Name: p.Name}, plan: p})
	}
	return b
}

// check tries everything that the run will need and that the plan has not tried.
// What is missing is one refusal that lists it all.
func (o *Operation) check(ctx context.Context) error {
	findings := slices.DeleteFunc(slices.Clone(o.plan.Findings), func(f Finding) bool { return f.Warning })
	found := make([][]Finding, len(o.whole.members))
	var all sync.WaitGroup
	for i, m := range o.whole.members {
		all.Go(func() { found[i] = o.checkBackend(ctx, m) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if findings = append(findings, slices.Concat(found...)...); len(findings) > 0 {
		return refuse(findings...)
	}
	return nil
}

func missing(code string, err error) Finding { return Finding{Code: code, Text: err.Error()} }

// checkBackend logs in, looks whether the service and the right to stop and
// start it are there, and reads the counter once.
func (o *Operation) checkBackend(ctx context.Context, m *member) (found []Finding) {
	set := m.plan.Settings
	if o.plan.Spec.needs(set) {
		var err error
		if m.Host, err = o.options.Connect.Backend(ctx, m.plan); err != nil {
			f := missing("ssh", err)
			if set.Service == "" {
				f.Override = "--poll lb, which needs no SSH"
			}
			m.Host = nil
			return []Finding{f}
		}
	}
	if set.Service != "" {
		m.Service = remote.Service{Host: m.Host, Unit: set.Service}
		state, err := m.Service.State(ctx)
		if err != nil {
			found = append(found, missing("service", err))
		}
		m.Active = err == nil && backend.Started(state)
		// Both ways are needed: the way back is part of the way.
		if err := m.Service.SudoCheck(ctx); err != nil {
			found = append(found, missing("sudo", err))
		}
	}
	if o.plan.Spec.Rollout.Reboot {
		if err := remote.SudoCheck(ctx, m.Host, backend.RebootCommand...); err != nil {
			found = append(found, missing("sudo", err))
		}
	}
	if m.Host == nil && set.Counter == CounterSS && len(m.plan.Sockets) == 0 {
		return found
	}
	m.Counter = o.newCounter(m)
	if o.plan.Spec.Kind == Undrain {
		// The counter is for a rollback alone.
		return found
	}
	first, err := m.Counter.Count(ctx)
	if err != nil {
		return append(found, missing("counter", fmt.Errorf("count the open connections with %s: %w", m.plan.counterText(), err)))
	}
	return append(found, o.checkReach(ctx, m, first)...)
}

// checkReach finds a counter that looks at the wrong place: nothing listens on
// the server's port on the backend, and yet the server answers. Its port is then
// forwarded, and ss on the backend would count 0 for ever.
func (o *Operation) checkReach(ctx context.Context, m *member, first remote.Count) []Finding {
	if _, ok := m.Counter.(*remote.Counter); !ok || first.Open > 0 || len(m.plan.up) == 0 {
		return nil
	}
	listening, err := remote.Listening(ctx, m.Host, m.plan.up)
	if err != nil {
		return []Finding{missing("counter", fmt.Errorf("on %s: %w", m.Host.Name(), err))}
	}
	i := slices.Index(listening, false)
	if i < 0 || o.lbs.of(m.plan).each(ctx, func(ctx context.Context, lb *LB) error {
		return lb.Health(ctx, balancer.HealthCheck{Targets: m.plan.Targets})
	}) != nil {
		return nil
	}
	return []Finding{{Code: "forwarded", Override: "--poll lb, or --ssh-host", Text: fmt.Sprintf(
		"%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)",
		strings.Join(m.plan.Targets, ", "), m.Host.Name(), m.plan.up[i])}}
}
