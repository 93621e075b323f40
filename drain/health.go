package drain

import (
	"context"
	"slices"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/spec"
)

// checkHealth asks for the health URL of a backend, which the way back needs, while the app is
// still up. Of an app that is not up it says that the URL was not asked.
func (o *Operation) checkHealth(ctx context.Context, m *row, c *checker, stopped bool) {
	url := m.plan.HealthCheck()
	if !m.plan.HasURL() || o.plan.Spec.Kind == spec.Undrain {
		return
	}
	unasked := ""
	switch {
	case m.plan.Servers == 0:
		c.skip(event.CheckServer, event.CheckHealth)
		return
	case m.plan.IsOut():
		unasked = "its servers are down already"
	case stopped:
		unasked = m.plan.Settings.Service.Do("does", "do") + " not run"
	}
	if unasked != "" {
		c.add(event.CheckHealth, event.Seen{URL: url}, spec.Finding{Code: "health", Warning: true, Text: url + " was not tried: " + unasked})
		return
	}
	c.add(event.CheckHealth, event.Seen{URL: url}, o.askHealth(ctx, m)...)
}

// tryHealth adds to the plan of a dry run what the health URLs answer. Whether a service runs is
// not known to it.
func (o *Operation) tryHealth(ctx context.Context) {
	for _, found := range gather(o.whole.rows, func(m *row) (found []spec.Finding) {
		c := &checker{backend: m.Name}
		o.checkHealth(ctx, m, c, false)
		for _, check := range c.checks {
			if check.Finding != nil {
				found = append(found, *check.Finding)
			}
		}
		return found
	}) {
		o.plan.Findings = append(o.plan.Findings, found...)
	}
	o.plan.ExitCode = spec.ExitOf(o.plan.Refusal())
}

// askHealth has each LB of a backend ask for its health URL, and judges the answers. What several
// LBs are told alike is one finding.
func (o *Operation) askHealth(ctx context.Context, m *row) (found []spec.Finding) {
	lbs := o.lbs.With(m.plan)
	answers := make([]spec.Finding, len(lbs))
	_ = lbs.Each(ctx, func(ctx context.Context, lb *fleet.LB) error {
		if err := lb.Health(ctx, m.plan.HealthRequest()); err != nil {
			code := balancer.CodeOf(err)
			serves := code == balancer.CodeUnreachable && len(o.whole.checkedServers(lb, m)) > 0 && o.whole.connect(ctx, lb, m) == nil
			f := judgeHealth(o.plan.Spec.Kind, m.plan.Settings, code, serves, err.Error())
			f.LB = lb.Name
			answers[slices.Index(lbs, lb)] = f
		}
		return nil
	})
	for _, f := range answers {
		if f.Code != "" && !slices.ContainsFunc(found, func(had spec.Finding) bool { return had.Text == f.Text }) {
			found = append(found, f)
		}
	}
	return found
}

// judgeHealth is what a health URL that does not pass means before anything is touched. A rolling
// run stops apps that must pass afterwards: it refuses. A drain takes sick apps out, so it refuses
// only a URL that no restart makes pass, and warns of the rest. serves tells that the app accepts
// connections where nginx sends to, so that a URL that nothing accepts is wrong. A drain without a
// service starts nothing later.
func judgeHealth(kind spec.Kind, set spec.Settings, code balancer.Code, serves bool, text string) spec.Finding {
	mends := code == balancer.CodeUnhealthy || code == balancer.CodeUnreachable && !serves
	if kind == spec.Drain && (mends || set.Service == "") {
		return spec.Finding{Code: "health", Warning: true, Text: text + "; undrain waits until it passes"}
	}
	if serves {
		text += "; the app accepts connections where nginx sends to"
	}
	return spec.Finding{Code: "health", Override: "--health tcp", Text: text + "\nhint: name the URL that answers with a status from 200 to 299 when the app is well"}
}
