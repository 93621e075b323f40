package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	statusURL string
}

// Count implements [backend.Counter].
func (c lbCounter) Count(ctx context.Context) (remote.Count, error) {
	lbs := c.lbs
	if c.statusURL != "" {
		lbs = lbs[:1] // the page is the same from everywhere
	}
	all, err := gather(ctx, lbs, func(ctx context.Context, lb *LB) (balancer.Connections, error) {
		return lb.Connections(ctx, balancer.ConnectionsQuery{StatusURL: c.statusURL})
	})
	sum := remote.Count{}
	for _, n := range all {
		sum.Open += n.Open
	}
	return sum, err
}

// Close implements [backend.Counter].
func (lbCounter) Close() error { return nil }

// counterText says where the connections of a backend are counted.
func counterText(spec Spec, b Backend) string {
	switch {
	case spec.Counter == CounterStubStatus:
		return "stub_status at " + spec.StatusURL
	case spec.Counter == CounterLB, len(b.Sockets) > 0:
		return "ss on the load balancer"
	}
	return "ss on " + b.Name
}

func (o *Operation) newCounter(m *member) backend.Counter {
	spec := o.plan.Spec
	switch {
	case spec.Counter == CounterStubStatus && spec.statusOnBackend():
		return backend.StatusCounter{Host: m.Host, URL: spec.StatusURL}
	case spec.Counter == CounterStubStatus:
		return lbCounter{o.lbs, spec.StatusURL}
	case spec.Counter == CounterLB, len(m.plan.Sockets) > 0:
		return lbCounter{lbs: o.lbs}
	}
	c := remote.NewCounter(m.Host, m.plan.Ports)
	if m.plan.Address != "" {
		m.Clients = c
	}
	return c
}

// check tries everything that the run will need and that the plan has not tried.
// What is missing is one refusal that lists it all.
func (o *Operation) check(ctx context.Context) error {
	findings := slices.DeleteFunc(slices.Clone(o.plan.Findings), func(f Finding) bool { return f.Warning })
	for _, b := range o.plan.Backends {
		o.members = append(o.members, &member{Backend: &backend.Backend{Name: b.Name}, plan: b})
	}
	for _, m := range o.members {
		findings = append(findings, o.checkBackend(ctx, m)...)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(findings) > 0 {
		return refuse(findings...)
	}
	return nil
}

func missing(code string, err error) Finding { return Finding{Code: code, Text: err.Error()} }

// checkBackend logs in, looks whether the service and the right to stop and
// start it are there, and reads the counter once.
func (o *Operation) checkBackend(ctx context.Context, m *member) (found []Finding) {
	spec := o.plan.Spec
	if spec.needsBackend() {
		var err error
		if m.Host, err = o.options.Connect.Backend(ctx, m.plan, o.lbName(), spec.SSH); err != nil {
			f := missing("ssh", err)
			if spec.Service == "" {
				f.Override = "--poll lb, which needs no SSH"
			}
			m.Host = nil
			return []Finding{f}
		}
	}
	if spec.Service != "" {
		m.Service = remote.Service{Host: m.Host, Unit: spec.Service}
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
	if m.Host == nil && spec.Counter == CounterSS && len(m.plan.Sockets) == 0 {
		return found
	}
	m.Counter = o.newCounter(m)
	if spec.Kind != Drain {
		// The counter is for a rollback alone.
		return found
	}
	first, err := m.Counter.Count(ctx)
	if err != nil {
		return append(found, missing("counter", fmt.Errorf("count the open connections with %s: %w", counterText(spec, m.plan), err)))
	}
	return append(found, o.checkReach(ctx, m, first)...)
}

// lbName is the one LB of the run, for a backend that is on it.
func (o *Operation) lbName() string {
	if o.lbs[0].Name == ThisMachine {
		return ""
	}
	return o.lbs[0].Name
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
	if i < 0 || errors.Join(o.lbs.each(ctx, func(ctx context.Context, lb *LB) error { return lb.Health(ctx, balancer.HealthCheck{}) })) != nil {
		return nil
	}
	return []Finding{{Code: "forwarded", Override: "--poll lb, or --ssh-host", Text: fmt.Sprintf(
		"%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)",
		strings.Join(o.plan.Spec.Targets, ", "), m.Host.Name(), m.plan.up[i])}}
}
