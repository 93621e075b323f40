package show

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fatih/color"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// result is the end: the summary of what is done, or what went wrong, what is so
// now, and what to type next.
func (v *Text) result(r *event.Result) {
	v.clear()
	v.backends(r)
	if r.ExitCode == spec.Done {
		if r.Kind != "" {
			v.line("%s", v.bold.Sprint(summary(r)))
		}
		return
	}
	if v.refused {
		return
	}
	v.why(r)
	if len(r.Log) > 0 {
		v.errLine("the last log lines of the app:")
		for _, line := range r.Log {
			v.errLine("  %s", line)
		}
	}
	if s := r.Stands; s != nil && r.ExitCode != spec.Usage {
		v.errLine("drainctl: state: %s", standsText(*s))
	}
	for _, c := range r.Next {
		v.errLine("drainctl: next: %s", nextText(c))
	}
}

// backends tells how each backend ended, where they ended in different ways.
func (v *Text) backends(r *event.Result) {
	if r.Kind == spec.Run && len(r.Done) > 0 {
		v.line("%s %s", v.good.Sprint("done:"), strings.Join(r.Done, ", "))
	}
	for _, s := range r.Skipped {
		v.line("skipped: %s: %s", s.Backend, s.Reason)
	}
	for _, b := range r.Backends {
		v.line("%s %s: %s", v.bad.Sprintf("%s:", endOf(b.Result)), b.Backend, b.Error)
	}
	if len(r.Untouched) > 0 {
		v.line("not begun: %s", strings.Join(r.Untouched, ", "))
	}
}

// endOf is how one backend ended where others went on.
func endOf(r journal.Result) string {
	switch r {
	case journal.ResultPartial:
		return "failed, and out of the pool"
	case journal.ResultRolledBack:
		return "failed, and rolled back"
	case journal.ResultDone:
		return "stopped with connections open"
	}
	return string(r)
}

// nextText is a command as it is typed, and why.
func nextText(c spec.Command) string {
	text := c.String()
	if c.On != "" {
		text += "   (on " + c.On + ": " + c.Reason + ")"
	} else if c.Reason != "" {
		text += "   (" + c.Reason + ")"
	}
	return text
}

// why prints what went wrong: of a refusal every finding, each with the flag
// that overrides it right after it.
func (v *Text) why(r *event.Result) {
	found := slices.Clone(r.Findings)
	if len(found) == 0 {
		found = []spec.Finding{{Text: r.Error}}
	}
	for _, f := range found {
		if f.Warning {
			continue
		}
		prefix := "drainctl: error: "
		for _, line := range v.findingLines(f) {
			if strings.HasPrefix(line, hintMark) {
				prefix = "drainctl: "
			}
			v.errLine("%s%s", prefix, line)
			prefix = "  "
		}
	}
}

// hintMark begins a line of an error that says what to do about it.
const hintMark = "hint: "

// toldLines is what a finding says, and what to do about it.
func toldLines(f spec.Finding) []string {
	lines := strings.Split(strings.TrimRight(f.Text, "\n"), "\n")
	if f.Override != "" {
		lines = append(lines, hintMark+"use "+f.Override+" to override")
	}
	return lines
}

// findingLines is toldLines, after the name of the LB if there are several.
func (v *Text) findingLines(f spec.Finding) []string {
	lines := toldLines(f)
	if f.LB != "" && v.fleet {
		lines[0] = f.LB + ": " + lines[0]
	}
	return lines
}

// standsText says what is so now.
func standsText(s spec.Stands) string { return strings.Join(standsParts(s), "; ") }

// standsParts is that, one thing after the other.
func standsParts(s spec.Stands) (parts []string) {
	if s.Standing != spec.Changed {
		return []string{string(s.Standing)}
	}
	for _, lb := range s.LBs {
		if len(lb.Servers) == 0 && lb.Unknown == "" {
			continue // it has what it had
		}
		servers := strings.Join(lb.Servers, ", ")
		state := "as it was before"
		switch {
		case lb.Edited && lb.Down:
			state = "marked down"
		case lb.Edited:
			state = "not marked down any more"
		}
		switch {
		case lb.Unknown != "":
			state = fmt.Sprintf("not known (last seen %s): %s", state, lb.Unknown)
		case lb.Edited && !lb.Loaded:
			state += ", but nginx was not seen to load it"
		case !lb.Edited && !lb.Loaded:
			state += ", but nginx was not seen to load it again"
		}
		parts = append(parts, fmt.Sprintf("on %s, %s in the configuration: %s", lb.LB, servers, state))
	}
	for _, u := range s.Services {
		state := "not touched by this run"
		if u.Touched {
			state = "stopped or started by this run; see systemctl status " + u.Unit
		}
		parts = append(parts, fmt.Sprintf("%s on %s: %s", u.Unit, u.Backend, state))
	}
	if s.Open != nil {
		parts = append(parts, count(*s.Open, "connection")+" left")
	}
	return parts
}

// summary is the last word of a run that is done.
func summary(r *event.Result) string {
	target := strings.Join(r.Targets, ", ")
	var services []string
	for _, s := range r.Services {
		services = append(services, fmt.Sprintf("%s on %s", s.Unit, s.Backend))
	}
	service := strings.Join(services, ", ")
	is, stays, runs := "is", "stays", "runs"
	if len(r.Targets) > 1 {
		is, stays = "are", "stay"
	}
	if len(services) > 1 {
		runs = "run"
	}
	const outside = "as it was marked down outside drainctl (--force clears it)"
	var text string
	switch {
	case r.Kind == spec.Forget && !r.Changed:
		text = "the journal has no record of " + target
	case r.Kind == spec.Forget:
		if text = fmt.Sprintf("%s %s forgotten", target, is); service != "" {
			text += "; left as it is: " + service
		}
	case r.Kind == spec.Run:
		return fmt.Sprintf("%s done and back in the pool", count(len(r.Done), "backend"))
	case r.Kind == spec.Drain && service != "":
		text = fmt.Sprintf("%s %s drained, and %s %s stopped", target, is, service, map[bool]string{true: "are", false: "is"}[len(services) > 1])
	case r.Kind == spec.Drain:
		text = fmt.Sprintf("%s %s drained; nothing was stopped (no --service)", target, is)
	case r.AllDown && service != "":
		text = fmt.Sprintf("%s %s down, %s; %s %s", target, stays, outside, service, runs)
	case r.AllDown:
		text = fmt.Sprintf("%s %s down, %s", target, stays, outside)
	case service != "":
		text = fmt.Sprintf("%s %s back: %s %s, and nginx sends requests to it", target, is, service, runs)
	default:
		text = fmt.Sprintf("%s %s back: nginx sends requests to it", target, is)
	}
	if len(r.StayDown) > 0 && !r.AllDown {
		text += fmt.Sprintf("; %s stays down, %s", strings.Join(r.StayDown, ", "), outside)
	}
	if len(r.StillAnswering) > 0 {
		text += "; still answering: " + strings.Join(r.StillAnswering, ", ")
	}
	if !r.Changed {
		text += "; unchanged"
	}
	return text
}

// plan shows what will be done, or with --dry-run would be.
func (v *Text) plan(p *plan.Plan) {
	would := ""
	if p.DryRun {
		would = " (dry run: nothing is touched)"
	}
	v.line("%s", v.bold.Sprintf("%s %s%s", p.Spec.Kind, strings.Join(p.Spec.Targets, ", "), would))
	v.servers(p)
	for i, names := range p.Batches {
		v.line("  batch %d/%d: %s", i+1, len(p.Batches), strings.Join(names, ", "))
	}
	for _, s := range p.Skipped {
		v.line("  left as it is: %s: %s", s.Backend, s.Reason)
	}
	v.generations(p)
	if p.DryRun {
		for i, st := range p.Steps {
			v.told(v.bold.Sprintf("%d/%d", i+1, len(p.Steps))+" ", "    ", describe(st.Step, st.Direction, st.Description))
		}
	}
	if p.Unchanged() {
		v.line("  the configuration needs no edit")
	}
	if p.DryRun || v.options.Verbose {
		v.diffs(p)
	}
	for _, f := range p.Findings {
		if f.Warning {
			lines := v.findingLines(f)
			v.warning(lines[0])
			for _, line := range lines[1:] {
				v.told("  ", "  ", line)
			}
		}
	}
	for _, text := range p.Unchecked {
		v.told(v.faint.Sprint("not checked:")+" ", "  ", text)
	}
	if p.DryRun {
		v.verdict(p)
	}
}

// verdict says what a real run would end with.
func (v *Text) verdict(p *plan.Plan) {
	switch {
	case p.ExitCode == spec.Done && len(p.Unchecked) == 0:
		v.line("all checks passed")
		return
	case p.ExitCode == spec.Done:
		v.line("what was checked passed; drainctl check tries the rest")
		return
	}
	v.line("%s", v.bad.Sprintf("the real run would be refused, with exit code %d:", p.ExitCode))
	for _, f := range p.Findings {
		if f.Warning {
			continue
		}
		v.line("%s %s", v.bad.Sprint("refused:"), strings.Join(v.findingLines(f), "\n"))
	}
	v.refused = true
}

// maxServersShown bounds the list of servers of a plan.
const maxServersShown = 20

// servers lists the servers of a plan: a line each on one LB, a table with a row
// for each line and LB on several. LBs that say the same are one row.
func (v *Text) servers(p *plan.Plan) {
	type row struct{ server, state, change string }
	var rows []row
	where := map[row][]string{}
	for _, lb := range p.LBs {
		for _, s := range lb.Report.Servers {
			r := row{fmt.Sprintf("%s%s in %s", s.Address, parameters(s), s.Name), "up", fmt.Sprintf("%s:%d", s.File, s.Line)}
			if s.Down {
				r.state = "down"
			}
			if where[r] == nil {
				rows = append(rows, r)
			}
			where[r] = append(where[r], lb.LB)
		}
	}
	var table []string
	for i, r := range rows {
		switch {
		case i == maxServersShown:
			v.line("  … and %d servers more", len(rows)-i)
		case i > maxServersShown:
		case len(p.LBs) == 1:
			v.line("  %s, %s (%s)", r.server, r.state, r.change)
		default:
			table = append(table, fmt.Sprintf("  %s\t%s\t%s\t%s", r.server, r.state, r.change, strings.Join(where[r], ", ")))
		}
	}
	if len(table) > 0 {
		v.table(append([]string{"  SERVER\tSTATE\tWHERE\tON"}, table...))
	}
}

// parameters is the parameters of a server but for down.
func parameters(s balancer.Server) string {
	text := ""
	for _, w := range s.Parameters {
		if w != "down" {
			text += " " + w
		}
	}
	return text
}

// generations tells what earlier generations of nginx hold: each reload leaves one
// behind.
func (v *Text) generations(p *plan.Plan) {
	for _, lb := range p.LBs {
		if g := lb.Report.Generation; p.Spec.Kind == spec.Run && g != nil && g.Earlier > 0 {
			v.line("  on %s, %s", lb.LB, earlier(*g))
		}
	}
}

// diffs prints what the plan changes.
func (v *Text) diffs(p *plan.Plan) {
	for _, d := range p.Diffs() {
		var of []string
		if d.Batch > 0 {
			of = append(of, fmt.Sprintf("batch %d/%d", d.Batch, len(p.Batches)))
		}
		if len(p.LBs) > 1 {
			of = append(of, "on "+strings.Join(d.LBs, ", "))
		}
		if len(of) > 0 {
			v.line("%s", v.bold.Sprint(strings.Join(of, " ")+":"))
		}
		v.diff(d.Text)
	}
}

// diff prints a unified diff, coloured by what each line is.
func (v *Text) diff(text string) {
	shades := map[string]*color.Color{"file": v.bold, "place": v.faint, "add": v.add, "del": v.del}
	for _, line := range diffLines(text) {
		if shade := shades[line.Class]; shade != nil {
			line.Text = shade.Sprint(line.Text)
		}
		v.line("%s", line.Text)
	}
}

// A diffLine is one line of a unified diff, and what it is: file, place, add, del or
// text.
type diffLine struct{ Class, Text string }

func diffLines(text string) (lines []diffLine) {
	for line := range strings.Lines(text) {
		class := "text"
		if !strings.ContainsAny(line[:1], "+-@ \\") {
			line = " " + line // it is in no diff
		}
		switch {
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			class = "file"
		case strings.HasPrefix(line, "@@"):
			class = "place"
		case strings.HasPrefix(line, "+"):
			class = "add"
		case strings.HasPrefix(line, "-"):
			class = "del"
		}
		lines = append(lines, diffLine{class, strings.TrimSuffix(line, "\n")})
	}
	return lines
}
