package drain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
)

// An lbLook is one LB while it is checked.
type lbLook struct {
	checker
	LBPlan
	broken CheckName     // what kept it from being asked
	skew   time.Duration // by which its clock is ahead at least, or behind if negative
	named  bool          // servers of it are asked about
	usage  error         // what is asked makes no sense there
	err    error         // it could not be asked
}

// reachLB connects to an LB and starts its agent.
func reachLB(ctx context.Context, lb *LB, spec Spec) *lbLook {
	l := &lbLook{checker: checker{lb: lb.Name}, named: len(spec.Targets)+len(spec.Upstreams) > 0}
	err := lb.Open(ctx, spec.Nginx)
	agent, isAgent := lb.Balancer.(agentLB)
	var names []CheckName
	switch {
	case lb.Name != ThisMachine:
		names = []CheckName{CheckSSH, CheckHostKey, CheckSudo, CheckAgent}
	case isAgent || err != nil:
		names = []CheckName{CheckSudo, CheckAgent}
	}
	var f Finding
	if err != nil {
		f = findingOf(err, "load-balancer")
	}
	l.broken = l.reach(names, err, f, func(name CheckName) Seen {
		switch {
		case !isAgent, name == CheckHostKey:
			return Seen{}
		case name == CheckSSH:
			return Seen{Host: agent.host.Name()}
		case name == CheckSudo:
			return Seen{User: agent.host.User()}
		}
		return Seen{Version: agent.Version()}
	})
	return l
}

// look asks an LB for its part. Where nothing of what is named is on it, it is
// asked about itself.
func (l *lbLook) look(ctx context.Context, lb *LB, spec Spec) {
	itself := balancer.Query{Itself: true, Preflight: true}
	q := query(spec)
	if !l.named {
		q = itself
	}
	l.err = l.ask(ctx, lb, q)
	switch {
	case balancer.CodeOf(l.err) == balancer.CodeUsage:
		l.usage = l.err
		l.err = l.ask(ctx, lb, itself)
	case l.err == nil && len(l.Report.Missing) > 0 && len(l.Report.Missing) == len(spec.Targets):
		missing := l.Report.Missing
		if l.err = l.ask(ctx, lb, itself); l.err == nil {
			l.Report.Missing = missing
		}
	}
}

// ask asks an LB, and compares its clock with this machine's. The LB has looked at
// its own while it was asked; within that time no difference can be told.
func (l *lbLook) ask(ctx context.Context, lb *LB, q balancer.Query) (err error) {
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
var lbChecks = []CheckName{
	CheckConfiguration, CheckServer, CheckNginx, CheckTest, CheckFiles, CheckPending, CheckJournal, CheckSpace, CheckClock,
}

// checkOf is the checks by the codes of what guards find.
var checkOf = map[string]CheckName{
	"shared-line": CheckServer, "unreadable-file": CheckConfiguration,
	balancer.ProblemRunning: CheckNginx, balancer.ProblemConf: CheckNginx, balancer.ProblemTest: CheckTest,
	balancer.ProblemWrite: CheckFiles, balancer.ProblemPending: CheckPending, balancer.ProblemJournal: CheckJournal,
	"clock": CheckClock,
}

// check says what is so on an LB. The guards judge its report, as they do for a run.
func (l *lbLook) check(spec Spec, reports []LBPlan) {
	names := slices.DeleteFunc(slices.Clone(lbChecks), func(name CheckName) bool {
		unnamed := !l.named && (name == CheckServer || name == CheckFiles)
		return unnamed || name == CheckClock && l.lb == ThisMachine && l.Report == nil
	})
	switch {
	case l.broken != "":
		l.skip(l.broken, names...)
		return
	case l.err != nil:
		l.add(CheckConfiguration, Seen{}, findingOf(l.err, string(cmp.Or(balancer.CodeOf(l.err), balancer.CodeFailed))))
		l.skip(CheckConfiguration, names[1:]...)
		return
	}
	found := l.found(spec, reports)
	for _, name := range names {
		switch {
		case name == CheckFiles && len(l.Report.Servers) == 0,
			name == CheckClock && l.lb == ThisMachine && len(found[name]) == 0:
		case name == CheckPending && l.Report.Generation == nil:
			l.skip(CheckNginx, name)
		case name == CheckSpace && l.Report.Free == 0 && len(found[CheckJournal]) > 0:
			l.skip(CheckJournal, name)
		default:
			l.add(name, l.seen(name), found[name]...)
		}
	}
}

// found is what is wrong with an LB, by the checks.
func (l *lbLook) found(spec Spec, reports []LBPlan) map[CheckName][]Finding {
	found := map[CheckName][]Finding{}
	add := func(name CheckName, f Finding) {
		f.LB = l.lb
		found[name] = append(found[name], f)
	}
	for _, guard := range guards {
		for _, f := range guard(&Plan{Spec: spec, LBs: []LBPlan{l.LBPlan}}) {
			if f.Code != "missing" { // which is worse where no other LB has it either
				add(cmp.Or(checkOf[f.Code], CheckConfiguration), f)
			}
		}
	}
	if l.usage != nil {
		add(CheckServer, findingOf(l.usage, string(balancer.CodeUsage)))
	}
	for _, m := range l.Report.Missing {
		only := Spec{Targets: []string{m.Target}}
		add(CheckServer, Finding{Code: "missing", Text: m.Error.Error(), Warning: missingEverywhere(only, reports) == nil})
	}
	if free := l.Report.Free; free < minFree {
		add(CheckSpace, Finding{Code: string(CheckSpace), Override: "--state-dir", Text: fmt.Sprintf("%d MB free for the journal, less than %d MB", free>>20, minFree>>20)})
	}
	if l.skew.Abs() > maxSkew {
		add(CheckClock, Finding{Code: string(CheckClock), Warning: true, Text: fmt.Sprintf("it differs by %s or more from this machine's", l.skew.Abs().Round(time.Second))})
	}
	return found
}

// seen is what a check of an LB saw.
func (l *lbLook) seen(name CheckName) Seen {
	r := l.Report
	switch name {
	case CheckConfiguration:
		return Seen{Configuration: r.ConfPath}
	case CheckServer:
		return Seen{Servers: names(r.Servers)}
	case CheckNginx:
		return Seen{Version: r.Version, Generation: r.Generation}
	case CheckSpace:
		return Seen{Free: r.Free}
	case CheckClock:
		return Seen{Skew: InSeconds(l.skew)}
	}
	return Seen{}
}
