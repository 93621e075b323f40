package balancer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// Begin implements [Balancer]. What the journal is to know for certain is set here, and
// not by the caller: who records it, when it began, and that nothing was edited yet.
func (l *Local) Begin(ctx context.Context, b Beginning) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.id != "" && l.id != b.Operation.ID {
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("operation %s has begun already", l.id)}
	}
	if b.SetAside && (l.options.Caller.UID == 0 || !l.options.Served) { // a caller of the agent may not
		if _, err := l.journal.SetAside(ctx); err != nil {
			return asError(fmt.Errorf("write the journal: %w", err))
		}
	}
	caller := l.options.Caller
	op := b.Operation
	op.Recorder, op.Began, op.Edits = &caller, time.Now(), nil
	op.Result, op.Ended, op.Open, op.NotDrained = "", time.Time{}, 0, nil
	adopted := false
	err := l.update(ctx, "begin", func(s *journal.State) error {
		had, ok := s.Find(op.ID)
		if !ok {
			if err := journal.CheckNewID(op.ID, op.Began, s.LastID); err != nil {
				return &Error{Code: CodeRefused, Message: err.Error(), cause: err}
			}
			// Noted before it is written: what fails in the middle is ended all the same.
			l.id = op.ID
			return s.Begin(op)
		}
		if caller.UID != 0 && (had.Recorder == nil || had.Recorder.UID != caller.UID) {
			return &Error{Code: CodeRefused, Message: fmt.Sprintf("operation %s was begun by another user", op.ID)}
		}
		// Adopted after a broken connection: the reload may have been sent.
		l.id, adopted, l.edits, l.sent = op.ID, true, slices.Clone(had.Edits), len(had.Edits) > 0
		l.needsReload, l.sentEdits = l.sent, len(had.Edits)
		return nil
	})
	if err == nil && !adopted {
		err = l.effect("journal: new history", func() error { return l.journal.Create(op.ID, caller, bytesOf(b.Lines)...) })
	}
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	l.begun = true
	return nil
}

// errNotBegun refuses what belongs to an operation while none has begun here.
func errNotBegun() error {
	return &Error{Code: CodeRefused, Message: "no operation has begun"}
}

// Record implements [Balancer].
func (l *Local) Record(ctx context.Context, r Recorded) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.id == "" {
		return errNotBegun()
	}
	s, err := l.journal.State()
	if _, ok := s.Find(l.id); err == nil && !ok {
		err = fmt.Errorf("%w: another process has removed %s", journal.ErrGone, l.journal.Dir)
	}
	if err == nil && (len(r.Released) > 0 || r.Progress != nil) {
		err = l.update(ctx, "progress", func(s *journal.State) error { return s.Record(l.id, r.Released, r.Progress) })
	}
	if err == nil {
		err = l.appendHistory(r.Lines)
	}
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	return nil
}

func bytesOf(lines Lines) [][]byte {
	all := make([][]byte, len(lines))
	for i, line := range lines {
		all[i] = line
	}
	return all
}

// End implements [Balancer].
func (l *Local) End(ctx context.Context, e Ending) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.id == "" {
		l.unlock()
		return errNotBegun()
	}
	err := l.update(ctx, "end", func(s *journal.State) error {
		return s.End(l.id, journal.Ending{
			Result: e.Result, Open: e.Open, NotDrained: e.NotDrained, At: time.Now(),
			Supersede: l.mayReplace(s, e.Supersede), Down: l.stillDown(ctx, s, e.Result),
		})
	})
	if err == nil {
		err = l.appendHistory(e.Lines)
	}
	l.unlockConfiguration()
	l.unlock()
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	l.begun = false
	if s, err := l.journal.State(); err == nil {
		// A history that is too long does no harm.
		_ = l.journal.Prune(func(id string) bool {
			_, ok := s.Find(id)
			return ok
		})
	}
	return nil
}

// mayReplace is those of the operations that the caller may replace: root may any, others
// their own.
func (l *Local) mayReplace(s *journal.State, ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		op, ok := s.Find(id)
		caller := l.options.Caller
		return ok && caller.UID != 0 && (op.Recorder == nil || op.Recorder.UID != caller.UID)
	})
}

// stillDown is the servers that drainctl has marked and that the configuration has down:
// an operation that says it put them back has not. Where the configuration cannot be
// read, all that are marked are.
func (l *Local) stillDown(ctx context.Context, s *journal.State, r journal.Result) (down []journal.Server) {
	if op, _ := s.Find(l.id); r != journal.ResultDone || op.Kind == journal.KindDrain || len(s.Marks) == 0 {
		return nil
	}
	conf, _, err := l.load(context.WithoutCancel(ctx)) // files of this machine, read in a moment
	for _, m := range s.Marks {
		if err != nil || slices.ContainsFunc(conf.Upstreams, func(u *nginx.Upstream) bool {
			return slices.ContainsFunc(u.Servers, func(s *nginx.Server) bool { return keyOf(s) == m.Server && s.IsDown() })
		}) {
			down = append(down, m.Server)
		}
	}
	return down
}

// stagedLimit is how long an operation may keep others from editing before nginx is told
// to load its own edit. It is shorter than editWait, so that those who wait get their turn.
const stagedLimit = 90 * time.Second

// limitStaged has the lock on the configuration end in time, with the edits that nobody
// has loaded.
func (l *Local) limitStaged() *time.Timer {
	lock := l.editLock
	return time.AfterFunc(stagedLimit, func() {
		l.serial.Lock()
		defer l.serial.Unlock()
		if l.editLock != lock {
			return
		}
		l.begun = l.sent // without a reload, it can only be ended
		l.discardStaged()
		l.unlockConfiguration()
	})
}

// discardStaged undoes the edits of the operation that no reload was sent for.
func (l *Local) discardStaged() {
	if len(l.edits) <= l.sentEdits || l.editLock == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), editWait)
	defer cancel()
	_, _ = l.restoreFiles(ctx, l.sentEdits) // what cannot be undone stays in the journal
	l.needsReload = false
}
