package nginx

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// How often the workers, and less often the error log, are looked at while a
// reload takes effect.
const (
	generationInterval = 20 * time.Millisecond
	errorLogInterval   = 200 * time.Millisecond
)

// A ReloadError is a reload that nginx accepted and that did not take effect.
type ReloadError struct {
	Reason string
	// Sure tells that the master itself said that it gave up. Otherwise it may
	// still be loading.
	Sure bool
}

func (e *ReloadError) Error() string { return e.Reason }

// ReloadAndVerify reloads nginx and returns when a later generation of workers
// serves and no earlier worker accepts: two looks in a row must see the same new
// workers. Before that, no count of connections means anything. A reload that
// does not take effect within limit, or that the master gave up, is a
// *[ReloadError]; then the earlier generation goes on.
func (b Binary) ReloadAndVerify(ctx context.Context, conf *Config, limit time.Duration) (Running, error) {
	build, _ := b.Build(ctx) // an operator's own command needs no binary here
	before, err := b.Running(ctx, conf.PIDPath(build))
	if err != nil {
		return Running{}, err
	}
	master := before.Master.PID
	logs := markLogs(ctx, conf.LogPaths(build), master)
	if err := b.Reload(ctx); err != nil {
		return Running{}, err
	}
	var last []Process
	for began, checked := time.Now(), time.Now(); ; {
		after, err := b.Processes(master)
		if err != nil {
			return after, err
		}
		seen := after.Serving()
		replaced := after.Replaced(before) && slices.EqualFunc(seen, last, Process.same)
		last = seen
		// A single worker that crashed and was started again looks like a new
		// generation, too: the log tells them apart.
		if replaced || (time.Since(checked) >= errorLogInterval && !after.Started(before)) {
			checked = time.Now()
			if why := logs.loadFailure(ctx, master); why != "" {
				return after, &ReloadError{"nginx accepted the reload but could not load the configuration, and keeps the earlier one: " + why, true}
			}
		}
		switch {
		case replaced:
			return after, nil
		case time.Since(began) <= limit:
		case after.Started(before):
			return after, &ReloadError{fmt.Sprintf("workers of the earlier generation still accept connections %s after the reload", limit), false}
		default:
			return after, &ReloadError{fmt.Sprintf("no new generation of workers was seen within %s of the reload; nginx's error log may say why", limit), false}
		}
		select {
		case <-time.After(generationInterval):
		case <-ctx.Done():
			return after, context.Cause(ctx)
		}
	}
}
