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

// Stop stops the service and sees it inactive. A unit that does not end within
// limit is a *[StoppingError]: systemd continues with the stop. changed tells
// that something was done, also when it failed.
func (b *Backend) Stop(ctx context.Context, limit time.Duration) (state remote.ServiceState, changed bool, err error) {
	if !b.Active {
		state, err = b.Service.State(ctx)
		if err != nil || Stopped(state) {
			return state, b.Touched && err != nil, err
		}
	}
	b.Touched = true
	state, err = b.stopWithin(ctx, limit)
	switch {
	case err != nil:
	case state.Active == "deactivating":
		err = &StoppingError{b.Service.Unit, limit, state.Active}
	case !Stopped(state):
		err = fmt.Errorf("systemctl stop %s succeeded, but the unit is %s (%s)", b.Service.Unit, state.Active, state.Sub)
	}
	return state, true, err
}

// stopWithin stops the unit, and gives up waiting after the limit.
func (b *Backend) stopWithin(ctx context.Context, limit time.Duration) (remote.ServiceState, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := b.Service.Stop(limited)
	state := remote.ServiceState{}
	if err == nil {
		state, err = b.waitStable(limited, Stopped, maxChanging)
	}
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return state, err
	}
	return b.Service.State(ctx)
}

// Start starts the service and sees it active. One that still stops is waited
// for, at most for limit; then the error is a *[StoppingError].
func (b *Backend) Start(ctx context.Context, limit time.Duration) (state remote.ServiceState, changed bool, err error) {
	if state, err = b.Service.State(ctx); err != nil {
		return state, b.Touched, err
	}
	if Started(state) {
		return state, false, nil
	}
	if state.Active == "deactivating" {
		// systemd starts the unit no sooner than its stop has ended, and systemctl
		// start would wait for that without a limit.
		if state, err = b.waitStable(ctx, Stopped, limit); err != nil {
			return state, b.Touched, err
		}
		if state.Active == "deactivating" {
			return state, b.Touched, &StoppingError{b.Service.Unit, limit, state.Active}
		}
	}
	b.Touched = true
	limited, cancel := context.WithTimeoutCause(ctx, maxStarting, fmt.Errorf("it did not end within %s", Span(maxStarting)))
	defer cancel()
	if err := b.Service.Start(limited); err != nil {
		return state, true, err
	}
	state, err = b.waitStable(ctx, Started, maxChanging)
	if err == nil && !Started(state) {
		err = fmt.Errorf("systemctl start %s succeeded, but the unit is %s (%s)", b.Service.Unit, state.Active, state.Sub)
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
func (b *Backend) waitStable(ctx context.Context, wanted func(remote.ServiceState) bool, limit time.Duration) (remote.ServiceState, error) {
	for began := time.Now(); ; {
		state, err := b.Service.State(ctx)
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
