package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// ErrInterrupted is the cause of a context that a signal ended.
var ErrInterrupted = errors.New("interrupted")

// A run is one operation under way.
type run struct {
	req     *Request
	plan    *Plan
	tell    func(Event)
	backend remote.Host // nil when none is needed
	gauge   gauge       // nil in an undrain
	close   *closeStep
	empty   *emptyStep
	stop    *stopStep
	// undoing tells the steps to take back what this run did, and no more.
	undoing bool
	changed bool // something is not, or was not for a while, as before
	done    []step
	id      string        // of the operation in the journals
	claims  []remote.Lock // on the target, one on each load balancer
	begun   bool          // the journals hold its beginning
	edits   []*Edited     // announced by this run
}

func newRun(plan *Plan, tell func(Event)) *run {
	r := &run{req: plan.Request, plan: plan, tell: tell}
	latest := ""
	for _, part := range plan.LBs {
		latest = max(latest, part.Ledger.latest())
	}
	r.id = newID(time.Now(), latest)
	r.close = newCloseStep(r)
	r.empty = &emptyStep{r: r}
	r.stop = &stopStep{r: r}
	return r
}

// way is the direction of the operation.
func (r *run) way() Way {
	if r.req.Operation == Undrain {
		return Back
	}
	return Forward
}

// A Session is a checked plan, ready to run.
type Session struct{ r *run }

// Run takes the steps: all of them forward for a drain, backward for an
// undrain. When one fails, or soft ends, what was done is taken back; when ctx
// ends too, the taking back is given up. The error is a *[Failure].
func (s *Session) Run(ctx, soft context.Context) error {
	r := s.r
	soft, cancel := either(soft, ctx)
	defer cancel()
	soft, unwatch := r.watchClaims(soft)
	defer unwatch()
	if err := r.begin(soft); err != nil {
		f := &Failure{Kind: Failed, Err: err, Now: "nothing was touched"}
		if soft.Err() != nil {
			f.Kind, f.Err = Interrupted, context.Cause(soft)
		}
		// Whether it is in the journal is not known: if so, its end must be too.
		r.end(ctx, f)
		return f
	}
	err := r.takeAll(ctx, soft)
	r.end(ctx, err)
	return err
}

// takeAll takes the steps of the operation, and takes them back if one fails.
func (r *run) takeAll(ctx, soft context.Context) error {
	way, list := r.way(), r.steps()
	if way == Back {
		slices.Reverse(list)
	}
	late := error(nil)
	for i, st := range list {
		r.tell(StepStarted{Step: st.name(), Way: way, Number: i + 1, Of: len(list), Text: st.describe(way)})
		err := r.take(soft, st, way)
		var nd *NotDrainedError
		var hangs *stopTimeoutError
		switch {
		case err == nil:
		case errors.As(err, &hangs) && way == Forward:
			// A service that has been told to stop cannot be told otherwise.
			return &Failure{Kind: PartDone, Err: err, Now: r.stands(), Next: r.resume() + "   (waits again), or, on " + r.req.BackendName + ", systemctl kill --signal=KILL " + r.req.Service}
		case errors.As(err, &nd) && r.req.OnTimeout == TimeoutLeave:
			return &Failure{Kind: NotDrained, Err: err, Now: r.stands(), Next: r.resume() + "   (or " + r.command(Undrain) + ")"}
		case errors.As(err, &nd) && r.req.OnTimeout == TimeoutStop:
			late = err
			r.tell(Warned{"the time is up, the service is stopped all the same: what is still open is cut"})
		default:
			return r.rollBack(ctx, st, way, err)
		}
	}
	if late != nil {
		return &Failure{Kind: NotDrained, Err: late, Now: r.stands(), Next: r.command(Undrain)}
	}
	return nil
}

// either is a context that ends with a, or with b.
func either(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

// take takes one step one way, and tells how it went.
func (r *run) take(ctx context.Context, st step, w Way) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := r.note(ctx, Record{Kind: RecordStart, Step: st.name(), Way: w, Text: st.describe(w)}); err != nil {
		r.tell(StepFailed{Step: st.name(), Way: w, Err: err})
		return err
	}
	began := time.Now()
	changed, text, err := take(ctx, st, w)
	r.changed = r.changed || changed
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		r.tell(StepFailed{Step: st.name(), Way: w, Err: err})
		r.try(ctx, Record{Kind: RecordFail, Step: st.name(), Way: w, Changed: changed, Error: err.Error()})
		return err
	}
	r.done = append(r.done, st)
	r.try(ctx, Record{Kind: RecordDone, Step: st.name(), Way: w, Changed: changed, Text: text})
	r.tell(StepDone{Step: st.name(), Way: w, Changed: changed, Text: text, Elapsed: time.Since(began)})
	return nil
}

// rollBack takes back what was done, the failed step first, and says how it
// ended.
func (r *run) rollBack(ctx context.Context, failed step, w Way, why error) error {
	if r.changed {
		r.tell(RollingBack{why})
	}
	r.try(ctx, Record{Kind: RecordBack, Error: why.Error()})
	r.undoing = true
	undo := append(slices.Clone(r.done), failed)
	slices.Reverse(undo)
	for _, st := range undo {
		if ctx.Err() != nil {
			return r.partDone(why, context.Cause(ctx))
		}
		changed, text, err := take(ctx, st, w.opposite())
		if err != nil {
			if ctx.Err() != nil {
				// What it broke off says less than why.
				err = context.Cause(ctx)
			}
			r.tell(StepFailed{Step: st.name(), Way: w.opposite(), Err: err})
			r.try(ctx, Record{Kind: RecordFail, Step: st.name(), Way: w.opposite(), Error: err.Error()})
			return r.partDone(why, err)
		}
		if changed {
			r.try(ctx, Record{Kind: RecordDone, Step: st.name(), Way: w.opposite(), Changed: true, Text: text})
			r.tell(StepDone{Step: st.name(), Way: w.opposite(), Changed: true, Text: text})
		}
	}
	f := &Failure{Kind: Failed, Err: why, Now: "everything is as it was before"}
	var nd *NotDrainedError
	var refused *Failure
	switch {
	case errors.As(why, &refused) && !r.changed:
		return refused
	case errors.Is(why, ErrInterrupted):
		f.Kind = Interrupted
	case errors.As(why, &nd):
		f.Kind = NotDrained
	}
	return f
}

// partDone is a taking back that failed or was given up. What goes on from there is
// named first: to put everything back was what it was at.
func (r *run) partDone(why, undo error) error {
	f := &Failure{Kind: PartDone, Now: r.stands(), Next: r.resume()}
	if r.req.Operation == Drain {
		f.Next = r.command(Undrain) + "   (puts it back), or " + r.resume() + "   (goes on)"
	}
	switch {
	case errors.Is(undo, ErrInterrupted):
		f.Err = fmt.Errorf("%w; taking it back was interrupted too", why)
	default:
		f.Err = fmt.Errorf("%w; taking it back failed too: %w", why, undo)
	}
	return f
}

// stands says what is so now, as far as this run knows.
func (r *run) stands() string {
	var parts []string
	for _, c := range r.close.lbs {
		state := "as it was before"
		switch {
		case len(c.written) > 0 && r.req.Operation == Drain:
			state = "marked down"
		case len(c.written) > 0:
			state = "not marked down any more"
		}
		switch {
		case len(c.written) > 0 && !c.sent:
			state += ", but nginx was not reloaded"
		case len(c.written) == 0 && c.sent:
			state += ", but nginx was not seen to load it again"
		}
		parts = append(parts, fmt.Sprintf("on %s, %s in the configuration: %s", c.lb.Host.Name(), serverNames(c.part), state))
	}
	if r.req.Service != "" {
		state := "not touched by this run"
		if r.stop.touched {
			state = "stopped or started by this run; see systemctl status " + r.req.Service
		}
		parts = append(parts, fmt.Sprintf("%s on %s: %s", r.req.Service, r.req.BackendName, state))
	}
	return strings.Join(parts, "; ")
}

// command is the command line of an operation on the same target. What else it
// needs, the journal knows.
func (r *run) command(op Operation) string {
	words := []string{"drainctl", string(op), r.req.Target.String()}
	return remote.Quote(append(words, r.req.Flags...)...)
}

// resume is the command line that goes on with this operation.
func (r *run) resume() string {
	return remote.Quote(append([]string{"drainctl", "resume", r.id}, r.req.ResumeFlags...)...)
}

// targets names the servers of the plan.
func (r *run) targets() string {
	var texts []string
	for i := range r.plan.LBs {
		texts = append(texts, serverNames(&r.plan.LBs[i]))
	}
	return strings.Join(texts, "; ")
}

// serverNames names every server of a part, such as "192.168.1.10:8080 in
// backend_servers".
func serverNames(part *LBPlan) string { return namesOf(part, part.Servers) }

func namesOf(part *LBPlan, servers []*nginx.Server) string {
	var texts []string
	for _, s := range servers {
		if len(texts) == maxNamed {
			texts = append(texts, fmt.Sprintf("and %d more", len(servers)-maxNamed))
			break
		}
		texts = append(texts, ServerName(part.Conf, s))
	}
	return strings.Join(texts, ", ")
}

// ServerName is a server and its upstream, for a person.
func ServerName(conf *nginx.Config, s *nginx.Server) string {
	return fmt.Sprintf("%s in %s", s.Address, conf.DisplayName(s.Upstream))
}
