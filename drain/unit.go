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
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// checkUnit asks systemd for the unit of a backend. It finds what would keep the operation
// from stopping the app, or from starting it again.
func (o *Operation) checkUnit(ctx context.Context, m *row) (event.Seen, []spec.Finding) {
	k := o.plan.Spec.Kind
	state, err := m.Service.State(ctx)
	m.Active = err == nil && backend.Started(state)
	if errors.Is(err, remote.ErrNoUnit) {
		err = fmt.Errorf("%w\nhint: --service names a unit of the backend; systemctl list-unit-files there lists them", err)
	}
	service := m.serviceState(state)
	seen := event.Seen{Service: &service}
	if err != nil {
		return seen, missing("service", err)
	}
	var found []spec.Finding
	if k != spec.Undrain || !m.Active {
		found = startFindings(m.Service, state)
	}
	if k == spec.Undrain && backend.Stopped(state) && m.plan.HealthCheck() == spec.HealthTCP {
		if answering, all := o.whole.answering(ctx, m); all && len(answering) > 0 {
			m.answering = answering
			found = append(found, spec.Finding{Code: "still-answers", Override: "--health URL", Text: stillAnswers(m) + needsURL +
				"; or start " + unitOn(m.Service) + " first"})
		}
	}
	if k != spec.Undrain && m.Active && m.plan.HealthCheck() == spec.HealthUDP {
		if err := m.listens(ctx); err != nil { // as a published port of a container
			found = append(found, spec.Finding{Code: "health", Warning: k == spec.Drain, Override: "--health URL", Text: err.Error() + "; the way back would wait for it"})
		}
	}
	if k != spec.Undrain {
		found = append(found, stopFindings(m.Service, state)...)
		starters, err := activeOf(ctx, m.Service.Host, state.Starters)
		if err == nil && !backend.Stopped(state) {
			err = m.findDependents(ctx, state.Dependents)
		}
		if err != nil {
			return seen, missing("service", err)
		}
		if len(m.Dependents) > 0 {
			found = append(found, spec.Finding{Code: "unit-dependents", Warning: true, Text: fmt.Sprintf(
				"systemd stops %s with %s; drainctl starts them again after it", strings.Join(m.Dependents, ", "), unitOn(m.Service))})
		}
		for _, unit := range starters {
			found = append(found, spec.Finding{Code: "unit-starter", Text: fmt.Sprintf(
				"%s, which is active, starts %s again while it is to be stopped\nhint: stop %[1]s there, and start it after the undrain; or leave out --service", unit, unitOn(m.Service))})
		}
	}
	return seen, found
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

// findDependents finds the active units that systemd stops with the service: units, and
// what depends on these.
func (r *row) findDependents(ctx context.Context, units []string) error {
	own := strings.TrimSuffix(r.Service.Unit, ".service") + ".service"
	asked := []string{r.Service.Unit, own}
	for len(units) > 0 {
		unit := units[0]
		if units = units[1:]; slices.Contains(asked, unit) {
			continue
		}
		asked = append(asked, unit)
		state, err := remote.Service{Host: r.Service.Host, Unit: unit}.State(ctx)
		switch {
		case errors.Is(err, remote.ErrNoUnit):
			continue
		case err != nil:
			return err
		case !backend.Stopped(state):
			r.addDependents(unit)
		}
		units = slices.Concat(units, state.Dependents)
	}
	return nil
}

// addDependents notes units that are to be started again, each once.
func (r *row) addDependents(units ...string) {
	for _, unit := range units {
		if slices.Contains(dependentTypes, path.Ext(unit)) && remote.ValidUnit(unit) == nil && !slices.Contains(r.Dependents, unit) {
			r.Dependents = append(r.Dependents, unit)
		}
	}
}

// checkSudo looks at the right to stop and start the service, and to start what systemd
// stops with it.
func (r *row) checkSudo(ctx context.Context) []spec.Finding {
	found := missing("sudo", r.Service.SudoCheck(ctx))
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
		d := &row{Backend: &backend.Backend{Name: r.Name, Service: remote.Service{Host: r.Host, Unit: unit}}}
		state, started, err := d.Start(ctx, r.plan.Settings.StopTimeout)
		changed = changed || started
		if err != nil {
			o.emit(&event.Warning{Header: event.Header{Target: r.Name}, Text: fmt.Sprintf("systemd stopped %s with %s, and it does not run again: %v", unit, r.Service.Unit, err)})
			continue
		}
		all = append(all, d.serviceState(state))
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
