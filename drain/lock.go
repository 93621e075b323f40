package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// lockRequest asks for the locks of the plan's backends.
func (o *Operation) lockRequest(wait time.Duration) balancer.LockRequest {
	spec := o.plan.Spec
	r := balancer.LockRequest{Wait: wait, Holder: journal.Holder{
		ID: o.id, Kind: string(spec.Kind), Targets: spec.Targets, User: spec.User, Host: spec.Host, Reason: spec.Reason, Time: o.began,
	}}
	for _, text := range spec.Targets {
		if name := lockName(text); !slices.Contains(r.Backends, name) {
			r.Backends = append(r.Backends, name)
		}
	}
	return r
}

// lockName is what a target's backend is locked by.
func lockName(target string) string {
	t, err := nginx.ParseTarget(target)
	if err != nil {
		return strings.ToLower(target)
	}
	return balancer.BackendName(t)
}

// lock takes the locks on every LB. Whoever has that on the first one goes on to the
// others: of two operators with the same LBs, one gets all of them. Who waits takes
// one after the other, so that two operators never wait for each other.
func (o *Operation) lock(ctx context.Context) error {
	inOrder := fleet(slices.SortedFunc(slices.Values(o.lbs), func(a, b *LB) int { return strings.Compare(a.Name, b.Name) }))
	for i, lb := range inOrder {
		if i > 0 && !o.asked.Wait {
			return inOrder[i:].each(ctx, o.lockOn)
		}
		if err := o.lockOn(ctx, lb); err != nil {
			return err
		}
	}
	return nil
}

// lockOn takes the locks on one LB.
func (o *Operation) lockOn(ctx context.Context, lb *LB) error {
	err := lb.Lock(ctx, o.lockRequest(0))
	if balancer.CodeOf(err) == balancer.CodeLocked {
		var e *balancer.Error
		errors.As(err, &e)
		if !o.asked.Wait {
			return refuse(Finding{Code: string(e.Code), LB: lb.Name, Text: strings.Join(lockedBackends(o.asked), ", ") + " is locked by " + HolderText(e.Holder), Override: "--wait"})
		}
		o.emit(&LockAwaited{Header: Header{LB: lb.Name}, Holder: e.Holder})
		err = lb.Lock(ctx, o.lockRequest(-1))
	}
	switch code := balancer.CodeOf(err); {
	case err == nil:
		return nil
	case code == balancer.CodeConnection, ctx.Err() != nil:
		return err
	}
	return refuse(Finding{Code: "lock", LB: lb.Name, Text: fmt.Sprintf("lock the target on %s: %v", lb.Name, err)})
}

func lockedBackends(s Spec) []string {
	var hosts []string
	for _, t := range s.Targets {
		hosts = append(hosts, strings.TrimPrefix(lockName(t), "unix:"))
	}
	return hosts
}

// HolderText is who holds a lock, for a message.
func HolderText(h *journal.Holder) string {
	if h == nil {
		h = &journal.Holder{}
	}
	return h.String()
}
