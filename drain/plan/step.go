package plan

import (
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/spec"
)

// A StepName names a step.
type StepName string

// The steps, in the order of a drain.
const (
	StepMarkDown StepName = "mark down"    // reverse: clear down
	StepWait     StepName = "wait"         // until no connection is open; reverse: until healthy
	StepService  StepName = "stop service" // reverse: start it
	StepWork     StepName = "work"         // of a rolling run, between there and back
)

// A Direction is how a step is run: a drain runs forward, an undrain in reverse.
type Direction string

// The directions.
const (
	Forward Direction = "forward"
	Reverse Direction = "reverse"
)

// Opposite is the direction of what undoes it.
func (d Direction) Opposite() Direction {
	if d == Forward {
		return Reverse
	}
	return Forward
}

// A Description is what a step is about to do.
type Description struct {
	Servers []string `json:"servers,omitempty"`
	// Returning are the targets that come back in the same edit.
	Returning []string     `json:"returning,omitempty"`
	Counter   string       `json:"counter,omitempty"`
	Health    string       `json:"health,omitempty"`
	Service   string       `json:"service,omitempty"`
	Services  []string     `json:"services,omitempty"` // the units of Service, in the order in which they are stopped or started
	Backend   string       `json:"backend,omitempty"`
	Limit     spec.Seconds `json:"limit,omitempty"`
	// Threshold is how many connections may be open.
	Threshold int            `json:"threshold,omitempty"`
	OnTimeout spec.OnTimeout `json:"on_timeout,omitempty"`
	// The work of a rolling run.
	Command   []string `json:"command,omitempty"`
	OnBackend bool     `json:"on_backend,omitempty"`
	Reboot    bool     `json:"reboot,omitempty"`
}

// Describe says what the step of a phase will do.
func Describe(sp spec.Spec, p Phase, backends []Backend, lbs []LBPlan) (what Description) {
	switch p.Step() {
	case StepMarkDown:
		return Description{Servers: allServers(lbs)}
	case StepWork:
		r := sp.Rollout
		return Description{Command: r.Command, OnBackend: r.OnBackend, Reboot: r.Reboot}
	}
	add := func(to *string, text string) {
		if text != "" && !slices.Contains(strings.Split(*to, ", "), text) {
			*to = strings.TrimPrefix(*to+", "+text, ", ")
		}
	}
	for _, b := range backends {
		set := b.Settings
		units := set.Service.List()
		if p == Starting {
			units = set.Service.InStartOrder()
		}
		if p != Checking { // a wait for connections may end with a stop
			what.Services = Once(append(what.Services, units...))
		}
		switch {
		case p.Step() == StepService && set.Service != "":
			add(&what.Backend, b.Name)
		case p.Step() == StepService:
		case p == Checking:
			add(&what.Health, b.HealthCheck())
			what.Limit = spec.InSeconds(set.HealthTimeout)
		default:
			add(&what.Counter, b.CounterText())
			what.Limit, what.Threshold, what.OnTimeout = spec.InSeconds(set.Timeout), set.Threshold, sp.OnTimeout
		}
	}
	what.Service = strings.Join(what.Services, ", ")
	return what
}
