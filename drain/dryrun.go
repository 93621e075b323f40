package drain

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/drainctl/drainctl/nginx"
)

// DryRun makes the plan, and has nginx judge the configuration where that can
// be done without root. nginx is asked while the files are read, so that the
// answer takes no longer than nginx's own test.
func DryRun(ctx context.Context, req *Request) (*Plan, error) {
	tests := make([]<-chan error, len(req.LBs))
	for i, lb := range req.LBs {
		tests[i] = lb.testAsUser(ctx)
	}
	plan, err := (&Plan{Request: req, dry: true}).read(ctx)
	if err != nil {
		return plan, err
	}
	for i, lb := range req.LBs {
		plan.tested(lb, <-tests[i])
		plan.lookAtRunning(ctx, &plan.LBs[i])
	}
	if ctx.Err() != nil {
		return plan, &Failure{Kind: Interrupted, Err: context.Cause(ctx), Now: "nothing was touched"}
	}
	plan.untried()
	return plan, nil
}

// testAsUser starts nginx's test, as the user that we are.
func (lb *LB) testAsUser(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	if len(lb.Nginx.TestCommand) == 0 {
		// This finds a binary that PATH lacks, as a user's often does. That
		// there is none, the test says.
		_, _ = lb.build(ctx)
	}
	b := lb.binary()
	b.Host = plainHost{lb.Host}
	go func() { done <- b.Test(ctx) }()
	return done
}

// tested adds what nginx's test said.
func (p *Plan) tested(lb *LB, err error) {
	var ce *nginx.CommandError
	switch {
	case err == nil:
	case errors.As(err, &ce) && (ce.Code == 126 || ce.Code == 127):
		p.Unchecked = append(p.Unchecked, "nginx's own test of the configuration: there is no "+ce.Command[0]+" here to run")
	case errors.As(err, &ce) && ce.Unprivileged() && lb.Host.User() != "root":
		p.Unchecked = append(p.Unchecked, "nginx's own test of the configuration: it needs root here ("+ce.Lines[0]+")")
	default:
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Text: fmt.Sprintf("the configuration is refused before any edit: %v", err), Override: testOverride})
	}
}

// lookAtRunning looks at the nginx that its PID file names, which needs no root,
// and whether somebody's work is pending.
func (p *Plan) lookAtRunning(ctx context.Context, part *LBPlan) {
	lb := part.LB
	b := lb.binary()
	b.Host = plainHost{lb.Host}
	running, err := lb.byPIDFile(ctx, b, part.Conf)
	if err != nil {
		p.Unchecked = append(p.Unchecked, "whether nginx runs, and with this configuration (the real run looks)")
		return
	}
	if f := checkConfOf(ctx, part, running); f != nil {
		p.Refusals = append(p.Refusals, *f)
	}
	r := newRun(p, func(Event) {})
	findings, warnings, err := r.pending(ctx, part, running)
	if err != nil {
		p.Unchecked = append(p.Unchecked, fmt.Sprintf("whether files were changed since nginx was last loaded: %v", err))
	}
	p.Refusals = append(p.Refusals, findings...)
	p.Warnings = append(p.Warnings, warnings...)
}

// untried says what a dry run does not try.
func (p *Plan) untried() {
	const looks = " (the real run looks)"
	if !p.Request.needsBackend() {
		return
	}
	var what []string
	if p.Request.OverSSH() {
		what = append(what, "SSH to "+p.Request.BackendName)
	}
	if p.Request.Service != "" {
		what = append(what, "the unit "+p.Request.Service, "the right to stop and start it")
	}
	if p.Request.Operation == Drain && p.Request.Poll == PollSS {
		what = append(what, "ss")
	}
	how := looks
	if p.Request.OverSSH() {
		how = " (a dry run does not log in)"
	}
	p.Unchecked = append(p.Unchecked, strings.Join(what, ", ")+how)
}

// Verdict is the failure that the real run would end with before it touches
// anything; nil when nothing is known to speak against it.
func (p *Plan) Verdict() error {
	if len(p.Refusals) == 0 {
		return nil
	}
	return refuse(p.Refusals)
}

// Steps describes the steps of the plan, in the order they are taken.
func (p *Plan) Steps() []string {
	r := newRun(p, func(Event) {})
	var texts []string
	for _, st := range r.steps() {
		texts = append(texts, st.describe(r.way()))
	}
	if r.way() == Back {
		for i, j := 0, len(texts)-1; i < j; i, j = i+1, j-1 {
			texts[i], texts[j] = texts[j], texts[i]
		}
	}
	return texts
}

// Already tells that every configuration is as wanted: nothing will be edited.
func (p *Plan) Already() bool {
	for _, part := range p.LBs {
		if len(part.Edits) > 0 {
			return false
		}
	}
	return true
}

// GaugeText says where connections will be counted.
func (p *Plan) GaugeText() string {
	switch {
	case p.Request.Poll == PollStubStatus:
		return "stub_status at " + p.Request.StatusURL
	case p.Request.Poll == PollLB, p.Request.Target.Unix != "":
		return "ss on the load balancer"
	}
	return "ss on " + p.Request.BackendName
}

// ValidHealthURL tells whether text is a URL that can be asked.
func ValidHealthURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	if u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%q is neither %q nor an http or https URL", text, HealthTCP)
	}
	return nil
}

// A Summary is what a run that is done can say.
type Summary struct {
	Operation Operation
	Target    string
	Changed   bool // false: everything was so already
	Service   string
	Backend   string
	// StaysDown names the servers that an undrain has left down, because they
	// were so by hand; AllDown tells that these are all.
	StaysDown string
	AllDown   bool
}

// Summary is for after a [Session.Run] without an error.
func (s *Session) Summary() Summary {
	sum := Summary{
		Operation: s.r.req.Operation, Target: s.r.req.Target.String(), Changed: s.r.changed,
		Service: s.r.req.Service, Backend: s.r.req.BackendName, AllDown: s.r.req.Operation == Undrain,
	}
	var names []string
	for _, c := range s.r.close.lbs {
		up, down := s.r.close.sides(c)
		if len(down) > 0 {
			names = append(names, namesOf(c.part, down))
		}
		sum.AllDown = sum.AllDown && len(up) == 0
	}
	sum.StaysDown = strings.Join(names, "; ")
	return sum
}
