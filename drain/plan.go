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

// A Plan is what a run will do, and what speaks against it. Making one touches
// nothing.
type Plan struct {
	Request  *Request
	LBs      []LBPlan
	Refusals []Finding // any of them ends the run before it begins
	Warnings []string
	// Unchecked is what could not be known when the plan was made, and why.
	Unchecked []string
	// dry tells that it is only to be shown: what cannot be known without root
	// is then no reason to refuse.
	dry bool
}

// An LBPlan is the part of one load balancer.
type LBPlan struct {
	LB       *LB
	Conf     *nginx.Config
	Servers  []*nginx.Server // every server the target names
	Edits    []nginx.Edit    // empty: the configuration is as wanted already
	Changes  []Change
	ConfPath string
	// Ledger is what the journal says; nil when it cannot be read, which
	// LedgerErr then explains.
	Ledger    *Ledger
	LedgerErr error
}

// A Change is one file's old and new text.
type Change struct {
	Path  string
	Was   string
	Now   string
	Edits []nginx.Edit
}

// A Finding is one reason to refuse.
type Finding struct {
	Kind     Kind
	Text     string // what was seen
	Override string // the flag that overrides it; empty: none does
}

// Read reads the configuration of every load balancer and plans the run. The
// error is that no plan could be made at all: a configuration that cannot be
// read, or a target that is not there.
func Read(ctx context.Context, req *Request) (*Plan, error) {
	return (&Plan{Request: req}).read(ctx)
}

func (p *Plan) read(ctx context.Context) (*Plan, error) {
	req := p.Request
	for _, lb := range req.LBs {
		ledger, ledgerErr := lb.journal(req).readLedger(ctx)
		if err := goesOn(req, ledger); err != nil {
			return p, err
		}
		if err := p.inheritNginx(lb, ledger); err != nil {
			return p, err
		}
		part, err := p.readLB(ctx, lb, ledger, ledgerErr)
		if err != nil {
			return p, err
		}
		p.LBs = append(p.LBs, *part)
	}
	if err := p.inherit(); err != nil {
		return p, err
	}
	p.addresses(ctx)
	return p, nil
}

// readLB reads one load balancer's configuration and adds its findings.
func (p *Plan) readLB(ctx context.Context, lb *LB, ledger *Ledger, ledgerErr error) (*LBPlan, error) {
	part, err := p.load(ctx, lb, ledger, ledgerErr)
	if err != nil {
		return nil, err
	}
	if len(part.Servers) == 0 {
		if lost := p.lost(part); len(lost) > 0 {
			return nil, refuse([]Finding{{Kind: Refused, Text: fmt.Sprintf("%s is not in %s any more: there is nothing to put back", strings.Join(lost, ", "), part.ConfPath)}})
		}
		return nil, notFound(part.Conf, p.Request)
	}
	return part, p.judge(part)
}

// load reads one load balancer's configuration and finds the target's servers,
// if there are any.
func (p *Plan) load(ctx context.Context, lb *LB, ledger *Ledger, ledgerErr error) (*LBPlan, error) {
	path, err := lb.confPath(ctx)
	if err != nil {
		return nil, err
	}
	conf, err := nginx.Load(ctx, lb.nginxHost(), path)
	if err != nil {
		return nil, unreadable(err)
	}
	part := &LBPlan{LB: lb, Conf: conf, ConfPath: path, Ledger: ledger, LedgerErr: ledgerErr}
	if err := p.checkUpstreamNames(conf); err != nil {
		return nil, err
	}
	part.Servers = conf.Match(p.Request.Target, p.Request.Upstreams)
	p.skipped(part)
	return part, nil
}

// judge plans the edits, and adds what speaks against them.
func (p *Plan) judge(part *LBPlan) error {
	if err := part.plan(p.Request.Operation, p.mine(part)); err != nil {
		return &Failure{Kind: Refused, Err: err, Now: "nothing was touched"}
	}
	p.unknown(part)
	p.ownership(part)
	p.guards(part)
	return nil
}

// unreadable is the failure of a configuration that cannot be read.
func unreadable(err error) error {
	kind := Refused
	switch {
	case errors.Is(err, ErrInterrupted), errors.Is(err, context.Canceled):
		kind = Interrupted
	case errors.Is(err, remote.ErrConnection):
		kind = Failed
	}
	return &Failure{Kind: kind, Err: fmt.Errorf("read the configuration: %w", err), Now: "nothing was touched"}
}

// checkUpstreamNames makes sure that each --upstream names exactly one block.
func (p *Plan) checkUpstreamNames(conf *nginx.Config) error {
	for _, name := range p.Request.Upstreams {
		var named []*nginx.Upstream
		for _, u := range conf.Upstreams {
			if u.Named(name) {
				named = append(named, u)
			}
		}
		switch {
		case len(named) == 0:
			return misused("no upstream %q in %s; it has %s", name, conf.Path, upstreamNames(conf))
		case len(named) > 1:
			return misused("there are %d upstreams %q: say http/%s or stream/%s", len(named), name, name, name)
		}
	}
	return nil
}

func misused(format string, args ...any) error {
	return &Failure{Kind: Misused, Err: fmt.Errorf(format, args...), Now: "nothing was touched"}
}

// maxNamed bounds how many names an error lists.
const maxNamed = 8

func upstreamNames(conf *nginx.Config) string {
	var names []string
	for i, u := range conf.Upstreams {
		if i == maxNamed {
			names = append(names, fmt.Sprintf("… %d more", len(conf.Upstreams)-i))
			break
		}
		names = append(names, conf.DisplayName(u))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// notFound is the failure of a target that no upstream has.
func notFound(conf *nginx.Config, req *Request) error {
	text := fmt.Sprintf("no server %s in any upstream of %s", req.Target, conf.Path)
	if len(req.Upstreams) > 0 {
		text = fmt.Sprintf("no server %s in upstream %s of %s", req.Target, strings.Join(req.Upstreams, ", "), conf.Path)
		if all := conf.Match(req.Target, nil); len(all) > 0 {
			return misused("%s; it is in %s", text, strings.Join(inUpstreams(conf, all), ", "))
		}
	}
	if odd := conf.Unreadable(req.Target); len(odd) > 0 {
		s := odd[0]
		return misused("%s; the address %q at %s:%d could not be read: %w", text, s.Words[1].Text, s.File.Path, s.Line(), s.Err)
	}
	near := conf.Near(req.Target, 3)
	if len(near) == 0 {
		return misused("%s; it has %s", text, upstreamNames(conf))
	}
	var means []string
	for _, s := range near {
		m := fmt.Sprintf("%s in %s", s.Address, conf.DisplayName(s.Upstream))
		if !slices.Contains(means, m) {
			means = append(means, m)
		}
	}
	return misused("%s; did you mean %s?", text, strings.Join(means, ", or "))
}

func inUpstreams(conf *nginx.Config, servers []*nginx.Server) []string {
	var names []string
	for _, s := range servers {
		if n := conf.DisplayName(s.Upstream); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// plan works out the edits and the files' new texts. only, when not nil, picks
// the servers to edit.
func (part *LBPlan) plan(op Operation, only func(*nginx.Server) bool) error {
	part.Edits, part.Changes = nil, nil
	byPath := map[string]int{}
	seen := map[string]map[int]bool{}
	for _, s := range part.Servers {
		if only != nil && !only(s) {
			continue
		}
		edits := s.MarkDown()
		if op == Undrain {
			edits = s.ClearDown()
		}
		for _, e := range edits {
			// A fragment that two upstreams include is one line in one file.
			if seen[e.File.Path] == nil {
				seen[e.File.Path] = map[int]bool{}
			}
			if seen[e.File.Path][e.Start] {
				continue
			}
			seen[e.File.Path][e.Start] = true
			part.Edits = append(part.Edits, e)
			i, ok := byPath[e.File.Path]
			if !ok {
				i = len(part.Changes)
				byPath[e.File.Path] = i
				part.Changes = append(part.Changes, Change{Path: e.File.Path, Was: e.File.Src})
			}
			part.Changes[i].Edits = append(part.Changes[i].Edits, e)
		}
	}
	return part.prove(op)
}

// prove applies the edits to the texts in memory and reads the result back.
func (part *LBPlan) prove(op Operation) error {
	var checked []*nginx.Upstream
	for _, s := range part.Servers {
		if slices.Contains(checked, s.Upstream) {
			continue
		}
		checked = append(checked, s.Upstream)
		if err := s.Upstream.Agree(); err != nil {
			return err
		}
		if err := s.Upstream.Verify(part.Edits, op == Drain); err != nil {
			return err
		}
	}
	for i := range part.Changes {
		c := &part.Changes[i]
		now, err := nginx.Apply(c.Was, c.Edits)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		c.Now = now
	}
	return nil
}

// skipped judges the included files that could not be read. One that may hold
// the target is a reason to refuse; any other is nginx's to judge.
func (p *Plan) skipped(part *LBPlan) {
	for _, sk := range part.Conf.Skipped {
		switch {
		case sk.File.Src == "":
			p.Unchecked = append(p.Unchecked, fmt.Sprintf("%s: %v; what it holds is not known", sk.File.Path, sk.Err))
		case p.Request.Target.MentionedIn(sk.File.Src):
			p.Refusals = append(p.Refusals, Finding{Kind: Refused, Text: fmt.Sprintf("%v; the file mentions %s and cannot be understood", sk.Err, p.Request.Target)})
		default:
			p.Warnings = append(p.Warnings, fmt.Sprintf("%v; the file was passed over: it does not mention %s", sk.Err, p.Request.Target))
		}
	}
}
