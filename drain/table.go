package drain

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// An End is how a backend ended. Empty: its steps are not all done.
type End string

// The ends.
const (
	done       End = "done"
	rolledBack End = "rolled back"
	notDrained End = "not drained" // out of the pool, the app running, with connections open
	left       End = "left"        // neither done nor rolled back
	skipped    End = "skipped"     // by --only-if, or because it was undrained meanwhile
)

// A row is one backend of an operation, and how far it has come.
type row struct {
	*backend.Backend
	plan        plan.Backend
	phase       plan.Phase
	reached     plan.Phase // the furthest phase, also of an earlier process
	end         End
	why         Verdict  // of the step that failed for it last
	rollbackWhy Verdict  // of the step that failed in its rollback
	changed     bool     // the operation has changed something for it, if only for a while
	answering   []string // servers that still answer, though the service is stopped
}

// leavesChange reports whether the operation has left the backend in another state than before.
func (r *row) leavesChange(k spec.Kind) bool {
	switch {
	case r.end == rolledBack, r.end == skipped:
		return false
	case k == spec.Run:
		return r.isPartial()
	}
	return true
}

// isPartial reports whether a step for the backend has begun and it is neither done nor rolled back.
func (r *row) isPartial() bool { return r.end == left || r.end == "" && r.reached > plan.NotBegun }

// isOpen reports whether the row has no end yet.
func (r *row) isOpen() bool { return r.end == "" }

// reverses reports whether the rollback of a row takes the step of a phase. The rollback of a drain
// or a rolling run takes steps of an undrain, and that of an undrain takes steps of a drain.
func (r *row) reverses(p plan.Phase) bool {
	switch p {
	case plan.Starting: // again, what was stopped or worked on
		return slices.ContainsFunc(r.Units, func(u *backend.Unit) bool { return r.reversesUnit(p, u) })
	case plan.Checking:
		return r.Touched() || r.reached >= plan.Working
	case plan.Marking: // again, what may have been cleared
		return r.reached == plan.Clearing
	case plan.Draining, plan.Stopping: // again, what was started; and only when nginx sends nothing there
		return r.Touched()
	}
	return true
}

// reversesUnit reports whether a rollback stops or starts a unit: what the operation has touched. systemd
// may have stopped another one with it, and the work of a rolling run may have stopped any.
func (r *row) reversesUnit(p plan.Phase, u *backend.Unit) bool {
	return u.Touched || p == plan.Starting && (r.reached >= plan.Working || u.Active && r.Touched())
}

// unitsIn returns the units in the order in which the step of a phase stops or starts them.
func (r *row) unitsIn(p plan.Phase) []*backend.Unit {
	units := slices.Clone(r.Units)
	if p == plan.Starting {
		order := r.plan.Settings.Service.InStartOrder()
		slices.SortFunc(units, func(a, b *backend.Unit) int { return slices.Index(order, a.Unit) - slices.Index(order, b.Unit) })
	}
	return units
}

// A fate is what becomes of a backend after a step.
type fate int

// The fates.
const (
	proceed    fate = iota
	stopAnyway      // with connections open
	leave
	rollBack
)

// fateOf decides what becomes of a backend after a step, by the furthest phase that it has reached. A
// rolling run puts a backend back that fails before the work, and leaves it out after the work.
func fateOf(s spec.Spec, reached plan.Phase, v Verdict) fate {
	switch {
	case v.Outcome == StepOK:
		return proceed
	case s.Kind == spec.Run && (reached > plan.Working || reached == plan.Working && s.Rollout.OnFailure == spec.FailureLeave):
		return leave
	case s.Kind == spec.Run:
		return rollBack
	case v.Outcome == Irreversible:
		return leave
	case v.Outcome == StepTimedOut && s.OnTimeout == spec.TimeoutStop:
		return stopAnyway
	case v.Outcome == StepTimedOut && s.OnTimeout == spec.TimeoutLeave:
		return leave
	}
	return rollBack
}

// goTogether reports whether a backend that is rolled back takes all others with it.
func goTogether(s spec.Spec) bool { return s.Together && s.Kind != spec.Run }

// errTogether is the error of a backend that is rolled back because another one failed.
var errTogether = errors.New("another backend failed")

// A batch is rows that take each step together, with one edit and one reload on each LB.
type batch struct {
	o    *Operation
	rows []*row
	lbs  []plan.LBPlan // the latest report of each LB
}

// newWhole returns the batch of all backends of the operation.
func (o *Operation) newWhole() *batch {
	b := &batch{o: o, lbs: slices.Clone(o.plan.LBs)}
	for _, p := range o.plan.Backends {
		b.rows = append(b.rows, &row{Backend: &backend.Backend{Name: p.Name}, plan: p})
	}
	return b
}

// only returns the batch of some of its rows.
func (b *batch) only(rows []*row) *batch {
	return &batch{o: b.o, rows: rows, lbs: slices.Clone(b.lbs)}
}

// where returns the batch of the rows that is accepts.
func (b *batch) where(is func(*row) bool) *batch {
	return b.only(slices.DeleteFunc(slices.Clone(b.rows), func(r *row) bool { return !is(r) }))
}

// without returns the batch of the other rows.
func (b *batch) without(rows []*row) *batch {
	return b.where(func(r *row) bool { return !slices.Contains(rows, r) })
}

// returning returns the rows of a rolling run that are healthy and still marked down. The edit that
// takes the next batch out clears their marks.
func (o *Operation) returning() []*row {
	return o.whole.where(func(r *row) bool { return r.end == "" && r.phase == plan.Clearing }).rows
}

// gather asks every row, side by side, and returns the answers in the order of the rows.
func gather[T any](rows []*row, ask func(*row) T) []T {
	answers := make([]T, len(rows))
	var all sync.WaitGroup
	for i, r := range rows {
		all.Go(func() { answers[i] = ask(r) })
	}
	all.Wait()
	return answers
}

func namesOf(rows []*row) (all []string) {
	for _, r := range rows {
		all = append(all, r.Name)
	}
	return all
}

// targetsOf returns the targets of rows.
func targetsOf(rows []*row) (all []string) {
	for _, r := range rows {
		all = append(all, r.plan.Targets...)
	}
	return all
}

// part returns the latest report of one LB.
func (b *batch) part(lb *fleet.LB) plan.LBPlan { return b.lbs[slices.Index(b.o.lbs, lb)] }

// servers returns the servers of rows on one LB.
func (b *batch) servers(lb *fleet.LB, rows []*row) []balancer.Server {
	return serversOf(b.part(lb), rows)
}

// serversOf returns the servers of rows on one LB.
func serversOf(lb plan.LBPlan, rows []*row) []balancer.Server {
	rows = rowsOn(lb.LB, rows)
	return slices.DeleteFunc(slices.Clone(lb.Report.Servers), func(s balancer.Server) bool {
		return !slices.ContainsFunc(rows, func(r *row) bool { return spec.Matches(r.plan.ParsedTargets(), s.Address) })
	})
}

// rowsOn returns the rows that one LB sends requests to. Only its own LB sends requests to a backend
// that is on an LB.
func rowsOn(lb string, rows []*row) []*row {
	return slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return r.plan.LB != "" && r.plan.LB != lb })
}

// A table is the rows in the form of the journal.
type table struct {
	Steps int        `json:"steps"` // that were begun; the table with the most is the latest
	Rows  []savedRow `json:"rows,omitempty"`
	// Answered tells that a rolling run goes on after its canary.
	Answered bool `json:"answered,omitempty"`
}

// A savedRow is one row of a table.
type savedRow struct {
	Backend string     `json:"backend"`
	Phase   plan.Phase `json:"phase"`
	Reached plan.Phase `json:"reached"`
	End     End        `json:"end,omitempty"`
	Active  bool       `json:"active,omitempty"` // its service ran before, or a unit of it
	// Idle are the units that did not run, where others did.
	Idle []string `json:"idle,omitempty"`
	// Dependents ran before, and systemd stops them with the service.
	Dependents []string `json:"dependents,omitempty"`
}

// table returns the rows for the journal.
func (o *Operation) table() json.RawMessage {
	t := table{Steps: o.steps, Answered: o.answered}
	for _, r := range o.whole.rows {
		saved := savedRow{Backend: r.Name, Phase: r.phase, Reached: max(r.phase, r.reached), End: r.end, Active: r.Active(), Dependents: r.Dependents}
		for _, u := range r.Units {
			if saved.Active && !u.Active {
				saved.Idle = append(saved.Idle, u.Unit)
			}
		}
		t.Rows = append(t.Rows, saved)
	}
	text, _ := json.Marshal(t) // of plain names and numbers
	return text
}

// continued returns the operation on an LB that the spec resumes. It ignores an operation with the same
// ID that another user recorded.
func continued(s spec.Spec, lb plan.LBPlan) (op journal.Operation, ok bool) {
	op, ok = lb.Report.State.Find(s.Continues)
	return op, ok && op.Recorder.IsSame(s.Recorder)
}

// savedTable returns the latest table of the operation that the spec resumes.
func savedTable(s spec.Spec, lbs []plan.LBPlan) (latest table) {
	for _, lb := range lbs {
		var t table
		op, ok := continued(s, lb)
		if ok && json.Unmarshal(op.Progress, &t) == nil && t.Steps >= latest.Steps {
			latest = t
		}
	}
	return latest
}

// row returns the row of a backend.
func (t table) row(name string) (savedRow, bool) {
	i := slices.IndexFunc(t.Rows, func(r savedRow) bool { return r.Backend == name })
	if i < 0 {
		return savedRow{}, false
	}
	return t.Rows[i], true
}

// isWorked reports whether a resumed run skips the work on the backend. It repeats the work if the
// backend failed to start or to become healthy afterwards.
func (r savedRow) isWorked() bool {
	return r.End == done || r.End == "" && r.Phase >= plan.Starting || r.End == left && r.Phase == plan.Clearing
}

// adopt takes over the table of an earlier process. Rows that are done, and still as wanted, stay done.
// The others begin anew; in a rolling run they begin after the work if that is done. A backend that
// another operator undrained meanwhile is skipped.
func (o *Operation) adopt(t table) {
	o.steps, o.answered = t.Steps, t.Answered
	k := o.plan.Spec.Kind
	for _, r := range o.whole.rows {
		saved, ok := t.row(r.Name)
		undrained := !o.covers(r)
		switch {
		case !ok, saved.End == rolledBack, undrained && k == spec.Run && !saved.isWorked():
			continue // as if there had been no earlier process
		case undrained && k != spec.Run:
			r.end = skipped
			o.skipped = append(o.skipped, plan.Skip{Backend: r.Name, Reason: "it was undrained meanwhile"})
			continue
		}
		r.reached, r.changed = saved.Reached, saved.Reached > plan.NotBegun
		for _, u := range r.Units { // each may have been stopped, or started
			u.Active = saved.Active && !slices.Contains(saved.Idle, u.Unit)
			u.Touched = k == spec.Undrain && !u.Active && r.reached >= plan.Starting || k != spec.Undrain && u.Active && r.reached >= plan.Stopping
		}
		switch {
		case saved.End == done && (k == spec.Run || !o.needsEdit(r)), undrained:
			r.phase, r.end = saved.Phase, done
		case k == spec.Run && saved.isWorked():
			r.phase = saved.Phase
		}
	}
}

// covers reports whether a journal still lists a server of the row for the operation. An undrain
// removes its servers from earlier operations.
func (o *Operation) covers(r *row) bool {
	found := false
	for _, lb := range o.whole.lbs {
		op, ok := continued(o.plan.Spec, lb)
		found = found || ok && len(op.Servers) > 0
		for _, s := range serversOf(lb, []*row{r}) {
			if ok && op.Covers(s.Server) {
				return true
			}
		}
	}
	return !found
}

// needsEdit reports whether a server of the row is not as wanted.
func (o *Operation) needsEdit(r *row) bool {
	return slices.ContainsFunc(o.whole.lbs, func(lb plan.LBPlan) bool {
		return slices.ContainsFunc(serversOf(lb, []*row{r}), func(s balancer.Server) bool { return s.NeedsEdit })
	})
}

// learn adds servers that an LB did not have when the operation was planned.
func (o *Operation) learn(i int, part plan.LBPlan) {
	report := *o.whole.lbs[i].Report
	for _, s := range part.Report.Servers {
		if !slices.ContainsFunc(report.Servers, func(had balancer.Server) bool { return had.Server == s.Server }) {
			report.Servers = append(slices.Clone(report.Servers), s)
		}
	}
	o.whole.lbs[i].Report = &report
}

// keysOf returns the keys of servers, each once.
func keysOf(servers []balancer.Server) (keys []journal.Server) {
	for _, s := range servers {
		if !slices.Contains(keys, s.Server) {
			keys = append(keys, s.Server)
		}
	}
	return keys
}
