package drain

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// control stops, or starts, the service on every backend that has one.
func (b *batch) control(ctx context.Context, p plan.Phase, back bool) Verdict {
	return joined(b.rows, gather(b.rows, func(r *row) Verdict {
		v := b.o.control(ctx, r, p, back)
		if p == plan.Stopping && !back && v.Err == nil && len(r.Units) > 0 {
			v = b.silent(ctx, r, v)
		}
		return v
	}))
}

// silent looks whether the servers of a stopped app still answer. If so, something else serves
// there, or the app still runs. The work of a rolling run does not begin then, unless a health URL
// tells later whether the app itself is back.
func (b *batch) silent(ctx context.Context, r *row, v Verdict) Verdict {
	all := false
	if r.answering, all = b.answering(ctx, r); len(r.answering) == 0 && r.plan.HealthCheck() == spec.HealthUDP {
		for _, port := range r.plan.Ports {
			if remote.ListensUDP(ctx, r.Host, port) == nil {
				r.answering = append(r.answering, fmt.Sprintf("%s:%d over UDP", r.Name, port))
			}
		}
	}
	if len(r.answering) == 0 {
		return v
	}
	text := stillAnswers(r)
	if all && b.o.plan.Spec.Kind == spec.Run && r.plan.HealthCheck() == spec.HealthTCP {
		return failed(v.Changed, errors.New(text+needsURL))
	}
	b.o.emit(&event.Warning{Header: event.Header{Target: r.Name, Step: plan.StepService}, Text: text})
	return v
}

// needsURL ends the finding of a port that answers while the app is stopped.
const needsURL = "; a TCP connect would not show that it is back\nhint: --health URL asks the app itself"

func stillAnswers(r *row) string {
	verb := "answers"
	if len(r.answering) > 1 {
		verb = "answer"
	}
	return fmt.Sprintf("%s still %s, though %s stopped: the app runs elsewhere there, or something else serves in its place", strings.Join(r.answering, ", "), verb, r.plan.Settings.Service.Do("is", "are"))
}

// answering returns the servers of a backend that take a TCP connection, as its LBs see it, and whether
// all of them do: if one does not, a TCP connect to it shows when the app is back.
func (b *batch) answering(ctx context.Context, r *row) (servers []string, all bool) {
	all = true
	each, _ := fleet.Gather(ctx, b.o.lbs.With(r.plan), func(ctx context.Context, lb *fleet.LB) (answer []string, _ error) {
		for _, s := range b.checkedServers(lb, r) {
			if lb.Health(ctx, balancer.HealthCheck{Servers: []journal.Server{s}}) == nil {
				answer = append(answer, s.Address)
			} else {
				answer = append(answer, "")
			}
		}
		return answer, nil
	})
	for _, s := range plan.Once(slices.Concat(each...)) {
		if all = all && s != ""; s != "" {
			servers = append(servers, s)
		}
	}
	return servers, all
}

// control stops or starts the units of one backend, one after the other. A rollback takes those that
// the operation has touched.
func (o *Operation) control(ctx context.Context, r *row, p plan.Phase, back bool) (all Verdict) {
	for _, u := range r.unitsIn(p) {
		if back && !r.reversesUnit(p, u) {
			continue
		}
		v := o.controlUnit(ctx, r, u, p)
		v.Changed = v.Changed || all.Changed
		v.Detail.Services = slices.Concat(all.Detail.Services, v.Detail.Services)
		if all = v; v.Err != nil {
			return all
		}
	}
	if p == plan.Starting {
		also, started := o.startDependents(ctx, r)
		all.Detail.Services, all.Changed = append(all.Detail.Services, also...), all.Changed || started
	}
	return all
}

// controlUnit stops or starts one unit.
func (o *Operation) controlUnit(ctx context.Context, r *row, u *backend.Unit, p plan.Phase) Verdict {
	act := u.Stop
	if p == plan.Starting {
		act = u.Start
		if busy, err := o.freeSocket(ctx, r, u); busy || err != nil {
			return o.failedUnit(ctx, r, u, p, u.Touched, err)
		}
	}
	state, changed, err := act(ctx, r.plan.Settings.StopTimeout)
	if err != nil {
		return o.failedUnit(ctx, r, u, p, changed, err)
	}
	return Verdict{Changed: changed, Detail: event.Detail{Services: []event.ServiceState{serviceState(r.Name, u.Unit, state)}}}
}

// failedUnit is the verdict on a unit that did not stop or start. Without an error it was left alone.
func (o *Operation) failedUnit(ctx context.Context, r *row, u *backend.Unit, p plan.Phase, changed bool, err error) Verdict {
	if err == nil {
		return Verdict{Changed: changed}
	}
	v := failed(changed, err)
	var late *backend.StoppingError
	switch {
	case errors.As(err, &late):
		v.Next = status.KillCommand(u.Unit, r.Name, "ends the app")
		if p == plan.Stopping { // systemd goes on with it
			v.Outcome = Irreversible
		}
	case changed:
		v.Log = u.Log(ctx)
	}
	return v
}

// freeSocket stops the services of a socket that is to be started. An operation that broke off between
// the stops of a socket and of its service leaves the service active, and systemd then refuses to
// start the socket (see [spec.Units.InStartOrder]). A service that nginx sends requests to is not
// stopped: busy tells that the socket stays as it is.
func (o *Operation) freeSocket(ctx context.Context, r *row, socket *backend.Unit) (busy bool, err error) {
	if path.Ext(socket.Unit) != ".socket" {
		return false, nil
	}
	state, err := socket.State(ctx)
	if err != nil || backend.Started(state) {
		return false, err
	}
	for _, u := range r.Units {
		if !slices.Contains(state.Triggers, remote.FullUnit(u.Unit)) {
			continue
		}
		if state, err := u.State(ctx); err != nil || backend.Stopped(state) {
			continue // to start the socket says what is wrong
		}
		text := fmt.Sprintf("drainctl restarts %s: systemd starts %s only while it does not run", unitOn(u.Service), socket.Unit)
		if busy = o.plan.Spec.Kind == spec.Undrain && !r.plan.IsOut(); busy {
			text = fmt.Sprintf("%s stays stopped: systemd starts it only while %s does not run, and nginx sends requests there", socket.Unit, unitOn(u.Service))
		}
		o.emit(&event.Warning{Header: event.Header{Target: r.Name, Step: plan.StepService}, Text: text})
		if busy {
			return true, nil
		}
		if _, _, err := u.Stop(ctx, r.plan.Settings.StopTimeout); err != nil {
			return false, err
		}
	}
	return false, nil
}

// serviceState is what an event says of a unit.
func serviceState(on, unit string, s remote.ServiceState) event.ServiceState {
	told := event.ServiceState{Unit: unit, Backend: on, Active: s.Active}
	if !backend.Started(s) && s.Result != "success" {
		told.Result = s.Result
	}
	return told
}
