package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A way is a command that takes an app out of the pool. It is measured beside other ways
// to do the same.
type way struct {
	name    string
	host    *lab.Machine // on which the commands run
	command []string
	back    []string // puts the app back; it is not measured
	took    []time.Duration
}

// takeLimit bounds one drain.
const takeLimit = time.Minute

// take runs the command once.
func (w *way) take(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	began := time.Now()
	if out, err := w.host.Run(ctx, w.command...); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	w.took = append(w.took, time.Since(began))
	return nil
}

// putBack starts the app, puts it back into the pool, and returns when nginx has only
// workers that serve the configuration on disk.
func (w *way) putBack(ctx context.Context, l *lab.Lab, app *lab.Machine) error {
	// Without reset-failed, systemd would refuse to start the app so often.
	const start = "systemctl start " + lab.AppUnit + " && systemctl reset-failed " + lab.AppUnit
	if out, err := app.Run(ctx, "sh", "-c", start); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	health := fmt.Sprintf("http://%s:%d/health", app.Addr, lab.AppPort)
	if err := until(ctx, settleLimit, app.Name+" is healthy", func() (bool, error) {
		_, err := l.LB.Run(ctx, "curl", "-sS", "--fail", "--max-time", "5", health)
		return err == nil, nil
	}); err != nil {
		return err
	}
	if out, err := w.host.Run(ctx, w.back...); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if err := l.LB.ReloadNginx(ctx); err != nil {
		return err
	}
	return until(ctx, settleLimit, "the earlier workers of nginx have ended", func() (bool, error) {
		workers, err := l.LB.Workers(ctx)
		for _, accepts := range workers {
			if !accepts {
				return false, err
			}
		}
		return true, err
	})
}

// inTurn takes an idle app out in each way, one after the other, so that what else the
// machine does falls on all of them alike. The first round, which fills caches, does not
// count.
func inTurn(ctx context.Context, l *lab.Lab, app *lab.Machine, rounds int, ways ...*way) error {
	for round := range rounds + 1 {
		for _, w := range ways {
			if err := w.take(ctx); err != nil {
				return err
			}
			if err := w.putBack(ctx, l, app); err != nil {
				return err
			}
			if round == 0 {
				w.took = nil
			}
		}
	}
	return nil
}

// spread is the median of durations and their range.
func spread(took []time.Duration) string {
	return fmt.Sprintf("%s (%s to %s)", milliseconds(median(took)), milliseconds(slices.Min(took)), milliseconds(slices.Max(took)))
}

// ratio is the median time of a way as a part of that of another.
func (w *way) ratio(to *way) float64 { return median(w.took).Seconds() / median(to.took).Seconds() }
