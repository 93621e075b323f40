package cli

import (
	"net/netip"
	"net/url"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
)

func drainCommand(s *session) *cli.Command {
	flags := []cli.Flag{
		serviceFlag("systemd `UNIT` to stop on the backend once it is empty; without it nothing is stopped"),
		&cli.IntFlag{Name: "threshold", EnvVars: env("threshold"), Usage: "drained at `N` open connections or fewer"},
		&cli.DurationFlag{Name: "interval", Value: drain.DefaultInterval, EnvVars: env("interval"), Usage: "how often connections are counted; near the end more often"},
		&cli.DurationFlag{Name: "timeout", Value: drain.DefaultTimeout, EnvVars: env("timeout"), Usage: "how long to wait for open connections; 0: no limit"},
		&cli.StringFlag{Name: "on-timeout", Value: string(drain.TimeoutRollback), EnvVars: env("on-timeout"), Usage: "`WHAT` to do then: rollback, leave (down, app running) or stop (the app all the same)"},
		&cli.StringFlag{Name: "poll", Value: string(drain.PollSS), EnvVars: env("poll"), Usage: "`WHERE` connections are counted: ss (on the backend, over SSH), lb (on this machine, no SSH) or stub_status"},
		&cli.StringFlag{Name: "status-url", EnvVars: env("status-url"), Usage: "`URL` of stub_status on the backend's own nginx, for --poll stub_status"},
		dryRunFlag(),
		&cli.IntFlag{Name: "min-up", Value: drain.DefaultMinUp, Category: catGuards, EnvVars: env("min-up"), Usage: "live servers (`N`, backups not counted) that each upstream must keep"},
		&cli.BoolFlag{Name: "allow-direct", Category: catGuards, EnvVars: env("allow-direct"), Usage: "the target is also reached outside its upstreams: drain all the same"},
		&cli.BoolFlag{Name: "allow-shutdown-timeout", Category: catGuards, EnvVars: env("allow-shutdown-timeout"), Usage: "nginx's worker_shutdown_timeout is shorter than --timeout: drain all the same"},
		&cli.BoolFlag{Name: "allow-all-addresses", Category: catGuards, EnvVars: env("allow-all-addresses"), Usage: "the server's name has several addresses: drain them all"},
	}
	flags = append(flags,
		&cli.DurationFlag{Name: "stop-timeout", Value: drain.DefaultStopTimeout, EnvVars: env("stop-timeout"), Usage: "how long systemctl stop may take"},
		&cli.StringSliceFlag{Name: "ignore-peer", Category: catGuards, EnvVars: env("ignore-peer"), Usage: "new connections to the backend from `CIDR` do not matter, as those of monitoring (repeatable)"},
	)
	flags = append(flags, recordFlags()...)
	flags = append(flags, lbFlags()...)
	flags = append(flags, controlFlags()...)
	flags = append(flags, sshFlags()...)
	return &cli.Command{
		Name:        "drain",
		Usage:       "mark a backend down in nginx, wait until nothing uses it, stop its service",
		ArgsUsage:   "TARGET",
		Description: describeTarget("the backend to drain"),
		Flags:       append(flags, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := s.begin(c); err != nil {
				return err
			}
			req, err := s.drainRequest(c)
			if err != nil {
				return err
			}
			return s.operate(c.Context, req, c.Bool("dry-run"))
		},
	}
}

// drainRequest reads the flags of a drain.
func (s *session) drainRequest(c *cli.Context) (*drain.Request, error) {
	req, err := s.request(c, drain.Drain)
	if err != nil {
		return nil, err
	}
	req.Threshold = c.Int("threshold")
	req.Interval = c.Duration("interval")
	req.Timeout = c.Duration("timeout")
	req.OnTimeout = drain.OnTimeout(c.String("on-timeout"))
	req.Poll = drain.Poll(c.String("poll"))
	req.StatusURL = c.String("status-url")
	req.MinUp = c.Int("min-up")
	req.Allow.Direct = c.Bool("allow-direct")
	req.Allow.ShutdownTimeout = c.Bool("allow-shutdown-timeout")
	req.Allow.AllAddresses = c.Bool("allow-all-addresses")
	if req.StopTimeout = c.Duration("stop-timeout"); req.StopTimeout <= 0 {
		return nil, usage("--stop-timeout %s: must be longer than 0", req.StopTimeout)
	}
	if req.IgnorePeers, err = prefixes(c.StringSlice("ignore-peer")); err != nil {
		return nil, err
	}
	if err := s.checkDrain(c, req); err != nil {
		return nil, err
	}
	return req, s.checkSSH(req)
}

// prefixes reads addresses, with or without a length.
func prefixes(texts []string) ([]netip.Prefix, error) {
	var found []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return nil, usage("--ignore-peer %q is neither an address nor a network such as 10.0.0.0/8", text)
		}
		found = append(found, p.Masked())
	}
	return found, nil
}

// checkDrain refuses values that make no sense, alone or together.
func (s *session) checkDrain(c *cli.Context, req *drain.Request) error {
	switch {
	case req.Threshold < 0:
		return usage("--threshold %d: must not be negative", req.Threshold)
	case req.MinUp < 0:
		return usage("--min-up %d: must not be negative", req.MinUp)
	case req.Interval <= 0:
		return usage("--interval %s: must be longer than 0", req.Interval)
	}
	for _, err := range []error{
		notNegative(c, "timeout"),
		oneOf("--on-timeout", string(req.OnTimeout), string(drain.TimeoutRollback), string(drain.TimeoutLeave), string(drain.TimeoutStop)),
		oneOf("--poll", string(req.Poll), string(drain.PollSS), string(drain.PollLB), string(drain.PollStubStatus)),
	} {
		if err != nil {
			return err
		}
	}
	if req.Poll == drain.PollStubStatus {
		u, err := url.Parse(req.StatusURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return usage("--poll stub_status needs --status-url, an http or https URL of the backend's own nginx")
		}
	} else if err := s.unused("it is for --poll stub_status", "status-url"); err != nil {
		return err
	}
	if req.Timeout == 0 {
		if err := s.unused("with --timeout 0 the time is never up", "on-timeout"); err != nil {
			return err
		}
	}
	if req.Service == "" && req.OnTimeout == drain.TimeoutStop {
		return usage("--on-timeout stop needs --service: there is nothing to stop")
	}
	return nil
}
