package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// lose ends the connections to an LB.
func (lb *poolLB) lose() {
	for _, s := range lb.live {
		s.cut()
	}
}

// lockedByOther has another operator hold the lock on a backend.
func (lb *poolLB) lockedByOther(a *poolApp) (other *poolSession) {
	s := &poolSession{poolLB: lb, done: make(chan struct{})}
	lb.live = append(lb.live, s)
	lb.holder[a.name] = s
	return s
}

// drainedByOther has another operator put everything back, and drain one backend anew.
func (lb *poolLB) drainedByOther(i int) {
	for k := range lb.lines {
		lb.lines[k].down, lb.lines[k].serving = k == i, k != i
	}
	id := journal.NewID(time.Now(), lb.state.LastID)
	server := keyed(lb.lines[i].address)
	lb.state = journal.State{
		LastID: id,
		Marks:  []journal.Mark{{Server: server, Change: journal.Change{Operation: id, File: poolConf, Line: i + 1, At: i}}},
		Operations: []journal.Operation{{
			ID: id, Kind: journal.KindDrain, Targets: []string{lb.apps[i].name}, User: "other", Host: "desk",
			Recorder: &journal.Recorder{Name: "root"}, Spec: json.RawMessage(`{}`), Result: journal.ResultDone,
			Servers: []journal.Located{{Server: server, File: poolConf, Line: i + 1}},
		}},
	}
}

func (p *pool) eachLB(do func(*poolLB)) {
	for _, lb := range p.lbs {
		do(lb)
	}
}

// downByHand has somebody write down to the server of a backend, who does not reload nginx. A server
// that drainctl has marked is left out: whose a second down is, nobody can tell.
func (p *pool) downByHand(i int, lbs ...*poolLB) {
	for _, lb := range lbs {
		if l := &lb.lines[i]; !l.down && len(lb.state.MarksOn(keyed(l.address))) == 0 {
			l.down = true
			p.others[lb.name+" "+l.address] = byHand
		}
	}
}

// otherBegins has another operator drain a backend without its service, on those LBs where it is not
// locked. The operation does not end.
func (p *pool) otherBegins(i int) {
	latest := ""
	for _, lb := range p.lbs {
		latest = max(latest, lb.state.LastID)
	}
	id := journal.NewID(time.Now(), latest)
	for _, lb := range p.lbs {
		l := &lb.lines[i]
		if holder := lb.holder[p.apps[i].name]; holder != nil {
			continue
		}
		server := keyed(l.address)
		op := journal.Operation{
			ID: id, Kind: journal.KindDrain, Targets: []string{p.apps[i].name}, User: otherUser, Host: "desk", Began: time.Now(), Spec: []byte(`{}`),
			Recorder: &journal.Recorder{Name: "root"}, Servers: []journal.Located{{Server: server, File: poolConf, Line: i + 1, Down: l.down}},
		}
		if lb.other(l.address) == "" {
			p.others[lb.name+" "+l.address] = byDrain
		}
		s := &poolSession{poolLB: lb, id: id}
		p.must(lb.state.Begin(op))
		p.must(s.edit(balancer.StageRequest{Wants: []balancer.Wanted{{Want: balancer.Out, Servers: []journal.Server{server}}}}))
		lb.load()
		p.must(lb.state.Loaded(id))
	}
}

// otherUser is the other operator.
const otherUser = "other"

// otherDrains has another operator drain a backend.
func (p *pool) otherDrains(i int) {
	p.otherBegins(i)
	p.otherEnds(journal.ResultDone)
}

// otherRollsBack has another operator roll back the drain of a backend.
func (p *pool) otherRollsBack(i int) {
	for _, lb := range p.lbs {
		lb.lines[i].down = false
		lb.load()
		delete(p.others, lb.name+" "+lb.lines[i].address)
	}
	p.otherEnds(journal.ResultRolledBack)
}

// otherEnds ends the operations of another operator.
func (p *pool) otherEnds(r journal.Result) {
	for _, lb := range p.lbs {
		for _, op := range slices.Clone(lb.state.Operations) {
			if op.User == otherUser && op.Result == "" {
				p.must(lb.state.End(op.ID, journal.Ending{Result: r, At: time.Now(), Down: lb.keptDown()}))
			}
		}
	}
}

func (p *pool) must(err error) {
	if err != nil {
		p.t.Errorf("another operator: %v", err)
	}
}

// all is what an LB has: its file, its nginx and its journal.
func (lb *poolLB) all(t *testing.T) string {
	t.Helper()
	state, err := json.Marshal(lb.state)
	if err != nil {
		t.Fatal(err)
	}
	var served []string
	for _, l := range lb.lines {
		if l.serving {
			served = append(served, l.address)
		}
	}
	return fmt.Sprintf("%sserved: %v\n%s", lb.text(), served, state)
}

// TestReconnection breaks the connection to one LB. What drainctl does there over a new
// connection depends on what another operator has done meanwhile: it changes nothing
// that the other has locked or taken over.
func TestReconnection(t *testing.T) {
	locked := func(lb *poolLB) { lb.lockedByOther(lb.apps[0]) }
	ended := func(lb *poolLB) { lb.drainedByOther(0) }
	drained := func(lb *poolLB) { lb.otherDrains(0) }
	for _, test := range []struct {
		name      string
		kind      spec.Kind
		meanwhile func(*poolLB) // nil: nobody has done anything
		exit      spec.Exit
		stands    spec.Standing
		says      string
	}{
		{"nobody", spec.Drain, nil, spec.Failed, spec.AsBefore, "lb1 broke"},
		{"locked", spec.Drain, locked, spec.Partial, spec.Changed, "192.168.1.10 is locked"},
		{"ended", spec.Drain, ended, spec.Partial, spec.Changed, "another operator has ended operation"},
		{"drained", spec.Drain, drained, spec.Partial, spec.Changed, "another operator has drained 192.168.1.10 meanwhile"},
		{"our own agent", spec.Drain, nil, spec.Failed, spec.AsBefore, "lb1 broke"},
		{"nobody", spec.Run, nil, spec.Failed, spec.AllBack, "lb1 broke"},
		{"locked", spec.Run, locked, spec.Partial, spec.Changed, "192.168.1.10 is locked"},
		{"ended", spec.Run, ended, spec.Partial, spec.Changed, "another operator has ended operation"},
		{"drained", spec.Run, drained, spec.Partial, spec.Changed, "another operator has drained 192.168.1.10 meanwhile"},
	} {
		t.Run(string(test.kind)+"/"+test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			sp, lb := p.spec(test.kind), p.lbs[1]
			ev := "192.168.1.10 systemctl reboot"
			if test.kind == spec.Drain {
				sp.Targets, ev = sp.Targets[:1], "lb1 watch"
				p.apps[0].open = 1 // it is waited for
			}
			found := ""
			p.at[ev] = func() {
				delete(p.at, ev)
				lb.lingers = test.name == "our own agent"
				lb.lose()
				p.at["lb1 connect"] = func() {
					delete(p.at, "lb1 connect")
					lb.lingers = false
					if test.meanwhile != nil {
						test.meanwhile(lb)
					}
					found = lb.all(t)
				}
			}
			out := p.run(sp)
			out.ended(t, test.exit, test.stands, test.says)
			switch now := lb.all(t); {
			case found == "":
				t.Error("drainctl did not connect again")
			case test.meanwhile != nil && now != found:
				t.Errorf("the LB of the other operator had\n%s\nand has\n%s", found, now)
			case test.meanwhile == nil && len(lb.out()) > 0:
				t.Errorf("lb1 is without %v", lb.out())
			}
			if got := p.lbs[0].out(); test.kind == spec.Drain && len(got) > 0 {
				t.Errorf("lb0 is without %v", got)
			}
			if i := slices.IndexFunc(p.apps, func(a *poolApp) bool { return !a.active }); i >= 0 {
				t.Errorf("%s is stopped", p.apps[i].name)
			}
			p.apps[0].open = 0
			clear(p.others) // the undrain ends their drain as well
			p.putBack()
		})
	}
}

// TestResumeOfWhatAnotherHasDrainedSince: an operation crashes, and another operator drains one of its
// backends. Its resume is refused: it would put the backend back, if only in a rollback. One undrain
// ends both.
func TestResumeOfWhatAnotherHasDrainedSince(t *testing.T) {
	for _, test := range []struct {
		kind spec.Kind
		call string // of the second backend, in which drainctl crashes
	}{{spec.Drain, "systemctl stop"}, {spec.Undrain, "systemctl start"}, {spec.Run, "systemctl reboot"}} {
		t.Run(string(test.kind), func(t *testing.T) {
			p := newPool(t, 2)
			if test.kind == spec.Undrain {
				p.run(p.firstOf(2, spec.Drain)).ended(t, spec.Done, "", "")
			}
			p.fault = poolFault{who: p.apps[1].name, call: test.call, kind: crashBefore}
			p.run(p.firstOf(2, test.kind))
			p.otherDrains(0)
			before := []string{p.lbs[0].all(t), p.lbs[1].all(t)}
			p.run(p.resumes()).ended(t, spec.Refused, spec.Untouched, "192.168.1.10 was drained since by other on desk")
			for i, lb := range p.lbs {
				if now := lb.all(t); now != before[i] {
					t.Errorf("%s had\n%s\nand has\n%s", lb.name, before[i], now)
				}
			}
			clear(p.others) // the undrain ends their drain as well
			p.putBack()
		})
	}
}

// TestAnyLBIsLost: whichever LB can no longer be asked while nothing is done, the run
// ends, for its locks are gone there. It can be resumed.
func TestAnyLBIsLost(t *testing.T) {
	for _, name := range []string{"lb0", "lb1", "lb2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 3)
			sp := p.spec(spec.Run)
			sp.Rollout.Canary = true
			out := p.run(sp, func(o *Options) {
				o.Ask = func(ctx context.Context, _ string) (bool, error) {
					p.mu.Lock()
					for _, lb := range p.lbs {
						if lb.name == name {
							lb.lose()
						}
					}
					p.mu.Unlock()
					select {
					case <-ctx.Done():
						return false, context.Cause(ctx)
					case <-time.After(patience):
						return true, nil
					}
				}
			})
			out.ended(t, spec.Failed, spec.AllBack, "the lock on the target was lost: the connection to the load balancer "+name+" broke")
			p.worked(1, 0, 0)
			p.run(p.resumes(), func(o *Options) {
				o.Ask = func(context.Context, string) (bool, error) { return true, nil }
			}).ended(t, spec.Done, "", "")
			p.whole()
			p.worked(1, 1, 1)
		})
	}
}

// TestLBIsLostBeforehand: an LB that is lost before anything was done is a failure, not an
// interruption by the operator.
func TestLBIsLostBeforehand(t *testing.T) {
	p := newPool(t, 2)
	p.at["lb1 connections"] = p.lbs[1].lose
	sp := p.spec(spec.Drain)
	sp.Targets = sp.Targets[:1]
	p.run(sp).ended(t, spec.Failed, spec.Untouched, "broke")
	p.whole()
	p.putBack()
}

// TestLockOrder: whoever waits for the lock on an LB holds those on the LBs before it by
// name and no other, in whatever order the operator names the LBs. So two operators
// never wait for each other.
func TestLockOrder(t *testing.T) {
	for _, order := range [][]string{{"lb0", "lb1", "lb2"}, {"lb2", "lb1", "lb0"}, {"lb1", "lb2", "lb0"}} {
		for i := range order {
			t.Run(fmt.Sprintf("%v/%d", order, i), func(t *testing.T) {
				t.Parallel()
				p := newPool(t, len(order))
				other := p.lbs[i].lockedByOther(p.apps[0])
				sp := p.spec(spec.Drain)
				sp.LBs, sp.Wait = order, true
				sp.Targets = sp.Targets[:1]
				waited := 0
				out := p.run(sp, func(o *Options) {
					emit := o.Emit
					o.Emit = func(e event.Event) {
						if _, ok := e.(*event.LockAwaited); ok {
							waited++
							p.mu.Lock()
							for k, lb := range p.lbs {
								if held := len(lb.holder) > 0; held != (k <= i) {
									t.Errorf("waiting for %s: the lock on %s is held: %t", other.name, lb.name, held)
								}
							}
							other.cut() // the other operator is done
							p.mu.Unlock()
						}
						emit(e)
					}
				})
				out.ended(t, spec.Done, "", "")
				if waited != 1 {
					t.Errorf("drainctl waited %d times", waited)
				}
			})
		}
	}
}

// TestPoolShrinks: the guards are asked of what is in the pool when a backend is taken
// out, not only of what was in it at the start.
func TestPoolShrinks(t *testing.T) {
	// gone has another operator mark the last backends down on every LB.
	gone := func(p *pool, n int) func() {
		return func() {
			for _, lb := range p.lbs {
				for i := len(lb.lines) - n; i < len(lb.lines); i++ {
					lb.lines[i].down, lb.lines[i].serving = true, false
				}
			}
		}
	}
	for _, test := range []struct {
		name   string
		kind   spec.Kind
		at     string // when it happens
		gone   int    // backends
		minUp  int
		exit   spec.Exit
		stands spec.Standing
		says   string
		works  []int
	}{
		{"before a batch", spec.Run, "192.168.1.10 systemctl reboot", 1, 2, spec.Failed, spec.AllBack, "fewer than 2", []int{1, 0, 0}},
		{"before the edit of a batch", spec.Run, "lb0 stage", 1, 2, spec.Refused, spec.Untouched, "fewer than 2", []int{0, 0, 0}},
		{"before the edit of a drain", spec.Drain, "lb0 stage", 2, 0, spec.Refused, spec.Untouched, "no live server left", []int{0, 0, 0}},
		{"before the edit of a drain, of one", spec.Drain, "lb0 stage", 1, 2, spec.Refused, spec.Untouched, "fewer than 2", []int{0, 0, 0}},
	} {
		t.Run(string(test.kind)+"/"+test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 1)
			sp := p.spec(test.kind)
			if test.kind == spec.Drain {
				sp.Targets = sp.Targets[:1]
			}
			if test.minUp > 0 {
				sp.MinUp = test.minUp
			}
			happens := gone(p, test.gone)
			p.at[test.at] = func() {
				delete(p.at, test.at)
				happens()
			}
			out := p.run(sp)
			out.ended(t, test.exit, test.stands, test.says)
			p.worked(test.works...)
			for _, lb := range p.lbs {
				if got := lb.out(); len(got) != test.gone {
					t.Errorf("%s is without %v", lb.name, got)
				}
			}
			if !p.apps[0].active {
				t.Error("the app is stopped")
			}
		})
	}
}

// TestLockByAnotherName: a backend that one LB has by a name is locked by its address as well, by which
// another LB may have it.
func TestLockByAnotherName(t *testing.T) {
	p := newPool(t, 2)
	ip := p.apps[0].name
	p.apps[0].name = "app1"
	for _, lb := range p.lbs {
		lb.lines[0].address = "app1:8080"
	}
	p.lbs[0].names = []balancer.Name{{Host: "app1", Addresses: []netip.Addr{netip.MustParseAddr(ip)}}}
	for _, held := range []string{ip, "app1"} {
		p.lbs[1].lockedByOther(&poolApp{name: held})
		p.run(p.firstOf(1, spec.Drain)).ended(t, spec.Refused, spec.Untouched, "is locked by")
	}
	p.run(p.firstOf(1, spec.Drain)).ended(t, spec.Done, "", "")
}
