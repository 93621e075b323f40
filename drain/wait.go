package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
)

// wait waits until nobody is connected to the backends any more; in reverse
// until they are healthy. It changes nothing.
type wait struct{ o *Operation }

func (*wait) name() StepName { return StepWait }

func (w *wait) run(ctx context.Context, d Direction, s Scope) Verdict {
	touched := slices.ContainsFunc(w.o.members, func(m *member) bool { return m.Touched })
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
	verdicts := make([]Verdict, len(w.o.members))
	var all sync.WaitGroup
	for i, m := range w.o.members {
		all.Go(func() {
			verdicts[i] = w.backend(ctx, m, look, s)
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

// backend waits for one backend.
func (w *wait) backend(ctx context.Context, m *member, look *lookout, s Scope) Verdict {
	last, err := m.Drained(ctx, w.wait(m, look, s))
	var late *backend.TimedOutError
	switch {
	case errors.As(err, &late):
		return Verdict{Outcome: StepTimedOut, Err: err}
	case err != nil:
		return failed(false, err)
	}
	return Verdict{Detail: Detail{Open: &last.Count.Open, Waited: InSeconds(last.Elapsed)}}
}

// wait is what to wait for on one backend. A rollback looks for nobody else.
func (w *wait) wait(m *member, look *lookout, s Scope) backend.Wait {
	spec := w.o.plan.Spec
	head := Header{Target: m.Name, Step: StepWait, Direction: Forward}
	wait := backend.Wait{
		Threshold: spec.Threshold, Interval: spec.Interval, Timeout: spec.Timeout, Ignored: spec.IgnorePeers,
		Others: s != ThisOperation, Look: look.look,
		Reading: func(r backend.Reading) {
			e := &Waiting{
				Header: head, Open: r.Count.Open, Threshold: spec.Threshold, Peers: r.Count.Peers, MorePeers: r.Count.MorePeers,
				Elapsed: InSeconds(r.Elapsed), Limit: InSeconds(spec.Timeout), Low: r.Low,
			}
			if r.Err != nil {
				e.Error = r.Err.Error()
			}
			w.o.emit(e)
		},
		Client: func(a netip.Addr, isNew bool, quiet time.Duration) {
			w.o.emit(&OtherClient{Header: head, Address: a.String(), New: isNew, Quiet: InSeconds(quiet)})
		},
	}
	for _, lb := range w.o.plan.LBs {
		wait.Known = append(wait.Known, lb.Report.Addresses...)
	}
	return wait
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
			return w.unhealthy(ctx, fmt.Errorf("not healthy after %s (%s): %w", backend.Span(spec.HealthTimeout), HealthText(spec.Health), err))
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
	for _, m := range w.o.members {
		v.Log = append(v.Log, m.Log(ctx)...)
	}
	return v
}

// ended is the failure of a service that was started and has ended since: no
// health is to be waited for.
func (w *wait) ended(ctx context.Context) Verdict {
	if w.o.plan.Spec.Service == "" {
		return Verdict{}
	}
	for _, m := range w.o.members {
		state, err := m.Service.State(ctx)
		if err == nil && backend.Stopped(state) {
			v := failed(false, fmt.Errorf("%s is %s, result: %s", m.Service.Unit, state.Active, state.Result))
			v.Log = m.Log(ctx)
			return v
		}
	}
	return Verdict{}
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
