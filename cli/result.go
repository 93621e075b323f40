package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain"
)

// result is the end: the summary of what is done, or what went wrong, what is so
// now, and what to type next.
func (v *textView) result(r *drain.Result) {
	v.wait.clear()
	if r.ExitCode == drain.Done {
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
		fmt.Fprintln(v.err, "the last log lines of the app:")
		for _, line := range r.Log {
			fmt.Fprintln(v.err, "  "+line)
		}
	}
	if s := r.Stands; s != nil && r.ExitCode != drain.Usage {
		fmt.Fprintf(v.err, "drainctl: state: %s\n", standsText(*s))
	}
	for _, c := range r.Next {
		fmt.Fprintf(v.err, "drainctl: next: %s\n", nextText(c))
	}
}

// nextText is a command as it is typed, and why.
func nextText(c drain.Command) string {
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
func (v *textView) why(r *drain.Result) {
	found := slices.Clone(r.Findings)
	if len(found) == 0 {
		found = []drain.Finding{{Text: r.Error}}
	}
	for _, f := range found {
		if f.Warning {
			continue
		}
		prefix := "drainctl: error: "
		for line := range strings.Lines(f.Text) {
			fmt.Fprintf(v.err, "%s%s\n", prefix, strings.TrimRight(line, "\n"))
			prefix = "  "
		}
		if f.Override != "" {
			fmt.Fprintf(v.err, "drainctl: %s\n", hint(f.Override))
		}
	}
}

func hint(override string) string { return "hint: use " + override + " to override" }

// standsText says what is so now.
func standsText(s drain.Stands) string {
	if s.Standing != drain.Changed {
		return string(s.Standing)
	}
	var parts []string
	for _, lb := range s.LBs {
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
			state += ", as far as was seen: " + lb.Unknown
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
	return strings.Join(parts, "; ")
}

// summary is the last word of a run that is done.
func summary(r *drain.Result) string {
	target := strings.Join(r.Targets, ", ")
	service := ""
	if len(r.Services) > 0 {
		service = fmt.Sprintf("%s on %s", r.Services[0].Unit, r.Services[0].Backend)
	}
	const outside = "as it was marked down outside drainctl (--force clears it)"
	var text string
	switch {
	case r.Kind == drain.Drain && service != "":
		text = fmt.Sprintf("%s is drained, and %s is stopped", target, service)
	case r.Kind == drain.Drain:
		text = fmt.Sprintf("%s is drained; nothing was stopped (no --service)", target)
	case r.AllDown && service != "":
		text = fmt.Sprintf("%s stays down, %s; %s runs", target, outside, service)
	case r.AllDown:
		text = fmt.Sprintf("%s stays down, %s", target, outside)
	case service != "":
		text = fmt.Sprintf("%s is back: %s runs, and nginx sends requests to it", target, service)
	default:
		text = fmt.Sprintf("%s is back: nginx sends requests to it", target)
	}
	if len(r.StayDown) > 0 && !r.AllDown {
		text += fmt.Sprintf("; %s stays down, %s", strings.Join(r.StayDown, ", "), outside)
	}
	if !r.Changed {
		text += "; unchanged"
	}
	return text
}

// plan shows what will be done, or with --dry-run would be.
func (v *textView) plan(p *drain.Plan) {
	would := ""
	if p.DryRun {
		would = " (dry run: nothing is touched)"
	}
	v.line("%s", v.bold.Sprintf("%s %s%s", p.Spec.Kind, strings.Join(p.Spec.Targets, ", "), would))
	v.servers(p)
	if p.DryRun {
		for i, st := range p.Steps {
			v.line("%s %s", v.bold.Sprintf("%d/%d", i+1, len(p.Steps)), describe(st.Step, st.Direction, st.Description))
		}
	}
	if p.Unchanged() {
		v.line("  the configuration needs no edit")
	}
	if p.DryRun || v.options.verbose {
		for _, lb := range p.LBs {
			v.diff(lb.Report.Diff)
		}
	}
	for _, f := range p.Findings {
		if f.Warning {
			v.warning(f.Text)
		}
	}
	for _, text := range p.Unchecked {
		v.line("%s %s", v.faint.Sprint("not checked:"), text)
	}
	if p.DryRun {
		v.verdict(p)
	}
}

// verdict says what a real run would end with.
func (v *textView) verdict(p *drain.Plan) {
	if p.ExitCode == drain.Done {
		v.line("all checks passed")
		return
	}
	v.line("%s", v.bad.Sprintf("the real run would be refused, with exit code %d:", p.ExitCode))
	for _, f := range p.Findings {
		if f.Warning {
			continue
		}
		v.line("%s %s", v.bad.Sprint("refused:"), f.Text)
		if f.Override != "" {
			v.line("  %s", hint(f.Override))
		}
	}
	v.refused = true
}

// maxServersShown bounds the list of servers of a plan.
const maxServersShown = 20

func (v *textView) servers(p *drain.Plan) {
	for _, lb := range p.LBs {
		if len(p.LBs) > 1 {
			v.line("  on %s:", lb.LB)
		}
		for i, s := range lb.Report.Servers {
			if i == maxServersShown {
				v.line("  … and %d servers more", len(lb.Report.Servers)-i)
				break
			}
			state, params := "up", ""
			if s.Down {
				state = "down"
			}
			for _, w := range s.Parameters {
				if w != "down" {
					params += " " + w
				}
			}
			v.line("  %s%s in %s, %s (%s:%d)", s.Address, params, s.Name, state, s.File, s.Line)
		}
	}
}

// diff prints a unified diff, coloured by what each line is.
func (v *textView) diff(text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			line = v.bold.Sprint(line)
		case strings.HasPrefix(line, "@@"):
			line = v.faint.Sprint(line)
		case strings.HasPrefix(line, "+"):
			line = v.add.Sprint(line)
		case strings.HasPrefix(line, "-"):
			line = v.del.Sprint(line)
		}
		v.line("%s", line)
	}
}
