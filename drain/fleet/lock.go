package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// LockName returns the name under which the backend of a target is locked.
func LockName(target string) string {
	t, err := nginx.ParseTarget(target)
	if err != nil {
		return strings.ToLower(target)
	}
	return balancer.BackendName(t)
}

// Lock takes the locks on every LB. The first LB by name is locked alone, so that two operators cannot
// each hold half of the locks. An operator who waits locks one LB after the other, so that two
// operators never wait for each other.
func (f Fleet) Lock(ctx context.Context, locks balancer.LockRequest, wait bool, emit func(event.Event)) error {
	on := func(ctx context.Context, lb *LB) error { return lb.lock(ctx, locks, wait, emit) }
	inOrder := Fleet(slices.SortedFunc(slices.Values(f), func(a, b *LB) int { return strings.Compare(a.Name, b.Name) }))
	for i, lb := range inOrder {
		if i > 0 && !wait {
			return inOrder[i:].Each(ctx, on)
		}
		if err := on(ctx, lb); err != nil {
			return err
		}
	}
	return nil
}

// lock takes the locks on the LB.
func (lb *LB) lock(ctx context.Context, locks balancer.LockRequest, wait bool, emit func(event.Event)) error {
	locks.Wait = 0
	err := lb.Balancer.Lock(ctx, locks)
	if balancer.CodeOf(err) == balancer.CodeLocked {
		var e *balancer.Error
		errors.As(err, &e)
		if !wait {
			var hosts []string
			for _, name := range locks.Backends {
				hosts = append(hosts, strings.TrimPrefix(name, "unix:"))
			}
			return spec.Refuse(spec.Finding{Code: string(e.Code), LB: lb.Name, Text: strings.Join(hosts, ", ") + " is locked by " + HolderText(e.Holder), Override: "--wait"})
		}
		emit(&event.LockAwaited{Header: event.Header{LB: lb.Name}, Holder: e.Holder})
		locks.Wait = -1
		err = lb.Balancer.Lock(ctx, locks)
	}
	switch code := balancer.CodeOf(err); {
	case err == nil:
		return nil
	case code == balancer.CodeConnection, ctx.Err() != nil:
		return err
	}
	return spec.Refuse(spec.Finding{Code: "lock", LB: lb.Name, Text: fmt.Sprintf("lock the target on %s: %v", lb.Name, err)})
}

// HolderText names the holder of a lock; nil is one that is not known.
func HolderText(h *journal.Holder) string {
	if h == nil {
		h = &journal.Holder{}
	}
	return h.String()
}
