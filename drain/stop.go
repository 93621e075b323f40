package drain

import (
	"context"
	"fmt"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// stopStep stops the service on the backend; its way back starts it.
type stopStep struct {
	r       *run
	service remote.Service
	touched bool // this run has stopped or started it, or tried to
}

func (s *stopStep) name() StepName { return StepStop }

func (s *stopStep) describe(w Way) string {
	if w == Forward {
		return fmt.Sprintf("stop %s on %s, see it inactive", s.r.req.Service, s.r.req.BackendName)
	}
	return fmt.Sprintf("start %s on %s, see it active", s.r.req.Service, s.r.req.BackendName)
}

// settleInterval is between two looks at a unit that is on its way.
const settleInterval = 100 * time.Millisecond

// maxSettle bounds how long a unit may be on its way after systemctl itself
// has said that it is done.
const maxSettle = 30 * time.Second

func (s *stopStep) forward(ctx context.Context) (bool, string, error) {
	if s.r.undoing && !s.touched {
		return false, "", nil
	}
	state, err := s.service.State(ctx)
	if err != nil {
		return s.touched, "", err
	}
	if stopped(state) {
		return false, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
	}
	s.touched = true
	if err := s.service.Stop(ctx); err != nil {
		return true, "", err
	}
	state, err = s.settle(ctx, stopped)
	if err != nil {
		return true, "", err
	}
	if !stopped(state) {
		return true, "", fmt.Errorf("systemctl stop %s succeeded, but the unit is %s (%s)", s.service.Unit, state.Active, state.Sub)
	}
	return true, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
}

func (s *stopStep) back(ctx context.Context) (bool, string, error) {
	if s.r.undoing && !s.touched {
		return false, "", nil
	}
	state, err := s.service.State(ctx)
	if err != nil {
		return s.touched, "", err
	}
	if started(state) {
		return false, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
	}
	s.touched = true
	if err := s.service.Start(ctx); err != nil {
		return true, "", err
	}
	state, err = s.settle(ctx, started)
	if err != nil {
		return true, "", err
	}
	if !started(state) {
		return true, "", fmt.Errorf("systemctl start %s succeeded, but the unit is %s (%s)", s.service.Unit, state.Active, state.Sub)
	}
	return true, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
}

// stopped tells that nothing of the unit runs: inactive, or failed, which is
// how a unit ends whose process answers SIGTERM with an error code.
func stopped(s remote.ServiceState) bool { return s.Active == "inactive" || s.Active == "failed" }

func started(s remote.ServiceState) bool { return s.Active == "active" }

// settle looks at the unit until it is as wanted or no longer on its way.
func (s *stopStep) settle(ctx context.Context, wanted func(remote.ServiceState) bool) (remote.ServiceState, error) {
	began := time.Now()
	for {
		state, err := s.service.State(ctx)
		if err != nil || wanted(state) || time.Since(began) > maxSettle {
			return state, err
		}
		switch state.Active {
		case "activating", "deactivating", "reloading":
		default:
			return state, nil
		}
		if err := sleep(ctx, settleInterval); err != nil {
			return state, err
		}
	}
}
