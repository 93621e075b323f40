package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
)

// pending finds files that were changed on disk after the running generation
// was loaded: a reload would put somebody's unfinished work live. What an
// unfinished drainctl has written is not somebody else's.
func (r *run) pending(ctx context.Context, part *LBPlan, running nginx.Running) ([]Finding, []string, error) {
	// What somebody edits and loads in one command line is not pending.
	changed, err := changedSince(ctx, part, running.LoadedAtLatest())
	if err != nil {
		return nil, nil, err
	}
	ledger := part.Ledger
	if len(changed) > 0 {
		// Another operator's drainctl may have announced an edit and made it
		// since the journal was read, and be about to reload.
		if fresh, err := part.LB.journal(r.req).readLedger(ctx); err == nil {
			ledger = fresh
		}
	}
	var names, future []string
	for _, c := range changed {
		text := fmt.Sprintf("%s (%s)", c.file.Path, c.at.Format("2006-01-02 15:04:05"))
		switch {
		case ledger.Ours(c.file.Path, sha(c.file.Src)), r.wrote(c.file.Path, sha(c.file.Src)):
		case c.at.After(running.Now):
			future = append(future, text)
		default:
			names = append(names, text)
		}
	}
	var warnings []string
	if len(future) > 0 {
		warnings = append(warnings, fmt.Sprintf("the clock of %s was set back: whether nginx has loaded these files cannot be told: %s", part.LB.Host.Name(), strings.Join(future, ", ")))
	}
	if len(names) == 0 {
		return nil, warnings, nil
	}
	text := fmt.Sprintf("changed on disk after nginx was last loaded (%s), so a reload would put it live: %s",
		running.Loaded().Format("2006-01-02 15:04:05"), strings.Join(names, ", "))
	if r.req.Allow.Pending {
		return nil, append(warnings, text), nil
	}
	return []Finding{{Kind: Refused, Text: text, Override: "--accept-pending"}}, warnings, nil
}

// wrote tells whether a file with this hash is as this run found it or left it.
func (r *run) wrote(path, sha string) bool {
	return slices.ContainsFunc(r.edits, func(e *Edited) bool { return e.Path == path && (e.Before == sha || e.After == sha) })
}

// A changedFile is a configuration file and when it was last changed.
type changedFile struct {
	file *nginx.File
	at   time.Time
}

// changedSince is the configuration files whose content or attributes were
// changed after the given time.
func changedSince(ctx context.Context, part *LBPlan, since time.Time) ([]changedFile, error) {
	var changed []changedFile
	for _, f := range part.Conf.Files {
		info, err := part.LB.Host.Stat(ctx, f.Path)
		if err != nil {
			return nil, err
		}
		// A rename into place leaves the old mtime, and chmod a new ctime: a
		// file is new to nginx when its content is, or when it came here.
		if at := info.Change; at.After(since) {
			changed = append(changed, changedFile{f, at})
		}
	}
	return changed, nil
}

// A driftError says that somebody took the down away while the run waited.
type driftError struct{ text string }

func (e *driftError) Error() string { return e.text }

// A watch looks, during the wait, whether nginx still serves what this run has
// it serve.
type watch struct {
	step    *closeStep
	every   time.Duration
	last    time.Time
	seen    map[*closing]map[string]time.Time // the files' ctimes at the last look
	strikes int
}

func newWatch(step *closeStep, every time.Duration) *watch {
	return &watch{step: step, every: every, seen: map[*closing]map[string]time.Time{}}
}

// maxStrikes bounds how many looks in a row may fail: somebody who replaces a
// file not atomically leaves it half written for a moment.
const maxStrikes = 3

// look looks if it is time to, or if it must. The error is a *driftError, or
// that it could not look several times in a row.
func (w *watch) look(ctx context.Context, must bool) error {
	if !must && time.Since(w.last) < w.every {
		return nil
	}
	w.last = time.Now()
	for _, c := range w.step.lbs {
		err := w.lookAt(ctx, c)
		var drift *driftError
		switch {
		case err == nil:
			w.strikes = 0
		case errors.As(err, &drift), ctx.Err() != nil:
			return err
		default:
			// A look that failed is not a look: the last one before the stop
			// must have been one.
			if w.strikes++; w.strikes >= maxStrikes || must {
				return fmt.Errorf("whether nginx still keeps requests away could not be seen: %w", err)
			}
		}
	}
	return nil
}

// overlap is how long the workers of two generations may serve side by side: as long as
// an earlier one takes to read that it is to end.
const overlap = 5 * time.Second

// settled is what runs, once one generation serves alone. During a reload two do, and
// when the later one was started is not known before. A worker that has crashed and was
// replaced looks like that too, but for good.
func (w *watch) settled(ctx context.Context, c *closing) (nginx.Running, error) {
	for began := time.Now(); ; {
		now, err := c.lb.binary().Processes(ctx, c.after.Master.PID)
		if errors.Is(err, nginx.ErrNotRunning) {
			// Restarted, or upgraded: another master may serve.
			now, err = c.lb.running(ctx, c.part.Conf)
		}
		if err != nil || !now.Started(c.after) || now.Replaced(c.after) || time.Since(began) > overlap {
			return now, err
		}
		if err := sleep(ctx, settleInterval); err != nil {
			return now, err
		}
	}
}

func (w *watch) lookAt(ctx context.Context, c *closing) error {
	now, err := w.settled(ctx, c)
	if err != nil {
		return err
	}
	files, err := w.times(ctx, c)
	if err != nil {
		return err
	}
	reloaded := len(now.Serving()) > 0 && now.Started(c.after)
	if !reloaded && w.seen[c] != nil && sameTimes(w.seen[c], files) {
		return nil
	}
	// What the guards say now is about a drain that has long begun.
	part, _, err := w.step.r.plan.reread(ctx, c.part, Drain)
	var gone *goneError
	switch {
	case errors.As(err, &gone):
		return &driftError{fmt.Sprintf("somebody took the server away: %v", gone)}
	case err != nil:
		return err
	case len(part.Edits) > 0:
		return &driftError{fmt.Sprintf("somebody took down away from the configuration%s: %s", andReloaded(reloaded), places(part, edited(part)))}
	}
	for name, at := range files {
		if reloaded && at.After(now.LoadedAtLatest()) {
			return &driftError{fmt.Sprintf("somebody reloaded nginx and then changed %s: what nginx has loaded is not known", name)}
		}
	}
	c.part, c.after, w.seen[c] = part, now, files
	return nil
}

func andReloaded(reloaded bool) string {
	if reloaded {
		return ", and nginx was reloaded"
	}
	return ""
}

// edited is the servers that a plan edits.
func edited(part *LBPlan) []*nginx.Server {
	var servers []*nginx.Server
	for _, e := range part.Edits {
		servers = append(servers, e.Server)
	}
	return servers
}

// times is when the files with the target's servers were last changed.
func (w *watch) times(ctx context.Context, c *closing) (map[string]time.Time, error) {
	files := map[string]time.Time{}
	for _, s := range c.part.Servers {
		if _, ok := files[s.File.Path]; ok {
			continue
		}
		info, err := c.lb.Host.Stat(ctx, s.File.Path)
		if err != nil {
			return nil, err
		}
		files[s.File.Path] = info.Change
	}
	return files, nil
}

func sameTimes(a, b map[string]time.Time) bool {
	for name, t := range a {
		if u, ok := b[name]; !ok || !t.Equal(u) {
			return false
		}
	}
	return len(a) == len(b)
}
