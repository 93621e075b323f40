package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/drainctl/drainctl/drain/balancer"
)

// An LB is one load balancer of a run.
type LB struct {
	balancer.Balancer
	Name string
	// connect makes the connection anew, for a rollback after it broke.
	connect func(context.Context) (balancer.Balancer, error)
	// slots bounds how many LBs of the fleet are asked at once; nil: no bound.
	slots chan struct{}

	mu      sync.Mutex
	history balancer.Lines // not yet recorded
	loaded  bool           // nginx was seen to serve what the files say
}

// A fleet is the LBs of a run.
type fleet []*LB

// each does something on every LB, a bounded number at a time, and waits for all
// of them. The errors are joined, each with its LB's name where there are
// several; a single one keeps its type.
func (f fleet) each(ctx context.Context, do func(context.Context, *LB) error) error {
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

// on says where err happened, unless there is only one place.
func (f fleet) on(lb *LB, err error) error {
	if len(f) == 1 {
		return err
	}
	return fmt.Errorf("on %s: %w", lb.Name, err)
}

// gather asks every LB and keeps the answers in the order of the fleet.
func gather[T any](ctx context.Context, f fleet, ask func(context.Context, *LB) (T, error)) ([]T, error) {
	answers := make([]T, len(f))
	err := f.each(ctx, func(ctx context.Context, lb *LB) (err error) {
		answers[slices.Index(f, lb)], err = ask(ctx, lb)
		return err
	})
	return answers, err
}

// close ends all connections.
func (f fleet) close() {
	for _, lb := range f {
		if lb.Balancer != nil {
			_ = lb.Balancer.Close()
		}
	}
}

// watch ends the context when an LB can no longer be asked: its locks are gone,
// and another operation may begin there.
func (f fleet) watch(ctx context.Context) (context.Context, context.CancelFunc) {
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

// broken tells whether an LB can no longer be asked over the connection that there
// is.
func (f fleet) broken() bool {
	return slices.ContainsFunc(f, (*LB).isBroken)
}

// isBroken tells whether the LB can no longer be asked over the connection that there is.
func (lb *LB) isBroken() bool {
	select {
	case <-lb.Done():
		return true
	default:
		return false
	}
}

// reconnect makes connections that broke anew.
func (o *Operation) reconnect(ctx context.Context) error { return o.lbs.each(ctx, o.usable) }

// usable makes sure that an LB can be asked, after its connection may have
// broken. A new one takes the locks and the operation on.
func (o *Operation) usable(ctx context.Context, lb *LB) error {
	if !lb.isBroken() {
		return nil
	}
	_ = lb.Balancer.Close()
	b, err := lb.connect(ctx)
	if err == nil {
		if err = o.takeOn(ctx, b, lb); err != nil {
			_ = b.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("the connection to the load balancer %s broke, and could not be made again: %w", lb.Name, err)
	}
	lb.Balancer = b
	return nil
}

// takeOn has a new connection take the locks, and the operation if it still
// stands: another operator may have ended it meanwhile.
func (o *Operation) takeOn(ctx context.Context, b balancer.Balancer, lb *LB) error {
	err := b.Lock(ctx, o.lockRequest(0))
	var e *balancer.Error
	if errors.As(err, &e) && e.Code == balancer.CodeLocked && e.Holder != nil && e.Holder.ID == o.id {
		// The agent of the connection that broke has not noticed yet.
		err = b.Lock(ctx, o.lockRequest(2*balancer.Lease))
	}
	if err != nil {
		return err
	}
	s, err := b.State(ctx)
	if err != nil {
		return err
	}
	op, ok := s.Find(o.id)
	if !ok || op.Result != "" {
		return fmt.Errorf("another operator has ended operation %s meanwhile", o.id)
	}
	return b.Begin(ctx, balancer.Beginning{Operation: op, Resume: true})
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
