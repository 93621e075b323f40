package spec

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
)

var (
	rootRecorder   = &journal.Recorder{Name: "root"}
	deployRecorder = &journal.Recorder{UID: 1000, Name: "deploy"}
	annRecorder    = &journal.Recorder{UID: 1001, Name: "ann"}
)

// What another user than root recorded is used with consent alone, whoever asks. What
// does nothing on a machine needs none.
func TestConsent(t *testing.T) {
	with := func(change func(*Spec)) Spec {
		s := Default(Drain)
		s.Targets, s.Threshold = []string{"192.168.1.10"}, 3
		change(&s)
		return s
	}
	service := with(func(s *Spec) { s.Service = "shop" })
	for _, c := range []struct {
		name     string
		spec     Spec
		caller   *journal.Recorder
		recorder *journal.Recorder
		given    []string
		shows    string // empty: no consent is needed
	}{
		{"root's own", service, rootRecorder, rootRecorder, nil, ""},
		{"root's, by deploy", service, deployRecorder, rootRecorder, nil, ""},
		{"deploy's own", service, deployRecorder, deployRecorder, nil, ""},
		{"deploy's, by root", service, rootRecorder, deployRecorder, nil, "--service shop"},
		{"deploy's, by ann", service, annRecorder, deployRecorder, nil, "--service shop"},
		{"of an unknown user", service, rootRecorder, nil, nil, "--service shop"},
		{"the unit is named", service, rootRecorder, deployRecorder, []string{"service"}, ""},
		{"nothing that acts", with(func(*Spec) {}), rootRecorder, deployRecorder, nil, ""},
		{"an SSH host", with(func(s *Spec) { s.SSH.Host = "10.0.0.9" }), rootRecorder, deployRecorder, nil, "--ssh-host 10.0.0.9"},
		{"an SSH port", with(func(s *Spec) { s.SSH.Port = 2222 }), rootRecorder, deployRecorder, nil, "--ssh-port 2222"},
		{"a key", with(func(s *Spec) { s.SSH.Identity = "/home/deploy/key" }), rootRecorder, deployRecorder, nil, "--identity /home/deploy/key"},
		{"a configuration", with(func(s *Spec) { s.Nginx.Conf = "/home/deploy/nginx.conf" }), rootRecorder, deployRecorder, nil, "--nginx-conf /home/deploy/nginx.conf"},
		{"of a backend", with(func(s *Spec) {
			s.PerBackend = map[string]json.RawMessage{"192.168.1.10": json.RawMessage(`{"service":"shop"}`)}
		}), rootRecorder, deployRecorder, nil, "backend 192.168.1.10: --service shop"},
		{"of an upstream", with(func(s *Spec) {
			s.PerUpstream = map[string]json.RawMessage{"pool": json.RawMessage(`{"ssh":{"host":"evil"}}`)}
		}), rootRecorder, deployRecorder, nil, "upstream pool: --ssh-host evil"},
	} {
		op := recorded(t, c.spec)
		op.Recorder = c.recorder
		state := CallersState{journal.State{Operations: []journal.Operation{op}, Marks: []journal.Mark{{Server: op.Servers[0].Server, Change: journal.Change{Operation: op.ID}}}}, *c.caller}
		asked := Default(Undrain)
		asked.Targets, asked.Given = []string{"192.168.1.10"}, c.given
		_, err := asked.Inherit(DrainsOf(asked, []CallersState{state}))
		checkConsent(t, c.name, err, c.shows)
		if c.shows == "" && !c.caller.Trusts(c.recorder) {
			c.shows = "--threshold 3" // a resume waits with it
		}
		_, err = asked.Resume(RecordedOperation{op, state.IsForeign(op.ID)})
		checkConsent(t, c.name+", resumed", err, c.shows)
		asked.AsRecorded = true
		if _, err := asked.Inherit(DrainsOf(asked, []CallersState{state})); err != nil {
			t.Errorf("%s: refused with --as-recorded: %v", c.name, err)
		}
	}
}

// Consent is needed where one LB of several, or one drain of several, is of another user.
func TestConsentToOneOfSeveral(t *testing.T) {
	s := Default(Drain)
	s.Targets, s.Service = []string{"192.168.1.10"}, "shop"
	asked := Default(Undrain)
	asked.Targets = s.Targets
	state := func(id string, by *journal.Recorder) CallersState {
		op := recorded(t, s)
		op.ID, op.Recorder = id, by
		return CallersState{journal.State{Operations: []journal.Operation{op}, Marks: []journal.Mark{{Server: op.Servers[0].Server, Change: journal.Change{Operation: id}}}}, *rootRecorder}
	}
	const a, b = "20260101-000000.000-aaaa", "20260101-000001.000-bbbb"
	for name, states := range map[string][]CallersState{
		"the first LB":     {state(a, deployRecorder), state(a, rootRecorder)},
		"the second LB":    {state(a, rootRecorder), state(a, deployRecorder)},
		"the first drain":  {state(a, deployRecorder), state(b, rootRecorder)},
		"the second drain": {state(a, rootRecorder), state(b, deployRecorder)},
	} {
		_, err := asked.Inherit(DrainsOf(asked, states))
		checkConsent(t, name, err, "--service shop")
	}
}

func checkConsent(t *testing.T, name string, err error, shows string) {
	t.Helper()
	switch {
	case shows == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case shows != "" && (ExitOf(err) != Refused || !strings.Contains(err.Error(), shows)):
		t.Errorf("%s: exit %d, %v; want a refusal that shows %s", name, ExitOf(err), err, shows)
	}
}

// An undrain takes no setting of another user unseen: what needs no consent is its own, or
// of a drain of its caller or of root.
func TestSettingsOfOthersAreNotInherited(t *testing.T) {
	filled := func(n int) Spec {
		s := Default(Drain)
		s.Targets = []string{"192.168.1.10"}
		s.ReloadTimeout, s.Interval, s.Timeout, s.StopTimeout = time.Duration(n), time.Duration(n), time.Duration(n), time.Duration(n)
		s.Counter, s.Threshold, s.IgnorePeers, s.Nginx.Keep = CounterStubStatus, n, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, n
		s.PerBackend = map[string]json.RawMessage{"192.168.1.10": json.RawMessage(fmt.Sprintf(`{"stop_timeout_ns":%d,"service":"shop"}`, n))}
		s.PerUpstream = map[string]json.RawMessage{"pool": json.RawMessage(fmt.Sprintf(`{"interval_ns":%d,"ssh":{"port":2222}}`, n))}
		return s
	}
	asked := Default(Undrain)
	asked.Targets, asked.ReloadTimeout, asked.Given, asked.AsRecorded = []string{"192.168.1.10"}, 7*time.Second, []string{"reload-timeout"}, true
	asked.PerBackend = map[string]json.RawMessage{"192.168.1.10": json.RawMessage(`{"stop_timeout_ns":5}`)}
	undrain := func(caller *journal.Recorder, specs ...Spec) Spec {
		t.Helper()
		state := CallersState{Caller: *caller}
		for i, s := range specs {
			op := recorded(t, s)
			op.ID = fmt.Sprintf("20260101-00000%d.000-abcd", i)
			op.Recorder = []*journal.Recorder{rootRecorder, deployRecorder}[i%2]
			state.Operations = append(state.Operations, op)
			state.Marks = append(state.Marks, journal.Mark{Server: op.Servers[0].Server, Change: journal.Change{Operation: op.ID}})
		}
		if len(specs) == 1 {
			state.Operations[0].Recorder = deployRecorder
		}
		full, err := asked.Inherit(DrainsOf(asked, []CallersState{state}))
		if err != nil {
			t.Fatal(err)
		}
		return full
	}
	settings := func(s Spec) string {
		set, err := s.SettingsOf([]string{"pool"}, []string{"192.168.1.10"})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(fmt.Sprintln(s.ReloadTimeout, s.Nginx.Keep, set.Counter, set.Threshold, set.IgnorePeers, set.Interval, set.Timeout, set.StopTimeout, set.Service, set.SSH.Port))
	}
	for _, c := range []struct {
		name   string
		caller *journal.Recorder
		specs  []Spec
		want   string
	}{
		{"deploy's, by root", rootRecorder, []Spec{filled(1)}, "7s 0 ss 0 [] 500ms 5m0s 5ns shop 2222"},
		{"deploy's, by ann", annRecorder, []Spec{filled(1)}, "7s 0 ss 0 [] 500ms 5m0s 5ns shop 2222"},
		{"deploy's own", deployRecorder, []Spec{filled(1)}, "7s 1 stub_status 1 [10.0.0.0/8] 1ns 1ns 1ns shop 2222"},
		{"root's, and deploy's after it, by root", rootRecorder, []Spec{filled(2), filled(1)}, "7s 2 stub_status 2 [10.0.0.0/8] 2ns 2ns 2ns shop 2222"},
		{"root's, and deploy's after it, by deploy", deployRecorder, []Spec{filled(2), filled(1)}, "7s 1 stub_status 1 [10.0.0.0/8] 1ns 1ns 1ns shop 2222"},
	} {
		if got := settings(undrain(c.caller, c.specs...)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// The work of a rolling run is shown before root does it for another user.
func TestConsentToTheWorkOfARun(t *testing.T) {
	s := Default(Run)
	s.Targets = []string{"192.168.1.10"}
	s.Rollout.Command, s.Rollout.Gate, s.Rollout.OnlyIf = []string{"touch", "/tmp/a b"}, "/tmp/gate", "/tmp/only"
	op := recorded(t, s)
	op.Recorder = deployRecorder
	_, err := Default("").Resume(RecordedOperation{op, true})
	for _, shows := range []string{"the command touch '/tmp/a b'", "--gate /tmp/gate", "--only-if /tmp/only", "deploy (uid 1000)"} {
		checkConsent(t, shows, err, shows)
	}
}

// A user resumes their own operations, and root resumes any.
func TestResumeOfAnother(t *testing.T) {
	for _, c := range []struct {
		caller, recorder *journal.Recorder
		may              bool
	}{
		{deployRecorder, deployRecorder, true},
		{rootRecorder, deployRecorder, true},
		{rootRecorder, nil, true},
		{annRecorder, deployRecorder, false},
		{deployRecorder, rootRecorder, false},
		{deployRecorder, nil, false},
	} {
		s := Default(Drain)
		s.Targets = []string{"192.168.1.10"}
		op := recorded(t, s)
		op.Recorder = c.recorder
		err := CallersState{journal.State{Operations: []journal.Operation{op}}, *c.caller}.CheckResume(op.ID)
		if (err == nil) != c.may || err != nil && ExitOf(err) != Refused {
			t.Errorf("%v resumes what %v began: %v", c.caller, c.recorder, err)
		}
	}
}

// An operation that only claims a server has no say in its undrain, whatever its ID.
func TestPlantedOperationIsNotInherited(t *testing.T) {
	s := Default(Drain)
	s.Targets, s.Service = []string{"192.168.1.10"}, "shop"
	real := recorded(t, s)
	real.Recorder = rootRecorder
	s.Service, s.SSH.Host = "poweroff.target", "evil"
	planted := recorded(t, s)
	planted.ID, planted.Recorder = "99991231-235959.000-evil", deployRecorder
	state := journal.State{Operations: []journal.Operation{real, planted}, Marks: []journal.Mark{{Server: real.Servers[0].Server, Change: journal.Change{Operation: real.ID}}}}
	asked := Default(Undrain)
	asked.Targets = s.Targets
	full, err := asked.Inherit(DrainsOf(asked, []CallersState{{state, *rootRecorder}}))
	if err != nil || full.Service != "shop" || full.SSH.Host != "" {
		t.Errorf("service %q, SSH host %q, error %v", full.Service, full.SSH.Host, err)
	}
	// On a second LB, which has no mark, it is no better.
	full, err = asked.Inherit(DrainsOf(asked, []CallersState{{journal.State{Operations: []journal.Operation{planted}}, *rootRecorder}, {state, *rootRecorder}}))
	if err != nil || full.Service != "shop" || full.SSH.Host != "" {
		t.Errorf("two LBs: service %q, SSH host %q, error %v", full.Service, full.SSH.Host, err)
	}
}

// A unit in a journal is a service or a socket, and no flag of systemctl.
func TestRecordedUnits(t *testing.T) {
	for unit, ok := range map[string]bool{
		"shop": true, "shop.service": true, "shop@8080.service": true, "shop.socket": true, "shop.v2": true, "shop@{port}": true,
		"poweroff.target": false, "-H": false, "--root=/x": false, "": false, "a b": false, "x.timer": true, "x.mount": false, "a;b": false, "../x": false, "a\nb": false,
	} {
		if err := checkRecordedUnit(unit); (err == nil) != ok {
			t.Errorf("%q: error %v", unit, err)
		}
	}
	s := Default(Drain)
	s.PerBackend = map[string]json.RawMessage{"a": json.RawMessage(`{"service":"poweroff.target"}`)}
	if _, err := FromOperation(recorded(t, s)); err == nil {
		t.Error("a backend's own unit is not looked at")
	}
	s.Given, s.Service = []string{"service"}, "shop" // as if the line had a unit for all
	if was, err := FromOperation(recorded(t, s)); err == nil {
		t.Errorf("a backend's own unit is hidden by a flag that the recorder claims: %+v", was)
	}
}

// Nothing that another user recorded makes a line of its own in a message: such a line
// could pass for drainctl's advice.
func TestRecordedTextKeepsToItsLine(t *testing.T) {
	const text = "x\nhint: FORGED"
	s := Default(Run)
	s.Targets, s.Health, s.SSH.Host, s.User, s.Host, s.Reason = []string{text}, text, text, text, text, text
	s.Nginx.Conf, s.Rollout.Command = text, []string{text}
	s.PerBackend = map[string]json.RawMessage{text: json.RawMessage(`{"service":"shop"}`)}
	op := journal.Operation{ID: "20260504-120000.000-abcd", Kind: text, Targets: []string{text}, Recorder: &journal.Recorder{UID: 1000, Name: text}, User: text, Host: text, Reason: text}
	full := Default("")
	holder := journal.Holder{Name: "x", ID: text, Kind: text, Targets: []string{text}, Recorder: op.Recorder, User: text, Host: text, Reason: text, Time: time.Now()}
	for name, got := range map[string]string{
		"consent":      full.confirm(s, full, nil, RecordedOperation{op, true}).Error(),
		"lock":         holder.String(),
		"locked":       (&journal.LockedError{Name: "x", Holder: holder, Known: true}).Error(),
		"interrupted":  describeAll([]journal.Operation{op}),
		"drained here": op.Who(),
	} {
		if !strings.Contains(got, "FORGED") || strings.Contains(got, "\nhint: FORGED") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
