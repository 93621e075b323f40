package drain

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/nginx"
)

// mine picks the servers whose down an undrain takes away: the ones drainctl
// has put there, and with --force all.
func (p *Plan) mine(part *LBPlan) func(*nginx.Server) bool {
	if p.Request.Operation != Undrain || p.Request.Force {
		return nil
	}
	return func(s *nginx.Server) bool { return part.Ledger.Mark(s) != nil }
}

// unknown judges a journal that cannot be read. A drain would be written down
// where nobody could read it to take it back.
func (p *Plan) unknown(part *LBPlan) {
	switch {
	case part.LedgerErr == nil:
	case p.dry && errors.Is(part.LedgerErr, fs.ErrPermission):
		p.Unchecked = append(p.Unchecked, fmt.Sprintf("who drained what: %v", part.LedgerErr))
	case p.Request.Operation == Drain:
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Override: "--state-dir, with another journal", Text: part.LedgerErr.Error()})
	}
}

// ownership judges an undrain by what the journal knows of the servers.
func (p *Plan) ownership(part *LBPlan) {
	if p.Request.Operation != Undrain || p.Request.Force {
		return
	}
	if p.dry && errors.Is(part.LedgerErr, fs.ErrPermission) {
		return
	}
	var byHand []*nginx.Server
	drained := false
	for _, s := range part.Servers {
		mark := part.Ledger.Mark(s)
		drained = drained || mark != nil || part.Ledger.Latest(s) != nil
		if s.IsDown() && mark == nil {
			byHand = append(byHand, s)
		}
	}
	lost := p.lost(part)
	switch {
	case len(byHand) > 0 && part.LedgerErr != nil:
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Override: "--force",
			Text: fmt.Sprintf("%s is down, and whether drainctl put it there is not known: %v", places(part, byHand), part.LedgerErr)})
	case len(byHand) > 0 && len(lost) > 0:
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Override: "--force",
			Text: fmt.Sprintf("the journal knows %s, which is not in the configuration any more; the configuration has %s down, which the journal does not know: whether they are the same is not clear",
				strings.Join(lost, ", "), places(part, byHand))})
	case len(byHand) > 0 && !drained:
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Override: "--force",
			Text: fmt.Sprintf("%s is down, but not by drainctl: the journal in %s on %s has no drain of it", places(part, byHand), p.Request.StateDir, part.LB.Host.Name())})
	case len(byHand) > 0:
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was down by hand before, and stays down; --force clears it too", places(part, byHand)))
	case len(lost) > 0:
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s was drained, and is not in the configuration any more", strings.Join(lost, ", ")))
	}
	p.doubles(part)
}

// doubles refuses where an upstream names the target twice, and more of its
// lines are down than drainctl has marked: which are whose cannot be told.
func (p *Plan) doubles(part *LBPlan) {
	var told []string
	for _, s := range part.Servers {
		m := part.Ledger.Mark(s)
		if m == nil || slices.Contains(told, m.key()) {
			continue
		}
		told = append(told, m.key())
		if same := downLines(part, m.key()); len(same) > m.Lines() {
			p.Refusals = append(p.Refusals, Finding{Kind: Refused, Override: "--force",
				Text: fmt.Sprintf("%s: %d lines are down, and drainctl has marked %d (%s:%d): which is not clear", places(part, same), len(same), m.Lines(), m.File, m.Line)})
		}
	}
}

// downLines is the lines of one server that are down. A line of a fragment that
// is included twice is one.
func downLines(part *LBPlan, key string) []*nginx.Server {
	var lines []*nginx.Server
	for _, s := range part.Servers {
		known := slices.ContainsFunc(lines, func(line *nginx.Server) bool { return sameLine(line, s) })
		if serverKey(s) == key && s.IsDown() && !known {
			lines = append(lines, s)
		}
	}
	return lines
}

// lost names the marks on the target that the configuration has no server for.
func (p *Plan) lost(part *LBPlan) []string {
	if part.Ledger == nil {
		return nil
	}
	var texts []string
	for key, m := range part.Ledger.marks {
		a, err := nginx.ParseAddress(m.Address)
		if err != nil || !p.Request.Target.Matches(a) || !p.wants(m) {
			continue
		}
		if !slices.ContainsFunc(part.Servers, func(s *nginx.Server) bool { return serverKey(s) == key }) {
			texts = append(texts, fmt.Sprintf("%s in %s (%s:%d, drained by %s)", m.Address, m.Upstream, m.File, m.Line, m.By.Who()))
		}
	}
	slices.Sort(texts)
	return texts
}

func (p *Plan) wants(m *Mark) bool {
	names := p.Request.Upstreams
	return len(names) == 0 || slices.Contains(names, m.Upstream) || slices.Contains(names, m.Module+"/"+m.Upstream)
}

// places names servers and where they stand.
func places(part *LBPlan, servers []*nginx.Server) string {
	var texts []string
	for _, s := range servers {
		texts = append(texts, fmt.Sprintf("%s (%s:%d)", ServerName(part.Conf, s), s.File.Path, s.Line()))
	}
	return strings.Join(texts, ", ")
}

// inherit fills in, for an undrain, what the drain was given: the service, and
// how the backend is reached.
func (p *Plan) inherit() error {
	req := p.Request
	if req.Operation != Undrain {
		return nil
	}
	var from *Recorded
	for _, part := range p.LBs {
		for _, s := range part.Servers {
			o := withService(part.Ledger.Standing(s))
			switch {
			case o == nil:
			case from == nil:
				from = o
			case from.Settings.Service != o.Settings.Service && req.Service == "":
				return refuse([]Finding{{Kind: Refused, Override: "--service, or a target with its port",
					Text: fmt.Sprintf("the target was drained with different services: %s (%s) and %s (%s)", from.Settings.Service, from.ID, o.Settings.Service, o.ID)}})
			case o.ID > from.ID:
				from = o
			}
		}
	}
	if from == nil {
		return nil
	}
	if req.Service == "" {
		req.Service = from.Settings.Service
	}
	if !req.SSHGiven {
		req.useSSH(from.Settings)
	}
	return nil
}

// withService is the latest operation that was given a service.
func withService(ops []*Recorded) *Recorded {
	for _, o := range slices.Backward(ops) {
		if o.Settings.Service != "" {
			return o
		}
	}
	return nil
}

// inheritNginx fills in, for an undrain, how nginx was run for the operations
// that stand on the target: the configuration and the operator's commands. What
// is said now counts before it.
func (p *Plan) inheritNginx(lb *LB, ledger *Ledger) error {
	if p.Request.Operation != Undrain || ledger == nil {
		return nil
	}
	var from *Recorded
	for _, o := range ledger.standingOn(p.Request.Target) {
		if lb.Conf == "" && from != nil && o.Conf != from.Conf {
			return refuse([]Finding{{Kind: Refused, Override: "--nginx-conf",
				Text: fmt.Sprintf("the target was drained in different configurations: %s (%s) and %s (%s)", from.Conf, from.ID, o.Conf, o.ID)}})
		}
		from = o
	}
	if from != nil {
		from.useNginx(lb)
	}
	return nil
}

// useNginx runs nginx as the operation did, where nothing else was said.
func (o *Recorded) useNginx(lb *LB) {
	if lb.Conf == "" {
		lb.Conf = o.Conf
	}
	if s := o.Settings; s.Nginx != "" && lb.Nginx.Path == DefaultBinary {
		lb.Nginx.Path = s.Nginx
	}
	if len(lb.Nginx.TestCommand) == 0 {
		lb.Nginx.TestCommand = o.Settings.TestCommand
	}
	if len(lb.Nginx.ReloadCommand) == 0 {
		lb.Nginx.ReloadCommand = o.Settings.ReloadCommand
	}
	lb.Foreign = lb.Foreign || len(lb.Nginx.TestCommand) > 0 || len(lb.Nginx.ReloadCommand) > 0
}

// useSSH reaches the backend as an earlier operation did.
func (r *Request) useSSH(s Settings) {
	if s.SSHHost != "" {
		r.SSH.Address, r.BackendName, r.Local = s.SSHHost, s.SSHHost, false
	}
	r.SSH.User, r.SSH.Port, r.SSH.Identity = s.SSHUser, s.SSHPort, s.Identity
}

// settings is what another operation needs to know of this request.
func (r *Request) settings() Settings {
	s := Settings{
		Service: r.Service, SSHUser: r.SSH.User, SSHPort: r.SSH.Port, Identity: r.SSH.Identity,
		Poll: r.Poll, StatusURL: r.StatusURL, Threshold: r.Threshold, Interval: r.Interval, Timeout: r.Timeout,
		OnTimeout: r.OnTimeout, MinUp: r.MinUp, Allow: r.Allow, Health: r.Health, HealthFor: r.HealthTimeout,
		StopTimeout: r.StopTimeout, IgnorePeers: r.IgnorePeers,
	}
	if !r.Local && r.SSH.Address != r.Target.Host {
		s.SSHHost = r.SSH.Address
	}
	return s
}
