package drain

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/spec"
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
		sp := p.spec(spec.Run)
		sp.Service, sp.Rollout.Reboot = "", false
		sp.Rollout.Command = []string{"sh", "-c", "echo {host} {port} >>" + worked}
		one := p.apps[0].name
		sp.Targets = []string{one + ":8080", one + ":9090"}
		if !named {
			sp.Targets, sp.Upstreams = nil, []string{"pool"}
		}
		out := p.run(sp)
		out.ended(t, spec.Done, "", "")
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
		batches := len(eventsOf[*event.BatchStarted](out.told))
		if want := map[bool]int{true: 2, false: 4}[named]; batches != want || p.lbs[0].reloads != want+1 {
			t.Errorf("%d batches and %d reloads, want %d batches", batches, p.lbs[0].reloads, want)
		}
	}
}

// Ports that have one service are taken together: to stop it ends all of them. So are those of a
// host that is rebooted.
func TestPortsOfOneServiceAreTakenTogether(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(*spec.Spec, string)
		batches int
	}{
		"one service": {func(*spec.Spec, string) {}, 1},
		"two services": {func(s *spec.Spec, one string) {
			s.PerBackend = map[string]json.RawMessage{one + ":9090": json.RawMessage(`{"service":"other"}`)}
		}, 2},
		"a reboot": {func(s *spec.Spec, _ string) { s.Service, s.Rollout.Reboot = "", true }, 1},
	} {
		p := twoPorts(t)
		sp, one := p.spec(spec.Run), p.apps[0].name
		sp.Rollout.Reboot, sp.Rollout.Command = false, []string{"true"}
		sp.Targets = []string{one + ":8080", one + ":9090"}
		test.change(&sp, one)
		plan, err := DryRun(t.Context(), sp, Options{Connect: p})
		p.over()
		if err != nil || len(plan.Batches) != test.batches {
			t.Errorf("%s: %v, want %d batches: %v", name, plan, test.batches, err)
		}
	}
}
