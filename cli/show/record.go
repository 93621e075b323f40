package show

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// A Record is what an operation did, for those who are told at its end: metrics,
// a job summary.
type Record struct {
	command string    // that was typed
	Spec    spec.Spec // as it was planned, or typed

	mu       sync.Mutex
	backends []string
	started  *event.StepStarted // the last one
	steps    []stepRecord
	open     map[string]int // connections at the start of the wait, by backend
	result   *event.Result
}

// NewRecord is the record of an operation that a command begins.
func NewRecord(command string) *Record { return &Record{command: command} }

// A stepRecord is one step that ended, in one direction.
type stepRecord struct {
	step         plan.StepName
	direction    plan.Direction
	backends     []string
	began, ended time.Time
	changed      bool
	err          string
}

// Event is told of each event.
func (r *Record) Event(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := e.Head()
	switch e := e.(type) {
	case *event.Planned:
		r.Spec, r.backends = e.Plan.Spec, nil
		for _, b := range e.Plan.Backends {
			r.backends = append(r.backends, b.Name)
		}
	case *event.BatchStarted:
		r.backends = e.Backends
	case *event.StepStarted:
		r.started = e
	case *event.Waiting:
		if _, known := r.open[e.Target]; !known && e.Error == "" {
			if r.open == nil {
				r.open = map[string]int{}
			}
			r.open[e.Target] = e.Open
		}
	case *event.StepDone:
		r.ended(h, h.Time.Add(-e.Elapsed.Duration()), stepRecord{changed: e.Changed})
	case *event.StepFailed:
		began := h.Time
		if s := r.started; s != nil && s.Step == e.Step && s.Direction == e.Direction {
			began = s.Time
		} else if n := len(r.steps); n > 0 { // of a rollback
			began = r.steps[n-1].ended
		}
		r.ended(h, began, stepRecord{err: e.Error})
	case *event.Result:
		r.result = e
	}
}

func (r *Record) ended(h *event.Header, began time.Time, s stepRecord) {
	s.step, s.direction, s.began, s.ended, s.backends = h.Step, h.Direction, began, h.Time, r.backends
	if h.Target != "" {
		s.backends = []string{h.Target}
	}
	r.steps = append(r.steps, s)
}

// Kind is what was asked for; of a resume, once that is known.
func (r *Record) Kind() string { return cmp.Or(string(r.Spec.Kind), r.command) }

// lbsOf is the load balancers of a spec, as they are called.
func lbsOf(sp spec.Spec) []string {
	if len(sp.LBs) == 0 {
		return []string{fleet.ThisMachine}
	}
	return slices.Clone(sp.LBs)
}
