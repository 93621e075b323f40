package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/remote"
)

// How the wait samples. A stop must follow the last request closely, and a
// single low reading proves nothing: a worker of the earlier generation may open
// one more connection for a request it already holds.
const (
	lowReadings  = 3                     // in a row before the backend counts as drained
	lowInterval  = 2 * time.Millisecond  // between two low readings
	nearInterval = 10 * time.Millisecond // when the end is near
	nearCount    = 16                    // connections above the threshold that count as near the end
	// dutyFactor keeps the readings to half of the backend's time: it rests at
	// least this many times what a reading took.
	dutyFactor = 1
	// countGrace is for how long the connections may not be countable before the
	// wait gives up: an SSH connection may break and come back.
	countGrace = 60 * time.Second
)

// wait waits until nobody is connected to the backends any more; in reverse
// until they are healthy. It changes nothing.
type wait struct{ o *Operation }

func (*wait) name() StepName { return StepWait }

func (w *wait) run(ctx context.Context, d Direction, s Scope) Verdict {
	touched := slices.ContainsFunc(w.o.backends, func(b *backend) bool { return b.touched })
	switch {
	case s == ThisOperation && !touched:
		return Verdict{}
	case d == Reverse:
		return w.healthy(ctx)
	}
	return w.drained(ctx, s)
}

// drained waits for every backend, side by side.
func (w *wait) drained(ctx context.Context, s Scope) Verdict {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := newLookout(w.o, s)
	verdicts := make([]Verdict, len(w.o.backends))
	var all sync.WaitGroup
	for i, b := range w.o.backends {
		all.Go(func() {
			verdicts[i] = w.backend(ctx, b, look, s)
			if v := verdicts[i]; v.Outcome != StepOK {
				cancel(v.Err)
			}
		})
	}
	all.Wait()
	first := verdicts[0]
	for _, v := range verdicts[1:] {
		if first.Outcome == StepOK || (v.Outcome == StepTimedOut && errors.Is(first.Err, v.Err)) {
			first = v
		}
	}
	return first
}

// A waiting is the wait for one backend under way.
type waiting struct {
	o        *Operation
	backend  *backend
	clients  *otherClients
	lookout  *lookout
	began    time.Time
	good     time.Time // the last time that the connections could be counted
	took     time.Duration
	count    remote.Count
	err      error // why they could not be counted
	low      int   // low readings in a row
	arriving bool  // other clients have connected lately
	hold     bool  // the reading does not count: see lookout.look
}

func (w *wait) backend(ctx context.Context, b *backend, look *lookout, s Scope) Verdict {
	now := time.Now()
	r := &waiting{o: w.o, backend: b, lookout: look, began: now, good: now}
	if s != ThisOperation {
		var err error
		if r.clients, err = newOtherClients(ctx, w.o, b); err != nil {
			return failed(false, err)
		}
	}
	spec := w.o.plan.Spec
	for {
		if err := r.sample(ctx); err != nil {
			return failed(false, err)
		}
		elapsed := time.Since(r.began)
		r.tell(elapsed)
		switch {
		case r.low >= lowReadings:
			open := r.count.Open
			return Verdict{Detail: Detail{Open: &open, Waited: InSeconds(elapsed)}}
		case r.err != nil && time.Since(r.good) > countGrace:
			return failed(false, fmt.Errorf("the open connections could not be counted for %s: %w", countGrace, r.err))
		case spec.Timeout > 0 && r.low == 0 && elapsed >= spec.Timeout:
			if r.err != nil {
				return failed(false, fmt.Errorf("the open connections could not be counted when the time was up: %w", r.err))
			}
			return Verdict{Outcome: StepTimedOut, Err: &TimedOutError{
				Backend: b.Name, Count: r.count, Threshold: spec.Threshold, Limit: spec.Timeout, OtherClients: r.arriving && r.clients.seen(),
			}}
		}
		if err := sleep(ctx, r.pause(elapsed)); err != nil {
			return failed(false, err)
		}
	}
}

// sample counts the connections, and looks around: now and then, and always
// beside the reading that may be the last. All are asked at once, so that the
// looks delay nothing.
func (r *waiting) sample(ctx context.Context) error {
	last, before := r.low == lowReadings-1, r.low == lowReadings-2
	looked := make(chan error, 1)
	hold := false
	go func() {
		var err error
		hold, err = r.lookout.look(ctx, last, before)
		looked <- err
	}()
	started := time.Now()
	count, err := r.backend.counter.count(ctx)
	r.took = time.Since(started)
	lookErr := <-looked
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if lookErr != nil {
		return lookErr
	}
	arriving, clientsErr := r.clients.look(ctx, last)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if clientsErr == nil {
		r.arriving = arriving
	} else if last {
		r.arriving = true // not known is not none
	}
	r.hold = hold
	r.err = err
	if err == nil {
		r.count, r.good = count, time.Now()
	}
	switch low := err == nil && count.Open <= r.o.plan.Spec.Threshold && !r.arriving; {
	case !low:
		r.low = 0
	case !r.hold:
		r.low++
	}
	return nil
}

func (r *waiting) tell(elapsed time.Duration) {
	spec := r.o.plan.Spec
	e := &Waiting{
		Header: Header{Target: r.backend.Name, Step: StepWait, Direction: Forward},
		Open:   r.count.Open, Threshold: spec.Threshold, Peers: r.count.Peers, MorePeers: r.count.MorePeers,
		Elapsed: InSeconds(elapsed), Limit: InSeconds(spec.Timeout), Low: r.low,
	}
	if r.err != nil {
		e.Error = r.err.Error()
	}
	r.o.emit(e)
}

// pause is how long to wait before the next reading.
func (r *waiting) pause(elapsed time.Duration) time.Duration {
	spec := r.o.plan.Spec
	interval := spec.Interval
	switch {
	case r.err != nil:
	case r.low > 0:
		interval = min(interval, lowInterval)
	case r.count.Open <= spec.Threshold+nearCount && !r.arriving:
		interval = min(interval, max(nearInterval, dutyFactor*r.took))
	}
	if spec.Timeout > 0 && r.low == 0 {
		interval = min(interval, max(spec.Timeout-elapsed, nearInterval))
	}
	if r.hold {
		interval = max(interval, nearInterval, dutyFactor*r.took)
	}
	return interval
}

// How health is judged.
const (
	healthChecks   = 3 // that must pass in a row
	healthInterval = 200 * time.Millisecond
)

// healthURL is the URL to ask; empty for a connect.
func healthURL(s Spec) string {
	if s.Health == HealthTCP {
		return ""
	}
	return s.Health
}

// HealthText says how health is judged.
func HealthText(health string) string {
	if health == HealthTCP || health == "" {
		return "TCP connect from the load balancer"
	}
	return "GET " + health
}

// healthy checks the health from every LB until it passes several times in a row.
func (w *wait) healthy(ctx context.Context) Verdict {
	spec := w.o.plan.Spec
	began, passed := time.Now(), 0
	for {
		err := w.o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
			return lb.Health(ctx, balancer.HealthCheck{URL: healthURL(spec)})
		})
		if ctx.Err() != nil {
			return failed(false, context.Cause(ctx))
		}
		elapsed := time.Since(began)
		passed++
		e := &HealthChecked{Header: Header{Step: StepWait, Direction: Reverse}, Needed: healthChecks, Elapsed: InSeconds(elapsed), Limit: InSeconds(spec.HealthTimeout)}
		if err != nil {
			passed, e.Error = 0, err.Error()
		}
		e.Passed = passed
		w.o.emit(e)
		switch {
		case passed >= healthChecks:
			return Verdict{Detail: Detail{Checks: passed}}
		case spec.HealthTimeout > 0 && elapsed >= spec.HealthTimeout:
			if err == nil {
				err = errors.New("it did not stay healthy")
			}
			return w.unhealthy(ctx, fmt.Errorf("not healthy after %s (%s): %w", Span(spec.HealthTimeout), HealthText(spec.Health), err))
		}
		if err != nil {
			if v := w.ended(ctx); v.Err != nil {
				v.Err = fmt.Errorf("not healthy (%s): %w", HealthText(spec.Health), v.Err)
				return v
			}
		}
		if err := sleep(ctx, cmp.Or(w.o.options.bounds.health, healthInterval)); err != nil {
			return failed(false, err)
		}
	}
}

// unhealthy is the end of a wait for health that never came.
func (w *wait) unhealthy(ctx context.Context, err error) Verdict {
	if w.o.plan.Spec.Service == "" {
		return failed(false, fmt.Errorf("%w; nothing was started: no service is known (--service)", err))
	}
	v := failed(false, err)
	for _, b := range w.o.backends {
		v.Log = append(v.Log, b.log(ctx)...)
	}
	return v
}

// ended is the failure of a service that was started and has ended since: no
// health is to be waited for.
func (w *wait) ended(ctx context.Context) Verdict {
	if w.o.plan.Spec.Service == "" {
		return Verdict{}
	}
	for _, b := range w.o.backends {
		state, err := b.service.State(ctx)
		if err == nil && stopped(state) {
			v := failed(false, fmt.Errorf("%s is %s, result: %s", b.service.Unit, state.Active, state.Result))
			v.Log = b.log(ctx)
			return v
		}
	}
	return Verdict{}
}

// logLines is how many lines of a unit's log a failure shows.
const logLines = 10

// log is the last lines of the service's log, where they can be had.
func (b *backend) log(ctx context.Context) []string {
	text, err := b.service.Logs(ctx, logLines)
	if err != nil || text == "" {
		return nil
	}
	return strings.Split(strings.TrimRight(text, "\n"), "\n")
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
