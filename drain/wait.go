package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// healthAttempts bounds how often a wait for health begins anew after the connection to an LB broke.
const healthAttempts = 5

// await waits until no connection to the backends is open, or until they are healthy. It changes
// nothing. A connection to an LB that breaks while health is asked for is made anew.
func (b *batch) await(ctx context.Context, p plan.Phase, back bool) Verdict {
	v := b.awaitOnce(ctx, p, back)
	for try := 0; v.Err != nil && p == plan.Checking && b.o.lbs.IsBroken() && ctx.Err() == nil && try < healthAttempts; try++ {
		if err := b.o.reconnect(ctx); err != nil {
			return failed(false, err)
		}
		v = b.awaitOnce(ctx, p, back)
	}
	return v
}

// awaitOnce waits for every backend, side by side.
func (b *batch) awaitOnce(ctx context.Context, p plan.Phase, back bool) Verdict {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := newLookout(b)
	sp := b.o.plan.Spec
	return joined(b.rows, gather(b.rows, func(r *row) (v Verdict) {
		if p == plan.Draining {
			v = b.drained(ctx, r, look, back)
		} else {
			v = b.healthy(ctx, r)
		}
		if goTogether(sp) && !back && fateOf(sp, r.reached, v) == rollBack {
			cancel(errTogether)
		}
		return v
	}))
}

// drained waits until one backend is drained.
func (b *batch) drained(ctx context.Context, m *row, look *lookout, back bool) Verdict {
	last, err := m.Drained(ctx, b.wait(m, look, back))
	b.o.keepLast(m.Name)
	var late *backend.TimedOutError
	switch {
	case errors.As(err, &late):
		return Verdict{Outcome: StepTimedOut, Err: err}
	case err != nil && ctx.Err() != nil:
		return failed(false, context.Cause(ctx))
	case err != nil:
		return failed(false, err)
	}
	return Verdict{Detail: event.Detail{Open: &last.Count.Open, Waited: spec.InSeconds(last.Elapsed)}}
}

// settleTime is how long the LBs look, at least, for connections that somebody still opens after the
// reload.
const settleTime = 200 * time.Millisecond

// wait is what to wait for on one backend. A rollback looks for nobody else.
func (b *batch) wait(m *row, look *lookout, back bool) backend.Wait {
	set := m.plan.Settings
	head := event.Header{Target: m.Name, Step: plan.StepWait, Direction: plan.Forward}
	owner := b.o.plan.Owner(m.plan)
	w := backend.Wait{
		Threshold: set.Threshold, Interval: set.Interval, Timeout: set.Timeout, Ignored: set.IgnorePeers,
		Others: !back && m.plan.Address != "", Look: look.look,
		Settle: cmp.Or(b.o.options.bounds.settle, settleTime), MaySend: back || b.o.plan.MaySend(),
		Reading: func(r backend.Reading) {
			e := &event.Waiting{
				Header: head, Open: r.Count.Open, Threshold: set.Threshold, Peers: r.Count.Peers, MorePeers: r.Count.MorePeers,
				Elapsed: spec.InSeconds(r.Elapsed), Limit: spec.InSeconds(set.Timeout), Low: r.Low,
				// Some may have closed since they were looked at.
				Held: heldOf(r.Held, min(event.MaxHeld, r.Count.Open), owner),
			}
			if r.Stuck {
				e.Stuck = b.stuck(m, r.Held, owner)
			}
			if r.Err != nil {
				e.Error = r.Err.Error()
			}
			b.o.emit(e)
		},
		Client: func(c backend.Client, isNew bool, quiet time.Duration) {
			head := head
			head.LB = c.LB
			b.o.emit(&event.OtherClient{Header: head, Address: c.Address.String(), OnLB: c.IsLocal, Process: c.Process, PID: c.PID, New: isNew, Quiet: spec.InSeconds(quiet)})
		},
	}
	for _, lb := range b.o.plan.LBs {
		w.Known = append(w.Known, lb.Report.Addresses...)
	}
	return w
}

// How health is judged.
const (
	healthChecks   = 3 // that must pass in a row
	healthInterval = 200 * time.Millisecond
)

// HealthText says how health is judged.
func HealthText(health string) string {
	switch health {
	case spec.HealthTCP, "":
		return "TCP connect from the load balancer"
	case spec.HealthUDP:
		return "the backend has its UDP port open"
	case spec.HealthNone:
		return "not checked over UDP"
	}
	return "GET " + health
}

// healthy checks the health of a backend from every LB until it passes several
// times in a row.
func (b *batch) healthy(ctx context.Context, m *row) Verdict {
	if m.plan.HealthCheck() == spec.HealthNone {
		return Verdict{}
	}
	limit, how := m.plan.Settings.HealthTimeout, HealthText(m.plan.HealthCheck())
	began, passed := time.Now(), 0
	for {
		err := b.health(ctx, m)
		if ctx.Err() != nil {
			return failed(false, context.Cause(ctx))
		}
		elapsed := time.Since(began)
		passed++
		e := &event.HealthChecked{
			Header: event.Header{Target: m.Name, Step: plan.StepWait, Direction: plan.Reverse},
			Needed: healthChecks, Elapsed: spec.InSeconds(elapsed), Limit: spec.InSeconds(limit),
		}
		if err != nil {
			passed, e.Error = 0, err.Error()
		}
		e.Passed = passed
		b.o.emit(e)
		switch {
		case passed >= healthChecks:
			return Verdict{Detail: event.Detail{Checks: passed}}
		case err != nil && b.o.lbs.IsBroken():
			return failed(false, err)
		case limit > 0 && elapsed >= limit:
			if err == nil {
				err = errors.New("it did not stay healthy")
			}
			return m.unhealthy(ctx, fmt.Errorf("not healthy after %s (%s): %w", backend.Span(limit), how, err))
		}
		if err != nil {
			if v := m.serviceEnded(ctx); v.Err != nil {
				v.Err = fmt.Errorf("not healthy (%s): %w", how, v.Err)
				return v
			}
		}
		if err := remote.Sleep(ctx, cmp.Or(b.o.options.bounds.health, healthInterval)); err != nil {
			return failed(false, err)
		}
	}
}

// health asks every LB that sends requests to a backend for its health. What an undrain
// leaves down is not asked.
func (b *batch) health(ctx context.Context, m *row) error {
	if m.plan.HealthCheck() == spec.HealthUDP {
		return m.listens(ctx)
	}
	return b.o.lbs.With(m.plan).Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		if m.plan.HasURL() {
			return lb.Health(ctx, m.plan.HealthRequest())
		}
		return b.connect(ctx, lb, m)
	})
}

// connect has an LB connect to the servers of a backend that are in the pool, or come
// back to it.
func (b *batch) connect(ctx context.Context, lb *fleet.LB, m *row) error {
	servers := b.checkedServers(lb, m)
	if len(servers) == 0 {
		return nil
	}
	return lb.Health(ctx, balancer.HealthCheck{Servers: servers})
}

// listens fails unless a backend has its UDP ports open, and the units of its service are active.
func (m *row) listens(ctx context.Context) error {
	for _, u := range m.Units {
		state, err := u.State(ctx)
		if err == nil && !backend.Started(state) {
			err = fmt.Errorf("%s is %s", unitOn(u.Service), state.Active)
		}
		if err != nil {
			return err
		}
	}
	for _, port := range m.plan.Ports {
		if err := remote.ListensUDP(ctx, m.Host, port); err != nil {
			return err
		}
	}
	return nil
}

// checkedServers returns the servers of a backend on an LB that take TCP connections, and are in the pool or
// come back to it.
func (b *batch) checkedServers(lb *fleet.LB, m *row) []journal.Server {
	sp := b.o.plan.Spec
	return keysOf(slices.DeleteFunc(b.servers(lb, []*row{m}), func(s balancer.Server) bool {
		return s.OnlyUDP || s.Down && !s.Managed && !(sp.Kind == spec.Undrain && sp.Force)
	}))
}

// unhealthy is the end of a wait for health that never came.
func (m *row) unhealthy(ctx context.Context, err error) Verdict {
	if len(m.Units) == 0 {
		return failed(false, fmt.Errorf("%w; nothing was started: no service is known (--service)", err))
	}
	v := failed(false, err)
	v.Log = m.Log(ctx)
	return v
}

// serviceEnded is the failure of a unit that was started and has ended since: no
// health is to be waited for.
func (m *row) serviceEnded(ctx context.Context) Verdict {
	for _, u := range m.Units {
		if state, err := u.State(ctx); err == nil && backend.Stopped(state) {
			v := failed(false, fmt.Errorf("%s is %s, result: %s", u.Unit, state.Active, state.Result))
			v.Log = u.Log(ctx)
			return v
		}
	}
	return Verdict{}
}
