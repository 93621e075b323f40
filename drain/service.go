package drain

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// service stops the service on every backend; in reverse it starts it.
type service struct{ o *Operation }

func (*service) name() StepName { return StepService }

func (s *service) run(ctx context.Context, d Direction, scope Scope) Verdict {
	verdicts := make([]Verdict, len(s.o.backends))
	var all sync.WaitGroup
	for i, b := range s.o.backends {
		if scope == ThisOperation && !b.touched {
			continue
		}
		all.Go(func() {
			u := unit{b, s.o.plan.Spec.StopTimeout}
			if d == Forward {
				verdicts[i] = u.stop(ctx)
			} else {
				verdicts[i] = u.start(ctx)
			}
		})
	}
	all.Wait()
	return joined(verdicts)
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

// A unit is the service of one backend.
type unit struct {
	*backend
	stopTimeout time.Duration
}

const (
	// stableInterval is between two looks at a unit that is changing its state.
	stableInterval = 100 * time.Millisecond
	// maxChanging bounds how long a unit may be changing its state after systemctl
	// itself has said that it is done.
	maxChanging = 30 * time.Second
)

func (u unit) is(state remote.ServiceState, changed bool) Verdict {
	return Verdict{Changed: changed, Detail: Detail{Services: []ServiceState{{u.service.Unit, u.Name, state.Active}}}}
}

func (u unit) stop(ctx context.Context) Verdict {
	if !u.active {
		state, err := u.service.State(ctx)
		if err != nil {
			return failed(u.touched, err)
		}
		if stopped(state) {
			return u.is(state, false)
		}
	}
	u.touched = true
	state, err := u.stopWithin(ctx)
	switch {
	case err != nil:
		v := failed(true, err)
		v.Log = u.log(ctx)
		return v
	case state.Active == "deactivating":
		// What has been told to stop cannot be told otherwise.
		return Verdict{Outcome: Irreversible, Changed: true, Err: u.stopTimedOut(state), Next: []Command{u.kill()}}
	case !stopped(state):
		return failed(true, fmt.Errorf("systemctl stop %s succeeded, but the unit is %s (%s)", u.service.Unit, state.Active, state.Sub))
	}
	return u.is(state, true)
}

func (u unit) stopTimedOut(state remote.ServiceState) error {
	return fmt.Errorf("%s was told to stop and has not ended within %s (--stop-timeout); it is %s", u.service.Unit, Span(u.stopTimeout), state.Active)
}

// kill is the command that ends a unit that does not stop.
func (u unit) kill() Command {
	return Command{Words: []string{"systemctl", "kill", "--signal=KILL", u.service.Unit}, On: u.Name, Reason: "ends the app"}
}

// stopWithin stops the unit, and gives up waiting after the limit. systemd
// continues with the stop all the same.
func (u unit) stopWithin(ctx context.Context) (remote.ServiceState, error) {
	limited, cancel := context.WithTimeout(ctx, u.stopTimeout)
	defer cancel()
	err := u.service.Stop(limited)
	state := remote.ServiceState{}
	if err == nil {
		state, err = u.waitStable(limited, stopped, maxChanging)
	}
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return state, err
	}
	return u.service.State(ctx)
}

func (u unit) start(ctx context.Context) Verdict {
	state, err := u.service.State(ctx)
	if err != nil {
		return failed(u.touched, err)
	}
	if started(state) {
		return u.is(state, false)
	}
	if state.Active == "deactivating" {
		// systemd starts the unit no sooner than its stop has ended, and systemctl
		// start would wait for that without a limit.
		if state, err = u.waitStable(ctx, stopped, u.stopTimeout); err != nil {
			return failed(u.touched, err)
		}
		if state.Active == "deactivating" {
			v := failed(u.touched, u.stopTimedOut(state))
			v.Next = []Command{u.kill()}
			return v
		}
	}
	u.touched = true
	if err := u.service.Start(ctx); err != nil {
		v := failed(true, err)
		v.Log = u.log(ctx)
		return v
	}
	if state, err = u.waitStable(ctx, started, maxChanging); err != nil {
		return failed(true, err)
	}
	if !started(state) {
		v := failed(true, fmt.Errorf("systemctl start %s succeeded, but the unit is %s (%s)", u.service.Unit, state.Active, state.Sub))
		v.Log = u.log(ctx)
		return v
	}
	return u.is(state, true)
}

// stopped tells that nothing of the unit runs: inactive, or failed, which is how
// a unit ends whose process answers SIGTERM with an error code.
func stopped(s remote.ServiceState) bool { return s.Active == "inactive" || s.Active == "failed" }

func started(s remote.ServiceState) bool { return s.Active == "active" }

// waitStable looks at the unit until it is as wanted or no longer changing its
// state, or the limit is over.
func (u unit) waitStable(ctx context.Context, wanted func(remote.ServiceState) bool, limit time.Duration) (remote.ServiceState, error) {
	for began := time.Now(); ; {
		state, err := u.service.State(ctx)
		if err != nil || wanted(state) || time.Since(began) > limit {
			return state, err
		}
		switch state.Active {
		case "activating", "deactivating", "reloading":
		default:
			return state, nil
		}
		if err := sleep(ctx, stableInterval); err != nil {
			return state, err
		}
	}
}
