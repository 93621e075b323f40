package drain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// Options are what a run needs besides its spec.
type Options struct {
	Connect fleet.Connector
	Emit    func(event.Event)
	// Ask asks the operator a question; nil: there is nobody to ask.
	Ask func(ctx context.Context, question string) (yes bool, err error)
	// Accept receives the plan before drainctl changes anything. An error ends the run.
	Accept func(*plan.Plan) error
	// Version is drainctl's, for the history.
	Version string

	bounds bounds
}

// bounds are times that tests shorten; 0: as usual.
type bounds struct {
	end    time.Duration // endLimit
	health time.Duration // healthInterval
	watch  time.Duration // watchInterval
	settle time.Duration // settleTime
}

// An Operation is a run that was prepared: planned, locked and checked.
type Operation struct {
	options  Options
	asked    spec.Spec // as it was given
	plan     *plan.Plan
	id       string
	began    time.Time
	lbs      fleet.Fleet
	whole    *batch        // the table: all rows
	steps    int           // that were begun
	answered bool          // the run goes on after its canary
	drifted  error         // during the work of a batch
	checks   []event.Check // of the backends
	skipped  []plan.Skip   // by --only-if
	result   *event.Result

	stopLogins context.CancelFunc // ends those that are still under way

	mu     sync.Mutex                // guards what follows
	curves map[string]*curve         // of the waits, by backend
	logins map[account]chan loggedIn // that were begun, and that no row has taken yet
}

// Prepare plans a run, locks its backends and tries everything it will need.
// Nothing is touched. The caller closes the operation.
func Prepare(ctx context.Context, sp spec.Spec, options Options) (o *Operation, err error) {
	o = newOperation(sp, options)
	if err := sp.Check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.Close()
			o, err = nil, spec.BeforeTouching(ctx, err)
		}
	}()
	if sp, err = o.connect(ctx, sp); err != nil {
		return o, err
	}
	if sp, err = o.expand(ctx, sp); err != nil {
		return o, err
	}
	// Once for what was mistyped, and once more when the locks are held: what
	// another operator has done by then is in it.
	reports, err := o.report(ctx, sp, false)
	if err != nil {
		return o, err
	}
	o.id, o.began = cmp.Or(sp.Continues, newID(reports)), time.Now()
	reports = o.distinct(reports)
	o.plan = plan.New(sp, reports, false)
	if err := o.lbs.Lock(ctx, o.locks(), sp.Wait, o.emit); err != nil {
		return o, err
	}
	o.beginLogins(ctx)
	if o.plan, err = o.planAgain(ctx, sp, false); err != nil {
		return o, err
	}
	if err := o.accept(); err != nil {
		return o, err
	}
	o.whole = o.newWhole()
	o.recall()
	if err := o.check(ctx); err != nil {
		return o, err
	}
	o.adopt(savedTable(o.plan.Spec, o.plan.LBs))
	if sp.Kind != spec.Run {
		return o, nil
	}
	return o, o.askOnlyIf(ctx)
}

// DryRun plans a run and no more. The plan's verdict is what a run would end
// with, as far as can be known without root and without logging in to a backend. It logs in only to ask
// --only-if, which decides what the run is about.
func DryRun(ctx context.Context, sp spec.Spec, options Options) (*plan.Plan, error) {
	o := newOperation(sp, options)
	if err := sp.Check(); err != nil {
		return nil, err
	}
	defer o.Close()
	sp, err := o.connect(ctx, sp)
	if err != nil {
		return nil, spec.BeforeTouching(ctx, err)
	}
	if sp, err = o.expand(ctx, sp); err != nil {
		return nil, spec.BeforeTouching(ctx, err)
	}
	o.plan, err = o.planAgain(ctx, sp, true)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, spec.BeforeTouching(ctx, err)
	}
	o.whole = o.newWhole()
	o.tryHealth(ctx)
	if err := o.tryOnlyIf(ctx); err != nil {
		return nil, spec.BeforeTouching(ctx, err)
	}
	o.plan.Unchecked = append(o.plan.Unchecked, o.lockedByOthers()...)
	return o.plan, o.accept()
}

func (o *Operation) accept() error {
	if o.options.Accept == nil {
		return nil
	}
	return o.options.Accept(o.plan)
}

// newOperation is an operation that has reached nothing yet.
func newOperation(sp spec.Spec, options Options) *Operation {
	if options.Emit == nil {
		options.Emit = func(event.Event) {}
	}
	return &Operation{
		options: options, asked: sp, plan: &plan.Plan{Spec: sp}, lbs: fleet.New(sp, options.Connect),
		stopLogins: func() {}, logins: map[account]chan loggedIn{},
	}
}

// connect reaches the LBs. What an undrain takes over of the drain may say how
// nginx is run on them.
func (o *Operation) connect(ctx context.Context, sp spec.Spec) (spec.Spec, error) {
	var err error
	if o.lbs, err = o.lbs.Open(ctx, sp, o.emit); err != nil || sp.Kind != spec.Undrain {
		return sp, err
	}
	states, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (spec.CallersState, error) {
		s, err := lb.State(ctx)
		if err != nil {
			// The plan says what that means.
			return spec.CallersState{}, nil
		}
		return spec.CallersState{State: s, Caller: lb.Caller()}, nil
	})
	if err != nil {
		return sp, err
	}
	full, err := o.inherit(ctx, sp, states)
	if err != nil || full.Nginx == sp.Nginx {
		return full, err
	}
	o.plan = &plan.Plan{Spec: full}
	o.lbs.Close()
	return full, o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error { return lb.Open(ctx, full.Nginx) })
}

// report asks every LB.
func (o *Operation) report(ctx context.Context, sp spec.Spec, preflight bool) ([]plan.LBPlan, error) {
	reports, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
		q := plan.Query(sp)
		q.Preflight = preflight
		return lb.Ask(ctx, q)
	})
	if err != nil {
		return nil, err
	}
	return reports, plan.MissingEverywhere(sp, reports)
}

// distinct leaves out each LB that is an earlier one by another name, and warns of it: its lock is held by
// this operation, and it has no connections of its own.
func (o *Operation) distinct(reports []plan.LBPlan) (kept []plan.LBPlan) {
	var lbs fleet.Fleet
	for i, lb := range reports {
		if first, text := lb.TwinIn(kept); first >= 0 {
			o.emit(&event.Warning{Text: text})
			_ = o.lbs[i].Balancer.Close()
			continue
		}
		kept, lbs = append(kept, lb), append(lbs, o.lbs[i])
	}
	o.lbs = lbs
	return kept
}

// inherit completes an undrain with the settings of the drains that it ends. If they contradict each
// other, those of servers that are gone do not count, nor those of other configurations than the one given.
func (o *Operation) inherit(ctx context.Context, sp spec.Spec, states []spec.CallersState) (spec.Spec, error) {
	full, err := sp.Inherit(spec.DrainsOf(sp, states))
	if err == nil {
		return full, nil
	}
	reports, reportErr := o.report(ctx, sp, false)
	if reportErr != nil {
		return sp, err
	}
	for i, r := range reports {
		if slices.Contains(sp.Given, "nginx-conf") {
			states[i].State = r.Report.State
		}
		states[i].State = states[i].Without(plan.Gone(sp, r.Report))
	}
	return sp.Inherit(spec.DrainsOf(sp, states))
}

// planAgain plans with the locks held, if it is no dry run. What an undrain takes over is read again.
func (o *Operation) planAgain(ctx context.Context, sp spec.Spec, dry bool) (*plan.Plan, error) {
	reports, err := o.report(ctx, sp, true)
	if err != nil {
		return nil, err
	}
	reports = o.distinct(reports)
	if sp.Kind == spec.Undrain {
		var states []spec.CallersState
		for i, r := range reports {
			states = append(states, spec.CallersState{State: r.Report.State, Caller: o.lbs[i].Caller()})
		}
		asked := o.asked
		asked.Targets = plan.Present(asked, reports) // what was stopped with others is not theirs
		full, err := o.inherit(ctx, asked, states)
		if err != nil {
			return nil, err
		}
		full.Nginx = sp.Nginx
		sp = full
	}
	if sp.Continues != "" {
		// Another operator may have continued it, or it was waited for. It may have
		// begun, or not have ended, on some LBs alone.
		states := make([]journal.State, len(reports))
		for i, r := range reports {
			states[i] = r.Report.State
			// The operation would put back, or roll back, what another operator wants out.
			since := slices.DeleteFunc(states[i].DrainsSince(sp.Continues), func(op journal.Operation) bool {
				return !slices.ContainsFunc(r.Report.Servers, func(s balancer.Server) bool { return op.Covers(s.Server) })
			})
			if len(since) > 0 {
				return nil, spec.Refuse(spec.Finding{Code: "drained-since", LB: r.LB, Text: fmt.Sprintf(
					"operation %s cannot be resumed: %s was drained since by %s\nhint: undrain it first", sp.Continues, journal.OneLine(strings.Join(since[0].Targets, ", ")), journal.OneLine(since[0].Who()))})
			}
		}
		if _, err := spec.FindUnfinished(spec.MergeStates(states), sp.Continues); err != nil {
			return nil, err
		}
	}
	return o.planOf(ctx, sp, reports, dry)
}

// planOf is the plan of a spec and the LBs' reports.
func (o *Operation) planOf(ctx context.Context, sp spec.Spec, reports []plan.LBPlan, dry bool) (*plan.Plan, error) {
	sp.Targets = plan.Present(sp, reports)
	if sp.Kind != spec.Run {
		return plan.New(sp, reports, dry), nil
	}
	return o.planRun(ctx, sp, reports, dry)
}

// newID is an ID by the LBs' clocks: they compare it with these.
func newID(reports []plan.LBPlan) string {
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

// locks asks for the locks of the plan's backends: by the targets, and by the addresses of host names, for
// another operator may name the same host by its address.
func (o *Operation) locks() balancer.LockRequest {
	sp := o.plan.Spec
	r := balancer.LockRequest{Holder: journal.Holder{
		ID: o.id, Kind: string(sp.Kind), Targets: sp.Targets, User: sp.User, Host: sp.Host, Reason: sp.Reason, Time: o.began,
	}}
	for _, text := range sp.Targets {
		r.Backends = append(r.Backends, fleet.LockName(text))
	}
	for _, lb := range o.plan.LBs {
		for _, n := range lb.Report.Names {
			for _, a := range n.Addresses {
				r.Backends = append(r.Backends, fleet.LockName(a.WithZone("").String()))
			}
		}
	}
	r.Backends = plan.Once(r.Backends)
	return r
}

// lockedByOthers names the locks that a run would need and that others hold now. A dry run takes none: it
// may look while another operator works.
func (o *Operation) lockedByOthers() (texts []string) {
	wanted := o.locks().Backends
	for _, lb := range o.plan.LBs {
		for _, h := range lb.Report.Locks {
			if name := balancer.BackendOf(h); slices.Contains(wanted, name) {
				texts = append(texts, fmt.Sprintf("the lock on %s, which is held on %s by %s (the real run is refused meanwhile, or waits with --wait)", name, lb.LB, fleet.HolderText(&h)))
			}
		}
	}
	return texts
}

// Close ends the connections of the operation, and frees its locks.
func (o *Operation) Close() {
	o.endLogins()
	if o.whole != nil {
		for _, m := range o.whole.rows {
			m.Close()
		}
	}
	o.lbs.Close()
}

// Plan is the plan that the operation was prepared with.
func (o *Operation) Plan() *plan.Plan { return o.plan }

// reconnect makes connections that broke anew.
func (o *Operation) reconnect(ctx context.Context) error {
	return o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error { return lb.Reconnect(ctx, o.locks()) })
}
