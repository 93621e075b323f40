package drain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/drainctl/drainctl/remote"
)

// strangers looks for connections to the backend that are new since the
// servers were marked down, from an address that is none of the load
// balancers': somebody else still sends requests there.
type strangers struct {
	r       *run
	gauge   backendGauge
	known   []netip.Addr // the load balancers' own
	before  map[netip.AddrPort]bool
	named   map[netip.Addr]bool
	every   time.Duration
	last    time.Time
	arrived time.Time // the last connection, if one was seen at all
}

// newStrangers notes who is connected now. Only ss on the backend can tell;
// with any other gauge there is nothing to look for, and it is nil.
func (r *run) newStrangers(ctx context.Context) (*strangers, error) {
	g, ok := r.gauge.(backendGauge)
	if !ok || r.req.Local {
		return nil, nil
	}
	s := &strangers{r: r, gauge: g, named: map[netip.Addr]bool{}, before: map[netip.AddrPort]bool{}, every: r.req.Interval}
	for _, part := range r.plan.LBs {
		addrs, err := remote.Addresses(ctx, part.LB.Host)
		if err != nil {
			return nil, err
		}
		s.known = append(s.known, addrs...)
	}
	far, err := s.list(ctx)
	for _, f := range far {
		s.before[f] = true
	}
	if len(far) > 0 {
		// Who was there within the last minute may come again, even if the wait
		// for everybody else takes no time.
		s.arrived = time.Now()
		r.tell(Progress{StepEmpty, fmt.Sprintf("%s was connected within the last minute, besides the load balancer: whether it connects again is looked at for %s",
			far[0].Addr(), Span(s.quiet()))})
	}
	return s, err
}

// quiet is how long no stranger must have connected for the backend to count as left
// alone.
func (s *strangers) quiet() time.Duration { return quietIntervals * s.every }

func (s *strangers) list(ctx context.Context) ([]netip.AddrPort, error) {
	far, err := remote.Strangers(ctx, s.gauge.host, s.gauge.ports, s.known)
	return slices.DeleteFunc(far, func(f netip.AddrPort) bool {
		return f.Addr().IsLoopback() || slices.ContainsFunc(s.r.req.IgnorePeers, func(p netip.Prefix) bool { return p.Contains(f.Addr()) })
	}), err
}

// quietIntervals is how many intervals must pass without a new connection from
// a stranger before the backend counts as left alone.
const quietIntervals = 6

// look looks if it is time to, or if it must, and tells whether strangers have
// connected lately.
func (s *strangers) look(ctx context.Context, must bool) (arriving bool, err error) {
	if s == nil {
		return false, nil
	}
	if must || time.Since(s.last) >= s.every {
		s.last = time.Now()
		far, err := s.list(ctx)
		if err != nil {
			return false, err
		}
		for _, f := range far {
			if s.before[f] {
				continue
			}
			s.before[f] = true
			s.arrived = time.Now()
			if a := f.Addr(); !s.named[a] {
				s.named[a] = true
				s.r.tell(Warned{fmt.Sprintf("%s still opens connections: another load balancer? (--ignore-peer %s if it may)", a, a)})
			}
		}
	}
	return !s.arrived.IsZero() && time.Since(s.arrived) < s.quiet(), nil
}
