package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A pool is load balancers with the same servers, and the apps behind these. It is
// all made up, but for the journals, which keep a real state. Its world goes on when
// drainctl does not: a crash ends the calls, and another run finds what is left.
//
// All the time it makes sure that no LB sends requests to an app that is stopped.
type pool struct {
	t    *testing.T
	lbs  []*poolLB
	apps []*poolApp

	mu    sync.Mutex
	calls map[string]int // by who was called
	seen  []string       // the calls, in their order: "lb0 apply"
	fault poolFault
	hit   string              // the call that went wrong
	gone  bool                // the process of drainctl
	end   func(poolFaultKind) // its contexts
	at    map[string]func()   // what else happens at a call

	delay     map[string]time.Duration // of each call, by who is called
	meanwhile func()                   // what others do at the moment of the fault
	others    map[string]otherDown     // by LB and address, as in "lb0 192.168.1.10:8080"
	deadLBs   int                      // that no call reaches
	unchecked bool                     // events are not validated: another run has the same
}

// An otherDown is a down that somebody else wrote.
type otherDown string

const (
	byHand  otherDown = "by hand"
	byDrain otherDown = "by another drain" // with its mark
)

// A poolFault is what goes wrong: the n-th call of one LB or app, or those with a name.
type poolFault struct {
	who  string
	n    int    // from 1
	call string // or each of this name
	kind poolFaultKind
}

type poolFaultKind string

const (
	callFails       poolFaultKind = "fails"        // and has done nothing
	callRefused     poolFaultKind = "refuses"      // and has done nothing
	answerLost      poolFaultKind = "answer lost"  // it is done, and drainctl is told that it failed
	linkBreaks      poolFaultKind = "link breaks"  // and can be made anew
	lbGone          poolFaultKind = "lb gone"      // for as long as this drainctl lives
	crashBefore     poolFaultKind = "crash before" // of drainctl
	crashAfter      poolFaultKind = "crash after"  //
	interrupts      poolFaultKind = "Ctrl-C"       // soft
	interruptsTwice poolFaultKind = "Ctrl-C twice" // hard
	nothingFails    poolFaultKind = "nothing"      // but others do something at that moment
)

// A poolLB is one LB: what its file says, what its nginx serves, and its journal.
type poolLB struct {
	*pool
	name    string
	lines   []poolLine
	comment string // what else is in the file
	state   journal.State
	history []json.RawMessage
	names   []balancer.Name // that it has looked up
	lingers bool            // an agent whose client is gone keeps its locks until it notices
	reloads int
	earlier int                     // generations
	holder  map[string]*poolSession // of the locks on backends
	live    []*poolSession
	dead    bool
}

type poolLine struct {
	address       string
	down, serving bool // what the file says; whether nginx sends requests there
}

// A poolApp is a backend with one unit, or two.
type poolApp struct {
	*pool
	name    string
	active  bool
	sick    bool // it runs, and answers nothing
	noStop  bool // systemctl stop fails
	slow    bool // to stop: it does not end
	ending  bool // it was told to stop, and has not ended
	noStart bool
	skip    bool // --only-if says no
	open    int
	boots   int
	noBoot  bool // systemctl reboot fails
	works   int  // how often it was rebooted, which is the work

	hasSocket bool     // app.socket starts it
	listens   bool     // and is active
	did       []string // the stops and starts of systemctl
}

const poolConf = "/nginx.conf"

// newPool is n LBs in front of three apps.
func newPool(t *testing.T, n int) *pool {
	p := &pool{t: t, calls: map[string]int{}, at: map[string]func(){}, delay: map[string]time.Duration{}, others: map[string]otherDown{}}
	for i := range 3 {
		p.apps = append(p.apps, &poolApp{pool: p, name: fmt.Sprintf("192.168.1.%d", 10+i), active: true})
	}
	for i := range n {
		lb := &poolLB{pool: p, name: fmt.Sprintf("lb%d", i), holder: map[string]*poolSession{}}
		for _, a := range p.apps {
			lb.lines = append(lb.lines, poolLine{address: a.name + ":8080", serving: true})
		}
		p.lbs = append(p.lbs, lb)
	}
	return p
}

// spec is of all three backends, on all LBs.
func (p *pool) spec(k spec.Kind) spec.Spec {
	s := spec.Default(k)
	s.Service, s.Counter, s.User, s.Host = "app", spec.CounterLB, "tester", "pool"
	s.Interval, s.Timeout, s.HealthTimeout = 20*time.Millisecond, patience, patience
	for _, lb := range p.lbs {
		s.LBs = append(s.LBs, lb.name)
	}
	for _, a := range p.apps {
		s.Targets = append(s.Targets, a.name)
	}
	if k == spec.Undrain {
		s.Service, s.Counter = "", ""
	}
	s.Rollout.Reboot = k == spec.Run
	return s
}

// shortenLimits has the wait for one backend, which is to fail, end soon. The others have
// all the time that a busy machine takes, and so has what is to work.
func shortenLimits(t *testing.T, s *spec.Spec, a *poolApp) {
	t.Helper()
	const soon = 20 * time.Millisecond
	var limits []string
	if a.open > 0 {
		limits = append(limits, "timeout")
	}
	if a.sick {
		limits = append(limits, "health-timeout")
	}
	text, err := spec.Settings{Timeout: soon, HealthTimeout: soon}.Only(limits...)
	if err != nil {
		t.Fatal(err)
	}
	s.PerBackend = map[string]json.RawMessage{a.name: text}
}

// An outcome is how a run ended.
type outcome struct {
	*told
	err    error
	exit   spec.Exit
	result *event.Result
}

// stands is what the run says is so; empty where it was done.
func (o outcome) stands() (s spec.Stands) {
	var f *spec.Failure
	if errors.As(o.err, &f) {
		s = f.Stands
	}
	return s
}

// run runs a spec to its end.
func (p *pool) run(sp spec.Spec, more ...func(*Options)) outcome {
	hard, end := context.WithCancelCause(context.Background())
	soft, stop := context.WithCancelCause(context.Background())
	defer end(nil)
	defer stop(nil)
	p.end = func(f poolFaultKind) {
		switch f {
		case interrupts:
			stop(spec.ErrInterrupted)
		case interruptsTwice:
			stop(spec.ErrInterrupted)
			end(spec.ErrInterrupted)
		default:
			stop(errGone)
			end(errGone)
		}
	}
	p.seen, p.calls = nil, map[string]int{}
	l := &told{}
	o := Options{Connect: p, Emit: l.emit, bounds: bounds{health: time.Millisecond, settle: 1}}
	for _, change := range more {
		change(&o)
	}
	if !p.unchecked {
		defer checked(&o)()
	}
	op, err := Prepare(soft, sp, o)
	out := outcome{told: l, result: ResultOf(err)}
	if err == nil {
		err = op.Run(hard, soft)
		out.result = op.Result()
		valid(event.Stamp(out.result))
		op.Close()
	}
	out.err, out.exit = err, spec.ExitOf(err)
	p.over()
	return out
}

// over is the end of a process: its connections end, and with them its locks.
func (p *pool) over() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.gone = poolFault{}, false
	for _, lb := range p.lbs {
		for _, s := range lb.live {
			s.cut()
		}
		lb.dead, lb.live = false, nil
		if len(lb.holder) > 0 {
			p.t.Errorf("%s: a lock is still held", lb.name)
		}
	}
}

// do is one call of an LB or an app, or has it go wrong.
func (p *pool) do(ctx context.Context, who, call string, session *poolSession, op func() error) error {
	if d := p.delay[who]; d > 0 {
		_ = remote.Sleep(ctx, d)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return errGone
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if session != nil && (session.over || session.dead) {
		return &balancer.Error{Code: balancer.CodeConnection, Message: "the connection broke"}
	}
	p.calls[who]++
	p.seen = append(p.seen, who+" "+call)
	if f := p.at[who+" "+call]; f != nil {
		f()
	}
	f := p.fault
	hit := f.kind != "" && f.who == who && (f.n == p.calls[who] || f.call == call)
	if !hit {
		return p.check(op())
	}
	p.hit = who + " " + call
	switch f.kind {
	case linkBreaks, lbGone: // its locks go first
		defer p.happens()
	case crashBefore, crashAfter: // it happens when the process is over
	default:
		p.happens()
	}
	switch f.kind {
	case nothingFails:
		return p.check(op())
	case callRefused:
		return &balancer.Error{Code: balancer.CodeRefused, Message: "made to refuse", Override: "--yes"}
	case answerLost:
		_ = p.check(op())
		return errFault
	case linkBreaks, lbGone:
		if session == nil {
			return fmt.Errorf("%s: %w", who, remote.ErrConnection)
		}
		session.dead = f.kind == lbGone
		session.cut()
		return &balancer.Error{Code: balancer.CodeConnection, Message: "the connection broke"}
	case interrupts, interruptsTwice:
		err := p.check(op())
		p.end(f.kind)
		return err
	case crashBefore, crashAfter:
		if f.kind == crashAfter {
			_ = p.check(op())
		}
		p.gone = true
		p.end(f.kind)
		return errGone
	}
	return errFault
}

// happens has others do what they do at the moment of the fault.
func (p *pool) happens() {
	if f := p.meanwhile; f != nil {
		p.meanwhile = nil
		f()
	}
}

// check makes sure, after each call, of what must always hold.
func (p *pool) check(err error) error {
	for _, lb := range p.lbs {
		for _, l := range lb.lines {
			if a := p.app(l.address); l.serving && !a.active {
				p.t.Errorf("%s sends requests to %s, which is stopped; after %s", lb.name, l.address, p.seen[len(p.seen)-1])
			}
		}
	}
	return err
}

func (p *pool) app(address string) *poolApp {
	for _, a := range p.apps {
		if host, _, _ := strings.Cut(address, ":"); a.name == host {
			return a
		}
	}
	panic("no app " + address)
}

// whole makes sure that everything is as it was at the start, but for what others have down.
func (p *pool) whole() {
	p.t.Helper()
	p.serving()
	for _, lb := range p.lbs {
		for _, m := range lb.state.Marks {
			if lb.other(m.Address) == "" {
				p.t.Errorf("%s: the journal has a mark: %+v", lb.name, m)
			}
		}
	}
}

// other is who else has a server down on an LB; empty: nobody.
func (lb *poolLB) other(address string) otherDown { return lb.others[lb.name+" "+address] }

// serving makes sure that everything serves, but for what others have down; what the journals say
// is another matter.
func (p *pool) serving() {
	p.t.Helper()
	for _, lb := range p.lbs {
		for _, l := range lb.lines {
			if other := lb.other(l.address); other != "" && !l.down {
				p.t.Errorf("%s: %s was down %s, and is up", lb.name, l.address, other)
			} else if other == "" && (l.down || !l.serving) {
				p.t.Errorf("%s: %s is down %t, served %t", lb.name, l.address, l.down, l.serving)
			}
		}
	}
	for _, a := range p.apps {
		if !a.active {
			p.t.Errorf("%s: the app is stopped", a.name)
		}
	}
}

// out is the servers that an LB is without, in its file or in its nginx.
func (lb *poolLB) out() (addresses []string) {
	for _, l := range lb.lines {
		if l.down || !l.serving {
			addresses = append(addresses, l.address)
		}
	}
	return addresses
}

// LB implements [Connector].
func (p *pool) LB(ctx context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	i := slices.IndexFunc(p.lbs, func(lb *poolLB) bool { return lb.name == name })
	if i < 0 { // it is dead
		return nil, fmt.Errorf("%s: %w", name, remote.ErrConnection)
	}
	lb := p.lbs[i]
	s := &poolSession{poolLB: lb, done: make(chan struct{})}
	err := p.do(ctx, name, "connect", nil, func() error {
		if lb.dead {
			return fmt.Errorf("%s: %w", name, remote.ErrConnection)
		}
		lb.live = append(lb.live, s)
		return nil
	})
	return s, err
}

// Backend implements [Connector].
func (p *pool) Backend(ctx context.Context, b plan.Backend) (remote.Host, error) {
	a := p.app(b.Name)
	return a, p.do(ctx, a.name, "connect", nil, func() error { return nil })
}

// Name implements [remote.Host].
func (a *poolApp) Name() string { return a.name }

// User implements [remote.Host].
func (*poolApp) User() string { return "root" }

// Run implements [remote.Host]: it is systemctl, and what else a run asks.
func (a *poolApp) Run(ctx context.Context, c remote.Command) (r remote.Result, err error) {
	err = a.do(ctx, a.name, strings.Join(c.Args[:min(2, len(c.Args))], " "), nil, func() error {
		r = a.command(c.Args)
		return nil
	})
	return r, err
}

func (a *poolApp) command(args []string) remote.Result {
	failed := remote.Result{Code: 1, Stderr: []byte("it fails")}
	if args[0] == "journalctl" {
		return remote.Result{Stdout: []byte("log of " + a.name + "\n")}
	}
	if args[0] == "systemctl" && args[1] != "show" {
		a.did = append(a.did, strings.Join(args[1:], " "))
	}
	if args[len(args)-1] == "app.socket" {
		return a.socket(args[1])
	}
	switch strings.Join(args[:min(2, len(args))], " ") {
	case "systemctl show":
		triggers := ""
		if a.hasSocket && a.listens { // systemd has unloaded one that is inactive
			triggers = "TriggeredBy=app.socket\n"
		}
		state := "inactive"
		if a.active {
			state = "active"
		}
		if a.ending {
			state = "deactivating"
		}
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\n" + triggers)}
	case "systemctl stop":
		if a.noStop {
			return failed
		}
		a.ending = a.slow
		a.active = a.slow
	case "systemctl start":
		if a.noStart {
			return failed
		}
		a.active = true
	case "systemctl reboot":
		if a.noBoot {
			return failed
		}
		a.active = false // it is not enabled
		a.boots++
		a.works++
	case "cat /proc/sys/kernel/random/boot_id":
		return remote.Result{Stdout: fmt.Appendf(nil, "boot %d\n", a.boots)}
	case "test -e":
		if a.skip {
			return remote.Result{Code: 1}
		}
	}
	if args[0] == "ends-with" {
		code, _ := strconv.Atoi(args[1])
		return remote.Result{Code: code}
	}
	return remote.Result{}
}

// socket is systemctl for the socket that starts the app.
func (a *poolApp) socket(verb string) remote.Result {
	switch verb {
	case "start":
		if a.active && !a.listens {
			return remote.Result{Code: 1, Stderr: []byte("app.socket: Socket service app.service already active, refusing.")}
		}
		a.listens = true
	case "stop":
		a.listens = false
	}
	state := map[bool]string{true: "active", false: "inactive"}[a.listens]
	return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=success\nTriggers=app.service\n")}
}

// Start implements [remote.Host].
func (*poolApp) Start(context.Context, remote.Command) (*remote.Stream, error) {
	return nil, errors.New("nothing is talked to")
}

// DialContext implements [remote.Host].
func (*poolApp) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nothing is dialled")
}

// Close implements [remote.Host].
func (*poolApp) Close() error { return nil }

// A poolSession is one connection to an LB, and what the LB does for it.
type poolSession struct {
	*poolLB
	done chan struct{}
	over bool
	dead bool
	id   string
}

// cut ends the session, and its locks.
func (s *poolSession) cut() {
	if s.over {
		return
	}
	s.over = true
	s.poolLB.dead = s.poolLB.dead || s.dead
	for name, who := range s.holder {
		if who == s && !s.lingers {
			delete(s.holder, name)
		}
	}
	close(s.done)
}

func (s *poolSession) call(ctx context.Context, name string, op func() error) error {
	return s.do(ctx, s.name, name, s, op)
}

// text is the file, and stands for its hash.
func (lb *poolLB) text() string {
	var b strings.Builder
	b.WriteString(lb.comment)
	for _, l := range lb.lines {
		fmt.Fprintf(&b, "%s %t\n", l.address, l.down)
	}
	return b.String()
}

func keyed(address string) journal.Server {
	return journal.Server{Module: "http", Upstream: "pool", Address: address}
}

// Plan implements [balancer.Balancer], as a Local does.
func (s *poolSession) Plan(ctx context.Context, q balancer.Query) (r *balancer.Report, err error) {
	err = s.call(ctx, "plan", func() error {
		r = s.report(q)
		return nil
	})
	return r, err
}

func (s *poolSession) report(q balancer.Query) *balancer.Report {
	var state journal.State
	data, _ := json.Marshal(s.state)
	_ = json.Unmarshal(data, &state)
	r := &balancer.Report{ConfPath: poolConf, Files: map[string]string{poolConf: s.text()}, State: state, Names: s.names}
	up := balancer.Upstream{Name: "pool", File: poolConf, Line: 1}
	targets, returning := parseTargets(q.Targets), parseTargets(q.Returning)
	for i, l := range s.lines {
		d := balancer.Server{Located: journal.Located{Server: keyed(l.address), File: poolConf, Line: i + 1, Down: l.down}, Name: "pool", Text: l.address, At: i}
		d.Managed = len(s.state.MarksOn(d.Server)) > 0
		switch q.Want {
		case balancer.Out:
			d.NeedsEdit = !d.Down
		case balancer.Back:
			d.NeedsEdit = d.Down && (d.Managed || q.Force)
		}
		named := len(targets) == 0 || spec.Matches(targets, l.address)
		back := spec.Matches(returning, l.address) && d.Down && d.Managed
		if named {
			r.Servers = append(r.Servers, d)
		}
		if back {
			d.NeedsEdit = true
			r.Returning = append(r.Returning, d)
		}
		if !l.down || back {
			up.Live++
			if !named {
				up.Remain++
			}
		}
	}
	r.Upstreams = []balancer.Upstream{up}
	return r
}

func parseTargets(texts []string) (all []nginx.Target) {
	for _, text := range texts {
		if t, err := nginx.ParseTarget(text); err == nil {
			all = append(all, t)
		}
	}
	return all
}

// Lock implements [balancer.Balancer].
func (s *poolSession) Lock(ctx context.Context, r balancer.LockRequest) error {
	return s.call(ctx, "lock", func() error {
		for _, name := range r.Backends {
			if who := s.holder[name]; who != nil && (!who.over || r.Wait == 0) {
				return &balancer.Error{Code: balancer.CodeLocked, Message: name + " is locked", Holder: &journal.Holder{ID: who.id}}
			}
		}
		for _, name := range r.Backends {
			s.holder[name] = s
		}
		return nil
	})
}

// Caller implements [balancer.Balancer].
func (s *poolSession) Caller() journal.Recorder { return journal.Recorder{Name: "root"} }

// Begin implements [balancer.Balancer].
func (s *poolSession) Begin(ctx context.Context, b balancer.Beginning) error {
	return s.call(ctx, "begin", func() error {
		s.id = b.Operation.ID
		s.history = append(s.history, b.Lines...)
		if had, ok := s.state.Find(s.id); ok {
			if !b.Resume {
				return errors.New("it has begun already")
			}
			b.Operation.Recorder = had.Recorder
			return s.state.Resume(b.Operation)
		}
		if len(b.Lines) == 0 || !bytes.Contains(b.Lines[0], []byte(`"operation_started"`)) {
			s.pool.t.Errorf("%s: the history begins with %s", s.name, b.Lines)
		}
		b.Operation.Recorder = &journal.Recorder{Name: "root"}
		return s.state.Begin(b.Operation)
	})
}

// Stage implements [balancer.Balancer].
func (s *poolSession) Stage(ctx context.Context, r balancer.StageRequest) (a balancer.Staged, err error) {
	err = s.call(ctx, "stage", func() error {
		if sha, known := r.Files[poolConf]; known && sha != s.text() {
			return &balancer.Error{Code: balancer.CodeChanged, Message: poolConf + " was changed in between"}
		}
		if len(r.Wants) == 0 || len(r.Wants[0].Servers) == 0 {
			return errors.New("no server is named")
		}
		before := s.text()
		if r.Wants[0].Want == balancer.AsBefore {
			err = s.undo(r.Wants[0].Servers)
		} else {
			err = s.edit(r)
		}
		if s.text() != before {
			a.Edited = []journal.Edit{{Path: poolConf, Before: before, After: s.text()}}
		}
		a.NeedsLoad = slices.ContainsFunc(s.lines, func(l poolLine) bool { return l.serving == l.down })
		return err
	})
	return a, err
}

// undo has servers be as the operation found them.
func (s *poolSession) undo(servers []journal.Server) error {
	edits := s.state.EditsOf(s.id, servers...)
	for _, e := range slices.Backward(edits) {
		for _, sp := range e.Splices {
			s.lines[sp.At].down = sp.New == ""
		}
	}
	return s.state.Undone(s.id, edits...)
}

// edit has servers be out, or back.
func (s *poolSession) edit(r balancer.StageRequest) error {
	e := journal.Edit{Path: poolConf, Before: s.text()}
	for _, w := range r.Wants {
		for _, server := range w.Servers {
			for i := range s.lines {
				l, out := &s.lines[i], w.Want == balancer.Out
				if keyed(l.address) != server || l.down == out || !out && !r.Force && len(s.state.MarksOn(server)) == 0 {
					continue
				}
				l.down = out
				sp := journal.Splice{Server: server, At: i, Line: i + 1}
				if out {
					sp.New = " down"
				} else {
					sp.Old = " down"
				}
				e.Splices = append(e.Splices, sp)
			}
		}
	}
	if e.After = s.text(); len(e.Splices) == 0 {
		return nil
	}
	return s.state.Stage(s.id, e)
}

// load has nginx serve what the file says.
func (lb *poolLB) load() {
	for i, l := range lb.lines {
		lb.lines[i].serving = !l.down
	}
}

// Load implements [balancer.Balancer].
func (s *poolSession) Load(ctx context.Context, _ balancer.LoadRequest) (r balancer.Loaded, err error) {
	err = s.call(ctx, "load", func() error {
		s.load()
		s.reloads++
		r.Generation.Serving = 2
		return s.state.Loaded(s.id)
	})
	return r, err
}

// Watch implements [balancer.Balancer].
func (s *poolSession) Watch(ctx context.Context, w balancer.WatchRequest) (seen balancer.Watched, err error) {
	err = s.call(ctx, "watch", func() error {
		seen.Buffered = -1
		if w.Generation {
			seen.Generation = &balancer.Generation{Serving: 2, Earlier: s.earlier}
			return nil
		}
		if len(w.Targets) == 0 {
			return errors.New("no target is named")
		}
		targets := parseTargets(w.Targets)
		for _, l := range s.lines {
			if !l.down && spec.Matches(targets, l.address) {
				seen.Drift = &balancer.Drift{Reason: balancer.DriftDownRemoved, Places: []string{l.address}}
			}
		}
		return nil
	})
	return seen, err
}

// Connections implements [balancer.Balancer].
func (s *poolSession) Connections(ctx context.Context, q balancer.ConnectionsQuery) (c remote.Count, err error) {
	err = s.call(ctx, "connections", func() error {
		return s.named(q.Servers, func(a *poolApp) error {
			c.Open += a.open
			return nil
		})
	})
	return c, err
}

// Probe implements [balancer.Balancer]. The backends of the pool have no counter to prove.
func (s *poolSession) Probe(context.Context, balancer.ProbeRequest) ([]balancer.Probed, error) {
	return nil, nil
}

// Health implements [balancer.Balancer].
func (s *poolSession) Health(ctx context.Context, h balancer.HealthCheck) error {
	return s.call(ctx, "health", func() error {
		return s.named(h.Servers, func(a *poolApp) error {
			if !a.active || a.sick {
				return errors.New("connection refused")
			}
			return nil
		})
	})
}

// named visits the apps of servers, of which there must be one, and none of elsewhere.
func (s *poolSession) named(servers []journal.Server, visit func(*poolApp) error) error {
	if len(servers) == 0 {
		return errors.New("no server is named")
	}
	for _, server := range servers {
		if !slices.ContainsFunc(s.lines, func(l poolLine) bool { return keyed(l.address) == server }) {
			return fmt.Errorf("%s is no server", server.Address)
		}
		if err := visit(s.app(server.Address)); err != nil {
			return err
		}
	}
	return nil
}

// Record implements [balancer.Balancer].
func (s *poolSession) Record(ctx context.Context, r balancer.Recorded) error {
	return s.call(ctx, "record", func() error { return s.record(r) })
}

func (s *poolSession) record(r balancer.Recorded) error {
	s.history = append(s.history, r.Lines...)
	if r.Progress == nil {
		return nil
	}
	return s.state.Record(s.id, r.Progress)
}

// End implements [balancer.Balancer].
func (s *poolSession) End(ctx context.Context, e journal.Ending) error {
	return s.call(ctx, "end", func() error {
		s.history = append(s.history, e.Lines...)
		return s.state.End(s.id, journal.Ending{Result: e.Result, Progress: e.Progress, Open: e.Open, NotDrained: e.NotDrained, Returned: e.Returned, At: time.Now(), Supersede: e.Supersede, Down: s.keptDown()})
	})
}

// keptDown is the servers that the file has down.
func (lb *poolLB) keptDown() (kept []journal.Server) {
	for _, l := range lb.lines {
		if l.down {
			kept = append(kept, keyed(l.address))
		}
	}
	return kept
}

// State implements [balancer.Balancer].
func (s *poolSession) State(ctx context.Context) (state journal.State, err error) {
	err = s.call(ctx, "state", func() error {
		state = s.report(balancer.Query{}).State
		return nil
	})
	return state, err
}

// History implements [balancer.Balancer].
func (s *poolSession) History(context.Context, balancer.HistoryQuery) (balancer.History, error) {
	return balancer.History{}, io.EOF
}

// Close implements [balancer.Balancer].
func (s *poolSession) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut()
	return nil
}

// Done implements [balancer.Balancer].
func (s *poolSession) Done() <-chan struct{} { return s.done }
