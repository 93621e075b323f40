package drain

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// firstOf is a spec of the first n backends.
func (p *pool) firstOf(n int, k spec.Kind) spec.Spec {
	s := p.spec(k)
	s.Targets = s.Targets[:n]
	return s
}

// An undrain crashes in its edit, or is interrupted twice there; another operator undrains one of
// its backends. Its resume is interrupted, and stops no app that nginx sends requests to. The pool
// sees to that.
func TestInterruptedResumeOfAnUndrain(t *testing.T) {
	for _, kind := range []poolFaultKind{crashBefore, crashAfter, interruptsTwice} {
		for _, call := range []string{"stage", "load"} {
			for _, other := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/another operator %t", kind, call, other), func(t *testing.T) {
					t.Parallel()
					p := newPool(t, 2)
					p.run(p.firstOf(2, spec.Drain)).ended(t, spec.Done, "", "")
					p.fault = poolFault{who: "lb0", call: call, kind: kind}
					p.run(p.firstOf(2, spec.Undrain))
					if other {
						p.run(p.firstOf(1, spec.Undrain)).ended(t, spec.Done, "", "")
					}
					if len(p.unfinished()) > 0 {
						sp := p.resumes()
						p.fault = poolFault{who: "lb0", call: "health", kind: interrupts}
						out := p.run(sp)
						if out.exit == spec.Partial {
							out.truthful(p)
						}
					}
					p.putBack()
				})
			}
		}
	}
}

// A run whose work is done on a backend, or under way, does not ask --only-if about it again: it
// would say no, and leave the backend out.
func TestOnlyIfIsAskedOnce(t *testing.T) {
	for _, f := range []poolFault{{call: "systemctl start", kind: crashBefore}, {call: "systemctl reboot", kind: crashAfter}, {call: "systemctl reboot", kind: crashBefore}} {
		p := newPool(t, 2)
		sp := p.spec(spec.Run)
		sp.Rollout.OnlyIf = "test -e /run/reboot-required"
		f.who = p.apps[0].name
		p.fault = f
		p.run(sp)
		p.apps[0].skip = true
		resumed(p).ended(t, spec.Done, "", "")
		p.whole()
	}
}

// A resumed drain drains what was rolled back before, and the port that was added since; what was
// undrained meanwhile stays in the pool, and the result says so.
func TestResumedDrain(t *testing.T) {
	late := func(t *testing.T) (*pool, spec.Spec) {
		p := newPool(t, 2)
		sp := p.firstOf(2, spec.Drain)
		sp.OnTimeout = spec.TimeoutLeave
		p.apps[1].open = 1
		shortenLimits(t, &sp, p.apps[1])
		return p, sp
	}
	resume := func(p *pool) outcome {
		p.apps[1].open = 0
		sp := p.resumes()
		sp.PerBackend = nil
		return p.run(sp)
	}
	t.Run("what was rolled back", func(t *testing.T) {
		p, sp := late(t)
		p.apps[0].noStop = true
		p.run(sp).ended(t, spec.Partial, spec.Changed, "")
		p.apps[0].noStop = false
		resume(p).ended(t, spec.Done, "", "")
		if got := p.lbs[0].out(); len(got) != 2 || p.apps[0].active {
			t.Errorf("out are %v", got)
		}
		p.putBack()
	})
	t.Run("what was undrained", func(t *testing.T) {
		p, sp := late(t)
		p.run(sp).ended(t, spec.TimedOut, spec.Changed, "")
		p.run(p.firstOf(1, spec.Undrain)).ended(t, spec.Done, "", "")
		out := resume(p)
		out.ended(t, spec.Done, "", "")
		if s := out.result.Skipped; len(s) != 1 || s[0].Backend != p.apps[0].name || !slices.Equal(out.result.Targets, []string{p.apps[1].name}) || !p.apps[0].active {
			t.Errorf("skipped %+v, targets %v", s, out.result.Targets)
		}
		p.putBack()
	})
	t.Run("a port that was added", func(t *testing.T) {
		p, sp := late(t)
		p.run(sp).ended(t, spec.TimedOut, spec.Changed, "")
		p.apps[0].active = true
		for _, lb := range p.lbs {
			lb.lines = append(lb.lines, poolLine{address: p.apps[0].name + ":9090", serving: true})
		}
		resume(p).ended(t, spec.Done, "", "")
		if got := p.lbs[0].out(); len(got) != 3 {
			t.Errorf("out are %v", got)
		}
		p.putBack()
	})
	t.Run("interrupted", func(t *testing.T) {
		p, sp := late(t)
		p.run(sp).ended(t, spec.TimedOut, spec.Changed, "")
		again := p.resumes()
		p.fault = poolFault{who: "lb0", call: "watch", kind: interrupts}
		out := p.run(again)
		out.ended(t, spec.Partial, spec.Changed, "interrupted")
		out.truthful(p)
		p.apps[1].open = 0
		p.putBack()
	})
}

// The end of a drain is not written down on one LB. Its resume ends it there as well.
func TestEndOnOneLBAlone(t *testing.T) {
	for _, who := range []string{"lb0", "lb1"} {
		p := newPool(t, 2)
		p.fault = poolFault{who: who, call: "end", kind: callFails}
		p.run(p.firstOf(2, spec.Drain)).ended(t, spec.Done, "", "")
		resumed(p).ended(t, spec.Done, "", "")
		if ids := p.unfinished(); len(ids) > 0 {
			t.Errorf("%s: %v can be resumed", who, ids)
		}
		p.putBack()
	}
}

// A backend whose work failed stays out, also where the resume ends before its work is done.
func TestFailedWorkStaysOut(t *testing.T) {
	for _, f := range []poolFault{{who: "lb0", call: "watch", kind: interrupts}, {who: "lb0", call: "record", kind: callFails}} {
		t.Run(f.call, func(t *testing.T) {
			p := newPool(t, 2)
			ill := p.apps[0]
			ill.noBoot = true
			p.run(p.spec(spec.Run)).ended(t, spec.Partial, spec.Changed, "reboot")
			sp := p.resumes()
			p.fault = f
			out := p.run(sp)
			out.truthful(p)
			if !slices.Contains(p.lbs[0].out(), ill.name+":8080") {
				t.Errorf("%s is in the pool, and its work has failed", ill.name)
			}
			ill.noBoot = false
			resumed(p).ended(t, spec.Done, "", "")
			p.whole()
			p.worked(1, 1, 1)
		})
	}
}

// If only the return to the pool fails, the resume does not repeat the work.
func TestWorkIsDoneOnce(t *testing.T) {
	p := newPool(t, 2)
	loads := 0
	p.at["lb1 load"] = func() {
		if loads++; loads == 4 { // that of the end
			p.fault = poolFault{who: "lb1", call: "load", kind: callFails}
		}
	}
	p.run(p.spec(spec.Run)).ended(t, spec.Partial, spec.Changed, "")
	delete(p.at, "lb1 load")
	resumed(p).ended(t, spec.Done, "", "")
	p.worked(1, 1, 1)
	p.whole()
}

// A backend that is sick after its work counts as a failure of the resume.
func TestMaxFailuresOfAResume(t *testing.T) {
	p := newPool(t, 2)
	p.fault = poolFault{who: p.apps[0].name, call: "systemctl start", kind: crashAfter}
	p.run(p.spec(spec.Run))
	p.apps[0].sick = true
	sp := p.resumes()
	shortenLimits(t, &sp, p.apps[0])
	out := p.run(sp)
	out.ended(t, spec.Partial, spec.Changed, "not healthy")
	p.worked(1, 0, 0)
}

// The second Ctrl-C comes when the last backend is healthy and has not come back.
func TestInterruptedTwiceAtTheEnd(t *testing.T) {
	p := newPool(t, 1)
	out := p.run(p.spec(spec.Run), func(o *Options) {
		emit := o.Emit
		o.Emit = func(e event.Event) {
			if h, ok := e.(*event.HealthChecked); ok && h.Passed == healthChecks && h.Target == p.apps[2].name {
				p.end(interruptsTwice)
			}
			emit(e)
		}
	})
	out.ended(t, spec.Partial, spec.Changed, "interrupted")
	out.truthful(p)
	resumed(p).ended(t, spec.Done, "", "")
	p.whole()
	p.worked(1, 1, 1)
}

// A server line of a backend that is added after the plan is taken out with it, and comes back.
func TestServerIsAddedAfterThePlan(t *testing.T) {
	added := func(t *testing.T, at string, a int) *pool {
		p := newPool(t, 1)
		p.at[at] = func() {
			delete(p.at, at)
			p.lbs[0].lines = append(p.lbs[0].lines, poolLine{address: p.apps[a].name + ":9090", serving: true})
		}
		return p
	}
	p := added(t, "192.168.1.10 systemctl reboot", 1)
	p.run(p.spec(spec.Run)).ended(t, spec.Done, "", "")
	p.whole()
	p = added(t, "lb0 stage", 0)
	p.fault = poolFault{who: "lb0", call: "watch", kind: interrupts}
	p.run(p.firstOf(1, spec.Drain)).ended(t, spec.Interrupted, spec.AsBefore, "")
	p.whole()
	p = added(t, "lb0 stage", 0)
	p.apps[0].noStop = true
	sp := p.firstOf(2, spec.Drain)
	sp.Together = true
	p.run(sp).ended(t, spec.Failed, spec.AsBefore, "")
	p.whole()
}

// A hangingLB does not answer the last report.
type hangingLB struct {
	balancer.Balancer
	hang *bool
}

func (h hangingLB) Plan(ctx context.Context, q balancer.Query) (*balancer.Report, error) {
	if *h.hang {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return h.Balancer.Plan(ctx, q)
}

type hangingPool struct {
	*pool
	hang *bool
}

func (p hangingPool) LB(ctx context.Context, name string, n spec.Nginx) (balancer.Balancer, error) {
	b, err := p.pool.LB(ctx, name, n)
	if name == "lb1" && err == nil {
		b = hangingLB{b, p.hang}
	}
	return b, err
}

// An LB that does not answer at the end keeps no other from hearing of it.
func TestHangingLBAtTheEnd(t *testing.T) {
	p, hang := newPool(t, 2), false
	p.apps[0].open = 1
	sp := p.firstOf(2, spec.Drain)
	sp.OnTimeout = spec.TimeoutLeave
	shortenLimits(t, &sp, p.apps[0])
	p.at[p.apps[1].name+" systemctl stop"] = func() { hang = true }
	out := p.run(sp, func(o *Options) {
		o.Connect, o.bounds.end = hangingPool{p, &hang}, 200*time.Millisecond
	})
	out.ended(t, spec.TimedOut, spec.Changed, "not drained")
	for _, lb := range p.lbs {
		if op := lb.state.Operations[0]; op.Result == "" {
			t.Errorf("%s was not told of the end", lb.name)
		}
	}
}

// An undrain without a service waits for no connection on its way back: it stops nothing.
func TestResumedUndrainWithoutAService(t *testing.T) {
	p := newPool(t, 1)
	one := func(k spec.Kind) spec.Spec {
		s := p.firstOf(1, k)
		s.Service = ""
		return s
	}
	p.run(one(spec.Drain)).ended(t, spec.Done, "", "")
	p.fault = poolFault{who: "lb0", call: "stage", kind: crashBefore}
	p.run(one(spec.Undrain))
	sp := p.resumes()
	p.apps[0].open = 1
	p.at["lb0 connections"] = func() { t.Error("connections are counted") }
	p.fault = poolFault{who: "lb0", call: "health", kind: interrupts}
	p.run(sp).ended(t, spec.Interrupted, spec.AsBefore, "")
	if !p.apps[0].active {
		t.Error("the app is stopped")
	}
}

// The table of another user with the ID that is resumed says nothing.
func TestTableOfAnotherUserIsNotUsed(t *testing.T) {
	p := newPool(t, 2)
	p.fault = poolFault{who: "lb0", call: "stage", kind: crashBefore}
	p.run(p.firstOf(1, spec.Drain))
	sp := p.resumes()
	op := &p.lbs[1].state.Operations[0]
	op.Recorder = &journal.Recorder{UID: 1000, Name: "bob"}
	op.Progress = []byte(fmt.Sprintf(`{"steps":1000000,"rows":[{"backend":%q,"phase":"stopping","reached":"stopping","end":"done"}]}`, p.apps[0].name))
	p.run(sp)
	for _, lb := range p.lbs {
		if len(lb.out()) != 1 {
			t.Errorf("%s is without %v", lb.name, lb.out())
		}
	}
}

// A backend on each LB: one is rolled back, and the mark of the other one stays.
func TestBackendsOnTheLBs(t *testing.T) {
	lbs := []plan.LBPlan{}
	for _, name := range []string{"lb0", "lb1"} {
		lbs = append(lbs, plan.LBPlan{LB: name, Report: &balancer.Report{Servers: []balancer.Server{{Located: journal.Located{Server: keyed("127.0.0.1:80")}}}}})
	}
	rows := []*row{{plan: plan.Backend{Name: "lb0", LB: "lb0", Targets: []string{"127.0.0.1"}}}, {plan: plan.Backend{Name: "lb1", LB: "lb1", Targets: []string{"127.0.0.1"}}}}
	for i, lb := range lbs {
		for k := range rows {
			if n := len(serversOf(lb, rows[k:k+1])); (n == 1) != (i == k) {
				t.Errorf("%s has %d servers of the backend on %s", lb.LB, n, rows[k].plan.LB)
			}
		}
	}
}
