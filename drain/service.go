package drain

import (
	"context"
	"errors"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// control stops, or starts, the service on every backend that has one.
func (b *batch) control(ctx context.Context, p plan.Phase) Verdict {
	return joined(b.rows, gather(b.rows, func(r *row) Verdict { return b.o.control(ctx, r, p) }))
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
