package cli

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/spec"
)

func resumeCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default("")}
	f.where()
	f.run()
	f.asRecorded()
	f.shown()
	f.recorded()
	return &cli.Command{
		Name:      "resume",
		Usage:     "continue an operation that was interrupted",
		ArgsUsage: "[ID|TARGET]",
		Category:  catWork,
		UsageText: "drainctl resume\ndrainctl resume 192.168.1.10 --lb lb1",
		Description: "What was asked for is in the journal; no flag of the first run is needed again. Without " +
			"an ID or a TARGET it is the only operation that was interrupted. drainctl undrain rolls " +
			"such an operation back instead.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 {
				return usage("resume takes one ID or TARGET; %q is one argument too many", args[1])
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.resume(c.Context, f.spec, c.Args().First())
		},
	}
}

func (s *session) resumeOperation(ctx context.Context, sp spec.Spec, name string) error {
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	full, err := drain.Resumed(soft, sp, name, drain.Options{Connect: s.machines(false), Emit: s.view.Event})
	stop()
	if err != nil {
		return err
	}
	return s.operate(ctx, full, false)
}
