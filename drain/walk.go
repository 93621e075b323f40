package drain

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// An Outcome is how a step ended.
type Outcome int

// The outcomes.
const (
	StepOK       Outcome = iota // done, or unchanged
	StepTimedOut                // the time was up; nothing failed
	StepError                   // failed
	Irreversible                // failed, and cannot be rolled back
)

// A Verdict is the result of a step.
type Verdict struct {
	Outcome Outcome
	Changed bool // it changed something, if only for a while; also when it failed
	Detail  event.Detail
	Err     error
	Log     []string       // the app's last log lines
	Next    []spec.Command // for an irreversible failure
	// Failed are the rows that it failed for, and Each has why. If it failed and there are none,
	// it failed for all of them together.
	Failed []*row
	Each   map[*row]Verdict
}

func failed(changed bool, err error) Verdict {
	return Verdict{Outcome: StepError, Changed: changed, Err: err}
}

// of returns the verdict on one row.
func (v Verdict) of(r *row) Verdict {
	if each, ok := v.Each[r]; ok {
		return each
	}
	return v
}

// joined returns the verdict on several rows: the worst of them, with the details of all.
func joined(rows []*row, verdicts []Verdict) Verdict {
	all := Verdict{Each: map[*row]Verdict{}}
	for i, v := range verdicts {
		if v.Outcome > all.Outcome && !errors.Is(v.Err, errTogether) {
			all.Outcome, all.Err, all.Log, all.Next = v.Outcome, v.Err, v.Log, v.Next
		}
		if v.Outcome != StepOK {
			all.Failed = append(all.Failed, rows[i])
			all.Each[rows[i]] = v
		}
		rows[i].changed = rows[i].changed || v.Changed
		all.Changed = all.Changed || v.Changed
		all.Detail.Services = append(all.Detail.Services, v.Detail.Services...)
		if v.Detail.Open != nil {
			if all.Detail.Open == nil {
				all.Detail.Open = new(int)
			}
			*all.Detail.Open += *v.Detail.Open
			all.Detail.Waited = max(all.Detail.Waited, v.Detail.Waited)
		}
		all.Detail.Checks = max(all.Detail.Checks, v.Detail.Checks)
	}
	return all
}

// doStep does the step of a phase. In a rollback, back is set and the step undoes only what this operation
// did. A step can be repeated; it then does what is still to be done.
func (b *batch) doStep(ctx context.Context, p plan.Phase, back bool) Verdict {
	switch p {
	case plan.Marking, plan.Clearing:
		return b.reconcile(ctx, p, back)
	case plan.Draining, plan.Checking:
		return b.await(ctx, p, back)
	case plan.Stopping, plan.Starting:
		return b.control(ctx, p, back)
	}
	return b.work(ctx)
}

// walk takes a batch through phases. rest are the rows that come to the end of them. An error is
// about all rows and ends the operation; they were rolled back, or left out after their work.
func (o *Operation) walk(hard, soft context.Context, b *batch, path []plan.Phase) (rest *batch, err error) {
	for _, p := range path {
		ctx := soft
		if o.plan.Spec.Kind == spec.Run && p >= plan.Working {
			ctx = hard // after Ctrl-C, the batch returns to the pool before the run ends
		}
		v := o.takeStep(ctx, b, p, false)
		switch {
		case v.Outcome == StepOK:
			continue
		case len(v.Failed) == 0, ctx.Err() != nil: // an LB, the journal or the operator
			return b.only(nil), o.unwindAll(hard, b, v)
		}
		if b = o.settle(hard, b, p, v); len(b.rows) == 0 {
			break
		}
	}
	return b, nil
}

// unwindAll rolls back after a step that failed for a whole batch: a drain or an undrain with all
// its rows; of a rolling run the batch, but what was worked on stays out, unless --on-failure says
// otherwise.
func (o *Operation) unwindAll(hard context.Context, b *batch, v Verdict) error {
	v.Failed = nil // it ends the operation for all of them
	if o.plan.Spec.Kind != spec.Run {
		o.unwind(hard, o.whole.where(func(r *row) bool { return r.end == "" || r.end == notDrained }), v)
		return v.Err
	}
	stays := func(r *row) bool {
		return fateOf(o.plan.Spec, r.reached, Verdict{Outcome: StepError}) == leave
	}
	for _, r := range b.where(stays).rows {
		r.end, r.why = left, v.of(r)
	}
	back := b.where(func(r *row) bool { return !stays(r) })
	o.unwind(hard, back, v)
	for _, r := range back.rows {
		if r.end == rolledBack { // a resume begins with it
			r.phase, r.reached, r.end, r.why = plan.NotBegun, plan.NotBegun, "", Verdict{}
		}
	}
	return v.Err
}

// settle decides what becomes of the rows that failed in a step. It returns the others.
func (o *Operation) settle(hard context.Context, b *batch, p plan.Phase, v Verdict) (rest *batch) {
	sp := o.plan.Spec
	var back, stay []*row
	for _, r := range v.Failed {
		r.why = v.of(r)
		switch fateOf(sp, r.reached, r.why) {
		case stopAnyway:
			o.emit(&event.StoppingAnyway{Header: event.Header{Target: r.Name, Step: p.Step(), Direction: p.Direction()}, Error: r.why.Err.Error()})
		case leave:
			r.end = left
			if r.why.Outcome == StepTimedOut {
				r.end = notDrained
			}
			stay = append(stay, r)
		default:
			back = append(back, r)
		}
	}
	rest = b.without(slices.Concat(back, stay))
	switch {
	case len(back) == 0:
	case goTogether(sp):
		o.unwind(hard, o.whole.where(func(r *row) bool { return r.end == "" || r.end == notDrained }), v)
		return b.only(nil)
	default:
		o.unwind(hard, b.only(back), v)
	}
	return rest
}

// unwind is the rollback. It reverses what the operation has done for the rows. A row for which a
// step fails stays as it is then; the others go on.
func (o *Operation) unwind(ctx context.Context, b *batch, why Verdict) {
	o.tellRollback(b, why)
	for _, r := range b.rows {
		if len(why.Failed) == 0 || slices.Contains(why.Failed, r) { // else it goes together with one that failed
			r.why = why.of(r)
		}
	}
	path := plan.Paths[spec.Undrain]
	if o.plan.Spec.Kind == spec.Undrain {
		path = plan.Paths[spec.Drain]
	}
	rest := b
	for _, p := range path {
		part := rest.where(func(r *row) bool { return r.reverses(p) })
		if len(part.rows) == 0 {
			continue
		}
		v := o.takeStep(ctx, part, p, true)
		if v.Outcome == StepOK {
			continue
		}
		if len(v.Failed) == 0 {
			v.Failed = part.rows
		}
		for _, r := range v.Failed {
			r.end, r.rollbackWhy = left, v.of(r)
		}
		rest = rest.without(v.Failed)
	}
	for _, r := range rest.rows {
		r.end = rolledBack
	}
}

// tellRollback emits the beginning of a rollback: once for all backends, otherwise for each one.
func (o *Operation) tellRollback(b *batch, why Verdict) {
	if len(b.rows) == len(o.whole.rows) {
		if slices.ContainsFunc(b.rows, func(r *row) bool { return r.changed }) {
			o.emit(&event.RollingBack{Error: why.Err.Error()})
		}
		return
	}
	for _, r := range b.rows {
		o.emit(&event.RollingBack{Header: event.Header{Target: r.Name}, Error: why.of(r).Err.Error()})
	}
}

// takeStep runs the step of one phase and says how it went. The journal of every LB has it before it
// begins. On the way back to the pool, a journal that cannot be written is a warning: it is no reason
// to leave an app stopped.
func (o *Operation) takeStep(ctx context.Context, b *batch, p plan.Phase, back bool) Verdict {
	head := event.Header{Step: p.Step(), Direction: p.Direction()}
	if ctx.Err() != nil {
		return failed(false, context.Cause(ctx))
	}
	isRolling := o.plan.Spec.Kind == spec.Run
	wayBack := back || isRolling && p > plan.Working
	if wayBack && o.lbs.IsBroken() {
		// An LB that is gone is no reason to leave the app stopped. Steps that need it fail.
		_ = o.reconnect(ctx)
	}
	if back || isRolling || o.begins(b, p) {
		o.announce(b, p, back)
		if err := o.record(ctx); err != nil && !wayBack {
			return o.failedStep(head, failed(false, err))
		} else if err != nil {
			o.emit(&event.Warning{Text: err.Error()})
		}
	}
	for _, r := range b.rows {
		if !back {
			r.reached = max(p, r.reached)
		}
	}
	if ctx.Err() != nil {
		return failed(false, context.Cause(ctx))
	}
	began := time.Now()
	v := b.doStep(ctx, p, back)
	for _, r := range b.rows { // joined has noted Changed for each row; a step without Each is about all rows
		r.changed = r.changed || v.Changed && v.Each == nil
	}
	if v.Err != nil {
		if ctx.Err() != nil {
			v.Err = context.Cause(ctx) // what it broke off says less
		}
		return o.failedStep(head, v)
	}
	o.emit(&event.StepDone{Header: head, Changed: v.Changed, Elapsed: spec.InSeconds(time.Since(began)), Detail: v.Detail})
	return v
}

// begins reports whether the step is still to be announced. The first step of a drain or an undrain
// is announced when the operation begins.
func (o *Operation) begins(b *batch, p plan.Phase) bool {
	return slices.ContainsFunc(b.rows, func(r *row) bool { return r.phase != p })
}

// announce emits the beginning of a step, and notes it in the table.
func (o *Operation) announce(b *batch, p plan.Phase, back bool) {
	e := &event.StepStarted{Header: event.Header{Step: p.Step(), Direction: p.Direction()}, Rollback: back, Description: b.describe(p)}
	switch path := o.plan.Path(); {
	case back:
	case o.plan.Spec.Kind == spec.Run:
		if p == plan.Marking {
			e.Description.Returning = targetsOf(o.returning())
		}
	default:
		e.Number, e.Of = slices.Index(path, p)+1, len(path)
	}
	o.steps++
	for _, r := range b.rows {
		if !back {
			r.phase = p
		}
	}
	o.emit(e)
}

func (o *Operation) failedStep(head event.Header, v Verdict) Verdict {
	if len(v.Failed) == 0 || len(o.whole.rows) == 1 {
		o.emit(&event.StepFailed{Header: head, Error: v.Err.Error()})
		return v
	}
	for _, r := range v.Failed {
		head.Target = r.Name
		o.emit(&event.StepFailed{Header: head, Error: v.of(r).Err.Error()})
	}
	return v
}

// describe says what the step of a phase will do with the batch.
func (b *batch) describe(p plan.Phase) plan.Description {
	var backends []plan.Backend
	for _, r := range b.rows {
		backends = append(backends, r.plan)
	}
	var lbs []plan.LBPlan
	for _, lb := range b.lbs {
		report := *lb.Report
		report.Servers = serversOf(lb, b.rows)
		lbs = append(lbs, plan.LBPlan{LB: lb.LB, Report: &report})
	}
	return plan.Describe(b.o.plan.Spec, p, backends, lbs)
}
