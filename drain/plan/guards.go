package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// A guard is what an expert checks before touching anything: it says what speaks
// against a plan.
type guard func(*Plan) []spec.Finding

// Guards is all of them. Those of a drain find nothing in an undrain.
var Guards = []guard{
	skippedFiles, missingTargets, journalReadable, unmanaged, ambiguousServers, orphanedMarks,
	sharedLines, remainingUpstreams, liveServers, directReferences, otherNames,
	shutdownTimeout, udpSessions, allAddresses, pendingFiles, problems, noneRuns,
}

// onEach asks about each LB by itself.
func (p *Plan) onEach(ask func(lb LBPlan, found *[]spec.Finding)) []spec.Finding {
	var all []spec.Finding
	for _, lb := range p.LBs {
		var found []spec.Finding
		ask(lb, &found)
		for i := range found {
			found[i].LB = lb.LB
		}
		all = append(all, found...)
	}
	return all
}

func add(to *[]spec.Finding, f spec.Finding) { *to = append(*to, f) }

// NeedsEdit tells whether a report has servers to configure.
func NeedsEdit(lb LBPlan) bool {
	return slices.ContainsFunc(lb.Report.Servers, func(s balancer.Server) bool { return s.NeedsEdit })
}

func skippedFiles(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, sk := range lb.Report.Skipped {
			switch {
			case sk.Unread:
			case sk.Mentions:
				add(found, spec.Finding{Code: "unreadable-file", Text: fmt.Sprintf("%s; the file mentions %s and cannot be understood\nhint: fix that place: drainctl edits nothing beside what it cannot read", sk.Error, strings.Join(p.Spec.Targets, ", "))})
			default:
				add(found, spec.Finding{Code: "unreadable-file", Warning: true, Text: fmt.Sprintf("%s; the file was skipped: it does not mention %s", sk.Error, strings.Join(p.Spec.Targets, ", "))})
			}
		}
	})
}

// missingTargets names what one LB has not and another has.
func missingTargets(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, m := range lb.Report.Missing {
			add(found, spec.Finding{Code: "missing", Warning: true, Text: fmt.Sprintf("%s is no server of %s there", m.Target, lb.Report.ConfPath)})
		}
	})
}

// journalReadable: a drain would be recorded where nobody could read it to undo it.
func journalReadable(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		if e := lb.Report.StateError; e != nil && p.Spec.Kind != spec.Undrain && !p.mayNotRead(e) {
			add(found, spec.Finding{Code: "journal", Override: "--state-dir", Text: e.Message})
		}
	})
}

// mayNotRead tells that a dry run could not read the journal for want of root.
func (p *Plan) mayNotRead(e *balancer.Error) bool {
	return p.DryRun && e.Code == balancer.CodePermission
}

// unmanaged judges an undrain by what the journals know of the servers. A drain on one LB is enough: a
// server that is down by hand on another LB was not marked there.
func unmanaged(p *Plan) []spec.Finding {
	if p.Spec.Kind != spec.Undrain || p.Spec.Force {
		return nil
	}
	isDrained := slices.ContainsFunc(p.LBs, func(lb LBPlan) bool { return drained(lb.Report) })
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		r := lb.Report
		if r.StateError != nil && p.mayNotRead(r.StateError) {
			return
		}
		_, down := Sides(r.Servers, spec.Undrain)
		if len(down) == 0 {
			return
		}
		f := spec.Finding{Code: "unmanaged", Override: "--force"}
		orphaned := orphans(p, lb)
		switch {
		case r.StateError != nil:
			f.Text = fmt.Sprintf("%s is down, and whether drainctl marked it is not known: %s", places(down), r.StateError.Message)
		case len(orphaned) > 0:
			f.Text = fmt.Sprintf("the journal has %s, which is not in the configuration any more; the configuration has %s down, which the journal does not have: whether they are the same is not clear", strings.Join(orphaned, ", "), places(down))
		case !isDrained:
			f.Text = fmt.Sprintf("%s is marked down outside drainctl: the journal has no drain of it", places(down))
		default:
			f.Text, f.Warning, f.Override = fmt.Sprintf("%s was marked down outside drainctl before, and stays down\nhint: --force clears it too", places(down)), true, ""
		}
		add(found, f)
	})
}

// drained reports whether the journal has a drain of any of the servers, or a rolling run that did not end.
func drained(r *balancer.Report) bool {
	return slices.ContainsFunc(r.Servers, func(s balancer.Server) bool {
		return s.Managed || slices.ContainsFunc(r.State.Standing(s.Server), func(op journal.Operation) bool { return op.Kind != journal.KindUndrain })
	})
}

// ambiguousServers refuses where an upstream names the target twice and more of
// its lines are down than drainctl has marked: which are whose cannot be told.
func ambiguousServers(p *Plan) []spec.Finding {
	if p.Spec.Kind != spec.Undrain || p.Spec.Force {
		return nil
	}
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		told := map[journal.Server]bool{}
		for _, s := range lb.Report.Servers {
			marks := lb.Report.State.MarksOn(s.Server)
			if len(marks) == 0 || told[s.Server] {
				continue
			}
			told[s.Server] = true
			var down []balancer.Server
			for _, same := range lb.Report.Servers {
				known := slices.ContainsFunc(down, func(d balancer.Server) bool { return d.File == same.File && d.At == same.At })
				if same.Server == s.Server && same.Down && !known {
					down = append(down, same)
				}
			}
			if len(down) > len(marks) {
				add(found, spec.Finding{Code: "ambiguous", Override: "--force", Text: fmt.Sprintf(
					"%s: %d lines are down, and drainctl has marked %d (%s:%d): which is not clear", places(down), len(down), len(marks), marks[0].File, marks[0].Line)})
			}
		}
	})
}

// orphanedMarks warns of marks on the target that the configuration has no
// server for.
func orphanedMarks(p *Plan) []spec.Finding {
	if p.Spec.Kind != spec.Undrain || p.Spec.Force {
		return nil
	}
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		_, down := Sides(lb.Report.Servers, spec.Undrain)
		if gone := orphans(p, lb); len(gone) > 0 && len(down) == 0 {
			add(found, spec.Finding{Code: "orphaned", Warning: true, Text: fmt.Sprintf("%s was drained, and is not in the configuration any more", strings.Join(gone, ", "))})
		}
	})
}

// orphans describes the marks on the targets whose servers are gone.
func orphans(p *Plan, lb LBPlan) []string {
	var texts []string
	for _, m := range lb.Report.State.Marks {
		here := slices.ContainsFunc(lb.Report.Servers, func(s balancer.Server) bool { return s.Server == m.Server })
		if here || !p.Spec.Names(m.Server) {
			continue
		}
		by := ""
		if op, ok := lb.Report.State.Find(m.Operation); ok {
			by = ", drained by " + op.Who()
		}
		text := fmt.Sprintf("%s in %s (%s:%d%s)", m.Address, m.Upstream, m.File, m.Line, by)
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return texts
}

// sharedLines refuses an --upstream that cannot be narrowed to: the line stands
// in a fragment that another upstream includes too.
func sharedLines(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, other := range lb.Report.Excluded {
			for _, s := range lb.Report.Servers {
				if s.File == other.File && s.At == other.At {
					add(found, spec.Finding{Code: "shared-line", Override: "--upstream " + other.Name, Text: fmt.Sprintf(
						"%s:%d: the line of %s is included by upstream %s and by upstream %s alike; an edit is for both", s.File, s.Line, s.Address, s.Name, other.Name)})
				}
			}
		}
	})
}

// remainingUpstreams finds the target in upstreams that --upstream leaves out. nginx continues to send
// their requests to the backend, whose service is stopped for all of them.
func remainingUpstreams(p *Plan) []spec.Finding {
	if p.Spec.Kind != spec.Drain {
		return nil
	}
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, s := range lb.Report.Excluded {
			b, isNamed := p.backendOf(lb.LB, s.Address)
			if s.Down || !isNamed { // for another port see OtherPorts
				continue
			}
			f := spec.Finding{Code: "remaining-upstream", Text: fmt.Sprintf("%s:%d: %s in %s stays up: nginx continues to send requests to the host", s.File, s.Line, s.Address, s.Name)}
			service := b.Settings.Service
			if f.Warning = service == ""; !f.Warning {
				f.Text += fmt.Sprintf("; stopping %s would cut them\nhint: leave out --service, or drain that one too", service)
				f.Override = "--upstream " + s.Name
			}
			add(found, f)
		}
	})
}

// OtherPorts returns the servers on other ports of a backend's host that stay up while its service is
// stopped or the host is rebooted, each address once. The host can tell whether the service serves them;
// those for which the configuration file names another one are left out.
func (p *Plan) OtherPorts(of Backend) (all []balancer.Server) {
	isReboot := p.Spec.Rollout.Reboot
	if p.Spec.Kind == spec.Undrain || of.Settings.Service == "" && !isReboot {
		return nil
	}
	for _, lb := range p.LBs {
		if of.LB != "" && of.LB != lb.LB {
			continue
		}
		for _, s := range lb.Report.Excluded {
			a, err := nginx.ParseAddress(s.Address)
			_, isNamed := p.backendOf(lb.LB, s.Address)
			if s.Down || err != nil || isNamed || !of.isHostOf(a) {
				continue
			}
			isKnown := slices.ContainsFunc(all, func(had balancer.Server) bool { return had.Address == s.Address })
			if !isKnown && (isReboot || !p.hasOwnService(s, a, of.Settings.Service)) {
				all = append(all, s)
			}
		}
	}
	return all
}

// isHostOf reports whether an address is on the host of a backend.
func (b Backend) isHostOf(a nginx.Address) bool {
	return slices.ContainsFunc(b.ParsedTargets(), func(t nginx.Target) bool { return t.SameHost(a) })
}

// hasOwnService reports whether the configuration file names another service for a server than the one
// that is stopped.
func (p *Plan) hasOwnService(s balancer.Server, a nginx.Address, stopped spec.Units) bool {
	sp := p.Spec
	sp.Given = slices.DeleteFunc(slices.Clone(sp.Given), func(flag string) bool { return flag == "service" })
	set, err := sp.SettingsOf(UpstreamNames(s), []string{a.Host, s.Address})
	return err == nil && set.Service != "" && !set.Service.Shares(stopped)
}

// liveServers counts the live primaries that each upstream keeps. A backup is
// none: nginx asks it only when no primary is left.
func liveServers(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		if p.Spec.Kind != spec.Drain || !NeedsEdit(lb) {
			return
		}
		for _, u := range lb.Report.Upstreams {
			switch {
			case u.Live == u.Remain:
			case u.Remain < p.minUp(lb, u.Name):
				text := fmt.Sprintf("upstream %s (%s:%d) would keep %s, fewer than %d", u.Name, u.File, u.Line, backend.Number(u.Remain, "live server"), p.minUp(lb, u.Name))
				switch {
				case u.Remain == 0 && u.Backup:
					text = fmt.Sprintf("upstream %s (%s:%d) would have no live server left but a backup, which is no live primary", u.Name, u.File, u.Line)
				case u.Remain == 0:
					text = fmt.Sprintf("upstream %s (%s:%d) would have no live server left: nginx answers 502", u.Name, u.File, u.Line)
				}
				add(found, spec.Finding{Code: "live-servers", Text: text, Override: fmt.Sprintf("--min-up %d", u.Remain)})
			case u.Remain == 1 && u.MaxFails != "0":
				timeout := u.FailTimeout
				if timeout == "" {
					timeout = "10s"
				}
				add(found, spec.Finding{Code: "one-live-server", Warning: true, Text: fmt.Sprintf(
					"upstream %s would have one live server left, %s: a single refused connection to it then means 502s for %s (fail_timeout)\nhint: max_fails=0 on it would prevent that", u.Name, u.Survivor, timeout)})
			}
		}
	})
}

// minUp is how many live primaries an upstream must keep.
func (p *Plan) minUp(lb LBPlan, upstream string) int {
	var names []string
	if i := slices.IndexFunc(lb.Report.Servers, func(s balancer.Server) bool { return s.Name == upstream }); i >= 0 {
		names = UpstreamNames(lb.Report.Servers[i])
	}
	set, _ := p.Spec.SettingsOf(names, nil) // what is wrong with them was said when they were read
	return set.MinUp
}

// backendOf returns the backend with a target that names an address on an LB.
func (p *Plan) backendOf(lb, address string) (b Backend, isNamed bool) {
	i := slices.IndexFunc(p.Backends, func(b Backend) bool {
		return (b.LB == "" || b.LB == lb) && spec.Matches(b.ParsedTargets(), address)
	})
	if i < 0 {
		return b, false
	}
	return p.Backends[i], true
}

// longestWait is the longest timeout of the backends; 0: one has no limit.
func (p *Plan) longestWait() (longest time.Duration) {
	for _, b := range p.Backends {
		if b.Settings.Timeout == 0 {
			return 0
		}
		longest = max(longest, b.Settings.Timeout)
	}
	return longest
}

// directReferences finds where the target is reached without the upstream.
func directReferences(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		if p.Spec.Kind != spec.Drain || !NeedsEdit(lb) {
			return
		}
		for _, r := range lb.Report.References {
			where := fmt.Sprintf("%s:%d: %s %s", r.File, r.Line, r.Directive, r.Text)
			f := spec.Finding{Code: "direct-reference", Warning: true}
			switch {
			case !r.Certain:
				f.Text = fmt.Sprintf("%s names the target outside of an upstream; if requests are sent there, down does not stop them", where)
			case p.Spec.Allow.Direct:
				f.Text = fmt.Sprintf("%s reaches the target outside of an upstream, and continues to do so", where)
			default:
				f = spec.Finding{Code: f.Code, Override: "--allow-direct", Text: fmt.Sprintf("%s reaches the target outside of an upstream: down does not stop these requests", where)}
			}
			add(found, f)
		}
	})
}

// MaySend reports whether nginx may go on sending to the address of a target: the operator has allowed
// what the findings say of it.
func (p *Plan) MaySend() bool {
	return slices.ContainsFunc(p.LBs, func(lb LBPlan) bool {
		r := lb.Report
		return p.Spec.Allow.Direct && slices.ContainsFunc(r.References, func(ref balancer.Reference) bool { return ref.Certain }) ||
			p.Spec.Allow.OtherNames && slices.ContainsFunc(r.OtherNames, func(o balancer.OtherName) bool { return !o.Server.Down }) ||
			slices.ContainsFunc(r.Excluded, func(s balancer.Server) bool {
				_, isNamed := p.backendOf(lb.LB, s.Address) // else it is on another port
				return isNamed && !s.Down
			})
	})
}

// otherNames finds servers that are the target's host by another name.
func otherNames(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		if p.Spec.Kind != spec.Drain || !NeedsEdit(lb) {
			return
		}
		for _, o := range lb.Report.OtherNames {
			if o.Server.Down {
				continue
			}
			f := spec.Finding{Code: "other-name", Override: "--allow-other-names", Text: fmt.Sprintf(
				"%s:%d: %s in %s is the same host (%s) by another name, and stays up\nhint: drain it too, as the target %s", o.Server.File, o.Server.Line, o.Server.Text, o.Server.Name, o.Address, o.Server.Address)}
			if p.Spec.Allow.OtherNames {
				f.Warning, f.Override = true, ""
			}
			add(found, f)
		}
	})
}

// shutdownTimeout compares worker_shutdown_timeout with the wait.
func shutdownTimeout(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		cut, wait := lb.Report.ShutdownTimeout, p.longestWait()
		if p.Spec.Kind != spec.Drain || !NeedsEdit(lb) || cut == 0 || (wait != 0 && cut >= wait) {
			return
		}
		limit := backend.Span(wait)
		if wait == 0 {
			limit = "0 (no limit)"
		}
		f := spec.Finding{Code: "shutdown-timeout", Override: fmt.Sprintf("--timeout %s or --allow-shutdown-timeout", backend.Span(cut)), Text: fmt.Sprintf(
			"worker_shutdown_timeout %s in %s is shorter than --timeout %s: nginx itself cuts the requests that are still open then", backend.Span(cut), lb.Report.ConfPath, limit)}
		if p.Spec.Allow.ShutdownTimeout {
			f.Warning, f.Override = true, ""
		}
		add(found, f)
	})
}

// udpSessions: a reload ends all UDP sessions. The old workers close the sockets that they receive from
// clients at and answer from (ngx_close_listening_sockets). A client's next datagram begins another
// session, in a new worker. Only the sessions of the target's upstreams need consent: other reloads, as
// for a certificate, end the rest as well. A rolling run is judged as its drains are.
func udpSessions(p *Plan) []spec.Finding {
	if p.Spec.Kind == spec.Run {
		return nil
	}
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		var upstreams []string
		for _, s := range lb.Report.Servers {
			if s.UDP && s.NeedsEdit {
				upstreams = append(upstreams, s.Name)
			}
		}
		f := spec.Finding{Code: "udp-sessions"}
		switch {
		case !NeedsEdit(lb), lb.Report.UDPServer == "", slices.ContainsFunc(lb.Report.Problems, p.allowsStopped):
			return
		case len(upstreams) == 0:
			f.Warning, f.Text = true, fmt.Sprintf("the reload ends all UDP sessions of nginx (%s), as any reload does", lb.Report.UDPServer)
		default:
			f.Text = fmt.Sprintf("nginx passes UDP to %s: the reload ends all UDP sessions, and answers that are under way do not reach their clients", strings.Join(Once(upstreams), ", "))
			if p.Spec.Kind == spec.Drain {
				f.Text += "; drainctl waits for them on the load balancer, for idle ones until proxy_timeout\nhint: proxy_responses ends a session with its answer"
			}
			if f.Warning = p.Spec.Allow.UDP || p.Spec.Kind == spec.Undrain; !f.Warning { // the way back stays open
				f.Override = "--allow-udp"
			}
		}
		add(found, f)
	})
}

// allAddresses: down takes every address of a name out.
func allAddresses(p *Plan) []spec.Finding {
	if p.Spec.Kind != spec.Drain {
		return nil
	}
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, n := range lb.Report.Names {
			if !hasSeveral(n) {
				continue
			}
			f := spec.Finding{Code: "several-addresses", Text: AddressesText(n) + ": down takes them all out"}
			// Over SSH one host is watched and stopped. The preflight asks it whether all addresses are its own.
			if f.Warning = p.Spec.Allow.AllAddresses; !f.Warning {
				f.Override = "--allow-all-addresses"
			}
			add(found, f)
		}
	})
}

// hasSeveral reports whether a name has several addresses. localhost often has an address of each
// family, and they are one place.
func hasSeveral(n balancer.Name) bool {
	return len(n.Addresses) > 1 && slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return !a.IsLoopback() })
}

// AddressesText names the addresses of a name.
func AddressesText(n balancer.Name) string {
	texts := make([]string, len(n.Addresses))
	for i, a := range n.Addresses {
		texts[i] = a.String()
	}
	return fmt.Sprintf("%s has %d addresses (%s)", n.Host, len(n.Addresses), strings.Join(texts, ", "))
}

// SeveralAddresses returns the names of a backend that have several addresses on an LB.
func (p *Plan) SeveralAddresses(b Backend) (names []balancer.Name) {
	for _, lb := range p.LBs {
		for _, n := range lb.Report.Names {
			isNamed := slices.ContainsFunc(b.ParsedTargets(), func(t nginx.Target) bool { return t.Host == n.Host })
			if isNamed && hasSeveral(n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// pendingFiles: our reload would put somebody's unfinished work live.
func pendingFiles(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		pending, future := balancer.PendingText(lb.Report.Pending)
		if future != "" {
			add(found, spec.Finding{Code: "clock", Warning: true, Text: future})
		}
		switch {
		case pending == "":
		case p.Spec.Allow.Pending:
			add(found, spec.Finding{Code: balancer.ProblemPending, Warning: true, Text: pending})
		default:
			add(found, spec.Finding{Code: balancer.ProblemPending, Text: pending, Override: "--accept-pending"})
		}
	})
}

// problemHints say what to do about problems that no flag overrides.
var problemHints = map[string]string{
	balancer.ProblemRunning: "\nhint: start it, as with systemctl start nginx",
	balancer.ProblemWrite:   "\nhint: it must be a plain file that can be replaced, in a directory that can be written to",
}

// problems passes on what an LB itself found.
func problems(p *Plan) []spec.Finding {
	return p.onEach(func(lb LBPlan, found *[]spec.Finding) {
		for _, pr := range lb.Report.Problems {
			switch {
			case p.allowsStopped(pr):
				add(found, spec.Finding{Code: pr.Code, Warning: true, Text: balancer.StoppedText})
			case !(p.DryRun && pr.Unknown):
				add(found, spec.Finding{Code: pr.Code, Text: pr.Text + problemHints[pr.Code], Override: pr.Override})
			}
		}
	})
}

// allowsStopped reports whether a problem is an nginx that is stopped, and may be.
func (p *Plan) allowsStopped(pr balancer.Problem) bool {
	return p.Spec.Allow.StoppedNginx && pr.Override == balancer.AllowStopped
}

// noneRuns warns if all LBs are edited without a reload: no nginx sends requests to the target.
func noneRuns(p *Plan) []spec.Finding {
	if len(p.LBs) == 0 || slices.ContainsFunc(p.LBs, func(lb LBPlan) bool { return !slices.ContainsFunc(lb.Report.Problems, p.allowsStopped) }) {
		return nil
	}
	return []spec.Finding{{Code: balancer.ProblemRunning, Warning: true, Text: "nginx runs on no load balancer of this command: if another one sends requests to the target, name it with --lb"}}
}

// unchecked is what a plan could not know.
func unchecked(p *Plan) []string {
	var texts []string
	for _, lb := range p.LBs {
		for _, sk := range lb.Report.Skipped {
			if sk.Unread {
				texts = append(texts, fmt.Sprintf("%s; what it holds is not known", sk.Error))
			}
		}
		for _, n := range lb.Report.Names {
			if n.Error != "" {
				texts = append(texts, fmt.Sprintf("how many addresses %s has: %s", n.Host, n.Error))
			}
		}
		if e := lb.Report.StateError; e != nil && p.mayNotRead(e) {
			texts = append(texts, "who drained what: "+e.Message)
		}
		for _, pr := range lb.Report.Problems {
			switch {
			case !p.DryRun || !pr.Unknown || p.allowsStopped(pr):
			case pr.Code == balancer.ProblemRunning:
				texts = append(texts, "the running nginx, since none was found that has this configuration (the real run needs one)")
			default:
				texts = append(texts, pr.Text)
			}
		}
	}
	for _, b := range p.Backends {
		if b.Settings.Health == spec.HealthNone && p.Spec.Kind != spec.Drain {
			texts = append(texts, fmt.Sprintf("the health of %s: it takes UDP alone, and no service is known (--health URL, --service)", b.Name))
		}
	}
	if p.DryRun {
		texts = append(texts, untried(p)...)
	}
	return texts
}

// untried says what a dry run does not try.
func untried(p *Plan) []string {
	var what []string
	how := " (the real run looks)"
	if p.Spec.Rollout.OnlyIf != "" && !p.OnlyIfAsked {
		what = append(what, "which backends --only-if leaves out")
	}
	if p.Spec.Rollout.Gate != "" {
		what = append(what, "whether --gate lets a batch begin")
	}
	for _, b := range p.Backends {
		for _, s := range p.OtherPorts(b) {
			if !p.Spec.Rollout.Reboot {
				what = append(what, "which unit serves "+s.Address)
			}
		}
		set := b.Settings
		if p.Spec.Needs(set) && b.Address != "" && !p.OnlyIfAsked {
			what = append(what, "SSH to "+b.Name)
			how = " (a dry run does not log in)"
		}
		if set.Service != "" {
			for _, unit := range set.Service.List() {
				what = append(what, "the unit "+unit)
			}
			what = append(what, "the right to stop and start it")
		}
		if p.Spec.Rollout.Reboot {
			what = append(what, "the right to reboot")
		}
		if p.Spec.Needs(set) && p.Spec.Kind == spec.Drain && len(p.SeveralAddresses(b)) > 0 {
			what = append(what, "whether "+b.Name+" is one host")
		}
		if p.Spec.Kind != spec.Undrain {
			what = append(what, b.CounterText())
		}
	}
	if len(what) == 0 {
		return nil
	}
	return []string{strings.Join(Once(what), ", ") + how}
}
