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
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// control stops, or starts, the service on every backend that has one.
func (b *batch) control(ctx context.Context, p plan.Phase, back bool) Verdict {
	return joined(b.rows, gather(b.rows, func(r *row) Verdict {
		v := b.o.control(ctx, r, p)
		if p == plan.Stopping && !back && v.Err == nil && r.Service.Unit != "" {
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
	if r.answering, all = b.answering(ctx, r); len(r.answering) == 0 {
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
	return fmt.Sprintf("%s still %s, though %s is stopped: the app runs elsewhere there, or something else serves in its place", strings.Join(r.answering, ", "), verb, r.Service.Unit)
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

// control stops or starts the service of one backend, if there is one.
func (o *Operation) control(ctx context.Context, r *row, p plan.Phase) Verdict {
	if r.Service.Unit == "" {
		return Verdict{}
	}
	act := r.Stop
	if p == plan.Starting {
		act = r.Start
	}
	state, changed, err := act(ctx, r.plan.Settings.StopTimeout)
	if err == nil {
		services := []event.ServiceState{r.serviceState(state)}
		if p == plan.Starting {
			also, started := o.startDependents(ctx, r)
			services, changed = append(services, also...), changed || started
		}
		return Verdict{Changed: changed, Detail: event.Detail{Services: services}}
	}
	v := failed(changed, err)
	var late *backend.StoppingError
	switch {
	case errors.As(err, &late):
		v.Next = status.KillCommand(r.Service.Unit, r.Name, "ends the app")
		if p == plan.Stopping { // systemd goes on with it
			v.Outcome = Irreversible
		}
	case changed:
		v.Log = r.Log(ctx)
	}
	return v
}

// serviceState is what an event says of the service.
func (r *row) serviceState(s remote.ServiceState) event.ServiceState {
	told := event.ServiceState{Unit: r.Service.Unit, Backend: r.Name, Active: s.Active}
	if !backend.Started(s) && s.Result != "success" {
		told.Result = s.Result
	}
	return told
}
