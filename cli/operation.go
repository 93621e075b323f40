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
		s.printer.plan(plan, true)
		return plan.Verdict()
	}
	plan, err := drain.Read(soft, req)
	if err != nil {
		return err
	}
	s.printer.plan(plan, false)
	session, err := drain.Check(soft, plan, s.printer.event)
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

// withSignals gives a context that the second SIGINT or SIGTERM ends, and one
// that the first ends already.
func withSignals(parent context.Context, tell func(first bool)) (hard, soft context.Context, stop func()) {
	hard, cancelHard := context.WithCancelCause(parent)
	soft, cancelSoft := context.WithCancelCause(hard)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
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
