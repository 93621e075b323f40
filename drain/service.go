package drain

import (
	"context"
	"errors"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
)

// service stops the service on every backend that has one; in reverse it starts
// it.
type service struct{}

func (service) name() StepName { return StepService }

func (service) run(ctx context.Context, b *batch, d Direction, s Scope) Verdict {
	verdicts := make([]Verdict, len(b.members))
	var all sync.WaitGroup
	for i, m := range b.members {
		if m.Service.Unit == "" || s == ThisOperation && !m.Touched {
			continue
		}
		all.Go(func() { verdicts[i] = m.control(ctx, d) })
	}
	all.Wait()
	return joined(b.members, verdicts)
}

// control stops or starts the service of one backend.
func (m *member) control(ctx context.Context, d Direction) Verdict {
	act := m.Stop
	if d == Reverse {
		act = m.Start
	}
	state, changed, err := act(ctx, m.plan.Settings.StopTimeout)
	if err == nil {
		return Verdict{Changed: changed, Detail: Detail{Services: []ServiceState{{m.Service.Unit, m.Name, state.Active}}}}
	}
	v := failed(changed, err)
	var stopping *backend.StoppingError
	switch {
	case errors.As(err, &stopping):
		v.Next = killCommand(m.Service.Unit, m.Name, "ends the app")
		if d == Forward {
			v.Outcome = Irreversible
		}
	case changed:
		v.Log = m.Log(ctx)
	}
	return v
}
