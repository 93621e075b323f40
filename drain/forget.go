package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// Forget clears the records of servers that are no longer in the configuration. It edits no file and
// starts no service. The result is that of the command; the error is a *[spec.Failure].
func Forget(ctx context.Context, sp spec.Spec, options Options, dry bool) (*event.Result, error) {
	o := newOperation(sp, options)
	defer o.Close()
	r, err := o.forget(ctx, sp, dry)
	if err != nil {
		err = spec.BeforeTouching(ctx, err)
		r = ResultOf(err)
	}
	return r, err
}

func (o *Operation) forget(ctx context.Context, sp spec.Spec, dry bool) (*event.Result, error) {
	var err error
	if o.lbs, err = o.lbs.Open(ctx, sp, o.emit); err != nil {
		return nil, err
	}
	if err := o.planForget(ctx, dry); err != nil {
		return nil, err
	}
	if !dry {
		if err := o.lbs.Lock(ctx, o.locks(), sp.Wait, o.emit); err != nil {
			return nil, err
		}
		if err := o.planForget(ctx, dry); err != nil { // others may have worked on the servers meanwhile
			return nil, err
		}
	}
	if err := o.accept(); err != nil || dry {
		return ResultOf(err), err
	}
	return o.clearRecords(ctx)
}

// planForget plans which servers each LB is to forget: those of the reports that it makes.
func (o *Operation) planForget(ctx context.Context, dry bool) error {
	sp := o.asked
	reports, err := fleet.Gather(ctx, o.lbs, func(ctx context.Context, lb *fleet.LB) (plan.LBPlan, error) {
		// The upstream may be gone, too: to name it would be an error.
		return lb.Ask(ctx, balancer.Query{Targets: sp.Targets})
	})
	if err != nil {
		return err
	}
	var gone []plan.LBPlan
	var findings []spec.Finding
	for i, lb := range o.distinct(reports) {
		whole, err := o.lbs[i].State(ctx)
		if err != nil {
			return err
		}
		r := *lb.Report
		r.Servers, r.Diff = plan.GoneServers(sp, lb.Report), ""
		gone = append(gone, plan.LBPlan{LB: lb.LB, Report: &r})
		found, err := refuseForget(sp, lb, whole)
		if err != nil {
			return err
		}
		findings = append(findings, found...)
	}
	if len(findings) > 0 {
		return spec.Refuse(findings...)
	}
	if o.id == "" {
		o.id, o.began = newID(reports), time.Now()
	}
	o.plan = &plan.Plan{Spec: sp, DryRun: dry, LBs: gone, Backends: []plan.Backend{}, Steps: []plan.Step{}, Findings: []spec.Finding{}, Unchecked: []string{}}
	return nil
}

// refuseForget returns what speaks against it on one LB, whose whole journal may also have other
// configurations.
func refuseForget(sp spec.Spec, lb plan.LBPlan, whole journal.State) (found []spec.Finding, err error) {
	r := lb.Report
	if r.StateError != nil {
		return nil, r.StateError
	}
	isNamed := func(l journal.Located) bool { return sp.Names(l.Server) }
	records := r.State.Recorded()
	if !slices.ContainsFunc(records, isNamed) {
		records = whole.Recorded()
	}
	for _, l := range records {
		if !isNamed(l) {
			continue
		}
		name := fmt.Sprintf("%s in %s", l.Address, l.Upstream)
		i := slices.IndexFunc(r.Servers, func(s balancer.Server) bool { return s.Server == l.Server })
		isOwn := slices.Contains(r.State.Recorded(), l)
		switch {
		case isOwn && i >= 0:
			found = append(found, spec.Finding{Code: "not-gone", LB: lb.LB, Text: fmt.Sprintf("%s (%s:%d) is still in the configuration\nhint: drainctl undrain puts it back", name, r.Servers[i].File, r.Servers[i].Line)})
		case !isOwn, !plan.IsOfConfiguration(sp, r, l.Server):
			found = append(found, spec.Finding{Code: "other-configuration", LB: lb.LB, Override: "--nginx-conf", Text: fmt.Sprintf("%s was drained in another configuration than %s", name, r.ConfPath)})
		case len(r.Skipped) > 0:
			found = append(found, spec.Finding{Code: "unreadable-file", LB: lb.LB, Text: fmt.Sprintf("whether %s is gone is not known: %s", name, r.Skipped[0].Error)})
		}
	}
	return found, nil
}

// clearRecords writes the operation to the journals of the LBs that have a record, and its end: that
// clears the records.
func (o *Operation) clearRecords(ctx context.Context) (*event.Result, error) {
	sp := o.plan.Spec
	r := &event.Result{Kind: sp.Kind, Targets: sp.Targets, Result: journal.ResultDone, Findings: []spec.Finding{}, Next: []spec.Command{}}
	r.Operation = o.id
	text, err := json.Marshal(sp.Recordable())
	if err != nil {
		return nil, fmt.Errorf("write the spec down: %w", err)
	}
	ops := map[string]journal.Operation{}
	for _, lb := range o.plan.LBs {
		op := journal.Operation{ID: o.id, Kind: string(sp.Kind), Targets: sp.Targets, User: sp.User, Host: sp.Host, Reason: sp.Reason, Spec: text, Began: o.began}
		for _, s := range lb.Report.Servers {
			op.Servers = append(op.Servers, s.Located)
			r.Services = append(r.Services, stoppedWith(lb.Report.State, s.Server)...)
		}
		if len(op.Servers) > 0 {
			ops[lb.LB], r.Changed = op, true
			o.emit(&event.OperationStarted{Header: event.Header{LB: lb.LB}, Version: historyVersion, Kind: sp.Kind, Targets: sp.Targets,
				User: sp.User, Host: sp.Host, Reason: sp.Reason, Servers: op.Servers, Drainctl: o.options.Version})
		}
	}
	r.Services = slices.Compact(r.Services)
	event.Stamp(r)
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write the result down: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	lbs := slices.DeleteFunc(slices.Clone(o.lbs), func(lb *fleet.LB) bool { return len(ops[lb.Name].Servers) == 0 })
	var cleared atomic.Bool
	err = lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		if err := lb.Begin(ctx, balancer.Beginning{Operation: ops[lb.Name], Lines: lb.TakeHistory()}); err != nil {
			return err
		}
		err := lb.End(ctx, journal.Ending{Result: journal.ResultDone, Lines: []json.RawMessage{line}})
		if err == nil {
			cleared.Store(true)
		}
		return err
	})
	if err == nil {
		return r, nil
	}
	f := &spec.Failure{Exit: spec.Failed, Err: err, Stands: spec.Stands{Standing: spec.Repeatable}}
	if cleared.Load() {
		f.Exit = spec.Partial
	}
	return nil, f
}

// stoppedWith returns the services that drains have stopped with a server.
func stoppedWith(state journal.State, s journal.Server) (all []spec.ServiceStand) {
	for _, op := range plan.RecordsOf(state, s) {
		for _, unit := range plan.StoppedService(op, s).List() {
			all = append(all, spec.ServiceStand{Unit: unit, Backend: fleet.LockName(s.Address)})
		}
	}
	return all
}
