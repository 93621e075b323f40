package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Survey is all servers of the LBs of a spec, and what is odd about their nginx.
// Where this machine's was started with another configuration, it is that one's, and
// the spec that comes back says so.
func Survey(ctx context.Context, spec Spec, c Connector) ([]LBPlan, Spec, error) {
	lbs, err := AskAll(ctx, spec, c, func(ctx context.Context, lb *LB) (LBPlan, error) {
		return lb.Ask(ctx, balancer.Query{Preflight: true})
	})
	if err != nil {
		return nil, spec, beforeTouching(ctx, err)
	}
	for _, p := range lbs[0].Report.Problems {
		conf, found := strings.CutPrefix(p.Override, "--nginx-conf ")
		if found && len(spec.LBs) == 0 && !slices.Contains(spec.Given, "nginx-conf") {
			spec.Nginx.Conf, spec.Given = conf, append(slices.Clone(spec.Given), "nginx-conf")
			return Survey(ctx, spec, c)
		}
	}
	return lbs, spec, nil
}

// Units is the unit that listens on the port of an upstream's first server, by the
// upstream's name, where the login on that backend works and can see it.
func Units(ctx context.Context, spec Spec, lbs []LBPlan, c Connector) map[string]string {
	ctx, cancel := context.WithTimeoutCause(ctx, backendLimit, fmt.Errorf("no answer within %s", backendLimit))
	defer cancel()
	units, asked := map[string]string{}, map[string]bool{}
	var mu sync.Mutex
	var all errgroup.Group
	all.SetLimit(max(1, spec.Parallel))
	for _, lb := range lbs {
		for _, s := range lb.Report.Servers {
			a, err := nginx.ParseAddress(s.Address)
			if err != nil || OnLB(nginx.Target{Address: a}) || asked[s.Name] {
				continue
			}
			asked[s.Name] = true
			all.Go(func() error {
				host, err := c.Backend(ctx, Backend{Name: a.Host, Address: a.Host})
				if err != nil {
					return nil // it is only for a suggestion
				}
				defer host.Close()
				if unit, err := remote.UnitListening(ctx, host, a.Port); err == nil && unit != "" {
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
