package drain

import (
	"cmp"
	"maps"
	"slices"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// maxChecked bounds the checks that an event of the history has.
const maxChecked = 200

// guardChecks are what guards find that no other check is about, by the kind of an
// operation. A rolling run is judged as its drains are.
var guardChecks = map[spec.Kind][]event.CheckName{
	spec.Drain: {
		"live-servers", "one-live-server", "remaining-upstream", "direct-reference", "other-name", "shutdown-timeout", "udp-sessions", "several-addresses",
	},
	spec.Undrain: {"unmanaged", "ambiguous", "orphaned", "udp-sessions"},
}

// tellChecks tells of what was checked: nothing of it has failed, or there were no
// run. The plan has shown what the LBs warn of.
func (o *Operation) tellChecks() {
	for _, lb := range o.plan.LBs {
		o.emit(bounded(&event.Checked{Header: event.Header{LB: lb.LB}, Checks: checksOf(o.plan, lb)}))
	}
	if len(o.checks) > 0 || len(o.plan.Unchecked) > 0 {
		o.emit(bounded(&event.Checked{Checks: o.checks, Unchecked: o.plan.Unchecked}))
	}
	for _, c := range o.checks {
		if c.Result == event.CheckWarning {
			o.emit(&event.Warning{Header: event.Header{Target: c.Backend}, Text: c.Finding.Text})
		}
	}
}

// checksOf is the checks of one LB: those that drainctl check makes, and the guards.
func checksOf(p *plan.Plan, lb plan.LBPlan) []event.Check {
	l := &lbLook{checker: checker{lb: lb.LB}, LBPlan: lb}
	found := map[event.CheckName][]spec.Finding{}
	for _, f := range p.Findings {
		if f.LB == lb.LB {
			name := cmp.Or(checkOf[f.Code], event.CheckName(f.Code))
			found[name] = append(found[name], f)
		}
	}
	kind := p.Spec.Kind
	if kind == spec.Run {
		kind = spec.Drain
	}
	names := slices.DeleteFunc(slices.Clone(lbChecks), func(name event.CheckName) bool { return name == event.CheckClock })
	if plan.NeedsEdit(lb) || kind == spec.Undrain {
		names = append(names, guardChecks[kind]...)
	}
	for _, name := range names {
		l.add(name, l.seen(name), found[name]...)
		delete(found, name)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		l.add(name, event.Seen{}, found[name]...)
	}
	return l.checks
}

// bounded leaves out what is too much to keep: of what passed, as far as it can.
func bounded(e *event.Checked) *event.Checked {
	if n := len(e.Checks); n > maxChecked {
		e.Checks = slices.Clone(e.Checks)
		slices.SortStableFunc(e.Checks, func(a, b event.Check) int {
			return cmp.Compare(rank[a.Result], rank[b.Result])
		})
		e.Checks, e.More = e.Checks[:maxChecked], n-maxChecked
	}
	return e
}

// rank orders results, the worst first.
var rank = map[event.CheckResult]int{event.CheckFailed: 0, event.CheckWarning: 1, event.NotChecked: 2, event.CheckOK: 3}
