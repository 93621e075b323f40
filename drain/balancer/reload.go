package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// reloadGap is how long after the last edit a reload is sent at the earliest.
// The start of a worker is known to a hundredth of a second, and in relation to
// the clock that dates files a little less exactly. Without the gap, a later run
// could take what these workers have loaded for newer than they are.
const reloadGap = 100 * time.Millisecond

// maxReload bounds how long a caller may have a reload waited for: nobody else edits
// meanwhile.
const maxReload = time.Hour

// Reload implements [Balancer].
func (l *Local) Reload(ctx context.Context, r ReloadRequest) (Generation, error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	if !l.begun || !l.needsReload {
		return Generation{}, &Error{Code: CodeRefused, Message: "reload nginx: no edit of this operation waits for it"}
	}
	if err := l.reload(ctx, min(r.Timeout, maxReload)); err != nil {
		return Generation{}, asError(err)
	}
	l.needsReload = false
	l.unlockConfiguration()
	return *generation(l.after), nil
}

func (l *Local) reload(ctx context.Context, limit time.Duration) error {
	if err := l.lockConfiguration(ctx); err != nil {
		return err
	}
	conf, _, err := l.load(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, time.Until(l.wrote.Add(reloadGap))); err != nil {
		return err
	}
	if len(l.edits) > l.sentEdits {
		// Noted first: what was sent is not undone by whoever finds it.
		if err := l.updateOwn(ctx, "reload", func(s *journal.State) error { return s.Sent(l.id) }); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
	}
	l.sent, l.sentEdits = true, len(l.edits)
	known := maps.Clone(l.unloaded)
	l.mayHaveLoaded()
	var after nginx.Running
	l.trace(l.binary().ReloadArgs())
	err = l.effect("nginx -s reload", func() (err error) {
		after, err = l.binary().ReloadAndVerify(ctx, conf, limit)
		return err
	})
	var ce *nginx.CommandError
	l.refused = errors.As(err, &ce)
	var failure *nginx.ReloadError
	switch {
	case err == nil:
		l.after, l.seen, l.unloaded = after, nil, map[string]journal.FileHashes{}
	case errors.As(err, &failure) && failure.Sure:
		l.unloaded = known // it goes on with what it had loaded before
	}
	return err
}

// Restore implements [Balancer]. It begins with the files and ends with a
// generation that has loaded them.
func (l *Local) Restore(ctx context.Context, r ReloadRequest) (Restored, error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	done, err := l.restore(ctx, min(r.Timeout, maxReload))
	if err != nil {
		return done, asError(err)
	}
	l.unlockConfiguration()
	return done, nil
}

func (l *Local) restore(ctx context.Context, limit time.Duration) (done Restored, err error) {
	if len(l.edits) == 0 && !l.sent {
		return done, nil
	}
	if err := l.lockConfiguration(ctx); err != nil {
		return done, err
	}
	done.Changed = true
	if done.Notices, err = l.restoreFiles(ctx, 0); err != nil || !l.sent {
		return done, err
	}
	if _, _, err := l.load(ctx); err != nil {
		return done, err
	}
	if err := l.test(ctx); err != nil {
		return done, fmt.Errorf("the files hold nothing of this operation any more, but nginx refuses them as they are now: %w", err)
	}
	done.Notices = append(done.Notices, l.noticesOfPending(ctx)...)
	before, refusedBefore := l.before, l.refused
	err = l.reload(ctx, limit)
	var reload *nginx.ReloadError
	if errors.As(err, &reload) || (refusedBefore && l.refused) {
		now, lookErr := l.now(ctx)
		if lookErr == nil && before.Master.PID != 0 && !now.Started(before) {
			// The generation of before still serves, and whatever the master may
			// load later is the restored configuration.
			done.Notices = append(done.Notices, "nginx does not load its configuration; it continues with the one it had before this operation: "+err.Error())
			err = nil
		}
	}
	if err != nil {
		return done, fmt.Errorf("the files are as before, but nginx was not seen to load them: %w", err)
	}
	l.sent = false
	return done, nil
}

func (l *Local) now(ctx context.Context) (nginx.Running, error) {
	conf, build, err := l.load(ctx)
	if err != nil {
		return nginx.Running{}, err
	}
	return l.running(ctx, conf, build)
}

// noticesOfPending says what else the reload puts live. There is no way back
// without it.
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

// restoreFiles undoes the operation's edits but for the first keep of them, the
// last first. That the journal cannot be told is a notice: the files come first.
func (l *Local) restoreFiles(ctx context.Context, keep int) (notices []string, err error) {
	if len(l.edits) == keep {
		return nil, nil
	}
	for len(l.edits) > keep {
		e := l.edits[len(l.edits)-1]
		err := l.restoreFile(ctx, e)
		l.wrote = time.Now()
		if err != nil {
			return nil, fmt.Errorf("restore %s: %w", e.Path, err)
		}
		l.edits = l.edits[:len(l.edits)-1]
		l.sentEdits = min(l.sentEdits, len(l.edits))
	}
	if err := l.updateOwn(context.WithoutCancel(ctx), "restored", func(s *journal.State) error { return s.Restored(l.id, keep) }); err != nil {
		notices = append(notices, fmt.Sprintf("write the journal: %v", err))
	}
	return notices, nil
}
