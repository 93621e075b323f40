package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func undrainCommand(s *session) *cli.Command {
	flags := []cli.Flag{
		serviceFlag("systemd `UNIT` to start on the backend (default: the one that the drain stopped)"),
		&cli.BoolFlag{Name: "force", EnvVars: env("force"), Usage: "clear a down that drainctl has not put there, too"},
		&cli.StringFlag{Name: "health", Value: drain.HealthTCP, EnvVars: env("health"), Usage: "`CHECK` that must succeed several times in a row: a URL, or tcp (connect from the load balancer)"},
		&cli.DurationFlag{Name: "health-timeout", Value: drain.DefaultHealthTimeout, EnvVars: env("health-timeout"), Usage: "how long to wait for that; 0: no limit"},
		dryRunFlag(),
	}
	flags = append(flags, recordFlags()...)
	flags = append(flags, lbFlags()...)
	flags = append(flags, controlFlags()...)
	flags = append(flags, sshFlags()...)
	return &cli.Command{
		Name:        "undrain",
		Usage:       "start a backend's service, wait until it is healthy, take its down mark away",
		ArgsUsage:   "TARGET",
		Description: describeTarget("the backend to put back"),
		Flags:       append(flags, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := s.begin(c); err != nil {
				return err
			}
			req, err := s.undrainRequest(c)
			if err != nil {
				return err
			}
			return s.operate(c.Context, req, c.Bool("dry-run"))
		},
	}
}

// undrainRequest reads the flags of an undrain.
func (s *session) undrainRequest(c *cli.Context) (*drain.Request, error) {
	req, err := s.request(c, drain.Undrain)
	if err != nil {
		return nil, err
	}
	req.Health = c.String("health")
	req.HealthTimeout = c.Duration("health-timeout")
	if err := notNegative(c, "health-timeout"); err != nil {
		return nil, err
	}
	if req.Health != drain.HealthTCP {
		if err := drain.ValidHealthURL(req.Health); err != nil {
			return nil, usage("--health: %v", err)
		}
	}
	req.Force = c.Bool("force")
	return req, nil
}
