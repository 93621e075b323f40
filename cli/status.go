package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
)

const (
	// watchEvery is how often status --watch looks.
	watchEvery = 2 * time.Second
	// watchLimit is how long a look may take: what does not answer by then is shown
	// as that, and asked again.
	watchLimit = 5 * time.Second
)

func statusCommand(s *session) *cli.Command {
	f := &specFlags{spec: spec.Default("")}
	f.yes("backends", &s.backends, "", "count connections on the backends too, by ss over SSH; who does not answer within seconds has a ?")
	f.yes("watch", &s.watch, "", "look again every "+watchEvery.String()+" until Ctrl-C; on a terminal, or with --output json a document a line")
	f.which()
	f.where()
	f.nginx()
	f.ssh()
	f.shown()
	f.measured()
	f.document = true
	return &cli.Command{
		Name:      "status",
		Usage:     "show upstreams and their servers: up or down, connections now",
		ArgsUsage: "[TARGET...]",
		Category:  catLook,
		UsageText: "drainctl status\ndrainctl status 192.168.1.10 --lb lb1 --lb lb2",
		Description: "OPEN is the connections from the load balancers that are established now. A server that is " +
			"down may still have some: requests that are being finished. BACKEND, with --backends, is those " +
			"that the backend itself has, whoever they are from. --verbose adds the file and the line.",
		Flags: f.flags,
		Action: func(c *cli.Context) error {
			if err := f.targets(c, 0); err != nil {
				return err
			}
			if err := f.read(s, c); err != nil {
				return err
			}
			if err := s.checkStatus(f); err != nil {
				return err
			}
			if s.overview {
				return s.showOverview(c.Context, f)
			}
			return s.show(c.Context, f.spec)
		},
	}
}

// checkStatus refuses what makes no sense together.
func (s *session) checkStatus(f *specFlags) error {
	if s.watch && f.metrics != "" {
		return usage("--metrics has no effect with --watch\nhint: run status --metrics now and then, from cron or a timer")
	}
	if s.watch && f.output == "text" {
		screen := show.NewWatch(s.view, watchEvery)
		if screen == nil {
			return usage("--watch needs a terminal\nhint: leave it out, or use --output json for a document a line")
		}
		s.view = screen
	}
	if !s.backends {
		return s.unused("without --backends no backend is asked", "ssh-user", "ssh-port", "identity", "ssh-host")
	}
	return nil
}

// statusReader asks the LBs, and with --backends the backends. Nobody is asked for
// a passphrase because of the latter.
func (s *session) statusReader(sp spec.Spec) *status.Reader {
	var backends fleet.Connector
	if s.backends {
		quiet := s.machines(true)
		quiet.Passphrase = nil
		backends = quiet
	}
	return status.NewReader(sp, s.machines(true), backends)
}

func (s *session) showStatus(ctx context.Context, sp spec.Spec) error {
	if s.watch {
		return s.watchStatus(ctx, sp)
	}
	_, soft, stop := withSignals(ctx, func(first bool) { s.view.Signal("", first) })
	defer stop()
	r := s.statusReader(sp)
	defer r.Close()
	st, err := r.Read(soft)
	if st == nil {
		return err
	}
	s.view.Status(st)
	if v := show.TextOf(s.view); s.overview && v != nil {
		v.Commands(st, s.where)
	}
	if s.metrics != "" {
		err = errors.Join(err, show.WriteMetrics(s.metrics, nil, sp, st))
	}
	return err
}

// watchStatus shows the status again and again. Its end is no failure. A first look
// that fails is one: something was mistyped, or must be set up.
func (s *session) watchStatus(ctx context.Context, sp spec.Spec) error {
	screen, drawn := s.view.(*show.Watch)
	if drawn {
		defer screen.Close()
	}
	_, soft, stop := withSignals(ctx, func(bool) {})
	defer stop()
	r := s.statusReader(sp)
	defer r.Close()
	st, err := r.Read(soft)
	switch {
	case soft.Err() != nil:
		return shownError{nil}
	case st == nil:
		return err
	}
	resized, unread := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	signal.Notify(unread, syscall.SIGPIPE)
	defer signal.Stop(resized)
	defer signal.Stop(unread)
	var looks sync.WaitGroup
	defer looks.Wait()
	defer stop()
	looked := make(chan *status.Status, 1)
	due := time.NewTimer(0)
	<-due.C
	looked <- st
	for {
		select {
		case <-soft.Done():
			return shownError{nil}
		case <-unread: // by anybody any more
			return shownError{nil}
		case st := <-looked:
			s.view.Status(st)
			due.Reset(watchEvery)
		case <-due.C:
			looks.Go(func() { looked <- lookAgain(soft, r) })
		case <-resized:
			if drawn {
				screen.Redraw()
			}
		}
	}
}

// lookAgain reads the status within a time.
func lookAgain(ctx context.Context, r *status.Reader) *status.Status {
	ctx, cancel := context.WithTimeoutCause(ctx, watchLimit, fmt.Errorf("no answer within %s", watchLimit))
	defer cancel()
	st, err := r.Read(ctx)
	if st == nil {
		st = &status.Status{LBs: []status.LBStatus{}, Error: err.Error()}
	}
	return st
}
