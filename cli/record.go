package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain"
)

// A record is what an operation did, for those who are told at its end: metrics,
// a trace, a job summary.
type record struct {
	command string     // that was typed
	spec    drain.Spec // as it was planned, or typed

	began time.Time

	mu            sync.Mutex
	lbs, backends []string
	started       *drain.StepStarted // the last one
	steps         []stepRecord
	open          map[string]int // connections at the start of the wait, by backend
	result        *drain.Result
}

// A stepRecord is one step that ended, in one direction.
type stepRecord struct {
	step         drain.StepName
	direction    drain.Direction
	backends     []string
	began, ended time.Time
	changed      bool
	err          string
}

func (r *record) event(e drain.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := e.Head()
	switch e := e.(type) {
	case *drain.Planned:
		r.spec, r.lbs, r.backends = e.Plan.Spec, nil, nil
		for _, lb := range e.Plan.LBs {
			r.lbs = append(r.lbs, lb.LB)
		}
		for _, b := range e.Plan.Backends {
			r.backends = append(r.backends, b.Name)
		}
	case *drain.BatchStarted:
		r.backends = e.Backends
	case *drain.StepStarted:
		r.started = e
	case *drain.Waiting:
		if _, known := r.open[e.Target]; !known && e.Error == "" {
			if r.open == nil {
				r.open = map[string]int{}
			}
			r.open[e.Target] = e.Open
		}
	case *drain.StepDone:
		r.ended(h, h.Time.Add(-e.Elapsed.Duration()), stepRecord{changed: e.Changed})
	case *drain.StepFailed:
		began := h.Time
		if s := r.started; s != nil && s.Step == e.Step && s.Direction == e.Direction {
			began = s.Time
		} else if n := len(r.steps); n > 0 { // of a rollback
			began = r.steps[n-1].ended
		}
		r.ended(h, began, stepRecord{err: e.Error})
	case *drain.Result:
		r.result = e
	}
}

func (r *record) ended(h *drain.Header, began time.Time, s stepRecord) {
	s.step, s.direction, s.began, s.ended, s.backends = h.Step, h.Direction, began, h.Time, r.backends
	if h.Target != "" {
		s.backends = []string{h.Target}
	}
	r.steps = append(r.steps, s)
}

// kind is what was asked for; of a resume, once that is known.
func (r *record) kind() string { return cmp.Or(string(r.spec.Kind), r.command) }

// statusLimit bounds asking the LBs for their servers once an operation is over.
const statusLimit = 30 * time.Second

// publishRecord tells those who are told at the end. That one cannot be told
// changes nothing in how the operation ended.
func (s *session) publishRecord(r *record) {
	var tellers []func() error
	if file := os.Getenv("GITHUB_STEP_SUMMARY"); onGitHub() && file != "" {
		tellers = append(tellers, func() error { return writeSummary(file, r) })
	}
	if s.metrics != "" {
		tellers = append(tellers, func() error { return s.measure(r) })
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")+os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		tellers = append(tellers, func() error { return sendTrace(r) })
	}
	for _, tell := range tellers {
		if err := tell(); err != nil {
			fmt.Fprintf(s.stderr, "drainctl: warning: %v\n", err)
		}
	}
}

// measure writes the metrics of an operation, and of the servers after it.
func (s *session) measure(r *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	spec := drain.DefaultSpec("")
	spec.LBs, spec.Nginx, spec.Parallel = r.spec.LBs, r.spec.Nginx, r.spec.Parallel
	// The view has shown the end: it is told no more.
	st, err := drain.ReadStatus(ctx, spec, drain.Machines{Version: versionText(), Passphrase: passphrase(s.view)})
	if st == nil {
		st = &drain.Status{}
	}
	if err != nil {
		err = fmt.Errorf("--metrics %s: the servers are not in it: %w", s.metrics, err)
	}
	return cmp.Or(writeMetrics(s.metrics, r, spec, st), err)
}

// lbNames is the load balancers of a spec, as they are called.
func lbNames(spec drain.Spec) []string {
	if len(spec.LBs) == 0 {
		return []string{drain.ThisMachine}
	}
	return slices.Clone(spec.LBs)
}
