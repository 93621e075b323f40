package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/fatih/color"
	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/drainctl/drainctl/drain"
)

// The rules of what a person sees. This file is the only one that prints.
//
//   - Standard output has what was asked for: the plan, the story of the run,
//     the table, or, with --output json, one JSON object a line and nothing
//     else.
//   - Standard error has what went wrong: "drainctl: error: …", what stands,
//     and "drainctl: hint: …" with the flag or command that helps.
//   - Colour marks, and never says anything that the words do not. There is
//     none with --no-color, NO_COLOR, or when the output is not a terminal.
//   - On a terminal the wait is one line that changes. Elsewhere it is a line
//     now and then, so that a log of a long wait stays short.
//   - A write that fails is ignored: who stops reading does not stop a drain.

type printOptions struct {
	json, plain, verbose bool
}

type printer struct {
	mu       sync.Mutex
	out, err io.Writer
	opts     printOptions
	live     bool // the output is a terminal whose last line can be rewritten
	bar      *progressbar.ProgressBar
	lastWait time.Time
	lastText string
	refused  bool // the plan has told all that the end would

	bold, good, bad, warn, faint, add, del *color.Color
}

func newPrinter(out, errOut io.Writer, opts printOptions) *printer {
	p := &printer{out: out, err: errOut, opts: opts}
	tty := isTerminal(out)
	p.live = tty && !opts.json && os.Getenv("TERM") != "dumb"
	colour := tty && !opts.plain && !opts.json && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	shade := func(attrs ...color.Attribute) *color.Color {
		c := color.New(attrs...)
		if colour {
			c.EnableColor()
		} else {
			c.DisableColor()
		}
		return c
	}
	p.bold, p.faint = shade(color.Bold), shade(color.Faint)
	p.good, p.bad, p.warn = shade(color.FgGreen), shade(color.FgRed), shade(color.FgYellow)
	p.add, p.del = shade(color.FgGreen), shade(color.FgRed)
	return p
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// line prints one line of the story.
func (p *printer) line(format string, args ...any) {
	p.clearBar()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// record prints one JSON object.
func (p *printer) record(event string, fields map[string]any) {
	fields["event"] = event
	fields["time"] = time.Now().Format(time.RFC3339Nano)
	b, err := json.Marshal(fields)
	if err != nil {
		b, _ = json.Marshal(map[string]any{"event": "error", "error": err.Error()})
	}
	fmt.Fprintf(p.out, "%s\n", b)
}

// event shows what happens in a run.
func (p *printer) event(e drain.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.json {
		p.eventJSON(e)
		return
	}
	switch e := e.(type) {
	case drain.StepStarted:
		p.line("%s %s", p.bold.Sprintf("%d/%d", e.Number, e.Of), e.Text)
	case drain.StepDone:
		p.stepDone(e)
	case drain.StepFailed:
		p.line("  %s %s", p.bad.Sprint("failed:"), e.Err)
	case drain.Progress:
		p.line("  %s", e.Text)
	case drain.Waiting:
		p.waiting(e)
	case drain.HealthTried:
		p.health(e)
	case drain.RollingBack:
		p.line("%s", p.warn.Sprint("taking back what was done"))
	case drain.Warned:
		p.line("  %s %s", p.warn.Sprint("warning:"), e.Text)
	}
}

func (p *printer) stepDone(e drain.StepDone) {
	if e.Text == "" {
		return
	}
	mark := p.good.Sprint("done:")
	if !e.Changed && e.Step != drain.StepEmpty {
		mark = p.good.Sprint("already so:")
	}
	for i, text := range strings.Split(e.Text, "\n") {
		if i > 0 {
			mark = "     "
		}
		p.line("  %s %s", mark, text)
	}
}

// waitEvery is between two lines of the wait where it is no live line.
const waitEvery = 5 * time.Second

func (p *printer) waiting(e drain.Waiting) {
	text := waitText(e)
	if p.live {
		p.liveLine(text)
		return
	}
	if time.Since(p.lastWait) < waitEvery && (e.Lost == nil) == (p.lastText != "lost") {
		return
	}
	p.lastWait, p.lastText = time.Now(), ""
	if e.Lost != nil {
		p.lastText = "lost"
	}
	p.line("  %s", text)
}

func waitText(e drain.Waiting) string {
	limit := ""
	if e.Limit > 0 {
		limit = " of " + drain.Span(e.Limit)
	}
	elapsed := e.Elapsed.Round(100 * time.Millisecond)
	if e.Lost != nil {
		return fmt.Sprintf("the open connections cannot be counted now, trying again (%s%s): %v", elapsed, limit, e.Lost)
	}
	from := ""
	for i, peer := range e.Peers {
		from += fmt.Sprintf("%s%s (%d)", map[bool]string{true: ", from ", false: ", "}[i == 0], peer.Addr, peer.Count)
	}
	if e.More > 0 {
		from += fmt.Sprintf(", and %d more", e.More)
	}
	return fmt.Sprintf("%d open%s; %s%s", e.Count, from, elapsed, limit)
}

func (p *printer) health(e drain.HealthTried) {
	text := fmt.Sprintf("healthy %d of %d times in a row; %s", e.InARow, e.Needed, e.Elapsed.Round(100*time.Millisecond))
	if e.Err != nil {
		text = fmt.Sprintf("not healthy yet: %v; %s", e.Err, e.Elapsed.Round(100*time.Millisecond))
	}
	if p.live {
		p.liveLine(text)
		return
	}
	if e.Err != nil && time.Since(p.lastWait) >= waitEvery {
		p.lastWait = time.Now()
		p.line("  %s", text)
	}
}

// liveLine rewrites the terminal's last line.
func (p *printer) liveLine(text string) {
	if p.bar == nil {
		p.bar = progressbar.NewOptions(-1,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSpinnerType(14),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetRenderBlankState(false),
		)
	}
	if f, ok := p.out.(*os.File); ok {
		// A line that wraps cannot be rewritten.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && len(text) > width-4 && width > 8 {
			text = string([]rune(text)[:max(0, min(width-5, len([]rune(text))))]) + "…"
		}
	}
	p.bar.Describe(text)
	_ = p.bar.Add(1)
}

func (p *printer) clearBar() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}

// eventJSON is event as a JSON line. Durations are in seconds.
func (p *printer) eventJSON(e drain.Event) {
	switch e := e.(type) {
	case drain.StepStarted:
		p.record("step_started", map[string]any{"step": e.Step, "way": e.Way, "number": e.Number, "of": e.Of, "text": e.Text})
	case drain.StepDone:
		p.record("step_done", map[string]any{"step": e.Step, "way": e.Way, "changed": e.Changed, "text": e.Text, "elapsed": e.Elapsed.Seconds()})
	case drain.StepFailed:
		p.record("step_failed", map[string]any{"step": e.Step, "way": e.Way, "error": e.Err.Error()})
	case drain.Progress:
		p.record("progress", map[string]any{"step": e.Step, "text": e.Text})
	case drain.Waiting:
		peers := []map[string]any{}
		for _, peer := range e.Peers {
			peers = append(peers, map[string]any{"peer": fmt.Sprint(peer.Addr), "count": peer.Count})
		}
		fields := map[string]any{"count": e.Count, "threshold": e.Threshold, "peers": peers, "more_peers": e.More,
			"elapsed": e.Elapsed.Seconds(), "limit": e.Limit.Seconds(), "low_in_a_row": e.Low}
		if e.Lost != nil {
			fields = map[string]any{"error": e.Lost.Error(), "elapsed": e.Elapsed.Seconds(), "limit": e.Limit.Seconds()}
		}
		p.record("waiting", fields)
	case drain.HealthTried:
		fields := map[string]any{"in_a_row": e.InARow, "needed": e.Needed, "elapsed": e.Elapsed.Seconds(), "limit": e.Limit.Seconds()}
		if e.Err != nil {
			fields["error"] = e.Err.Error()
		}
		p.record("health", fields)
	case drain.RollingBack:
		p.record("rolling_back", map[string]any{"error": e.Why.Error()})
	case drain.Warned:
		p.record("warning", map[string]any{"text": e.Text})
	}
}

// trace shows a command as it is run, with --verbose.
func (p *printer) trace(host, command string) {
	if !p.opts.verbose {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.json {
		p.record("command", map[string]any{"host": host, "command": command})
		return
	}
	p.line("  %s", p.faint.Sprintf("[%s] %s", host, command))
}

// signalled says that a signal was heard.
func (p *printer) signalled(first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := "interrupted: taking back what was done; once more stops at once"
	if !first {
		text = "interrupted again: stopping at once"
	}
	if p.opts.json {
		p.record("signal", map[string]any{"text": text})
		return
	}
	p.line("%s", p.warn.Sprint(text))
}

// summary is the last word of a run that is done.
func (p *printer) summary(s drain.Summary) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.json {
		p.record("summary", map[string]any{"operation": s.Operation, "target": s.Target, "changed": s.Changed, "service": s.Service, "stays_down": s.StaysDown})
		return
	}
	p.line("%s", p.bold.Sprint(summaryText(s)))
}

func summaryText(s drain.Summary) string {
	var text string
	switch {
	case s.Operation == drain.Drain && s.Service != "":
		text = fmt.Sprintf("%s is drained, and %s on %s is stopped", s.Target, s.Service, s.Backend)
	case s.Operation == drain.Drain:
		text = fmt.Sprintf("%s is drained; nothing was stopped (no --service)", s.Target)
	case s.AllDown && s.Service != "":
		text = fmt.Sprintf("%s stays down, as it was by hand (--force clears it); %s on %s runs", s.Target, s.Service, s.Backend)
	case s.AllDown:
		text = fmt.Sprintf("%s stays down, as it was by hand (--force clears it)", s.Target)
	case s.Service != "":
		text = fmt.Sprintf("%s is back: %s on %s runs, and nginx sends requests to it", s.Target, s.Service, s.Backend)
	default:
		text = fmt.Sprintf("%s is back: nginx sends requests to it", s.Target)
	}
	if s.StaysDown != "" && !s.AllDown {
		text += "; " + s.StaysDown + " stays down, as it was by hand (--force clears it)"
	}
	if !s.Changed {
		text += "; it was so already, nothing was changed"
	}
	return text
}

// end is the very last thing: how it ended.
func (p *printer) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearBar()
	code := int(drain.KindOf(err))
	var f *drain.Failure
	errors.As(err, &f)
	if p.opts.json {
		fields := map[string]any{"exit_code": code}
		if err != nil {
			fields["error"] = err.Error()
		}
		if f != nil {
			fields["now"], fields["next"] = f.Now, f.Next
		}
		fields["refusals"] = refusals(err)
		p.record("result", fields)
	}
	if err == nil || p.refused {
		return
	}
	p.why(err)
	if f == nil {
		return
	}
	if f.Now != "" && f.Kind != drain.Misused {
		fmt.Fprintf(p.err, "drainctl: now: %s\n", f.Now)
	}
	if f.Next != "" {
		fmt.Fprintf(p.err, "drainctl: to go on: %s\n", f.Next)
	}
}

// why prints what went wrong: of a refusal every finding, each with the flag
// that helps right after it.
func (p *printer) why(err error) {
	found := refusals(err)
	if len(found) == 0 {
		found = []refusal{{Text: err.Error()}}
	}
	for _, r := range found {
		for line := range strings.Lines(r.Text) {
			fmt.Fprintf(p.err, "drainctl: error: %s\n", strings.TrimRight(line, "\n"))
		}
		if r.Override != "" {
			fmt.Fprintf(p.err, "drainctl: %s\n", hint(r.Override))
		}
	}
}

func hint(override string) string { return "hint: it would go on with " + override }

// passphrase asks for a key's passphrase, on a terminal only.
func (p *printer) passphrase(key string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("there is no terminal to ask on")
	}
	defer tty.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearBar()
	fmt.Fprintf(tty, "passphrase for %s: ", key)
	secret, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	return secret, err
}
