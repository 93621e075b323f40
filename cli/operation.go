package cli

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// operationCommand is drain or undrain.
func operationCommand(s *session, kind spec.Kind) *cli.Command {
	f := &specFlags{spec: spec.Default(kind)}
	cmd := &cli.Command{Name: string(kind), ArgsUsage: "TARGET...", Category: catWork, Description: describeTarget}
	if kind == spec.Drain {
		cmd.Usage = "take backends out: mark down, wait until unused, stop the service"
		cmd.UsageText = "drainctl drain 192.168.1.10 --service my-web-app\n" +
			"drainctl drain app1:8080 --lb lb1 --lb lb2 --timeout 15m --dry-run"
		f.drain()
	} else {
		cmd.Usage = "put backends back: start, wait until healthy, clear the down mark"
		cmd.UsageText = "drainctl undrain 192.168.1.10\n" +
			"drainctl undrain app1:8080 --lb lb1 --health http://{host}:{port}/ready"
		f.undrain()
	}
	f.yes("dry-run", &f.dryRun, "", "show plan, diff, warnings and refusals, touch nothing")
	f.which()
	f.where()
	f.run()
	f.shown()
	f.recorded()
	cmd.Flags = f.flags
	cmd.Action = func(c *cli.Context) error {
		if err := f.targets(c, 1); err != nil {
			return err
		}
		if err := f.read(s, c); err != nil {
			return err
		}
		if kind == spec.Drain {
			if err := s.checkDrain(f.spec); err != nil {
				return err
			}
			if err := s.checkSSH(f.spec); err != nil {
				return err
			}
		}
		return s.operate(c.Context, f.spec, f.dryRun)
	}
	return cmd
}

// drain is the flags of a drain alone.
func (f *specFlags) drain() {
	s := &f.spec
	f.service("systemd `UNIT` to stop once the backend is drained; without it nothing is stopped; repeatable: units stop in this order and start in reverse, sockets first")
	f.wait()
	f.health()
	f.text("on-timeout", (*string)(&s.OnTimeout), catWait, "`WHAT` at the timeout: rollback, leave or stop; leave: down, the app runs on; stop: the service, with connections open")
	f.together()
}

// wait is the flags of whatever waits until backends are drained.
func (f *specFlags) wait() {
	s := &f.spec
	f.span("timeout", &s.Timeout, catWait, "how long to wait for open connections; 0: no limit")
	f.number("threshold", &s.Threshold, catWait, "drained at `N` open connections or fewer")
	f.span("interval", &s.Interval, catWait, "how often connections are counted; near the end more often")
	f.counter()
	f.span("stop-timeout", &s.StopTimeout, catWait, "how long systemctl stop may take")
	f.number("min-up", &s.MinUp, catGuards, "each upstream must keep `N` live servers (a backup is none)")
	f.yes("allow-direct", &s.Allow.Direct, catGuards, "drain although the target is also reached outside its upstreams")
	f.yes("allow-other-names", &s.Allow.OtherNames, catGuards, "drain although the target is also a server under another name, or the service serves another port in a pool")
	f.yes("allow-shutdown-timeout", &s.Allow.ShutdownTimeout, catGuards, "drain although worker_shutdown_timeout is shorter than --timeout")
	f.yes("allow-all-addresses", &s.Allow.AllAddresses, catGuards, "drain all addresses of a server name that has several")
	var peers []string
	f.list("ignore-peer", &peers, catGuards, "new connections from `CIDR` do not matter, as those of monitoring (repeatable)")
	f.after = append(f.after, func(*cli.Context) error {
		if err := spec.SetFlag(s, "ignore-peer", peers...); err != nil {
			return usage("--ignore-peer: %v", err)
		}
		return nil
	})
}

// counter says where connections are counted.
func (f *specFlags) counter() {
	s := &f.spec
	f.text("poll", (*string)(&s.Counter), catWait, "`WHERE` to count: ss, lb or stub_status; ss: on the backend, over SSH; lb: on the load balancer, without SSH")
	f.text("status-url", &s.StatusURL, catWait, "`URL` of stub_status on the backend's own nginx, for --poll stub_status")
}

func (f *specFlags) together() {
	f.yes("together", &f.spec.Together, "", "if one of several targets fails, roll all of them back")
}

// asRecorded consents to what another user recorded.
func (f *specFlags) asRecorded() {
	f.yes("as-recorded", &f.spec.AsRecorded, catGuards, "use the service, SSH host, URL and command that another user recorded")
}

// undrain is the flags of an undrain alone.
func (f *specFlags) undrain() {
	s := &f.spec
	f.asRecorded()
	f.service("systemd `UNIT` to start; default: those that the drain stopped; repeatable: in the order of the drain")
	f.yes("force", &s.Force, "", "clear a down mark that drainctl has not made, too")
	f.health()
	f.together()
}

// health is the flags of whatever waits until backends are healthy.
func (f *specFlags) health() {
	s := &f.spec
	f.healthCheck()
	f.span("health-timeout", &s.HealthTimeout, catWait, "how long the backend may take to be healthy; 0: no limit")
}

// healthCheck says how health is checked.
func (f *specFlags) healthCheck() {
	s, ca := &f.spec, ""
	f.text("health", &s.Health, catWait, "`CHECK` that must pass 3 times: a URL or tcp; in the URL {host}, {address}, {port} and {upstream} are filled in; tcp: connect from the load balancer")
	f.text("health-host", &s.HealthHost, catWait, "`NAME` for the Host header of the health URL, and in its certificate")
	f.text("health-ca", &ca, catWait, "`FILE` of certificates in PEM that may sign the health URL's, beside those that the load balancer trusts")
	f.after = append(f.after, func(*cli.Context) error {
		if ca == "" {
			return nil
		}
		if err := spec.SetFlag(s, "health-ca", ca); err != nil {
			return usage("--health-ca: %v", err)
		}
		return nil
	})
}

// checkHealth refuses what is for a URL where none is asked for. An undrain may have that of its drain.
func (s *session) checkHealth(sp spec.Spec) error {
	if sp.Any(func(set spec.Settings) bool { return set.Health != spec.HealthTCP }) {
		return nil
	}
	return s.unused("it is for a --health URL", "health-host", "health-ca")
}

// checkDrain refuses values that make no sense together.
func (s *session) checkDrain(d spec.Spec) error {
	if d.OnTimeout == spec.TimeoutStop && !d.Any(func(set spec.Settings) bool { return set.Service != "" }) {
		return usage("--on-timeout stop has nothing to stop\nhint: name the unit with --service")
	}
	if err := cmp.Or(s.checkCounter(d), s.checkHealth(d)); err != nil {
		return err
	}
	if !d.Any(func(set spec.Settings) bool { return set.Timeout != 0 }) {
		return s.unused("with --timeout 0 the time is never up", "on-timeout")
	}
	return nil
}

func (s *session) checkCounter(d spec.Spec) error {
	// What a backend lacks that others have, the plan finds.
	alike := len(d.PerUpstream)+len(d.PerBackend) == 0
	polls := func(set spec.Settings) bool { return set.Counter == spec.CounterStubStatus }
	switch {
	case alike && polls(d.Settings) && spec.CheckURL(d.StatusURL) != nil:
		return usage("--poll stub_status has no page to read\nhint: name it with --status-url, an http or https URL of the backend's own nginx")
	case !d.Any(polls):
		return s.unused("it is for --poll stub_status", "status-url")
	}
	return nil
}

const describeTarget = "TARGET is an address or name as in nginx.conf: 192.168.1.10 (all its ports), app1:8080, " +
	"[2001:db8::1]:8080, unix:/run/app.sock."

// machines is what reaches the machines of a run.
func (s *session) machines(unprivileged bool) fleet.Machines {
	return fleet.Machines{
		Version: versionText(), System: s.system, Passphrase: passphrase(s.view), Trace: s.view.Trace, Unprivileged: unprivileged,
		Copied: func(lb, path string) {
			s.view.Event(event.Stamp(&event.AgentCopied{Header: event.Header{LB: lb}, Path: path}))
		},
	}
}

// runOperation plans, and then shows or runs.
func (s *session) runOperation(ctx context.Context, sp spec.Spec, dryRun bool) error {
	hard, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal(sp.Kind, first) })
	defer stop()
	options := drain.Options{Connect: s.machines(dryRun), Emit: s.view.Event, Ask: s.asker(), Accept: func(p *plan.Plan) error {
		if err := s.checkSSH(p.Spec); err != nil {
			return err
		}
		s.view.Event(event.Stamp(&event.Planned{Plan: p}))
		return nil
	}, Version: versionText()}
	if sp.Kind == spec.Forget {
		return s.shown(drain.Forget(soft, sp, options, dryRun))
	}
	if dryRun {
		pl, err := drain.DryRun(soft, sp, options)
		if err != nil {
			return err
		}
		return s.shown(drain.ResultOf(pl.Refusal()), pl.Refusal())
	}
	o, err := drain.Prepare(soft, sp, options)
	if err != nil {
		return err
	}
	defer o.Close()
	err = o.Run(hard, soft)
	return s.shown(o.Result(), err)
}

// shown shows how a run ended.
func (s *session) shown(r *event.Result, err error) error {
	s.view.Event(event.Stamp(r))
	return shownError{err}
}

// withSignals gives a context that the second SIGINT ends, and one that the
// first SIGINT, SIGTERM or SIGHUP ends already. A terminal that closes sends
// SIGHUP after Ctrl-C, and CI systems send SIGTERM some seconds after SIGINT:
// neither ends a rollback. What this process was started to ignore it goes on
// ignoring: nohup is for a terminal that closes.
func withSignals(parent context.Context, tell func(first bool)) (hard, soft context.Context, stop func()) {
	hard, cancelHard := context.WithCancelCause(parent)
	soft, cancelSoft := context.WithCancelCause(hard)
	signals := make(chan os.Signal, 8)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	done := make(chan struct{})
	go func() {
		interrupts, told := 0, false
		for {
			var got os.Signal
			select {
			case <-done:
				return
			case got = <-signals:
			}
			if got == syscall.SIGINT {
				interrupts++
			}
			switch {
			case !told:
				told = true
				tell(true)
				cancelSoft(spec.ErrInterrupted)
			case interrupts > 1:
				tell(false)
				cancelHard(spec.ErrInterrupted)
				return
			}
		}
	}()
	return hard, soft, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
		cancelSoft(nil)
		cancelHard(nil)
	})
}
