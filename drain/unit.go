package drain

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// checkUnit asks systemd for the unit of a backend. It finds what would keep the operation
// from stopping the app, or from starting it again.
func checkUnit(ctx context.Context, k spec.Kind, m *row) (event.Seen, []spec.Finding) {
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
	if k != spec.Undrain {
		found = append(found, stopFindings(m.Service, state)...)
		starters, err := activeOf(ctx, m.Service.Host, state.Starters)
		if err != nil {
			return seen, missing("service", err)
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
