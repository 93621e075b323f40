package drain

import (
	"context"
	"errors"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/status"
)

// control stops, or starts, the service on every backend that has one.
func (b *batch) control(ctx context.Context, p plan.Phase) Verdict {
	verdicts := make([]Verdict, len(b.rows))
	var all sync.WaitGroup
	for i, r := range b.rows {
		if r.Service.Unit != "" {
			all.Go(func() { verdicts[i] = r.control(ctx, p) })
		}
	}
	all.Wait()
	return joined(b.rows, verdicts)
}

// control stops or starts the service of one backend.
func (r *row) control(ctx context.Context, p plan.Phase) Verdict {
	act := r.Stop
	if p == plan.Starting {
		act = r.Start
	}
	state, changed, err := act(ctx, r.plan.Settings.StopTimeout)
	if err == nil {
		return Verdict{Changed: changed, Detail: event.Detail{Services: []event.ServiceState{{Unit: r.Service.Unit, Backend: r.Name, Active: state.Active}}}}
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
