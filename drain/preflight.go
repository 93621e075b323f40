package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// lbCounter is what the LBs themselves see: ss there, towards the servers, or
// the page of a stub_status that they ask for.
type lbCounter struct {
	lbs       fleet.Fleet
	servers   func(*fleet.LB) []journal.Server // of the backend; an LB without any is not asked
	statusURL string
}

// Count implements [backend.Counter].
func (c lbCounter) Count(ctx context.Context) (remote.Count, error) { return c.count(ctx, false) }

// CountHeld implements [backend.Holder].
func (c lbCounter) CountHeld(ctx context.Context) (remote.Count, error) { return c.count(ctx, true) }

func (c lbCounter) count(ctx context.Context, held bool) (remote.Count, error) {
	if c.statusURL != "" { // the page is the same from everywhere
		return c.lbs[0].Connections(ctx, balancer.ConnectionsQuery{StatusURL: c.statusURL, Held: held})
	}
	lbs := slices.DeleteFunc(slices.Clone(c.lbs), func(lb *fleet.LB) bool { return len(c.servers(lb)) == 0 })
	if len(lbs) == 0 {
		return remote.Count{}, errors.New("no load balancer has a server of the backend")
	}
	all, err := fleet.Gather(ctx, lbs, func(ctx context.Context, lb *fleet.LB) (remote.Count, error) {
		return lb.Connections(ctx, balancer.ConnectionsQuery{Servers: c.servers(lb), Held: held})
	})
	sum := remote.Count{}
	for _, n := range all {
		sum.Open, sum.Held = sum.Open+n.Open, append(sum.Held, n.Held...)
	}
	return sum, err
}

// Close implements [backend.Counter].
func (lbCounter) Close() error { return nil }

func (o *Operation) newCounter(m *row) backend.Counter {
	set := m.plan.Settings
	url := m.plan.Fill(set.StatusURL)
	switch {
	case set.Counter == spec.CounterStubStatus && set.StatusOnBackend():
		return backend.StatusCounter{Host: m.Host, URL: url}
	case set.Counter == spec.CounterStubStatus:
		return lbCounter{lbs: o.lbs.With(m.plan), statusURL: url}
	case set.Counter == spec.CounterLB, len(m.plan.Sockets) > 0:
		return lbCounter{lbs: o.lbs.With(m.plan), servers: func(lb *fleet.LB) []journal.Server {
			return keysOf(o.whole.servers(lb, []*row{m})) // also those that were added since
		}}
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
	findings := slices.DeleteFunc(slices.Clone(o.plan.Findings), func(f spec.Finding) bool { return f.Warning })
	o.checks = o.checkBackends(ctx)
	findings = append(findings, failures(o.checks)...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(findings) > 0 {
		return spec.Refuse(findings...)
	}
	return nil
}

// checkBackends checks all backends, side by side.
func (o *Operation) checkBackends(ctx context.Context) []event.Check {
	return slices.Concat(gather(o.whole.rows, func(m *row) []event.Check { return o.checkBackend(ctx, m) })...)
}

// missing is what a check found, if it found an error.
func missing(code string, err error) []spec.Finding {
	if err == nil {
		return nil
	}
	return []spec.Finding{{Code: code, Text: err.Error()}}
}

// checkBackend logs in, looks whether the service and the right to stop and
// start it are there, and reads the counter once.
func (o *Operation) checkBackend(ctx context.Context, m *row) []event.Check {
	c := &checker{backend: m.Name}
	set, sp := m.plan.Settings, o.plan.Spec
	var broken event.CheckName
	if sp.Needs(set) {
		broken = o.login(ctx, m, c)
	}
	if set.Service != "" {
		m.Service = remote.Service{Host: m.Host, Unit: set.Service}
		c.try(broken, event.CheckUnit, func() (event.Seen, []spec.Finding) {
			state, err := m.Service.State(ctx)
			m.Active = err == nil && backend.Started(state)
			if errors.Is(err, remote.ErrNoUnit) {
				err = fmt.Errorf("%w\nhint: --service names a unit of the backend; systemctl list-unit-files there lists them", err)
			}
			return event.Seen{Service: &event.ServiceState{Unit: set.Service, Backend: m.Name, Active: state.Active}}, missing("service", err)
		})
		// Both ways are needed: the way back is part of the way.
		c.try(broken, event.CheckSudo, func() (event.Seen, []spec.Finding) {
			return event.Seen{User: m.Host.User()}, missing("sudo", m.Service.SudoCheck(ctx))
		})
	}
	if sp.Rollout.Reboot {
		c.try(broken, event.CheckReboot, func() (event.Seen, []spec.Finding) {
			return event.Seen{User: m.Host.User()}, missing("sudo", remote.SudoCheck(ctx, m.Host, backend.RebootCommand...))
		})
	}
	o.checkCounter(ctx, m, c, broken)
	return c.checks
}

// An account is what drainctl logs in to on a backend.
type account struct {
	address string
	ssh     spec.SSH
}

func accountOf(b plan.Backend) account { return account{b.Address, b.Settings.SSH} }

// A loggedIn is the end of a login that was begun.
type loggedIn struct {
	host remote.Host
	err  error
}

// beginLogins begins to log in to the backends, which goes on while the LBs plan. The targets are
// known and locked by now. A rolling run may leave some of them out.
func (o *Operation) beginLogins(ctx context.Context) {
	ctx, o.stopLogins = context.WithCancel(ctx)
	for _, b := range o.plan.Backends {
		sp, to := o.plan.Spec, accountOf(b)
		if sp.Kind == spec.Run || b.Address == "" || b.Servers == 0 || !sp.Needs(b.Settings) || o.logins[to] != nil {
			continue
		}
		end := make(chan loggedIn, 1)
		o.logins[to] = end
		go func() {
			host, err := o.options.Connect.Backend(ctx, b)
			end <- loggedIn{host, err}
		}()
	}
}

// logIn returns the login to a backend that was begun, or makes one.
func (o *Operation) logIn(ctx context.Context, b plan.Backend) (remote.Host, error) {
	o.mu.Lock()
	begun := o.logins[accountOf(b)]
	delete(o.logins, accountOf(b))
	o.mu.Unlock()
	if begun == nil {
		return o.options.Connect.Backend(ctx, b)
	}
	in := <-begun
	return in.host, in.err
}

// endLogins ends the logins that no row has taken.
func (o *Operation) endLogins() {
	o.stopLogins()
	for _, end := range o.logins {
		if in := <-end; in.err == nil {
			_ = in.host.Close()
		}
	}
}

// login connects to a backend, and tells what failed.
func (o *Operation) login(ctx context.Context, m *row, c *checker) (broken event.CheckName) {
	host, err := o.logIn(ctx, m.plan)
	var f spec.Finding
	if err != nil {
		f = findingOf(err, "ssh")
		if sp := o.plan.Spec; m.plan.Settings.Service == "" && !sp.Rollout.NeedsBackend() {
			f.Override = "--poll lb"
		}
	} else {
		m.Host = host
	}
	if m.plan.Address == "" && m.plan.LB == fleet.ThisMachine && err == nil {
		return "" // no SSH
	}
	return c.reach([]event.CheckName{event.CheckSSH, event.CheckHostKey}, err, f, func(name event.CheckName) event.Seen {
		if name == event.CheckSSH {
			return event.Seen{Host: host.Name()}
		}
		return event.Seen{}
	})
}

// checkCounter makes the counter, and reads it once.
func (o *Operation) checkCounter(ctx context.Context, m *row, c *checker, broken event.CheckName) {
	set := m.plan.Settings
	there := set.Counter == spec.CounterSS && len(m.plan.Sockets) == 0
	if broken == "" && m.Host == nil && there {
		return // an undrain that needs none
	}
	if !there && !(set.Counter == spec.CounterStubStatus && set.StatusOnBackend()) {
		broken = "" // it is asked elsewhere
	}
	if broken == "" && m.plan.Servers == 0 {
		broken = event.CheckServer
	}
	if broken == "" {
		m.Counter = o.newCounter(m)
	}
	if o.plan.Spec.Kind == spec.Undrain {
		return // the counter is for a rollback alone
	}
	c.try(broken, event.CheckCounter, func() (event.Seen, []spec.Finding) {
		first, err := m.Counter.Count(ctx)
		if err != nil {
			return event.Seen{}, missing("counter", fmt.Errorf("count the open connections with %s: %w", m.plan.CounterText(), err))
		}
		return event.Seen{Counter: m.plan.CounterText(), Open: &first.Open}, o.checkReach(ctx, m, first)
	})
}

// checkReach finds a counter that looks at the wrong place: nothing listens on
// the server's port on the backend, and yet the server answers. Its port is then
// forwarded, and ss on the backend would count 0 for ever.
func (o *Operation) checkReach(ctx context.Context, m *row, first remote.Count) []spec.Finding {
	counter, ok := m.Counter.(*remote.Counter)
	if !ok || first.Open > 0 || len(m.plan.UpPorts) == 0 {
		return nil
	}
	listening, err := counter.Listening(ctx)
	if err != nil {
		return missing("counter", fmt.Errorf("find listeners: %w", err))
	}
	i := slices.IndexFunc(m.plan.UpPorts, func(port uint16) bool { return !slices.Contains(listening, port) })
	if i < 0 || o.lbs.With(m.plan).Each(ctx, func(ctx context.Context, lb *fleet.LB) error { return o.whole.connect(ctx, lb, m) }) != nil {
		return nil
	}
	return []spec.Finding{{Code: "forwarded", Override: "--poll lb or --ssh-host", Text: fmt.Sprintf(
		"%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)",
		strings.Join(m.plan.Targets, ", "), m.Host.Name(), m.plan.UpPorts[i])}}
}
