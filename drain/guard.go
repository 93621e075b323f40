package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/nginx"
)

// guards adds what an expert would see in this part of the plan.
func (p *Plan) guards(part *LBPlan) {
	p.sharedLines(part)
	p.leftUp(part)
	if p.Request.Operation != Drain || len(part.Edits) == 0 {
		return
	}
	for _, u := range upstreamsOf(part.Servers) {
		p.liveServers(part, u)
	}
	p.bypasses(part)
	p.shutdownTimeout(part)
}

func upstreamsOf(servers []*nginx.Server) []*nginx.Upstream {
	var ups []*nginx.Upstream
	for _, s := range servers {
		if !slices.Contains(ups, s.Upstream) {
			ups = append(ups, s.Upstream)
		}
	}
	return ups
}

// sharedLines refuses an --upstream that cannot be narrowed to: the line
// stands in a fragment that another upstream includes too.
func (p *Plan) sharedLines(part *LBPlan) {
	if len(p.Request.Upstreams) == 0 {
		return
	}
	for _, s := range part.Conf.Match(p.Request.Target, nil) {
		if slices.Contains(part.Servers, s) {
			continue
		}
		for _, ours := range part.Servers {
			if sameLine(ours, s) {
				p.Refusals = append(p.Refusals, Finding{
					Kind: Refused,
					Text: fmt.Sprintf("%s:%d: the line of %s is included by upstream %s and by upstream %s alike; an edit is for both",
						s.File.Path, s.Line(), s.Address, part.Conf.DisplayName(ours.Upstream), part.Conf.DisplayName(s.Upstream)),
					Override: "--upstream " + part.Conf.DisplayName(s.Upstream),
				})
			}
		}
	}
}

// sameLine tells whether two servers stand on one line: that of a fragment
// which two upstreams, or one upstream twice, include.
func sameLine(a, b *nginx.Server) bool {
	return a.File.Path == b.File.Path && a.Words[0].Start == b.Words[0].Start
}

// leftUp finds the target in upstreams that --upstream leaves out. They go on
// sending requests to the backend, whose service is stopped for all of them.
func (p *Plan) leftUp(part *LBPlan) {
	if p.Request.Operation != Drain || len(p.Request.Upstreams) == 0 {
		return
	}
	for _, s := range part.Conf.Match(p.Request.Target, nil) {
		if s.IsDown() || slices.Contains(part.Servers, s) {
			continue
		}
		text := fmt.Sprintf("%s:%d: %s stays up, and goes on sending requests to the backend", s.File.Path, s.Line(), ServerName(part.Conf, s))
		if p.Request.Service == "" {
			p.Warnings = append(p.Warnings, text)
			continue
		}
		p.Refusals = append(p.Refusals, Finding{
			Kind:     Refused,
			Text:     text + fmt.Sprintf("; stopping %s would cut them", p.Request.Service),
			Override: "--upstream " + part.Conf.DisplayName(s.Upstream) + " as well, or without --service",
		})
	}
}

// liveServers counts the live primaries that u keeps. A backup is none: nginx
// asks it only when no primary is left.
func (p *Plan) liveServers(part *LBPlan, u *nginx.Upstream) {
	var before, after []*nginx.Server
	for _, s := range u.Servers {
		if s.IsDown() || !s.IsPrimary() {
			continue
		}
		before = append(before, s)
		if !slices.Contains(part.Servers, s) {
			after = append(after, s)
		}
	}
	name := part.Conf.DisplayName(u)
	switch {
	case len(before) == len(after):
	case len(after) < p.Request.MinUp:
		text := fmt.Sprintf("upstream %s (%s:%d) would keep %s, fewer than %d",
			name, u.File.Path, u.Line(), live(len(after)), p.Request.MinUp)
		if len(after) == 0 {
			text = fmt.Sprintf("upstream %s (%s:%d) would have no live server left: nginx answers 502", name, u.File.Path, u.Line())
			if slices.ContainsFunc(u.Servers, func(s *nginx.Server) bool {
				return !s.IsPrimary() && !s.IsDown() && !slices.Contains(part.Servers, s)
			}) {
				text = fmt.Sprintf("upstream %s (%s:%d) would have no live server left but a backup, which is no live primary", name, u.File.Path, u.Line())
			}
		}
		p.Refusals = append(p.Refusals, Finding{Kind: Refused, Text: text, Override: fmt.Sprintf("--min-up %d", len(after))})
	case len(after) == 1 && after[0].Param("max_fails") != "0":
		timeout := after[0].Param("fail_timeout")
		if timeout == "" {
			timeout = "10s"
		}
		p.Warnings = append(p.Warnings, fmt.Sprintf(
			"upstream %s would have one live server left, %s: a single refused connection to it then means 502s for %s (fail_timeout); max_fails=0 on it would prevent that",
			name, after[0].Address, timeout))
	}
}

func live(n int) string {
	if n == 1 {
		return "1 live server"
	}
	return fmt.Sprintf("%d live servers", n)
}

// bypasses finds where the target is reached without the upstream.
func (p *Plan) bypasses(part *LBPlan) {
	for _, b := range part.Conf.Bypasses(p.Request.Target, part.Servers) {
		where := fmt.Sprintf("%s:%d: %s %s", b.File.Path, b.Line(), b.Directive, b.Text)
		switch {
		case !b.Certain:
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s names the target outside of an upstream; if requests are sent there, down does not stop them", where))
		case p.Request.Allow.Direct:
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s reaches the target outside of an upstream, and goes on doing so", where))
		default:
			p.Refusals = append(p.Refusals, Finding{
				Kind:     Refused,
				Text:     fmt.Sprintf("%s reaches the target outside of an upstream: down does not stop these requests", where),
				Override: "--allow-direct",
			})
		}
	}
}

// shutdownTimeout compares worker_shutdown_timeout with the wait.
func (p *Plan) shutdownTimeout(part *LBPlan) {
	cut, wait := part.Conf.ShutdownTimeout, p.Request.Timeout
	if cut == 0 || (wait != 0 && cut >= wait) {
		return
	}
	limit := Span(wait)
	if wait == 0 {
		limit = "0 (no limit)"
	}
	text := fmt.Sprintf("worker_shutdown_timeout %s in %s is shorter than --timeout %s: nginx itself cuts the requests that are still open then", Span(cut), part.Conf.Path, limit)
	if p.Request.Allow.ShutdownTimeout {
		p.Warnings = append(p.Warnings, text)
		return
	}
	p.Refusals = append(p.Refusals, Finding{Kind: Refused, Text: text, Override: fmt.Sprintf("--timeout %s, or --allow-shutdown-timeout", Span(cut))})
}

// addresses looks up the names among the servers: down takes every address of
// a name out.
func (p *Plan) addresses(ctx context.Context) {
	for _, part := range p.LBs {
		for _, name := range nginx.Names(part.Servers) {
			addrs, err := part.LB.Host.Lookup(ctx, name)
			switch {
			case err != nil:
				p.Unchecked = append(p.Unchecked, fmt.Sprintf("how many addresses %s has: %v", name, err))
				continue
			case len(addrs) < 2 || loopback(addrs):
				continue
			}
			var texts []string
			for _, a := range addrs {
				texts = append(texts, a.String())
			}
			text := fmt.Sprintf("%s has %d addresses (%s): down takes them all out", name, len(addrs), strings.Join(texts, ", "))
			switch {
			case p.Request.Operation == Undrain:
			case !p.Request.Allow.AllAddresses:
				p.Refusals = append(p.Refusals, Finding{Kind: Refused, Text: text, Override: "--allow-all-addresses"})
			case p.Request.needsBackend():
				p.Refusals = append(p.Refusals, Finding{Kind: Refused,
					Text:     text + "; over SSH only one of them would be watched and stopped",
					Override: "--poll lb, and no --service"})
			default:
				p.Warnings = append(p.Warnings, text)
			}
		}
	}
}
