// Package drain takes backends out of an nginx pool and puts them back.
//
// [Prepare] plans what a [spec.Spec] asks for, takes the locks and checks that everything the operation
// needs is there; it changes nothing. [Operation.Run] takes a table of the backends through the steps,
// rolls back what fails, and computes the result (table.go, walk.go, result.go). What happens is emitted
// as [event.Event] values; the package prints nothing.
package drain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// Run takes the steps. When one fails, or when soft ends, Run rolls back; when hard ends too, it gives
// up the rollback. The error is a *[spec.Failure].
func (o *Operation) Run(hard, soft context.Context) error {
	soft, cancel := either(soft, hard)
	defer cancel()
	soft, unwatch := o.lbs.UntilBroken(soft)
	defer unwatch()
	err := o.begin(soft)
	begun := err == nil
	switch {
	case !begun && soft.Err() != nil:
		err = context.Cause(soft)
	case !begun:
	case o.plan.Spec.Kind == spec.Run:
		err = o.roll(hard, soft)
	default:
		err = o.takeSteps(hard, soft)
	}
	return o.end(hard, begun, err)
}

// either is a context that ends with a, or with b.
func either(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

// takeSteps takes the rows through the steps of a drain or an undrain. The error is about all rows.
func (o *Operation) takeSteps(hard, soft context.Context) error {
	rest, err := o.walk(hard, soft, o.whole.where((*row).isOpen), o.plan.Path())
	for _, r := range rest.rows {
		r.end = done
	}
	return err
}

// Result returns the result of the operation after Run.
func (o *Operation) Result() *event.Result { return o.result }

// begin writes the operation to the journals. It takes over an operation that is resumed.
func (o *Operation) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	sp := o.plan.Spec
	text, err := json.Marshal(sp.Recordable())
	if err != nil {
		return fmt.Errorf("write the spec down: %w", err)
	}
	servers := make([][]journal.Located, len(o.lbs))
	for i, lb := range o.lbs {
		for _, s := range o.whole.servers(lb, o.whole.where((*row).isOpen).rows) {
			servers[i] = append(servers[i], s.Located)
		}
		o.emit(&event.OperationStarted{
			Header: event.Header{LB: lb.Name}, Version: historyVersion, Kind: sp.Kind, Targets: sp.Targets, User: sp.User, Host: sp.Host,
			Reason: sp.Reason, Continues: sp.Continues, Service: sp.Service, Servers: servers[i], Drainctl: o.options.Version,
		})
	}
	o.tellChecks()
	if path := o.plan.Path(); sp.Kind != spec.Run {
		o.announce(o.whole.where((*row).isOpen), path[0], false)
	}
	progress := o.table()
	return o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		op := journal.Operation{
			ID: o.id, Kind: string(sp.Kind), Targets: sp.Targets, User: sp.User, Host: sp.Host, Reason: sp.Reason,
			Spec: text, Servers: servers[slices.Index(o.lbs, lb)], Began: o.began, Progress: progress, Recorder: sp.Recorder,
		}
		// undrain --force replaces a journal that cannot be read.
		return lb.Begin(ctx, balancer.Beginning{Operation: op, Resume: sp.Continues != "", SetAside: sp.Kind == spec.Undrain && sp.Force, Lines: lb.TakeHistory()})
	})
}

// historyVersion is the format of a history's lines.
const historyVersion = 2

// record writes the table and the new history to the disks of all LBs.
func (o *Operation) record(ctx context.Context) error {
	progress := o.table()
	return o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error { return lb.RecordProgress(ctx, progress) })
}

// endLimit limits the last report of the LBs, and then the writing of the end.
const endLimit = 10 * time.Second

// end asks the LBs for a last report, computes the result and writes it to the journals. If it cannot
// be written, end warns. It returns the failure of an operation that is not done.
func (o *Operation) end(ctx context.Context, begun bool, err error) error {
	ctx, limit := context.WithoutCancel(ctx), cmp.Or(o.options.bounds.end, endLimit)
	e := ending{spec: o.plan.Spec, id: o.id, rows: o.whole.rows, begun: begun, err: err, lbs: o.plan.LBs, skipped: append(slices.Clone(o.plan.Skipped), o.skipped...)}
	if e.standing(e.exit()) == spec.Changed {
		e.seen = o.look(ctx, limit)
	}
	r, failure := resultOf(e)
	r.Operation = o.id
	event.Stamp(r)
	o.result = r
	line, marshalErr := json.Marshal(r)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o.steps++ // an LB that is told of the end has a later table than one that is not
	endErr := o.lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		lines := lb.TakeHistory()
		if marshalErr == nil {
			lines = append(lines, line)
		}
		return lb.End(ctx, o.endOn(lb, lines))
	})
	if endErr = errors.Join(marshalErr, endErr); endErr != nil && begun {
		w := &event.Warning{Header: event.Header{Operation: o.id}, Text: endErr.Error()}
		event.Stamp(w)
		o.options.Emit(w)
	}
	return failure
}

// look asks every LB once more for the servers of the operation.
func (o *Operation) look(ctx context.Context, limit time.Duration) []seenLB {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	seen, _ := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (s seenLB, _ error) {
		s.loaded = lb.Loaded
		if s.err = errors.New("the connection broke"); !lb.IsBroken() {
			s.report, s.err = lb.Plan(ctx, balancer.Query{Targets: o.plan.Spec.Targets, Upstreams: o.plan.Spec.Upstreams})
		}
		return s, nil
	})
	return seen
}

// endOn returns the end of the operation for the journal of one LB.
func (o *Operation) endOn(lb *fleet.LB, lines []json.RawMessage) journal.Ending {
	e := journal.Ending{Result: o.result.Result, Supersede: o.supersedes(lb), Lines: lines, Progress: o.table()}
	serversOf := func(end End) []journal.Server {
		rows := o.whole.where(func(r *row) bool { return r.end == end }).rows
		if len(rows) == len(o.whole.rows) {
			return nil
		}
		return keysOf(o.whole.servers(lb, rows))
	}
	if o.plan.Spec.Kind != spec.Run { // that one is about all of them
		e.Returned = serversOf(rolledBack)
	}
	if s := o.result.Stands; s != nil && s.Open != nil {
		late := o.whole.where(func(r *row) bool { return r.end == notDrained }).rows
		if len(o.whole.servers(lb, late)) > 0 {
			e.Open, e.NotDrained = *s.Open, serversOf(notDrained)
		} else if e.Result == journal.ResultNotDrained { // of another LB's backends
			e.Result = journal.ResultDone
		}
	}
	return e
}

// supersedes is the earlier drains on an LB that this one replaces in the journal: those of the same
// servers. A drain with a service is not replaced by one without: undrain starts that service.
func (o *Operation) supersedes(lb *fleet.LB) (ids []string) {
	if o.plan.Spec.Kind == spec.Run || o.result.Result != journal.ResultDone {
		return nil
	}
	k := o.plan.Spec.Kind
	// What was rolled back alone is not of this one.
	standing := keysOf(o.whole.servers(lb, o.whole.where(func(r *row) bool { return r.leavesChange(k) }).rows))
	for _, op := range o.whole.part(lb).Report.State.Operations {
		was, err := spec.FromOperation(op)
		if err != nil || op.ID == o.id || op.Kind != string(spec.Drain) || was.HasService() && !o.plan.Spec.HasService() {
			continue
		}
		covered := !slices.ContainsFunc(op.Servers, func(l journal.Located) bool { return !slices.Contains(standing, l.Server) })
		if covered {
			ids = append(ids, op.ID)
		}
	}
	return ids
}

// emit tells of an event, and keeps it for the history: of all LBs, unless it is
// about one.
func (o *Operation) emit(e event.Event) {
	h := e.Head()
	h.Operation = o.id
	event.Stamp(e)
	if w, ok := e.(*event.Waiting); !ok || o.worthTelling(w) {
		o.options.Emit(e)
	}
	switch e := e.(type) {
	case *event.HealthChecked, *event.Planned, *event.LockAwaited, *event.WorkOutput:
		return
	case *event.Waiting:
		if !o.worthKeeping(e) {
			return
		}
	}
	o.keep(e)
}

// keep keeps an event for the history.
func (o *Operation) keep(e event.Event) {
	h := e.Head()
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	_, first := e.(*event.OperationStarted) // it says what the history is of
	o.lbs.Keep(h.LB, line, first)
}
