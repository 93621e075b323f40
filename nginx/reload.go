package nginx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// generationInterval is between two looks at the processes during a reload, confirmInterval before
// the look that confirms a success, overlapInterval between two looks at the master's children.
const (
	generationInterval = 20 * time.Millisecond
	confirmInterval    = 2 * time.Millisecond
	overlapInterval    = 5 * time.Millisecond
)

// maxReloads is how often a reload is sent when the processes do not tell whether it worked.
// A machine that is too busy to look at them every few milliseconds may miss the overlap of two
// generations several times.
const maxReloads = 8

// A ReloadError is a reload that nginx accepted and that did not take effect.
type ReloadError struct {
	Reason string
	// Sure reports that the master was seen to load a configuration, to give up and to keep
	// its workers. Otherwise it may still load it.
	Sure bool
}

func (e *ReloadError) Error() string { return e.Reason }

// errUnclear says that the processes do not tell whether a load worked: the workers are others,
// which the master has started for its new configuration or for workers that crashed.
var errUnclear = errors.New("workers crashed during the reload")

// ReloadAndVerify reloads nginx and returns when a later generation of workers serves and no
// earlier worker accepts connections. Before that, no count of connections means anything. A
// reload that does not take effect within limit, or that the master gave up, is a
// *[ReloadError]. Processes alone decide: clients can write into the error log, which only
// explains a failure.
func (b Binary) ReloadAndVerify(ctx context.Context, conf *Config, limit time.Duration) (Running, error) {
	build, _ := b.Build(ctx) // an operator's own command needs no binary here
	found, err := b.Running(ctx, conf.PIDPath(build))
	if err != nil {
		return Running{}, err
	}
	logs := b.markLogs(conf.LogPaths(build), found.Master.PID)
	after, err := Running{}, errUnclear
	for n := 0; n < maxReloads && errors.Is(err, errUnclear); n++ {
		after, err = b.reloadOnce(ctx, found.Master, limit)
	}
	var failed *ReloadError
	switch {
	case errors.Is(err, errUnclear):
		return after, &ReloadError{fmt.Sprintf("it is not known which configuration nginx serves: in each of %d reloads its workers crashed, or the machine was too slow to see", maxReloads), false}
	case errors.As(err, &failed):
		if line := logs.loadFailure(ctx, found.Master.PID); line != "" {
			failed.Reason += "; its error log says: " + line
		} else if err := b.Test(ctx); failed.Sure && err != nil {
			failed.Reason += "; " + err.Error() // its log is elsewhere
		}
	}
	return after, err
}

// reloadOnce sends one reload and waits for its effect. The error is errUnclear when workers
// have crashed meanwhile, and the rest does not tell whether the load worked.
func (b Binary) reloadOnce(ctx context.Context, master Process, limit time.Duration) (Running, error) {
	before, idle, err := b.idleMaster(ctx, master.PID, limit)
	if err != nil {
		return before.Running, err
	}
	if !idle {
		if err := b.Reload(ctx, master); err != nil {
			return before.Running, err
		}
		return before.Running, &ReloadError{fmt.Sprintf("nginx was busy for %s, with another reload for example; it loads the configuration after that", limit), false}
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	var loaded atomic.Bool
	sent := make(chan error, 1)
	beside.Go(func() { b.watchOverlap(ctx, before, &loaded) })
	beside.Go(func() { sent <- b.Reload(ctx, master) })
	return b.follow(ctx, before, &loaded, sent, limit)
}

// watchOverlap sets loaded when the master has a further child while it has all that it had
// before: it has loaded a configuration. A generation overlaps with the next for at least 100 ms
// (ngx_master_process_cycle).
func (b Binary) watchOverlap(ctx context.Context, before look, loaded *atomic.Bool) {
	var last []child
	for ctx.Err() == nil {
		now, err := b.childrenOf(before.Master.PID)
		if err != nil {
			return // follow notices what there is to notice
		}
		if before.overlaps(last, now) {
			loaded.Store(true)
			return
		}
		last = now
		select {
		case <-time.After(overlapInterval):
		case <-ctx.Done():
		}
	}
}

// overlaps reports whether two looks in a row at the children of the master prove that it has
// loaded a configuration since l: they show a further child of nginx's, and every child of l that
// the master would replace after a crash is still there. The master starts a replacement only
// after it has waited for the crashed child. One look is not atomic and may list both, so the
// further child must be in both looks.
func (l look) overlaps(last, now []child) bool {
	has := func(children []child, pid int) bool {
		return slices.ContainsFunc(children, func(c child) bool { return c.pid == pid })
	}
	further := slices.ContainsFunc(now, func(c child) bool {
		return c.kind == ofNginx && !has(l.listed, c.pid) && !l.isTitled(c.pid) && has(last, c.pid)
	})
	gone := slices.ContainsFunc(l.replaceable(), func(pid int) bool { return !has(now, pid) })
	return further && !gone
}

func (l look) isTitled(pid int) bool {
	return slices.ContainsFunc(l.children, func(p Process) bool { return p.PID == pid })
}

// replaceable returns the PIDs of the children that the master would replace after a crash: all
// of nginx's but exiting workers and the cache loader. A child that has lost its title is ending,
// and may be any of nginx's.
func (l look) replaceable() (pids []int) {
	for _, p := range l.children {
		if !p.IsExiting() && !strings.HasPrefix(p.Title, "nginx: cache loader") {
			pids = append(pids, p.PID)
		}
	}
	for _, c := range l.listed {
		if l.isEnding(c) {
			pids = append(pids, c.pid)
		}
	}
	return pids
}

// isEnding reports whether a child of the list has no title, or had none any more right after.
func (l look) isEnding(c child) bool { return c.kind != foreign && !l.isTitled(c.pid) }

// follow looks at nginx until the effect of a reload is known.
func (b Binary) follow(ctx context.Context, before look, overlapped *atomic.Bool, sent <-chan error, limit time.Duration) (Running, error) {
	var last look
	var end time.Time // known once the command has ended
	for {
		now, err := b.look(before.Master.PID)
		if err != nil {
			return now.Running, err
		}
		loaded, pause := overlapped.Load(), generationInterval
		replaced := loaded && now.Replaced(before.Running) && !now.isStarting(before.Running)
		switch {
		case end.IsZero():
		case replaced && now.confirms(last):
			return now.Running, nil
		case !loaded && now.confirms(last) && now.ended(before) && last.ended(before):
			return now.Running, now.failure(before)
		case time.Now().After(end):
			return now.Running, now.timeout(before.Running, loaded, limit)
		case replaced:
			pause = confirmInterval
		}
		last = now
		select {
		case err := <-sent:
			if err != nil {
				return now.Running, err
			}
			sent, end = nil, time.Now().Add(limit)
		case <-time.After(pause):
		case <-ctx.Done():
			return now.Running, context.Cause(ctx)
		}
	}
}

// maxEndingLooks is how often a child that is ending is waited for, as it is gone in a moment.
const maxEndingLooks = 10

// idleMaster waits until the master does nothing and no worker is being set up, and looks at it and
// its workers then: a generation that comes later has read its files later, and the master has no
// worker to replace. idle is false if the master is still busy after limit.
func (b Binary) idleMaster(ctx context.Context, master int, limit time.Duration) (now look, idle bool, err error) {
	began := time.Now()
	for looks := 0; ; looks++ {
		if now, err = b.look(master); err != nil {
			return now, false, err
		}
		after, err := b.masterState(master)
		if err != nil {
			return now, false, err
		}
		quiet := now.idle && after.idle && now.sleeps == after.sleeps && !now.isStarting(Running{})
		if quiet && (looks >= maxEndingLooks || !slices.ContainsFunc(now.listed, now.isEnding)) {
			return now, true, nil
		}
		if time.Since(began) > limit {
			return now, false, nil
		}
		select {
		case <-time.After(generationInterval):
		case <-ctx.Done():
			return now, false, context.Cause(ctx)
		}
	}
}

// Settled looks at a master and its workers once the master is idle: no load is under way then. It
// fails if the master is still busy after limit.
func (b Binary) Settled(ctx context.Context, master int, limit time.Duration) (Running, error) {
	now, idle, err := b.idleMaster(ctx, master, limit)
	if err == nil && !idle {
		err = fmt.Errorf("nginx was busy for %s, with a reload for example", limit)
	}
	return now.Running, err
}

// A look is the state of the master and, right after it, the list of its children, and then the
// children that nginx has titled.
type look struct {
	masterState
	Running
	listed []child
}

func (b Binary) look(master int) (l look, err error) {
	if l.masterState, err = b.masterState(master); err != nil {
		return l, err
	}
	if l.listed, err = b.childrenOf(master); err != nil {
		return l, err
	}
	l.Running, err = b.Processes(master)
	return l, err
}

// confirms reports whether the same workers serve as in the look before. One look is not atomic, so
// that a result takes two.
func (l look) confirms(last look) bool {
	return slices.EqualFunc(l.Serving(), last.Serving(), Process.same)
}

// ended reports whether the master has loaded a configuration since before, or has tried to,
// and is done.
func (l look) ended(before look) bool {
	return l.idle && l.activity != before.activity && !l.isStarting(before.Running)
}

// failure is the error of a load that has ended and whose workers were not seen.
func (l look) failure(before look) error {
	if l.confirms(before) {
		return &ReloadError{"nginx accepted the reload but could not load the configuration, and keeps the earlier one", true}
	}
	return errUnclear
}

// timeout is the error of a reload whose time is over.
func (l look) timeout(before Running, loaded bool, limit time.Duration) *ReloadError {
	reason := fmt.Sprintf("no new generation of workers was seen within %s of the reload", limit)
	switch {
	case loaded && l.isStarting(before):
		reason = fmt.Sprintf("workers of the new generation are still being set up %s after the reload", limit)
	case loaded:
		reason = fmt.Sprintf("workers of the earlier generation still accept connections %s after the reload", limit)
	case !l.idle:
		reason = fmt.Sprintf("nginx is still loading the configuration %s after the reload", limit)
	}
	return &ReloadError{reason, false}
}
