package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// newSocketPool is a pool whose apps have a socket each.
func newSocketPool(t *testing.T) *pool {
	p := newPool(t, 2)
	for _, a := range p.apps {
		a.hasSocket, a.listens = true, true
	}
	return p
}

// withSocket is a spec of the first backend, with its socket.
func (p *pool) withSocket(k spec.Kind) spec.Spec {
	sp := p.firstOf(1, k)
	if k != spec.Undrain {
		sp.Service = "app.socket app"
	}
	return sp
}

// didAll makes sure of what systemctl has done since the last time.
func (a *poolApp) didAll(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(a.did, want) {
		t.Errorf("systemctl did %q, want %q", a.did, want)
	}
	a.did = nil
}

// Units stop in the order given and start in reverse, but a socket before its service. The
// plan, the steps and the result name them in that order.
func TestUnitsInOrder(t *testing.T) {
	p := newSocketPool(t)
	a := p.apps[0]
	out := p.run(p.withSocket(spec.Drain))
	out.ended(t, spec.Done, "", "")
	a.didAll(t, "stop app.socket", "stop app")
	stands := []spec.ServiceStand{{Unit: "app.socket", Backend: a.name, Touched: true}, {Unit: "app", Backend: a.name, Touched: true}}
	if !slices.Equal(out.result.Services, stands) {
		t.Errorf("the result has %+v", out.result.Services)
	}
	for _, e := range eventsOf[*event.OperationStarted](out.told) {
		if e.Service != "app.socket app" {
			t.Errorf("it began with the service %q", string(e.Service))
		}
	}
	// It is so already.
	p.run(p.withSocket(spec.Drain)).ended(t, spec.Done, "", "")
	a.didAll(t)

	out = p.run(p.withSocket(spec.Undrain))
	out.ended(t, spec.Done, "", "")
	a.didAll(t, "start app.socket", "start app")
	for _, e := range eventsOf[*event.StepStarted](out.told) {
		if d := e.Description; e.Step == plan.StepService && (d.Service != "app.socket, app" || !slices.Equal(d.Services, []string{"app.socket", "app"})) {
			t.Errorf("a step is about %q, %q", d.Service, d.Services)
		}
	}
	p.whole()

	run := p.withSocket(spec.Run)
	p.run(run).ended(t, spec.Done, "", "")
	a.didAll(t, "stop app.socket", "stop app", "reboot", "start app.socket", "start app")
	p.whole()
}

// An operation that breaks off at one of two stops, or at one of two starts, leaves what undrain and
// resume bring back, though systemd starts no socket of an app that runs.
func TestUnitsBreakOff(t *testing.T) {
	for _, kind := range []poolFaultKind{callFails, answerLost, crashBefore, crashAfter, interrupts, interruptsTwice} {
		for _, call := range []string{"systemctl stop", "systemctl start"} {
			for nth := 1; nth <= 2; nth++ {
				for _, resumes := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/%d/resumed %t", kind, call, nth, resumes), func(t *testing.T) {
						t.Parallel()
						p := newSocketPool(t)
						a, kinds := p.apps[0], []spec.Kind{spec.Drain}
						if call == "systemctl start" {
							p.run(p.withSocket(spec.Drain)).ended(t, spec.Done, "", "")
							kinds[0] = spec.Undrain
						}
						n := 0
						p.at[a.name+" "+call] = func() {
							p.fault = poolFault{}
							if n++; n == nth {
								p.fault = poolFault{who: a.name, call: call, kind: kind}
							}
						}
						out := p.run(p.withSocket(kinds[0]))
						if out.exit == spec.Failed || out.exit == spec.Interrupted { // rolled back
							if up := kinds[0] == spec.Drain; a.active != up || a.listens != up {
								t.Errorf("exit %d, and the app runs %t, its socket %t: %v", out.exit, a.active, a.listens, out.err)
							}
						}
						if resumes && len(p.unfinished()) > 0 {
							resumed(p).ended(t, spec.Done, "", "")
							if down := kinds[0] == spec.Drain; a.active == down || a.listens == down {
								t.Errorf("resumed, and the app runs %t, its socket %t", a.active, a.listens)
							}
						}
						p.putBack()
						if !a.listens {
							t.Error("the socket is stopped")
						}
					})
				}
			}
		}
	}
}

// A rollback starts what it has stopped, in reverse, and nothing else.
func TestRollbackOfUnits(t *testing.T) {
	host := &scriptedHost{states: []string{"inactive", "active", "inactive", "active"}}
	w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "a b c" })
	m := w.rows[0]
	m.Units = unitsOn(host, "a", "b", "c")
	m.Units[0].Touched, m.Units[1].Touched = true, true
	m.plan.Settings.Service = "a b c"
	m.phase, m.reached = plan.Stopping, plan.Stopping
	if v := w.control(t.Context(), plan.Starting, true); v.Err != nil || strings.Join(host.commands, ", ") != "systemctl start b, systemctl start a" {
		t.Errorf("%+v, it ran %q", v, host.commands)
	}
}

// A resumed drain knows of each unit whether it ran before: one that did not is not started by its rollback.
func TestUnitsThatDidNotRun(t *testing.T) {
	p := newSocketPool(t)
	a := p.apps[0]
	a.listens = false
	p.fault = poolFault{who: a.name, call: "systemctl stop", kind: crashBefore}
	p.run(p.withSocket(spec.Drain))
	a.noStop = true
	if out := resumed(p); out.exit != spec.Failed || a.listens || !a.active {
		t.Errorf("exit %d: %v; the app runs %t, its socket %t", out.exit, out.err, a.active, a.listens)
	}
	p.whole()
}

// A unit that another one starts again is refused, with the command line that stops that one first.
func TestUnitAfterItsSocket(t *testing.T) {
	units := map[string]string{
		"app": "TriggeredBy=app.socket app.path\n", "app.socket": "RequiredBy=app.service\n", "app.path": "ActiveState=inactive\n",
		"api.service": "TriggeredBy=api.timer\n", "api.timer": "Triggers=api.service\n",
		"web.socket": "Triggers=web.service\n", "web.service": "TriggeredBy=web.socket\n",
		"old.socket": "Triggers=old.service\nRequiredBy=old.service\n", "old.service": "TriggeredBy=old.socket\n",
		"idle.socket": "Triggers=idle.service\n", "idle.service": "ActiveState=inactive\n",
	}
	for _, test := range []struct {
		service spec.Units
		hint    string // "": none
		says    string
	}{
		{"app.socket app", "", ""},
		{"app", "--service app.socket --service app", "app.socket, which is active, starts app on"},
		{"app app.socket", "--service app.socket --service app", "app.socket, which is active, starts app on"},
		{"app api.service", "--service app.socket --service app --service api.timer --service api.service", "api.timer, which is active, starts api.service on"},
		{"app.socket api.timer api.service app", "", ""},
		// A socket by itself would not start again, unless its service stops with it.
		{"web.socket", "--service web.socket --service web.service", "web.socket on deploy@192.168.1.10 would not start again while web.service runs"},
		{"web.socket web.service", "", ""},
		{"old.socket", "", ""},
		{"idle.socket", "", ""},
		{"api.timer", "", ""},
	} {
		f, sp := newCheckedFleet()
		f.backend = func() (remote.Host, error) {
			return unitHost{checkedHost{remote.Local(nil), "deploy", ""}, units}, nil
		}
		sp.Kind, sp.LBs, sp.Targets, sp.Service, sp.Counter = spec.Run, []string{"lb0"}, []string{"192.168.1.10"}, test.service, spec.CounterLB
		r, err := CheckAll(t.Context(), sp, f)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		var seen spec.Units
		for _, c := range r.Checks {
			if c.Name != event.CheckUnit {
				continue
			}
			if c.Seen.Service != nil {
				seen = seen.With(spec.Units(c.Seen.Service.Unit))
			}
			if c.Finding != nil && !c.Finding.Warning {
				texts = append(texts, c.Finding.Text)
			}
		}
		got := strings.Join(texts, "\n")
		if (test.hint == "") != (got == "") || !strings.Contains(got, test.says) || !strings.Contains(got, "hint: "+test.hint) && test.hint != "" {
			t.Errorf("%s: %q", test.service, got)
		}
		if test.hint == "" && seen != test.service {
			t.Errorf("%s: checked %q", test.service, seen)
		}
	}
}

// The right to stop and start is looked at for each unit.
func TestRightToStopEachUnit(t *testing.T) {
	f, sp := newCheckedFleet()
	f.backend = func() (remote.Host, error) {
		return unitHost{checkedHost{remote.Local(nil), "deploy", "stop app.socket"}, map[string]string{"app.socket": "", "app": ""}}, nil
	}
	sp.LBs, sp.Targets, sp.Service, sp.Counter = []string{"lb0"}, []string{"192.168.1.10"}, "app.socket app", spec.CounterLB
	r, err := CheckAll(t.Context(), sp, f)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Checks, func(c event.Check) bool { return c.Name == event.CheckSudo && c.Finding != nil })
	if i < 0 || !strings.Contains(r.Checks[i].Finding.Text, "systemctl start app.socket") || !strings.Contains(r.Checks[i].Finding.Text, "systemctl stop app.socket") {
		t.Errorf("%+v", r.Checks)
	}
}

// Ports of one host that share a unit are taken together.
func TestPortsThatShareAUnit(t *testing.T) {
	p := twoPorts(t)
	sp, one := p.spec(spec.Run), p.apps[0].name
	sp.Rollout.Reboot, sp.Rollout.Command = false, []string{"true"}
	sp.Targets, sp.Service = []string{one + ":8080", one + ":9090"}, "app.socket app"
	for other, batches := range map[string]int{"app.service": 1, "other.socket other": 2} {
		text, err := json.Marshal(map[string]string{"service": other})
		if err != nil {
			t.Fatal(err)
		}
		sp.PerBackend = map[string]json.RawMessage{one + ":9090": text}
		plan, err := DryRun(t.Context(), sp, Options{Connect: p})
		p.over()
		if err != nil || len(plan.Batches) != batches {
			t.Errorf("%s: %v, want %d batches: %v", other, plan, batches, err)
		}
	}
}

// An undrain leaves an app alone that nginx sends requests to, though its socket could start only after it.
func TestSocketOfALiveApp(t *testing.T) {
	p := newSocketPool(t)
	a := p.apps[0]
	a.listens = false
	sp := p.withSocket(spec.Undrain)
	sp.Service = "app.socket app"
	out := p.run(sp)
	out.ended(t, spec.Done, "", "")
	a.didAll(t)
	if !a.active || !slices.ContainsFunc(eventsOf[*event.Warning](out.told), func(w *event.Warning) bool {
		return strings.Contains(w.Text, "app.socket stays stopped") && strings.Contains(w.Text, "nginx sends requests there")
	}) {
		t.Errorf("active %t; told %+v", a.active, eventsOf[*event.Warning](out.told))
	}
}

// systemd stops the app with its socket, and the answer to that stop is lost: the rollback starts both.
func TestRollbackOfAUnitThatStoppedWithAnother(t *testing.T) {
	p := newSocketPool(t)
	a, n := p.apps[0], 0
	p.at[a.name+" systemctl stop"] = func() {
		p.fault = poolFault{}
		if n++; n == 1 {
			a.active = false
			p.fault = poolFault{who: a.name, call: "systemctl stop", kind: answerLost}
		}
	}
	p.run(p.withSocket(spec.Drain))
	if !a.active || !a.listens {
		t.Errorf("the app runs %t, its socket listens %t; systemctl did %q", a.active, a.listens, a.did)
	}
	p.whole()
}

// A portHost tells which unit listens on its port 8081.
type portHost struct {
	checkedHost
	listens, cgroup string
}

func (h portHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	switch c.Args[0] {
	case "ss":
		return remote.Result{Stdout: []byte(h.listens)}, nil
	case "cat":
		return remote.Result{Stdout: []byte(h.cgroup)}, nil
	}
	return h.checkedHost.Run(ctx, c)
}

// The host is asked whether the unit that stops serves another port that stays in a pool.
func TestOtherPortOfTheUnit(t *testing.T) {
	const open = `LISTEN 0 4096 *:8081 *:* users:(("app",pid=7,fd=3))` + "\n"
	report := &balancer.Report{
		Servers:  []balancer.Server{{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "a", Address: "192.168.1.10:8080"}}, Name: "a", NeedsEdit: true}},
		Excluded: []balancer.Server{{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "b", Address: "192.168.1.10:8081"}, File: "/b.conf", Line: 3}, Name: "b"}},
	}
	for _, test := range []struct {
		name, listens, cgroup string
		change                func(*spec.Spec)
		says                  string
		warns                 bool
	}{
		{"the unit that stops", open, "0::/system.slice/two.service\n", nil, "/b.conf:3: 192.168.1.10:8081 in b stays up, and two.service serves it, too", false},
		{"another unit", open, "0::/system.slice/other.service\n", nil, "", false},
		{"no unit", open, "0::/user.slice/user-0.slice/session-1.scope\n", nil, "", false},
		{"a container", open, "0::/system.slice/docker.service\n", nil, "which unit serves it cannot be seen", false},
		{"systemd", strings.Replace(open, "pid=7", "pid=1", 1), "0::/init.scope\n", nil, "which unit serves it cannot be seen", false},
		{"nobody", "", "", nil, "", false},
		{"not to be seen", "LISTEN 0 4096 *:8081 *:*\n", "", nil, "which unit serves it cannot be seen", false},
		{"allowed", open, "0::/system.slice/two.service\n", func(s *spec.Spec) { s.Allow.OtherNames = true }, "two.service serves it, too", true},
		{"a reboot", open, "0::/system.slice/other.service\n", func(s *spec.Spec) { s.Kind, s.Rollout.Reboot = spec.Run, true }, "the reboot ends it, too", false},
	} {
		sp := spec.Default(spec.Drain)
		sp.Targets, sp.Service = []string{"192.168.1.10:8080"}, "two"
		if test.change != nil {
			test.change(&sp)
		}
		o := &Operation{plan: plan.New(sp, []plan.LBPlan{{Report: report}}, false)}
		m := &row{plan: o.plan.Backends[0], Backend: &backend.Backend{Host: portHost{checkedHost{nil, "root", ""}, test.listens, test.cgroup}}}
		found := o.portFindings(t.Context(), m)
		isRight := len(found) == 0 && test.says == "" || len(found) == 1 && test.says != "" && strings.Contains(found[0].Text, test.says) &&
			found[0].Warning == test.warns && (found[0].Override == "--allow-other-names") == !test.warns
		if !isRight {
			t.Errorf("%s: %+v, want %q", test.name, found, test.says)
		}
	}
}
