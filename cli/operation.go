package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/drainctl/drainctl/drain"
)

// runOperation plans, and then shows or runs.
func (s *session) runOperation(ctx context.Context, req *drain.Request, dryRun bool) error {
	hard, soft, stop := withSignals(ctx, s.printer.signalled)
	defer stop()
	if dryRun {
		plan, err := drain.DryRun(soft, req)
		if err != nil {
			return err
		}
		if err := s.checkSSH(req); err != nil {
			return err
		}
		s.printer.plan(plan, true)
		return plan.Verdict()
	}
	// Read once for what was mistyped, and once more when nobody else works on
	// the target any more.
	if _, err := drain.Read(soft, req); err != nil {
		return err
	}
	claim, err := drain.TakeClaim(soft, req, s.printer.event)
	if err != nil {
		return err
	}
	defer claim.Release()
	plan, err := drain.Read(soft, req)
	if err != nil {
		return err
	}
	if err := s.checkSSH(req); err != nil {
		return err
	}
	s.printer.plan(plan, false)
	session, err := drain.Check(soft, plan, claim, s.printer.event)
	if err != nil {
		return err
	}
	defer session.Close()
	err = session.Run(hard, soft)
	if err == nil {
		s.printer.summary(session.Summary())
	}
	return err
}

// withSignals gives a context that the second SIGINT, SIGTERM or SIGHUP ends, and
// one that the first ends already. What this process was started to ignore it goes
// on ignoring: nohup is for a terminal that closes.
func withSignals(parent context.Context, tell func(first bool)) (hard, soft context.Context, stop func()) {
	hard, cancelHard := context.WithCancelCause(parent)
	soft, cancelSoft := context.WithCancelCause(hard)
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case <-done:
				return
			case <-signals:
			}
			tell(first)
			if !first {
				cancelHard(drain.ErrInterrupted)
				return
			}
			cancelSoft(drain.ErrInterrupted)
		}
	}()
	return hard, soft, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
		cancelSoft(nil)
		cancelHard(nil)
	})
}
