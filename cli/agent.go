package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

const agentName = "agent"

func agentCommand(s *session) *cli.Command {
	// What passes through sudo in the environment is not for it: it runs as root.
	f := &specFlags{output: "text", agent: true, noEnv: true}
	f.journal()
	f.nginx()
	f.control()
	f.keep()
	return &cli.Command{
		Name:      agentName,
		Usage:     "serve this machine's nginx to a drainctl elsewhere",
		Category:  catSetUp,
		UsageText: "sudo drainctl agent\nssh lb1 sudo -n drainctl agent",
		Description: "drainctl itself starts it on a load balancer. It speaks over standard input and output, and does only what a drain needs: it marks server " +
			"lines of the configuration down or clears that, tests and reloads nginx, and keeps the journal. " +
			"How nginx is run is said here or in the section nginx of /etc/drainctl.yaml, never by the " +
			"other end. That file must be root's alone. A sudoers line for it:\n\n" +
			"    deploy ALL=(root) NOPASSWD: /usr/bin/drainctl agent",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("agent takes no argument; %q is one too many", c.Args().First())
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			return s.serve(c.Context, f.spec)
		},
	}
}

// serveAgent has standard output to itself: nothing else is printed there.
func (s *session) serveAgent(ctx context.Context, sp spec.Spec) error {
	caller, err := journal.Caller()
	if err != nil {
		return err
	}
	// What a terminal or root sends to end the agent ends it as the end of its input does:
	// it undoes what nginx has not loaded.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	defer stop()
	if err := drain.ServeAgent(ctx, sp.Nginx, s.system, versionText(), caller, os.Stdin, os.Stdout); err != nil {
		return err
	}
	return shownError{nil}
}
