package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A Claim keeps other operators from the same target, on every load balancer,
// for as long as an operation takes. It dies with its holder.
type Claim struct{ locks []remote.Lock }

// claimGrace is how long a claim is tried for at least: who only looks whether
// one is held, holds it for an instant.
const claimGrace = time.Second

// waitForEver is how long a claim is waited for with --wait.
const waitForEver = 365 * 24 * time.Hour

// TakeClaim claims the request's target. If another operation has it, the
// failure says whose, since when and why; with Wait, it is waited for.
func TakeClaim(ctx context.Context, req *Request, tell func(Event)) (*Claim, error) {
	c := &Claim{}
	for _, lb := range req.LBs {
		name := claimPath(req, req.Target)
		l, err := lb.Host.Lock(ctx, name, claimGrace)
		if errors.Is(err, remote.ErrLocked) {
			who := holder(ctx, lb, req)
			if !req.Wait {
				c.Release()
				return nil, refuse([]Finding{{Kind: Refused, Text: fmt.Sprintf("%s is being worked on: %s", req.Target.Host+req.Target.Unix, who), Override: "--wait"}})
			}
			tell(Warned{"waiting for another operation to end: " + who})
			l, err = lb.Host.Lock(ctx, name, waitForEver)
		}
		if err != nil {
			c.Release()
			if ctx.Err() != nil {
				return nil, &Failure{Kind: Interrupted, Err: context.Cause(ctx), Now: "nothing was touched"}
			}
			kind := Refused
			if errors.Is(err, remote.ErrConnection) {
				kind = Failed
			}
			return nil, &Failure{Kind: kind, Err: fmt.Errorf("claim the target on %s: %w", lb.Host.Name(), err), Now: "nothing was touched"}
		}
		c.locks = append(c.locks, l)
		c.sign(ctx, lb, req, name, tell)
	}
	return c, nil
}

// Release gives the claim back.
func (c *Claim) Release() {
	for _, l := range c.locks {
		_ = l.Unlock()
	}
	c.locks = nil
}

// claimPath is the lock of a target's host: its ports and upstreams are one
// backend, and one service.
func claimPath(req *Request, t nginx.Target) string {
	name := strings.ToLower(t.Host)
	if t.Unix != "" {
		name = "unix:" + t.Unix
	}
	return path.Join(req.StateDir, "claims", url.QueryEscape(name)+".lock")
}

// A claimant is the line that whoever takes a claim adds to its file: it is held
// before the operation is in the journal. Only the last line counts.
type claimant struct {
	Operation Operation `json:"operation"`
	Target    string    `json:"target"`
	User      string    `json:"user"`
	Host      string    `json:"host"`
	Reason    string    `json:"reason,omitempty"`
	Time      time.Time `json:"time"`
}

// sign says in the claim's file who holds it. A claim that could not be signed is
// a claim all the same.
func (c *Claim) sign(ctx context.Context, lb *LB, req *Request, name string, tell func(Event)) {
	line, err := json.Marshal(claimant{req.Operation, req.Target.String(), req.User, req.Host, req.Reason, time.Now()})
	if err == nil {
		err = lb.Host.Append(ctx, name, append(line, '\n'))
	}
	if err != nil && ctx.Err() == nil {
		tell(Warned{fmt.Sprintf("who works on the target could not be written down on %s: %v", lb.Host.Name(), err)})
	}
}

// holder says who works on the target, by what the claim's file and the journal
// say.
func holder(ctx context.Context, lb *LB, req *Request) string {
	name := claimPath(req, req.Target)
	text, err := lb.Host.ReadFile(ctx, name)
	if err != nil {
		return fmt.Sprintf("by whom is not known: %v", err)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var c claimant
	if json.Unmarshal(lines[len(lines)-1], &c) != nil {
		return "another drainctl, which has not said yet what it does"
	}
	by := Recorded{Began: c.Time, Begin: Begin{User: c.User, Host: c.Host, Reason: c.Reason}}
	told := fmt.Sprintf("%s %s by %s", c.Operation, c.Target, by.Who())
	all, _, err := lb.journal(req).read(ctx)
	if err != nil {
		return told
	}
	for _, o := range slices.Backward(all) {
		if t, err := nginx.ParseTarget(o.Target); err == nil && o.End == nil && !o.Began.Before(c.Time) && o.User == c.User && claimPath(req, t) == name {
			return told + fmt.Sprintf(" (operation %s)", o.ID)
		}
	}
	return told
}

// watchClaims ends the context when a claim is lost: the connection to a load
// balancer is gone, and another operator may begin.
func (r *run) watchClaims(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, l := range r.claims {
		go func() {
			select {
			case <-l.Lost():
				cancel(errors.New("the claim on the target was lost: the connection to the load balancer broke"))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}
