package drain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// An lbLook is one LB while it is checked.
type lbLook struct {
	checker
	plan.LBPlan
	broken event.CheckName // what kept it from being asked
	skew   time.Duration   // by which its clock is ahead at least, or behind if negative
	twin   string          // it is another LB by a second name, as this says
	named  bool            // servers of it are asked about
	usage  error           // what is asked makes no sense there
	err    error           // it could not be asked
}

// reachLB connects to an LB and starts its agent.
func reachLB(ctx context.Context, lb *fleet.LB, sp spec.Spec) *lbLook {
	l := &lbLook{checker: checker{lb: lb.Name}, named: len(sp.Targets)+len(sp.Upstreams) > 0}
	err := lb.Open(ctx, sp.Nginx)
	agent, isAgent := lb.Balancer.(fleet.Agent)
	var names []event.CheckName
	switch {
	case lb.Name != fleet.ThisMachine:
		names = []event.CheckName{event.CheckSSH, event.CheckHostKey, event.CheckSudo, event.CheckAgent}
	case isAgent || err != nil:
		names = []event.CheckName{event.CheckSudo, event.CheckAgent}
	}
	var f spec.Finding
	if err != nil {
		f = findingOf(err, "load-balancer")
	}
	l.broken = l.reach(names, err, f, func(name event.CheckName) event.Seen {
		switch {
		case !isAgent, name == event.CheckHostKey:
			return event.Seen{}
		case name == event.CheckSSH:
			return event.Seen{Host: agent.Host.Name()}
		case name == event.CheckSudo:
			return event.Seen{User: agent.Host.User()}
		}
		return event.Seen{Version: agent.Version()}
	})
	return l
}

// look asks an LB for its part. Where nothing of what is named is on it, it is
// asked about itself.
func (l *lbLook) look(ctx context.Context, lb *fleet.LB, sp spec.Spec) {
	itself := balancer.Query{Itself: true, Preflight: true}
	q := plan.Query(sp)
	if !l.named {
		q = itself
	}
	l.err = l.ask(ctx, lb, q)
	switch {
	case balancer.CodeOf(l.err) == balancer.CodeUsage:
		l.usage = l.err
		l.err = l.ask(ctx, lb, itself)
	case l.err == nil && len(l.Report.Missing) > 0 && len(l.Report.Missing) == len(sp.Targets):
		missing := l.Report.Missing
		if l.err = l.ask(ctx, lb, itself); l.err == nil {
			l.Report.Missing = missing
		}
	}
}

// ask asks an LB, and compares its clock with this machine's. The LB has looked at
// its own while it was asked; within that time no difference can be told.
func (l *lbLook) ask(ctx context.Context, lb *fleet.LB, q balancer.Query) (err error) {
	before := time.Now()
	l.LBPlan, err = lb.Ask(ctx, q)
	if after := time.Now(); err == nil {
		l.skew = min(0, l.Report.Now.Sub(before)) + max(0, l.Report.Now.Sub(after))
	}
	return err
}

const (
	// minFree is the least space for a journal, in bytes. An operation takes some
	// kilobytes of it.
	minFree = 10 << 20
	// maxSkew is more than what clocks that are kept in step differ by. It is worth
	// a warning only: what drainctl decides by a time, it decides by the clock of
	// the machine that has taken it. The times of a history are then not to be
	// compared with those of other machines' logs.
	maxSkew = 5 * time.Second
)

// lbChecks are the checks of an LB that can be asked.
var lbChecks = []event.CheckName{
	event.CheckConfiguration, event.CheckServer, event.CheckNginx, event.CheckTest, event.CheckFiles, event.CheckPending, event.CheckJournal, event.CheckSpace, event.CheckClock,
}

// checkOf is the checks by the codes of what guards find.
var checkOf = map[string]event.CheckName{
	"shared-line": event.CheckServer, "unreadable-file": event.CheckConfiguration,
	balancer.ProblemRunning: event.CheckNginx, balancer.ProblemConf: event.CheckNginx, balancer.ProblemPlace: event.CheckNginx, balancer.ProblemTest: event.CheckTest,
	balancer.ProblemWrite: event.CheckFiles, balancer.ProblemPending: event.CheckPending, balancer.ProblemJournal: event.CheckJournal,
	"clock": event.CheckClock,
}

// check says what is so on an LB. The guards judge its report, as they do for a run.
func (l *lbLook) check(sp spec.Spec, reports []plan.LBPlan) {
	names := slices.DeleteFunc(slices.Clone(lbChecks), func(name event.CheckName) bool {
		unnamed := !l.named && (name == event.CheckServer || name == event.CheckFiles)
		return unnamed || name == event.CheckClock && l.lb == fleet.ThisMachine && l.Report == nil
	})
	switch {
	case l.broken != "":
		l.skip(l.broken, names...)
		return
	case l.twin != "":
		l.add(event.CheckConfiguration, event.Seen{}, spec.Finding{Code: "same-load-balancer", Warning: true, Text: l.twin})
		return
	case l.err != nil:
		l.add(event.CheckConfiguration, event.Seen{}, findingOf(l.err, string(cmp.Or(balancer.CodeOf(l.err), balancer.CodeFailed))))
		l.skip(event.CheckConfiguration, names[1:]...)
		return
	}
	found := l.found(sp, reports)
	for _, name := range names {
		switch {
		case name == event.CheckFiles && len(l.Report.Servers) == 0,
			name == event.CheckClock && l.lb == fleet.ThisMachine && len(found[name]) == 0:
		case name == event.CheckPending && l.Report.Generation == nil:
			l.skip(event.CheckNginx, name)
		case name == event.CheckSpace && l.Report.Free == 0 && len(found[event.CheckJournal]) > 0:
			l.skip(event.CheckJournal, name)
		default:
			l.add(name, l.seen(name), found[name]...)
		}
	}
}

// found is what is wrong with an LB, by the checks.
func (l *lbLook) found(sp spec.Spec, reports []plan.LBPlan) map[event.CheckName][]spec.Finding {
	found := map[event.CheckName][]spec.Finding{}
	add := func(name event.CheckName, f spec.Finding) {
		f.LB = l.lb
		found[name] = append(found[name], f)
	}
	for _, guard := range plan.Guards {
		for _, f := range guard(&plan.Plan{Spec: sp, LBs: []plan.LBPlan{l.LBPlan}}) {
			if f.Code != "missing" { // which is worse where no other LB has it either
				add(cmp.Or(checkOf[f.Code], event.CheckConfiguration), f)
			}
		}
	}
	if l.usage != nil {
		add(event.CheckServer, findingOf(l.usage, string(balancer.CodeUsage)))
	}
	for _, m := range l.Report.Missing {
		only := spec.Spec{Targets: []string{m.Target}}
		add(event.CheckServer, spec.Finding{Code: "missing", Text: m.Error.Error(), Warning: plan.MissingEverywhere(only, reports) == nil})
	}
	if free := l.Report.Free; free < minFree {
		add(event.CheckSpace, spec.Finding{Code: string(event.CheckSpace), Override: "--state-dir", Text: fmt.Sprintf("%d MB free for the journal, less than %d MB", free>>20, minFree>>20)})
	}
	if l.skew.Abs() > maxSkew {
		add(event.CheckClock, spec.Finding{Code: string(event.CheckClock), Warning: true, Text: fmt.Sprintf("it differs by %s or more from this machine's", l.skew.Abs().Round(time.Second))})
	}
	return found
}

// seen is what a check of an LB saw.
func (l *lbLook) seen(name event.CheckName) event.Seen {
	r := l.Report
	switch name {
	case event.CheckConfiguration:
		return event.Seen{Configuration: r.ConfPath}
	case event.CheckServer:
		return event.Seen{Servers: plan.ServerNames(r.Servers)}
	case event.CheckNginx:
		return event.Seen{Version: r.Version, Generation: r.Generation}
	case event.CheckSpace:
		return event.Seen{Free: r.Free}
	case event.CheckClock:
		return event.Seen{Skew: spec.InSeconds(l.skew)}
	}
	return event.Seen{}
}
