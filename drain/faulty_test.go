package drain

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// errFault is what a failed operation says, errGone what every operation says
// once the process is gone.
var (
	errFault = errors.New("fault brought about by the test")
	errGone  = errors.New("the process is gone")
)

// A fault is what happens to the n-th operation of a run.
type fault string

const (
	faultNone   fault = "none"
	faultFail   fault = "fails"
	faultHang   fault = "hangs"
	faultBefore fault = "process gone before"
	faultAfter  fault = "process gone after"
	// Of an agent only: drainctl goes on.
	faultCut    fault = "connection cut before"
	faultKilled fault = "agent killed before"
	faultLost   fault = "agent killed after"
)

// A faulty connector counts the operations of a run and has one of them go
// wrong. Operations are the effects on the LB, the calls of its Balancer, and
// the commands on the backend.
type faulty struct {
	t     *testing.T
	rig   *rig
	agent bool // the LB is reached through an agent, which is another process
	kind  fault
	at    int    // the operation that goes wrong, from 1
	match string // or the first whose name has this in it

	told      told
	interrupt func() // Ctrl-C
	gone      func() // the end of the process

	mu    sync.Mutex
	count int
	dead  bool   // the process of drainctl
	what  string // the operation that went wrong
	links []*link
}

// A link is one connection to the LB: to a process of its own if it is an agent.
type link struct {
	f     *faulty
	cut   func()
	ended chan struct{} // when the agent has ended; nil without one

	mu   sync.Mutex
	dead bool            // killed
	ctx  context.Context // of the call that has effects now
}

// next counts an operation of the process of l, which is drainctl itself if it is
// nil, and tells whether it is the one that goes wrong.
func (f *faulty) next(l *link, what string) (hit bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l != nil && l.isDead() || f.dead && (l == nil || !f.agent) {
		return false, errGone
	}
	f.count++
	hit = f.count == f.at || f.match != "" && f.what == "" && strings.Contains(what, f.match)
	if hit {
		f.what = what
	}
	return hit, nil
}

// do runs one operation, or has it go wrong.
func (f *faulty) do(ctx context.Context, l *link, what string, op func() error) error {
	hit, err := f.next(l, what)
	if err != nil {
		return err
	}
	if !hit {
		return op()
	}
	inAgent := f.agent && l != nil
	switch f.kind {
	case faultFail:
		return errFault
	case faultHang:
		f.interrupt() // An operator who sees it hang types Ctrl-C.
		<-ctx.Done()
		return context.Cause(ctx)
	case faultBefore:
		f.die()
		if !inAgent {
			return errGone
		}
		f.noticed(ctx)
		return op()
	case faultAfter:
		err := op()
		f.die()
		if !inAgent {
			return errGone
		}
		return err
	case faultCut:
		f.cut(false)
		if inAgent {
			f.noticed(ctx)
		}
		return op()
	case faultKilled:
		f.cut(true)
		if inAgent {
			return errGone
		}
		return op()
	case faultLost:
		err := op()
		f.cut(true)
		return err
	}
	return op()
}

// noticed waits until an agent has noticed that nobody asks any more.
func (f *faulty) noticed(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		f.t.Error("the agent has not noticed that the connection is gone")
	}
}

// die is the end of drainctl's process: its connections are gone, and nothing of
// it works any more.
func (f *faulty) die() {
	f.mu.Lock()
	f.dead = true
	f.mu.Unlock()
	f.cut(false)
	f.gone()
}

// cut ends the connections that there are, and, if kill, the agents.
func (f *faulty) cut(kill bool) {
	f.mu.Lock()
	links := f.links
	f.mu.Unlock()
	for _, l := range links {
		if kill {
			l.mu.Lock()
			l.dead = true
			l.mu.Unlock()
		}
		l.cut()
	}
}

func (l *link) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// around is an effect on the LB. What the call under way was given ends with the
// call: so does what hangs.
func (l *link) around(what string, do func() error) error {
	l.mu.Lock()
	ctx := l.ctx
	l.mu.Unlock()
	return l.f.do(ctx, l, what, do)
}

// LB implements [Connector].
func (f *faulty) LB(ctx context.Context, _ string, n spec.Nginx) (b balancer.Balancer, err error) {
	err = f.do(ctx, nil, "connect", func() error {
		o, err := n.Options()
		if err != nil {
			return err
		}
		l := &link{f: f, cut: func() {}}
		o.Around = l.around
		b = &faultyLB{Balancer: balancer.NewLocal(o), f: f, link: l}
		if f.agent {
			b, err = f.serve(ctx, l, b)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.links = append(f.links, l)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// serve has an agent serve local, and is its client.
func (f *faulty) serve(ctx context.Context, l *link, local balancer.Balancer) (balancer.Balancer, error) {
	near, far := net.Pipe()
	l.ended = make(chan struct{})
	l.cut = func() { near.Close() }
	go func() {
		defer close(l.ended)
		_ = balancer.Serve(context.Background(), far, far, local, "test")
	}()
	client, err := balancer.Connect(ctx, "lb", "test", near)
	return &faultyLB{Balancer: client, f: f}, err
}

// end makes sure that every agent ends, and with it its locks.
func (f *faulty) end() {
	f.t.Helper()
	for _, l := range f.links {
		if l.ended == nil {
			continue
		}
		select {
		case <-l.ended:
		case <-time.After(patience):
			f.t.Fatalf("operation %d (%s) %s: the agent has not ended", f.at, f.what, f.kind)
		}
	}
}

// Backend implements [Connector].
func (f *faulty) Backend(ctx context.Context, b plan.Backend) (h remote.Host, err error) {
	if b.Address != "" {
		f.t.Errorf("SSH to %q for a target on loopback", b.Address)
	}
	err = f.do(ctx, nil, "connect to the backend", func() error {
		h = &faultyHost{systemdHost{remote.Local(nil), f.rig.unit}, f}
		return nil
	})
	return h, err
}

// A faultyHost has the commands on a backend go wrong.
type faultyHost struct {
	systemdHost
	f *faulty
}

func (h *faultyHost) Run(ctx context.Context, c remote.Command) (r remote.Result, err error) {
	err = h.f.do(ctx, nil, "run "+strings.Join(c.Args[:min(2, len(c.Args))], " "), func() error {
		r, err = h.systemdHost.Run(ctx, c)
		return err
	})
	return r, err
}

func (h *faultyHost) Start(ctx context.Context, c remote.Command) (s *remote.Stream, err error) {
	err = h.f.do(ctx, nil, "start "+strings.Join(c.Args, " "), func() error {
		s, err = h.systemdHost.Start(ctx, c)
		return err
	})
	return s, err
}

// A faultyLB has the calls of a Balancer go wrong; an agent's own end of it
// (with a link) only notes whose context an effect is under.
type faultyLB struct {
	balancer.Balancer
	f    *faulty
	link *link
}

func (b *faultyLB) call(ctx context.Context, name string, op func() error) error {
	if b.link != nil {
		b.link.mu.Lock()
		b.link.ctx = ctx
		b.link.mu.Unlock()
		if b.f.agent {
			return op()
		}
	}
	return b.f.do(ctx, nil, name, op)
}

// ask makes a call that gives a value.
func ask[R any](ctx context.Context, b *faultyLB, name string, op func() (R, error)) (r R, err error) {
	err = b.call(ctx, "call "+name, func() error { r, err = op(); return err })
	return r, err
}

func (b *faultyLB) Plan(ctx context.Context, q balancer.Query) (*balancer.Report, error) {
	return ask(ctx, b, "plan", func() (*balancer.Report, error) { return b.Balancer.Plan(ctx, q) })
}

func (b *faultyLB) Lock(ctx context.Context, r balancer.LockRequest) error {
	return b.call(ctx, "call lock", func() error { return b.Balancer.Lock(ctx, r) })
}

func (b *faultyLB) Begin(ctx context.Context, r balancer.Beginning) error {
	return b.call(ctx, "call begin", func() error { return b.Balancer.Begin(ctx, r) })
}

func (b *faultyLB) Stage(ctx context.Context, r balancer.StageRequest) (balancer.Staged, error) {
	return ask(ctx, b, "stage "+string(r.Wants[0].Want), func() (balancer.Staged, error) { return b.Balancer.Stage(ctx, r) })
}

func (b *faultyLB) Load(ctx context.Context, r balancer.LoadRequest) (balancer.Loaded, error) {
	return ask(ctx, b, "load", func() (balancer.Loaded, error) { return b.Balancer.Load(ctx, r) })
}

func (b *faultyLB) Watch(ctx context.Context, w balancer.WatchRequest) (balancer.Watched, error) {
	return ask(ctx, b, "watch", func() (balancer.Watched, error) { return b.Balancer.Watch(ctx, w) })
}

func (b *faultyLB) Connections(ctx context.Context, q balancer.ConnectionsQuery) (remote.Count, error) {
	return ask(ctx, b, "connections", func() (remote.Count, error) { return b.Balancer.Connections(ctx, q) })
}

func (b *faultyLB) Probe(ctx context.Context, r balancer.ProbeRequest) ([]balancer.Probed, error) {
	return ask(ctx, b, "probe", func() ([]balancer.Probed, error) { return b.Balancer.Probe(ctx, r) })
}

func (b *faultyLB) Health(ctx context.Context, h balancer.HealthCheck) error {
	return b.call(ctx, "call health", func() error { return b.Balancer.Health(ctx, h) })
}

func (b *faultyLB) Record(ctx context.Context, r balancer.Recorded) error {
	return b.call(ctx, "call record", func() error { return b.Balancer.Record(ctx, r) })
}

func (b *faultyLB) End(ctx context.Context, e journal.Ending) error {
	return b.call(ctx, "call end", func() error { return b.Balancer.End(ctx, e) })
}

func (b *faultyLB) State(ctx context.Context) (journal.State, error) {
	return ask(ctx, b, "state", func() (journal.State, error) { return b.Balancer.State(ctx) })
}
