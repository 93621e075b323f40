package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain/spec"
)

func forgetCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default(spec.Forget)}
	f.yes("dry-run", &f.dryRun, "", "show the records that would be cleared, and clear none")
	f.which()
	f.where()
	f.nginx()
	f.locks()
	f.shown()
	f.recorded()
	return &cli.Command{
		Name:      "forget",
		Usage:     "clear the record of servers that were removed while drained",
		ArgsUsage: "TARGET...",
		Category:  catWork,
		UsageText: "drainctl forget 192.168.1.10\ndrainctl forget app1:8080 --lb lb1 --lb lb2 --reason decommissioned",
		Description: "For a backend that is decommissioned: its server line was removed from the configuration. " +
			"A server that is still there is refused: drainctl undrain puts it back. forget edits no file and " +
			"starts no service: an app that the drain stopped stays stopped.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 1); err != nil {
				return err
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.operate(c.Context, f.spec, f.dryRun)
		},
	}
}
