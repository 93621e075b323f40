package spec

import (
	"fmt"
	"slices"
	"strings"

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
		return journal.Operation{}, UsageError("%d operations were interrupted\nhint: name one by its ID: %s", len(found), describeAll(found))
	case name == "":
		return journal.Operation{}, UsageError("no operation was interrupted\nhint: drainctl history lists how each ended")
	case len(all) > 0:
		return journal.Operation{}, UsageError("no operation %s was interrupted\nhint: there is %s", name, describeAll(all))
	}
	return journal.Operation{}, UsageError("no operation %s was interrupted, or another one has continued it", name)
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

// CheckResume refuses the operation of another user to anyone but root: it would be theirs.
func (s CallersState) CheckResume(id string) error {
	op, ok := s.Find(id)
	if !ok || s.Caller.Controls(op.Recorder) {
		return nil
	}
	return Refuse(Finding{Code: "recorded-by-another", Text: fmt.Sprintf(
		"operation %s was recorded by %s: they can resume it, and root can\nhint: anyone can undrain its targets, and drain them again", id, journal.OneLine(op.Who()))})
}

// MergeStates is the operations of several LBs: one on several of them is one.
func MergeStates(states []journal.State) (all journal.State) {
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
