package drain

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A loginPool has the LBs answer to what a plan needs no sooner than drainctl logs in to a backend.
type loginPool struct {
	*pool
	once     sync.Once
	loggedIn chan struct{}
}

func newLoginPool(t *testing.T) *loginPool {
	return &loginPool{pool: newPool(t, 2), loggedIn: make(chan struct{})}
}

func (p *loginPool) LB(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	lb, err := p.pool.LB(ctx, name, n)
	return loginLB{lb, p}, err
}

func (p *loginPool) Backend(ctx context.Context, b plan.Backend) (remote.Host, error) {
	defer p.once.Do(func() { close(p.loggedIn) })
	return p.pool.Backend(ctx, b)
}

const mistyped = "192.168.1.99"

type loginLB struct {
	balancer.Balancer
	p *loginPool
}

func (lb loginLB) Plan(ctx context.Context, q balancer.Query) (*balancer.Report, error) {
	if q.Preflight {
		select {
		case <-lb.p.loggedIn:
		case <-time.After(patience):
			lb.p.t.Error("drainctl logs in to no backend before the LBs have planned")
		}
	}
	r, err := lb.Balancer.Plan(ctx, q)
	if slices.Contains(q.Targets, mistyped) {
		r.Missing = []balancer.Missing{{Target: mistyped, Error: &balancer.Error{Code: balancer.CodeRefused, Message: "no server " + mistyped}}}
	}
	return r, err
}

// logins are the logins to backends, in the order of the calls, and the last lock before them.
func (p *loginPool) loginsAndLocks() (logins []string, lastLock int) {
	lastLock = -1
	for i, call := range p.seen {
		switch {
		case strings.HasSuffix(call, " lock"):
			lastLock = i
		case strings.HasPrefix(call, "192.") && strings.HasSuffix(call, " connect"):
			logins = append(logins, call)
		}
	}
	return logins, lastLock
}

// drainctl logs in to each backend once, while the LBs plan, and with the locks held.
func TestLoginsBeginWhileTheLBsPlan(t *testing.T) {
	p := newLoginPool(t)
	sp := p.spec(spec.Drain)
	sp.Targets, sp.MinUp = sp.Targets[:2], 1
	out := p.run(sp, func(o *Options) { o.Connect = p })
	if out.err != nil {
		t.Fatal(out.err)
	}
	logins, lock := p.loginsAndLocks()
	slices.Sort(logins)
	if want := []string{"192.168.1.10 connect", "192.168.1.11 connect"}; !slices.Equal(logins, want) {
		t.Errorf("logins %q, want %q", logins, want)
	}
	if first := slices.IndexFunc(p.seen, func(call string) bool { return slices.Contains(logins, call) }); lock < 0 || first < lock {
		t.Errorf("a login before the locks: %q", p.seen)
	}
}

// A target that no LB has, and one that another operator has locked, are not logged in to.
func TestNoLoginToWhatIsNotDrained(t *testing.T) {
	for _, c := range []struct {
		name, target, says string
	}{
		{"mistyped", mistyped, "no server"},
		{"locked", "192.168.1.10", "locked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newLoginPool(t)
			other := p.lbs[1].lockedByOther(p.apps[0])
			defer other.Close()
			sp := p.spec(spec.Drain)
			sp.Targets = []string{c.target}
			out := p.run(sp, func(o *Options) { o.Connect = p })
			if out.err == nil || !strings.Contains(out.err.Error(), c.says) {
				t.Errorf("it ends with %v", out.err)
			}
			if logins, _ := p.loginsAndLocks(); len(logins) > 0 {
				t.Errorf("logins %q", logins)
			}
		})
	}
}
