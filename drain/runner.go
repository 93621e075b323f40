package drain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
)

// Run takes the steps: all of them forward for a drain, in reverse for an
// undrain. When one fails, or soft ends, what was done is rolled back; when hard
// ends too, the rollback is given up. The error is a *[Failure].
func (o *Operation) Run(hard, soft context.Context) error {
	soft, cancel := either(soft, hard)
	defer cancel()
	soft, unwatch := o.lbs.watch(soft)
	defer unwatch()
	if err := o.begin(soft); err != nil {
		f := &Failure{Exit: Failed, Err: err, Stands: Stands{Standing: Untouched}}
		if soft.Err() != nil {
			f.Err = context.Cause(soft)
		}
		if errors.Is(f.Err, ErrInterrupted) {
			f.Exit = Interrupted
		}
		// Some LBs may have recorded it: they record its end too.
		o.end(hard, f)
		return f
	}
	var err error
	if o.plan.Spec.Kind == Run {
		err = o.roll(hard, soft)
	} else {
		err = o.takeSteps(hard, soft)
	}
	o.end(hard, err)
	return err
}

// either is a context that ends with a, or with b.
func either(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

// takeSteps takes the steps of the operation, and rolls back if one fails.
func (o *Operation) takeSteps(hard, soft context.Context) error {
	d := directionOf(o.plan.Spec.Kind)
	list, b := o.plan.stepsOf(d), o.whole
	for i, st := range list {
		v := o.take(soft, st, b, d, i)
		if v.Outcome == StepOK {
			continue
		}
		var err error
		if b, err = o.settle(hard, soft, b, v, list[:i+1], d); err != nil || len(b.members) == 0 {
			return cmp.Or(err, o.ended())
		}
	}
	return o.ended()
}

// settle decides what becomes of a batch after a step that failed, or timed out,
// for some of its backends or all: rest goes on.
func (o *Operation) settle(hard, soft context.Context, b *batch, v Verdict, taken []step, d Direction) (rest *batch, err error) {
	spec := o.plan.Spec
	switch {
	case v.Outcome == Irreversible:
		return b, &Failure{Exit: Partial, Err: v.Err, Stands: o.stands(), Log: v.Log, Next: append(o.resume("waits again"), v.Next...)}
	case len(v.Failed) == 0, soft.Err() != nil:
		return b, o.rollBack(hard, taken, d, v)
	}
	var back, stay []*member
	for _, m := range v.Failed {
		late := v.Each[m].Outcome == StepTimedOut
		switch {
		case late && spec.OnTimeout == TimeoutStop:
			o.ends = append(o.ends, backendEnd{m, journal.ResultDone, v.Each[m]})
			o.emit(&StoppingAnyway{Header: Header{Target: m.Name, Step: taken[len(taken)-1].name(), Direction: d}, Error: v.Each[m].Err.Error()})
		case late && spec.OnTimeout == TimeoutLeave:
			stay = append(stay, m)
		default:
			back = append(back, m)
		}
	}
	if len(back) > 0 && (spec.Together || len(back) == len(b.members)) {
		return b, o.rollBack(hard, taken, d, v)
	}
	for _, m := range stay {
		o.ends = append(o.ends, backendEnd{m, journal.ResultNotDrained, v.Each[m]})
	}
	rest = b.without(slices.Concat(back, stay))
	if len(back) > 0 {
		err = o.rollBackAlone(hard, b.only(back), taken, d, v)
	}
	return rest, err
}

// rollsBack tells whether a backend is rolled back after a verdict.
func (s Spec) rollsBack(v Verdict) bool {
	return v.Outcome != StepOK && (v.Outcome != StepTimedOut || s.OnTimeout != TimeoutStop && s.OnTimeout != TimeoutLeave)
}

// A backendEnd is how a backend ended where others went on.
type backendEnd struct {
	*member
	result journal.Result
	why    Verdict
}

// rollBackAlone rolls some backends back while the rest goes on.
func (o *Operation) rollBackAlone(ctx context.Context, b *batch, taken []step, d Direction, why Verdict) error {
	for _, m := range b.members {
		o.emit(&RollingBack{Header: Header{Target: m.Name}, Error: why.Each[m].Err.Error()})
	}
	if v := o.back(ctx, b, taken, d); v.Err != nil {
		return o.partial(why, v)
	}
	for _, m := range b.members {
		o.ends = append(o.ends, backendEnd{m, journal.ResultRolledBack, why.Each[m]})
	}
	o.noteReturned(b)
	return nil
}

// noteReturned notes that the backends of a batch are not out any more.
func (o *Operation) noteReturned(b *batch) {
	o.taken = slices.DeleteFunc(o.taken, func(name string) bool { return slices.Contains(namesOf(b.members), name) })
}

// ended is the failure of an operation in which some backends ended in another
// way than they were to; nil if none did.
func (o *Operation) ended() error {
	if len(o.ends) == 0 {
		return nil
	}
	f := &Failure{Exit: TimedOut, Stands: o.stands()}
	var errs []error
	open := 0
	for _, e := range o.ends {
		err := e.why.Err
		if len(o.whole.members) > 1 {
			err = fmt.Errorf("%s: %w", e.Name, err)
		}
		errs = append(errs, err)
		f.Log = append(f.Log, e.why.Log...)
		if e.why.Outcome != StepTimedOut {
			f.Exit = Partial
		}
		var late *backend.TimedOutError
		if e.result == journal.ResultNotDrained && errors.As(err, &late) {
			open += late.Count.Open
			f.Stands.Open = &open
		}
	}
	if f.Stands.Open != nil {
		f.Next = append(f.Next, o.resume("waits again")...)
	}
	f.Next = append(f.Next, o.undrain("puts it back")...)
	if f.Err = errs[0]; len(errs) > 1 {
		f.Err = errors.Join(errs...)
	}
	return f
}

// scope is how much the operation acts on.
func (o *Operation) scope() Scope {
	if o.plan.Spec.Force {
		return All
	}
	return Managed
}

// take runs one step and says how it went. That it starts is in the journal of
// every LB before it does.
func (o *Operation) take(ctx context.Context, st step, b *batch, d Direction, i int) Verdict {
	head := Header{Step: st.name(), Direction: d}
	if i > 0 { // the first was begun with the operation
		o.emit(o.stepStarted(i))
		if err := o.record(ctx); err != nil {
			return o.failedStep(head, failed(false, err))
		}
	}
	if ctx.Err() != nil {
		return failed(false, context.Cause(ctx))
	}
	return o.runStep(ctx, st, b, head, o.scope())
}

// runStep runs one step in one direction.
func (o *Operation) runStep(ctx context.Context, st step, b *batch, head Header, s Scope) Verdict {
	began := time.Now()
	v := st.run(ctx, b, head.Direction, s)
	o.changed = o.changed || v.Changed
	if v.Err != nil {
		if ctx.Err() != nil {
			v.Err = context.Cause(ctx) // what it broke off says less
		}
		return o.failedStep(head, v)
	}
	if v.Changed || s != ThisOperation {
		o.emit(&StepDone{Header: head, Changed: v.Changed, Elapsed: InSeconds(time.Since(began)), Detail: v.Detail})
	}
	return v
}

func (o *Operation) stepStarted(i int) *StepStarted {
	p := o.plan.Steps[i]
	return &StepStarted{Header: Header{Step: p.Step, Direction: p.Direction}, Number: i + 1, Of: len(o.plan.Steps), Description: p.Description}
}

func (o *Operation) failedStep(head Header, v Verdict) Verdict {
	if len(v.Failed) == 0 || len(o.whole.members) == 1 {
		o.emit(&StepFailed{Header: head, Error: v.Err.Error()})
		return v
	}
	for _, m := range v.Failed {
		head.Target = m.Name
		o.emit(&StepFailed{Header: head, Error: v.Each[m].Err.Error()})
	}
	return v
}

// back runs the steps taken the other way, the failed one first, on what this
// operation did with a batch.
func (o *Operation) back(ctx context.Context, b *batch, taken []step, d Direction) Verdict {
	for _, st := range slices.Backward(taken) {
		if ctx.Err() != nil {
			return Verdict{Err: context.Cause(ctx)}
		}
		if v := o.runStep(ctx, st, b, Header{Step: st.name(), Direction: d.Opposite()}, ThisOperation); v.Err != nil {
			return v
		}
	}
	return Verdict{}
}

// rollBack rolls the whole operation back, and says how it ended.
func (o *Operation) rollBack(ctx context.Context, taken []step, d Direction, why Verdict) error {
	changed := o.changed
	if changed {
		o.emit(&RollingBack{Error: why.Err.Error()})
	}
	if v := o.back(ctx, o.whole, taken, d); v.Err != nil {
		return o.partial(why, v)
	}
	o.ends = nil
	var late *backend.TimedOutError
	var refused *Failure
	f := &Failure{Exit: Failed, Err: why.Err, Log: why.Log, Stands: Stands{Standing: AsBefore}}
	switch {
	case errors.As(why.Err, &refused) && !changed:
		return refused
	case errors.Is(why.Err, ErrInterrupted):
		f.Exit = Interrupted
	case errors.As(why.Err, &late):
		f.Exit = TimedOut
	case !changed && balancer.CodeOf(why.Err) == balancer.CodeRefused:
		return beforeTouching(ctx, why.Err)
	}
	return f
}

// partial is a rollback that failed or was given up. What puts everything back
// is named first: that was what it was at.
func (o *Operation) partial(why, rollback Verdict) error {
	f := &Failure{Exit: Partial, Stands: o.stands(), Log: append(why.Log, rollback.Log...), Next: o.resume("continues")}
	if o.plan.Spec.Kind != Undrain {
		f.Next = append(o.undrain("puts it back"), o.resume("continues")...)
	}
	f.Next = append(f.Next, rollback.Next...)
	if errors.Is(rollback.Err, ErrInterrupted) {
		f.Err = fmt.Errorf("%w; the rollback was interrupted too", why.Err)
	} else {
		f.Err = fmt.Errorf("%w; the rollback failed too: %w", why.Err, rollback.Err)
	}
	return f
}

// stands says what is so now, as far as this run knows.
func (o *Operation) stands() Stands {
	s := Stands{Standing: Changed}
	for i, lb := range o.lbs {
		servers := o.standing(o.plan.LBs[i].Report.Servers)
		if kind := o.plan.Spec.Kind; lb.lost == "" && (kind == Run || kind == Drain && lb.edited) {
			servers = slices.DeleteFunc(servers, func(s balancer.Server) bool { return !slices.Contains(lb.out, s.Address) })
		}
		s.LBs = append(s.LBs, LBStands{
			LB: lb.Name, Servers: names(servers), Down: o.plan.Spec.Kind != Undrain,
			Edited: lb.edited, Loaded: lb.loaded, Unknown: lb.lost,
		})
	}
	for _, m := range o.whole.members {
		if m.Service.Unit != "" && o.left(m) {
			s.Services = append(s.Services, ServiceStand{Unit: m.Service.Unit, Backend: m.Name, Touched: m.Touched})
		}
	}
	return s
}

// standing is the servers of backends that this operation has left in another
// state than they were.
func (o *Operation) standing(servers []balancer.Server) []balancer.Server {
	return slices.DeleteFunc(slices.Clone(servers), func(s balancer.Server) bool {
		return !slices.ContainsFunc(o.whole.members, func(m *member) bool { return o.left(m) && matches(m.plan.targets(), s.Address) })
	})
}

// left tells whether the operation has left a backend in another state than it
// was. Of a rolling run, that is what failed, or is out when it ends.
func (o *Operation) left(m *member) bool {
	i := slices.IndexFunc(o.ends, func(e backendEnd) bool { return e.Name == m.Name })
	if o.plan.Spec.Kind == Run {
		return i >= 0 && o.ends[i].result == journal.ResultPartial || slices.Contains(o.taken, m.Name)
	}
	return i < 0 || o.ends[i].result != journal.ResultRolledBack
}

// undrain is the command line that puts the targets back. What else it needs, the
// journal knows.
func (o *Operation) undrain(reason string) []Command { return o.undrainOf(o.plan.Spec.Targets, reason) }

func (o *Operation) undrainOf(targets []string, reason string) []Command {
	return undrainCommand(targets, o.plan.Spec.words(append([]string{"upstream"}, whereFlags...)...), o.despite(reason))
}

// despite is the reason for a command, with what it takes while LBs are gone.
func (o *Operation) despite(reason string) string {
	var gone []string
	for _, lb := range o.lbs {
		if lb.lost != "" {
			gone = append(gone, lb.Name)
		}
	}
	if len(gone) == 0 || len(gone) == len(o.lbs) {
		return reason
	}
	return fmt.Sprintf("%s; with --skip-unreachable-lb %d while %s cannot be reached", reason, len(gone), strings.Join(gone, ", "))
}

// resume is the command line that continues with this operation.
func (o *Operation) resume(reason string) []Command {
	return resumeCommand(o.id, o.plan.Spec.words(whereFlags...), o.despite(reason))
}

// emit tells of an event, and keeps it for the history: of all LBs, unless it is
// about one.
func (o *Operation) emit(e Event) {
	h := e.Head()
	h.Operation = o.id
	stamp(e)
	o.options.Emit(e)
	switch e := e.(type) {
	case *HealthChecked, *Planned, *LockAwaited, *WorkOutput:
		return
	case *Waiting:
		if !o.worthKeeping(e) {
			return
		}
	}
	o.keep(e)
}

// keep keeps an event for the history.
func (o *Operation) keep(e Event) {
	h := e.Head()
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	for _, lb := range o.lbs {
		if h.LB == "" || h.LB == lb.Name {
			lb.mu.Lock()
			at := len(lb.history)
			if _, ok := e.(*OperationStarted); ok {
				at = 0 // it says what the history is of
			}
			lb.history = slices.Insert(lb.history, at, line)
			lb.mu.Unlock()
		}
	}
}

// take is what the history has not been told yet.
func (lb *LB) takeHistory() balancer.Lines {
	lb.mu.Lock()
	defer lb.mu.Unlock()
	lines := lb.history
	lb.history = nil
	return lines
}

// record writes down what has happened, on every LB, and returns when it is on
// their disks.
func (o *Operation) record(ctx context.Context) error {
	return o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		return lb.Record(ctx, balancer.Recorded{Lines: lb.takeHistory()})
	})
}

// begin writes down who wants what.
func (o *Operation) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	spec := o.plan.Spec
	var progress json.RawMessage
	if spec.Kind == Run {
		// What the run that is continued has done is this one's from here on.
		var err error
		if progress, err = json.Marshal(o.progress); err != nil {
			return err
		}
	}
	for i, lb := range o.lbs {
		op, err := o.plan.LBs[i].record(o.id, spec)
		if err != nil {
			return err
		}
		o.emit(&OperationStarted{
			Header: Header{LB: lb.Name}, Version: historyVersion, Kind: spec.Kind, Targets: spec.Targets, User: spec.User, Host: spec.Host,
			Reason: spec.Reason, Continues: spec.Continues, Service: spec.Service, Servers: op.Servers, Drainctl: o.options.Version,
		})
	}
	o.tellChecks()
	if spec.Kind != Run {
		o.emit(o.stepStarted(0))
	}
	return o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		op, err := o.plan.LBs[slices.Index(o.lbs, lb)].record(o.id, spec)
		if err != nil {
			return err
		}
		op.Began, op.Progress = o.began, progress
		// Whoever forces an undrain does without what cannot be read.
		return lb.Begin(ctx, balancer.Beginning{Operation: op, SetAside: spec.Kind == Undrain && spec.Force, Lines: lb.takeHistory()})
	})
}

// historyVersion is the format of a history's lines.
const historyVersion = 2

// endLimit bounds writing down how an operation ended, although it is over
// or is being given up.
const endLimit = 10 * time.Second

// end writes down how it ended. That it cannot be written down is said, and
// changes nothing.
func (o *Operation) end(ctx context.Context, err error) {
	r := o.Result(err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(o.options.bounds.end, endLimit))
	defer cancel()
	stamp(r)
	line, marshalErr := json.Marshal(r)
	endErr := o.lbs.each(ctx, func(ctx context.Context, lb *LB) error {
		lines := lb.takeHistory()
		if marshalErr == nil {
			lines = append(lines, line)
		}
		e := balancer.Ending{Result: r.Result, Supersede: o.supersedes(lb, r.Result), Lines: lines}
		if o.plan.Spec.Kind != Run { // that one is about all of them
			e.Returned = o.endedServers(lb, journal.ResultRolledBack)
		}
		if r.Stands != nil && r.Stands.Open != nil {
			e.Open, e.NotDrained = *r.Stands.Open, o.endedServers(lb, journal.ResultNotDrained)
		}
		return lb.End(ctx, e)
	})
	if endErr = errors.Join(marshalErr, endErr); endErr != nil && r.Stands != nil && r.Stands.Standing == Untouched {
		return // it may not have begun at all
	}
	if endErr != nil {
		w := &Warning{Header: Header{Operation: o.id}, Text: endErr.Error()}
		stamp(w)
		o.options.Emit(w)
	}
}

// endedServers is the servers of backends that ended in a way, where others ended otherwise.
func (o *Operation) endedServers(lb *LB, result journal.Result) (keys []journal.Server) {
	ended := slices.DeleteFunc(slices.Clone(o.ends), func(e backendEnd) bool { return e.result != result })
	if o.whole == nil || len(ended) == len(o.whole.members) {
		return nil
	}
	for _, e := range ended {
		keys = append(keys, o.whole.part(lb).serversOf(e.plan, func(balancer.Server) bool { return true })...)
	}
	return keys
}

// supersedes is the operations on an LB that this one stands in for. A rolling run
// does for the one that it continues, and a drain that is done for those of the
// same servers. A drain that was given a service stands on, where this one was
// not: its undrain will start that service.
func (o *Operation) supersedes(lb *LB, result journal.Result) []string {
	plan := o.plan.LBs[slices.Index(o.lbs, lb)].Report
	continued := chain(plan.State, o.plan.Spec.Continues)
	standing := plan.Servers
	if o.plan.Spec.Kind != Run {
		standing = o.standing(plan.Servers) // what was rolled back alone is not of this one
	}
	var ids []string
	for _, op := range plan.State.Operations {
		was, err := specOf(op)
		if slices.Contains(continued, op.ID) && op.Kind == string(Run) {
			ids = append(ids, op.ID)
			continue
		}
		if err != nil || result != journal.ResultDone || op.Kind != string(Drain) || (was.hasService() && !o.plan.Spec.hasService()) {
			continue
		}
		covered := !slices.ContainsFunc(op.Servers, func(l journal.Located) bool {
			return !slices.ContainsFunc(standing, func(s balancer.Server) bool { return s.Server == l.Server })
		})
		if covered {
			ids = append(ids, op.ID)
		}
	}
	return ids
}

// Result is what an operation that ended with err has to say.
func (o *Operation) Result(err error) *Result {
	spec := o.plan.Spec
	r := ResultOf(err)
	r.Operation, r.Kind, r.Targets, r.Changed = o.id, spec.Kind, spec.Targets, o.changed
	if r.ExitCode == Done || len(o.ends) > 0 {
		r.Result = journal.ResultDone
	}
	r.Done, r.Untouched, r.Skipped = o.progress.Done, o.untouched, append(slices.Clone(o.plan.Skipped), o.skipped...)
	for _, e := range o.ends {
		r.Backends = append(r.Backends, BackendResult{Backend: e.Name, Result: e.result, Error: e.why.Err.Error()})
		if e.result == journal.ResultNotDrained {
			r.Result = journal.ResultNotDrained
		}
	}
	if r.ExitCode == Partial && len(o.ends) == 0 || spec.Kind == Run && err != nil && len(o.progress.Done)+len(o.ends) > 0 {
		r.Result = journal.ResultPartial // something is left to do
	}
	if o.whole != nil {
		r.Services = o.stands().Services
	}
	r.AllDown = spec.Kind == Undrain
	for _, lb := range o.plan.LBs {
		up, down := sides(lb.Report.Servers, spec.Kind)
		r.StayDown = once(append(r.StayDown, names(down)...))
		r.AllDown = r.AllDown && len(up) == 0
	}
	return r
}

// ResultOf is what any command that ended with err has to say.
func ResultOf(err error) *Result {
	r := &Result{ExitCode: ExitOf(err), Result: journal.ResultDone, Findings: []Finding{}, Next: []Command{}}
	if err == nil {
		return r
	}
	r.Result, r.Error, r.GateClosed = journal.ResultRolledBack, err.Error(), errors.Is(err, errGate)
	var f *Failure
	if errors.As(err, &f) {
		err, r.Stands, r.Log = f.Err, &f.Stands, f.Log
		r.Next = append(r.Next, f.Next...)
	}
	var refusal *Refusal
	if errors.As(err, &refusal) {
		r.Findings = refusal.Findings
	}
	return r
}
