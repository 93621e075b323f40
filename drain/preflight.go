package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// lbCounter is what the LBs themselves see: ss there, towards the servers, or
// the page of a stub_status that they ask for.
type lbCounter struct {
	lbs       Fleet
	servers   map[*LB][]journal.Server // of the backend; an LB without any is not asked
	statusURL string
}

// Count implements [backend.Counter].
func (c lbCounter) Count(ctx context.Context) (remote.Count, error) { return c.count(ctx, false) }

// CountHeld implements [backend.Holder].
func (c lbCounter) CountHeld(ctx context.Context) (remote.Count, error) { return c.count(ctx, true) }

func (c lbCounter) count(ctx context.Context, held bool) (remote.Count, error) {
	lbs := c.lbs
	if c.statusURL != "" {
		lbs = lbs[:1] // the page is the same from everywhere
	}
	all, err := Gather(ctx, lbs, func(ctx context.Context, lb *LB) (balancer.Connections, error) {
		if c.statusURL == "" && len(c.servers[lb]) == 0 {
			return balancer.Connections{}, nil
		}
		return lb.Connections(ctx, balancer.ConnectionsQuery{Servers: c.servers[lb], StatusURL: c.statusURL, Held: held})
	})
	sum := remote.Count{}
	for _, n := range all {
		sum.Open += n.Open
		for _, h := range n.Held { // what the LB sends, the backend receives
			sum.Held = append(sum.Held, remote.Held{Far: h.Near, Sent: h.Received, Received: h.Sent})
		}
	}
	return sum, err
}

// Close implements [backend.Counter].
func (lbCounter) Close() error { return nil }

func (o *Operation) newCounter(m *row) backend.Counter {
	set := m.plan.Settings
	url := m.plan.fill(set.StatusURL)
	switch {
	case set.Counter == CounterStubStatus && set.statusOnBackend():
		return backend.StatusCounter{Host: m.Host, URL: url}
	case set.Counter == CounterStubStatus:
		return lbCounter{lbs: o.lbs.With(m.plan), statusURL: url}
	case set.Counter == CounterLB, len(m.plan.Sockets) > 0:
		c := lbCounter{lbs: o.lbs.With(m.plan), servers: map[*LB][]journal.Server{}}
		for _, lb := range c.lbs {
			c.servers[lb] = o.whole.part(lb).serversOf(m.plan, func(balancer.Server) bool { return true })
		}
		return c
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
	o.checks = o.checkBackends(ctx)
	findings = append(findings, failures(o.checks)...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(findings) > 0 {
		return refuse(findings...)
	}
	return nil
}

// checkBackends checks all backends, side by side.
func (o *Operation) checkBackends(ctx context.Context) []Check {
	checks := make([][]Check, len(o.whole.rows))
	var all sync.WaitGroup
	for i, m := range o.whole.rows {
		all.Go(func() { checks[i] = o.checkBackend(ctx, m) })
	}
	all.Wait()
	return slices.Concat(checks...)
}

// missing is what a check found, if it found an error.
func missing(code string, err error) []Finding {
	if err == nil {
		return nil
	}
	return []Finding{{Code: code, Text: err.Error()}}
}

// checkBackend logs in, looks whether the service and the right to stop and
// start it are there, and reads the counter once.
func (o *Operation) checkBackend(ctx context.Context, m *row) []Check {
	c := &checker{backend: m.Name}
	set, spec := m.plan.Settings, o.plan.Spec
	var broken CheckName
	if spec.needs(set) {
		broken = o.login(ctx, m, c)
	}
	if set.Service != "" {
		m.Service = remote.Service{Host: m.Host, Unit: set.Service}
		c.try(broken, CheckUnit, func() (Seen, []Finding) {
			state, err := m.Service.State(ctx)
			m.Active = err == nil && backend.Started(state)
			if errors.Is(err, remote.ErrNoUnit) {
				err = fmt.Errorf("%w\nhint: --service names a unit of the backend; systemctl list-unit-files there lists them", err)
			}
			return Seen{Service: &ServiceState{Unit: set.Service, Backend: m.Name, Active: state.Active}}, missing("service", err)
		})
		// Both ways are needed: the way back is part of the way.
		c.try(broken, CheckSudo, func() (Seen, []Finding) {
			return Seen{User: m.Host.User()}, missing("sudo", m.Service.SudoCheck(ctx))
		})
	}
	if spec.Rollout.Reboot {
		c.try(broken, CheckReboot, func() (Seen, []Finding) {
			return Seen{User: m.Host.User()}, missing("sudo", remote.SudoCheck(ctx, m.Host, backend.RebootCommand...))
		})
	}
	o.checkCounter(ctx, m, c, broken)
	return c.checks
}

// login connects to a backend, and tells what failed.
func (o *Operation) login(ctx context.Context, m *row, c *checker) (broken CheckName) {
	host, err := o.options.Connect.Backend(ctx, m.plan)
	var f Finding
	if err != nil {
		f = findingOf(err, "ssh")
		if spec := o.plan.Spec; m.plan.Settings.Service == "" && !spec.Rollout.needsBackend() {
			f.Override = "--poll lb"
		}
	} else {
		m.Host = host
	}
	if m.plan.Address == "" && m.plan.LB == ThisMachine && err == nil {
		return "" // no SSH
	}
	return c.reach([]CheckName{CheckSSH, CheckHostKey}, err, f, func(name CheckName) Seen {
		if name == CheckSSH {
			return Seen{Host: host.Name()}
		}
		return Seen{}
	})
}

// checkCounter makes the counter, and reads it once.
func (o *Operation) checkCounter(ctx context.Context, m *row, c *checker, broken CheckName) {
	set := m.plan.Settings
	there := set.Counter == CounterSS && len(m.plan.Sockets) == 0
	if broken == "" && m.Host == nil && there {
		return // an undrain that needs none
	}
	if !there && !(set.Counter == CounterStubStatus && set.statusOnBackend()) {
		broken = "" // it is asked elsewhere
	}
	if broken == "" && m.plan.servers == 0 {
		broken = CheckServer
	}
	if broken == "" {
		m.Counter = o.newCounter(m)
	}
	if o.plan.Spec.Kind == Undrain {
		return // the counter is for a rollback alone
	}
	c.try(broken, CheckCounter, func() (Seen, []Finding) {
		first, err := m.Counter.Count(ctx)
		if err != nil {
			return Seen{}, missing("counter", fmt.Errorf("count the open connections with %s: %w", m.plan.counterText(), err))
		}
		return Seen{Counter: m.plan.counterText(), Open: &first.Open}, o.checkReach(ctx, m, first)
	})
}

// checkReach finds a counter that looks at the wrong place: nothing listens on
// the server's port on the backend, and yet the server answers. Its port is then
// forwarded, and ss on the backend would count 0 for ever.
func (o *Operation) checkReach(ctx context.Context, m *row, first remote.Count) []Finding {
	if _, ok := m.Counter.(*remote.Counter); !ok || first.Open > 0 || len(m.plan.up) == 0 {
		return nil
	}
	listening, err := remote.Listening(ctx, m.Host, m.plan.up)
	if err != nil {
		return missing("counter", fmt.Errorf("on %s: %w", m.Host.Name(), err))
	}
	i := slices.Index(listening, false)
	if i < 0 || o.lbs.With(m.plan).Each(ctx, func(ctx context.Context, lb *LB) error { return o.whole.connect(ctx, lb, m.plan) }) != nil {
		return nil
	}
	return []Finding{{Code: "forwarded", Override: "--poll lb or --ssh-host", Text: fmt.Sprintf(
		"%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)",
		strings.Join(m.plan.Targets, ", "), m.Host.Name(), m.plan.up[i])}}
}
