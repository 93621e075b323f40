// Package plan computes what an operation will do, and what speaks against it: pure functions of a spec
// and the reports of the load balancers.
package plan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
)

// A Plan is what a run will do and what speaks against it. It is immutable:
// making, checking and watching change nothing in it.
type Plan struct {
	Spec     spec.Spec      `json:"spec"`
	DryRun   bool           `json:"dry_run"`
	LBs      []LBPlan       `json:"lbs"`
	Backends []Backend      `json:"backends"`
	Steps    []Step         `json:"steps"`
	Findings []spec.Finding `json:"findings"`
	// Of a rolling run: the backends of each batch, and those that are left out.
	Batches     [][]string `json:"batches,omitempty"`
	BatchDiffs  []Diff     `json:"batch_diffs,omitempty"`
	Skipped     []Skip     `json:"skipped,omitempty"`
	OnlyIfAsked bool       `json:"-"` // of a dry run that has logged in to ask --only-if
	// Unchecked is what could not be known, and why.
	Unchecked []string  `json:"not_checked"`
	ExitCode  spec.Exit `json:"exit_code"` // that the run would end with, as far as is known
}

// A Step is a step of a plan.
type Step struct {
	Step        StepName    `json:"step"`
	Direction   Direction   `json:"direction"`
	Description Description `json:"description"`
}

// An LBPlan is the part of one load balancer.
type LBPlan struct {
	LB     string           `json:"lb"`
	Report *balancer.Report `json:"report"`
}

// TwinIn returns which of other LBs this one is by another name, such as a virtual IP, and what to say of
// that; -1 if it is none of them.
func (lb LBPlan) TwinIn(others []LBPlan) (i int, text string) {
	i = slices.IndexFunc(others, func(o LBPlan) bool { return lb.Report.Identity != "" && o.Report.Identity == lb.Report.Identity })
	if i < 0 {
		return i, ""
	}
	return i, fmt.Sprintf("%s is %s by another name, and is left out", lb.LB, others[i].LB)
}

// A Diff is what changes on LBs. A rolling run has one for each batch, beside the
// configuration as it is now; the edit that takes a batch out also clears the one before.
type Diff struct {
	Batch int      `json:"batch,omitempty"`
	LBs   []string `json:"lbs"`
	Text  string   `json:"text"`
}

// Diffs is what the plan changes. LBs that have the same diff share it.
func (p *Plan) Diffs() (all []Diff) {
	if p.Spec.Kind == spec.Run {
		return p.BatchDiffs
	}
	for _, lb := range p.LBs {
		i := slices.IndexFunc(all, func(d Diff) bool { return d.Text == lb.Report.Diff })
		switch {
		case lb.Report.Diff == "":
		case i < 0:
			all = append(all, Diff{LBs: []string{lb.LB}, Text: lb.Report.Diff})
		default:
			all[i].LBs = append(all[i].LBs, lb.LB)
		}
	}
	return all
}

// A Backend is the host behind a target.
type Backend struct {
	Name      string        `json:"name"`
	Targets   []string      `json:"targets"`           // that name it
	Address   string        `json:"address,omitempty"` // of its sshd; empty: it is the load balancer itself
	LB        string        `json:"lb,omitempty"`      // which one, then
	Ports     []uint16      `json:"ports,omitempty"`
	Sockets   []string      `json:"sockets,omitempty"` // unix sockets, which are on the load balancer
	Upstreams []string      `json:"upstreams,omitempty"`
	Settings  spec.Settings `json:"settings"`

	host          string   // its name, where Name is that of a port
	upstreams     []string // every name of Upstreams
	Servers, Down int      `json:"-"` // server lines, and those of them that are down
	onlyUDP       int      // those that take no TCP connection
}

// IsOut tells whether nothing is sent to the backend.
func (b Backend) IsOut() bool { return b.Down == b.Servers }

// New puts the reports together and asks the guards.
func New(sp spec.Spec, lbs []LBPlan, dry bool) *Plan {
	p := &Plan{Spec: sp, LBs: lbs, DryRun: dry, Findings: []spec.Finding{}}
	p.Backends = backendsOf(sp, lbs)
	p.describe()
	for _, guard := range Guards {
		p.Findings = append(p.Findings, guard(p)...)
	}
	p.ExitCode = spec.ExitOf(p.Refusal())
	return p
}

// describe says what the steps will do, and what could not be known.
func (p *Plan) describe() {
	p.Steps = nil
	for _, ph := range p.Path() {
		p.Steps = append(p.Steps, Step{ph.Step(), ph.Direction(), Describe(p.Spec, ph, p.Backends, p.LBs)})
	}
	p.Unchecked = append([]string{}, unchecked(p)...)
}

// Refusal returns the failure that a run would end with before it touches anything;
// nil if nothing is known to speak against it.
func (p *Plan) Refusal() error {
	refusals := slices.DeleteFunc(slices.Clone(p.Findings), func(f spec.Finding) bool { return f.Warning })
	if len(refusals) == 0 {
		return nil
	}
	return spec.Refuse(refusals...)
}

// Unchanged tells that every configuration is as wanted: nothing will be edited.
func (p *Plan) Unchanged() bool {
	for _, lb := range p.LBs {
		if slices.ContainsFunc(lb.Report.Servers, func(s balancer.Server) bool { return s.NeedsEdit }) {
			return false
		}
	}
	return true
}

// Query is what the LBs are asked for a spec.
func Query(sp spec.Spec) balancer.Query {
	q := balancer.Query{Targets: sp.Targets, Upstreams: sp.Upstreams, Preflight: true, Want: balancer.Out}
	if sp.Kind == spec.Undrain {
		q.Want, q.Force = balancer.Back, sp.Force
	}
	return q
}

// Only is the plan of some of its backends.
func (p *Plan) Only(keep func(Backend) bool) *Plan {
	part := *p
	part.Backends, part.LBs = nil, nil
	var targets []nginx.Target
	part.Spec.Targets = nil
	for _, b := range p.Backends {
		if keep(b) {
			part.Backends = append(part.Backends, b)
			part.Spec.Targets = append(part.Spec.Targets, b.Targets...)
			targets = append(targets, b.ParsedTargets()...)
		}
	}
	for _, lb := range p.LBs {
		r := *lb.Report
		r.Servers = slices.DeleteFunc(slices.Clone(r.Servers), func(s balancer.Server) bool { return !spec.Matches(targets, s.Address) })
		part.LBs = append(part.LBs, LBPlan{LB: lb.LB, Report: &r})
	}
	part.describe()
	return &part
}

// ParsedTargets is what names a backend.
func (b Backend) ParsedTargets() (all []nginx.Target) {
	for _, text := range b.Targets {
		if t, err := nginx.ParseTarget(text); err == nil {
			all = append(all, t)
		}
	}
	return all
}

// names are what settings of the backend can be named by, the widest first.
func (b Backend) names() []string {
	names := Once([]string{cmp.Or(b.host, b.Name), b.Name})
	for _, t := range b.ParsedTargets() {
		if t.Host != "" {
			names = append(names, t.Host)
		}
	}
	return append(names, b.Targets...)
}

// UpstreamNames are what settings of a server's upstream can be named by, the widest
// first.
func UpstreamNames(s balancer.Server) []string {
	return []string{s.Upstream, s.Module + "/" + s.Upstream}
}

// backendsOf is the hosts behind the targets, each with its ports and settings. A
// target on the loopback interface, or a unix socket, is a backend on each LB.
func backendsOf(sp spec.Spec, lbs []LBPlan) []Backend {
	var all []Backend
	for _, text := range sp.Targets {
		t, err := nginx.ParseTarget(text)
		if err != nil {
			continue
		}
		where := []Backend{{Name: t.Host, Address: t.Host}}
		switch {
		case sp.SSH.Host != "":
			where[0] = Backend{Name: sp.SSH.Host, Address: sp.SSH.Host}
		case spec.OnLB(t):
			where = nil
			for _, lb := range lbs {
				where = append(where, Backend{Name: lb.LB, LB: lb.LB})
			}
		}
		for _, b := range where {
			i := slices.IndexFunc(all, func(had Backend) bool { return had.Name == b.Name || sameHost(had, t, lbs) })
			if i < 0 {
				i = len(all)
				all = append(all, b)
			}
			all[i].add(text, t, lbs)
		}
	}
	all = slices.DeleteFunc(all, func(b Backend) bool { return b.LB != "" && b.Servers == 0 }) // not on that one
	if sp.Kind == spec.Run && !sp.Rollout.Reboot {
		var apart []Backend
		for _, b := range all {
			apart = append(apart, byPort(sp, b, lbs)...)
		}
		all = apart
	}
	for i, b := range all {
		// What is wrong with them was said when they were read.
		all[i].Settings, _ = sp.SettingsOf(b.upstreams, b.names())
		if host := all[i].Settings.SSH.Host; host != "" && b.Address != "" {
			all[i].Address = host
		}
		if b.Servers > 0 && b.onlyUDP == b.Servers {
			all[i].Settings = withoutTCP(sp, all[i].Settings)
		}
	}
	return all
}

// withoutTCP returns the settings of a backend that takes no TCP connection: ss on it would show none, and
// none can be tried. A counter and a URL that the operator names stay.
func withoutTCP(sp spec.Spec, set spec.Settings) spec.Settings {
	if set.Counter == spec.CounterSS {
		set.Counter = spec.CounterLB
	}
	switch {
	case set.Health != spec.HealthTCP:
	case sp.Needs(set):
		set.Health = spec.HealthUDP
	default:
		set.Health = spec.HealthNone
	}
	return set
}

// byPort is the backends of a rolling run on one host: each target by itself where no two of them
// have the same service. What stops one of two that have it stops the other.
func byPort(s spec.Spec, host Backend, lbs []LBPlan) (parts []Backend) {
	var services spec.Units
	for _, text := range host.Targets {
		t, err := nginx.ParseTarget(text)
		if err != nil || t.Port == 0 && t.Unix == "" {
			return []Backend{host}
		}
		b := Backend{Name: text, host: host.Name, Address: host.Address, LB: host.LB}
		if b.LB != "" && len(lbs) > 1 {
			b.Name = b.LB + " " + text
		}
		b.add(text, t, lbs)
		set, _ := s.SettingsOf(b.upstreams, b.names())
		if services.Shares(set.Service) {
			return []Backend{host}
		}
		services = services.With(set.Service)
		parts = append(parts, b)
	}
	if len(parts) == 1 {
		return []Backend{host}
	}
	return parts
}

// sameHost tells whether a target is another name of a backend: a host name that
// has its address, or an address that its name has.
func sameHost(b Backend, t nginx.Target, lbs []LBPlan) bool {
	for _, lb := range lbs {
		for _, n := range lb.Report.Names {
			one := func(name, ip string) bool {
				a, err := netip.ParseAddr(ip)
				return err == nil && n.Host == name && slices.Contains(n.Addresses, a)
			}
			if b.LB == "" && (one(t.Host, b.Name) || one(b.Name, t.Host)) {
				return true
			}
		}
	}
	return false
}

// add notes the ports, sockets and upstreams of a target's servers.
func (b *Backend) add(text string, t nginx.Target, lbs []LBPlan) {
	if !slices.Contains(b.Targets, text) {
		b.Targets = append(b.Targets, text)
	}
	for _, lb := range lbs {
		if b.LB != "" && b.LB != lb.LB {
			continue
		}
		for _, s := range lb.Report.Servers {
			a, err := nginx.ParseAddress(s.Address)
			switch {
			case err != nil, !t.Matches(a):
				continue
			case a.Unix != "" && !slices.Contains(b.Sockets, a.Unix):
				b.Sockets = append(b.Sockets, a.Unix)
			case a.Unix == "" && !slices.Contains(b.Ports, a.Port):
				b.Ports = append(b.Ports, a.Port)
			}
			b.Servers++
			if s.Down {
				b.Down++
			}
			if s.OnlyUDP {
				b.onlyUDP++
			}
			if !slices.Contains(b.Upstreams, s.Name) {
				b.Upstreams = append(b.Upstreams, s.Name)
				b.upstreams = append(b.upstreams, UpstreamNames(s)...)
			}
		}
	}
}

// CounterText says where the connections of a backend are counted.
func (b Backend) CounterText() string {
	switch {
	case b.Settings.Counter == spec.CounterStubStatus:
		return "stub_status at " + b.Fill(b.Settings.StatusURL)
	case b.Settings.Counter == spec.CounterLB, len(b.Sockets) > 0:
		return "the sockets of the load balancer"
	}
	return "ss on " + b.Name
}

// HealthCheck is the check of a backend's health: a URL, HealthTCP, HealthUDP or HealthNone.
func (b Backend) HealthCheck() string { return b.Fill(b.Settings.Health) }

// HasURL reports whether the check asks for a URL.
func (b Backend) HasURL() bool {
	return !slices.Contains([]string{spec.HealthTCP, spec.HealthUDP, spec.HealthNone}, b.Settings.Health)
}

// HealthRequest is how an LB asks for the URL of a backend's health.
func (b Backend) HealthRequest() balancer.HealthCheck {
	return balancer.HealthCheck{URL: b.HealthCheck(), Host: b.Fill(b.Settings.HealthHost), CA: string(b.Settings.HealthCA)}
}

// Fill puts a backend in the place of {host}, {address}, {port} and {upstream}.
func (b Backend) Fill(text string) string {
	address, port, upstream := b.Address, "", ""
	if len(b.Ports) > 0 {
		port = strconv.Itoa(int(b.Ports[0]))
	}
	if len(b.Upstreams) > 0 {
		upstream = b.Upstreams[0]
	}
	if ts := b.ParsedTargets(); len(ts) > 0 && ts[0].Host != "" {
		address = ts[0].Host
	}
	return strings.NewReplacer("{host}", cmp.Or(b.host, b.Name), "{address}", address, "{port}", port, "{upstream}", upstream).Replace(text)
}

// maxNamed bounds how many servers a text names.
const maxNamed = 8

// ServerNames are servers for a person, such as "192.168.1.10:8080 in backend_servers".
func ServerNames(servers []balancer.Server) []string {
	var texts []string
	for i, s := range servers {
		if i == maxNamed {
			return append(texts, fmt.Sprintf("and %d more", len(servers)-i))
		}
		texts = append(texts, fmt.Sprintf("%s in %s", s.Address, s.Name))
	}
	return texts
}

// places are servers and where they stand.
func places(servers []balancer.Server) string {
	var texts []string
	for _, s := range servers {
		texts = append(texts, fmt.Sprintf("%s in %s (%s:%d)", s.Address, s.Name, s.File, s.Line))
	}
	return strings.Join(texts, ", ")
}

// Sides parts the servers of a report into those that are as wanted after the
// step and those that an undrain leaves down.
func Sides(servers []balancer.Server, k spec.Kind) (wanted, stayDown []balancer.Server) {
	for _, s := range servers {
		if k == spec.Undrain && s.Down && !s.NeedsEdit {
			stayDown = append(stayDown, s)
		} else {
			wanted = append(wanted, s)
		}
	}
	return wanted, stayDown
}

// allServers names the servers of the LBs, each once.
func allServers(lbs []LBPlan) (all []string) {
	for _, lb := range lbs {
		all = append(all, ServerNames(lb.Report.Servers)...)
	}
	return Once(all)
}

// Once is a list without what is in it before.
func Once(list []string) []string {
	var kept []string
	for _, s := range list {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// A Skip is a backend that a rolling run leaves as it is, and why.
type Skip struct {
	Backend string `json:"backend"`
	Reason  string `json:"reason"`
}

// CutAfter is when every LB has cut what its earlier workers held; 0: never.
func (p *Plan) CutAfter() (last time.Duration) {
	for _, lb := range p.LBs {
		if lb.Report.ShutdownTimeout == 0 {
			return 0
		}
		last = max(last, lb.Report.ShutdownTimeout)
	}
	return last
}

// Owner tells whose a connection to a backend is, by the address of its far end:
// the name of an LB; empty: another client's.
func (p *Plan) Owner(b Backend) func(netip.Addr) string {
	owners := map[netip.Addr]string{}
	for _, lb := range p.LBs {
		for _, a := range lb.Report.Addresses {
			if _, known := owners[a]; !known {
				owners[a] = lb.LB
			}
		}
	}
	return func(a netip.Addr) string {
		if a.IsLoopback() { // from the host itself, which may be the LB
			return b.LB
		}
		return owners[a.WithZone("")]
	}
}

// Found is the targets that an LB has.
func (lb LBPlan) Found(targets []string) []string {
	return slices.DeleteFunc(slices.Clone(targets), func(t string) bool {
		return slices.ContainsFunc(lb.Report.Missing, func(m balancer.Missing) bool { return m.Target == t })
	})
}

// Present returns the targets that an LB has.
func Present(sp spec.Spec, reports []LBPlan) []string {
	return slices.DeleteFunc(slices.Clone(sp.Targets), func(target string) bool {
		return !slices.ContainsFunc(reports, func(lb LBPlan) bool { return len(lb.Found([]string{target})) > 0 })
	})
}

// MissingEverywhere is the error of the targets that no LB has. A status may name one that is gone. So may
// an undrain or a resume, beside others: it was drained with them.
func MissingEverywhere(sp spec.Spec, reports []LBPlan) error {
	mayBeGone := sp.Kind == "" || (sp.Kind == spec.Undrain || sp.Continues != "") && len(Present(sp, reports)) > 0
	var errs []error
	for _, target := range sp.Targets {
		var err error
		for _, lb := range reports {
			i := slices.IndexFunc(lb.Report.Missing, func(m balancer.Missing) bool { return m.Target == target })
			if i < 0 {
				err = nil
				break
			}
			if err == nil {
				err = lb.Report.Missing[i].Error
			}
		}
		if err != nil && !(mayBeGone && isGone(sp, target, reports)) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
