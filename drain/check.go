package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Check tries everything the run will need before anything is touched. What is
// missing comes back as one refusal that lists it all.
//
// The claim is the session's from then on.
func Check(ctx context.Context, plan *Plan, claim *Claim, tell func(Event)) (*Session, error) {
	r := newRun(plan, tell)
	r.claims = claim.locks
	findings := slices.Clone(plan.Refusals)
	for i := range plan.LBs {
		findings = append(findings, r.checkLB(ctx, &plan.LBs[i])...)
	}
	findings = append(findings, r.checkBackend(ctx)...)
	findings = append(findings, r.checkGauge(ctx)...)
	if ctx.Err() != nil {
		return nil, &Failure{Kind: Interrupted, Err: context.Cause(ctx), Now: "nothing was touched"}
	}
	if len(findings) > 0 {
		r.closeBackend()
		return nil, refuse(findings)
	}
	return &Session{r}, nil
}

// Close ends the connection to the backend.
func (s *Session) Close() { s.r.closeBackend() }

func (r *run) closeBackend() {
	if r.backend != nil && !r.req.Local {
		r.backend.Close()
	}
}

func missing(format string, args ...any) Finding {
	return Finding{Kind: Refused, Text: fmt.Sprintf(format, args...)}
}

// checkLB looks whether nginx runs, by this configuration, and accepts it, and
// whether the files can be written.
func (r *run) checkLB(ctx context.Context, part *LBPlan) []Finding {
	var found []Finding
	lb := part.LB
	running, err := lb.running(ctx, part.Conf)
	var sudo *remote.SudoError
	if errors.As(err, &sudo) {
		// Nothing else here will work either.
		return []Finding{missing("%v", err)}
	}
	if err != nil {
		found = append(found, missing("on %s: %v", lb.Host.Name(), err))
	} else {
		if f := checkConfOf(ctx, part, running); f != nil {
			found = append(found, *f)
		}
		// Asked again under the lock; here so that one refusal has it all.
		pending, _, err := r.pending(ctx, part, running)
		if err != nil {
			found = append(found, missing("%v", err))
		}
		found = append(found, pending...)
	}
	if f := CheckTest(ctx, lb); f != nil {
		found = append(found, *f)
	}
	for _, ch := range part.Changes {
		if err := remote.CheckReplace(ctx, lb.Host, ch.Path); err != nil {
			found = append(found, missing("on %s: %v", lb.Host.Name(), err))
		}
	}
	return found
}

// testOverride is for an nginx that this machine's nginx -t says nothing about.
const testOverride = "--test-command, if it is tested some other way"

// CheckTest has nginx judge the configuration as it is; nil means it passed.
func CheckTest(ctx context.Context, lb *LB) *Finding {
	err := lb.binary().Test(ctx)
	if err == nil {
		return nil
	}
	return &Finding{Kind: Refused, Text: fmt.Sprintf("the configuration is refused before any edit: %v", err), Override: testOverride}
}

// checkConfOf makes sure that the nginx that runs was started with the
// configuration that is about to be edited.
func checkConfOf(ctx context.Context, part *LBPlan, running nginx.Running) *Finding {
	lb := part.LB
	if lb.Foreign {
		return nil
	}
	build, err := lb.build(ctx)
	if err != nil {
		return nil
	}
	conf := running.ConfOf(build)
	if conf == "" {
		conf = build.Conf
	}
	ours, err1 := lb.Host.Stat(ctx, part.ConfPath)
	theirs, err2 := lb.Host.Stat(ctx, conf)
	if err1 != nil || err2 != nil || ours.Path == theirs.Path {
		return nil
	}
	f := missing("the nginx that runs (process %d) was started with %s, not with %s", running.Master.PID, conf, part.ConfPath)
	f.Override = "--nginx-conf " + conf
	return &f
}

// checkBackend logs in, and looks whether the service and the right to stop
// and start it are there.
func (r *run) checkBackend(ctx context.Context) []Finding {
	if !r.req.needsBackend() {
		return nil
	}
	var err error
	if r.req.Local {
		r.backend = r.req.LBs[0].Host
	} else if r.backend, err = r.req.Dial(ctx, r.req.SSH); err != nil {
		r.backend = nil
		f := missing("%v", err)
		if r.req.Service == "" {
			f.Override = "--poll lb, which needs no SSH"
		}
		return []Finding{f}
	}
	if r.req.Service == "" {
		return nil
	}
	var found []Finding
	r.stop.service = remote.Service{Host: r.backend, Unit: r.req.Service}
	state, err := r.stop.service.State(ctx)
	if err != nil {
		found = append(found, missing("%v", err))
	}
	r.stop.seen = err == nil && started(state)
	// Both ways are needed: the way back is part of the way.
	if err := r.stop.service.SudoCheck(ctx); err != nil {
		found = append(found, missing("%v", err))
	}
	return found
}

// checkGauge makes the gauge and reads it once.
func (r *run) checkGauge(ctx context.Context) []Finding {
	if r.req.needsBackend() && r.backend == nil {
		return nil
	}
	g := r.newGauge()
	r.gauge = g
	if r.req.Operation != Drain {
		// The gauge is for the way back alone.
		return nil
	}
	first, err := g.read(ctx)
	if err != nil {
		return []Finding{missing("count the open connections with %s: %v", g.describe(), err)}
	}
	return r.checkReach(ctx, first)
}

// checkReach finds a gauge that looks at the wrong place: nothing listens on
// the server's port on the backend, and yet the server answers. Its port is
// then forwarded, and ss on the backend would read 0 for ever.
func (r *run) checkReach(ctx context.Context, first Reading) []Finding {
	g, ok := r.gauge.(backendGauge)
	if !ok || first.Count > 0 {
		return nil
	}
	listening, err := remote.Listening(ctx, g.host, g.ports)
	if err != nil {
		return []Finding{missing("on %s: %v", g.host.Name(), err)}
	}
	for _, part := range r.plan.LBs {
		for _, s := range part.Servers {
			if i := slices.Index(g.ports, s.Address.Port); i < 0 || listening[i] {
				continue
			}
			try, cancel := context.WithTimeout(ctx, healthTry)
			err := remote.Connect(try, part.LB.Host, s.Address.String())
			cancel()
			if err == nil {
				return []Finding{{
					Kind:     Refused,
					Text:     fmt.Sprintf("%s answers, but on %s nothing listens on port %d: its connections cannot be counted there (a forwarded port, or another host?)", s.Address, g.host.Name(), s.Address.Port),
					Override: "--poll lb, or --ssh-host",
				}}
			}
		}
	}
	return nil
}

// newGauge is the gauge that was asked for. Unix sockets are always counted on
// the load balancer: there is nowhere else.
func (r *run) newGauge() gauge {
	var ports []uint16
	var sockets []string
	for _, part := range r.plan.LBs {
		for _, s := range part.Servers {
			switch {
			case s.Address.Unix != "" && !slices.Contains(sockets, s.Address.Unix):
				sockets = append(sockets, s.Address.Unix)
			case s.Address.Unix == "" && !slices.Contains(ports, s.Address.Port):
				ports = append(ports, s.Address.Port)
			}
		}
	}
	switch {
	case r.req.Poll == PollStubStatus:
		host := r.req.LBs[0].Host
		if r.req.statusOnBackend() {
			host = r.backend
		}
		return statusGauge{host: host, url: r.req.StatusURL}
	case len(sockets) > 0:
		return unixGauge{host: r.req.LBs[0].Host, paths: sockets}
	case r.req.Poll == PollLB:
		return lbGauge{parts: r.plan.LBs}
	}
	return backendGauge{host: r.backend, ports: ports}
}

// healthText says how health is judged.
func (r *run) healthText() string {
	if r.req.Health != HealthTCP {
		return "GET " + r.req.Health
	}
	return "TCP connect from the load balancer"
}

// healthy is one try of the health check, from every load balancer.
func (r *run) healthy(ctx context.Context) error {
	for _, part := range r.plan.LBs {
		if r.req.Health != HealthTCP {
			code, body, err := remote.Get(ctx, part.LB.Host, r.req.Health)
			if err != nil {
				return err
			}
			if code < 200 || code > 299 {
				return fmt.Errorf("%s answered with status %d: %s", r.req.Health, code, firstLine(body))
			}
			continue
		}
		for _, s := range part.Servers {
			if err := remote.Connect(ctx, part.LB.Host, s.Address.String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxBodyShown bounds how much of an answer's body an error repeats.
const maxBodyShown = 120

func firstLine(body []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if len(line) > maxBodyShown {
		line = line[:maxBodyShown] + "…"
	}
	return line
}

// A goneError says that the target is not in the configuration any more.
type goneError struct {
	target nginx.Target
	conf   string
}

func (e *goneError) Error() string {
	return fmt.Sprintf("%s is in no upstream of %s any more", e.target, e.conf)
}

// reread plans one load balancer's part afresh from what is on disk now. The
// guards are asked again: somebody else may drain at the same time. The error is
// a *goneError if there is no such server any more.
func (p *Plan) reread(ctx context.Context, was *LBPlan, op Operation) (*LBPlan, []Finding, error) {
	req := *p.Request
	req.Operation = op
	fresh := &Plan{Request: &req}
	part, err := fresh.load(ctx, was.LB, was.Ledger, was.LedgerErr)
	if err != nil {
		return nil, nil, err
	}
	if len(part.Servers) == 0 {
		return nil, nil, &goneError{req.Target, part.ConfPath}
	}
	if err := fresh.judge(part); err != nil {
		return nil, nil, err
	}
	return part, fresh.Refusals, nil
}
