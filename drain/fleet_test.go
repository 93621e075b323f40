package drain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/remote"
)

// A fakeLB is a load balancer that can fail at any call. It knows whether its
// files say down, and whether its nginx serves that.
type fakeLB struct {
	balancer.Balancer // nil: what is not below must not be asked
	fail              string
	on                func(call string) // before each call; nil: nothing

	mu          sync.Mutex
	down, serve bool
	unsure      bool // a load failed: what nginx serves is not known
	undoing     bool // what was staged last is as before
	was         bool // what the files said before this operation
	ended       journal.Result
	locked      bool
	calls       []string
	done        chan struct{}
}

var errFake = errors.New("this call fails")

// call notes a call, and fails it if it is the one. What a failing Stage is about has not
// happened; of a failing Load it is not known.
func (f *fakeLB) call(name string) error {
	if f.on != nil {
		f.on(name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if f.fail == name {
		return errFake
	}
	return nil
}

func (f *fakeLB) Plan(_ context.Context, q balancer.Query) (*balancer.Report, error) {
	if err := f.call("plan"); err != nil {
		return nil, err
	}
	s := balancer.Server{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: "192.168.1.10:8080"}, File: "/nginx.conf", Down: f.down}, Name: "pool"}
	s.NeedsEdit = (q.Want == balancer.Out) != f.down
	s.Managed = f.down
	return &balancer.Report{ConfPath: "/nginx.conf", Servers: []balancer.Server{s}, Files: map[string]string{"/nginx.conf": "hash"},
		Upstreams: []balancer.Upstream{{Name: "pool", Live: 3, Remain: 2}}}, nil
}

func (f *fakeLB) Caller() journal.Recorder { return journal.Recorder{} }

func (f *fakeLB) State(context.Context) (journal.State, error) {
	return journal.State{}, f.call("state")
}

func (f *fakeLB) Lock(context.Context, balancer.LockRequest) error {
	err := f.call("lock")
	f.locked = err == nil
	return err
}

func (f *fakeLB) Begin(context.Context, balancer.Beginning) error {
	f.was = f.down
	return f.call("begin")
}

func (f *fakeLB) Stage(_ context.Context, r balancer.StageRequest) (balancer.Staged, error) {
	want := r.Wants[0].Want
	name := "stage"
	if want == balancer.AsBefore {
		name = "undo"
	}
	if err := f.call(name); err != nil {
		return balancer.Staged{}, err
	}
	was := f.down
	f.undoing = want == balancer.AsBefore
	if f.down = want == balancer.Out; f.undoing {
		f.down = f.was
	}
	staged := balancer.Staged{NeedsLoad: f.serve != f.down || f.unsure}
	if was != f.down {
		staged.Edited = []journal.Edit{{Path: "/nginx.conf"}}
	}
	return staged, nil
}

func (f *fakeLB) Load(context.Context, balancer.LoadRequest) (balancer.Loaded, error) {
	name := "load"
	if f.undoing {
		name = "load what was undone"
	}
	f.unsure = true
	if err := f.call(name); err != nil {
		return balancer.Loaded{}, err
	}
	f.serve, f.unsure = f.down, false
	return balancer.Loaded{Generation: balancer.Generation{Serving: 2}}, nil
}

func (f *fakeLB) Watch(context.Context, balancer.WatchRequest) (balancer.Watched, error) {
	return balancer.Watched{}, f.call("watch")
}

func (f *fakeLB) Connections(context.Context, balancer.ConnectionsQuery) (remote.Count, error) {
	return remote.Count{}, f.call("connections")
}

func (f *fakeLB) Probe(context.Context, balancer.ProbeRequest) ([]balancer.Probed, error) {
	return nil, f.call("probe")
}

func (f *fakeLB) Health(context.Context, balancer.HealthCheck) error { return f.call("health") }

func (f *fakeLB) Record(context.Context, balancer.Recorded) error { return f.call("record") }

func (f *fakeLB) End(_ context.Context, e journal.Ending) error {
	f.ended = e.Result
	return f.call("end")
}

func (f *fakeLB) Close() error {
	f.locked = false
	return nil
}

func (f *fakeLB) Done() <-chan struct{} { return f.done }

// fakes is the connector of a fleet of fakes.
type fakes []*fakeLB

func (f fakes) LB(_ context.Context, name string, _ spec.Nginx) (balancer.Balancer, error) {
	var i int
	_, err := fmt.Sscanf(name, "lb%d", &i)
	if err == nil {
		err = f[i].call("connect")
	}
	return f[i], err
}

func (fakes) Backend(context.Context, plan.Backend) (remote.Host, error) {
	return nil, errors.New("no backend is needed")
}

func newFakes(n int, down bool) (fakes, []string) {
	var all fakes
	var names []string
	for i := range n {
		all = append(all, &fakeLB{down: down, serve: down, was: down, done: make(chan struct{})})
		names = append(names, fmt.Sprintf("lb%d", i))
	}
	return all, names
}

// TestAllOrNothing drives a drain and an undrain over two and five LBs, with
// each of them failing at each call. Whatever fails, the LBs say and serve the
// same in the end, unless one could not be restored: the others are then, and the
// exit code says that a person must look.
func TestAllOrNothing(t *testing.T) {
	calls := []string{"", "connect", "plan", "lock", "begin", "stage", "load", "watch", "connections", "health", "record", "end", "undo", "load what was undone"}
	cases := 0
	for _, kind := range []spec.Kind{spec.Drain, spec.Undrain} {
		for _, n := range []int{2, 5} {
			for _, call := range calls {
				for who := range n {
					cases++
					lbs, names := newFakes(n, kind == spec.Undrain)
					lbs[who].fail = call
					if strings.Contains(call, "und") { // which is asked for only when something else fails
						lbs[(who+1)%n].fail = "load"
					}
					t.Run(fmt.Sprintf("%s/%d/%s/%d", kind, n, call, who), func(t *testing.T) {
						t.Parallel()
						oneFails(t, kind, lbs, names, call, who)
					})
				}
			}
		}
	}
	t.Logf("%d cases", cases)
}

func oneFails(t *testing.T, kind spec.Kind, lbs fakes, names []string, call string, who int) {
	sp := spec.Default(kind)
	sp.Targets, sp.LBs, sp.Counter = []string{"192.168.1.10"}, names, spec.CounterLB
	sp.Interval, sp.HealthTimeout, sp.Timeout = 20*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	before := kind == spec.Undrain
	err := run(t.Context(), t.Context(), sp, Options{Connect: lbs, bounds: shortBounds})
	exit := spec.ExitOf(err)
	for i, lb := range lbs {
		if lb.locked {
			t.Errorf("lb%d is still locked", i)
		}
		want := before
		switch {
		case exit == spec.Done:
			want = !before
		case exit == spec.Partial && i == who:
			continue
		}
		if lb.down != want || lb.serve != want {
			t.Errorf("exit %d (%v): lb%d says down %t and serves %t, want %t", exit, err, i, lb.down, lb.serve, want)
		}
	}
	wantExit := spec.Failed
	switch call {
	case "", "end":
		wantExit = spec.Done
	case "lock":
		wantExit = spec.Refused
	case "undo", "load what was undone":
		wantExit = spec.Partial
	case "watch", "connections":
		if kind == spec.Undrain {
			wantExit = spec.Done
		}
	case "health":
		if kind == spec.Drain {
			wantExit = spec.Done
		}
	}
	if call == "connections" && kind == spec.Drain {
		wantExit = spec.Refused // the counter is tried before anything is touched
	}
	if exit != wantExit {
		t.Errorf("exit %d (%v), want %d", exit, err, wantExit)
	}
	// All files are written and tested before any LB is reloaded.
	if call == "stage" {
		for i, lb := range lbs {
			if slices.Contains(lb.calls, "load") {
				t.Errorf("lb%d was reloaded although lb%d failed its test", i, who)
			}
		}
	}
}

// TestSlowLBKeepsNoOtherFromItsRollback: an LB that is slow to undo its edit does not keep
// another one from loading what that one has undone.
func TestSlowLBKeepsNoOtherFromItsRollback(t *testing.T) {
	lbs, names := newFakes(2, false)
	lbs[1].fail = "load"
	loaded := make(chan struct{})
	lbs[0].on = func(call string) {
		if call == "load what was undone" {
			close(loaded)
		}
	}
	lbs[1].on = func(call string) {
		if call != "undo" {
			return
		}
		select {
		case <-loaded:
		case <-time.After(patience):
			t.Error("one LB waits for the other")
		}
	}
	sp := spec.Default(spec.Drain)
	sp.Targets, sp.LBs, sp.Counter = []string{"192.168.1.10"}, names, spec.CounterLB
	if err := run(t.Context(), t.Context(), sp, Options{Connect: lbs, bounds: shortBounds}); spec.ExitOf(err) != spec.Failed {
		t.Errorf("exit %d: %v", spec.ExitOf(err), err)
	}
}

// TestLostLBIsNotRestored: an LB that is lost before the rollback is not said to be as before.
func TestLostLBIsNotRestored(t *testing.T) {
	lbs, names := newFakes(2, false)
	var once sync.Once
	lbs[1].on = func(call string) {
		if call == "watch" {
			once.Do(func() {
				lbs[1].fail = "connect"
				close(lbs[1].done)
			})
		}
	}
	sp := spec.Default(spec.Drain)
	sp.Targets, sp.LBs, sp.Counter = []string{"192.168.1.10"}, names, spec.CounterLB
	err := run(t.Context(), t.Context(), sp, Options{Connect: lbs, bounds: shortBounds})
	var f *spec.Failure
	if !errors.As(err, &f) || f.Exit != spec.Partial || len(f.Stands.LBs) != 2 {
		t.Fatalf("%v", err)
	}
	if lb := f.Stands.LBs[1]; lb.Unknown == "" || !lb.Edited || len(lb.Servers) != 1 {
		t.Errorf("the lost LB is said to be %+v", lb)
	}
	if lb := f.Stands.LBs[0]; lb.Unknown != "" || lb.Edited || !lb.Loaded || lbs[0].down {
		t.Errorf("the other one is said to be %+v", lb)
	}
}

// TestRollbackThatFailsIsAChange: if an edit fails and its rollback too, nobody knows what the LB has,
// and the result does not say that nothing changed.
func TestRollbackThatFailsIsAChange(t *testing.T) {
	for _, kind := range []poolFaultKind{callFails, answerLost, lbGone} {
		p := newPool(t, 1)
		p.fault = poolFault{who: "lb0", call: "stage", kind: kind} // the first edit, and that of the rollback
		if out := p.run(p.firstOf(1, spec.Drain)); out.exit != spec.Partial || !out.result.Changed {
			t.Errorf("%s: exit %d, changed %t: %v", kind, out.exit, out.result.Changed, out.err)
		}
	}
}

// A lockedTogether is an LB whose Lock ends when it is asked on all of the others too,
// but for the first.
type lockedTogether struct {
	*fakeLB
	others *sync.WaitGroup
}

func (l lockedTogether) Lock(ctx context.Context, r balancer.LockRequest) error {
	l.others.Done()
	asked := make(chan struct{})
	go func() { l.others.Wait(); close(asked) }()
	select {
	case <-asked:
		return l.fakeLB.Lock(ctx, r)
	case <-time.After(patience):
		return errors.New("the LBs are locked one after the other")
	}
}

// TestLocksSideBySide makes sure that locking many LBs takes no longer than locking two.
func TestLocksSideBySide(t *testing.T) {
	lbs, _ := newFakes(5, false)
	var others sync.WaitGroup
	others.Add(len(lbs) - 1)
	var all fleet.Fleet
	for i, f := range lbs {
		lb := &fleet.LB{Name: fmt.Sprintf("lb%d", i), Balancer: f}
		if i > 0 {
			lb.Balancer = lockedTogether{f, &others}
		}
		all = append(all, lb)
	}
	locks := balancer.LockRequest{Backends: []string{"192.168.1.10"}}
	if err := all.Lock(t.Context(), locks, false, func(event.Event) {}); err != nil {
		t.Fatal(err)
	}
	for i, lb := range lbs {
		if !lb.locked {
			t.Errorf("lb%d is not locked", i)
		}
	}
}

// TestSeveralTargets drains, or undrains, two backends of which the second does not
// go along: it is rolled back alone, or both are, and the journals have what stands.
func TestSeveralTargets(t *testing.T) {
	late := func(a *poolApp) { a.open = 1 }
	for _, test := range []struct {
		name    string
		kind    spec.Kind
		breaks  func(*poolApp)
		change  func(*spec.Spec)
		exit    spec.Exit
		stands  spec.Standing
		out     []int // of the two, those that are out at the end
		marked  []int // those that the journals have
		stopped []int
		reloads int // of each LB
	}{
		{"none fails", spec.Drain, func(*poolApp) {}, nil, spec.Done, "", []int{0, 1}, []int{0, 1}, []int{0, 1}, 1},
		{"one is not drained", spec.Drain, late, nil, spec.TimedOut, spec.Changed, []int{0}, []int{0}, []int{0}, 2},
		{"one is not drained, together", spec.Drain, late, func(s *spec.Spec) { s.Together = true }, spec.TimedOut, spec.AsBefore, nil, nil, nil, 2},
		{"one is not drained, leave", spec.Drain, late, func(s *spec.Spec) { s.OnTimeout = spec.TimeoutLeave }, spec.TimedOut, spec.Changed, []int{0, 1}, []int{0, 1}, []int{0}, 1},
		{"one is not drained, stop", spec.Drain, late, func(s *spec.Spec) { s.OnTimeout = spec.TimeoutStop }, spec.TimedOut, spec.Changed, []int{0, 1}, []int{0, 1}, []int{0, 1}, 1},
		{"one cannot be stopped", spec.Drain, func(a *poolApp) { a.noStop = true }, nil, spec.Partial, spec.Changed, []int{0}, []int{0}, []int{0}, 2},
		{"one cannot be stopped, together", spec.Drain, func(a *poolApp) { a.noStop = true }, func(s *spec.Spec) { s.Together = true }, spec.Failed, spec.AsBefore, nil, nil, nil, 2},
		{"none fails", spec.Undrain, func(*poolApp) {}, nil, spec.Done, "", nil, nil, nil, 1},
		{"one does not start", spec.Undrain, func(a *poolApp) { a.noStart = true }, nil, spec.Partial, spec.Changed, []int{1}, []int{1}, []int{1}, 1},
		{"one does not start, together", spec.Undrain, func(a *poolApp) { a.noStart = true }, func(s *spec.Spec) { s.Together = true }, spec.Failed, spec.AsBefore, []int{0, 1}, []int{0, 1}, []int{0, 1}, 0},
		{"one is sick", spec.Undrain, func(a *poolApp) { a.sick = true }, nil, spec.Partial, spec.Changed, []int{1}, []int{1}, []int{1}, 1},
		{"one is sick, together", spec.Undrain, func(a *poolApp) { a.sick = true }, func(s *spec.Spec) { s.Together = true }, spec.Failed, spec.AsBefore, []int{0, 1}, []int{0, 1}, []int{0, 1}, 0},
	} {
		t.Run(fmt.Sprintf("%s/%s", test.kind, test.name), func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			two := func(k spec.Kind) spec.Spec {
				s := p.spec(k)
				s.Targets = s.Targets[:2]
				shortenLimits(t, &s, p.apps[1])
				return s
			}
			reloads := test.reloads
			if test.kind == spec.Undrain {
				p.run(two(spec.Drain)).ended(t, spec.Done, "", "")
				reloads++
			}
			test.breaks(p.apps[1])
			sp := two(test.kind)
			if test.change != nil {
				test.change(&sp)
			}
			p.run(sp).ended(t, test.exit, test.stands, "")
			addresses := func(which []int) (all []string) {
				for _, i := range which {
					all = append(all, p.apps[i].name+":8080")
				}
				return all
			}
			for _, lb := range p.lbs {
				var marked []string
				for _, m := range lb.state.Marks {
					marked = append(marked, m.Address)
				}
				if got := lb.out(); !slices.Equal(got, addresses(test.out)) || !slices.Equal(marked, addresses(test.marked)) || lb.reloads != reloads {
					t.Errorf("%s: out %v, marked %v, %d reloads; want %v, %v, %d", lb.name, got, marked, lb.reloads, addresses(test.out), addresses(test.marked), reloads)
				}
			}
			for i, a := range p.apps {
				if a.active == slices.Contains(test.stopped, i) {
					t.Errorf("%s is active %t", a.name, a.active)
				}
			}
			p.apps[1].open, p.apps[1].noStop, p.apps[1].noStart, p.apps[1].sick = 0, false, false, false
			p.putBack()
		})
	}
}

// TestSeveralTargetsEveryFault drains two backends, of which one is not drained in
// time and is rolled back alone, with each call going wrong once. One undrain puts
// everything back.
func TestSeveralTargetsEveryFault(t *testing.T) {
	late := func(t *testing.T) (*pool, spec.Spec) {
		p := newPool(t, 2)
		sp := p.spec(spec.Drain)
		sp.Targets, sp.Timeout = sp.Targets[:2], 20*time.Millisecond
		p.apps[1].open = 1
		return p, sp
	}
	p, sp := late(t)
	p.run(sp).ended(t, spec.TimedOut, spec.Changed, "not drained")
	var faults []poolFault
	for who, n := range p.calls {
		for i := range n {
			for _, kind := range []poolFaultKind{callFails, answerLost, linkBreaks, lbGone, crashBefore, crashAfter, interrupts, interruptsTwice} {
				if !strings.HasPrefix(who, "192.") || kind != linkBreaks && kind != lbGone {
					faults = append(faults, poolFault{who: who, n: i + 1, kind: kind})
				}
			}
		}
	}
	eachFault(t, faults, func(t *testing.T, f poolFault) {
		p, sp := late(t)
		p.fault = f
		out := p.run(sp)
		t.Logf("%s %s: exit %d: %v", p.hit, f.kind, out.exit, out.err)
		if f.kind != crashBefore && f.kind != crashAfter && out.exit != spec.Done && out.exit != spec.TimedOut {
			out.truthful(p)
		}
		p.apps[1].open = 0
		p.putBack()
	})
}

// TestRollbackAloneOnEveryLB drains two backends, of which one is not drained in time,
// and one LB fails when that one is put back. It is put back on the other LB all the
// same: there, the file says so and nginx has loaded it.
func TestRollbackAloneOnEveryLB(t *testing.T) {
	for _, call := range []string{"stage", "load"} {
		for who := range 2 {
			t.Run(fmt.Sprintf("%s/%d", call, who), func(t *testing.T) {
				t.Parallel()
				p := newPool(t, 2)
				late, fails, other := p.apps[1], p.lbs[who], p.lbs[1-who]
				late.open = 1
				calls := 0
				p.at[fails.name+" "+call] = func() {
					if calls++; calls == 2 { // the first takes them out
						p.fault = poolFault{who: fails.name, call: call, kind: callFails}
					}
				}
				sp := p.spec(spec.Drain)
				sp.Targets = sp.Targets[:2]
				shortenLimits(t, &sp, late)
				out := p.run(sp)
				out.ended(t, spec.Partial, spec.Changed, "the rollback failed too")
				if slices.Contains(other.out(), late.name+":8080") {
					t.Errorf("%s is without %v", other.name, other.out())
				}
				out.truthful(p)
				late.open = 0
				delete(p.at, fails.name+" "+call)
				p.putBack()
			})
		}
	}
}

// TestRollbackAfterARollback drains three backends. One is not drained in time and is
// rolled back alone; then another cannot be stopped and is sick. It is asked for its
// health as well, and no request is sent to it.
func TestRollbackAfterARollback(t *testing.T) {
	for _, test := range []struct {
		name string
		late bool
	}{{"it is the first that fails", false}, {"another was rolled back before", true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			sick, late := p.apps[0], p.apps[1]
			if test.late {
				late.open = 1
			}
			p.at[sick.name+" systemctl stop"] = func() { sick.noStop, sick.sick = true, true }
			sp := p.spec(spec.Drain)
			sp.Targets = sp.Targets[:2]
			shortenLimits(t, &sp, &poolApp{name: sick.name, sick: true, open: 1}) // as it will be
			sp.PerBackend[late.name] = sp.PerBackend[sick.name]
			out := p.run(sp)
			out.ended(t, spec.Partial, spec.Changed, "not healthy")
			for _, lb := range p.lbs {
				if !slices.Contains(lb.out(), sick.name+":8080") {
					t.Errorf("%s sends requests to %s, which is sick", lb.name, sick.name)
				}
			}
			out.truthful(p)
			late.open, sick.sick, sick.noStop = 0, false, false
			delete(p.at, sick.name+" systemctl stop")
			p.putBack()
		})
	}
}

// TestUndrainBesideDownByHand: a rolling run leaves a backend out, which one LB has down by hand. The
// undrain that the run prints puts it back on the other LB alone, and says so. What no LB has a mark
// of is refused.
func TestUndrainBesideDownByHand(t *testing.T) {
	t.Parallel()
	p := newPool(t, 2)
	byHand := &p.lbs[1].lines[0]
	byHand.down, byHand.serving = true, false
	p.apps[0].noStart = true
	sp := p.firstOf(1, spec.Run)
	out := p.run(sp)
	out.ended(t, spec.Partial, spec.Changed, "")
	if !slices.ContainsFunc(out.result.Next, func(c spec.Command) bool {
		return slices.Equal(c.Words[:3], []string{"drainctl", "undrain", p.apps[0].name})
	}) {
		t.Fatalf("next: %+v", out.result.Next)
	}
	p.apps[0].noStart = false
	undrain := p.firstOf(1, spec.Undrain)
	var warned []string
	out = p.run(undrain, func(o *Options) {
		o.Accept = func(p *plan.Plan) error {
			for _, f := range p.Findings {
				warned = append(warned, f.LB+": "+f.Text)
			}
			return nil
		}
	})
	out.ended(t, spec.Done, "", "")
	if len(warned) != 1 || !strings.HasPrefix(warned[0], "lb1: 192.168.1.10:8080 in pool (/nginx.conf:1) was marked down outside drainctl before, and stays down") {
		t.Errorf("warned: %q", warned)
	}
	if stays := out.result.StayDown; !slices.Equal(stays, []string{"192.168.1.10:8080 in pool on lb1"}) {
		t.Errorf("the result says that %q stays down", stays)
	}
	if got := append(p.lbs[0].out(), p.lbs[1].out()...); !slices.Equal(got, []string{byHand.address}) || !byHand.down {
		t.Errorf("out are %v", got)
	}
	p.run(undrain).ended(t, spec.Refused, spec.Untouched, "is marked down outside drainctl")
	undrain.Force = true
	p.run(undrain).ended(t, spec.Done, "", "")
	p.whole()
}

// TestTogetherSaysWhoFailed: one of two backends that go together fails. The result names that one, and
// has its log once.
func TestTogetherSaysWhoFailed(t *testing.T) {
	for _, test := range []struct {
		kind   spec.Kind
		breaks func(p *pool)
		exit   spec.Exit
		log    []string
	}{
		{spec.Drain, func(p *pool) { p.apps[0].open, p.apps[1].open = 1, 2 }, spec.TimedOut, nil}, // the first is still waited for
		{spec.Undrain, func(p *pool) { p.apps[1].sick = true }, spec.Failed, []string{"log of 192.168.1.11"}},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 1)
			if test.kind == spec.Undrain {
				p.run(p.firstOf(2, spec.Drain)).ended(t, spec.Done, "", "")
			}
			test.breaks(p)
			sp := p.firstOf(2, test.kind)
			sp.Together = true
			shortenLimits(t, &sp, p.apps[1])
			out := p.run(sp)
			out.ended(t, test.exit, spec.AsBefore, p.apps[1].name+": ")
			if strings.Contains(out.result.Error, p.apps[0].name) || strings.Contains(out.result.Error, "\n") || !slices.Equal(out.result.Log, test.log) {
				t.Errorf("error %q, log %q; want log %q", out.result.Error, out.result.Log, test.log)
			}
		})
	}
}

// TestOpenOfSeveralBackends: a wait for several backends says how many connections all of them have.
func TestOpenOfSeveralBackends(t *testing.T) {
	p := newPool(t, 1)
	p.apps[0].open, p.apps[1].open = 2, 1
	sp := p.firstOf(2, spec.Drain)
	sp.Threshold = 5
	out := p.run(sp)
	out.ended(t, spec.Done, "", "")
	for _, e := range eventsOf[*event.StepDone](out.told) {
		if e.Step == plan.StepWait && *e.Detail.Open != 3 {
			t.Errorf("%d connections are open, want 3", *e.Detail.Open)
		}
	}
}

// TestBeginIsRefused: an LB that refuses to begin has touched nothing, and the exit code says so.
func TestBeginIsRefused(t *testing.T) {
	for _, kind := range []spec.Kind{spec.Drain, spec.Run} {
		p := newPool(t, 2)
		p.fault = poolFault{who: "lb1", call: "begin", kind: callRefused}
		out := p.run(p.firstOf(2, kind))
		out.ended(t, spec.Refused, spec.Untouched, "made to refuse")
		if f := out.result.Findings; len(f) != 1 || f[0].Override != "--yes" {
			t.Errorf("found %+v", f)
		}
		p.whole()
		if left := p.unfinished(); len(left) > 0 {
			t.Errorf("the journals have %v", left)
		}
	}
}

// TestHistoryOfAFailedRecord: a history has what a Record that failed could not write.
func TestHistoryOfAFailedRecord(t *testing.T) {
	for _, kind := range []poolFaultKind{callFails, linkBreaks, interrupts} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			p.at["lb1 record"] = func() {
				delete(p.at, "lb1 record")
				p.fault = poolFault{who: "lb1", n: p.calls["lb1"], kind: kind}
			}
			out := p.run(p.firstOf(1, spec.Drain))
			p.whole()
			for _, e := range append(eventsOf[event.Event](out.told), out.result) {
				line, err := json.Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				for _, lb := range p.lbs {
					kept := slices.ContainsFunc(lb.history, func(had json.RawMessage) bool { return bytes.Equal(had, line) })
					switch e.(type) {
					case *event.StepStarted, *event.StepDone, *event.StepFailed, *event.RollingBack, *event.Result:
						if !kept {
							t.Errorf("the history of %s lacks %s", lb.name, line)
						}
					}
				}
			}
		})
	}
}

// TestEndOnAnLBWithoutTheLateBackend: two backends are drained, and the one that only the first LB has is
// left with connections open. The journal of the second LB has its own backend as drained.
func TestEndOnAnLBWithoutTheLateBackend(t *testing.T) {
	t.Parallel()
	p := newPool(t, 2)
	late := p.apps[1]
	p.lbs[1].lines = slices.Delete(p.lbs[1].lines, 1, 2)
	late.open = 1
	sp := p.firstOf(2, spec.Drain)
	sp.OnTimeout = spec.TimeoutLeave
	shortenLimits(t, &sp, late)
	p.run(sp).ended(t, spec.TimedOut, spec.Changed, "not drained")
	st, err := status.Read(t.Context(), p.spec(""), p)
	if err != nil {
		t.Fatal(err)
	}
	p.over()
	var got []string
	for _, lb := range st.LBs {
		for _, s := range lb.Servers {
			if s.Down {
				got = append(got, fmt.Sprintf("%s %s %s", lb.LB, s.Address, s.State))
			}
		}
	}
	if want := []string{"lb0 192.168.1.10:8080 drained", "lb0 192.168.1.11:8080 down, not drained", "lb1 192.168.1.10:8080 drained"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	late.open = 0
	again := p.resumes()
	again.PerBackend = nil
	p.run(again).ended(t, spec.Done, "", "")
	if late.active {
		t.Error("the resume has not stopped the app")
	}
	p.putBack()
}
