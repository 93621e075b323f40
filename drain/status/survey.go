package status

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Survey is all servers of the LBs of a spec, and what is odd about their nginx.
// Where this machine's was started with another configuration, it is that one's, and
// the spec that comes back says so.
func Survey(ctx context.Context, sp spec.Spec, c fleet.Connector) ([]plan.LBPlan, spec.Spec, error) {
	lbs, err := fleet.AskAll(ctx, sp, c, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
		return lb.Ask(ctx, balancer.Query{Preflight: true})
	})
	if err != nil {
		return nil, sp, spec.BeforeTouching(ctx, err)
	}
	for _, p := range lbs[0].Report.Problems {
		conf, found := strings.CutPrefix(p.Override, "--nginx-conf ")
		if found && len(sp.LBs) == 0 && !slices.Contains(sp.Given, "nginx-conf") {
			sp.Nginx.Conf, sp.Given = conf, append(slices.Clone(sp.Given), "nginx-conf")
			return Survey(ctx, sp, c)
		}
	}
	return lbs, sp, nil
}

// Units is the unit that listens on the port of an upstream's first server, by the
// upstream's name, where the login on that backend works and can see it.
func Units(ctx context.Context, sp spec.Spec, lbs []plan.LBPlan, c fleet.Connector) map[string]string {
	ctx, cancel := context.WithTimeoutCause(ctx, backendLimit, fmt.Errorf("no answer within %s", backendLimit))
	defer cancel()
	units, asked := map[string]string{}, map[string]bool{}
	var mu sync.Mutex
	var all errgroup.Group
	all.SetLimit(max(1, sp.Parallel))
	for _, lb := range lbs {
		for _, s := range lb.Report.Servers {
			a, err := nginx.ParseAddress(s.Address)
			if err != nil || spec.OnLB(nginx.Target{Address: a}) || asked[s.Name] {
				continue
			}
			asked[s.Name] = true
			all.Go(func() error {
				host, err := c.Backend(ctx, plan.Backend{Name: a.Host, Address: a.Host})
				if err != nil {
					return nil // it is only for a suggestion
				}
				defer host.Close()
				if unit, _, err := remote.UnitListening(ctx, host, a.Port); err == nil && unit != "" {
					mu.Lock()
					defer mu.Unlock()
					units[s.Name] = unit
				}
				return nil
			})
		}
	}
	_ = all.Wait()
	return units
}
