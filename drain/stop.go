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
	// seen tells that it was active when everything was checked. It is then
	// stopped without asking again, so that the stop follows the last request
	// closely; to stop what has ended since does no harm.
	seen bool
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
	if !s.seen {
		state, err := s.service.State(ctx)
		if err != nil {
			return s.touched, "", err
		}
		if stopped(state) {
			return false, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
		}
	}
	s.touched = true
	state, err := s.stopWithin(ctx)
	if err != nil {
		return true, "", err
	}
	if !stopped(state) {
		return true, "", fmt.Errorf("systemctl stop %s succeeded, but the unit is %s (%s)", s.service.Unit, state.Active, state.Sub)
	}
	return true, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
}

// A stopTimeoutError says that a unit was told to stop and does not.
type stopTimeoutError struct {
	unit  string
	limit time.Duration
	state string
}

func (e *stopTimeoutError) Error() string {
	return fmt.Sprintf("%s was told to stop and has not ended within %s (--stop-timeout); it is %s", e.unit, Span(e.limit), e.state)
}

// stopWithin stops the unit, and gives up waiting after the request's limit.
// systemd goes on with the stop all the same.
func (s *stopStep) stopWithin(ctx context.Context) (remote.ServiceState, error) {
	limited, cancel := context.WithTimeout(ctx, s.r.req.StopTimeout)
	defer cancel()
	err := s.service.Stop(limited)
	state := remote.ServiceState{}
	if err == nil {
		state, err = s.settle(limited, stopped, maxSettle)
	}
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return state, err
	}
	if state, err = s.service.State(ctx); err != nil || stopped(state) {
		return state, err
	}
	return state, &stopTimeoutError{s.service.Unit, s.r.req.StopTimeout, state.Active}
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
	if err := s.stopEnded(ctx, state); err != nil {
		return s.touched, "", err
	}
	s.touched = true
	if err := s.service.Start(ctx); err != nil {
		return true, "", err
	}
	state, err = s.settle(ctx, started, maxSettle)
	if err != nil {
		return true, "", err
	}
	if !started(state) {
		return true, "", s.withLog(ctx, fmt.Errorf("systemctl start %s succeeded, but the unit is %s (%s)", s.service.Unit, state.Active, state.Sub))
	}
	return true, fmt.Sprintf("%s is %s", s.service.Unit, state.Active), nil
}

// stopEnded waits for the end of a stop that is still under way, at most as long as
// the stop itself is given: systemd starts the unit no sooner, and systemctl start
// would wait for it without a limit.
func (s *stopStep) stopEnded(ctx context.Context, state remote.ServiceState) error {
	if state.Active != "deactivating" {
		return nil
	}
	state, err := s.settle(ctx, stopped, s.r.req.StopTimeout)
	if err == nil && state.Active == "deactivating" {
		err = fmt.Errorf("%w; on %s, systemctl kill --signal=KILL %s ends it",
			&stopTimeoutError{s.service.Unit, s.r.req.StopTimeout, state.Active}, s.r.req.BackendName, s.service.Unit)
	}
	return err
}

// stopped tells that nothing of the unit runs: inactive, or failed, which is
// how a unit ends whose process answers SIGTERM with an error code.
func stopped(s remote.ServiceState) bool { return s.Active == "inactive" || s.Active == "failed" }

func started(s remote.ServiceState) bool { return s.Active == "active" }

// ended is the failure of a service that was started and has ended since: no
// health is to be waited for. Nil if it may still come, or cannot be known.
func (s *stopStep) ended(ctx context.Context) error {
	if s.r.req.Service == "" {
		return nil
	}
	state, err := s.service.State(ctx)
	if err != nil || !stopped(state) {
		return nil
	}
	return s.withLog(ctx, fmt.Errorf("%s is %s, result: %s", s.service.Unit, state.Active, state.Result))
}

// logLines is how many lines of a unit's log a failure repeats.
const logLines = 10

// withLog is err with the last words of the service, where they can be had.
func (s *stopStep) withLog(ctx context.Context, err error) error {
	if s.r.req.Service == "" {
		return err
	}
	log, logErr := s.service.Logs(ctx, logLines)
	if logErr != nil || log == "" {
		return err
	}
	return fmt.Errorf("%w; its log ends:\n%s", err, log)
}

// settle looks at the unit until it is as wanted or no longer on its way, or the limit
// is over.
func (s *stopStep) settle(ctx context.Context, wanted func(remote.ServiceState) bool, limit time.Duration) (remote.ServiceState, error) {
	began := time.Now()
	for {
		state, err := s.service.State(ctx)
		if err != nil || wanted(state) || time.Since(began) > limit {
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
