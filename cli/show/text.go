package show

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fatih/color"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/backend"
	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/remote"
)

// The rules of what a person sees. This file and its tables are the only place
// with words for events.
//
//   - Standard output has what was asked for: the plan, the story of the run, the
//     table.
//   - Standard error has what went wrong: "drainctl: error: …", what is so
//     ("state:"), what to type ("next:"), and "drainctl: hint: …" with what to do
//     about it: the lines of an error that begin so, and the flag that overrides a
//     refusal. The app's own log lines are shown as such.
//   - What is shown holds the words of others. Each method that receives something to
//     show cleans it first (see cleaned), and line and errLine print one line each.
//   - Colour marks, and never says anything that the words do not. There is none
//     with --no-color, NO_COLOR, or when the output is not a terminal.

// A Text is the view of a person.
type Text struct {
	mu       sync.Mutex
	out, err io.Writer
	options  Options
	screen   *screen // of a terminal; nil: the output is none
	tick     *time.Timer
	paused   bool // somebody types
	run      progress
	log      waitLog
	refused  bool // the plan has told all that the end would
	fleet    bool // there are several LBs
	many     bool // there are several backends
	onGithub bool // a line that begins with :: would be a command
	grouped  bool // each step is a group of GitHub's log

	bold, good, bad, warn, faint, add, del *color.Color
}

// NewText is the text for a person; with a terminal as out it has a live area.
func NewText(out, errOut io.Writer, options Options) *Text {
	v := &Text{out: out, err: errOut, options: options, screen: newScreen(out), onGithub: OnGithub()}
	v.log.v = v
	colour := v.screen != nil && !options.Plain && os.Getenv("NO_COLOR") == ""
	shade := func(attrs ...color.Attribute) *color.Color {
		c := color.New(attrs...)
		if colour {
			c.EnableColor()
		} else {
			c.DisableColor()
		}
		return c
	}
	v.bold, v.faint = shade(color.Bold), shade(color.Faint)
	v.good, v.bad, v.warn = shade(color.FgGreen), shade(color.FgRed), shade(color.FgYellow)
	v.add, v.del = shade(color.FgGreen), shade(color.FgRed)
	return v
}

// line prints one line of the story.
func (v *Text) line(format string, args ...any) {
	v.clear()
	v.print(v.out, fmt.Sprintf(format, args...))
}

// errLine prints one line of what went wrong.
func (v *Text) errLine(format string, args ...any) { v.print(v.err, fmt.Sprintf(format, args...)) }

// print prints a line. What follows a line end in it is indented below it, so that it
// cannot be taken for a line of drainctl's own.
func (v *Text) print(out io.Writer, text string) {
	lines := strings.Split(text, "\n")
	below := text[:len(text)-len(strings.TrimLeft(text, " "))] + "  "
	for i, line := range lines {
		if i > 0 {
			line = below + line
		}
		if v.onGithub {
			line = noCommand(line)
		}
		lines[i] = line
	}
	fmt.Fprintln(out, strings.Join(lines, "\n"))
}

// Warn prints a warning about what comes after the end of a run.
func (v *Text) Warn(err error) { v.errLine("drainctl: warning: %s", cleanLines(err.Error())) }

// begins prints the line of a step or a rollback that begins.
func (v *Text) begins(text string) {
	v.log.begin()
	if v.grouped {
		githubCommand(v.out, "group", text)
		return
	}
	v.line("%s", text)
}

func (v *Text) warning(text string) { v.told(v.warn.Sprint("warning:")+" ", "  ", text) }

// Event shows what happens in a run.
func (v *Text) Event(e event.Event) {
	e = cleaned(e)
	v.mu.Lock()
	defer v.mu.Unlock()
	stuck, _ := e.(*event.Waiting)
	first := stuck != nil && v.run.stuck(stuck)
	notes := v.run.rows // of a step that ends now
	v.run.heed(e)
	switch {
	case v.screen == nil:
		v.event(e)
		if first {
			v.line("  %s%s", v.on(e), stuckText(stuck.Stuck))
		}
	case !v.onScreen(e, notes):
		v.event(e)
	}
	v.draw()
}

// event shows an event as lines.
func (v *Text) event(e event.Event) {
	switch e := e.(type) {
	case *event.Planned:
		v.fleet, v.many = len(e.Plan.LBs) > 1, len(e.Plan.Backends) > 1
		v.plan(e.Plan)
	case *event.BatchStarted:
		v.line("%s %s", v.bold.Sprintf("batch %d/%d", e.Number, e.Of), strings.Join(e.Backends, ", "))
	case *event.StepStarted:
		if e.Rollback {
			v.line("  %s", words(e))
			break
		}
		v.begins(v.bold.Sprint(cmp.Or(v.run.place(), "  ")) + words(e))
	case *event.WorkOutput:
		v.line("  %s %s", v.faint.Sprint(e.Target+":"), e.Line)
	case *event.StepDone:
		mark := v.good.Sprint("done:")
		if !e.Changed && e.Step != plan.StepWait {
			mark = v.good.Sprint("unchanged:")
		}
		for _, text := range done(e) {
			v.line("  %s %s", mark, text)
			mark = "     "
		}
	case *event.Waiting:
		v.log.reading(false)
	case *event.HealthChecked:
		v.log.reading(e.Error == "")
	case *event.Result:
		v.log.end()
		v.result(e)
	case *event.RollingBack:
		v.begins(v.warn.Sprint(v.on(e) + words(e)))
	case *event.StepFailed:
		v.line("  %s %s%s", v.bad.Sprint("failed:"), v.on(e), e.Error)
	case *event.LockAwaited:
		v.log.begin()
		v.line("  %s %s%s", v.warn.Sprint("warning:"), v.on(e), words(e))
	case *event.GenerationsAwaited, *event.Paused:
		v.log.begin()
		v.line("  %s", words(e))
	case *event.Warning, *event.OtherClient, *event.StoppingAnyway, *event.LBSkipped, *event.BackendSkipped:
		v.line("  %s %s%s", v.warn.Sprint("warning:"), v.on(e), words(e))
	default:
		if text := words(e); text != "" {
			v.line("  %s%s", v.on(e), text)
		}
	}
}

// on says which LB or backend an event is about, where there are several.
func (v *Text) on(e event.Event) string {
	switch h := e.Head(); {
	case h.LB != "" && v.fleet:
		return h.LB + ": "
	case h.Target != "" && v.many:
		return h.Target + ": "
	}
	return ""
}

// words is an event in words, for the story and for the history.
func words(e event.Event) string {
	switch e := e.(type) {
	case *event.StepStarted:
		return describe(e.Step, e.Direction, e.Description)
	case *event.StepDone:
		return "done: " + strings.Join(done(e), "; ")
	case *event.StepFailed:
		return "failed: " + e.Error
	case *event.LockAwaited:
		return "waiting for another operation to end: " + fleet.HolderText(e.Holder)
	case *event.Edited:
		return "edited and tested: " + strings.Join(paths(e.Edits), ", ")
	case *event.NotLoaded:
		return strings.Join(e.Files, ", ") + " was changed after nginx was last loaded"
	case *event.Reloaded:
		text := "a new generation serves: " + count(e.Serving, "worker")
		if e.Finishing > 0 {
			text += "; " + finishing(e.Finishing, "earlier worker")
		}
		return text
	case *event.Waiting:
		return waiting(e)
	case *event.HealthChecked:
		return health(e)
	case *event.OtherClient:
		if e.OnLB {
			who := "an unknown process"
			if e.Process != "" {
				who = fmt.Sprintf("%s (PID %d)", e.Process, e.PID)
			}
			return fmt.Sprintf("%s on the load balancer still connects to the backend, from %s (--ignore-peer %s allows it)", who, e.Address, e.Address)
		}
		if e.New {
			return fmt.Sprintf("%s still opens connections: another load balancer? (--ignore-peer %s allows it)", e.Address, e.Address)
		}
		return fmt.Sprintf("%s was connected within the last minute, besides the load balancer: waiting %s for new connections from it", e.Address, backend.Span(e.Quiet.Duration()))
	case *event.Buffered:
		if e.GaveUp {
			return fmt.Sprintf("earlier workers of nginx still hold %s without a server after %s; if it is sent to one now, that may be this backend", count(e.Requests, "request"), backend.Span(e.Limit.Duration()))
		}
		return fmt.Sprintf("earlier workers of nginx hold %s that may yet be sent to the backend; waiting for that, at most %s", count(e.Requests, "request"), backend.Span(e.Limit.Duration()))
	case *event.RollingBack:
		return "rolling back"
	case *event.StoppingAnyway:
		return "the time is up, the service is stopped anyway: what is still open is cut"
	case *event.Warning:
		return e.Text
	case *event.LBSkipped:
		return fmt.Sprintf("%s cannot be reached and is left out; it may still send requests to the target: %s", e.LB, e.Error)
	case *event.BackendSkipped:
		return "skipped: " + e.Reason
	case *event.GenerationsAwaited:
		return fmt.Sprintf("waiting on %s until at most %d earlier generations of nginx are left; %s", e.LB, e.Limit, earlier(e.Generation))
	case *event.Paused:
		return fmt.Sprintf("pausing for %s", backend.Span(e.For.Duration()))
	case *event.Rebooting:
		return e.Target + " is told to reboot"
	case *event.AgentCopied:
		return fmt.Sprintf("%s has no drainctl: this one was copied to %s there (it can be removed)", e.LB, e.Path)
	}
	return ""
}

func paths(edits []journal.Edit) []string {
	var all []string
	for _, e := range edits {
		all = append(all, e.Path)
	}
	return all
}

// describe says what a step will do, how, and for how long.
func describe(step plan.StepName, d plan.Direction, what plan.Description) string {
	text := title(step, d, what) + how(step, d, what)
	if step == plan.StepWait {
		text += fmt.Sprintf(" (%s)", limit(what.Limit, atTimeout(what)))
	}
	return text
}

// title says what a step will do.
func title(step plan.StepName, d plan.Direction, what plan.Description) string {
	servers := strings.Join(what.Servers, ", ")
	switch {
	case step == plan.StepMarkDown && d == plan.Forward:
		back := ""
		if len(what.Returning) > 0 {
			back = ", clear down on " + strings.Join(what.Returning, ", ")
		}
		return "mark " + servers + " down" + back
	case step == plan.StepMarkDown:
		return "clear down on " + servers
	case step == plan.StepWork:
		return work(what)
	case step == plan.StepWait && d == plan.Forward:
		few := "no connection is"
		if what.Threshold > 0 {
			few = count(what.Threshold, "connection") + " or fewer are"
		}
		return "wait until " + few + " open"
	case step == plan.StepWait:
		return "wait until healthy"
	case d == plan.Forward:
		return fmt.Sprintf("stop %s on %s", what.Service, what.Backend)
	}
	return fmt.Sprintf("start %s on %s", what.Service, what.Backend)
}

// how says how it does that.
func how(step plan.StepName, d plan.Direction, what plan.Description) string {
	switch {
	case step == plan.StepMarkDown:
		return ", test, reload, verify the new workers"
	case step == plan.StepWait && d == plan.Forward:
		return ", by " + what.Counter
	case step == plan.StepWait:
		return ": " + drain.HealthText(what.Health)
	case step == plan.StepService && d == plan.Forward:
		return ", verify that it is inactive"
	case step == plan.StepService:
		return ", verify that it is active"
	}
	return ""
}

// work is what a rolling run does with a backend that is out.
func work(what plan.Description) string {
	var parts []string
	if what.Reboot {
		parts = append(parts, "reboot, and see another boot")
	}
	if len(what.Command) > 0 {
		where := "here"
		if what.OnBackend {
			where = "on the backend"
		}
		parts = append(parts, fmt.Sprintf("run %s %s", remote.Quote(what.Command...), where))
	}
	return strings.Join(parts, ", then ")
}

// earlier says what earlier generations of nginx hold.
func earlier(g balancer.Generation) string {
	text := finishing(g.Earlier, "earlier generation")
	if g.Memory > 0 {
		text += fmt.Sprintf(" (%d MB)", g.Memory>>20)
	}
	return text
}

// finishing says how many things still finish.
func finishing(n int, thing string) string {
	verb := "finish"
	if n == 1 {
		verb = "finishes"
	}
	return fmt.Sprintf("%s still %s", count(n, thing), verb)
}

// limit says for how long a wait goes on, and what is done then.
func limit(s spec.Seconds, then string) string {
	if s == 0 {
		return "no limit"
	}
	return fmt.Sprintf("at most %s, then %s", backend.Span(s.Duration()), then)
}

// atTimeout is what --on-timeout asks for, in words.
func atTimeout(what plan.Description) string {
	switch what.OnTimeout {
	case spec.TimeoutLeave:
		return "leave it down and running"
	case spec.TimeoutStop:
		return "stop " + what.Service + " anyway"
	}
	return "roll back"
}

// done is what is so after a step, a line each.
func done(e *event.StepDone) []string {
	var lines []string
	d := e.Detail
	if len(d.Down) > 0 {
		lines = append(lines, strings.Join(d.Down, ", ")+": down")
	}
	if len(d.Up) > 0 {
		lines = append(lines, strings.Join(d.Up, ", ")+": up")
	}
	if len(d.StayDown) > 0 {
		lines = append(lines, strings.Join(d.StayDown, ", ")+": stays down, it was marked down outside drainctl")
	}
	if d.Restored {
		lines = append(lines, "configuration as before")
	}
	if d.Open != nil {
		lines = append(lines, fmt.Sprintf("%s open after %s", count(*d.Open, "connection"), d.Waited.Duration().Round(time.Millisecond)))
	}
	if d.Checks > 0 {
		lines = append(lines, fmt.Sprintf("healthy: %d of %d checks passed", d.Checks, d.Checks))
	}
	for _, s := range d.Services {
		name := s.Unit
		if len(d.Services) > 1 {
			name += " on " + s.Backend
		}
		lines = append(lines, serviceText(name, s))
	}
	return lines
}

// endings are the results of a unit in words (systemd.exec(5), $SERVICE_RESULT).
var endings = map[string]string{
	"timeout":   ": it did not end in time, and systemd killed it",
	"signal":    ": a signal killed it",
	"core-dump": ": it crashed",
	"watchdog":  ": it no longer answered systemd's watchdog",
	"oom-kill":  ": the kernel killed it for memory",
	"exit-code": ": it ended with an error",
}

// serviceText returns the state of a service and, if it failed, the reason.
func serviceText(name string, s event.ServiceState) string {
	text := name + " is " + s.Active
	if s.Result != "" {
		text += endings[s.Result] + " (Result=" + s.Result + ")"
	}
	return text
}

func waiting(e *event.Waiting) string {
	limit := ""
	if e.Limit > 0 {
		limit = " of " + backend.Span(e.Limit.Duration())
	}
	elapsed := e.Elapsed.Duration().Round(100 * time.Millisecond)
	if e.Error != "" {
		return fmt.Sprintf("the open connections cannot be counted now, trying again (%s%s): %s", elapsed, limit, e.Error)
	}
	return fmt.Sprintf("%s; %s%s", openFrom(e), elapsed, limit)
}

// openFrom is how many connections are open, and whose they are.
func openFrom(e *event.Waiting) string {
	return openNow(e) + backend.PeersText(e.Peers, e.MorePeers)
}

func health(e *event.HealthChecked) string {
	elapsed := e.Elapsed.Duration().Round(100 * time.Millisecond)
	if e.Error != "" {
		return fmt.Sprintf("not healthy yet: %s; %s", e.Error, elapsed)
	}
	return fmt.Sprintf("%d of %d checks passed; %s", e.Passed, e.Needed, elapsed)
}

// waitText is what is waited for: backends, each by its name where there are
// several, or a step.
func waitText(p *progress, several bool) string {
	rows, elapsed := p.waited(), time.Since(p.began).Round(time.Second)
	switch {
	case len(rows) == 0:
		return fmt.Sprintf("still: %s%s; %s", p.name, p.how, elapsed)
	case len(rows) == 1 && several:
		return rows[0].name + ": " + rows[0].text
	case len(rows) == 1:
		return rows[0].text
	}
	var texts []string
	for _, r := range rows {
		texts = append(texts, r.name+": "+r.short)
	}
	return fmt.Sprintf("%s; %s", strings.Join(texts, ", "), elapsed)
}

// stuckWords are what connections look like, and when they end by themselves.
var stuckWords = map[event.StuckReason]struct{ one, several, looks, end string }{
	event.StuckUpgraded: {"upgraded connection", "upgraded connections", " (WebSocket?)", "the client leaves"},
	event.StuckSending:  {"connection on which only the backend sends", "connections on which only the backend sends", " (a download, an event stream?)", "all is sent or the client leaves"},
	event.StuckSilent:   {"connection on which nothing is sent", "connections on which nothing is sent", " (a slow request?)", "the app answers or nginx gives up"},
	event.StuckClients:  {"connection of another client than the load balancers", "connections of other clients than the load balancers", "", "the client leaves"},
}

// stuckSummary says what the connections look like that keep a wait from ending.
func stuckSummary(s *event.Stuck) string {
	w := stuckWords[s.Reason]
	what := w.several
	if s.Connections == 1 {
		what = w.one
	}
	return fmt.Sprintf("%d %s%s", s.Connections, what, w.looks)
}

// stuckText says why a wait is not over, and what would end it.
func stuckText(s *event.Stuck) string {
	have, end := "have been open", "they end"
	if s.Connections == 1 {
		have, end = "has been open", "it ends"
	}
	ends := []string{end + " when " + stuckWords[s.Reason].end}
	if s.ShutdownTimeout > 0 && s.Reason != event.StuckClients {
		ends = append(ends, fmt.Sprintf("at worker_shutdown_timeout (%s)", backend.Span(s.ShutdownTimeout.Duration())))
	}
	if s.CanStop {
		ends = append(ends, "with --on-timeout stop")
	}
	ways := ends[0]
	if n := len(ends) - 1; n > 0 {
		ways = strings.Join(ends[:n], ", ") + ", or " + ends[n]
	}
	return fmt.Sprintf("%s %s for %s; %s", stuckSummary(s), have, span(s.OpenFor.Duration()), ways)
}

// heldText is a connection that holds on, of a backend where there are several.
func heldText(h event.Held, of string) string {
	text := net.JoinHostPort(h.Address, strconv.Itoa(int(h.Port)))
	if of != "" {
		text += " to " + of
	}
	text += " open " + span(h.OpenFor.Duration())
	if h.Idle >= 0 { // else it is not known
		text += ", idle " + span(h.Idle.Duration())
	}
	if h.LB != "" && h.LB != h.Address && h.LB != fleet.ThisMachine {
		text += ", by " + h.LB
	}
	return text
}

// checksText is the health of one backend, with the latest error.
func checksText(r *waitRow) string {
	if r.short == "not healthy" {
		return "not healthy yet: " + r.healthError
	}
	return r.short + "; before: " + r.healthError
}

// outlook is what is to be expected of a wait: when it is over at the pace of now, and
// what is done when the time is up before.
func outlook(p *progress, now time.Time) string {
	rows, limit := p.waited(), p.what.Limit.Duration()
	if len(rows) == 0 {
		return ""
	}
	var left time.Duration
	for _, r := range rows {
		left = max(left, r.left)
	}
	if slices.ContainsFunc(rows, func(r *waitRow) bool { return r.left == 0 }) {
		left = 0 // it is over when all are
	}
	var parts []string
	switch {
	case left == 0:
	case limit > 0 && now.Sub(p.began)+left > limit:
		parts = append(parts, "at this pace not in time")
	case left < 5*time.Second:
		parts = append(parts, "a few seconds left at this pace")
	case left < 2*time.Minute:
		parts = append(parts, fmt.Sprintf("about %s left at this pace", span(left.Round(5*time.Second))))
	default:
		parts = append(parts, fmt.Sprintf("about %s left at this pace", span(left.Round(time.Minute))))
	}
	if limit > 0 {
		then := atTimeout(p.what)
		if p.kind == spec.Run && p.direction == plan.Reverse {
			then = "leave it out of the pool"
		}
		parts = append(parts, fmt.Sprintf("after %s: %s", span(limit), then))
	}
	return strings.Join(parts, "; ")
}

// moreText sums rows up.
func moreText(rows []*waitRow) string {
	text, open, over := fmt.Sprintf("and %d more", len(rows)), 0, 0
	for _, r := range rows {
		open += r.open
		if r.done {
			over++
		}
	}
	if over > 0 {
		text += fmt.Sprintf(", %d of them done", over)
	}
	if open > 0 {
		text += fmt.Sprintf(", %d open", open)
	}
	return text
}

// pendingText is a row of which nothing is known yet.
const pendingText = "pending"

// span is a duration in whole seconds.
func span(d time.Duration) string { return backend.Span(d.Round(time.Second)) }

// took is how long something has taken: short times to a tenth of a second.
func took(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return span(d)
}

// footer says what Ctrl-C does.
func footer(p *progress) string {
	switch {
	case p.interrupted:
		return "Ctrl-C again: " + again
	case p.rollingBack:
		return "Ctrl-C twice: " + again
	case p.kind == spec.Run:
		return "Ctrl-C: put this batch back, then end"
	}
	return "Ctrl-C: roll back"
}

// again is what another Ctrl-C does.
const again = "stop at once, and say what is left to undo"

// interruptedText is what the first Ctrl-C does, or the second.
func interruptedText(p *progress, kind spec.Kind, first bool) string {
	now := "rolling back"
	switch {
	case !first:
		return "interrupted again: stopping at once"
	case kind == spec.Run && p.touched:
		now = "no further batch begins, and this one is put back first"
	case !p.touched:
		return "interrupted: nothing is changed yet; Ctrl-C again stops at once"
	}
	return "interrupted: " + now + "; Ctrl-C again stops at once, and says what is left to undo"
}

// openNow is a reading in a word or two.
func openNow(e *event.Waiting) string {
	if e.Error != "" {
		return "not countable"
	}
	return fmt.Sprintf("%d open", e.Open)
}

func checksNow(e *event.HealthChecked) string {
	if e.Error != "" {
		return "not healthy"
	}
	return fmt.Sprintf("%d of %d checks passed", e.Passed, e.Needed)
}

// count is n things.
func count(n int, thing string) string { return backend.Number(n, thing) }

// Trace shows a command as it is run, with --verbose.
func (v *Text) Trace(host, command string) {
	if v.options.Verbose {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.line("  %s", v.faint.Sprintf("[%s] %s", Clean(host), Clean(command)))
		v.draw()
	}
}

// Signal says that a Signal was received.
func (v *Text) Signal(kind spec.Kind, first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.line("%s", v.warn.Sprint(interruptedText(&v.run, kind, first)))
	if v.run.interrupted = true; !first {
		v.run.name = "" // what is left is said as lines
	}
	v.draw()
}

// Pause keeps quiet while somebody types.
func (v *Text) Pause(f func()) {
	v.mu.Lock()
	v.clear()
	v.paused = true
	v.mu.Unlock()
	f()
	v.mu.Lock()
	v.paused = false
	v.draw()
	v.mu.Unlock()
}

// outcome is how it ended, in a sentence.
func outcome(r *event.Result) string {
	if r.ExitCode == spec.Done {
		return summary(r)
	}
	text, hints, hinted := strings.Cut(r.Error, "\n"+hintMark)
	if r.Stands != nil {
		text += "; " + standsText(*r.Stands)
	}
	if hinted {
		text += "\n" + hintMark + hints
	}
	return text
}

// summaryHead is the columns of a job summary.
var summaryHead = []string{"step", "backends", "result", "time"}

func summaryTitle(r *Record) string {
	return "drainctl " + r.Kind() + " " + strings.Join(r.Spec.Targets, ", ")
}

// summaryRow is a step in those columns.
func summaryRow(s stepRecord) []string {
	result := "done"
	switch {
	case s.err != "":
		result = "failed: " + s.err
	case !s.changed && s.step != plan.StepWait:
		result = "unchanged"
	}
	return []string{stepText(s.step, s.direction), strings.Join(s.backends, ", "), result, backend.Span(s.ended.Sub(s.began).Round(10 * time.Millisecond))}
}

// stepText is the name of a step in a direction.
func stepText(step plan.StepName, d plan.Direction) string {
	if d == plan.Reverse {
		switch step {
		case plan.StepMarkDown:
			return "clear down"
		case plan.StepWait:
			return "wait until healthy"
		case plan.StepService:
			return "start service"
		}
	}
	return string(step)
}
