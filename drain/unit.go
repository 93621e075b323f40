package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// checkUnits asks systemd for the units of a backend. It finds what would keep the operation
// from stopping the app, or from starting it again.
func (o *Operation) checkUnits(ctx context.Context, m *row, c *checker, broken event.CheckName) {
	for _, name := range m.plan.Settings.Service.List() {
		m.Units = append(m.Units, &backend.Unit{Service: remote.Service{Host: m.Host, Unit: name}})
	}
	facts := make([]unitFacts, len(m.Units))
	var all spec.Units // with the units that start one of them again, and what sockets start
	for i, u := range m.Units {
		if broken == "" {
			facts[i] = o.askUnit(ctx, m, u)
		}
		for _, unit := range slices.Concat(facts[i].starters, []string{u.Unit}, facts[i].services) {
			if !all.Shares(spec.Units(unit)) {
				all = all.With(spec.Units(unit))
			}
		}
	}
	for i, u := range m.Units {
		c.try(broken, event.CheckUnit, func() (event.Seen, []spec.Finding) {
			service := serviceState(m.Name, u.Unit, facts[i].ServiceState)
			found := o.unitFindings(u, facts[i], all)
			if i == len(m.Units)-1 && facts[i].err == nil {
				found = append(found, o.appFindings(ctx, m, !m.Active() && backend.Stopped(facts[i].ServiceState))...)
				if !o.plan.Spec.Rollout.Reboot {
					found = append(found, o.portFindings(ctx, m)...)
				}
			}
			return event.Seen{Service: &service}, found
		})
	}
}

// unitFacts are what systemd says of a unit, and of others that have to do with it.
type unitFacts struct {
	remote.ServiceState
	err        error
	starters   []string // active units that start it again, and do not stop before it
	dependents []string // active units that stop with it
	services   []string // active services of a socket, which do not stop
}

// askUnit asks systemd for a unit of a backend.
func (o *Operation) askUnit(ctx context.Context, m *row, u *backend.Unit) (f unitFacts) {
	f.ServiceState, f.err = u.State(ctx)
	u.Active = f.err == nil && backend.Started(f.ServiceState)
	if errors.Is(f.err, remote.ErrNoUnit) {
		f.err = fmt.Errorf("%w\nhint: --service names a unit of the backend; systemctl list-unit-files there lists them", f.err)
	}
	if f.err != nil || o.plan.Spec.Kind == spec.Undrain {
		return f
	}
	if f.starters, f.err = activeOf(ctx, m.Host, without(f.Starters, m.Units[:slices.Index(m.Units, u)])); f.err != nil || backend.Stopped(f.ServiceState) {
		return f
	}
	if f.dependents, f.err = m.findDependents(ctx, f.Dependents); f.err == nil && path.Ext(u.Unit) == ".socket" {
		services := slices.DeleteFunc(without(f.Triggers, m.Units), func(unit string) bool {
			return slices.Contains(f.dependents, unit) || strings.Contains(unit, "@") // of Accept=yes: it keeps no socket from starting
		})
		f.services, f.err = activeOf(ctx, m.Host, services)
	}
	return f
}

// without returns names of units that are none of these units.
func without(names []string, units []*backend.Unit) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return slices.ContainsFunc(units, func(u *backend.Unit) bool { return remote.FullUnit(u.Unit) == name })
	})
}

// unitFindings is what speaks against stopping or starting a unit. all are the units that are to be
// stopped in its place where others start it again.
func (o *Operation) unitFindings(u *backend.Unit, f unitFacts, all spec.Units) (found []spec.Finding) {
	isUndrain := o.plan.Spec.Kind == spec.Undrain
	if f.err != nil {
		return missing("service", f.err)
	}
	if !isUndrain || !u.Active {
		found = startFindings(u.Service, f.ServiceState)
	}
	if !isUndrain {
		found = append(found, stopFindings(u.Service, f.ServiceState)...)
	}
	if len(f.dependents) > 0 {
		found = append(found, spec.Finding{Code: "unit-dependents", Warning: true, Text: fmt.Sprintf(
			"systemd stops %s with %s; drainctl starts them again after it", strings.Join(f.dependents, ", "), unitOn(u.Service))})
	}
	for _, unit := range f.starters {
		found = append(found, spec.Finding{Code: "unit-starter", Text: fmt.Sprintf(
			"%s, which is active, starts %s again while it is to be stopped\nhint: %s stops it first, and starts it again after; or leave out --service", unit, unitOn(u.Service), all.Flags())})
	}
	for _, unit := range f.services { // see spec.Units.InStartOrder
		found = append(found, spec.Finding{Code: "unit-start", Text: fmt.Sprintf(
			"%s would not start again while %s runs, which it starts\nhint: %s stops both", unitOn(u.Service), unit, all.Flags())})
	}
	return found
}

// portFindings is the servers on other ports of the host that the service serves too, or may, or that a
// reboot ends.
func (o *Operation) portFindings(ctx context.Context, m *row) (found []spec.Finding) {
	for _, s := range o.plan.OtherPorts(m.plan) {
		who := o.servedBy(ctx, m, s)
		if who == "" {
			continue
		}
		f := spec.Finding{Code: "remaining-upstream", Warning: o.plan.Spec.Allow.OtherNames, Text: fmt.Sprintf("%s:%d: %s in %s stays up, and %s", s.File, s.Line, s.Address, s.Name, who)}
		if !f.Warning {
			f.Text += "\nhint: drain the whole host, as a target without a port"
			f.Override = "--allow-other-names"
		}
		found = append(found, f)
	}
	return found
}

// servedBy says what of the operation cuts the connections to a server on another port; nothing if nothing
// does.
func (o *Operation) servedBy(ctx context.Context, m *row, s balancer.Server) string {
	if o.plan.Spec.Rollout.Reboot {
		return "the reboot ends it, too"
	}
	a, err := nginx.ParseAddress(s.Address)
	if err != nil {
		return ""
	}
	unit, isKnown, err := remote.UnitListening(ctx, m.Host, a.Port)
	if err != nil || !isKnown { // the process may have ended meanwhile
		unit, isKnown, err = remote.UnitListening(ctx, m.Host, a.Port)
	}
	switch {
	case err != nil || !isKnown:
		return "which unit serves it cannot be seen on " + m.Host.Name()
	case m.plan.Settings.Service.Shares(spec.Units(unit)):
		return unit + " serves it, too"
	}
	return ""
}

// appFindings finds where the health check could not show that the app has started: its servers answer while
// it is stopped, or nothing shows that it listens on UDP.
func (o *Operation) appFindings(ctx context.Context, m *row, stopped bool) []spec.Finding {
	switch k := o.plan.Spec.Kind; {
	case k != spec.Undrain && !slices.ContainsFunc(m.Units, func(u *backend.Unit) bool { return !u.Active }) && m.plan.HealthCheck() == spec.HealthUDP:
		if err := m.listens(ctx); err != nil { // as a published port of a container
			return []spec.Finding{{Code: "health", Override: "--health URL", Text: err.Error() + "; an undrain would wait for it in vain"}}
		}
	case k == spec.Undrain && stopped && m.plan.HealthCheck() == spec.HealthTCP:
		if answering, all := o.whole.answering(ctx, m); all && len(answering) > 0 {
			m.answering = answering
			return []spec.Finding{{Code: "still-answers", Override: "--health URL", Text: stillAnswers(m) + needsURL +
				"; or start " + m.plan.Settings.Service.String() + " on " + m.Host.Name() + " first"}}
		}
	}
	return nil
}

// unitOn names a unit and its host.
func unitOn(s remote.Service) string { return s.Unit + " on " + s.Host.Name() }

// startFindings finds why systemd would not start a unit (systemd.unit(5)). One reason is
// enough: CanStart is no with each of the others.
func startFindings(s remote.Service, state remote.ServiceState) []spec.Finding {
	switch {
	case state.Load == "masked", strings.HasPrefix(state.File, "masked"):
		return []spec.Finding{{Code: "unit-masked", Text: fmt.Sprintf("%s is masked: systemd would not start it again\nhint: systemctl unmask %s there", unitOn(s), s.Unit)}}
	case state.Load == "bad-setting", state.Load == "error":
		return []spec.Finding{{Code: "unit-broken", Text: fmt.Sprintf(
			"%s has a unit file that systemd cannot use (LoadState=%s): it would not start again\nhint: systemctl status %s there shows the line", unitOn(s), state.Load, s.Unit)}}
	case state.CanStart == "no":
		return []spec.Finding{{Code: "unit-start", Text: unitOn(s) + " cannot be started by systemctl (CanStart=no)\nhint: RefuseManualStart= in its unit file may be why; name the unit that starts the app"}}
	}
	return nil
}

// stopFindings finds why a stop would fail, would not end the app, or could not be undone.
func stopFindings(s remote.Service, state remote.ServiceState) (found []spec.Finding) {
	if state.CanStop == "no" {
		found = append(found, spec.Finding{Code: "unit-stop", Text: unitOn(s) + " cannot be stopped by systemctl (CanStop=no)\nhint: RefuseManualStop= in its unit file may be why; name the unit that stops the app"})
	}
	if state.File == "transient" {
		found = append(found, spec.Finding{Code: "unit-transient", Text: unitOn(s) + " is transient: systemd forgets it when it stops\nhint: systemd-run or a program has made it; give the app a unit file"})
	}
	if state.KillMode == "process" || state.KillMode == "none" { // systemd.kill(5)
		found = append(found, spec.Finding{Code: "unit-children", Warning: true, Text: fmt.Sprintf(
			"%s has KillMode=%s: its child processes go on running after a stop\nhint: KillMode=control-group or mixed ends them", unitOn(s), state.KillMode)})
	}
	return found
}

// dependentTypes are the types of units that are started again. A target would start all
// that it wants, also what an operator has stopped.
var dependentTypes = []string{".service", ".socket", ".timer", ".path"}

// findDependents finds the active units that systemd stops with a unit of the service: units, and
// what depends on these.
func (r *row) findDependents(ctx context.Context, units []string) (found []string, err error) {
	var asked []string
	for _, u := range r.Units {
		asked = append(asked, remote.FullUnit(u.Unit))
	}
	for len(units) > 0 {
		unit := units[0]
		if units = units[1:]; slices.Contains(asked, unit) {
			continue
		}
		asked = append(asked, unit)
		state, err := remote.Service{Host: r.Host, Unit: unit}.State(ctx)
		switch {
		case errors.Is(err, remote.ErrNoUnit):
			continue
		case err != nil:
			return nil, err
		case !backend.Stopped(state):
			found = append(found, r.addDependents(unit)...)
		}
		units = slices.Concat(units, state.Dependents)
	}
	return found, nil
}

// addDependents notes units that are to be started again, each once. It returns those that can be.
func (r *row) addDependents(units ...string) []string {
	units = slices.DeleteFunc(slices.Clone(units), func(unit string) bool {
		return !slices.Contains(dependentTypes, path.Ext(unit)) || remote.ValidUnit(unit) != nil
	})
	r.Dependents = plan.Once(append(r.Dependents, units...))
	return units
}

// checkSudo looks at the right to stop and start the service, and to start what systemd
// stops with it.
func (r *row) checkSudo(ctx context.Context) []spec.Finding {
	var found []spec.Finding
	for _, u := range r.Units {
		found = append(found, missing("sudo", u.SudoCheck(ctx))...)
	}
	for _, unit := range r.Dependents {
		for _, f := range missing("sudo", remote.SudoCheck(ctx, r.Host, "systemctl", "start", unit)) {
			f.Warning = true // one that does not start is no reason to keep the app out either
			found = append(found, f)
		}
	}
	return found
}

// startDependents starts again what systemd has stopped with the service. The service runs:
// one that does not start is no reason to keep it out of the pool.
func (o *Operation) startDependents(ctx context.Context, r *row) (all []event.ServiceState, changed bool) {
	for _, unit := range r.Dependents {
		d := &backend.Unit{Service: remote.Service{Host: r.Host, Unit: unit}}
		state, started, err := d.Start(ctx, r.plan.Settings.StopTimeout)
		changed = changed || started
		if err != nil {
			o.emit(&event.Warning{Header: event.Header{Target: r.Name}, Text: fmt.Sprintf("systemd stopped %s with %s, and it does not run again: %v", unit, r.plan.Settings.Service, err)})
			continue
		}
		all = append(all, serviceState(r.Name, unit, state))
	}
	return all, changed
}

// recall takes over what earlier operations on the same servers have found to be stopped
// with a service. What another user recorded is used with consent only; otherwise it is named.
func (o *Operation) recall() {
	var states []spec.CallersState
	for i, lb := range o.plan.LBs {
		states = append(states, spec.CallersState{State: lb.Report.State, Caller: o.lbs[i].Caller()})
	}
	sp := o.plan.Spec
	for _, op := range spec.DrainsOf(sp, states) {
		var t table
		if json.Unmarshal(op.Progress, &t) != nil {
			continue
		}
		for _, r := range o.whole.rows {
			saved, _ := t.row(r.Name)
			switch {
			case len(saved.Dependents) == 0, r.plan.Settings.Service == "":
			case !op.Foreign, sp.AsRecorded:
				r.addDependents(saved.Dependents...)
			case sp.Kind == spec.Undrain:
				o.emit(&event.Warning{Header: event.Header{Target: r.Name}, Text: fmt.Sprintf(
					"systemd stopped %s with the app, as another user recorded in operation %s; they stay stopped without --as-recorded",
					journal.OneLine(strings.Join(saved.Dependents, ", ")), op.ID)})
			}
		}
	}
}

// activeOf returns those of some units of a host that are not stopped.
func activeOf(ctx context.Context, host remote.Host, units []string) (active []string, err error) {
	for _, unit := range units {
		state, err := remote.Service{Host: host, Unit: unit}.State(ctx)
		switch {
		case errors.Is(err, remote.ErrNoUnit):
		case err != nil:
			return nil, err
		case !backend.Stopped(state):
			active = append(active, unit)
		}
	}
	return active, nil
}
