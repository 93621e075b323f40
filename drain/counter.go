package drain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// lbCounter is what the LBs themselves see: their sockets to the servers, or the page of a stub_status
// that they ask for.
type lbCounter struct {
	lbs       fleet.Fleet
	servers   func(*fleet.LB) []journal.Server // of the backend; an LB without any is not asked
	last      *sync.Map                        // the count of each LB
	statusURL string
}

// Count implements [backend.Counter].
func (c lbCounter) Count(ctx context.Context) (remote.Count, error) {
	return c.count(ctx, balancer.ConnectionsQuery{})
}

// CountHeld implements [backend.Holder].
func (c lbCounter) CountHeld(ctx context.Context) (remote.Count, error) {
	return c.count(ctx, balancer.ConnectionsQuery{Held: true})
}

// Await implements [backend.Awaiter]. It returns when the count of any LB is another one than at the last
// reading. It takes none of the turns of the LBs: it costs them nothing.
func (c lbCounter) Await(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var all sync.WaitGroup
	if c.statusURL == "" {
		for _, lb := range c.asked() {
			all.Go(func() {
				if c.changes(ctx, lb, limit) {
					cancel() // one LB is enough
				}
			})
		}
	}
	all.Wait()
	<-ctx.Done()
}

// changes waits until the count of an LB changes. It gives up on an LB that cannot be asked, or that
// answers at once because too many calls wait there.
func (c lbCounter) changes(ctx context.Context, lb *fleet.LB, limit time.Duration) bool {
	last, _ := c.last.Load(lb)
	known, _ := last.(int)
	for ctx.Err() == nil {
		began := time.Now()
		n, err := lb.Connections(ctx, balancer.ConnectionsQuery{Servers: c.servers(lb), Wait: limit, Known: known})
		if err == nil && n.Open != known {
			return true
		}
		if err != nil || time.Since(began) < minAwaited {
			return false
		}
	}
	return false
}

// minAwaited is how long a call takes, at least, that has waited.
const minAwaited = 5 * time.Second

// asked returns the LBs that have servers of the backend.
func (c lbCounter) asked() fleet.Fleet {
	return slices.DeleteFunc(slices.Clone(c.lbs), func(lb *fleet.LB) bool { return len(c.servers(lb)) == 0 })
}

func (c lbCounter) count(ctx context.Context, q balancer.ConnectionsQuery) (remote.Count, error) {
	if q.StatusURL = c.statusURL; q.StatusURL != "" { // the page is the same from everywhere
		return c.lbs[0].Connections(ctx, q)
	}
	lbs := c.asked()
	if len(lbs) == 0 {
		return remote.Count{}, errors.New("no load balancer has a server of the backend")
	}
	all, err := fleet.Gather(ctx, lbs, func(ctx context.Context, lb *fleet.LB) (remote.Count, error) {
		q := q
		q.Servers = c.servers(lb)
		n, err := lb.Connections(ctx, q)
		c.last.Store(lb, n.Open)
		return n, err
	})
	sum := remote.Count{}
	for i, n := range all {
		sum.Open, sum.Held = sum.Open+n.Open, append(sum.Held, n.Held...)
		for _, opener := range n.Openers {
			opener.LB = lbs[i].Name
			sum.Openers = append(sum.Openers, opener)
		}
	}
	return sum, err
}

// Close implements [backend.Counter].
func (lbCounter) Close() error { return nil }

// atLeast counts with both of two counters, and takes the higher count: a backend is drained when the
// LBs have no connection to it, and its own counter has none.
type atLeast struct {
	floor   lbCounter
	counter backend.Counter
}

// Count implements [backend.Counter].
func (c atLeast) Count(ctx context.Context) (remote.Count, error) {
	return c.higher(ctx, backend.Counter.Count)
}

// CountHeld implements [backend.Holder].
func (c atLeast) CountHeld(ctx context.Context) (remote.Count, error) {
	return c.higher(ctx, func(c backend.Counter, ctx context.Context) (remote.Count, error) {
		if h, ok := c.(backend.Holder); ok {
			return h.CountHeld(ctx)
		}
		return c.Count(ctx)
	})
}

func (c atLeast) higher(ctx context.Context, count func(backend.Counter, context.Context) (remote.Count, error)) (n remote.Count, err error) {
	var floor remote.Count
	var all errgroup.Group
	all.Go(func() (err error) { floor, err = count(c.floor, ctx); return err })
	all.Go(func() (err error) { n, err = count(c.counter, ctx); return err })
	if err = all.Wait(); floor.Open > n.Open {
		n = floor
	}
	n.Openers = floor.Openers
	return n, err
}

// Floor implements [backend.Floorer].
func (c atLeast) Floor(ctx context.Context) (remote.Count, error) { return c.floor.Count(ctx) }

// Await implements [backend.Awaiter].
func (c atLeast) Await(ctx context.Context, limit time.Duration) { c.floor.Await(ctx, limit) }

// Close implements [backend.Counter].
func (c atLeast) Close() error { return c.counter.Close() }

// floor returns what counts the LBs' own sockets to a backend.
func (o *Operation) floor(m *row) lbCounter {
	return lbCounter{lbs: o.lbs.With(m.plan), last: &sync.Map{}, servers: func(lb *fleet.LB) []journal.Server {
		return keysOf(o.whole.servers(lb, []*row{m})) // also those that were added since
	}}
}

// newCounter returns what counts the connections of a backend. What the LBs have is always counted.
func (o *Operation) newCounter(m *row) backend.Counter {
	set := m.plan.Settings
	url := m.plan.Fill(set.StatusURL)
	floor := o.floor(m)
	switch {
	case set.Counter == spec.CounterStubStatus && set.StatusOnBackend():
		return atLeast{floor, backend.StatusCounter{Host: m.Host, URL: url}}
	case set.Counter == spec.CounterStubStatus:
		return atLeast{floor, lbCounter{lbs: floor.lbs, statusURL: url}}
	case set.Counter == spec.CounterLB, len(m.plan.Sockets) > 0:
		return floor
	}
	m.Sockets = remote.NewCounter(m.Host, m.plan.Ports, set.IgnorePeers...)
	return atLeast{floor, m.Sockets}
}

// checkCounter makes the counter, reads it once and proves it.
func (o *Operation) checkCounter(ctx context.Context, m *row, c *checker, broken event.CheckName) {
	set := m.plan.Settings
	there := set.Counter == spec.CounterSS && len(m.plan.Sockets) == 0
	if broken == "" && m.Host == nil && there {
		return // an undrain that needs none
	}
	if !there && !(set.Counter == spec.CounterStubStatus && set.StatusOnBackend()) {
		broken = "" // it is asked elsewhere
	}
	if broken == "" && m.plan.Servers == 0 {
		broken = event.CheckServer
	}
	if broken == "" {
		m.Counter = o.newCounter(m)
	}
	if o.plan.Spec.Kind == spec.Undrain {
		return // the counter is for a rollback alone
	}
	c.try(broken, event.CheckCounter, func() (event.Seen, []spec.Finding) {
		first, err := m.Counter.Count(ctx)
		if err != nil {
			return event.Seen{}, missing("counter", fmt.Errorf("count the open connections with %s: %w", m.plan.CounterText(), err))
		}
		findings, refuses := o.proveCounter(ctx, m)
		return event.Seen{Counter: m.plan.CounterText(), Open: &first.Open, Refuses: refuses}, findings
	})
}

// proveCounter checks that the counter on the backend sees what the LBs send: each LB connects to the
// server, and the counter must have that connection. It has not where the port is forwarded, in a
// container, or where SSH leads to another host than nginx. If no server takes a connection, those that
// an LB still has must be seen; refuses tells that the app is down.
func (o *Operation) proveCounter(ctx context.Context, m *row) (findings []spec.Finding, refuses bool) {
	for range proofs {
		findings, refuses = o.tryCounter(ctx, m)
		if !slices.ContainsFunc(findings, func(f spec.Finding) bool { return f.Code == "forwarded" }) {
			break
		}
	}
	return findings, refuses
}

// proofs is how often a counter is tried before it is refused: an app may end a connection on which it
// receives nothing.
const proofs = 3

// tryCounter is one try of proveCounter.
func (o *Operation) tryCounter(ctx context.Context, m *row) (findings []spec.Finding, refuses bool) {
	if m.Sockets == nil && !o.stopsUnproved(m) {
		return nil, false
	}
	floor := o.floor(m)
	floor.servers = func(lb *fleet.LB) []journal.Server {
		return keysOf(slices.DeleteFunc(o.whole.servers(lb, []*row{m}), func(s balancer.Server) bool {
			return s.OnlyUDP && m.Sockets != nil // without a counter only the addresses matter
		}))
	}
	lbs := floor.asked()
	probes, err := fleet.Gather(ctx, lbs, func(ctx context.Context, lb *fleet.LB) ([]balancer.Probed, error) {
		return lb.Probe(ctx, balancer.ProbeRequest{Servers: floor.servers(lb)})
	})
	all := slices.Concat(probes...)
	var connected []balancer.Probed
	for i, lb := range lbs {
		mine := slices.DeleteFunc(probes[i], func(p balancer.Probed) bool { return p.Error != "" })
		if len(mine) > 0 {
			connected = append(connected, mine...)
			defer func() { _, _ = lb.Probe(ctx, balancer.ProbeRequest{Close: endsOf(mine)}) }()
		}
	}
	switch {
	case err != nil:
		return missing("counter", fmt.Errorf("connect to the backend: %w", err)), false
	case m.Sockets == nil:
		return proveHost(ctx, m, all), false
	case len(connected) == 0:
		findings = o.proveByOpen(ctx, m)
		i := slices.IndexFunc(all, func(p balancer.Probed) bool { return !p.Refused })
		if len(findings) == 0 && i >= 0 {
			findings = []spec.Finding{{Code: "unproved", Warning: true, Text: fmt.Sprintf(
				"whether %s counts the connections of the load balancer could not be tried: %s", m.Host.Name(), all[i].Error)}}
		}
		return findings, i < 0
	}
	seen, err := m.Sockets.Sees(ctx, nearOf(connected))
	if err != nil {
		return missing("counter", fmt.Errorf("find the connections of the load balancer: %w", err)), false
	}
	for _, p := range connected {
		if !slices.Contains(seen, p.Near) {
			return []spec.Finding{o.unseen(ctx, m, fmt.Sprintf("the load balancer connected from %s to %s", p.Near, p.Far))}, false
		}
	}
	return nil, false
}

// proveByOpen proves the counter by the connections that the LBs have open.
func (o *Operation) proveByOpen(ctx context.Context, m *row) []spec.Finding {
	floor, err := o.floor(m).CountHeld(ctx)
	if err != nil || floor.Open == 0 {
		return missing("counter", err)
	}
	var near []netip.AddrPort
	for _, h := range floor.Held[:min(len(floor.Held), maxProved)] {
		near = append(near, h.Far)
	}
	if len(near) == 0 { // sessions of UDP, or connections that the server has not taken
		return nil
	}
	seen, err := m.Sockets.Sees(ctx, near)
	if err != nil || len(seen) > 0 {
		return missing("counter", err)
	}
	return []spec.Finding{o.unseen(ctx, m, fmt.Sprintf("the load balancer has %s open to %s", backend.Number(floor.Open, "connection"), strings.Join(m.plan.Targets, ", ")))}
}

// maxProved is how many open connections prove a counter.
const maxProved = 64

// unseen is the refusal of a counter that does not see what an LB has. The counts are those of now: the
// connection of the proof is one of them.
func (o *Operation) unseen(ctx context.Context, m *row, has string) spec.Finding {
	counts := ""
	floor, err := o.floor(m).Count(ctx)
	if there, errThere := m.Sockets.Count(ctx); errors.Join(err, errThere) == nil {
		counts = fmt.Sprintf("; the load balancer counts %d open, %s %d", floor.Open, m.Host.Name(), there.Open)
	}
	return spec.Finding{Code: "forwarded", Override: "--poll lb or --ssh-host", Text: fmt.Sprintf(
		"%s, and %s does not see it%s: connections cannot be counted there (a forwarded port, address translation, a container, or another host?)", has, m.Host.Name(), counts)}
}

func endsOf(probes []balancer.Probed) (ends []balancer.Ends) {
	for _, p := range probes {
		ends = append(ends, p.Ends)
	}
	return ends
}

func nearOf(probes []balancer.Probed) (near []netip.AddrPort) {
	for _, p := range probes {
		near = append(near, p.Near)
	}
	return near
}
