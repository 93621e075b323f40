package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// FindUnfinished is the one operation that name means: its ID, its target, or,
// when name is empty, the only one that can be resumed.
func FindUnfinished(s journal.State, name string) (journal.Operation, error) {
	all := s.Unfinished()
	var found []journal.Operation
	for _, op := range all {
		if name == "" || op.ID == name || (len(op.Targets) == 1 && sameTarget(op.Targets[0], name)) {
			found = append(found, op)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return journal.Operation{}, usage("%d operations were interrupted\nhint: name one by its ID: %s", len(found), describeAll(found))
	case name == "":
		return journal.Operation{}, usage("no operation was interrupted\nhint: drainctl history lists how each ended")
	case len(all) > 0:
		return journal.Operation{}, usage("no operation %s was interrupted\nhint: there is %s", name, describeAll(all))
	}
	return journal.Operation{}, usage("no operation %s was interrupted, or another one has continued it", name)
}

func sameTarget(a, b string) bool {
	t, err := nginx.ParseTarget(a)
	u, err2 := nginx.ParseTarget(b)
	return err == nil && err2 == nil && t == u
}

func describeAll(ops []journal.Operation) string {
	var texts []string
	for _, op := range ops {
		targets := make([]string, len(op.Targets))
		for i, target := range op.Targets {
			targets[i] = remote.Quote(target)
		}
		texts = append(texts, fmt.Sprintf("%s (%s %s by %s)", op.ID, op.Kind, strings.Join(targets, ", "), op.Who()))
	}
	return journal.OneLine(strings.Join(texts, ", "))
}

// Resumed is the spec that continues with an interrupted operation: name is its
// ID or its target, or empty for the only one there is. spec has what is given
// now.
func Resumed(ctx context.Context, spec Spec, name string, c Connector) (Spec, error) {
	all, err := askAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersState, error) {
		s, err := lb.State(ctx)
		return callersState{s, lb.Caller()}, err
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
	return spec.resume(recordedOperation{op, foreign})
}

// checkResume refuses the operation of another user to anyone but root: it would be theirs.
func (s callersState) checkResume(id string) error {
	op, ok := s.Find(id)
	if !ok || s.caller.UID == 0 || op.Recorder != nil && op.Recorder.UID == s.caller.UID {
		return nil
	}
	return refuse(Finding{Code: "recorded-by-another", Text: fmt.Sprintf(
		"operation %s was begun by %s: who began it can resume it, and root can\nhint: anyone can undrain its targets, and drain them again", id, journal.OneLine(op.Who()))})
}

// together is the operations of several LBs: one on several of them is one.
func together(states []journal.State) (all journal.State) {
	for _, s := range states {
		for _, op := range s.Operations {
			i := slices.IndexFunc(all.Operations, func(had journal.Operation) bool { return had.ID == op.ID })
			switch {
			case i < 0:
				all.Operations = append(all.Operations, op)
			case !all.Operations[i].Unfinished(): // it may not have ended on another one
				all.Operations[i] = op
			}
		}
	}
	return all
}

// askAll asks every LB of a spec something that touches nothing.
func askAll[T any](ctx context.Context, spec Spec, c Connector, ask func(context.Context, *LB) (T, error)) ([]T, error) {
	o := newOperation(spec, Options{Connect: c})
	defer o.lbs.close()
	return gather(ctx, o.lbs, func(ctx context.Context, lb *LB) (none T, err error) {
		if err := open(ctx, lb); err != nil {
			return none, err
		}
		return ask(ctx, lb)
	})
}

// A callersHistory is the history of an LB, and who asks for it as the LB sees them.
type callersHistory struct {
	balancer.History
	caller journal.Recorder
}

// A HistoryEntry is one operation in the list of them.
type HistoryEntry struct {
	ID        string
	Began     *OperationStarted
	Ended     *Result // nil: it has not ended, or did not live to say so
	Truncated int     // lines that could not be read
}

// ReadHistory lists the operations of the LBs, the oldest first, and the files in
// their journals that hold none.
func ReadHistory(ctx context.Context, spec Spec, c Connector) (entries []HistoryEntry, unreadable []string, err error) {
	all, err := askAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersHistory, error) {
		h, err := lb.History(ctx, balancer.HistoryQuery{})
		return callersHistory{h, lb.Caller()}, err
	})
	if err != nil {
		return nil, nil, beforeTouching(ctx, err)
	}
	known := map[string]bool{}
	for _, h := range all {
		unreadable = append(unreadable, h.Unreadable...)
		for _, op := range h.Operations {
			if known[op.ID] { // it was on several LBs
				continue
			}
			known[op.ID] = true
			e := HistoryEntry{ID: op.ID, Truncated: op.Truncated}
			if first, err := ParseEvent(op.First); err == nil {
				e.Began, _ = first.(*OperationStarted)
			}
			if e.Began != nil {
				e.Began.Recorder = op.Recorder
			}
			if last, err := ParseEvent(op.Last); err == nil {
				e.Ended, _ = last.(*Result)
			}
			if e.Ended != nil && !h.caller.Trusts(op.Recorder) {
				e.Ended.withoutForeignWords(e.ID, spec.words(whereFlags...))
			}
			if e.Began == nil {
				unreadable = append(unreadable, op.ID)
				continue
			}
			entries = append(entries, e)
		}
	}
	slices.SortStableFunc(entries, func(a, b HistoryEntry) int { return strings.Compare(a.ID, b.ID) })
	return entries, unreadable, nil
}

// ReadOperation is the events of one operation, in the order of their times, and
// how many lines of its history could not be read. What is not of one LB stands in
// the history of each, and is told once.
func ReadOperation(ctx context.Context, spec Spec, id string, c Connector) (events []Event, unread int, err error) {
	var unknown error
	all, err := askAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersHistory, error) {
		h, err := lb.History(ctx, balancer.HistoryQuery{ID: id})
		if balancer.CodeOf(err) == balancer.CodeUnknown {
			unknown, err = err, nil
		}
		return callersHistory{h, lb.Caller()}, err
	})
	if err != nil {
		return nil, 0, beforeTouching(ctx, err)
	}
	told := map[string]bool{}
	for i, h := range all {
		unread += h.Truncated
		for _, line := range h.Lines {
			e, err := ParseEvent(line)
			if err != nil {
				unread++
				continue
			}
			began, first := e.(*OperationStarted)
			if told[string(line)] || first && len(events) > 0 && (began.Continues == "" || i > 0) {
				continue
			}
			if first {
				began.Recorder = h.Recorder
			}
			if result, ok := e.(*Result); ok && !h.caller.Trusts(h.Recorder) {
				result.withoutForeignWords(id, spec.words(whereFlags...))
			}
			told[string(line)] = true
			events = append(events, e)
		}
	}
	if len(events) == 0 && unknown != nil {
		return nil, 0, beforeTouching(ctx, unknown)
	}
	if len(all) > 1 {
		slices.SortStableFunc(events, func(a, b Event) int { return a.Head().Time.Compare(b.Head().Time) })
	}
	return events, unread, nil
}

// Unended is what to type where the events of an operation have no end: it may still
// run, or have crashed. The history cannot tell.
func Unended(spec Spec, id string, events []Event) []Command {
	var targets []string
	ended := false
	for _, e := range events {
		switch e := e.(type) {
		case *Result:
			ended = true
		case *OperationStarted: // or resumed
			targets, ended = e.Targets, false
		}
	}
	if ended {
		return nil
	}
	where := spec.words(whereFlags...)
	return slices.Concat(statusCommand(targets, where, "says whether it still runs"), resumeCommand(id, where, "continues, if it does not"),
		undrainCommand(targets, where, "puts everything back instead"))
}
