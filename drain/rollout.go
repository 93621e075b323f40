package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
)

// OnFailure is what a rolling run does with a backend whose work failed.
type OnFailure string

// What can be done with it: leave it out of the pool, or put it back.
const (
	FailureLeave   OnFailure = "leave"
	FailureUndrain OnFailure = "undrain"
)

// Defaults of a rolling run.
const (
	DefaultBatch         = "1"
	DefaultRebootTimeout = 10 * time.Minute
)

// A Rollout is what a rolling run is asked for besides its drains and undrains:
// some backends at a time, there and back, with work in between.
type Rollout struct {
	Command       []string      `json:"command,omitempty"`
	OnBackend     bool          `json:"on_backend,omitempty" flag:"on-backend"` // where Command is run; false: here
	Reboot        bool          `json:"reboot,omitempty" flag:"reboot"`
	RebootTimeout time.Duration `json:"reboot_timeout_ns,omitempty" flag:"reboot-timeout"`
	Batch         string        `json:"batch,omitempty" flag:"batch"` // a number, or a percentage of what is up

	Pause          time.Duration `json:"pause_ns,omitempty" flag:"pause"` // between two batches
	Canary         bool          `json:"canary,omitempty" flag:"canary"`  // one first, and then ask, or wait
	CanaryWait     time.Duration `json:"canary_wait_ns,omitempty" flag:"canary-wait"`
	MaxFailures    int           `json:"max_failures,omitempty" flag:"max-failures"`
	MaxGenerations *int          `json:"max_generations,omitempty" flag:"max-generations"` // earlier ones; nil: no limit
	OnFailure      OnFailure     `json:"on_failure,omitempty" flag:"on-failure"`

	OnlyIf string `json:"only_if,omitempty" flag:"only-if"` // asked on each backend: not zero skips it
	Gate   string `json:"gate,omitempty" flag:"gate"`       // asked here before each batch: not zero ends the run
}

// expand names the backends of a rolling run whose operator named none: all of
// the upstreams.
func (o *Operation) expand(ctx context.Context, spec Spec) (Spec, error) {
	if spec.Kind != Run || len(spec.Targets) > 0 {
		return spec, nil
	}
	reports, err := gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		return lb.ask(ctx, balancer.Query{Upstreams: spec.Upstreams})
	})
	for _, lb := range reports {
		if lb.Report == nil {
			continue
		}
		for _, s := range lb.Report.Servers {
			if host := lockName(s.Address); !slices.Contains(spec.Targets, host) {
				spec.Targets = append(spec.Targets, host)
			}
		}
	}
	if err == nil && len(spec.Targets) == 0 {
		err = usage("upstream %s has no server", strings.Join(spec.Upstreams, ", "))
	}
	return spec, err
}

// planRun plans a rolling run: which backends are in it, in which batches, and
// what the guards say of each batch while the others are up.
func (o *Operation) planRun(ctx context.Context, spec Spec, reports []LBPlan, dry bool) (*Plan, error) {
	whole := newPlan(spec, reports, dry)
	skips, saved := notInPool(whole, spec.Continues), savedTable(spec.Continues, reports)
	p := whole.only(func(b Backend) bool {
		return !slices.ContainsFunc(skips, func(s Skip) bool { return s.Backend == b.Name })
	})
	p.Skipped = skips
	backends := slices.Clone(p.Backends)
	// As the run takes them: what is out already comes first.
	slices.SortStableFunc(backends, func(a, b Backend) int { return b.down - a.down })
	var names []string
	for _, b := range backends {
		if r, ok := saved.row(b.Name); !ok || !r.isWorked() {
			names = append(names, b.Name)
		}
	}
	var err error
	if p.Batches, err = batches(spec.Rollout, names); err != nil {
		return nil, err
	}
	for _, lb := range p.LBs {
		lb.Report.Diff = "" // of all batches at once
	}
	for i, batch := range p.Batches {
		part := p.only(func(b Backend) bool { return slices.Contains(batch, b.Name) }).Spec
		part.Kind = Drain
		q := query(part)
		q.Preflight = false
		// What an earlier run has left down is back by then.
		q.Returning = slices.DeleteFunc(slices.Clone(p.Spec.Targets), func(t string) bool { return slices.Contains(part.Targets, t) })
		asked, err := gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) { return lb.ask(ctx, q) })
		if err != nil {
			return nil, err
		}
		planned := newPlan(part, asked, dry)
		for _, d := range planned.Diffs() {
			d.Batch = i + 1
			p.BatchDiffs = append(p.BatchDiffs, d)
		}
		for _, f := range planned.Findings {
			if !slices.Contains(p.Findings, f) {
				p.Findings = append(p.Findings, f)
			}
		}
	}
	p.ExitCode = ExitOf(p.Verdict())
	return p, nil
}

// notInPool is the backends that somebody has taken out of the pool, but for those
// that the run that is continued has.
func notInPool(p *Plan, continues string) (skips []Skip) {
	for _, b := range p.Backends {
		if !b.out() {
			continue
		}
		reason, ours := "it is marked down outside drainctl", false
		for _, lb := range p.LBs {
			for _, m := range lb.Report.State.Marks {
				if !matches(b.targets(), m.Address) {
					continue
				}
				ours = ours || m.Operation == continues
				if by, ok := lb.Report.State.Find(m.Operation); ok {
					reason = "it is drained by " + by.Who()
				}
			}
		}
		if !ours {
			skips = append(skips, Skip{b.Name, reason})
		}
	}
	return skips
}

// BatchSize is how many of n backends are taken at once, by a number or a percentage.
func BatchSize(text string, n int) (int, error) {
	number, percent := strings.CutSuffix(text, "%")
	size, err := strconv.Atoi(number)
	if err != nil || size < 1 || percent && size > 100 {
		return 0, fmt.Errorf("%q: say a number such as 2, or a percentage such as 25%%", text)
	}
	if percent {
		size = max(1, n*size/100)
	}
	return size, nil
}

// needsBackend tells whether commands are run on the backends.
func (r Rollout) needsBackend() bool {
	return r.Reboot || r.OnlyIf != "" || r.OnBackend && len(r.Command) > 0
}

// A Skip is a backend that a rolling run leaves as it is, and why.
type Skip struct {
	Backend string `json:"backend"`
	Reason  string `json:"reason"`
}

// errGate says that a gate is closed: no further batch begins.
var errGate = errors.New("the gate is closed")

// roll takes one batch after the other. An error ends the run.
func (o *Operation) roll(hard, soft context.Context) error {
	err := o.rollBatches(hard, soft)
	if len(o.returning()) == 0 {
		return err
	}
	if hard.Err() != nil {
		return cmp.Or(err, context.Cause(hard))
	}
	return errors.Join(err, o.putBack(hard))
}

// rollBatches does it, and leaves the last batch to be put back.
func (o *Operation) rollBatches(hard, soft context.Context) error {
	spec := o.plan.Spec.Rollout
	// An earlier process has done its work on these, and may not have seen them healthy.
	worked := o.whole.where(func(r *row) bool { return r.isOpen() && r.phase >= starting })
	if err := o.makeHealthy(hard, worked); err != nil {
		return err
	}
	if err := o.checkFailures(); err != nil {
		return err
	}
	todo := o.whole.where(func(r *row) bool { return r.isOpen() && r.phase == waiting }).rows
	// What is out already comes first.
	slices.SortStableFunc(todo, func(a, b *row) int { return b.plan.down - a.plan.down })
	all, err := batches(spec, todo)
	if err != nil {
		return err
	}
	for i, rows := range all {
		if err := o.ready(soft); err != nil {
			return err
		}
		o.emit(&BatchStarted{Number: i + 1, Of: len(all), Backends: namesOf(rows)})
		if err := o.rollBatch(hard, soft, rows); err != nil {
			return err
		}
		if err := o.checkFailures(); err != nil {
			return err
		}
		if i+1 < len(all) && (spec.Pause > 0 || spec.Canary && i == 0) {
			if err := o.pause(hard, soft, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkFailures ends the run after more backends have failed than it may go on with.
func (o *Operation) checkFailures() error {
	failed := o.whole.where(func(r *row) bool { return r.why.Err != nil }).rows
	if most := o.plan.Spec.Rollout.MaxFailures; len(failed) > most {
		return fmt.Errorf("%d failed, more than --max-failures %d", len(failed), most)
	}
	return nil
}

// batches shares backends out.
func batches[T any](r Rollout, backends []T) (all [][]T, err error) {
	size, err := BatchSize(r.Batch, len(backends))
	if err != nil {
		return nil, usage("--batch %w", err)
	}
	if r.Canary && len(backends) > 1 {
		all, backends = append(all, backends[:1]), backends[1:]
	}
	return slices.AppendSeq(all, slices.Chunk(backends, size)), nil
}

// ready waits until a batch may begin, and asks the gate.
func (o *Operation) ready(soft context.Context) error {
	if soft.Err() != nil {
		return context.Cause(soft)
	}
	spec := o.plan.Spec.Rollout
	if err := o.awaitGenerations(soft, spec.MaxGenerations); err != nil {
		return err
	}
	if spec.Gate == "" {
		return nil
	}
	code, err := o.runHere(soft, splitWords(spec.Gate), Backend{}, StepName("gate"))
	if err == nil && code != 0 {
		err = fmt.Errorf("%w: %s ended with exit status %d", errGate, spec.Gate, code)
	}
	return err
}

// generationsInterval is how often earlier generations are looked at.
const generationsInterval = 500 * time.Millisecond

// awaitGenerations waits until no LB has more earlier generations than limit.
func (o *Operation) awaitGenerations(ctx context.Context, limit *int) error {
	for told := false; limit != nil; told = true {
		seen, err := gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (balancer.Watched, error) {
			return lb.Watch(ctx, balancer.WatchRequest{Generation: true})
		})
		if err != nil {
			return err
		}
		most := 0
		for i, w := range seen {
			if most = max(most, w.Generation.Earlier); !told && w.Generation.Earlier > *limit {
				o.emit(&GenerationsAwaited{Header: Header{LB: o.lbs[i].Name}, Generation: *w.Generation, Limit: *limit})
			}
		}
		if most <= *limit {
			return nil
		}
		if err := sleep(ctx, generationsInterval); err != nil {
			return err
		}
	}
	return nil
}

// rollBatch takes some backends out, works on them, and makes them healthy again. They come back
// with the edit that takes the next batch out.
func (o *Operation) rollBatch(hard, soft context.Context, rows []*row) error {
	b, err := o.planBatch(soft, rows)
	if err != nil {
		return err
	}
	path := o.plan.path()
	out := slices.Index(path, working) + 1
	if b, err = o.walk(hard, soft, b, path[:out]); err != nil || len(b.rows) == 0 {
		return err
	}
	return o.makeHealthy(hard, b)
}

// makeHealthy makes backends that were worked on healthy. What remains to be done is to clear their
// marks.
func (o *Operation) makeHealthy(hard context.Context, b *batch) error {
	if len(b.rows) == 0 {
		return nil
	}
	path := o.plan.path()
	rest, err := o.walk(hard, hard, b, path[slices.Index(path, working)+1:len(path)-1])
	for _, r := range rest.rows {
		r.phase, r.reached = clearing, clearing
	}
	return err
}

// planBatch plans some backends that are taken out, beside those that come back, and asks the
// guards.
func (o *Operation) planBatch(ctx context.Context, rows []*row) (*batch, error) {
	b := o.whole.only(rows)
	lbs, err := gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		if err := o.usable(ctx, lb); err != nil {
			return LBPlan{}, err
		}
		return b.plan(ctx, lb)
	})
	if err != nil {
		return nil, err
	}
	b.lbs = lbs
	for i, part := range lbs {
		o.learn(i, part)
	}
	return b, newPlan(b.spec(), lbs, false).Verdict()
}

// pause puts the batch back, with a reload of its own, and waits, or asks, before the next one.
func (o *Operation) pause(hard, soft context.Context, i int) error {
	spec := o.plan.Spec.Rollout
	if err := o.putBack(hard); err != nil {
		return err
	}
	wait := spec.Pause
	if spec.Canary && i == 0 {
		if o.options.Ask != nil && spec.CanaryWait == 0 {
			done := o.whole.where(func(r *row) bool { return r.end == ended }).rows
			yes, err := o.options.Ask(soft, fmt.Sprintf("%s is done and back in the pool; go on with the rest?", strings.Join(namesOf(done), ", ")))
			if err == nil && !yes {
				err = fmt.Errorf("%w: the answer was no", errGate)
			}
			return err
		}
		wait = max(wait, spec.CanaryWait)
	}
	o.emit(&Paused{For: InSeconds(wait)})
	return sleep(soft, wait)
}

// putBack clears the marks of the backends that are healthy, on every LB that can be asked.
func (o *Operation) putBack(hard context.Context) error {
	rest, err := o.walk(hard, hard, o.whole.only(o.returning()), []Phase{clearing})
	for _, r := range rest.rows {
		r.end = ended
	}
	return err
}
