package drain

import (
	"context"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
)

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
	all, err := AskAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersHistory, error) {
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
				withoutForeignWords(e.Ended, e.ID, spec.words(whereFlags...))
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
	all, err := AskAll(ctx, spec, c, func(ctx context.Context, lb *LB) (callersHistory, error) {
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
				withoutForeignWords(result, id, spec.words(whereFlags...))
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
