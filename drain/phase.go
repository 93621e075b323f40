package drain

import (
	"fmt"
	"slices"
)

// A Phase is how far a backend has come: the step that was begun for it last.
type Phase int

// The phases, in the order of a rolling run. A drain ends with stopping, and an undrain
// begins with starting.
const (
	waiting  Phase = iota // no step was begun
	marking               // down, on every LB
	draining              // until no connection is open
	stopping              // the service
	working
	starting // the service
	checking // until it is healthy
	clearing // down, on every LB
)

// phases are the names and the steps of the phases.
var phases = [...]struct {
	name string
	StepName
	Direction
}{
	waiting: {name: "waiting"},
	marking: {"marking", StepMarkDown, Forward}, draining: {"draining", StepWait, Forward}, stopping: {"stopping", StepService, Forward},
	working:  {"working", StepWork, Forward},
	starting: {"starting", StepService, Reverse}, checking: {"checking", StepWait, Reverse}, clearing: {"clearing", StepMarkDown, Reverse},
}

// paths are the phases of each kind of operation.
var paths = map[Kind][]Phase{
	Drain:   {marking, draining, stopping},
	Undrain: {starting, checking, clearing},
	Run:     {marking, draining, stopping, working, starting, checking, clearing},
}

// step is the name of the phase's step, and direction where it leads.
func (p Phase) step() StepName { return phases[p].StepName }

func (p Phase) direction() Direction { return phases[p].Direction }

// String returns the name of the phase.
func (p Phase) String() string { return phases[p].name }

// MarshalText implements [encoding.TextMarshaler].
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Phase) UnmarshalText(text []byte) error {
	for i := range phases {
		if phases[i].name == string(text) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("%.40q is no phase of an operation", text)
}

// path returns the phases of a plan. Without a service there is none to stop or start.
func (p *Plan) path() []Phase {
	return slices.DeleteFunc(slices.Clone(paths[p.Spec.Kind]), func(ph Phase) bool {
		return ph.step() == StepService && !slices.ContainsFunc(p.Backends, func(b Backend) bool { return b.Settings.Service != "" })
	})
}
