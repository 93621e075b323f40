package cli

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain"
)

func statusCommand(s *session) *cli.Command {
	f := &specFlags{spec: drain.DefaultSpec("")}
	f.which()
	f.where()
	f.nginx()
	f.shown()
	f.measured()
	f.document = true
	return &cli.Command{
		Name:      "status",
		Usage:     "show upstreams and their servers: up or down, connections now",
		ArgsUsage: "[TARGET...]",
		Category:  catLook,
		UsageText: "drainctl status\ndrainctl status 192.168.1.10 --lb lb1 --lb lb2",
		Description: "Connections are those from the load balancer that are established now. A server that is " +
			"down may still have some: requests that are being finished.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 0); err != nil {
				return err
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.show(c.Context, f.spec)
		},
	}
}

func (s *session) showStatus(ctx context.Context, spec drain.Spec) error {
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	st, err := drain.ReadStatus(soft, spec, s.machines(true))
	if st == nil {
		return err
	}
	s.view.Status(st)
	if s.metrics != "" {
		err = errors.Join(err, show.WriteMetrics(s.metrics, nil, spec, st))
	}
	return err
}
