package drain

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/remote"
)

// A pool is several LBs in front of several apps, made up: it can be made to fail
// at any call, and it watches what must hold at every instant.
type pool struct {
	t   *testing.T
	lbs []*poolLB

	mu   sync.Mutex
	apps map[string]*poolApp // by host
}

// A poolApp is the app of one backend, with a switch.
type poolApp struct {
	active bool
	ill    bool // it never gets healthy
	boots  int
	busy   int // open connections
	stuck  bool
}

// A poolLB is what is on one LB, whoever is connected to it.
type poolLB struct {
	pool *pool
	name string

	mu           sync.Mutex
	down, loaded map[string]bool // addresses: in the files, and in what nginx serves
	state        journal.State
	reloads      int
	locked       bool
}

const poolPort = ":8080"

func newPool(t *testing.T, lbs, apps int) *pool {
	p := &pool{t: t, apps: map[string]*poolApp{}}
	for i := range apps {
		p.apps[fmt.Sprintf("192.168.1.%d", 10+i)] = &poolApp{active: true}
	}
	for i := range lbs {
		p.lbs = append(p.lbs, &poolLB{pool: p, name: fmt.Sprintf("lb%d", i), down: map[string]bool{}, loaded: map[string]bool{}, state: journal.State{Version: 2}})
	}
	return p
}

func (p *pool) hosts() []string { return slices.Sorted(maps.Keys(p.apps)) }

// spec asks for all apps of the pool, over all LBs.
func (p *pool) spec(k Kind) Spec {
	s := DefaultSpec(k)
	s.Targets, s.Counter, s.Service = p.hosts(), CounterLB, "app"
	if k == Undrain {
		s.Service = ""
	}
	for _, lb := range p.lbs {
		s.LBs = append(s.LBs, lb.name)
	}
	s.Interval, s.Timeout, s.HealthTimeout = 20*time.Millisecond, patience, patience
	s.User, s.Host, s.MinUp = "tester", "desk", 0
	if k == Run {
		s.Rollout.Command = []string{"true"}
		s.MinUp = 1
	}
	return s
}

// shorten bounds the waits of a spec for what never comes in this pool.
func (p *pool) shorten(s *Spec) {
	for _, app := range p.apps {
		if app.busy > 0 {
			s.Timeout = 100 * time.Millisecond
		}
		if app.ill {
			s.HealthTimeout = 2 * time.Second // the healthy ones need a moment, too
		}
	}
}

// A visit is the connections of one run to the pool. The n-th call fails, or all
// from it on, as those of a process that is gone.
type visit struct {
	*pool
	at    int  // the call that fails, from 1
	crash bool // and all after it
	only  string
	told  told
	// result is what the last run had to say.
	result *Result

	mu    sync.Mutex
	calls int
	what  string // the call that failed
	gone  func()
}

func (p *pool) visit() *visit { return &visit{pool: p} }

// next counts a call, and fails it if it is to.
func (v *visit) next(what string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls++
	hit := v.calls == v.at
	if v.only != "" {
		hit = v.what == "" && strings.Contains(what, v.only)
	}
	switch {
	case hit:
		v.what = what
		if v.crash {
			v.gone()
		}
		return errFault
	case v.crash && v.what != "":
		return errGone
	}
	return nil
}

// run runs a spec.
func (v *visit) run(spec Spec, change ...func(*Options)) error {
	hard, endHard := context.WithCancelCause(context.Background())
	defer endHard(nil)
	v.gone = func() { endHard(errGone) }
	o := Options{Connect: v, Emit: v.told.emit, bounds: shortBounds}
	for _, c := range change {
		c(&o)
	}
	return v.runWith(hard, hard, spec, o)
}

func (v *visit) runWith(hard, soft context.Context, spec Spec, o Options) error {
	defer checked(&o)()
	op, err := Prepare(soft, spec, o)
	if err != nil {
		return err
	}
	defer op.Close()
	err = op.Run(hard, soft)
	v.result = op.Result(err)
	valid(Stamp(v.result))
	return err
}

// LB implements [Connector].
func (v *visit) LB(_ context.Context, name string, _ Nginx) (balancer.Balancer, error) {
	if err := v.next(name + " connect"); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(v.lbs, func(lb *poolLB) bool { return lb.name == name })
	return &poolConn{poolLB: v.lbs[i], v: v, done: make(chan struct{})}, nil
}

// Backend implements [Connector].
func (v *visit) Backend(_ context.Context, b Backend) (remote.Host, error) {
	if err := v.next("connect to " + b.Name); err != nil {
		return nil, err
	}
	return &poolHost{name: b.Name, v: v}, nil
}

// A poolHost is a backend with a systemd.
type poolHost struct {
	remote.Host
	name string
	v    *visit
}

func (h *poolHost) Name() string { return h.name }
func (h *poolHost) User() string { return "root" }
func (h *poolHost) Close() error { return nil }

func (h *poolHost) Run(_ context.Context, c remote.Command) (remote.Result, error) {
	command := strings.Join(c.Args, " ")
	if err := h.v.next(h.name + " " + command); err != nil {
		return remote.Result{}, err
	}
	h.v.pool.mu.Lock()
	defer h.v.pool.mu.Unlock()
	app := h.v.apps[h.name]
	switch {
	case strings.HasPrefix(command, "systemctl show"):
		state := "inactive"
		if app.active {
			state = "active"
		}
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\n")}, nil
	case command == "systemctl stop app":
		if app.stuck {
			return remote.Result{Code: 1, Stderr: []byte("Job failed.")}, nil
		}
		for _, lb := range h.v.lbs {
			if !lb.loaded[h.name+poolPort] {
				h.v.t.Errorf("%s is stopped while %s sends requests to it", h.name, lb.name)
			}
		}
		app.active = false
	case command == "systemctl start app":
		app.active = true
	case command == "systemctl reboot":
		app.boots++
		return remote.Result{}, remote.ErrConnection
	case strings.HasPrefix(command, "cat /proc"):
		return remote.Result{Stdout: fmt.Appendf(nil, "boot-%d\n", app.boots)}, nil
	case strings.HasPrefix(command, "test "):
		return remote.Result{Code: len(command) % 2}, nil
	}
	return remote.Result{}, nil
}

// A poolConn is one connection to an LB.
type poolConn struct {
	balancer.Balancer // nil: what is not below must not be asked
	*poolLB
	v     *visit
	id    string
	was   map[string]bool // what the files said when the operation began
	query balancer.Query
	done  chan struct{}
	close sync.Once
}

func (c *poolConn) call(what string) error {
	if err := c.v.next(c.name + " " + what); err != nil {
		return err
	}
	c.poolLB.mu.Lock()
	return nil
}

func named(targets []string, host string) bool {
	return slices.ContainsFunc(targets, func(t string) bool { return t == host || t == host+poolPort })
}

func (c *poolConn) Plan(_ context.Context, q balancer.Query) (*balancer.Report, error) {
	if err := c.call("plan"); err != nil {
		return nil, err
	}
	defer c.poolLB.mu.Unlock()
	c.query = q
	r := &balancer.Report{ConfPath: "/nginx.conf", Files: map[string]string{"/nginx.conf": "hash"}, State: c.state, Generation: &balancer.Generation{Serving: 1}}
	r.State.Operations, r.State.Marks = slices.Clone(c.state.Operations), slices.Clone(c.state.Marks)
	up := balancer.Upstream{Name: "pool"}
	for i, host := range c.pool.hosts() {
		s := balancer.Server{Server: journal.Server{Module: "http", Upstream: "pool", Address: host + poolPort}, Name: "pool", File: "/nginx.conf", At: i, Down: c.down[host+poolPort]}
		s.Managed = len(c.state.MarksOn(s.Server)) > 0
		isNamed, returns := len(q.Targets) == 0 || named(q.Targets, host), named(q.Returning, host) && s.Down && s.Managed
		if q.Want != nil {
			s.Configure = s.Down != q.Want.Down && (q.Want.Down || s.Managed || q.Unmanaged)
		}
		if !s.Down || returns {
			up.Live++
			if !isNamed {
				up.Remain++
			}
		}
		switch {
		case isNamed:
			r.Servers = append(r.Servers, s)
		case returns:
			s.Configure = true
			r.Returning = append(r.Returning, s)
		}
	}
	r.Upstreams = []balancer.Upstream{up}
	return r, nil
}

func (c *poolConn) Lock(context.Context, balancer.LockRequest) error {
	if err := c.call("lock"); err != nil {
		return err
	}
	defer c.poolLB.mu.Unlock()
	c.locked = true
	return nil
}

func (c *poolConn) Begin(_ context.Context, b balancer.Beginning) error {
	if err := c.call("begin"); err != nil {
		return err
	}
	defer c.poolLB.mu.Unlock()
	c.id, c.was = b.Operation.ID, maps.Clone(c.down)
	return c.state.Begin(b.Operation)
}

func (c *poolConn) Apply(_ context.Context, change balancer.Change) (a balancer.Applied, err error) {
	if err := c.call("apply"); err != nil {
		return a, err
	}
	defer c.poolLB.mu.Unlock()
	e := journal.Edit{Path: "/nginx.conf", Before: fmt.Sprint(c.down)}
	for _, f := range change.Files {
		for _, s := range f.Servers {
			address := c.pool.hosts()[s.At] + poolPort
			if c.down[address] == s.Want.Down {
				continue
			}
			splice := journal.Splice{Server: journal.Server{Module: "http", Upstream: "pool", Address: address}, At: s.At}
			if s.Want.Down {
				splice.New = " down"
			}
			e.Splices = append(e.Splices, splice)
			if delete(c.down, address); s.Want.Down {
				c.down[address] = true
			}
		}
	}
	if len(e.Splices) == 0 {
		a.NeedsReload = !maps.Equal(c.down, c.loaded)
		return a, nil
	}
	e.After = fmt.Sprint(c.down)
	a.Edited, a.NeedsReload = []journal.Edit{e}, true
	return a, c.state.Announce(c.id, e)
}

func (c *poolConn) Reload(context.Context, balancer.ReloadRequest) (balancer.Generation, error) {
	if err := c.call("reload"); err != nil {
		return balancer.Generation{}, err
	}
	defer c.poolLB.mu.Unlock()
	c.load()
	return balancer.Generation{Serving: 1}, nil
}

// load has nginx serve what the files say. It must not send requests to an app
// that is stopped.
func (c *poolConn) load() {
	c.reloads++
	for host, app := range c.pool.apps {
		if c.loaded[host+poolPort] && !c.down[host+poolPort] && !app.active {
			c.pool.t.Errorf("%s comes back on %s, and its app is stopped", host, c.name)
		}
	}
	c.loaded = maps.Clone(c.down)
}

func (c *poolConn) Restore(context.Context, balancer.ReloadRequest) (r balancer.Restored, err error) {
	if err := c.call("restore"); err != nil {
		return r, err
	}
	defer c.poolLB.mu.Unlock()
	if c.was == nil || maps.Equal(c.was, c.down) && maps.Equal(c.was, c.loaded) {
		return r, nil
	}
	c.down = maps.Clone(c.was)
	c.load()
	return balancer.Restored{Changed: true}, c.state.Restored(c.id, 0)
}

func (c *poolConn) Watch(_ context.Context, w balancer.WatchRequest) (s balancer.Watched, err error) {
	if err := c.call("watch"); err != nil {
		return s, err
	}
	defer c.poolLB.mu.Unlock()
	if w.Generation {
		s.Generation = &balancer.Generation{Serving: 1}
		return s, nil
	}
	for _, host := range c.pool.hosts() {
		if named(c.query.Targets, host) && !c.loaded[host+poolPort] {
			s.Drift = &balancer.Drift{Reason: balancer.DriftDownRemoved, Places: []string{host}}
		}
	}
	return s, nil
}

func (c *poolConn) Connections(_ context.Context, q balancer.ConnectionsQuery) (n balancer.Connections, err error) {
	if err := c.call("connections"); err != nil {
		return n, err
	}
	defer c.poolLB.mu.Unlock()
	for _, host := range c.pool.hosts() {
		if named(q.Targets, host) {
			n.Open += c.pool.apps[host].busy
		}
	}
	return n, nil
}

func (c *poolConn) Health(_ context.Context, h balancer.HealthCheck) error {
	if err := c.call("health"); err != nil {
		return err
	}
	defer c.poolLB.mu.Unlock()
	for host, app := range c.pool.apps {
		if named(h.Targets, host) && (!app.active || app.ill) {
			return fmt.Errorf("connect: %s refuses", host)
		}
	}
	return nil
}

func (c *poolConn) Record(_ context.Context, r balancer.Recorded) error {
	if err := c.call("record"); err != nil {
		return err
	}
	defer c.poolLB.mu.Unlock()
	if _, ok := c.state.Find(c.id); !ok {
		return journal.ErrGone
	}
	return c.state.Record(c.id, r.Released, r.Progress)
}

func (c *poolConn) End(_ context.Context, e balancer.Ending) error {
	if err := c.call("end"); err != nil {
		return err
	}
	defer c.poolLB.mu.Unlock()
	return c.state.End(c.id, journal.Ending{Result: e.Result, Open: e.Open, NotDrained: e.NotDrained, Supersede: e.Supersede})
}

func (c *poolConn) State(context.Context) (journal.State, error) {
	if err := c.call("state"); err != nil {
		return journal.State{}, err
	}
	defer c.poolLB.mu.Unlock()
	return c.state, nil
}

func (c *poolConn) Close() error {
	c.close.Do(func() { close(c.done) })
	c.locked = false
	return nil
}

func (c *poolConn) Done() <-chan struct{} { return c.done }

// out is the hosts that some LB keeps out of the pool.
func (p *pool) out() (hosts []string) {
	for _, host := range p.hosts() {
		if slices.ContainsFunc(p.lbs, func(lb *poolLB) bool { return lb.down[host+poolPort] || lb.loaded[host+poolPort] }) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// allBack checks that every app runs and gets requests, and that no journal has
// anything left.
func (p *pool) allBack(what string) {
	p.t.Helper()
	if out := p.out(); len(out) > 0 {
		p.t.Errorf("%s: %q are out of the pool", what, out)
	}
	for _, host := range p.hosts() {
		if !p.apps[host].active {
			p.t.Errorf("%s: the app on %s is stopped", what, host)
		}
	}
	for _, lb := range p.lbs {
		if len(lb.state.Marks) > 0 || len(lb.state.Operations) > 0 || lb.locked {
			p.t.Errorf("%s: the journal of %s has %d marks and %s, locked %t", what, lb.name, len(lb.state.Marks), describeAll(lb.state.Operations), lb.locked)
		}
	}
}

// undrain puts all targets back, as an operator does after a failure.
func (p *pool) undrain(what string) {
	p.t.Helper()
	if err := p.visit().run(p.spec(Undrain)); err != nil {
		p.t.Errorf("%s: undrain: %v", what, err)
	}
	p.allBack(what + ", and an undrain")
}
