package backend

import (
	"context"
	"fmt"
	"time"

	"github.com/drainctl/drainctl/remote"
)

const (
	// stableInterval is between two looks at a unit that is changing its state.
	stableInterval = 100 * time.Millisecond
	// maxChanging bounds how long a unit may be changing its state after systemctl
	// itself has said that it is done.
	maxChanging = 30 * time.Second
	// maxStarting bounds systemctl start. It is for units that start slowly:
	// systemd's own limit is the unit's TimeoutStartSec, 90 s unless set.
	maxStarting = 15 * time.Minute
)

// A Unit is a systemd unit of a backend.
type Unit struct {
	remote.Service
	// Active tells that the unit was active when everything was checked. It
	// is then stopped without asking again, so that the stop follows the last
	// request closely; to stop what has ended since does no harm.
	Active  bool
	Touched bool // this run has stopped or started it, or tried to
}

// A StoppingError says that a unit was told to stop and has not ended in time.
// What has been told to stop cannot be told otherwise.
type StoppingError struct {
	Unit   string
	Limit  time.Duration
	Active string // the unit's state
}

func (e *StoppingError) Error() string {
	return fmt.Sprintf("%s was told to stop and has not ended within %s (--stop-timeout); it is %s", e.Unit, Span(e.Limit), e.Active)
}

// Stop stops the unit and sees it inactive. A unit that does not end within
// limit is a *[StoppingError]: systemd continues with the stop. changed tells
// that something was done, also when it failed.
func (u *Unit) Stop(ctx context.Context, limit time.Duration) (state remote.ServiceState, changed bool, err error) {
	if !u.Active {
		state, err = u.State(ctx)
		if err != nil || Stopped(state) {
			return state, u.Touched && err != nil, err
		}
	}
	u.Touched = true
	state, isLate, err := u.stopWithin(ctx, limit)
	switch {
	case err != nil:
	case state.Active == "deactivating", isLate && !Stopped(state): // it may wait for another unit that stops
		err = &StoppingError{u.Unit, limit, state.Active}
	case !Stopped(state):
		err = fmt.Errorf("systemctl stop %s succeeded, but the unit is %s (%s)", u.Unit, state.Active, state.Sub)
	}
	return state, true, err
}

// stopWithin stops the unit, and gives up waiting after the limit: it is late then.
func (u *Unit) stopWithin(ctx context.Context, limit time.Duration) (state remote.ServiceState, isLate bool, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = u.Service.Stop(limited)
	if err == nil {
		state, err = u.waitStable(limited, Stopped, maxChanging)
	}
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return state, false, err
	}
	state, err = u.State(ctx)
	return state, true, err
}

// Start starts the unit and sees it active. If the unit is still stopping, Start waits at most limit for
// that, and returns a *[StoppingError] then.
func (u *Unit) Start(ctx context.Context, limit time.Duration) (state remote.ServiceState, changed bool, err error) {
	if state, err = u.State(ctx); err != nil {
		return state, u.Touched, err
	}
	if Started(state) && !state.HasJob() { // else it may stop yet, when another unit has; a start takes that back
		return state, false, nil
	}
	if state.Active == "deactivating" {
		// systemd starts the unit no sooner than its stop has ended, and systemctl
		// start would wait for that without a limit.
		if state, err = u.waitStable(ctx, Stopped, limit); err != nil {
			return state, u.Touched, err
		}
		if state.Active == "deactivating" {
			return state, u.Touched, &StoppingError{u.Unit, limit, state.Active}
		}
	}
	u.Touched = true
	limited, cancel := context.WithTimeoutCause(ctx, maxStarting, fmt.Errorf("it did not end within %s", Span(maxStarting)))
	defer cancel()
	if err := u.Service.Start(limited); err != nil {
		return state, true, err
	}
	state, err = u.waitStable(ctx, Started, maxChanging)
	if err == nil && !Started(state) {
		err = fmt.Errorf("systemctl start %s succeeded, but the unit is %s (%s)", u.Unit, state.Active, state.Sub)
	}
	return state, true, err
}

// Stopped tells that nothing of the unit runs: inactive, or failed, which is how
// a unit ends whose process answers SIGTERM with an error code.
func Stopped(s remote.ServiceState) bool { return s.Active == "inactive" || s.Active == "failed" }

// Started tells that the unit runs.
func Started(s remote.ServiceState) bool { return s.Active == "active" }

// waitStable looks at the unit until it is as wanted or no longer changing its
// state, or the limit is over.
func (u *Unit) waitStable(ctx context.Context, wanted func(remote.ServiceState) bool, limit time.Duration) (remote.ServiceState, error) {
	for began := time.Now(); ; {
		state, err := u.State(ctx)
		if err != nil || wanted(state) || time.Since(began) > limit {
			return state, err
		}
		switch state.Active {
		case "activating", "deactivating", "reloading":
		default:
			return state, nil
		}
		if err := remote.Sleep(ctx, stableInterval); err != nil {
			return state, err
		}
	}
}
