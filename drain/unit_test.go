package drain

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A unitHost is a backend with units: what systemctl show prints of each, beside that it
// is loaded and active.
type unitHost struct {
	checkedHost
	units map[string]string
}

func (h unitHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	if c.Args[0] != "systemctl" || c.Args[1] != "show" {
		return h.checkedHost.Run(ctx, c)
	}
	text, ok := h.units[c.Args[len(c.Args)-1]]
	if !ok {
		return remote.Result{Stdout: []byte("LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n")}, nil
	}
	return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n" + text)}, nil
}

// checkUnits makes the check of the unit "app" of a backend with these units.
func checkUnits(t *testing.T, k spec.Kind, units map[string]string) (checks []event.Check) {
	t.Helper()
	f, _ := newCheckedFleet()
	if k == spec.Undrain && !strings.Contains(units["app"], "ActiveState=") {
		units = maps.Clone(units)
		units["app"] = "ActiveState=inactive\n" + units["app"]
	}
	f.backend = func() (remote.Host, error) {
		return unitHost{checkedHost{remote.Local(nil), "deploy", ""}, units}, nil
	}
	sp := spec.Default(k)
	sp.LBs, sp.Targets, sp.Service, sp.Counter = []string{"lb0"}, []string{"192.168.1.10"}, "app", spec.CounterLB
	r, err := CheckAll(t.Context(), sp, f)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(r.Checks, func(c event.Check) bool { return c.Name != event.CheckUnit })
}

// A unit that systemd would not stop, or not start again, or start by itself, is found
// before anything is touched.
func TestUnitThatCannotComeBack(t *testing.T) {
	const drain, undrain = spec.Drain, spec.Undrain
	for _, test := range []struct {
		name  string
		units map[string]string
		kinds map[spec.Kind]string // the codes found; "": none
		says  string
	}{
		{"an ordinary unit", map[string]string{"app": "UnitFileState=enabled\nCanStart=yes\nCanStop=yes\nKillMode=control-group\nTriggeredBy=\n"},
			map[spec.Kind]string{drain: "", undrain: "", spec.Run: ""}, ""},
		{"an early systemd", map[string]string{"app": ""}, map[spec.Kind]string{drain: "", undrain: ""}, ""},
		{"masked", map[string]string{"app": "LoadState=masked\nUnitFileState=masked\nCanStart=no\nCanStop=yes\n"},
			map[spec.Kind]string{drain: "unit-masked", undrain: "unit-masked", spec.Run: "unit-masked"}, "systemctl unmask app"},
		{"masked, and it runs", map[string]string{"app": "ActiveState=active\nLoadState=masked\n"}, map[spec.Kind]string{undrain: "", drain: "unit-masked"}, ""},
		{"masked, not reloaded", map[string]string{"app": "UnitFileState=masked-runtime\nCanStart=yes\n"},
			map[spec.Kind]string{drain: "unit-masked"}, "app on deploy@192.168.1.10 is masked: systemd would not start it again"},
		{"a broken unit file", map[string]string{"app": "LoadState=bad-setting\nCanStart=no\nCanStop=yes\n"},
			map[spec.Kind]string{drain: "unit-broken", undrain: "unit-broken"}, "bad-setting"},
		{"an unreadable unit file", map[string]string{"app": "LoadState=error\n"}, map[spec.Kind]string{drain: "unit-broken"}, "LoadState=error"},
		{"no start by an operator", map[string]string{"app": "CanStart=no\nCanStop=yes\n"},
			map[spec.Kind]string{drain: "unit-start", undrain: "unit-start"}, "RefuseManualStart"},
		{"no stop by an operator", map[string]string{"app": "CanStart=yes\nCanStop=no\n"},
			map[spec.Kind]string{drain: "unit-stop", undrain: "", spec.Run: "unit-stop"}, "RefuseManualStop"},
		{"transient", map[string]string{"app": "UnitFileState=transient\n"},
			map[spec.Kind]string{drain: "unit-transient", undrain: ""}, "systemd-run"},
		{"socket activation", map[string]string{"app": "TriggeredBy=app.socket app.path\n", "app.socket": "", "app.path": "ActiveState=inactive\n"},
			map[spec.Kind]string{drain: "unit-starter", undrain: "", spec.Run: "unit-starter"}, "app.socket, which is active, starts app on deploy@192.168.1.10 again while"},
		{"upheld", map[string]string{"app": "TriggeredBy=\nUpheldBy=\"keep\\\\x2dit.service\"\n", `keep\x2dit.service`: ""},
			map[spec.Kind]string{drain: "unit-starter"}, `keep\x2dit.service, which is active`},
		{"a socket that is stopped", map[string]string{"app": "TriggeredBy=app.socket\n", "app.socket": "ActiveState=inactive\n"},
			map[spec.Kind]string{drain: ""}, ""},
		{"a socket that is gone", map[string]string{"app": "TriggeredBy=app.socket\n"}, map[spec.Kind]string{drain: ""}, ""},
		{"children that go on", map[string]string{"app": "KillMode=process\n"}, map[spec.Kind]string{drain: "unit-children", undrain: ""}, "KillMode=process"},
		{"nothing is killed", map[string]string{"app": "KillMode=none\n"}, map[spec.Kind]string{spec.Run: "unit-children"}, "KillMode=none"},
	} {
		for kind, want := range test.kinds {
			var codes, texts []string
			for _, c := range checkUnits(t, kind, test.units) {
				if c.Finding != nil {
					codes, texts = append(codes, c.Finding.Code), append(texts, c.Finding.Text)
				}
				if warns := c.Finding != nil && c.Finding.Code == "unit-children"; warns != (c.Result == event.CheckWarning) {
					t.Errorf("%s, %s: the result is %s", test.name, kind, c.Result)
				}
			}
			if got := strings.Join(codes, " "); got != want || want != "" && !strings.Contains(strings.Join(texts, "\n"), test.says) {
				t.Errorf("%s, %s: %q (%s), want %q (%s)", test.name, kind, got, texts, want, test.says)
			}
		}
	}
}

// A drain refuses a unit that cannot come back, and warns of one whose children go on.
func TestDrainChecksUnit(t *testing.T) {
	r := newRig(t)
	r.unit.shows = "UnitFileState=masked\n"
	before := r.now()
	if _, err := r.run(r.spec(spec.Drain)); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), "is masked") || r.now().conf != before.conf || !r.unit.active() {
		t.Errorf("got %v", err)
	}
	r.unit.shows = "KillMode=process\n"
	told, err := r.run(r.spec(spec.Drain))
	if err != nil || r.unit.active() || !strings.Contains(told.warnings(), "KillMode=process") {
		t.Errorf("warned of %q, %v", told.warnings(), err)
	}
}

// What systemd stops with the app, and ran before, runs again after: of an undrain, also
// when the drain was repeated; and of a rollback and a rolling run. What did not run is left alone.
func TestDependentsRunAgain(t *testing.T) {
	part := func(r *rig, runs bool) *partUnit {
		r.unit.onStop, r.unit.part = nil, &partUnit{name: "worker.service", runs: runs}
		return r.unit.part
	}
	wants := func(name string, r *rig, err error, started int) {
		t.Helper()
		if p := r.unit.part; err != nil || !r.unit.active() || p.runs != (started > 0) || p.started != started {
			t.Errorf("%s: %+v, %v", name, *p, err)
		}
	}
	r := newRig(t)
	for _, test := range []struct {
		name    string
		drains  int
		runs    bool
		started int
	}{
		{"once", 1, true, 1}, {"twice", 2, true, 1}, {"it did not run", 1, false, 0},
	} {
		part(r, test.runs)
		for range test.drains {
			told, err := r.run(r.spec(spec.Drain))
			if err != nil || r.unit.part.runs {
				t.Fatalf("%s: %v", test.name, err)
			}
			if test.runs && test.drains == 1 && !strings.Contains(told.warnings(), "systemd stops worker.service with app") {
				t.Errorf("warned of %q", told.warnings())
			}
		}
		_, err := r.run(r.spec(spec.Undrain))
		wants(test.name, r, err, test.started)
	}

	part(r, true)
	sp := r.spec(spec.Run)
	sp.Service, sp.Rollout.Command = "app", []string{"true"}
	_, err := r.run(sp)
	wants("rolling run", r, err, 1)

	part(r, true)
	sp.Rollout.Command, sp.Rollout.OnFailure = []string{"false"}, spec.FailureUndrain
	if _, err = r.run(sp); spec.ExitOf(err) != spec.Failed {
		t.Errorf("rolled back: %v", err)
	}
	wants("rolled back", r, nil, 1)

	p := part(r, true)
	p.broken = true
	if _, err := r.run(r.spec(spec.Drain)); err != nil {
		t.Fatal(err)
	}
	told, err := r.run(r.spec(spec.Undrain))
	if err != nil || !r.unit.active() || !strings.Contains(told.warnings(), "start worker.service") {
		t.Errorf("it does not start: %v, warned of %q", err, told.warnings())
	}
}

// The right to start what systemd stops with the app is looked at before anything is touched.
func TestRightToStartDependents(t *testing.T) {
	f, sp := newCheckedFleet()
	f.backend = func() (remote.Host, error) {
		return unitHost{checkedHost{remote.Local(nil), "deploy", "start worker.service"}, map[string]string{
			"app": "RequiredBy=worker.service\n", "worker.service": "BoundBy=app.service\nPropagatesStopTo=more.timer\n", "more.timer": "",
		}}, nil
	}
	sp.LBs, sp.Targets, sp.Service, sp.Counter = []string{"lb0"}, []string{"192.168.1.10"}, "app", spec.CounterLB
	r, err := CheckAll(t.Context(), sp, f)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, c := range r.Checks {
		if c.Finding != nil {
			texts = append(texts, string(c.Name)+": "+c.Finding.Text)
		}
	}
	if got := strings.Join(texts, "\n"); !strings.Contains(got, "unit: systemd stops worker.service, more.timer with app") || !strings.Contains(got, "sudo: deploy on") || !strings.Contains(got, "systemctl start worker.service") {
		t.Error(got)
	}
}

// A callerLB sees root as its caller.
type callerLB struct{ balancer.Balancer }

func (callerLB) Caller() journal.Recorder { return journal.Recorder{} }

// What another user recorded is started with consent only, and never what is no app's.
func TestDependentsOfAnotherUser(t *testing.T) {
	server := keyed("10.0.0.1:80")
	for _, test := range []struct {
		name     string
		kind     spec.Kind
		uid      uint32
		consents bool
		warned   bool
		want     string
	}{
		{"one's own", spec.Undrain, 0, false, false, "worker.service more.timer"},
		{"another's", spec.Undrain, 1000, false, true, ""},
		{"another's, with consent", spec.Undrain, 1000, true, false, "worker.service more.timer"},
		{"another's, in a drain", spec.Drain, 1000, false, false, ""},
	} {
		w, l := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "app" })
		o := w.o
		o.plan.Spec.Kind, o.plan.Spec.AsRecorded = test.kind, test.consents
		o.lbs = fleet.Fleet{{Balancer: callerLB{}, Name: fleet.ThisMachine}}
		o.plan.LBs[0].Report.State = journal.State{
			Marks: []journal.Mark{{Server: server, Change: journal.Change{Operation: "1"}}},
			Operations: []journal.Operation{{
				ID: "1", Kind: journal.KindDrain, Recorder: &journal.Recorder{UID: test.uid}, Servers: []journal.Located{{Server: server}},
				Progress: []byte(`{"steps":3,"rows":[{"backend":"app-1","phase":"stopping","reached":"stopping","dependents":["worker.service","poweroff.target","--now.service","more.timer"]}]}`),
			}},
		}
		o.recall()
		warned := l.warnings()
		if got := strings.Join(o.whole.rows[0].Dependents, " "); got != test.want || strings.Contains(warned, "worker.service") != test.warned {
			t.Errorf("%s: %q, and it says %q", test.name, got, warned)
		}
	}
}

// A port that answers though the app is stopped is told of. A TCP connect then says nothing
// of the app: an undrain and a rolling run want a health URL.
func TestStoppedAppThatAnswers(t *testing.T) {
	r := newRig(t)
	r.unit.stays = true
	run := func(sp spec.Spec) (*event.Result, string, error) {
		told := &told{}
		op, err := Prepare(t.Context(), sp, Options{Connect: connector{r}, Emit: told.emit, bounds: shortBounds})
		if err != nil {
			return nil, "", err
		}
		defer op.Close()
		err = op.Run(t.Context(), t.Context())
		return op.Result(), told.warnings(), err
	}
	text := r.unit.addr + " still answers, though app is stopped"
	result, warned, err := run(r.spec(spec.Drain))
	if err != nil || !slices.Equal(result.StillAnswering, []string{r.unit.addr}) || !strings.Contains(warned, text) {
		t.Errorf("drain: %+v, %q, %v", result, warned, err)
	}
	if _, _, err = run(r.spec(spec.Undrain)); spec.ExitOf(err) != spec.Refused || !strings.Contains(err.Error(), text) || r.read() != r.drained() || r.unit.active() {
		t.Errorf("undrain: %v", err)
	}
	sp := r.spec(spec.Undrain)
	sp.Health = "http://" + r.unit.addr + "/"
	if result, warned, err = run(sp); err != nil || !r.unit.active() || r.read() != r.was || len(result.StillAnswering) > 0 || warned != "" {
		t.Errorf("undrain with a health URL: %+v, %q, %v", result, warned, err)
	}
	sp = r.spec(spec.Run)
	sp.Service, sp.Rollout.Command = "app", []string{"touch", r.dir + "/worked"}
	if _, _, err = run(sp); spec.ExitOf(err) != spec.Failed || !strings.Contains(err.Error(), text) || !r.unit.active() || r.read() != r.was {
		t.Errorf("run: %v", err)
	}
	if _, err := os.Stat(r.dir + "/worked"); err == nil {
		t.Error("run: the work was done")
	}
	sp.Health = "http://" + r.unit.addr + "/"
	if _, warned, err = run(sp); err != nil || !r.unit.active() || r.read() != r.was || !strings.Contains(warned, text) {
		t.Errorf("run with a health URL: %q, %v", warned, err)
	}
}
