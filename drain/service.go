package drain

import (
	"context"
	"errors"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
)

// service stops the service on every backend; in reverse it starts it.
type service struct{ o *Operation }

func (*service) name() StepName { return StepService }

func (s *service) run(ctx context.Context, d Direction, scope Scope) Verdict {
	verdicts := make([]Verdict, len(s.o.members))
	var all sync.WaitGroup
	for i, m := range s.o.members {
		if scope == ThisOperation && !m.Touched {
			continue
		}
		all.Go(func() { verdicts[i] = s.unit(ctx, m, d) })
	}
	all.Wait()
	return joined(verdicts)
}

// unit stops or starts the service of one backend.
func (s *service) unit(ctx context.Context, m *member, d Direction) Verdict {
	act := m.Stop
	if d == Reverse {
		act = m.Start
	}
	state, changed, err := act(ctx, s.o.plan.Spec.StopTimeout)
	if err == nil {
		return Verdict{Changed: changed, Detail: Detail{Services: []ServiceState{{m.Service.Unit, m.Name, state.Active}}}}
	}
	v := failed(changed, err)
	var stopping *backend.StoppingError
	switch {
	case errors.As(err, &stopping):
		v.Next = []Command{{Words: []string{"systemctl", "kill", "--signal=KILL", m.Service.Unit}, On: m.Name, Reason: "ends the app"}}
		if d == Forward {
			v.Outcome = Irreversible
		}
	case changed:
		v.Log = m.Log(ctx)
	}
	return v
}

// joined is the worst of verdicts, with the details of all.
func joined(verdicts []Verdict) Verdict {
	var all Verdict
	for _, v := range verdicts {
		if v.Outcome > all.Outcome {
			all.Outcome, all.Err, all.Log, all.Next = v.Outcome, v.Err, v.Log, v.Next
		}
		all.Changed = all.Changed || v.Changed
		all.Detail.Services = append(all.Detail.Services, v.Detail.Services...)
	}
	return all
}
