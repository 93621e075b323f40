package plan

import (
	"fmt"
	"slices"

	"github.com/drainctl/drainctl/drain/spec"
)

// A Phase is how far a backend has come: the step that was begun for it last.
type Phase int

// The phases, in the order of a rolling run. A drain ends with stopping, and an undrain
// begins with starting.
const (
	NotBegun Phase = iota // no step was begun
	Marking               // down, on every LB
	Draining              // until no connection is open
	Stopping              // the service
	Working
	Starting // the service
	Checking // until it is healthy
	Clearing // down, on every LB; of a rolling run also: it is healthy, and the next edit puts it back
)

// phases are the names and the steps of the phases.
var phases = [...]struct {
	name string
	StepName
	Direction
}{
	NotBegun: {name: "waiting"},
	Marking:  {"marking", StepMarkDown, Forward}, Draining: {"draining", StepWait, Forward}, Stopping: {"stopping", StepService, Forward},
	Working:  {"working", StepWork, Forward},
	Starting: {"starting", StepService, Reverse}, Checking: {"checking", StepWait, Reverse}, Clearing: {"clearing", StepMarkDown, Reverse},
}

// Paths are the phases of each kind of operation.
var Paths = map[spec.Kind][]Phase{
	spec.Drain:   {Marking, Draining, Stopping},
	spec.Undrain: {Starting, Checking, Clearing},
	spec.Run:     {Marking, Draining, Stopping, Working, Starting, Checking, Clearing},
}

// Step returns the name of the phase's step.
func (p Phase) Step() StepName { return phases[p].StepName }

// Direction returns the direction of the phase's step.
func (p Phase) Direction() Direction { return phases[p].Direction }

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

// Path returns the phases of a plan. Without a service there is none to stop or start.
func (p *Plan) Path() []Phase {
	return slices.DeleteFunc(slices.Clone(Paths[p.Spec.Kind]), func(ph Phase) bool {
		return ph.Step() == StepService && !slices.ContainsFunc(p.Backends, func(b Backend) bool { return b.Settings.Service != "" })
	})
}
