package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// errGate says that a gate is closed: no further batch begins.
var errGate = errors.New("the gate is closed")

// roll takes one batch after the other. An error ends the run.
func (o *Operation) roll(hard, soft context.Context) error {
	err := o.rollBatches(hard, soft)
	if len(o.returning()) == 0 {
		return err
	}
	if hard.Err() != nil {
		return cmp.Or(err, context.Cause(hard))
	}
	return errors.Join(err, o.putBack(hard))
}

// rollBatches takes one batch after the other. The last one is still marked down when it returns.
func (o *Operation) rollBatches(hard, soft context.Context) error {
	sp := o.plan.Spec.Rollout
	// An earlier process did the work on these, and may not have seen them healthy.
	worked := o.whole.where(func(r *row) bool { return r.isOpen() && r.phase >= plan.Starting })
	if err := o.makeHealthy(hard, worked); err != nil {
		return err
	}
	if err := o.checkFailures(); err != nil {
		return err
	}
	todo := o.whole.where(func(r *row) bool { return r.isOpen() && r.phase == plan.NotBegun }).rows
	// What is out already comes first.
	slices.SortStableFunc(todo, func(a, b *row) int { return b.plan.Down - a.plan.Down })
	all, err := batches(sp, todo)
	if err != nil {
		return err
	}
	for i, rows := range all {
		if err := o.ready(soft); err != nil {
			return err
		}
		o.emit(&event.BatchStarted{Number: i + 1, Of: len(all), Backends: namesOf(rows)})
		if err := o.rollBatch(hard, soft, rows); err != nil {
			return err
		}
		if err := cmp.Or(o.drifted, o.checkFailures()); err != nil {
			return err
		}
		isCanary, returns := sp.Canary && i == 0, slices.ContainsFunc(rows, (*row).isOpen)
		if i+1 < len(all) && (isCanary || sp.Pause > 0 && returns) {
			if err := o.pause(hard, soft, rows, isCanary); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkFailures returns an error if more backends have failed than --max-failures allows.
func (o *Operation) checkFailures() error {
	failed := o.whole.where(func(r *row) bool { return r.why.Err != nil }).rows
	if most := o.plan.Spec.Rollout.MaxFailures; len(failed) > most {
		return fmt.Errorf("%d failed, more than --max-failures %d", len(failed), most)
	}
	return nil
}

// ready waits until a batch may begin, and asks the gate.
func (o *Operation) ready(soft context.Context) error {
	if soft.Err() != nil {
		return context.Cause(soft)
	}
	sp := o.plan.Spec.Rollout
	if err := o.awaitGenerations(soft, sp.MaxGenerations); err != nil {
		return err
	}
	if sp.Gate == "" {
		return nil
	}
	code, err := o.runHere(soft, splitWords(sp.Gate), plan.Backend{}, plan.StepName("gate"))
	if err == nil && code != 0 {
		err = fmt.Errorf("%w: %s ended with exit status %d", errGate, sp.Gate, code)
	}
	return err
}

// generationsInterval is how often earlier generations are looked at.
const generationsInterval = 500 * time.Millisecond

// awaitGenerations waits until no LB has more earlier generations than limit.
func (o *Operation) awaitGenerations(ctx context.Context, limit *int) error {
	for told := false; limit != nil; told = true {
		seen, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (balancer.Watched, error) {
			return lb.Watch(ctx, balancer.WatchRequest{Generation: true})
		})
		if err != nil {
			return err
		}
		most := 0
		for i, w := range seen {
			if most = max(most, w.Generation.Earlier); !told && w.Generation.Earlier > *limit {
				o.emit(&event.GenerationsAwaited{Header: event.Header{LB: o.lbs[i].Name}, Generation: *w.Generation, Limit: *limit})
			}
		}
		if most <= *limit {
			return nil
		}
		if err := remote.Sleep(ctx, generationsInterval); err != nil {
			return err
		}
	}
	return nil
}

// rollBatch takes some backends out, works on them, and makes them healthy again. The edit that takes
// the next batch out clears their marks.
func (o *Operation) rollBatch(hard, soft context.Context, rows []*row) error {
	b, err := o.planBatch(soft, rows)
	if err != nil {
		return err
	}
	path := o.plan.Path()
	out := slices.Index(path, plan.Working) + 1
	if b, err = o.walk(hard, soft, b, path[:out]); err != nil || len(b.rows) == 0 {
		return err
	}
	return o.makeHealthy(hard, b)
}

// makeHealthy starts backends after the work and waits until they are healthy. Their marks are still to
// be cleared.
func (o *Operation) makeHealthy(hard context.Context, b *batch) error {
	if len(b.rows) == 0 {
		return nil
	}
	path := o.plan.Path()
	rest, err := o.walk(hard, hard, b, path[slices.Index(path, plan.Working)+1:len(path)-1])
	for _, r := range rest.rows {
		r.phase, r.reached = plan.Clearing, plan.Clearing
	}
	return err
}

// planBatch plans the edit that takes some backends out while others return, and asks the guards.
func (o *Operation) planBatch(ctx context.Context, rows []*row) (*batch, error) {
	b := o.whole.only(rows)
	lbs, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
		if err := lb.Reconnect(ctx, o.locks()); err != nil {
			return plan.LBPlan{}, err
		}
		return b.plan(ctx, lb)
	})
	if err != nil {
		return nil, err
	}
	b.lbs = lbs
	for i, part := range lbs {
		if err := b.checkCounted(part); err != nil {
			return nil, err
		}
		o.learn(i, part)
	}
	return b, plan.New(b.spec(), lbs, false).Refusal()
}

// pause puts the batch back, with a reload of its own, and waits, or asks, before the next one.
func (o *Operation) pause(hard, soft context.Context, rows []*row, isCanary bool) error {
	sp := o.plan.Spec.Rollout
	if err := o.putBack(hard); err != nil {
		return err
	}
	wait := sp.Pause
	switch {
	case isCanary && sp.CanaryWait == 0:
		return o.askAboutCanary(soft, rows[0])
	case isCanary:
		wait = max(wait, sp.CanaryWait)
	}
	o.emit(&event.Paused{For: spec.InSeconds(wait)})
	err := remote.Sleep(soft, wait)
	o.answered = o.answered || isCanary && err == nil
	return err
}

// askAboutCanary asks whether the run goes on after its first backend.
func (o *Operation) askAboutCanary(ctx context.Context, canary *row) error {
	if o.options.Ask == nil { // a resume
		return fmt.Errorf("%w: there is no terminal to ask on after the canary", errGate)
	}
	state := "is done and back in the pool"
	if canary.end != done {
		state = "failed"
	}
	yes, err := o.options.Ask(ctx, fmt.Sprintf("%s %s; go on with the rest?", canary.Name, state))
	if err == nil && !yes {
		err = fmt.Errorf("%w: the answer was no", errGate)
	}
	o.answered = err == nil
	return err
}

// putBack clears the marks of the healthy backends, on as many LBs as possible.
func (o *Operation) putBack(hard context.Context) error {
	rest, err := o.walk(hard, hard, o.whole.only(o.returning()), []plan.Phase{plan.Clearing})
	for _, r := range rest.rows {
		r.end = done
	}
	return err
}
