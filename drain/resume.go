package drain

import (
	"context"

	"github.com/drainctl/drainctl/drain/journal"
)

// Resumed is the spec that continues with an interrupted operation: name is its
// ID or its target, or empty for the only one there is. spec has what is given
// now.
func Resumed(ctx context.Context, spec Spec, name string, c Connector) (Spec, error) {
	all, err := AskAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersState, error) {
		s, err := lb.State(ctx)
		return callersState{State: s, caller: lb.Caller()}, err
	})
	if err != nil {
		return spec, beforeTouching(ctx, err)
	}
	states := make([]journal.State, len(all))
	for i, s := range all {
		states[i] = s.State
	}
	op, err := FindUnfinished(together(states), name)
	if err != nil {
		return spec, err
	}
	foreign := false
	for _, s := range all {
		if err := s.checkResume(op.ID); err != nil {
			return spec, err
		}
		foreign = foreign || s.isForeign(op.ID)
	}
	return spec.resume(recordedOperation{Operation: op, foreign: foreign})
}
