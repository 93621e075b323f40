package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A Plan is what a run will do and what speaks against it. It is immutable:
// making, checking and watching change nothing in it.
type Plan struct {
	Spec     Spec          `json:"spec"`
	DryRun   bool          `json:"dry_run"`
	LBs      []LBPlan      `json:"lbs"`
	Backends []Backend     `json:"backends"`
	Steps    []PlannedStep `json:"steps"`
	Findings []Finding     `json:"findings"`
	// Unchecked is what could not be known, and why.
	Unchecked []string `json:"not_checked"`
	ExitCode  Exit     `json:"exit_code"` // that the run would end with, as far as is known
}

// A PlannedStep is a step of a plan.
type PlannedStep struct {
	Step        StepName    `json:"step"`
	Direction   Direction   `json:"direction"`
	Description Description `json:"description"`
}

// An LBPlan is the part of one load balancer.
type LBPlan struct {
	LB     string           `json:"lb"`
	Report *balancer.Report `json:"report"`
}

// A Backend is the host behind a target.
type Backend struct {
	Name    string   `json:"name"`
	Address string   `json:"address,omitempty"` // of its sshd; empty: it is the load balancer itself
	Ports   []uint16 `json:"ports,omitempty"`
	Sockets []string `json:"sockets,omitempty"` // unix sockets, which are on the load balancer

	up []uint16 // of Ports, those of servers that are not down
}

// newPlan puts the reports together and asks the guards.
func newPlan(spec Spec, lbs []LBPlan, dry bool) *Plan {
	p := &Plan{Spec: spec, LBs: lbs, DryRun: dry, Findings: []Finding{}, Unchecked: []string{}}
	p.Backends = backendsOf(spec, lbs)
	for _, st := range stepNames(spec) {
		p.Steps = append(p.Steps, PlannedStep{st, directionOf(spec.Kind), describeStep(p, st, directionOf(spec.Kind))})
	}
	for _, guard := range guards {
		p.Findings = append(p.Findings, guard(p)...)
	}
	p.Unchecked = append(p.Unchecked, unchecked(p)...)
	p.ExitCode = ExitOf(p.Verdict())
	return p
}

// Verdict is the failure that a run would end with before it touches anything;
// nil if nothing is known to speak against it.
func (p *Plan) Verdict() error {
	refusals := slices.DeleteFunc(slices.Clone(p.Findings), func(f Finding) bool { return f.Warning })
	if len(refusals) == 0 {
		return nil
	}
	return refuse(refusals...)
}

// Unchanged tells that every configuration is as wanted: nothing will be edited.
func (p *Plan) Unchanged() bool {
	for _, lb := range p.LBs {
		if slices.ContainsFunc(lb.Report.Servers, func(s balancer.Server) bool { return s.Configure }) {
			return false
		}
	}
	return true
}

// query is what the LBs are asked for a spec.
func query(spec Spec) balancer.Query {
	return balancer.Query{
		Targets: spec.Targets, Upstreams: spec.Upstreams, Preflight: true,
		Want: &nginx.Want{Down: spec.Kind == Drain}, Unmanaged: spec.Kind == Undrain && spec.Force,
	}
}

// backendsOf is the hosts behind the targets, each with its ports.
func backendsOf(spec Spec, lbs []LBPlan) []Backend {
	var all []Backend
	for _, text := range spec.Targets {
		t, err := nginx.ParseTarget(text)
		if err != nil {
			continue
		}
		b := Backend{Name: t.Host, Address: t.Host}
		switch {
		case spec.SSH.Host != "":
			b.Name, b.Address = spec.SSH.Host, spec.SSH.Host
		case OnLB(t) && len(lbs) > 0:
			b.Name, b.Address = lbs[0].LB, ""
		}
		i := slices.IndexFunc(all, func(had Backend) bool { return had.Name == b.Name })
		if i < 0 {
			i = len(all)
			all = append(all, b)
		}
		all[i].add(t, lbs)
	}
	return all
}

// add notes the ports and sockets of the target's servers.
func (b *Backend) add(t nginx.Target, lbs []LBPlan) {
	for _, lb := range lbs {
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
			if a.Unix == "" && !s.Down && !slices.Contains(b.up, a.Port) {
				b.up = append(b.up, a.Port)
			}
		}
	}
}

// change is what one LB is to edit.
func (lb LBPlan) change(spec Spec) balancer.Change {
	c := balancer.Change{Want: nginx.Want{Down: spec.Kind == Drain}, AcceptPending: spec.Allow.Pending}
	for _, path := range sortedKeys(lb.Report.Files) {
		e := balancer.FileEdit{Path: path, SHA256: lb.Report.Files[path]}
		for _, s := range lb.Report.Servers {
			// What is as wanted is named too: whether nginx serves it is looked at.
			if s.File == path && (s.Configure || s.Down == c.Want.Down) && !slices.Contains(e.Servers, s.At) {
				e.Servers = append(e.Servers, s.At)
			}
		}
		if len(e.Servers) > 0 {
			c.Files = append(c.Files, e)
		}
	}
	return c
}

// record is the operation as the journal of one LB has it.
func (lb LBPlan) record(id string, spec Spec) (journal.Operation, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return journal.Operation{}, fmt.Errorf("write the spec down: %w", err)
	}
	op := journal.Operation{
		ID: id, Kind: string(spec.Kind), Targets: spec.Targets, User: spec.User, Host: spec.Host, Reason: spec.Reason,
		Continues: spec.Continues, Spec: text,
	}
	for _, s := range lb.Report.Servers {
		op.Servers = append(op.Servers, journal.Located{Server: s.Server, File: s.File, Line: s.Line, Down: s.Down})
	}
	return op, nil
}

// specOf is what an operation was asked for.
func specOf(op journal.Operation) (Spec, error) {
	s := DefaultSpec(Kind(op.Kind))
	if err := json.Unmarshal(op.Spec, &s); err != nil {
		return s, fmt.Errorf("operation %s in the journal: %w", op.ID, err)
	}
	return s, nil
}

// maxNamed bounds how many servers a text names.
const maxNamed = 8

// names are servers for a person, such as "192.168.1.10:8080 in backend_servers".
func names(servers []balancer.Server) []string {
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

// sides parts the servers of a report into those that are as wanted after the
// step and those that an undrain leaves down.
func sides(servers []balancer.Server, k Kind) (wanted, stayDown []balancer.Server) {
	for _, s := range servers {
		if k == Undrain && s.Down && !s.Configure {
			stayDown = append(stayDown, s)
		} else {
			wanted = append(wanted, s)
		}
	}
	return wanted, stayDown
}

// allServers names the servers of the plan, each once.
func (p *Plan) allServers() []string {
	var all []string
	for _, lb := range p.LBs {
		for _, n := range names(lb.Report.Servers) {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	return all
}

// report asks one LB for its part of a plan.
func report(ctx context.Context, lb *LB, spec Spec) (LBPlan, error) {
	r, err := lb.Plan(ctx, query(spec))
	return LBPlan{LB: lb.Name, Report: r}, err
}
