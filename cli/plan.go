package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/drainctl/drainctl/drain"
)

// diffContext is the unchanged lines shown around a change.
const diffContext = 3

// unified is the unified diff of one file's change. It is made of the edits
// themselves, so a large file costs no comparison.
func unified(c drain.Change) (string, error) {
	edits := make([]udiff.Edit, len(c.Edits))
	for i, e := range c.Edits {
		edits[i] = udiff.Edit{Start: e.Start, End: e.End, New: e.New}
	}
	udiff.SortEdits(edits)
	return udiff.ToUnified(c.Path, c.Path, c.Was, edits, diffContext)
}

// planView is a plan as words, for text and JSON alike.
type planView struct {
	Operation string       `json:"operation"`
	Target    string       `json:"target"`
	DryRun    bool         `json:"dry_run"`
	Already   bool         `json:"already"`
	Servers   []serverView `json:"servers"`
	Steps     []string     `json:"steps"`
	Diff      string       `json:"diff"`
	Warnings  []string     `json:"warnings"`
	Refusals  []refusal    `json:"refusals"`
	Unchecked []string     `json:"not_checked"`
	ExitCode  int          `json:"exit_code"`
}

type serverView struct {
	LB       string   `json:"lb"`
	Upstream string   `json:"upstream"`
	Module   string   `json:"module"`
	Address  string   `json:"address"`
	Params   []string `json:"parameters"`
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Down     bool     `json:"down"`
}

type refusal struct {
	Text     string `json:"text"`
	Override string `json:"override"`
}

// refusals is what an error refuses for; none if it is no refusal.
func refusals(err error) []refusal {
	found := []refusal{}
	var r *drain.Refusal
	if errors.As(err, &r) {
		for _, f := range r.Findings {
			found = append(found, refusal{f.Text, f.Override})
		}
	}
	return found
}

func viewPlan(plan *drain.Plan, dryRun bool) planView {
	v := planView{
		Operation: string(plan.Request.Operation), Target: plan.Request.Target.String(), DryRun: dryRun,
		Already: plan.Already(), Steps: plan.Steps(), Warnings: list(plan.Warnings), Unchecked: list(plan.Unchecked),
		Servers: []serverView{}, ExitCode: int(drain.KindOf(plan.Verdict())),
	}
	v.Refusals = refusals(plan.Verdict())
	for _, part := range plan.LBs {
		for _, s := range part.Servers {
			sv := serverView{
				LB: part.LB.Host.Name(), Upstream: part.Conf.DisplayName(s.Upstream), Module: s.Upstream.Module,
				Address: s.Address.String(), File: s.File.Path, Line: s.Line(), Down: s.IsDown(), Params: []string{},
			}
			for _, w := range s.Params() {
				sv.Params = append(sv.Params, w.Text)
			}
			v.Servers = append(v.Servers, sv)
		}
		for _, c := range part.Changes {
			d, err := unified(c)
			if err != nil {
				d = fmt.Sprintf("the diff of %s cannot be shown: %v\n", c.Path, err)
			}
			v.Diff += d
		}
	}
	return v
}

// list makes an empty list, not null, of no texts.
func list(texts []string) []string { return append([]string{}, texts...) }

// plan shows what will be done, or with --dry-run would be.
func (p *printer) plan(plan *drain.Plan, dryRun bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := viewPlan(plan, dryRun)
	if p.opts.json {
		p.record("plan", map[string]any{"plan": v})
		return
	}
	would := ""
	if dryRun {
		would = " (dry run: nothing is touched)"
	}
	p.line("%s", p.bold.Sprintf("%s %s%s", v.Operation, v.Target, would))
	p.servers(v)
	if dryRun {
		for i, text := range v.Steps {
			p.line("%s %s", p.bold.Sprintf("%d/%d", i+1, len(v.Steps)), text)
		}
	}
	if v.Already {
		p.line("  the configuration needs no edit")
	}
	if dryRun || p.opts.verbose {
		p.diff(v.Diff)
	}
	for _, w := range v.Warnings {
		p.line("%s %s", p.warn.Sprint("warning:"), w)
	}
	for _, u := range v.Unchecked {
		p.line("%s %s", p.faint.Sprint("not checked:"), u)
	}
	if !dryRun {
		return
	}
	if len(v.Refusals) == 0 {
		p.line("nothing that was checked speaks against it")
		return
	}
	p.line("%s", p.bad.Sprintf("the real run would be refused, with exit code %d:", v.ExitCode))
	for _, r := range v.Refusals {
		p.line("%s %s", p.bad.Sprint("refused:"), r.Text)
		if r.Override != "" {
			p.line("  %s", hint(r.Override))
		}
	}
	p.refused = true
}

// maxServersShown bounds the list of servers of a plan.
const maxServersShown = 20

func (p *printer) servers(v planView) {
	for i, s := range v.Servers {
		if i == maxServersShown {
			p.line("  … and %d servers more", len(v.Servers)-i)
			break
		}
		state := "up"
		if s.Down {
			state = "down"
		}
		params := ""
		for _, w := range s.Params {
			if w != "down" {
				params += " " + w
			}
		}
		p.line("  %s%s in %s, %s (%s:%d)", s.Address, params, s.Upstream, state, s.File, s.Line)
	}
}

// diff prints a unified diff, coloured by what each line is.
func (p *printer) diff(text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			line = p.bold.Sprint(line)
		case strings.HasPrefix(line, "@@"):
			line = p.faint.Sprint(line)
		case strings.HasPrefix(line, "+"):
			line = p.add.Sprint(line)
		case strings.HasPrefix(line, "-"):
			line = p.del.Sprint(line)
		}
		p.line("%s", line)
	}
}
