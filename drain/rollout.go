package drain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
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
	skipped := notInPool(whole, spec.Continues)
	p := whole.only(func(b Backend) bool {
		return !slices.ContainsFunc(skipped, func(s Skip) bool { return s.Backend == b.Name })
	})
	p.Skipped = skipped
	var names []string
	for _, b := range p.Backends {
		if !slices.Contains(o.progress.Done, b.Name) {
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
			continued := chain(lb.Report.State, continues)
			for _, m := range lb.Report.State.Marks {
				if !matches(b.targets(), m.Address) {
					continue
				}
				ours = ours || slices.Contains(continued, m.Operation)
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

// chain is an operation that is continued, and those that it continues itself: one
// that crashes has not taken their place.
func chain(s journal.State, id string) (ids []string) {
	for op, ok := s.Find(id); ok && !slices.Contains(ids, op.ID); op, ok = s.Find(op.Continues) {
		ids = append(ids, op.ID)
	}
	return ids
}

// resumeProgress is what the run that is continued has done so far: on any LB.
func (o *Operation) resumeProgress(reports []LBPlan) {
	for _, lb := range reports {
		if op, ok := lb.Report.State.Find(o.asked.Continues); ok {
			o.progress.Done = once(append(o.progress.Done, progressOf(op).Done...))
		}
	}
}

// progressOf is what an operation has done so far. One that has recorded nothing
// has done nothing.
func progressOf(op journal.Operation) (p progress) {
	_ = json.Unmarshal(op.Progress, &p)
	return p
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

// progress is what a rolling run has done so far.
type progress struct {
	Done   []string `json:"done"` // backends whose work is done and that were healthy after it
	Failed []string `json:"failed,omitempty"`
}

// A rollout is a rolling run under way.
type rollout struct {
	o          *Operation
	hard, soft context.Context
	progress
	// returning is the batch that is healthy and still marked down: it comes back
	// with the edit that takes the next one out, so that n batches cost n + 1
	// reloads.
	returning *batch
	found     []string // backends that were out when it began
}

// errGate says that a gate is closed: no further batch begins.
var errGate = errors.New("the gate is closed")

// roll takes one batch after the other.
func (o *Operation) roll(hard, soft context.Context) error {
	r := &rollout{o: o, hard: hard, soft: soft, progress: o.progress}
	r.findOut()
	left, before := r.left()
	r.returning = before
	all, err := batches(o.plan.Spec.Rollout, left)
	if err != nil {
		return err
	}
	for i, members := range all {
		err = r.ready(i)
		if err == nil {
			o.emit(&BatchStarted{Number: i + 1, Of: len(all), Backends: namesOf(members)})
			err = r.batch(members)
		}
		if err == nil && len(r.Failed) > o.plan.Spec.Rollout.MaxFailures {
			err = fmt.Errorf("%d failed, more than --max-failures %d", len(r.Failed), o.plan.Spec.Rollout.MaxFailures)
		}
		if err == nil && r.pauses(i, len(all)) {
			err = r.pause(i)
		}
		if err != nil {
			break
		}
	}
	return r.end(err, left)
}

func namesOf(members []*member) (all []string) {
	for _, m := range members {
		all = append(all, m.Name)
	}
	return all
}

// left is the backends that are still to be done: those that a run before left
// down first. before is those that it has done: they may still be marked down, or
// nginx may not have loaded that they are not.
func (r *rollout) left() (left []*member, before *batch) {
	var returning []*member
	for _, m := range r.o.whole.members {
		if slices.Contains(r.Done, m.Name) {
			returning = append(returning, m)
		} else {
			left = append(left, m)
		}
	}
	slices.SortStableFunc(left, func(a, b *member) int { return b.plan.down - a.plan.down })
	if len(returning) > 0 {
		before = r.o.whole.only(returning)
	}
	return left, before
}

// findOut notes what the run that is continued has left out.
func (r *rollout) findOut() {
	for i, lb := range r.o.lbs {
		for _, s := range r.o.plan.LBs[i].Report.Servers {
			if s.Managed && !slices.Contains(lb.out, s.Address) {
				lb.out = append(lb.out, s.Address)
			}
		}
	}
	for _, m := range r.o.whole.members {
		if r.marked(m) {
			r.found = append(r.found, m.Name)
		}
	}
	r.o.taken = slices.Clone(r.found)
}

// foundOut notes that backends are as they were found when the run began: out, where
// the one before had left them out.
func (r *rollout) foundOut(members []*member) {
	for _, m := range members {
		if slices.Contains(r.found, m.Name) {
			r.o.taken = once(append(r.o.taken, m.Name))
		}
	}
}

// marked tells whether a mark of drainctl stands on a backend: nginx may be without it
// though the file has it again.
func (r *rollout) marked(m *member) bool {
	return slices.ContainsFunc(r.o.plan.LBs, func(lb LBPlan) bool {
		return slices.ContainsFunc(lb.Report.Servers, func(s balancer.Server) bool {
			return s.Managed && matches(m.plan.targets(), s.Address)
		})
	})
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
func (r *rollout) ready(i int) error {
	if r.soft.Err() != nil {
		return context.Cause(r.soft)
	}
	spec := r.o.plan.Spec.Rollout
	if err := r.o.awaitGenerations(r.soft, spec.MaxGenerations); err != nil {
		return err
	}
	if spec.Gate == "" {
		return nil
	}
	code, err := r.o.runHere(r.soft, splitWords(spec.Gate), Backend{}, StepName("gate"))
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

// batch takes some backends out, works on them, and makes them healthy again.
// What fails in a backend is noted; an error ends the run.
func (r *rollout) batch(members []*member) error {
	b, err := r.o.batchOf(r.soft, members, r.returning)
	if err != nil {
		return err
	}
	r.o.taken = once(append(r.o.taken, namesOf(b.members)...))
	forward := b.plan.stepsOf(Forward)
	for i, st := range forward {
		v := r.step(r.soft, st, b, Forward)
		if v.Err == nil && i == 0 {
			r.returned()
		}
		if v.Err == nil {
			continue
		}
		if b, err = r.takeBack(b, v, forward[:i+1]); err != nil || len(b.members) == 0 {
			return err
		}
	}
	if b, err = r.work(b); err != nil || len(b.members) == 0 {
		return err
	}
	if b = r.bringBack(b); len(b.members) == 0 {
		return nil
	}
	r.Done = append(r.Done, namesOf(b.members)...)
	r.returning = b
	return r.record()
}

// bringBack makes backends that are out healthy again; clearing their marks is left
// to be done. What fails stays out.
func (r *rollout) bringBack(b *batch) (healthy *batch) {
	steps := b.plan.stepsOf(Reverse)
	for _, st := range steps[:len(steps)-1] { // the last clears the mark
		if r.o.lbs.broken() {
			// An LB that is gone is no reason to leave the app stopped. The wait for
			// health says what became of it.
			if err := r.o.reconnect(r.hard); err != nil {
				r.o.emit(&Warning{Text: err.Error()})
			}
		}
		v := r.step(r.hard, st, b, Reverse)
		if v.Err == nil {
			continue
		}
		if b = r.leave(b, v); len(b.members) == 0 {
			break
		}
	}
	return b
}

// step runs one step of a batch. That it starts is in the journals before it does.
func (r *rollout) step(ctx context.Context, st step, b *batch, d Direction) Verdict {
	head := Header{Step: st.name(), Direction: d}
	what := b.plan.describeStep(st.name(), d)
	if st.name() == StepMarkDown && d == Forward {
		what.Returning = b.returning
	}
	r.o.emit(&StepStarted{Header: head, Description: what})
	switch err := r.o.record(ctx); {
	case err == nil:
	case d == Forward:
		return r.o.failedStep(head, failed(false, err))
	default: // the way back is taken all the same
		r.o.emit(&Warning{Text: err.Error()})
	}
	if ctx.Err() != nil {
		return failed(false, context.Cause(ctx))
	}
	return r.o.runStep(ctx, st, b, head, Managed)
}

// takeBack rolls back what failed on the way out; the rest goes on.
func (r *rollout) takeBack(b *batch, v Verdict, taken []step) (rest *batch, err error) {
	if len(v.Failed) == 0 || r.soft.Err() != nil { // an LB, or the operator
		if undone := r.o.back(r.hard, b, taken, Forward); undone.Err != nil {
			return b, r.o.partial(v, undone)
		}
		r.o.noteReturned(b)
		r.foundOut(b.members)
		return b, v.Err
	}
	sub := b.only(v.Failed)
	rest = b.without(v.Failed)
	if err := r.o.rollBackAlone(r.hard, sub, taken, Forward, v); err != nil {
		return b, err
	}
	r.foundOut(v.Failed)
	r.Failed = append(r.Failed, namesOf(v.Failed)...)
	return rest, r.record()
}

// work does what the run is for. A backend whose work fails stays out, or is put
// back.
func (r *rollout) work(b *batch) (rest *batch, err error) {
	v := r.step(r.hard, work{}, b, Forward)
	switch {
	case v.Err == nil:
		return b, nil
	case len(v.Failed) == 0: // it was not begun
		if r.hard.Err() == nil {
			r.putBackAll(b)
		}
		return b, v.Err
	case r.o.plan.Spec.Rollout.OnFailure == FailureLeave:
		return r.leave(b, v), nil
	}
	for _, m := range r.putBackAll(b.only(v.Failed)) {
		r.o.ends = append(r.o.ends, backendEnd{m, journal.ResultRolledBack, v.Each[m]})
		r.Failed = append(r.Failed, m.Name)
	}
	return b.without(v.Failed), r.record()
}

// putBackAll makes backends healthy and clears their marks, with a reload of its
// own. back are those that are in the pool again.
func (r *rollout) putBackAll(b *batch) (back []*member) {
	if b = r.bringBack(b); len(b.members) == 0 {
		return nil
	}
	if v := r.putBack(b); v.Err != nil {
		r.leave(b, v)
		return nil
	}
	return b.members
}

// leave notes that backends stay out of the pool.
func (r *rollout) leave(b *batch, v Verdict) (rest *batch) {
	out := v.Failed
	if len(out) == 0 {
		out = b.members
	}
	for _, m := range out {
		why, known := v.Each[m]
		if !known {
			why = v
		}
		r.o.ends = append(r.o.ends, backendEnd{m, journal.ResultPartial, why})
	}
	r.Failed = append(r.Failed, namesOf(out)...)
	return b.without(out)
}

// returned notes that the batch that was to come back is back.
func (r *rollout) returned() {
	if r.returning != nil {
		r.o.noteReturned(r.returning)
		r.returning = nil
	}
}

// record writes down what is done.
func (r *rollout) record() error {
	text, err := json.Marshal(r.progress)
	if err != nil {
		return err
	}
	return r.o.lbs.each(r.hard, func(ctx context.Context, lb *LB) error {
		if err := r.o.usable(ctx, lb); err != nil {
			return err
		}
		return lb.Record(ctx, balancer.Recorded{Lines: lb.takeHistory(), Progress: text})
	})
}

// pauses tells whether a batch comes back before the next one begins, with a
// reload of its own.
func (r *rollout) pauses(i, of int) bool {
	spec := r.o.plan.Spec.Rollout
	return i+1 < of && (spec.Pause > 0 || spec.Canary && i == 0)
}

// pause puts the batch back and waits, or asks, before the next one.
func (r *rollout) pause(i int) error {
	spec := r.o.plan.Spec.Rollout
	if r.returning != nil {
		if v := r.putBack(r.returning); v.Err != nil {
			return v.Err
		}
	}
	wait := spec.Pause
	if spec.Canary && i == 0 {
		if r.o.options.Ask != nil && spec.CanaryWait == 0 {
			yes, err := r.o.options.Ask(r.soft, fmt.Sprintf("%s is done and back in the pool; go on with the rest?", strings.Join(r.Done, ", ")))
			if err == nil && !yes {
				err = fmt.Errorf("%w: the answer was no", errGate)
			}
			return err
		}
		wait = max(wait, spec.CanaryWait)
	}
	r.o.emit(&Paused{For: InSeconds(wait)})
	return sleep(r.soft, wait)
}

// putBack clears the marks of a batch, with a reload of its own, on every LB that can
// be asked.
func (r *rollout) putBack(b *batch) Verdict {
	v := r.step(r.hard, configure{}, b, Reverse)
	if v.Err == nil {
		r.o.noteReturned(b)
	}
	if v.Err == nil && b == r.returning {
		r.returning = nil
	}
	return v
}

// batchOf plans some backends that are taken out, beside those that come back, and
// asks the guards.
func (o *Operation) batchOf(ctx context.Context, members []*member, returning *batch) (*batch, error) {
	b := o.whole.only(members)
	b.plan.Spec.Kind = Drain
	if returning != nil {
		b.returning = returning.plan.Spec.Targets
	}
	reports, err := gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (LBPlan, error) {
		if err := o.usable(ctx, lb); err != nil {
			return LBPlan{}, err
		}
		return lb.ask(ctx, b.query())
	})
	if err != nil {
		return nil, err
	}
	b.plan = newPlan(b.plan.Spec, reports, b.plan.DryRun)
	return b, b.plan.Verdict()
}

// end puts back what is healthy, and says how the run ended.
func (r *rollout) end(err error, left []*member) error {
	switch {
	case r.returning == nil:
	case r.hard.Err() != nil:
		err = cmp.Or(err, context.Cause(r.hard))
	default:
		if v := r.putBack(r.returning); v.Err != nil {
			return &Failure{Exit: Partial, Err: errors.Join(err, v.Err), Stands: r.o.stands(), Next: append(r.o.resume("continues"), r.o.undrain("puts all of them back")...)}
		}
	}
	o := r.o
	for _, m := range left {
		if !slices.Contains(r.Done, m.Name) && !slices.Contains(r.Failed, m.Name) {
			o.untouched = append(o.untouched, m.Name)
		}
	}
	o.progress = r.progress
	out := slices.DeleteFunc(slices.Clone(o.ends), func(e backendEnd) bool { return e.result == journal.ResultRolledBack })
	var f *Failure
	switch {
	case errors.As(err, &f) && f.Exit == Partial, err == nil && len(o.ends) == 0:
		return err
	case errors.As(err, &f) && f.Exit == Refused && len(r.Done)+len(o.ends) > 0:
		err = f.Err // something was touched
	case errors.As(err, &f) && f.Exit == Refused:
		return err
	}
	f = &Failure{Exit: Failed, Err: err, Stands: Stands{Standing: AllBack}}
	if len(r.Done)+len(o.ends) > 0 || r.hard.Err() != nil { // else the journal has nothing to continue with
		f.Next = append(f.Next, o.resume("continues")...)
	}
	switch {
	case errors.Is(err, ErrInterrupted) && r.hard.Err() != nil:
		f.Exit, f.Stands = Partial, o.stands()
		f.Next = append(f.Next, o.undrain("puts all of them back")...)
	case errors.Is(err, ErrInterrupted):
		f.Exit = Interrupted
	case errors.Is(err, errGate) && len(r.Done)+len(o.ends) == 0:
		f.Exit, f.Stands.Standing = Refused, Untouched
	}
	var why []error
	for _, e := range o.ends {
		why = append(why, fmt.Errorf("%s: %w", e.Name, e.why.Err))
		f.Log = append(f.Log, e.why.Log...)
	}
	if len(out) > 0 || len(o.taken) > 0 && f.Exit != Refused {
		f.Exit, f.Stands = Partial, o.stands()
		for _, e := range out {
			f.Next = append(f.Next, o.undrainOf(e.plan.Targets, "puts "+nameOr(e.Name, "it")+" back")...)
		}
	}
	if f.Err = errors.Join(append(why, err)...); len(why) == 1 && err == nil {
		f.Err = why[0]
	}
	return f
}
