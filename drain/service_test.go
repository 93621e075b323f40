package drain

import (
	"cmp"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// A scriptedHost answers systemctl by a script: the states of a unit, one look
// after the other, and what its commands end with.
type scriptedHost struct {
	remote.Host
	states   []string // the last one stays
	looks    int
	result   string // of the unit; empty: success
	code     int    // of start and stop
	says     string // on standard error
	log      string // of the unit
	hang     bool   // start and stop do not end
	commands []string
}

func (h *scriptedHost) Name() string { return "app-1" }

func (h *scriptedHost) Run(ctx context.Context, c remote.Command) (remote.Result, error) {
	switch {
	case c.Args[0] == "journalctl", c.Args[1] == "status":
		return remote.Result{Stdout: []byte(h.log)}, nil
	case c.Args[1] == "show":
		state := h.states[min(h.looks, len(h.states)-1)]
		h.looks++
		return remote.Result{Stdout: []byte("LoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=" + cmp.Or(h.result, "success") + "\n")}, nil
	}
	h.commands = append(h.commands, strings.Join(c.Args, " "))
	if h.hang {
		<-ctx.Done()
		return remote.Result{}, context.Cause(ctx)
	}
	return remote.Result{Code: h.code, Stderr: []byte(h.says)}, nil
}

// unitsOn are units of a host.
func unitsOn(host remote.Host, names ...string) (units []*backend.Unit) {
	for _, name := range names {
		units = append(units, &backend.Unit{Service: remote.Service{Host: host, Unit: name}})
	}
	return units
}

func TestService(t *testing.T) {
	for _, test := range []struct {
		name    string
		p       plan.Phase
		host    *scriptedHost
		outcome Outcome
		changed bool
		says    string // the error
		command string
	}{
		{"stop", plan.Stopping, &scriptedHost{states: []string{"active", "inactive"}}, StepOK, true, "", "systemctl stop app"},
		{"stop, and it ends with an error code", plan.Stopping, &scriptedHost{states: []string{"active", "failed"}}, StepOK, true, "", "systemctl stop app"},
		{"stop, which takes a while", plan.Stopping, &scriptedHost{states: []string{"active", "deactivating", "inactive"}}, StepOK, true, "", "systemctl stop app"},
		{"stopped already", plan.Stopping, &scriptedHost{states: []string{"inactive"}}, StepOK, false, "", ""},
		{"stop fails", plan.Stopping, &scriptedHost{states: []string{"active"}, code: 1, says: "Job failed."}, StepError, true, "Job failed.", "systemctl stop app"},
		{"stop does nothing", plan.Stopping, &scriptedHost{states: []string{"active"}}, StepError, true, "systemctl stop app succeeded, but the unit is active", "systemctl stop app"},
		{"stop does not end", plan.Stopping, &scriptedHost{states: []string{"active", "deactivating"}, hang: true}, Irreversible, true, "app was told to stop and has not ended within 150ms (--stop-timeout); it is deactivating", "systemctl stop app"},
		{"start", plan.Starting, &scriptedHost{states: []string{"inactive", "active"}}, StepOK, true, "", "systemctl start app"},
		{"start, which takes a while", plan.Starting, &scriptedHost{states: []string{"inactive", "activating", "active"}}, StepOK, true, "", "systemctl start app"},
		{"started already", plan.Starting, &scriptedHost{states: []string{"active"}}, StepOK, false, "", ""},
		{"start, while it still stops", plan.Starting, &scriptedHost{states: []string{"deactivating", "deactivating", "inactive", "active"}}, StepOK, true, "", "systemctl start app"},
		{"start, and it never stops", plan.Starting, &scriptedHost{states: []string{"deactivating"}}, StepError, false, "has not ended within 150ms", ""},
		{"start fails", plan.Starting, &scriptedHost{states: []string{"inactive"}, code: 1, says: "Job failed.", log: "boom"}, StepError, true, "Job failed.", "systemctl start app"},
		{"start, and it ends at once", plan.Starting, &scriptedHost{states: []string{"inactive", "activating", "failed"}, log: "boom"}, StepError, true, "systemctl start app succeeded, but the unit is failed", "systemctl start app"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service, s.StopTimeout = "app", 150*time.Millisecond })
			m := w.rows[0]
			m.Units = unitsOn(test.host, "app")
			v := w.control(t.Context(), test.p, false)
			if v.Outcome != test.outcome || v.Changed != test.changed || m.Touched() != (test.command != "") {
				t.Errorf("%+v, touched %t", v, m.Touched())
			}
			if (v.Err == nil) != (test.says == "") || v.Err != nil && !strings.Contains(v.Err.Error(), test.says) {
				t.Errorf("got %v, want %q", v.Err, test.says)
			}
			if got := strings.Join(test.host.commands, ", "); got != test.command {
				t.Errorf("it ran %q, want %q", got, test.command)
			}
			if test.host.log != "" && strings.Join(v.Log, "\n") != "boom" {
				t.Errorf("the app's log is %q", v.Log)
			}
			if v.Outcome == Irreversible && (len(v.Next) != 1 || v.Next[0].On != "app-1" || v.Next[0].String() != "systemctl kill --signal=KILL app") {
				t.Errorf("next: %+v", v.Next)
			}
		})
	}
}

// A rollback touches the services that this run has touched, and no other.
func TestServiceOfARollback(t *testing.T) {
	host := &scriptedHost{states: []string{"inactive"}}
	w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "app" })
	m := w.rows[0]
	m.Units = unitsOn(host, "app")
	m.phase, m.reached = plan.Stopping, plan.Stopping
	if w.o.unwind(t.Context(), w, failed(false, errFault)); m.end != rolledBack || host.looks > 0 || len(host.commands) > 0 {
		t.Errorf("%s, %q", m.end, host.commands)
	}
}

// A service that was seen active when everything was checked is stopped without
// asking again, so that the stop follows the last request closely.
func TestStopAsksNothingBefore(t *testing.T) {
	host := &scriptedHost{states: []string{"inactive"}}
	w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "app" })
	m := w.rows[0]
	m.Units = unitsOn(host, "app")
	m.Units[0].Active = true
	if v := w.control(t.Context(), plan.Stopping, false); v.Err != nil || !v.Changed || host.looks != 1 {
		t.Errorf("%+v after %d looks", v, host.looks)
	}
}

// How an app ended is told, unless it ended well.
func TestHowAnAppEnded(t *testing.T) {
	for _, test := range []struct{ state, result, want string }{
		{"failed", "timeout", "timeout"}, {"failed", "exit-code", "exit-code"}, {"inactive", "success", ""}, {"inactive", "", ""},
	} {
		host := &scriptedHost{states: []string{"active", test.state}, result: test.result}
		w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "app" })
		w.rows[0].Units = unitsOn(host, "app")
		v := w.control(t.Context(), plan.Stopping, false)
		if v.Err != nil || len(v.Detail.Services) != 1 || v.Detail.Services[0].Result != test.want {
			t.Errorf("%s, %s: %+v", test.state, test.result, v)
		}
	}
	host := &scriptedHost{states: []string{"inactive", "active"}, result: "timeout"} // of the run before
	w, _ := waitOf(nil, nil, func(s *spec.Spec) { s.Service = "app" })
	w.rows[0].Units = unitsOn(host, "app")
	if v := w.control(t.Context(), plan.Starting, false); v.Err != nil || v.Detail.Services[0].Result != "" {
		t.Errorf("started: %+v", v)
	}
}
