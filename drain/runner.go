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
}

func newRun(plan *Plan, tell func(Event)) *run {
	r := &run{req: plan.Request, plan: plan, tell: tell}
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
	way, list := r.way(), r.steps()
	if way == Back {
		slices.Reverse(list)
	}
	late := error(nil)
	for i, st := range list {
		r.tell(StepStarted{Step: st.name(), Way: way, Number: i + 1, Of: len(list), Text: st.describe(way)})
		err := r.take(soft, st, way)
		var nd *NotDrainedError
		switch {
		case err == nil:
		case errors.As(err, &nd) && r.req.OnTimeout == TimeoutLeave:
			return &Failure{Kind: NotDrained, Err: err, Now: r.stands(), Next: r.command(r.req.Operation)}
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
	began := time.Now()
	changed, text, err := take(ctx, st, w)
	r.changed = r.changed || changed
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		r.tell(StepFailed{Step: st.name(), Way: w, Err: err})
		return err
	}
	r.done = append(r.done, st)
	r.tell(StepDone{Step: st.name(), Way: w, Changed: changed, Text: text, Elapsed: time.Since(began)})
	return nil
}

// rollBack takes back what was done, the failed step first, and says how it
// ended.
func (r *run) rollBack(ctx context.Context, failed step, w Way, why error) error {
	if r.changed {
		r.tell(RollingBack{why})
	}
	r.undoing = true
	undo := append(slices.Clone(r.done), failed)
	slices.Reverse(undo)
	for _, st := range undo {
		if ctx.Err() != nil {
			return r.partDone(why, context.Cause(ctx))
		}
		changed, text, err := take(ctx, st, w.opposite())
		if err != nil {
			r.tell(StepFailed{Step: st.name(), Way: w.opposite(), Err: err})
			return r.partDone(why, err)
		}
		if changed {
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

func (r *run) partDone(why, undo error) error {
	return &Failure{
		Kind: PartDone,
		Err:  fmt.Errorf("%w; taking it back failed too: %w", why, undo),
		Now:  r.stands(),
		Next: r.command(Undrain) + "   (or " + r.command(Drain) + " to go on with the drain)",
	}
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

// command is the command line of an operation on the same target.
func (r *run) command(op Operation) string {
	words := []string{"drainctl", string(op), r.req.Target.String()}
	return remote.Quote(append(words, r.req.Flags...)...)
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
func serverNames(part *LBPlan) string {
	var texts []string
	for _, s := range part.Servers {
		if len(texts) == maxNamed {
			texts = append(texts, fmt.Sprintf("and %d more", len(part.Servers)-maxNamed))
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
