package drain

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

// An ending is the input of resultOf: the table of an operation and the last report of each LB.
type ending struct {
	spec    spec.Spec
	id      string
	rows    []*row
	begun   bool          // false: it failed before its first step
	err     error         // that ended the whole operation; nil: each row has its own end
	lbs     []plan.LBPlan // before the operation
	seen    []seenLB      // after it; none where nothing is changed
	skipped []plan.Skip
}

// A seenLB is the last report of an LB, or the reason why there is none.
type seenLB struct {
	report *balancer.Report
	loaded bool // nginx was seen to serve what the files say
	err    error
}

// resultOf computes the result of an operation: the exit code, the state that it left, and the next
// commands. The error is the [Failure] of an operation that is not done. It is a pure function.
func resultOf(e ending) (*event.Result, error) {
	exit := e.exit()
	r := &event.Result{Kind: e.spec.Kind, Targets: e.spec.Targets, ExitCode: exit, Result: e.outcome(exit), Findings: []spec.Finding{}, Next: []spec.Command{}, Skipped: e.skipped}
	r.Changed = e.changed()
	r.AllDown = e.spec.Kind == spec.Undrain
	for _, lb := range e.lbs {
		up, down := plan.Sides(lb.Report.Servers, e.spec.Kind)
		r.StayDown = plan.Once(append(r.StayDown, e.stayDown(lb.LB, down)...))
		r.AllDown = r.AllDown && len(up) == 0
	}
	if e.spec.Kind != spec.Run {
		r.Targets = targetsOf(slices.DeleteFunc(slices.Clone(e.rows), func(r *row) bool { return r.end == skipped }))
		if len(r.Targets) == 0 || !e.any(func(r *row) bool { return r.end == skipped }) {
			r.Targets = e.spec.Targets // as they were typed
		}
	}
	for _, row := range e.rows {
		if e.spec.Kind == spec.Run {
			switch {
			case row.end == done:
				r.Done = append(r.Done, row.Name)
			case row.end == "" && row.reached == plan.NotBegun:
				r.Untouched = append(r.Untouched, row.Name)
			}
		}
		if row.leavesChange(e.spec.Kind) && len(row.Units) > 0 {
			for _, u := range row.Units {
				r.Services = append(r.Services, spec.ServiceStand{Unit: u.Unit, Backend: row.Name, Touched: u.Touched})
			}
			r.StillAnswering = append(r.StillAnswering, row.answering...)
		}
	}
	if exit == spec.Done {
		return r, nil
	}
	err := e.error()
	r.Error, r.GateClosed = err.Error(), errors.Is(e.err, errGate)
	var refusal *spec.Refusal
	if errors.As(err, &refusal) && exit == spec.Refused {
		r.Findings = refusal.Findings
	}
	stands := e.stands(exit)
	if stands.Standing == spec.Changed {
		stands.Services = r.Services
	}
	r.Stands = &stands
	for _, row := range e.rows {
		r.Log = append(r.Log, slices.Concat(row.why.Log, row.rollbackWhy.Log)...)
	}
	if e.spec.Kind == spec.Run || !e.all(rolledBack) {
		r.Backends = e.backends()
	}
	if exit != spec.Refused {
		r.Next = append(r.Next, e.next(r)...)
	}
	return r, &spec.Failure{Exit: r.ExitCode, Err: err, Stands: *r.Stands, Log: r.Log, Next: r.Next}
}

// stayDown names the servers that an undrain leaves down on an LB. It names the LB if another one has them
// up.
func (e ending) stayDown(on string, down []balancer.Server) []string {
	names := plan.ServerNames(down)
	for _, lb := range e.lbs {
		up, _ := plan.Sides(lb.Report.Servers, e.spec.Kind)
		if slices.ContainsFunc(down, func(d balancer.Server) bool { return slices.Contains(keysOf(up), d.Server) }) {
			return []string{strings.Join(names, ", ") + " on " + on}
		}
	}
	return names
}

// exit returns the exit code.
func (e ending) exit() spec.Exit {
	interrupted := errors.Is(e.err, spec.ErrInterrupted)
	onlyTimeouts, failed := true, false // onlyTimeouts counts an app that was stopped anyway as one
	for _, r := range e.rows {
		if r.why.Err != nil && !errors.Is(r.why.Err, errTogether) {
			failed = true
			onlyTimeouts = onlyTimeouts && r.why.Outcome == StepTimedOut
			interrupted = interrupted || errors.Is(r.why.Err, spec.ErrInterrupted)
		}
	}
	switch {
	case !e.begun:
		switch {
		case interrupted:
			return spec.Interrupted
		case e.refusal() != nil:
			return spec.Refused
		}
		return spec.Failed
	case e.any((*row).isPartial):
		return spec.Partial
	case e.err == nil && !failed:
		return spec.Done
	case interrupted && (e.spec.Kind == spec.Run || e.all(rolledBack)):
		return spec.Interrupted
	case !e.changed() && e.refusal() != nil, !e.changed() && errors.Is(e.err, errGate):
		return spec.Refused
	case e.spec.Kind == spec.Run, !onlyTimeouts && e.all(rolledBack):
		return spec.Failed
	case !onlyTimeouts:
		return spec.Partial
	}
	return spec.TimedOut
}

func (e ending) any(is func(*row) bool) bool { return slices.ContainsFunc(e.rows, is) }

// all reports whether every row that is not skipped has this end.
func (e ending) all(end End) bool {
	return !e.any(func(r *row) bool { return r.end != end && r.end != skipped })
}

// changed reports whether the operation has changed anything, if only for a while.
func (e ending) changed() bool { return e.any(func(r *row) bool { return r.changed }) }

// refusal returns the refusal of an LB or a guard; nil if the operation failed otherwise.
func (e ending) refusal() error {
	errs := []error{e.err}
	for _, r := range e.rows {
		errs = append(errs, r.why.Err)
	}
	for _, err := range errs {
		var f *spec.Failure
		var refused *balancer.Error
		switch {
		case errors.As(err, &f) && f.Exit == spec.Refused:
			return f.Err
		case balancer.CodeOf(err) == balancer.CodeRefused && errors.As(err, &refused):
			return &spec.Refusal{Findings: []spec.Finding{{Code: string(refused.Code), Text: err.Error(), Override: refused.Override}}, Cause: err}
		}
	}
	return nil
}

// outcome returns the result for the journal. A partial or not drained operation can be resumed.
func (e ending) outcome(exit spec.Exit) journal.Result {
	isDone := func(r *row) bool { return r.end == done }
	switch {
	case exit == spec.Done:
		return journal.ResultDone
	case !e.begun && e.spec.Continues == "":
		return journal.ResultRolledBack
	case !e.begun: // what there was to continue with is still there
		return journal.ResultPartial
	case e.any((*row).isPartial):
		return journal.ResultPartial
	case e.any(func(r *row) bool { return r.end == notDrained }):
		return journal.ResultNotDrained
	case e.spec.Kind == spec.Run && e.any(func(r *row) bool { return r.end == done || r.end == rolledBack }):
		return journal.ResultPartial
	case e.any(isDone):
		return journal.ResultDone
	}
	return journal.ResultRolledBack
}

// error returns the errors of the operation and of its rows, each once. It names the backends of an
// error that is not about all of them.
func (e ending) error() error {
	if refused := e.refusal(); refused != nil && !e.changed() {
		return refused
	}
	var texts []string
	var errs []error
	if e.err != nil {
		texts, errs = append(texts, e.err.Error()), append(errs, e.err)
	}
	for _, r := range e.rows {
		err := r.failure()
		if err == nil || slices.Contains(texts, err.Error()) {
			continue
		}
		texts = append(texts, err.Error())
		same := slices.DeleteFunc(slices.Clone(e.rows), func(other *row) bool {
			also := other.failure()
			return also == nil || also.Error() != err.Error()
		})
		if len(same) < len(e.rows) {
			err = fmt.Errorf("%s: %w", strings.Join(namesOf(same), ", "), err)
		}
		errs = append(errs, err)
	}
	if e.err != nil && len(errs) > 1 { // the rest first: it says more
		errs = append(errs[1:], e.err)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// failure returns the error of the row; nil if no step failed for it.
func (r *row) failure() error {
	why := cmp.Or(r.why.Err, errTogether)
	switch {
	case r.rollbackWhy.Err == nil && errors.Is(why, errTogether):
		return nil
	case r.rollbackWhy.Err == nil:
		return why
	case errors.Is(r.rollbackWhy.Err, spec.ErrInterrupted):
		return fmt.Errorf("%w; the rollback was interrupted too", why)
	}
	return fmt.Errorf("%w; the rollback failed too: %w", why, r.rollbackWhy.Err)
}

// backends returns the results of the rows for which a step failed.
func (e ending) backends() (all []event.BackendResult) {
	results := map[End]journal.Result{done: journal.ResultDone, rolledBack: journal.ResultRolledBack, notDrained: journal.ResultNotDrained, left: journal.ResultPartial}
	for _, r := range e.rows {
		if err := r.failure(); err != nil {
			all = append(all, event.BackendResult{Backend: r.Name, Result: results[r.end], Error: err.Error()})
		}
	}
	return all
}

// standing returns the state after the operation in a few words; empty if the operation is done.
func (e ending) standing(exit spec.Exit) spec.Standing {
	switch {
	case exit == spec.Done:
		return ""
	case !e.begun, exit == spec.Refused:
		return spec.Untouched
	case e.spec.Kind == spec.Run && exit != spec.Partial:
		return spec.AllBack
	case e.all(rolledBack):
		return spec.AsBefore
	}
	return spec.Changed
}

// stands returns the state after the operation.
func (e ending) stands(exit spec.Exit) (s spec.Stands) {
	if s.Standing = e.standing(exit); s.Standing != spec.Changed {
		return s
	}
	open, late := 0, false
	for _, r := range e.rows {
		var timeout *backend.TimedOutError
		if r.end == notDrained && errors.As(r.why.Err, &timeout) {
			open, late = open+timeout.Count.Open, true
		}
	}
	if late {
		s.Open = &open
	}
	for i, lb := range e.lbs {
		s.LBs = append(s.LBs, e.standsOn(lb, e.seen[i])...)
	}
	return s
}

// standsOn returns the state of one LB.
func (e ending) standsOn(lb plan.LBPlan, seen seenLB) (all []spec.LBStands) {
	var standing []*row
	for _, r := range e.rows {
		if r.leavesChange(e.spec.Kind) {
			standing = append(standing, r)
		}
	}
	if seen.err != nil {
		return []spec.LBStands{{LB: lb.LB, Servers: plan.ServerNames(serversOf(lb, standing)), Down: e.spec.Kind != spec.Undrain, Edited: e.changed(), Unknown: seen.err.Error()}}
	}
	var down, unloaded []balancer.Server
	for _, s := range serversOf(plan.LBPlan{LB: lb.LB, Report: seen.report}, standing) {
		switch {
		case s.Down:
			down = append(down, s)
		case !seen.loaded:
			unloaded = append(unloaded, s)
		}
	}
	ours := slices.ContainsFunc(down, func(s balancer.Server) bool {
		return slices.ContainsFunc(seen.report.State.MarksOn(s.Server), func(m journal.Mark) bool { return m.Operation == e.id })
	})
	if len(unloaded) > 0 {
		all = append(all, spec.LBStands{LB: lb.LB, Servers: plan.ServerNames(unloaded), Edited: true})
	}
	if len(down) > 0 || len(all) == 0 {
		all = append(all, spec.LBStands{LB: lb.LB, Servers: plan.ServerNames(down), Down: true, Edited: ours, Loaded: seen.loaded})
	}
	return all
}

// undrain returns the command that puts targets back. It reads its settings from the journal.
func (e ending) undrain(targets []string, reason string) []spec.Command {
	return status.UndrainCommand(targets, e.spec.Words(append([]string{"upstream"}, spec.WhereFlags...)...), e.despite(reason))
}

// resume returns the command that resumes the operation.
func (e ending) resume(reason string) []spec.Command {
	return status.ResumeCommand(e.id, e.spec.Words(spec.WhereFlags...), e.despite(reason))
}

// next returns the commands to type next. It offers a resume only if the journal has something to
// resume.
func (e ending) next(r *event.Result) (all []spec.Command) {
	resume := func(reason string) []spec.Command {
		if r.Result != journal.ResultPartial && r.Result != journal.ResultNotDrained {
			return nil
		}
		return e.resume(reason)
	}
	var own []spec.Command
	rollbackFailed := false // and that failed
	for _, row := range e.rows {
		rollbackFailed = rollbackFailed || row.rollbackWhy.Err != nil
		own = append(own, slices.Concat(row.why.Next, row.rollbackWhy.Next)...)
	}
	switch {
	case r.Stands.Standing == spec.AsBefore, r.Stands.Standing == spec.Untouched:
		return nil
	case e.spec.Kind == spec.Run:
		all = resume("continues")
		var open []*row
		for _, row := range e.rows {
			if row.end == left {
				all = append(all, e.undrain(row.plan.Targets, "puts "+status.NameOr(row.Name, "it")+" back")...)
			} else if row.isPartial() {
				open = append(open, row)
			}
		}
		if len(open) > 0 {
			all = append(all, e.undrain(e.spec.Targets, "puts all of them back")...)
		}
	case rollbackFailed && e.spec.Kind != spec.Undrain:
		all = append(e.undrain(e.changedTargets(), "puts it back"), resume("continues")...)
	case e.any((*row).isPartial):
		all = resume(map[bool]string{true: "continues", false: "waits again"}[rollbackFailed])
	default:
		all = append(resume("waits again"), e.undrain(e.changedTargets(), "puts it back")...)
	}
	return append(all, own...)
}

// changedTargets returns the targets of the operation, for a drain without those that were rolled back.
func (e ending) changedTargets() []string {
	rows := slices.DeleteFunc(slices.Clone(e.rows), func(r *row) bool { return !r.leavesChange(e.spec.Kind) })
	if e.spec.Kind == spec.Undrain || len(rows) == len(e.rows) { // as they were typed
		return e.spec.Targets
	}
	return targetsOf(rows)
}

// despite returns the reason for a command. While LBs are gone, it names the flag that leaves them out.
func (e ending) despite(reason string) string {
	var gone []string
	for _, name := range e.spec.LBs {
		if !slices.ContainsFunc(e.lbs, func(lb plan.LBPlan) bool { return lb.LB == name }) { // it was left out
			gone = append(gone, name)
		}
	}
	for i, s := range e.seen {
		if s.err != nil {
			gone = append(gone, e.lbs[i].LB)
		}
	}
	if len(gone) == 0 || len(gone) >= len(e.spec.LBs) {
		return reason
	}
	return fmt.Sprintf("%s; with --skip-unreachable-lb %d while %s cannot be reached", reason, len(gone), strings.Join(gone, ", "))
}

// notBegun is the result of a command that ended before any operation began.
const notBegun journal.Result = "not begun"

// ResultOf returns the result of a command that ended before an operation began.
func ResultOf(err error) *event.Result {
	r := &event.Result{ExitCode: spec.ExitOf(err), Result: journal.ResultDone, Findings: []spec.Finding{}, Next: []spec.Command{}}
	if err == nil {
		return r
	}
	r.Result, r.Error = notBegun, err.Error()
	var f *spec.Failure
	if errors.As(err, &f) {
		err, r.Stands, r.Log = f.Err, &f.Stands, f.Log
		r.Next = append(r.Next, f.Next...)
	}
	var refusal *spec.Refusal
	if errors.As(err, &refusal) {
		r.Findings = refusal.Findings
	}
	return r
}
