package plan

import (
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// Gone returns the servers that a spec means, that the journal has a record of, and that are no longer in
// the configuration. It returns none if that is not known: a file could not be read, or another
// configuration than the reported one had the server.
func Gone(sp spec.Spec, r *balancer.Report) (gone []journal.Located) {
	if len(r.Skipped) > 0 {
		return nil
	}
	for _, l := range r.State.Recorded() {
		if sp.Names(l.Server) && !has(r.Servers, l.Server) && IsOfConfiguration(sp, r, l.Server) {
			gone = append(gone, l)
		}
	}
	return gone
}

// GoneServers returns the gone servers as server lines, which they were.
func GoneServers(sp spec.Spec, r *balancer.Report) []balancer.Server {
	lines := []balancer.Server{}
	for _, l := range Gone(sp, r) {
		lines = append(lines, balancer.Server{Located: l, Name: l.Upstream, Text: l.Address, Managed: len(r.State.MarksOn(l.Server)) > 0, Open: -1})
	}
	return lines
}

func has(servers []balancer.Server, s journal.Server) bool {
	return slices.ContainsFunc(servers, func(had balancer.Server) bool { return had.Server == s })
}

// isGone reports whether a target that no LB has is gone. Of an operation that is resumed, each target is
// that has no server any more.
func isGone(sp spec.Spec, target string, lbs []LBPlan) bool {
	sp.Targets = []string{target}
	return slices.ContainsFunc(lbs, func(lb LBPlan) bool {
		op, _ := lb.Report.State.Find(sp.Continues)
		wasIn := slices.ContainsFunc(op.Servers, func(l journal.Located) bool { return sp.Names(l.Server) })
		return wasIn && len(lb.Report.Skipped) == 0 || len(Gone(sp, lb.Report)) > 0
	})
}

// IsOfConfiguration reports whether the journal has the server of the configuration that is reported.
func IsOfConfiguration(sp spec.Spec, r *balancer.Report, s journal.Server) bool {
	return !slices.ContainsFunc(RecordsOf(r.State, s), func(op journal.Operation) bool {
		was, _ := spec.FromOperation(op)
		return was.Nginx.Conf != "" && was.Nginx.Conf != sp.Nginx.Conf && was.Nginx.Conf != r.ConfPath
	})
}

// RecordsOf returns the operations that have marked a server or list it, oldest first.
func RecordsOf(state journal.State, s journal.Server) (ops []journal.Operation) {
	for _, op := range state.Operations {
		marked := slices.ContainsFunc(state.MarksOn(s), func(m journal.Mark) bool { return m.Operation == op.ID })
		if marked || op.Covers(s) {
			ops = append(ops, op)
		}
	}
	return ops
}

// StoppedService returns the units that a drain has stopped with a server; empty if it has stopped none, or
// if that is not known.
func StoppedService(op journal.Operation, s journal.Server) spec.Units {
	was, err := spec.FromOperation(op)
	a, addressErr := nginx.ParseAddress(s.Address)
	if err != nil || addressErr != nil || op.Kind != journal.KindDrain || op.Result != journal.ResultDone {
		return ""
	}
	set, err := was.SettingsOf([]string{s.Upstream, s.Module + "/" + s.Upstream}, []string{a.Host, s.Address})
	if err != nil {
		return ""
	}
	return set.Service
}
