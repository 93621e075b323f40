package drain

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
)

// A lookout looks, during the wait, whether the LBs still serve what this
// operation has them serve.
type lookout struct {
	*batch
	mu      sync.Mutex
	last    time.Time
	failing time.Time // since when looks have failed; zero: the last one was good
	since   time.Time // the first look that found buffered requests
	told    bool      // that there are some
	gaveUp  bool      // on without them, and said so
}

func newLookout(b *batch) *lookout {
	// The last step has just seen what runs.
	return &lookout{batch: b, last: time.Now()}
}

// failingIntervals is for how many intervals looks may fail: somebody who replaces
// a file not atomically leaves it half written for a moment, and a restart of nginx
// takes its time.
const failingIntervals = 3

// bufferedGrace is for how long, from the first that is found on, a wait goes on
// for requests that may yet be sent to the backend. It is not longer because a
// request whose answer nginx itself sends, slowly, looks the same and may take
// for ever.
const bufferedGrace = 10 * time.Second

// look checks that the LBs keep requests away, at most once per Interval. With must or buffered it
// always checks; buffered asks for requests that earlier workers hold, too. If hold is true, the
// reading beside it does not count: there are such requests, or the check failed.
func (l *lookout) look(ctx context.Context, must, buffered bool) (hold bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !must && !buffered && time.Since(l.last) < l.o.plan.Spec.Interval {
		return false, nil
	}
	l.last = time.Now()
	seen, err := fleet.Gather(ctx, l.o.lbs, func(ctx context.Context, lb *fleet.LB) (balancer.Watched, error) {
		targets := l.part(lb).Found(targetsOf(rowsOn(lb.Name, l.rows)))
		if len(targets) == 0 {
			return balancer.Watched{}, nil
		}
		w, err := lb.Watch(ctx, balancer.WatchRequest{Targets: targets, Upstreams: l.o.plan.Spec.Upstreams, Buffered: buffered})
		if err == nil && w.Drift != nil {
			err = &driftError{*w.Drift}
		}
		return w, err
	})
	if err != nil {
		return true, l.failed(ctx, err)
	}
	l.failing = time.Time{}
	held := 0
	for _, w := range seen {
		held += max(0, w.Buffered)
	}
	return buffered && l.buffered(held), nil
}

// failed judges a look that failed.
func (l *lookout) failed(ctx context.Context, err error) error {
	var drift *driftError
	if errors.As(err, &drift) || ctx.Err() != nil {
		return err
	}
	if l.failing.IsZero() {
		l.failing = time.Now()
	}
	if time.Since(l.failing) < failingIntervals*l.o.plan.Spec.Interval {
		return nil
	}
	return fmt.Errorf("whether nginx still keeps requests away could not be seen: %w", err)
}

// buffered tells whether to wait for requests that earlier workers hold. Where
// that cannot be known, the counter alone has to do.
func (l *lookout) buffered(held int) bool {
	if held > 0 && l.since.IsZero() {
		l.since = time.Now()
	}
	e := &event.Buffered{Header: event.Header{Step: plan.StepWait, Direction: plan.Forward}, Requests: held, Limit: spec.InSeconds(bufferedGrace)}
	switch {
	case held == 0, l.gaveUp:
		return false
	case time.Since(l.since) > bufferedGrace:
		l.gaveUp, e.GaveUp = true, true
		l.o.emit(e)
		return false
	}
	if !l.told {
		l.told = true
		l.o.emit(e)
	}
	return true
}

// A driftError says that another process let requests reach the servers again.
type driftError struct{ balancer.Drift }

func (e *driftError) Error() string {
	where := strings.Join(e.Places, ", ")
	switch e.Reason {
	case balancer.DriftServerRemoved:
		return "the server was removed from the configuration by another process: " + where
	case balancer.DriftUnknown:
		return fmt.Sprintf("another process reloaded nginx and then changed %s: what nginx has loaded is not known", where)
	}
	reloaded := ""
	if e.Reloaded {
		reloaded = ", and nginx was reloaded"
	}
	return fmt.Sprintf("down was removed from the configuration by another process%s: %s", reloaded, where)
}
