package drain

import (
	"context"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// Resumed is the spec that continues with an interrupted operation: name is its
// ID or its target, or empty for the only one there is. spec has what is given
// now. Prepare leaves out the same LBs and says so; if Resumed fails, it says so itself.
func Resumed(ctx context.Context, sp spec.Spec, name string, o Options) (full spec.Spec, err error) {
	lbs := fleet.New(sp, o.Connect)
	defer lbs.Close()
	var skips []event.Event
	reached, err := lbs.Open(ctx, sp, func(e event.Event) { skips = append(skips, e) })
	defer func() {
		for _, e := range skips {
			if err != nil && o.Emit != nil {
				o.Emit(event.Stamp(e))
			}
		}
	}()
	var all []spec.CallersState
	if err == nil {
		all, err = fleet.Gather(ctx, reached, func(ctx context.Context, lb *fleet.LB) (spec.CallersState, error) {
			s, err := lb.State(ctx)
			return spec.CallersState{State: s, Caller: lb.Caller()}, err
		})
	}
	if err != nil {
		return sp, spec.BeforeTouching(ctx, err)
	}
	states := make([]journal.State, len(all))
	for i, s := range all {
		states[i] = s.State
	}
	op, err := spec.FindUnfinished(spec.MergeStates(states), name)
	if err != nil {
		return sp, err
	}
	foreign := false
	for _, s := range all {
		if err := s.CheckResume(op.ID); err != nil {
			return sp, err
		}
		foreign = foreign || s.IsForeign(op.ID)
	}
	return sp.Resume(spec.RecordedOperation{Operation: op, Foreign: foreign})
}
