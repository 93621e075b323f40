package cli

import (
	"cmp"
	"context"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/spec"
)

func checkCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default(spec.Run)}
	f.document = true
	f.service("systemd `UNIT` that a run would stop and start; repeatable")
	f.counter()
	f.healthCheck()
	f.reboot("try the right to reboot the backends, too")
	f.which()
	f.where()
	f.nginx()
	f.control()
	f.ssh()
	f.shown()
	return &cli.Command{
		Name:      "check",
		Usage:     "try everything that a run would need, and touch nothing",
		ArgsUsage: "[TARGET...]",
		Category:  catLook,
		UsageText: "drainctl check\ndrainctl check --lb lb1 --lb lb2 --upstream web --service my-web-app",
		Description: "On each load balancer: SSH, sudo, the agent, nginx and its test, files that are not loaded, the " +
			"journal and its disk, the clock. With a TARGET or --upstream, on their backends too: SSH, the unit, " +
			"the right to stop and start it, the counter. All are tried, whatever fails; the exit code is 0 if a " +
			"run would find all it needs, else 4. What would be drained, a --dry-run of the run shows.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 0); err != nil {
				return err
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			if err := s.checkCheck(f.spec); err != nil {
				return err
			}
			return s.check(c.Context, f.spec)
		},
	}
}

// checkCheck refuses what makes no sense together.
func (s *session) checkCheck(sp spec.Spec) error {
	if err := cmp.Or(s.checkCounter(sp), s.checkHealth(sp)); err != nil {
		return err
	}
	if len(sp.Targets)+len(sp.Upstreams) == 0 {
		return s.unused("without a TARGET or --upstream no backend is checked",
			"service", "poll", "status-url", "health", "health-host", "health-ca", "reboot", "ssh-user", "ssh-port", "identity", "ssh-host")
	}
	return s.checkSSH(sp)
}

func (s *session) showChecks(ctx context.Context, sp spec.Spec) error {
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	r, err := drain.CheckAll(soft, sp, s.machines(false))
	if err != nil {
		return err
	}
	s.view.Checks(r)
	return shownError{r.Refusal()}
}
