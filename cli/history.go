package cli

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func historyCommand(s *session) *cli.Command {
	f := &specFlags{spec: drain.DefaultSpec("")}
	f.where()
	f.shown()
	f.document = true
	return &cli.Command{
		Name:      "history",
		Usage:     "list operations, or show one with its steps and times",
		ArgsUsage: "[ID]",
		Category:  catLook,
		Description: "Without an ID: what each operation was, who did it, and how it ended, the oldest first. " +
			"The history is on the load balancers; --keep and a year bound it.",
		UsageText: "drainctl history\ndrainctl history 20260504-120000.000-abcd",
		Flags:     f.flags,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 {
				return usage("history takes one ID; %q is one argument too many", args[1])
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.list(c.Context, f.spec, c.Args().First())
		},
	}
}

func (s *session) showHistory(ctx context.Context, spec drain.Spec, id string) error {
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	if id == "" {
		entries, unreadable, err := drain.ReadHistory(soft, spec, s.machines(true))
		if err == nil {
			s.view.History(entries, unreadable)
		}
		return err
	}
	events, truncated, err := drain.ReadOperation(soft, spec, id, s.machines(true))
	if err == nil {
		s.view.Operation(id, events, truncated)
	}
	return err
}
