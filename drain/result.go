package drain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
)

// An ending is the input of resultOf: the table of an operation and the last report of each LB.
type ending struct {
	spec    Spec
	id      string
	rows    []*row
	begun   bool     // false: it failed before its first step
	err     error    // that ended the whole operation; nil: each row has its own end
	lbs     []LBPlan // before the operation
	seen    []seenLB // after it; none where nothing is changed
	skipped []Skip
}

// A seenLB is the last report of an LB, or the reason why there is none.
type seenLB struct {
	report *balancer.Report
	loaded bool // nginx was seen to serve what the files say
	err    error
}

// resultOf computes the result of an operation: the exit code, the state that it left, and the next
// commands. The error is the [Failure] of an operation that is not done. It is a pure function.
func resultOf(e ending) (*Result, error) {
	exit := e.exit()
	r := &Result{Kind: e.spec.Kind, Targets: e.spec.Targets, ExitCode: exit, Result: e.outcome(exit), Findings: []Finding{}, Next: []Command{}, Skipped: e.skipped}
	r.Changed = e.changed()
	r.AllDown = e.spec.Kind == Undrain
	for _, lb := range e.lbs {
		up, down := sides(lb.Report.Servers, e.spec.Kind)
		r.StayDown = once(append(r.StayDown, names(down)...))
		r.AllDown = r.AllDown && len(up) == 0
	}
	if e.spec.Kind != Run {
		r.Targets = targetsOf(slices.DeleteFunc(slices.Clone(e.rows), func(r *row) bool { return r.end == skipped }))
		if len(r.Targets) == 0 || !e.any(func(r *row) bool { return r.end == skipped }) {
			r.Targets = e.spec.Targets // as they were typed
		}
	}
	for _, row := range e.rows {
		if e.spec.Kind == Run {
			switch {
			case row.end == ended:
				r.Done = append(r.Done, row.Name)
			case row.end == "" && row.reached == waiting:
				r.Untouched = append(r.Untouched, row.Name)
			}
		}
		if row.standing(e.spec.Kind) && row.Service.Unit != "" {
			r.Services = append(r.Services, ServiceStand{Unit: row.Service.Unit, Backend: row.Name, Touched: row.Touched})
		}
	}
	if exit == Done {
		return r, nil
	}
	err := e.error()
	r.Error, r.GateClosed = err.Error(), errors.Is(e.err, errGate)
	var refusal *Refusal
	if errors.As(err, &refusal) && exit == Refused {
		r.Findings = refusal.Findings
	}
	stands := e.stands(exit)
	if stands.Standing == Changed {
		stands.Services = r.Services
	}
	r.Stands = &stands
	for _, row := range e.rows {
		r.Log = append(r.Log, slices.Concat(row.why.Log, row.stuck.Log)...)
	}
	if e.spec.Kind == Run || !e.all(rolledBack) {
		r.Backends = e.backends()
	}
	if exit != Refused {
		r.Next = append(r.Next, e.next(r)...)
	}
	return r, &Failure{Exit: r.ExitCode, Err: err, Stands: *r.Stands, Log: r.Log, Next: r.Next}
}

// exit returns the exit code.
func (e ending) exit() Exit {
	interrupted := errors.Is(e.err, ErrInterrupted)
	late, failed := true, false // late: every failure was a timeout, also of an app that was stopped anyway
	for _, r := range e.rows {
		if r.why.Err != nil {
			failed = true
			late = late && r.why.Outcome == StepTimedOut
			interrupted = interrupted || errors.Is(r.why.Err, ErrInterrupted)
		}
	}
	switch {
	case !e.begun:
		if interrupted {
			return Interrupted
		}
		return Failed
	case e.any((*row).isPartial):
		return Partial
	case e.err == nil && !failed:
		return Done
	case interrupted && (e.spec.Kind == Run || e.all(rolledBack)):
		return Interrupted
	case !e.changed() && e.refusal() != nil, !e.changed() && errors.Is(e.err, errGate):
		return Refused
	case e.spec.Kind == Run, !late && e.all(rolledBack):
		return Failed
	case !late:
		return Partial
	}
	return TimedOut
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
		var f *Failure
		var refused *balancer.Error
		switch {
		case errors.As(err, &f) && f.Exit == Refused:
			return f.Err
		case balancer.CodeOf(err) == balancer.CodeRefused && errors.As(err, &refused):
			return &Refusal{Findings: []Finding{{Code: string(refused.Code), Text: err.Error(), Override: refused.Override}}, cause: err}
		}
	}
	return nil
}

// outcome returns the result for the journal. A partial or not drained operation can be resumed.
func (e ending) outcome(exit Exit) journal.Result {
	isDone := func(r *row) bool { return r.end == ended }
	switch {
	case exit == Done:
		return journal.ResultDone
	case !e.begun && e.spec.Continues == "":
		return journal.ResultRolledBack
	case !e.begun: // what there was to continue with is still there
		return journal.ResultPartial
	case e.any((*row).isPartial):
		return journal.ResultPartial
	case e.any(func(r *row) bool { return r.end == notDrained }):
		return journal.ResultNotDrained
	case e.spec.Kind == Run && e.any(func(r *row) bool { return r.end == ended || r.end == rolledBack }):
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
	switch {
	case r.stuck.Err == nil:
		return r.why.Err
	case errors.Is(r.stuck.Err, ErrInterrupted):
		return fmt.Errorf("%w; the rollback was interrupted too", r.why.Err)
	}
	return fmt.Errorf("%w; the rollback failed too: %w", r.why.Err, r.stuck.Err)
}

// backends returns the results of the rows for which a step failed.
func (e ending) backends() (all []BackendResult) {
	results := map[End]journal.Result{ended: journal.ResultDone, rolledBack: journal.ResultRolledBack, notDrained: journal.ResultNotDrained, left: journal.ResultPartial}
	for _, r := range e.rows {
		if err := r.failure(); err != nil {
			all = append(all, BackendResult{Backend: r.Name, Result: results[r.end], Error: err.Error()})
		}
	}
	return all
}

// standing returns the state after the operation in a few words; empty if the operation is done.
func (e ending) standing(exit Exit) Standing {
	switch {
	case exit == Done:
		return ""
	case !e.begun, exit == Refused:
		return Untouched
	case e.spec.Kind == Run && exit != Partial:
		return AllBack
	case e.all(rolledBack):
		return AsBefore
	}
	return Changed
}

// stands returns the state after the operation.
func (e ending) stands(exit Exit) (s Stands) {
	if s.Standing = e.standing(exit); s.Standing != Changed {
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
func (e ending) standsOn(lb LBPlan, seen seenLB) (all []LBStands) {
	var standing []*row
	for _, r := range e.rows {
		if r.standing(e.spec.Kind) {
			standing = append(standing, r)
		}
	}
	if seen.err != nil {
		return []LBStands{{LB: lb.LB, Servers: names(serversOf(lb, standing)), Down: e.spec.Kind != Undrain, Edited: e.changed(), Unknown: seen.err.Error()}}
	}
	var down, unloaded []balancer.Server
	for _, s := range serversOf(LBPlan{LB: lb.LB, Report: seen.report}, standing) {
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
		all = append(all, LBStands{LB: lb.LB, Servers: names(unloaded), Edited: true})
	}
	if len(down) > 0 || len(all) == 0 {
		all = append(all, LBStands{LB: lb.LB, Servers: names(down), Down: true, Edited: ours, Loaded: seen.loaded})
	}
	return all
}

// undrain returns the command that puts targets back. It reads its settings from the journal.
func (e ending) undrain(targets []string, reason string) []Command {
	return undrainCommand(targets, e.spec.words(append([]string{"upstream"}, whereFlags...)...), e.despite(reason))
}

// resume returns the command that resumes the operation.
func (e ending) resume(reason string) []Command {
	return resumeCommand(e.id, e.spec.words(whereFlags...), e.despite(reason))
}

// next returns the commands to type next. It offers a resume only if the journal has something to
// resume.
func (e ending) next(r *Result) (all []Command) {
	resume := func(reason string) []Command {
		if r.Result != journal.ResultPartial && r.Result != journal.ResultNotDrained {
			return nil
		}
		return e.resume(reason)
	}
	var own []Command
	unwound := false // and that failed
	for _, row := range e.rows {
		unwound = unwound || row.stuck.Err != nil
		own = append(own, slices.Concat(row.why.Next, row.stuck.Next)...)
	}
	switch {
	case r.Stands.Standing == AsBefore, r.Stands.Standing == Untouched:
		return nil
	case e.spec.Kind == Run:
		all = resume("continues")
		var open []*row
		for _, row := range e.rows {
			if row.end == left {
				all = append(all, e.undrain(row.plan.Targets, "puts "+nameOr(row.Name, "it")+" back")...)
			} else if row.isPartial() {
				open = append(open, row)
			}
		}
		if len(open) > 0 {
			all = append(all, e.undrain(e.spec.Targets, "puts all of them back")...)
		}
	case unwound && e.spec.Kind != Undrain:
		all = append(e.undrain(e.spec.Targets, "puts it back"), resume("continues")...)
	case e.any((*row).isPartial):
		all = resume(map[bool]string{true: "continues", false: "waits again"}[unwound])
	default:
		all = append(resume("waits again"), e.undrain(e.spec.Targets, "puts it back")...)
	}
	return append(all, own...)
}

// despite returns the reason for a command. While LBs are gone, it names the flag that leaves them out.
func (e ending) despite(reason string) string {
	var gone []string
	for i, s := range e.seen {
		if s.err != nil {
			gone = append(gone, e.lbs[i].LB)
		}
	}
	if len(gone) == 0 || len(gone) == len(e.seen) {
		return reason
	}
	return fmt.Sprintf("%s; with --skip-unreachable-lb %d while %s cannot be reached", reason, len(gone), strings.Join(gone, ", "))
}

// notBegun is the result of a command that ended before any operation began.
const notBegun journal.Result = "not begun"

// ResultOf returns the result of a command that ended before an operation began.
func ResultOf(err error) *Result {
	r := &Result{ExitCode: ExitOf(err), Result: journal.ResultDone, Findings: []Finding{}, Next: []Command{}}
	if err == nil {
		return r
	}
	r.Result, r.Error = notBegun, err.Error()
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
