package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func historyCommand(s *session) *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "list operations, or show one with its steps and times",
		ArgsUsage: "[ID]",
		Flags:     append(journalFlags(), outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := s.begin(c); err != nil {
				return err
			}
			req, err := s.historyRequest(c)
			if err != nil {
				return err
			}
			return s.list(c.Context, req)
		},
	}
}

// A historyRequest is what to list.
type historyRequest struct {
	lb       *drain.LB
	stateDir string
	id       string // empty: all operations
}

// historyRequest reads the flags of a history.
func (s *session) historyRequest(c *cli.Context) (*historyRequest, error) {
	args := c.Args().Slice()
	if len(args) > 1 {
		return nil, usage("history takes one ID; %q is one argument too many", args[1])
	}
	dir, err := stateDir(c)
	if err != nil {
		return nil, err
	}
	host, err := s.lbHost(c)
	if err != nil {
		return nil, err
	}
	return &historyRequest{lb: &drain.LB{Host: host}, stateDir: dir, id: c.Args().First()}, nil
}

func (s *session) showHistory(ctx context.Context, req *historyRequest) error {
	_, soft, stop := withSignals(ctx, s.printer.signalled)
	defer stop()
	ledger, err := s.journal(soft, req.lb, req.stateDir)
	if err != nil {
		return err
	}
	if req.id == "" {
		s.printer.history(ledger)
		return nil
	}
	for _, o := range ledger.Operations {
		if o.ID == req.id {
			s.printer.operation(o)
			return nil
		}
	}
	return usage("no operation %s in the journal", req.id)
}

// clockFormat is how times are shown, in the local zone.
const clockFormat = "2006-01-02 15:04:05"

func result(o *drain.Recorded) string {
	if o.End == nil {
		return "not ended"
	}
	return o.End.Result
}

// history shows the list of operations, the latest last.
func (p *printer) history(l *drain.Ledger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ops := l.Operations
	if p.opts.json {
		for _, o := range ops {
			p.record("operation", map[string]any{"id": o.ID, "operation": o.Operation, "target": o.Target, "user": o.User,
				"host": o.Host, "reason": o.Reason, "began": o.Began, "ended": o.Ended, "result": result(o), "torn": o.Torn})
		}
		for _, name := range l.PassedOver {
			p.record("warning", map[string]any{"text": passedOver(name)})
		}
		return
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tBEGAN\tOPERATION\tTARGET\tRESULT\tTOOK\tBY\tREASON")
	for _, o := range ops {
		took, reason := "-", "-"
		if o.End != nil {
			took = drain.Span(o.Ended.Sub(o.Began).Round(100 * time.Millisecond))
		}
		if o.Reason != "" {
			reason = o.Reason
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s on %s\t%s\n", o.ID, o.Began.Local().Format(clockFormat), o.Operation, o.Target, result(o), took, o.User, o.Host, reason)
	}
	w.Flush()
	p.table(table.String())
	if len(ops) == 0 {
		p.line("the journal is empty")
	}
	for _, o := range ops {
		if o.Torn > 0 {
			p.line("%s %s: %s", p.warn.Sprint("warning:"), o.ID, torn(o.Torn))
		}
	}
	for _, name := range l.PassedOver {
		p.line("%s %s", p.warn.Sprint("warning:"), passedOver(name))
	}
}

func passedOver(name string) string { return name + " holds no operation and was passed over" }

// torn says that records of an operation were set aside.
func torn(n int) string {
	const why = "could not be read: cut short by a crash or a full disk"
	if n == 1 {
		return "1 record " + why
	}
	return fmt.Sprintf("%d records %s", n, why)
}

// operation shows one operation, step by step.
func (p *printer) operation(o *drain.Recorded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.json {
		p.record("operation", map[string]any{"id": o.ID, "records": o.Records, "torn": o.Torn})
		return
	}
	p.line("%s %s %s, by %s", p.bold.Sprint(o.ID), o.Operation, o.Target, o.Who())
	if o.Continues != "" {
		p.line("  goes on with %s", o.Continues)
	}
	if o.Settings.Service != "" {
		p.line("  service %s", o.Settings.Service)
	}
	for _, s := range o.Servers {
		down := ""
		if s.Down {
			down = ", down already"
		}
		p.line("  server %s in %s (%s:%d)%s", s.Address, s.Upstream, s.File, s.Line, down)
	}
	for _, r := range o.Records {
		if text := recordText(r); text != "" {
			p.line("  %s  %s", r.Time.Local().Format(clockFormat+".000"), text)
		}
	}
	if o.Torn > 0 {
		p.line("%s %s", p.warn.Sprint("warning:"), torn(o.Torn))
	}
	if o.End == nil {
		p.line("it has not ended, or did not live to say so")
	}
}

func recordText(r drain.Record) string {
	switch r.Kind {
	case drain.RecordStart:
		return fmt.Sprintf("%s: %s", r.Step, r.Text)
	case drain.RecordDone:
		return fmt.Sprintf("%s: done: %s", r.Step, strings.ReplaceAll(r.Text, "\n", "; "))
	case drain.RecordFail:
		return fmt.Sprintf("%s: failed: %s", r.Step, r.Error)
	case drain.RecordBack:
		return "taking back what was done"
	case drain.RecordEdit:
		return fmt.Sprintf("edit %s: %s", r.Edit.Path, marksText(r.Edit.Marks))
	case drain.RecordEnd:
		if r.End.Stands != "" {
			return fmt.Sprintf("ended: %s (exit code %d); %s", r.End.Result, r.End.ExitCode, r.End.Stands)
		}
		return fmt.Sprintf("ended: %s (exit code %d)", r.End.Result, r.End.ExitCode)
	}
	return ""
}

func marksText(marks []drain.Marked) string {
	var texts []string
	for _, m := range marks {
		if m.Text == "" {
			texts = append(texts, fmt.Sprintf("down taken away at byte %d (line %d)", m.Offset, m.Line))
		} else {
			texts = append(texts, fmt.Sprintf("%q inserted at byte %d (line %d)", m.Text, m.Offset, m.Line))
		}
	}
	return strings.Join(texts, ", ")
}
