package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func rolloutCommand(s *session) *cli.Command {
	f := &specFlags{spec: drain.DefaultSpec(drain.Run)}
	f.rollout()
	f.text("service", &f.spec.Service, "", "systemd `UNIT` to stop before the work and to start after it; without it the work restarts the app", "s")
	f.wait()
	f.health()
	f.yes("dry-run", &f.dryRun, "", "show the plan, the diff of each batch, and every warning and refusal; touch nothing")
	f.which()
	f.where()
	f.run()
	f.shown()
	f.recorded()
	return &cli.Command{
		Name:      string(drain.Run),
		Usage:     "take some backends at a time out, work on them, and put them back healthy",
		ArgsUsage: "[TARGET...] -- COMMAND [ARG...]",
		Description: "Without a TARGET it is every backend of --upstream. For each batch: drain, run COMMAND for\n" +
			"each backend, undrain behind the health check. {host}, {address}, {port} and {upstream} are\n" +
			"filled into COMMAND, which goes through no shell, and are in its environment (DRAINCTL_HOST, …).\n\n" +
			"    drainctl run --upstream backend_servers --service my-web-app -- ./deploy.sh {host}\n" +
			"    drainctl run --upstream backend_servers --batch 25% --reboot --only-if 'test -e /var/run/reboot-required'\n\n" +
			"Ctrl-C ends after the current batch is back; drainctl resume goes on where it stopped.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 0); err != nil {
				return err
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			f.spec.Rollout.Command = s.command
			if err := s.checkRollout(f.spec); err != nil {
				return err
			}
			return s.operate(c.Context, f.spec, f.dryRun)
		},
	}
}

// catRun is the category of what only a rolling run takes.
const catRun = "Rolling run:"

// rollout is the flags of a rolling run alone.
func (f *specFlags) rollout() {
	r := &f.spec.Rollout
	f.yes("on-backend", &r.OnBackend, catRun, "run COMMAND on the backend, over SSH, and not here")
	f.reboot("reboot the backend, and see it run another boot, before COMMAND if there is one")
	f.span("reboot-timeout", &r.RebootTimeout, catRun, "how long a reboot may take")
	f.text("batch", &r.Batch, catRun, "take `N` backends at a time, or N% of those that are up (at least 1)")
	f.span("pause", &r.Pause, catRun, "wait between two batches; each then costs a reload more")
	f.yes("canary", &r.Canary, catRun, "take one backend first, then ask (on a terminal), or wait for --canary-wait")
	f.span("canary-wait", &r.CanaryWait, catRun, "how long to wait after the canary, in place of asking")
	f.number("max-failures", &r.MaxFailures, catRun, "go on until more than `N` backends have failed")
	generations := 0
	f.number("max-generations", &generations, catRun, "before each batch, wait until at most `N` earlier generations of nginx are left (default: no limit)")
	f.after = append(f.after, func(c *cli.Context) error {
		if c.IsSet("max-generations") {
			r.MaxGenerations = &generations
		}
		return nil
	})
	f.text("on-failure", (*string)(&r.OnFailure), catRun, "`WHAT` to do with a backend whose work failed: leave (out of the pool) or undrain (put it back)")
	f.text("only-if", &r.OnlyIf, catRun, "skip backends on which `COMMAND` does not end with 0")
	f.text("gate", &r.Gate, catRun, "run `COMMAND` here before each batch; if it does not end with 0, no further batch begins")
}

func (f *specFlags) reboot(usage string) { f.yes("reboot", &f.spec.Rollout.Reboot, catRun, usage) }

// checkRollout refuses what makes no sense together.
func (s *session) checkRollout(spec drain.Spec) error {
	r := spec.Rollout
	switch {
	case len(spec.Targets) == 0 && len(spec.Upstreams) == 0:
		return usage("run needs a TARGET, or --upstream NAME for all of its backends")
	case len(r.Command) == 0 && !r.Reboot:
		return usage("run needs -- COMMAND, or --reboot: there is nothing to do while a backend is out")
	case r.Canary && r.CanaryWait == 0 && s.asker() == nil:
		return usage("--canary needs --canary-wait: there is no terminal to ask on")
	}
	if !r.Canary {
		if err := s.unused("it is for --canary", "canary-wait"); err != nil {
			return err
		}
	}
	if len(r.Command) == 0 {
		if err := s.unused("there is no COMMAND", "on-backend"); err != nil {
			return err
		}
	}
	return s.checkDrain(spec)
}
