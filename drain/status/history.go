package status

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// A callersHistory is the history of an LB, and who asks for it as the LB sees them.
type callersHistory struct {
	balancer.History
	caller  journal.Recorder
	unknown error // the LB does not know the operation that was asked for
}

// A HistoryEntry is one operation in the list of them.
type HistoryEntry struct {
	ID        string
	Began     *event.OperationStarted
	Ended     *event.Result // nil: it has not ended, or did not live to say so
	Truncated int           // lines that could not be read

	last time.Time // of its last line
}

// ReadHistory lists the operations of the LBs, the oldest first, and the files in
// their journals that hold none.
func ReadHistory(ctx context.Context, sp spec.Spec, c fleet.Connector) (entries []HistoryEntry, unreadable []string, err error) {
	all, err := fleet.AskAll(ctx, sp, c, func(ctx context.Context, lb *fleet.LB) (callersHistory, error) {
		h, err := lb.History(ctx, balancer.HistoryQuery{})
		return callersHistory{History: h, caller: lb.Caller()}, err
	})
	if err != nil {
		return nil, nil, spec.BeforeTouching(ctx, err)
	}
	known := map[string]int{} // places in entries
	for _, h := range all {
		unreadable = append(unreadable, h.Unreadable...)
		for _, op := range h.Operations {
			e := h.entry(op, sp.Words(spec.WhereFlags...))
			i, found := known[op.ID]
			switch {
			case e.Began == nil:
				unreadable = plan.Once(append(unreadable, op.ID))
			case !found:
				known[op.ID], entries = len(entries), append(entries, e)
			case e.last.After(entries[i].last) && entries[i].Began.Recorder.IsSame(op.Recorder):
				entries[i] = e // an LB that was lost does not know the end
			}
		}
	}
	slices.SortStableFunc(entries, func(a, b HistoryEntry) int { return strings.Compare(a.ID, b.ID) })
	return entries, unreadable, nil
}

// entry reads an entry in the history of one LB. flags are those of the reader.
func (h callersHistory) entry(op journal.Entry, flags []string) HistoryEntry {
	e := HistoryEntry{ID: op.ID, Truncated: op.Truncated}
	if first, err := event.Parse(op.First); err == nil {
		e.Began, _ = first.(*event.OperationStarted)
	}
	if e.Began != nil {
		e.Began.Recorder = op.Recorder
	}
	if last, err := event.Parse(op.Last); err == nil {
		e.last = last.Head().Time
		e.Ended, _ = last.(*event.Result)
	}
	if e.Ended != nil && !h.caller.Trusts(op.Recorder) {
		withoutForeignWords(e.Ended, e.ID, flags)
	}
	return e
}

// ReadOperation is the events of one operation, in the order of their times, and
// how many lines of its history could not be read. What is not of one LB stands in
// the history of each, and is told once.
func ReadOperation(ctx context.Context, sp spec.Spec, id string, c fleet.Connector) (events []event.Event, unread int, err error) {
	all, err := fleet.AskAll(ctx, sp, c, func(ctx context.Context, lb *fleet.LB) (callersHistory, error) {
		h, err := lb.History(ctx, balancer.HistoryQuery{ID: id})
		own := callersHistory{History: h, caller: lb.Caller()}
		if balancer.CodeOf(err) == balancer.CodeUnknown {
			own.unknown, err = err, nil
		}
		return own, err
	})
	if err != nil {
		return nil, 0, spec.BeforeTouching(ctx, err)
	}
	var unknown error
	told := map[string]bool{}
	for i, h := range all {
		unknown = cmp.Or(unknown, h.unknown)
		unread += h.Truncated
		for _, line := range h.Lines {
			e, err := event.Parse(line)
			if err != nil {
				unread++
				continue
			}
			began, first := e.(*event.OperationStarted)
			if told[string(line)] || first && len(events) > 0 && (began.Continues == "" || i > 0) {
				continue
			}
			if first {
				began.Recorder = h.Recorder
			}
			if result, ok := e.(*event.Result); ok && !h.caller.Trusts(h.Recorder) {
				withoutForeignWords(result, id, sp.Words(spec.WhereFlags...))
			}
			told[string(line)] = true
			events = append(events, e)
		}
	}
	if len(events) == 0 && unknown != nil {
		return nil, 0, spec.BeforeTouching(ctx, unknown)
	}
	if len(all) > 1 {
		slices.SortStableFunc(events, func(a, b event.Event) int { return a.Head().Time.Compare(b.Head().Time) })
	}
	return events, unread, nil
}

// Unended is what to type where the events of an operation have no end: it may still
// run, or have crashed. The history cannot tell.
func Unended(sp spec.Spec, id string, events []event.Event) []spec.Command {
	var targets []string
	ended := false
	for _, e := range events {
		switch e := e.(type) {
		case *event.Result:
			ended = true
		case *event.OperationStarted: // or resumed
			targets, ended = e.Targets, false
		}
	}
	if ended {
		return nil
	}
	where := sp.Words(spec.WhereFlags...)
	return slices.Concat(statusCommand(targets, where, "says whether it still runs"), ResumeCommand(id, where, "continues, if it does not"),
		UndrainCommand(targets, where, "puts everything back instead"))
}
