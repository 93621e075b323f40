package drain

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// TestDrainedTwice drains a server with a service, and then without one. The one undrain
// that ends both starts the service.
func TestDrainedTwice(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*spec.Spec, *poolApp)
	}{
		{"the service of all backends", func(*spec.Spec, *poolApp) {}},
		{"the service of one backend", func(s *spec.Spec, a *poolApp) { setOwnService(s, a) }},
		{"the service of an upstream", func(s *spec.Spec, _ *poolApp) { setUpstreamService(s) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, 2)
			first := p.spec(spec.Drain)
			first.Targets = first.Targets[:1]
			second := first
			test.change(&first, p.apps[0])
			p.run(first).ended(t, spec.Done, "", "")
			second.Service = ""
			p.run(second).ended(t, spec.Done, "", "")
			if p.apps[0].active {
				t.Fatal("the service was not stopped")
			}
			undrain := p.spec(spec.Undrain)
			undrain.HealthTimeout, undrain.Given = 5*time.Second, []string{"health-timeout"} // without the service it ends
			p.run(undrain).ended(t, spec.Done, "", "")
			p.whole()
		})
	}
}

// setOwnService has the service be one of a backend, as a configuration file may say.
func setOwnService(s *spec.Spec, a *poolApp) {
	text, _ := s.Only("service")
	s.Service, s.PerBackend = "", map[string]json.RawMessage{a.name: text}
}

// setUpstreamService has the service be one of an upstream.
func setUpstreamService(s *spec.Spec) {
	text, _ := s.Only("service")
	s.Service, s.PerUpstream = "", map[string]json.RawMessage{"pool": text}
}

// TestSeveralMarksOnAServer has two users' drains own a mark each on the lines of one
// server, and root undrain it. Whichever of the marks is the last, the service that the
// first drain stopped is shown, and started with consent.
func TestSeveralMarksOnAServer(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		p := newPool(t, 2)
		sp := p.spec(spec.Drain)
		sp.Targets = sp.Targets[:1]
		p.run(sp).ended(t, spec.Done, "", "")
		sp.Service = ""
		other := p.lbs[0].state.Operations[0]
		other.Spec, _ = json.Marshal(sp)
		other.ID, other.Recorder, other.Result = "99990101-000000.000-abcd", &journal.Recorder{UID: 1001, Name: "ann"}, journal.ResultDone
		for _, lb := range p.lbs {
			lb.state.Operations[0].Recorder = &journal.Recorder{UID: 1000, Name: "deploy"}
			lb.state.Operations = append(lb.state.Operations, other)
			mark := lb.state.Marks[0]
			mark.Operation, mark.At = other.ID, 1000
			lb.state.Marks = append(lb.state.Marks, mark)
			if reversed {
				slices.Reverse(lb.state.Marks)
			}
		}
		undrain := p.spec(spec.Undrain)
		undrain.Targets = sp.Targets
		undrain.HealthTimeout, undrain.Given = 5*time.Second, []string{"health-timeout"} // without the service it ends
		p.run(undrain).ended(t, spec.Refused, spec.Untouched, "--service app")
		undrain.AsRecorded = true
		p.run(undrain).ended(t, spec.Done, "", "")
		for _, a := range p.apps {
			if !a.active {
				t.Errorf("%s: the app is stopped", a.name)
			}
		}
	}
}
