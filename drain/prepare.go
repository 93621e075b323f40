package drain

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
)

// Options are what a run needs besides its spec.
type Options struct {
	Connect Connector
	Emit    func(Event)
	// Ask asks the operator a question; nil: there is nobody to ask.
	Ask func(ctx context.Context, question string) (yes bool, err error)
	// Accept is asked about the plan before anything is touched, and after it was
	// made: an error ends the run.
	Accept func(*Plan) error
	// Version is drainctl's, for the history.
	Version string

	bounds bounds
}

// bounds are times that tests shorten; 0: as usual.
type bounds struct {
	end    time.Duration // endLimit
	health time.Duration // healthInterval
}

// An Operation is a run that was prepared: planned, locked and checked.
type Operation struct {
	options Options
	asked   Spec // as it was given
	plan    *Plan
	id      string
	began   time.Time
	lbs     Fleet
	whole   *batch  // the table: all rows
	steps   int     // that were begun
	checks  []Check // of the backends
	skipped []Skip  // by --only-if
	result  *Result

	mu     sync.Mutex        // guards what follows
	curves map[string]*curve // of the waits, by backend
}

// Prepare plans a run, locks its backends and tries everything it will need.
// Nothing is touched. The caller closes the operation.
func Prepare(ctx context.Context, spec Spec, options Options) (o *Operation, err error) {
	o = newOperation(spec, options)
	if err := spec.check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.Close()
			o, err = nil, beforeTouching(ctx, err)
		}
	}()
	if spec, err = o.connect(ctx, spec); err != nil {
		return o, err
	}
	if spec, err = o.expand(ctx, spec); err != nil {
		return o, err
	}
	// Once for what was mistyped, and once more when the locks are held: what
	// another operator has done by then is in it.
	reports, err := o.report(ctx, spec, false)
	if err != nil {
		return o, err
	}
	o.plan = newPlan(spec, reports, false)
	o.id, o.began = cmp.Or(spec.Continues, newID(reports)), time.Now()
	if err := o.lbs.Lock(ctx, o.locks(), spec.Wait, o.emit); err != nil {
		return o, err
	}
	if o.plan, err = o.planAgain(ctx, spec); err != nil {
		return o, err
	}
	if err := o.accept(); err != nil {
		return o, err
	}
	o.whole = o.newWhole()
	if err := o.check(ctx); err != nil {
		return o, err
	}
	o.adopt(savedTable(o.plan.Spec, o.plan.LBs))
	if spec.Kind != Run {
		return o, nil
	}
	return o, o.askOnlyIf(ctx)
}

// DryRun plans a run and no more. The plan's verdict is what a run would end
// with, as far as can be known without root and without logging in to a backend.
func DryRun(ctx context.Context, spec Spec, options Options) (*Plan, error) {
	o := newOperation(spec, options)
	if err := spec.check(); err != nil {
		return nil, err
	}
	defer o.Close()
	spec, err := o.connect(ctx, spec)
	if err != nil {
		return nil, beforeTouching(ctx, err)
	}
	if spec, err = o.expand(ctx, spec); err != nil {
		return nil, beforeTouching(ctx, err)
	}
	reports, err := o.report(ctx, spec, true)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		o.plan, err = o.planOf(ctx, spec, reports, true)
	}
	if err != nil {
		return nil, beforeTouching(ctx, err)
	}
	return o.plan, o.accept()
}

func (o *Operation) accept() error {
	if o.options.Accept == nil {
		return nil
	}
	return o.options.Accept(o.plan)
}

// newOperation is an operation that has reached nothing yet.
func newOperation(spec Spec, options Options) *Operation {
	if options.Emit == nil {
		options.Emit = func(Event) {}
	}
	return &Operation{options: options, asked: spec, plan: &Plan{Spec: spec}, lbs: NewFleet(spec, options.Connect)}
}

// connect reaches the LBs. What an undrain takes over of the drain may say how
// nginx is run on them.
func (o *Operation) connect(ctx context.Context, spec Spec) (Spec, error) {
	var err error
	if o.lbs, err = o.lbs.Open(ctx, spec, o.emit); err != nil || spec.Kind != Undrain {
		return spec, err
	}
	states, err := Gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (callersState, error) {
		s, err := lb.State(ctx)
		if err != nil {
			// The plan says what that means.
			return callersState{}, nil
		}
		return callersState{State: s, caller: lb.Caller()}, nil
	})
	if err != nil {
		return spec, err
	}
	full, err := spec.inherit(drainsOf(spec, states))
	if err != nil || full.Nginx == spec.Nginx {
		return full, err
	}
	o.plan = &Plan{Spec: full}
	o.lbs.Close()
	return full, o.lbs.Each(ctx, func(ctx context.Context, lb *LB) error { return lb.Open(ctx, full.Nginx) })
}

// report asks every LB.
func (o *Operation) report(ctx context.Context, spec Spec, preflight bool) ([]LBPlan, error) {
	reports, err := Gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		q := query(spec)
		q.Preflight = preflight
		return lb.Ask(ctx, q)
	})
	if err != nil {
		return nil, err
	}
	return reports, missingEverywhere(spec, reports)
}

// planAgain plans with the locks held. What an undrain takes over is read again.
func (o *Operation) planAgain(ctx context.Context, spec Spec) (*Plan, error) {
	reports, err := o.report(ctx, spec, true)
	if err != nil {
		return nil, err
	}
	if spec.Kind == Undrain {
		var states []callersState
		for i, r := range reports {
			states = append(states, callersState{State: r.Report.State, caller: o.lbs[i].Caller()})
		}
		full, err := o.asked.inherit(drainsOf(o.asked, states))
		if err != nil {
			return nil, err
		}
		full.Nginx = spec.Nginx
		spec = full
	}
	if spec.Continues != "" {
		// Another operator may have continued it, or it was waited for. It may have
		// begun, or not have ended, on some LBs alone.
		states := make([]journal.State, len(reports))
		for i, r := range reports {
			states[i] = r.Report.State
		}
		if _, err := FindUnfinished(together(states), spec.Continues); err != nil {
			return nil, err
		}
	}
	return o.planOf(ctx, spec, reports, false)
}

// planOf is the plan of a spec and the LBs' reports.
func (o *Operation) planOf(ctx context.Context, spec Spec, reports []LBPlan, dry bool) (*Plan, error) {
	if spec.Kind != Run {
		return newPlan(spec, reports, dry), nil
	}
	return o.planRun(ctx, spec, reports, dry)
}

// newID is an ID by the LBs' clocks: they compare it with these.
func newID(reports []LBPlan) string {
	latest, now := "", time.Time{}
	for _, r := range reports {
		latest = max(latest, r.Report.State.LastID)
		if r.Report.Now.After(now) {
			now = r.Report.Now
		}
	}
	if now.IsZero() {
		now = time.Now()
	}
	return journal.NewID(now, latest)
}

// locks asks for the locks of the plan's backends.
func (o *Operation) locks() balancer.LockRequest {
	spec := o.plan.Spec
	r := balancer.LockRequest{Holder: journal.Holder{
		ID: o.id, Kind: string(spec.Kind), Targets: spec.Targets, User: spec.User, Host: spec.Host, Reason: spec.Reason, Time: o.began,
	}}
	for _, text := range spec.Targets {
		r.Backends = append(r.Backends, LockName(text))
	}
	r.Backends = once(r.Backends)
	return r
}

// Close ends the connections of the operation, and frees its locks.
func (o *Operation) Close() {
	if o.whole != nil {
		for _, m := range o.whole.rows {
			m.Close()
		}
	}
	o.lbs.Close()
}

// Plan is the plan that the operation was prepared with.
func (o *Operation) Plan() *Plan { return o.plan }

// reconnect makes connections that broke anew.
func (o *Operation) reconnect(ctx context.Context) error {
	return o.lbs.Each(ctx, func(ctx context.Context, lb *LB) error { return lb.Reconnect(ctx, o.locks()) })
}
