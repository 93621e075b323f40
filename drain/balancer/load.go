package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// reloadGap is how long after the last edit a reload is sent at the earliest.
// The start of a worker is known to a hundredth of a second, and in relation to
// the clock that dates files a little less exactly. Without the gap, a later run
// could take what these workers have loaded for newer than they are.
const reloadGap = 100 * time.Millisecond

// maxReload limits the time that a caller may set for a reload. Nobody else can edit in that time.
const maxReload = time.Hour

// Load implements [Balancer].
func (l *Local) Load(ctx context.Context, r LoadRequest) (done Loaded, err error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	if !l.needsLoad {
		return done, refusal("reload nginx: no edit of this operation waits for it")
	}
	refused := l.refused
	if err = l.reload(ctx, min(r.Timeout, maxReload)); err != nil && l.undone {
		done.Notices, err = l.keepsEarlier(ctx, refused, err)
	}
	if err != nil {
		return done, asError(err)
	}
	l.needsLoad = false
	if err := l.noteLoaded(context.WithoutCancel(ctx)); err != nil {
		done.Notices = append(done.Notices, err.Error())
	}
	l.unlockConfiguration()
	if done.Stopped = l.after.Master.PID == 0; done.Stopped {
		done.Notices = append(done.Notices, StoppedText)
		return done, nil
	}
	done.Generation = *generation(l.after)
	return done, nil
}

// keepsEarlier decides on a reload that failed after all edits were undone. The failure does no harm
// if the generation of before the operation still serves: a later reload loads the restored files.
func (l *Local) keepsEarlier(ctx context.Context, refused bool, err error) (notices []string, _ error) {
	var reload *nginx.ReloadError
	if errors.As(err, &reload) || refused && l.refused {
		now, lookErr := l.now(ctx)
		if lookErr == nil && now.Master.PID != 0 && l.original.Master.PID != 0 && !now.Started(l.original) {
			l.serves(now, true)
			return []string{"nginx does not load its configuration; it continues with the one it had before this operation: " + err.Error()}, nil
		}
	}
	return nil, fmt.Errorf("the files are as before, but nginx was not seen to load them: %w", err)
}

func (l *Local) reload(ctx context.Context, limit time.Duration) error {
	if err := l.lockConfiguration(ctx); err != nil {
		return err
	}
	conf, _, err := l.load(ctx)
	if err != nil {
		return err
	}
	if err := remote.Sleep(ctx, time.Until(l.wrote.Add(reloadGap))); err != nil {
		return err
	}
	// Written before the reload: another operation undoes only edits for which no reload was sent.
	if err := l.markSent(ctx); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	known := maps.Clone(l.unloaded)
	l.forgetLoadedText()
	after, err := l.reloadOrLook(ctx, conf, limit)
	var ce *nginx.CommandError
	l.refused = errors.As(err, &ce)
	var failure *nginx.ReloadError
	switch {
	case err == nil:
		l.serves(after, true)
		l.watched, l.unloaded = nil, map[string]journal.FileHashes{}
	case errors.As(err, &failure) && failure.Sure:
		l.unloaded = known // nginx keeps the configuration that it had
	}
	return err
}

// reloadOrLook reloads nginx, or confirms that it is stopped, if that is allowed. It looks after the edit:
// a failover may have started nginx just before it, with the files as they were.
func (l *Local) reloadOrLook(ctx context.Context, conf *nginx.Config, limit time.Duration) (after nginx.Running, err error) {
	for {
		err = l.effect("reload nginx", func() (err error) {
			after, err = l.binary().ReloadAndVerify(ctx, conf, limit)
			return err
		})
		if !l.allowStopped || !errors.Is(err, nginx.ErrNotRunning) {
			return after, err
		}
		if stopped, err := l.isStopped(ctx, conf, limit); stopped || err != nil {
			return nginx.Running{}, err
		}
	}
}

// noteLoaded records that nginx serves the edits of the operation.
func (l *Local) noteLoaded(ctx context.Context) error {
	err := l.updateOwn(ctx, "loaded", func(s *journal.State) error { return s.Loaded(l.id) })
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// markSent records that a reload is about to be sent for all edits of the operation.
func (l *Local) markSent(ctx context.Context) error {
	s, err := l.journal.State()
	if err != nil || len(s.UnsentOf(l.id)) == 0 {
		return err
	}
	return l.updateOwn(ctx, "reload", func(s *journal.State) error { return s.Sent(l.id) })
}

func (l *Local) now(ctx context.Context) (nginx.Running, error) {
	conf, build, err := l.load(ctx)
	if err != nil {
		return nginx.Running{}, err
	}
	return l.runningOrStopped(ctx, conf, build)
}

// noticesOfPending says which changes of others the reload loads too. A rollback cannot avoid it.
func (l *Local) noticesOfPending(ctx context.Context) []string {
	conf, build, err := l.load(ctx)
	if err != nil {
		return nil
	}
	running, err := l.running(ctx, conf, build)
	if err != nil {
		return nil
	}
	files, err := l.pending(ctx, conf, running)
	if err != nil {
		return nil
	}
	var notices []string
	pending, future := PendingText(files)
	for _, text := range []string{future, pending} {
		if text != "" {
			notices = append(notices, text)
		}
	}
	return notices
}
