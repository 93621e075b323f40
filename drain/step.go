package drain

import (
	"context"
	"strings"
)

// A StepName names a step of the one list.
type StepName string

// The steps, in the order of a drain.
const (
	StepMarkDown StepName = "mark down"    // reverse: clear down
	StepWait     StepName = "wait"         // until nobody is connected; reverse: until healthy
	StepService  StepName = "stop service" // reverse: start it
)

// A Direction is how a step is run: a drain runs forward, an undrain in reverse.
type Direction string

// The directions.
const (
	Forward Direction = "forward"
	Reverse Direction = "reverse"
)

func (d Direction) opposite() Direction {
	if d == Forward {
		return Reverse
	}
	return Forward
}

func directionOf(k Kind) Direction {
	if k == Undrain {
		return Reverse
	}
	return Forward
}

// A Scope says how much a step acts on.
type Scope int

// The scopes. A rollback is the opposite direction with the first of them.
const (
	ThisOperation Scope = iota // what this operation did
	Managed                    // what drainctl did
	All                        // whoever did it
)

// An Outcome is how a step ended.
type Outcome int

// The outcomes.
const (
	StepOK       Outcome = iota // done, or unchanged
	StepTimedOut                // the time was up; nothing failed
	StepError                   // failed
	Irreversible                // failed, and cannot be rolled back
)

// A Verdict is what a step has to say.
type Verdict struct {
	Outcome Outcome
	Changed bool // something is not, or was not for a while, as before; also when it failed
	Detail  Detail
	Err     error
	Log     []string  // the app's last log lines
	Next    []Command // for an irreversible failure
}

func failed(changed bool, err error) Verdict {
	return Verdict{Outcome: StepError, Changed: changed, Err: err}
}

// A step knows two ways. Each may be taken again after it was taken, or half
// taken: it then does what is left.
type step interface {
	name() StepName
	run(ctx context.Context, d Direction, s Scope) Verdict
}

// newSteps is the one list.
func (o *Operation) newSteps() []step {
	list := []step{&configure{o}, &wait{o}}
	if o.plan.Spec.Service != "" {
		list = append(list, &service{o})
	}
	return list
}

// stepNames is the steps of a spec, in the order that they are taken.
func stepNames(s Spec) []StepName {
	list := []StepName{StepMarkDown, StepWait}
	if s.Service != "" {
		list = append(list, StepService)
	}
	if s.Kind == Undrain {
		for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
			list[i], list[j] = list[j], list[i]
		}
	}
	return list
}

// describeStep says what a step will do.
func describeStep(p *Plan, name StepName, d Direction) Description {
	spec := p.Spec
	switch name {
	case StepMarkDown:
		return Description{Servers: p.allServers()}
	case StepService:
		return Description{Service: spec.Service, Backend: p.backendNames()}
	}
	if d == Reverse {
		return Description{Health: spec.Health, Limit: InSeconds(spec.HealthTimeout)}
	}
	var counters []string
	for _, b := range p.Backends {
		counters = append(counters, counterText(spec, b))
	}
	return Description{
		Counter: strings.Join(counters, ", "), Limit: InSeconds(spec.Timeout), Threshold: spec.Threshold,
		OnTimeout: spec.OnTimeout, Service: spec.Service,
	}
}

// backendNames names the backends of the plan.
func (p *Plan) backendNames() string {
	var all []string
	for _, b := range p.Backends {
		all = append(all, b.Name)
	}
	return strings.Join(all, ", ")
}
