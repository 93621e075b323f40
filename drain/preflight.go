package drain

import (
	"context"
	"slices"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

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
	for _, c := range o.checks { // the history has them among the checks
		if c.Result == event.CheckWarning {
			o.options.Emit(event.Stamp(&event.Warning{Header: event.Header{LB: c.Finding.LB, Target: c.Backend}, Text: c.Finding.Text}))
		}
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
		o.checkUnits(ctx, m, c, broken)
		// Both ways are needed: the way back is part of the way.
		c.try(broken, event.CheckSudo, func() (event.Seen, []spec.Finding) {
			return event.Seen{User: m.Host.User()}, m.checkSudo(ctx)
		})
	}
	if sp.Rollout.Reboot {
		c.try(broken, event.CheckReboot, func() (event.Seen, []spec.Finding) {
			right := missing("sudo", remote.SudoCheck(ctx, m.Host, backend.RebootCommand...))
			return event.Seen{User: m.Host.User()}, append(right, o.portFindings(ctx, m)...)
		})
	}
	o.checkOneHost(ctx, m, c, broken)
	o.checkCounter(ctx, m, c, broken)
	o.checkHealth(ctx, m, c, set.Service != "" && broken == "" && !m.Active())
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
