package show

import (
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// A progress is what is known of a run that is under way, from its events.
type progress struct {
	kind    spec.Kind
	steps   []plan.Step
	batches [][]string
	batch   int // the number of the one under way
	// Those that a row each is shown of, where there are several.
	lbs, backends []string

	name, how string // what is under way; empty: nothing
	number    int    // of the step in steps, from 1; 0: it is none of them
	of        int
	direction plan.Direction
	what      plan.Description
	began     time.Time
	rows      []*waitRow // of its LBs or backends
	over      bool       // the next has not begun yet
	last      int        // the number of the latest of the steps

	touched     bool // a step has begun
	rollingBack bool
	interrupted bool
}

// A waitRow is the latest of one backend or LB: in full and in a word or two.
type waitRow struct {
	name, text, short string
	done              bool
	open              int
	counts            series
	left              time.Duration // an estimate; 0: there is none
	waiting           *event.Waiting
	healthError       string // the latest
}

// heed notes what has happened.
func (p *progress) heed(e event.Event) {
	switch e := e.(type) {
	case *event.Planned:
		p.planned(e.Plan)
	case *event.BatchStarted:
		p.batch, p.over, p.backends = e.Number, true, e.Backends
		if e.Of != len(p.batches) {
			p.batches = nil // a run that is continued has other ones
		}
	case *event.StepStarted:
		p.begin(title(e.Step, e.Direction, e.Description), e.Time)
		p.how = how(e.Step, e.Direction, e.Description)
		p.direction, p.what = e.Direction, e.Description
		if !e.Rollback {
			p.number, p.of, p.last = e.Number, e.Of, e.Number
			p.touched, p.rollingBack = true, false
		}
		p.await(e.Step)
	case *event.RollingBack:
		p.begin(words(e), e.Time)
		p.rollingBack = true
	case *event.LockAwaited, *event.GenerationsAwaited, *event.Paused:
		p.begin(words(e), e.Head().Time)
	case *event.StepDone:
		p.rows, p.over = nil, !p.rollingBack // in a rollback the next step follows unsaid
	case *event.StepFailed:
		p.over = true
		p.backends = slices.DeleteFunc(slices.Clone(p.backends), func(name string) bool { return name == e.Target })
	case *event.Edited, *event.Reloaded:
		p.row(e.Head().LB).text = words(e)
	case *event.Rebooting:
		p.row(e.Target).text = words(e)
	case *event.WorkOutput:
		p.row(e.Target).text = e.Line
	case *event.Waiting:
		p.row(e.Target).reading(e)
	case *event.HealthChecked:
		r := p.row(e.Target)
		r.text, r.short, r.done = health(e), checksNow(e), e.Passed >= e.Needed
		if e.Error != "" {
			r.healthError = e.Error
		}
	case *event.Result:
		p.name = ""
	}
}

func (p *progress) planned(pl *plan.Plan) {
	p.kind, p.steps, p.batches = pl.Spec.Kind, pl.Steps, pl.Batches
	for _, lb := range pl.LBs {
		p.lbs = append(p.lbs, lb.LB)
	}
	for _, b := range pl.Backends {
		p.backends = append(p.backends, b.Name)
	}
}

// await makes the rows of a step whose LBs or backends are told of one by one.
func (p *progress) await(step plan.StepName) {
	names := p.backends
	switch step {
	case plan.StepMarkDown:
		names = p.lbs
	case plan.StepService:
		return
	}
	if len(names) > 1 {
		for _, name := range names {
			p.row(name).text = pendingText
		}
	}
}

// begin is for what is under way from now on.
func (p *progress) begin(name string, at time.Time) {
	p.name, p.how, p.began, p.rows, p.over = name, "", at, nil, false
	p.number, p.what = 0, plan.Description{}
}

// row is the one of an LB or a backend.
func (p *progress) row(name string) *waitRow {
	i := slices.IndexFunc(p.rows, func(r *waitRow) bool { return r.name == name })
	if i < 0 {
		i, p.rows = len(p.rows), append(p.rows, &waitRow{name: name})
	}
	return p.rows[i]
}

// waited is the rows that are waited for: those that are not done, or all.
func (p *progress) waited() []*waitRow {
	left := slices.DeleteFunc(slices.Clone(p.rows), func(r *waitRow) bool { return r.done || r.short == "" })
	if len(left) == 0 {
		left = slices.DeleteFunc(slices.Clone(p.rows), func(r *waitRow) bool { return r.short == "" })
	}
	return left
}

// reading notes a reading of the connection counter.
func (r *waitRow) reading(e *event.Waiting) {
	r.text, r.short, r.done, r.waiting = waiting(e), openNow(e), e.Low >= backend.LowReadings, e
	if e.Error == "" {
		r.open = e.Open
		r.counts.add(e.Elapsed.Duration(), e.Open)
	}
	r.left = 0
	if left, ok := r.counts.left(e.Threshold); ok && e.Stuck == nil && e.Error == "" {
		r.left = left
	}
}

// stuck tells whether an event is the first to say why a wait is stuck, or says
// something else than the one before.
func (p *progress) stuck(e *event.Waiting) bool {
	before := p.row(e.Target).waiting
	return e.Stuck != nil && (before == nil || before.Stuck == nil || before.Stuck.Reason != e.Stuck.Reason)
}
