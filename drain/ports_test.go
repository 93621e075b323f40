package drain

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// twoPorts is a pool whose first backend has a second port.
func twoPorts(t *testing.T) *pool {
	p := newPool(t, 2)
	for _, lb := range p.lbs {
		lb.lines = append(lb.lines, poolLine{address: p.apps[0].name + ":9090", serving: true})
	}
	return p
}

// The ports of one host are rolled one after the other, where each is an app of its own.
func TestPortsOfOneHostAreRolledOneByOne(t *testing.T) {
	for _, named := range []bool{true, false} {
		p := twoPorts(t)
		worked := filepath.Join(t.TempDir(), "worked")
		spec := p.spec(Run)
		spec.Service, spec.Rollout.Reboot = "", false
		spec.Rollout.Command = []string{"sh", "-c", "echo {host} {port} >>" + worked}
		one := p.apps[0].name
		spec.Targets = []string{one + ":8080", one + ":9090"}
		if !named {
			spec.Targets, spec.Upstreams = nil, []string{"pool"}
		}
		out := p.run(spec)
		out.ended(t, Done, "", "")
		p.whole()
		text, err := os.ReadFile(worked)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(strings.ReplaceAll(string(text), " ", "_"))
		for _, want := range []string{one + "_8080", one + "_9090"} {
			if !slices.Contains(lines, want) {
				t.Errorf("worked on %q, want %q too", lines, want)
			}
		}
		batches := len(eventsOf[*BatchStarted](out.told))
		if want := map[bool]int{true: 2, false: 4}[named]; batches != want || p.lbs[0].reloads != want+1 {
			t.Errorf("%d batches and %d reloads, want %d batches", batches, p.lbs[0].reloads, want)
		}
	}
}

// Ports that have one service are taken together: to stop it ends all of them. So are those of a
// host that is rebooted.
func TestPortsOfOneServiceAreTakenTogether(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(*Spec, string)
		batches int
	}{
		"one service": {func(*Spec, string) {}, 1},
		"two services": {func(s *Spec, one string) {
			s.PerBackend = map[string]json.RawMessage{one + ":9090": json.RawMessage(`{"service":"other"}`)}
		}, 2},
		"a reboot": {func(s *Spec, _ string) { s.Service, s.Rollout.Reboot = "", true }, 1},
	} {
		p := twoPorts(t)
		spec, one := p.spec(Run), p.apps[0].name
		spec.Rollout.Reboot, spec.Rollout.Command = false, []string{"true"}
		spec.Targets = []string{one + ":8080", one + ":9090"}
		test.change(&spec, one)
		plan, err := DryRun(t.Context(), spec, Options{Connect: p})
		p.over()
		if err != nil || len(plan.Batches) != test.batches {
			t.Errorf("%s: %v, want %d batches: %v", name, plan, test.batches, err)
		}
	}
}
