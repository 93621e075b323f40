package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A backend is the host behind a target, in a run.
type backend struct {
	Backend
	host    remote.Host // nil when none is needed
	service remote.Service
	counter counter
	clients *remote.Counter // who is connected; nil where that cannot be known
	// active tells that the service was active when everything was checked. It
	// is then stopped without asking again, so that the stop follows the last
	// request closely; to stop what has ended since does no harm.
	active  bool
	touched bool // this run has stopped or started the service, or tried to
}

func (b *backend) close() {
	if b.counter != nil {
		b.counter.close()
	}
	if b.host != nil {
		_ = b.host.Close()
	}
}

// A counter counts the open connections of a backend.
type counter interface {
	count(context.Context) (remote.Count, error)
	close()
}

// ssCounter is ss on the backend. It counts by port and not by address: behind
// address translation the backend knows itself by another one.
type ssCounter struct{ *remote.Counter }

func (c ssCounter) count(ctx context.Context) (remote.Count, error) { return c.Counter.Count(ctx) }
func (c ssCounter) close()                                          { _ = c.Counter.Close() }

// lbCounter is what the LBs themselves see: ss there, towards the servers, or
// the page of a stub_status that they ask for.
type lbCounter struct {
	lbs       fleet
	statusURL string
}

func (c lbCounter) count(ctx context.Context) (remote.Count, error) {
	lbs := c.lbs
	if c.statusURL != "" {
		lbs = lbs[:1] // the page is the same from everywhere
	}
	all, err := gather(ctx, lbs, func(ctx context.Context, lb *LB) (balancer.Connections, error) {
		return lb.Connections(ctx, balancer.ConnectionsQuery{StatusURL: c.statusURL})
	})
	sum := remote.Count{}
	for _, n := range all {
		sum.Open += n.Open
	}
	return sum, err
}

func (lbCounter) close() {}

// statusCounter is the stub_status of the backend's own nginx, asked on the
// backend.
type statusCounter struct {
	host remote.Host
	url  string
}

func (c statusCounter) count(ctx context.Context) (remote.Count, error) {
	code, body, err := remote.Get(ctx, c.host, c.url)
	if err != nil {
		return remote.Count{}, err
	}
	if code != 200 {
		return remote.Count{}, fmt.Errorf("%s answered with status %d", c.url, code)
	}
	s, err := nginx.ParseStubStatus(body)
	if err != nil {
		return remote.Count{}, fmt.Errorf("%s: %w", c.url, err)
	}
	return remote.Count{Open: s.Open()}, nil
}

func (statusCounter) close() {}

// counterText says where the connections of a backend are counted.
func counterText(spec Spec, b Backend) string {
	switch {
	case spec.Counter == CounterStubStatus:
		return "stub_status at " + spec.StatusURL
	case spec.Counter == CounterLB, len(b.Sockets) > 0:
		return "ss on the load balancer"
	}
	return "ss on " + b.Name
}

func (o *Operation) newCounter(b *backend) counter {
	spec := o.plan.Spec
	switch {
	case spec.Counter == CounterStubStatus && spec.statusOnBackend():
		return statusCounter{b.host, spec.StatusURL}
	case spec.Counter == CounterStubStatus:
		return lbCounter{o.lbs, spec.StatusURL}
	case spec.Counter == CounterLB, len(b.Sockets) > 0:
		return lbCounter{lbs: o.lbs}
	}
	c := remote.NewCounter(b.host, b.Ports)
	if b.Address != "" {
		b.clients = c
	}
	return ssCounter{c}
}

// check tries everything that the run will need and that the plan has not tried.
// What is missing is one refusal that lists it all.
func (o *Operation) check(ctx context.Context) error {
	findings := slices.DeleteFunc(slices.Clone(o.plan.Findings), func(f Finding) bool { return f.Warning })
	for _, b := range o.plan.Backends {
		o.backends = append(o.backends, &backend{Backend: b})
	}
	for _, b := range o.backends {
		findings = append(findings, o.checkBackend(ctx, b)...)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(findings) > 0 {
		return refuse(findings...)
	}
	return nil
}

func missing(code string, err error) Finding { return Finding{Code: code, Text: err.Error()} }

// checkBackend logs in, looks whether the service and the right to stop and
// start it are there, and reads the counter once.
func (o *Operation) checkBackend(ctx context.Context, b *backend) (found []Finding) {
	spec := o.plan.Spec
	if spec.needsBackend() {
		var err error
		if b.host, err = o.options.Connect.Backend(ctx, b.Backend, o.lbName(), spec.SSH); err != nil {
			f := missing("ssh", err)
			if spec.Service == "" {
				f.Override = "--poll lb, which needs no SSH"
			}
			b.host = nil
			return []Finding{f}
		}
	}
	if spec.Service != "" {
		b.service = remote.Service{Host: b.host, Unit: spec.Service}
		state, err := b.service.State(ctx)
		if err != nil {
			found = append(found, missing("service", err))
		}
		b.active = err == nil && started(state)
		// Both ways are needed: the way back is part of the way.
		if err := b.service.SudoCheck(ctx); err != nil {
			found = append(found, missing("sudo", err))
		}
	}
	if b.host == nil && spec.Counter == CounterSS && len(b.Sockets) == 0 {
		return found
	}
	b.counter = o.newCounter(b)
	if spec.Kind != Drain {
		// The counter is for a rollback alone.
		return found
	}
	first, err := b.counter.count(ctx)
	if err != nil {
		return append(found, missing("counter", fmt.Errorf("count the open connections with %s: %w", counterText(spec, b.Backend), err)))
	}
	return append(found, o.checkReach(ctx, b, first)...)
}

// lbName is the one LB of the run, for a backend that is on it.
func (o *Operation) lbName() string {
	if o.lbs[0].Name == ThisMachine {
		return ""
	}
	return o.lbs[0].Name
}

// checkReach finds a counter that looks at the wrong place: nothing listens on
// the server's port on the backend, and yet the server answers. Its port is then
// forwarded, and ss on the backend would count 0 for ever.
func (o *Operation) checkReach(ctx context.Context, b *backend, first remote.Count) []Finding {
	if _, ok := b.counter.(ssCounter); !ok || first.Open > 0 || len(b.up) == 0 {
		return nil
	}
	listening, err := remote.Listening(ctx, b.host, b.up)
	if err != nil {
		return []Finding{missing("counter", fmt.Errorf("on %s: %w", b.host.Name(), err))}
	}
	i := slices.Index(listening, false)
	if i < 0 || errors.Join(o.lbs.each(ctx, func(ctx context.Context, lb *LB) error { return lb.Health(ctx, balancer.HealthCheck{}) })) != nil {
		return nil
	}
	return []Finding{{Code: "forwarded", Override: "--poll lb, or --ssh-host", Text: fmt.Sprintf(
		"%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)",
		strings.Join(o.plan.Spec.Targets, ", "), b.host.Name(), b.up[i])}}
}
