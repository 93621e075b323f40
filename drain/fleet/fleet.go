// Package fleet has the sessions with the load balancers of an operation: it connects to them, locks
// them, and reconciles the marks on all of them.
package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// An LB is one load balancer of an operation.
type LB struct {
	balancer.Balancer // nil before Open
	Name              string
	Loaded            bool // nginx was seen to serve what the files say

	connector Connector
	asked     string // the name that the operator typed; empty: this machine
	nginx     spec.Nginx
	slots     chan struct{} // bounds how many LBs are asked at once; nil: no bound

	mu      sync.Mutex
	history []json.RawMessage // not yet recorded
}

// A Fleet is the LBs of an operation.
type Fleet []*LB

// New returns the LBs of a spec. None of them is connected yet.
func New(sp spec.Spec, c Connector) (f Fleet) {
	names := sp.LBs
	if len(names) == 0 {
		names = []string{""}
	}
	slots := make(chan struct{}, max(1, sp.Parallel))
	for _, name := range names {
		f = append(f, &LB{Name: cmp.Or(name, ThisMachine), Loaded: true, connector: c, asked: name, slots: slots})
	}
	return f
}

// Open connects to the LB. n says how nginx is run there, also for connections that are made later.
func (lb *LB) Open(ctx context.Context, n spec.Nginx) (err error) {
	lb.nginx = n
	lb.Balancer, err = lb.connector.LB(ctx, lb.asked, n)
	return err
}

// Open connects to all LBs. It leaves out as many unreachable ones as the spec allows, and returns the
// others.
func (f Fleet) Open(ctx context.Context, sp spec.Spec, emit func(event.Event)) (reached Fleet, err error) {
	unreachable := make([]error, len(f))
	err = f.Each(ctx, func(ctx context.Context, lb *LB) error {
		err := lb.Open(ctx, sp.Nginx)
		if sp.SkipUnreachable > 0 && errors.Is(err, remote.ErrConnection) && ctx.Err() == nil {
			unreachable[slices.Index(f, lb)], err = err, nil
		}
		return err
	})
	if err != nil {
		return f, err
	}
	for i, lb := range f {
		if unreachable[i] == nil {
			reached = append(reached, lb)
		}
	}
	if len(f)-len(reached) > sp.SkipUnreachable || len(reached) == 0 {
		return f, errors.Join(unreachable...)
	}
	for i, lb := range f {
		if unreachable[i] != nil {
			emit(&event.LBSkipped{Header: event.Header{LB: lb.Name}, Error: unreachable[i].Error()})
		}
	}
	return reached, nil
}

// Each does something on every LB, a bounded number at a time, and waits for all of them. It joins the
// errors, each with its LB's name if there are several LBs; a single error keeps its type.
func (f Fleet) Each(ctx context.Context, do func(context.Context, *LB) error) error {
	errs := make([]error, len(f))
	var all sync.WaitGroup
	for i, lb := range f {
		all.Go(func() {
			if lb.slots != nil {
				lb.slots <- struct{}{}
				defer func() { <-lb.slots }()
			}
			if err := do(ctx, lb); err != nil {
				errs[i] = f.on(lb, err)
			}
		})
	}
	all.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// on adds the LB's name to an error, unless there is only one LB.
func (f Fleet) on(lb *LB, err error) error {
	if len(f) == 1 {
		return err
	}
	return fmt.Errorf("on %s: %w", lb.Name, err)
}

// Gather asks every LB and returns the answers in the order of the fleet.
func Gather[T any](ctx context.Context, f Fleet, ask func(context.Context, *LB) (T, error)) ([]T, error) {
	answers := make([]T, len(f))
	err := f.Each(ctx, func(ctx context.Context, lb *LB) (err error) {
		answers[slices.Index(f, lb)], err = ask(ctx, lb)
		return err
	})
	return answers, err
}

// AskAll connects to every LB of a spec, asks it something that changes nothing, and closes the
// connections.
func AskAll[T any](ctx context.Context, sp spec.Spec, c Connector, ask func(context.Context, *LB) (T, error)) ([]T, error) {
	f := New(sp, c)
	defer f.Close()
	return Gather(ctx, f, func(ctx context.Context, lb *LB) (none T, err error) {
		if err := lb.Open(ctx, sp.Nginx); err != nil {
			return none, err
		}
		return ask(ctx, lb)
	})
}

// Ask asks the LB for its part of a plan.
func (lb *LB) Ask(ctx context.Context, q balancer.Query) (plan.LBPlan, error) {
	r, err := lb.Plan(ctx, q)
	return plan.LBPlan{LB: lb.Name, Report: r}, err
}

// With returns the LBs that send requests to a backend.
func (f Fleet) With(b plan.Backend) Fleet {
	if b.LB == "" {
		return f
	}
	return slices.DeleteFunc(slices.Clone(f), func(lb *LB) bool { return lb.Name != b.LB })
}

// Close closes all connections.
func (f Fleet) Close() {
	for _, lb := range f {
		if lb.Balancer != nil {
			_ = lb.Balancer.Close()
		}
	}
}

// UntilBroken returns a context that ends when the connection to an LB breaks: its locks are gone, and
// another operation may begin there.
func (f Fleet) UntilBroken(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, lb := range f {
		done := lb.Done()
		go func() {
			select {
			case <-done:
				cancel(fmt.Errorf("the lock on the target was lost: the connection to the load balancer %s broke", lb.Name))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// IsBroken reports whether the connection to an LB is broken.
func (f Fleet) IsBroken() bool {
	return slices.ContainsFunc(f, (*LB).IsBroken)
}

// IsBroken reports whether the connection to the LB is broken.
func (lb *LB) IsBroken() bool {
	select {
	case <-lb.Done():
		return true
	default:
		return false
	}
}

// Reconnect makes a connection that broke anew. The new one takes the locks, and takes over the
// operation.
func (lb *LB) Reconnect(ctx context.Context, locks balancer.LockRequest) error {
	if !lb.IsBroken() {
		return nil
	}
	_ = lb.Balancer.Close()
	b, err := lb.connector.LB(ctx, lb.asked, lb.nginx)
	if err == nil {
		if err = adopt(ctx, b, locks); err != nil {
			_ = b.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("the connection to the load balancer %s broke, and could not be made again: %w", lb.Name, err)
	}
	lb.Balancer = b
	return nil
}

// adopt has a new connection take the locks, and the operation that holds them. It fails if another
// operator has ended the operation meanwhile, or has drained one of its servers.
func adopt(ctx context.Context, b balancer.Balancer, locks balancer.LockRequest) error {
	id := locks.Holder.ID
	locks.Wait = 0
	err := b.Lock(ctx, locks)
	var e *balancer.Error
	if errors.As(err, &e) && e.Code == balancer.CodeLocked && e.Holder != nil && e.Holder.ID == id {
		// The agent of the connection that broke has not noticed yet.
		locks.Wait = 2 * balancer.Lease
		err = b.Lock(ctx, locks)
	}
	if err != nil {
		return err
	}
	s, err := b.State(ctx)
	if err != nil {
		return err
	}
	op, ok := s.Find(id)
	if !ok || op.Result != "" {
		return fmt.Errorf("another operator has ended operation %s meanwhile", id)
	}
	if since := s.DrainsSince(id); len(since) > 0 {
		return fmt.Errorf("another operator has drained %s meanwhile", journal.OneLine(strings.Join(since[0].Targets, ", ")))
	}
	return b.Begin(ctx, balancer.Beginning{Operation: op, Resume: true})
}

// Keep keeps a line for the history of an LB, or of all LBs if lb is empty. The first line of an
// operation goes before the others.
func (f Fleet) Keep(lb string, line []byte, first bool) {
	for _, l := range f {
		if lb == "" || lb == l.Name {
			l.mu.Lock()
			at := len(l.history)
			if first {
				at = 0
			}
			l.history = slices.Insert(l.history, at, line)
			l.mu.Unlock()
		}
	}
}

// TakeHistory returns the lines that the LB has not recorded yet, and forgets them.
func (lb *LB) TakeHistory() []json.RawMessage {
	lb.mu.Lock()
	defer lb.mu.Unlock()
	lines := lb.history
	lb.history = nil
	return lines
}

// maxUnrecorded bounds the bytes of the lines that stay after a failure: an agent takes no request of
// more than 2 MiB, and the next one has other lines as well.
const maxUnrecorded = 1 << 20

// RecordProgress writes the table, and the lines that the LB has not recorded yet. If it fails, the lines
// stay for the next time. A reader skips a line that was written all the same.
func (lb *LB) RecordProgress(ctx context.Context, progress json.RawMessage) error {
	lines := lb.TakeHistory()
	err := lb.Record(ctx, balancer.Recorded{Lines: lines, Progress: progress})
	if err != nil && len(slices.Concat(lines...)) < maxUnrecorded {
		lb.mu.Lock()
		defer lb.mu.Unlock()
		lb.history = append(lines, lb.history...)
	}
	return err
}
