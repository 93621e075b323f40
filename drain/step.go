package drain

import (
	"context"
	"slices"
	"strings"
)

// A StepName names a step of the one list.
type StepName string

// The steps, in the order of a drain.
const (
	StepMarkDown StepName = "mark down"    // reverse: clear down
	StepWait     StepName = "wait"         // until nobody is connected; reverse: until healthy
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
	// Failed are the backends that it failed for, where it did not for others;
	// Each has why.
	Failed []*member
	Each   map[*member]Verdict
}

func failed(changed bool, err error) Verdict {
	return Verdict{Outcome: StepError, Changed: changed, Err: err}
}

// joined is the verdict over several backends: the worst one, with the details of
// all.
func joined(members []*member, verdicts []Verdict) Verdict {
	all := Verdict{Each: map[*member]Verdict{}}
	for i, v := range verdicts {
		if v.Outcome > all.Outcome {
			all.Outcome, all.Err, all.Log, all.Next = v.Outcome, v.Err, v.Log, v.Next
		}
		if v.Outcome != StepOK {
			all.Failed = append(all.Failed, members[i])
			all.Each[members[i]] = v
		}
		all.Changed = all.Changed || v.Changed
		all.Detail.Services = append(all.Detail.Services, v.Detail.Services...)
		if v.Detail.Open != nil {
			all.Detail.Open, all.Detail.Waited = v.Detail.Open, max(all.Detail.Waited, v.Detail.Waited)
		}
		all.Detail.Checks = max(all.Detail.Checks, v.Detail.Checks)
	}
	return all
}

// A step knows two ways. Each may be taken again after it was taken, or half
// taken: it then does what is left.
type step interface {
	name() StepName
	run(ctx context.Context, b *batch, d Direction, s Scope) Verdict
}

// steps is the one list.
var steps = []step{configure{}, wait{}, service{}}

// A batch is the backends of an operation that are taken together: one edit and
// one reload on each LB.
type batch struct {
	o       *Operation
	plan    *Plan // of their targets
	members []*member
	// returning are the targets that come back in the same edit.
	returning []string
}

// only is the part of a batch that some of its backends are.
func (b *batch) only(members []*member) *batch {
	return &batch{o: b.o, members: members, plan: b.plan.only(func(p Backend) bool {
		return slices.ContainsFunc(members, func(m *member) bool { return m.Name == p.Name })
	})}
}

// without is the rest of it.
func (b *batch) without(members []*member) *batch {
	return b.only(slices.DeleteFunc(slices.Clone(b.members), func(m *member) bool { return slices.Contains(members, m) }))
}

// needs tells whether the batch needs a step: without a service there is none to
// stop.
func (p *Plan) needs(name StepName) bool {
	return name != StepService || slices.ContainsFunc(p.Backends, func(b Backend) bool { return b.Settings.Service != "" })
}

// stepsOf is the steps that a plan needs, in the order of a direction.
func (p *Plan) stepsOf(d Direction) []step {
	list := slices.DeleteFunc(slices.Clone(steps), func(st step) bool { return !p.needs(st.name()) })
	if d == Reverse {
		slices.Reverse(list)
	}
	return list
}

// describeStep says what a step will do.
func (p *Plan) describeStep(name StepName, d Direction) Description {
	what := Description{}
	switch {
	case name == StepMarkDown:
		return Description{Servers: p.allServers()}
	case name == StepWork:
		r := p.Spec.Rollout
		return Description{Command: r.Command, OnBackend: r.OnBackend, Reboot: r.Reboot}
	}
	add := func(to *string, text string) {
		if text != "" && !slices.Contains(strings.Split(*to, ", "), text) {
			*to = strings.TrimPrefix(*to+", "+text, ", ")
		}
	}
	for _, b := range p.Backends {
		set := b.Settings
		switch {
		case name == StepService && set.Service != "":
			add(&what.Service, set.Service)
			add(&what.Backend, b.Name)
		case name == StepService:
		case d == Reverse:
			add(&what.Health, b.health())
			what.Limit = InSeconds(set.HealthTimeout)
		default:
			add(&what.Counter, b.counterText())
			add(&what.Service, set.Service)
			what.Limit, what.Threshold, what.OnTimeout = InSeconds(set.Timeout), set.Threshold, p.Spec.OnTimeout
		}
	}
	return what
}
