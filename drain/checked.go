package drain

import (
	"cmp"
	"maps"
	"slices"
)

// maxChecked bounds the checks that an event of the history has.
const maxChecked = 200

// guardChecks are what guards find that no other check is about, by the kind of an
// operation. A rolling run is judged as its drains are.
var guardChecks = map[Kind][]CheckName{
	Drain: {
		"live-servers", "one-live-server", "remaining-upstream", "direct-reference", "other-name", "shutdown-timeout", "several-addresses",
	},
	Undrain: {"unmanaged", "ambiguous", "orphaned"},
}

// tellChecks tells of what was checked: nothing of it has failed, or there were no
// run.
func (o *Operation) tellChecks() {
	for _, lb := range o.plan.LBs {
		o.emit(bounded(&Checked{Header: Header{LB: lb.LB}, Checks: checksOf(o.plan, lb)}))
	}
	if len(o.checks) > 0 || len(o.plan.Unchecked) > 0 {
		o.emit(bounded(&Checked{Checks: o.checks, Unchecked: o.plan.Unchecked}))
	}
}

// checksOf is the checks of one LB: those that drainctl check makes, and the guards.
func checksOf(p *Plan, lb LBPlan) []Check {
	l := &lbLook{checker: checker{lb: lb.LB}, LBPlan: lb}
	found := map[CheckName][]Finding{}
	for _, f := range p.Findings {
		if f.LB == lb.LB {
			name := cmp.Or(checkOf[f.Code], CheckName(f.Code))
			found[name] = append(found[name], f)
		}
	}
	kind := p.Spec.Kind
	if kind == Run {
		kind = Drain
	}
	names := slices.DeleteFunc(slices.Clone(lbChecks), func(name CheckName) bool { return name == CheckClock })
	if edits(lb) || kind == Undrain {
		names = append(names, guardChecks[kind]...)
	}
	for _, name := range names {
		l.add(name, l.seen(name), found[name]...)
		delete(found, name)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		l.add(name, Seen{}, found[name]...)
	}
	return l.checks
}

// bounded leaves out what is too much to keep: of what passed, as far as it can.
func bounded(e *Checked) *Checked {
	if n := len(e.Checks); n > maxChecked {
		e.Checks = slices.Clone(e.Checks)
		slices.SortStableFunc(e.Checks, func(a, b Check) int {
			return cmp.Compare(rank[a.Result], rank[b.Result])
		})
		e.Checks, e.More = e.Checks[:maxChecked], n-maxChecked
	}
	return e
}

// rank orders results, the worst first.
var rank = map[CheckResult]int{CheckFailed: 0, CheckWarning: 1, NotChecked: 2, CheckOK: 3}
