package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Unfinished is the operations that were left half-way and that nothing has
// gone on from since, the oldest first.
func (l *Ledger) Unfinished() []*Recorded {
	var found []*Recorded
	for _, ops := range l.standing {
		ops = notRolledBack(ops)
		if len(ops) == 0 {
			continue
		}
		if last := ops[len(ops)-1]; last.Unfinished() && !slices.Contains(found, last) {
			found = append(found, last)
		}
	}
	slices.SortFunc(found, func(a, b *Recorded) int { return strings.Compare(a.ID, b.ID) })
	return found
}

// ReadJournal reads the journal of a load balancer.
func ReadJournal(ctx context.Context, lb *LB, stateDir string) (*Ledger, error) {
	l, err := journal{host: lb.Host, dir: stateDir}.readLedger(ctx)
	if err != nil {
		return nil, &Failure{Kind: Failed, Err: err, Now: "nothing was touched"}
	}
	return l, nil
}

// FindUnfinished is the one operation that name means: its ID, its target, or,
// when name is empty, the only one there is.
func FindUnfinished(l *Ledger, name string) (*Recorded, error) {
	all := l.Unfinished()
	var found []*Recorded
	for _, o := range all {
		if name == "" || o.ID == name || sameTarget(o.Target, name) {
			found = append(found, o)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, misused("%d operations were left half-way; name one by its ID: %s", len(found), describeAll(found))
	case name == "":
		return nil, misused("nothing was left half-way")
	}
	for _, o := range l.Operations {
		if o.ID == name {
			return nil, misused("operation %s was not left half-way, or another one has gone on from it: see drainctl history %s", name, name)
		}
	}
	if len(all) > 0 {
		return nil, misused("no operation %s was left half-way; there is %s", name, describeAll(all))
	}
	return nil, misused("no operation %s was left half-way", name)
}

// goesOn makes sure that the operation that a request resumes is still half-way:
// it may have been waited for, or somebody else may have resumed it.
func goesOn(req *Request, l *Ledger) error {
	if req.Continues == "" || l == nil {
		return nil
	}
	_, err := FindUnfinished(l, req.Continues)
	return err
}

func sameTarget(a, b string) bool {
	t, err := nginx.ParseTarget(a)
	u, err2 := nginx.ParseTarget(b)
	return err == nil && err2 == nil && t == u
}

func describeAll(ops []*Recorded) string {
	var texts []string
	for _, o := range ops {
		texts = append(texts, fmt.Sprintf("%s (%s %s by %s)", o.ID, o.Operation, o.Target, o.Who()))
	}
	return strings.Join(texts, ", ")
}

// Restore fills a request in with what an operation was asked for, so that it
// is gone on with. What is set in the request already (its load balancers, who
// asks, the SSH settings if given) stays.
func (o *Recorded) Restore(req *Request) error {
	t, err := nginx.ParseTarget(o.Target)
	if err != nil {
		return fmt.Errorf("operation %s: %w", o.ID, err)
	}
	s := o.Settings
	req.Operation, req.Target, req.Upstreams = o.Operation, t, o.Upstreams
	req.Reason, req.Continues = o.Reason, o.ID
	req.Service, req.Poll, req.StatusURL = s.Service, s.Poll, s.StatusURL
	req.Threshold, req.Interval, req.Timeout, req.OnTimeout = s.Threshold, s.Interval, s.Timeout, s.OnTimeout
	req.MinUp, req.Allow = s.MinUp, s.Allow
	req.Health, req.HealthTimeout = s.Health, s.HealthFor
	req.IgnorePeers = s.IgnorePeers
	if s.StopTimeout > 0 {
		req.StopTimeout = s.StopTimeout
	}
	for _, lb := range req.LBs {
		o.useNginx(lb)
	}
	req.Reach()
	if !req.SSHGiven {
		req.useSSH(s)
	}
	return nil
}

// claimed tells whether somebody works on the target now.
func claimed(ctx context.Context, lb *LB, req *Request, target string) (bool, error) {
	t, err := nginx.ParseTarget(target)
	if err != nil {
		return false, err
	}
	l, err := lb.Host.Lock(ctx, claimPath(req, t), 0)
	if errors.Is(err, remote.ErrLocked) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, l.Unlock()
}
