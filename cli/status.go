package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

func statusCommand(s *session) *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show upstreams and their servers: up or down, connections now",
		ArgsUsage: "[TARGET]",
		Description: "Connections are those from this machine that are established now. A server that is\n" +
			"down may still have some: requests that are being finished.",
		Flags: append(lbFlags(), outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := s.begin(c); err != nil {
				return err
			}
			req, err := s.statusRequest(c)
			if err != nil {
				return err
			}
			return s.show(c.Context, req)
		},
	}
}

// A statusRequest is what to show.
type statusRequest struct {
	lb        *drain.LB
	target    *nginx.Target // nil: all
	upstreams []string      // empty: all
	stateDir  string
	flags     []string // that the commands which go on need too
}

// statusRequest reads the flags of a status.
func (s *session) statusRequest(c *cli.Context) (*statusRequest, error) {
	req := &statusRequest{upstreams: c.StringSlice("upstream"), stateDir: c.String("state-dir")}
	if c.Args().Present() {
		t, err := target(c)
		if err != nil {
			return nil, err
		}
		req.target = &t
	}
	var err error
	if req.lb, err = s.loadBalancer(c); err != nil {
		return nil, err
	}
	req.flags = sharedFlags(c, journalFlags())
	return req, nil
}

func (s *session) showStatus(ctx context.Context, req *statusRequest) error {
	_, soft, stop := withSignals(ctx, s.printer.signalled)
	defer stop()
	st, err := drain.ReadStatus(soft, req.lb, req.stateDir, req.target, req.upstreams)
	if err != nil {
		return err
	}
	s.printer.status(st, req.flags)
	return nil
}

// statusRow is one server as words.
type statusRow struct {
	Upstream   string   `json:"upstream"`
	Module     string   `json:"module"`
	Server     string   `json:"server"`
	Parameters []string `json:"parameters"`
	State      string   `json:"state"`
	Open       int      `json:"connections"` // -1: not known
	File       string   `json:"file"`
	Line       int      `json:"line"`
	// Of the operation that the state comes from, where there is one.
	Operation string `json:"operation,omitempty"`
	By        string `json:"by,omitempty"`
	Next      string `json:"next,omitempty"` // the command that goes on
}

// statusRows puts a status into words; flags are for the commands it names.
func statusRows(st *drain.Status, flags []string) []statusRow {
	rows := []statusRow{}
	for _, s := range st.Servers {
		row := statusRow{
			Upstream: s.Upstream, Module: s.Module, Server: s.Server.Words[1].Text, State: string(s.State), Open: s.Open,
			File: s.Server.File.Path, Line: s.Server.Line(), Parameters: []string{},
		}
		for _, w := range s.Server.Params() {
			if w.Text != "down" {
				row.Parameters = append(row.Parameters, w.Text)
			}
		}
		if s.By != nil {
			row.Operation, row.By = s.By.ID, s.By.Who()
			switch s.State {
			case drain.StateHalfWay:
				command := func(words ...string) string {
					return remote.Quote(slices.Concat([]string{"drainctl"}, words, flags)...)
				}
				row.Next = fmt.Sprintf("%s   (goes on), or %s   (puts it back)", command("resume", s.By.ID), command("undrain", s.By.Target))
			case drain.StateWorking:
				row.State = string(s.By.Operation) + "ing now"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// status shows the table.
func (p *printer) status(st *drain.Status, flags []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rows := statusRows(st, flags)
	if p.opts.json {
		fields := map[string]any{"lb": st.LB, "configuration": st.ConfPath, "servers": rows, "warnings": list(st.Warnings)}
		if st.Uncounted != nil {
			fields["not_counted"] = st.Uncounted.Error()
		}
		p.record("status", fields)
		return
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "UPSTREAM\tSERVER\tSTATE\tOPEN\tPARAMETERS\tWHERE")
	for _, r := range rows {
		open := "?"
		if r.Open >= 0 {
			open = fmt.Sprint(r.Open)
		}
		params := strings.Join(r.Parameters, " ")
		if params == "" {
			params = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s:%d\n", r.Upstream, r.Server, r.State, open, params, r.File, r.Line)
	}
	w.Flush()
	p.table(table.String())
	p.operations(rows)
	if len(rows) == 0 {
		p.line("no upstream in %s has a server", st.ConfPath)
	}
	if st.Uncounted != nil {
		p.line("%s connections could not be counted: %v", p.warn.Sprint("warning:"), st.Uncounted)
	}
	for _, text := range st.Warnings {
		p.line("%s %s", p.warn.Sprint("warning:"), text)
	}
}

// operations tells of each operation behind the table's states, once.
func (p *printer) operations(rows []statusRow) {
	told := map[string]bool{}
	for _, r := range rows {
		if r.Operation == "" || told[r.Operation] {
			continue
		}
		told[r.Operation] = true
		p.line("%s: %s by %s (operation %s)", r.Server, r.State, r.By, r.Operation)
		if r.Next != "" {
			p.line("  to go on: %s", r.Next)
		}
	}
}

// table prints a table that tabwriter has laid out.
func (p *printer) table(text string) {
	for line := range strings.Lines(text) {
		p.line("%s", strings.TrimRight(line, " \n"))
	}
}
