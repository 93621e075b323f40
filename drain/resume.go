package drain

import (
	"context"
	"fmt"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
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
		return journal.Operation{}, usage("%d operations were interrupted; name one by its ID: %s", len(found), describeAll(found))
	case name == "":
		return journal.Operation{}, usage("no operation was interrupted")
	case len(all) > 0:
		return journal.Operation{}, usage("no operation %s was interrupted; there is %s", name, describeAll(all))
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
		texts = append(texts, fmt.Sprintf("%s (%s %s by %s)", op.ID, op.Kind, strings.Join(op.Targets, ", "), op.Who()))
	}
	return strings.Join(texts, ", ")
}

// Resumed is the spec that continues with an interrupted operation: name is its
// ID or its target, or empty for the only one there is. spec has what is given
// now.
func Resumed(ctx context.Context, spec Spec, name string, c Connector) (Spec, error) {
	lb, err := openOne(ctx, spec, c)
	if err != nil {
		return spec, beforeTouching(ctx, err)
	}
	defer lb.Close()
	s, err := lb.State(ctx)
	if err != nil {
		return spec, beforeTouching(ctx, err)
	}
	op, err := FindUnfinished(s, name)
	if err != nil {
		return spec, err
	}
	return spec.Resume(op)
}

// openOne reaches the first LB of a spec.
func openOne(ctx context.Context, spec Spec, c Connector) (balancer.Balancer, error) {
	name := ""
	if len(spec.LBs) > 0 {
		name = spec.LBs[0]
	}
	return c.LB(ctx, name, spec.Nginx)
}

// A HistoryEntry is one operation in the list of them.
type HistoryEntry struct {
	ID        string
	Began     *OperationStarted
	Ended     *Result // nil: it has not ended, or did not live to say so
	Truncated int     // lines that could not be read
}

// ReadHistory lists the operations of an LB, the oldest first, and the files in
// its journal that hold none.
func ReadHistory(ctx context.Context, spec Spec, c Connector) (entries []HistoryEntry, unreadable []string, err error) {
	lb, err := openOne(ctx, spec, c)
	if err != nil {
		return nil, nil, beforeTouching(ctx, err)
	}
	defer lb.Close()
	h, err := lb.History(ctx, balancer.HistoryQuery{})
	if err != nil {
		return nil, nil, beforeTouching(ctx, err)
	}
	for _, op := range h.Operations {
		e := HistoryEntry{ID: op.ID, Truncated: op.Truncated}
		if first, err := ParseEvent(op.First); err == nil {
			e.Began, _ = first.(*OperationStarted)
		}
		if last, err := ParseEvent(op.Last); err == nil {
			e.Ended, _ = last.(*Result)
		}
		if e.Began == nil {
			h.Unreadable = append(h.Unreadable, op.ID)
			continue
		}
		entries = append(entries, e)
	}
	return entries, h.Unreadable, nil
}

// ReadOperation is the events of one operation, and how many lines of its
// history could not be read.
func ReadOperation(ctx context.Context, spec Spec, id string, c Connector) (events []Event, unread int, err error) {
	lb, err := openOne(ctx, spec, c)
	if err != nil {
		return nil, 0, beforeTouching(ctx, err)
	}
	defer lb.Close()
	h, err := lb.History(ctx, balancer.HistoryQuery{ID: id})
	if err != nil {
		return nil, 0, beforeTouching(ctx, err)
	}
	for _, line := range h.Lines {
		e, err := ParseEvent(line)
		if err != nil {
			h.Truncated++
			continue
		}
		events = append(events, e)
	}
	return events, h.Truncated, nil
}
