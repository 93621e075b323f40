package drain

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/event"
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
