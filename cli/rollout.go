package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain/spec"
)

func rolloutCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default(spec.Run)}
	f.rollout()
	f.service("systemd `UNIT` to stop before and start after; without it the work restarts the app; repeatable: units stop in this order and start in reverse, sockets first")
	f.wait()
	f.health()
	f.yes("dry-run", &f.dryRun, "", "show plan, diffs, warnings and refusals, change nothing; it runs --only-if")
	f.which()
	f.where()
	f.run()
	f.shown()
	f.recorded()
	return &cli.Command{
		Name:      string(spec.Run),
		Usage:     "take some backends out at a time, work on them, put them back",
		ArgsUsage: "[TARGET...] -- COMMAND [ARG...]",
		Category:  catWork,
		UsageText: "drainctl run --upstream web --service my-web-app -- ./deploy.sh {host}\n" +
			"drainctl run --upstream web --batch 25% --reboot \\\n" +
			"  --only-if 'test -e /var/run/reboot-required'",
		Description: "Without a TARGET: all backends of --upstream. {host}, {address}, {port} and {upstream} are filled into COMMAND, " +
			"and are in its environment, as DRAINCTL_HOST and so on. Ctrl-C ends after the batch; drainctl resume goes on.",
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
	f.yes("on-backend", &r.OnBackend, catRun, "run COMMAND on the backend, over SSH, not here")
	f.reboot("reboot each, before COMMAND if there is one; another boot is seen to run")
	f.span("reboot-timeout", &r.RebootTimeout, catRun, "how long a reboot may take")
	f.text("batch", &r.Batch, catRun, "`N` backends at a time, or N% of those up")
	f.span("pause", &r.Pause, catRun, "how long to wait between two batches; each then costs a reload more")
	f.yes("canary", &r.Canary, catRun, "one backend first, then ask; without a terminal: wait for --canary-wait")
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
	f.text("on-failure", (*string)(&r.OnFailure), catRun, "`WHAT` if one fails: leave or undrain; leave: out of the pool; undrain: put it back")
	f.text("only-if", &r.OnlyIf, catRun, "skip backends on which `COMMAND` exits with 1; a dry run asks it too: it must change nothing")
	f.text("gate", &r.Gate, catRun, "run `COMMAND` here before each batch; if it fails, no further batch begins")
}

func (f *specFlags) reboot(usage string) { f.yes("reboot", &f.spec.Rollout.Reboot, catRun, usage) }

// checkRollout refuses what makes no sense together.
func (s *session) checkRollout(sp spec.Spec) error {
	r := sp.Rollout
	switch {
	case len(sp.Targets) == 0 && len(sp.Upstreams) == 0:
		return usage("run needs a TARGET\nhint: name some, or all of an upstream with --upstream NAME")
	case len(r.Command) == 0 && !r.Reboot:
		return usage("there is nothing to do while a backend is out\nhint: end the line with -- COMMAND, or use --reboot")
	case r.Canary && r.CanaryWait == 0 && s.asker() == nil:
		return usage("--canary has no terminal to ask on\nhint: --canary-wait TIME waits in place of asking")
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
	return s.checkDrain(sp)
}
