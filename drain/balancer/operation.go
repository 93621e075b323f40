package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// Begin implements [Balancer]. What the journal is to know for certain is set here, and
// not by the caller: who records it, when it began, and that nothing was edited yet.
func (l *Local) Begin(ctx context.Context, b Beginning) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.id != "" {
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("operation %s has begun already", l.id)}
	}
	if b.SetAside && (l.options.Caller.UID == 0 || !l.options.Served) { // a caller of the agent may not
		if _, err := l.journal.SetAside(ctx); err != nil {
			return asError(fmt.Errorf("write the journal: %w", err))
		}
	}
	s, err := l.journal.State()
	if err != nil {
		return asError(fmt.Errorf("read the journal: %w", err))
	}
	if had, ok := s.Find(b.Operation.ID); ok && b.Resume && l.mayResume(had, b.Operation) {
		err = l.adopt(ctx, had, b)
	} else {
		err = l.beginAnew(ctx, b)
	}
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	l.begun = true
	return nil
}

// mayResume reports whether the caller may resume an operation of the journal. Users may resume their
// own. Root may resume that of the user whose settings it has accepted, which op.Recorder names:
// another user may have begun an operation with the same ID.
func (l *Local) mayResume(had, op journal.Operation) bool {
	return had.Kind == op.Kind && (l.isOwn(had) || l.options.Caller.UID == 0 && op.Recorder.IsSame(had.Recorder))
}

// adopt takes over an operation after its connection broke or its process crashed.
func (l *Local) adopt(ctx context.Context, had journal.Operation, b Beginning) error {
	b.Operation.Recorder = &l.options.Caller
	if err := l.checkHistory(had.ID); err != nil {
		return err
	}
	err := l.update(ctx, "resume", func(s *journal.State) error {
		err := s.Resume(b.Operation)
		l.keepOwn(s)
		return err
	})
	if err != nil {
		return err
	}
	l.id, l.adopted = had.ID, true
	return l.continueHistory(b.Lines)
}

// checkHistory refuses to append to the history of another user, unless the caller is root.
func (l *Local) checkHistory(id string) error {
	h, err := l.journal.Read(id)
	if err == nil && !l.options.Caller.Controls(h.Recorder) {
		return refusal("operation %s was begun before: who began it can resume it, and root can", id)
	}
	return nil
}

// continueHistory appends to the history of an operation that is resumed. It creates the history if
// the operation crashed before it did.
func (l *Local) continueHistory(lines []json.RawMessage) error {
	err := l.journal.Create(l.id, l.options.Caller, lines...)
	if errors.Is(err, fs.ErrExist) {
		err = l.appendHistory(lines)
	}
	return err
}

// beginAnew records an operation that is not in the journal yet.
func (l *Local) beginAnew(ctx context.Context, b Beginning) error {
	caller := l.options.Caller
	op := b.Operation
	op.Recorder, op.Began = &caller, time.Now()
	op.Result, op.Ended, op.Open, op.NotDrained = "", time.Time{}, 0, nil
	op.Conf, _ = l.confPath(l.find(ctx)) // an operation that finds no nginx edits nothing
	known := l.journal.HasHistory(op.ID)
	switch {
	case b.Resume && known:
		if err := l.checkHistory(op.ID); err != nil {
			return err
		}
	case known && caller.UID != 0:
		return refusal("operation %s was begun before", op.ID)
	}
	spare, renamed := "", false
	err := l.update(ctx, "begin", func(s *journal.State) error {
		spare = journal.NewID(op.Began, s.LastID)
		if _, taken := s.Find(op.ID); taken {
			// Somebody has seen the ID on another LB, or in a lock. It is root's to use.
			if caller.UID != 0 {
				return refusal("operation %s was begun before: who began it can resume it, and root can", op.ID)
			}
			if err := s.Rename(op.ID, spare); err != nil {
				return err
			}
			renamed = true
		}
		if err := journal.CheckID(op.ID, op.Began, s.LastID, b.Resume && (known || caller.UID == 0)); err != nil {
			return refusal("%w", err)
		}
		for i, o := range s.Operations {
			if o.Conf != "" && !isOtherConf(o.Conf, op.Conf) {
				s.Operations[i].Conf = op.Conf // another name of it, or the one before it has moved
			}
		}
		if err := s.Begin(op); err != nil {
			return err
		}
		// Noted before it is written: what fails in the middle is ended all the same.
		l.id = op.ID
		return nil
	})
	if err == nil && b.Resume && !renamed {
		return l.continueHistory(b.Lines)
	}
	if err == nil && caller.UID == 0 {
		err = l.journal.Rename(op.ID, spare)
	}
	if err == nil {
		err = l.effect("journal: new history", func() error { return l.journal.Create(op.ID, caller, b.Lines...) })
	}
	return err
}

// ofConf returns what a journal has of one configuration.
func ofConf(s journal.State, conf string) journal.State {
	return s.WithoutConf(func(other string) bool { return isOtherConf(other, conf) })
}

// isOtherConf reports whether a configuration is that of another nginx than conf. One that is not there
// any more has moved to conf.
func isOtherConf(other, conf string) bool {
	a, err := nginx.RealPath(other)
	b, _ := nginx.RealPath(conf)
	return other != conf && !errors.Is(err, fs.ErrNotExist) && (err != nil || a != b)
}

// isOwn tells whether the caller has recorded an operation.
func (l *Local) isOwn(op journal.Operation) bool {
	caller := l.options.Caller
	return op.Recorder != nil && op.Recorder.UID == caller.UID || op.Recorder == nil && caller.UID == 0
}

// updateOwn changes the journal's state on behalf of the operation that has begun here, if
// that is still in it, and still the caller's.
func (l *Local) updateOwn(ctx context.Context, what string, change func(*journal.State) error) error {
	return l.update(ctx, what, func(s *journal.State) error {
		if err := l.checkOwn(s); err != nil {
			return err
		}
		if err := change(s); err != nil {
			return err
		}
		l.keepOwn(s)
		return nil
	})
}

// keepOwn keeps what the operation writes to the journal, for [Local.ownState].
func (l *Local) keepOwn(s *journal.State) {
	l.own = journal.State{Operations: slices.Clone(s.Operations), Marks: slices.Clone(s.Marks)}
}

// ownState returns the state of the journal. If somebody has removed the journal, it returns the
// state that this operation wrote last, so that the operation can still be undone.
func (l *Local) ownState() (journal.State, error) {
	s, err := l.journal.State()
	if err != nil {
		return s, fmt.Errorf("read the journal: %w", err)
	}
	op, found := s.Find(l.id)
	if !found {
		s = l.own
		op, found = s.Find(l.id)
	}
	if !found || !l.isOwn(op) || op.Result != "" {
		return s, refusal("operation %s is not under way here", l.id)
	}
	return s, nil
}

func (l *Local) checkOwn(s *journal.State) error {
	if op, ok := s.Find(l.id); !ok || !l.isOwn(op) {
		return fmt.Errorf("%w: another process has removed %s", journal.ErrGone, l.journal.Dir)
	}
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
	if err == nil {
		err = l.checkOwn(&s)
	}
	if err == nil && r.Progress != nil {
		err = l.updateOwn(ctx, "progress", func(s *journal.State) error { return s.Record(l.id, r.Progress) })
	}
	if err == nil {
		err = l.appendHistory(r.Lines)
	}
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	return nil
}

// End implements [Balancer].
func (l *Local) End(ctx context.Context, e journal.Ending) error {
	l.serial.Lock()
	defer l.serial.Unlock()
	if l.id == "" {
		l.unlock()
		return errNotBegun()
	}
	// First: an edit that nobody has loaded does not outlast its operation.
	l.discardStaged()
	st := l.standing(ctx)
	err := l.updateOwn(ctx, "end", func(s *journal.State) error {
		e.At, e.By, e.Supersede = time.Now(), l.options.Caller, l.mayReplace(s, e.Supersede)
		e.Down, e.Locked = l.keptDown(s, st), l.lockedOf(s)
		return s.End(l.id, e)
	})
	if err == nil {
		err = l.appendHistory(e.Lines)
	}
	l.unlockConfiguration()
	l.unlock()
	if err != nil {
		return asError(fmt.Errorf("write the journal: %w", err))
	}
	l.begun, l.needsLoad, l.own = false, false, journal.State{}
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
		return ok && !l.options.Caller.Controls(op.Recorder)
	})
}

// A standing is what the configuration says of servers, where it can be read.
type standing struct {
	found, down []journal.Server
	whole       bool // all of it could be read
}

// standing reads the configuration for [Local.keptDown].
func (l *Local) standing(ctx context.Context) (st standing) {
	conf, _, err := l.load(context.WithoutCancel(ctx)) // files of this machine, read in a moment
	if err != nil {
		return st
	}
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			st.found = append(st.found, keyOf(s))
			if s.IsDown() {
				st.down = append(st.down, keyOf(s))
			}
		}
	}
	st.whole = len(conf.Skipped) == 0
	return st
}

// keptDown is those of the servers in the journal that are down, or may be: an operation
// that says it put them back has not. An edit that no reload was sent for has put nothing
// back.
func (l *Local) keptDown(s *journal.State, st standing) (kept []journal.Server) {
	isGone := func(server journal.Server) bool { return st.whole && !slices.Contains(st.found, server) }
	note := func(server journal.Server) {
		if slices.Contains(st.down, server) || !st.whole && !slices.Contains(st.found, server) {
			kept = append(kept, server)
		}
	}
	for _, m := range s.Marks {
		note(m.Server)
	}
	op, _ := s.Find(l.id)
	for _, located := range op.Servers {
		note(located.Server)
	}
	for _, m := range s.Marks {
		if m.Cleared != nil && m.Cleared.Unsent && !isGone(m.Server) {
			kept = append(kept, m.Server)
		}
	}
	return kept
}

// lockedOf is the servers of the operation whose backends are locked here.
func (l *Local) lockedOf(s *journal.State) (locked []journal.Server) {
	op, _ := s.Find(l.id)
	for _, located := range op.Servers {
		a, err := nginx.ParseAddress(located.Address)
		if err == nil && slices.Contains(l.locked, BackendName(nginx.Target{Address: a})) {
			locked = append(locked, located.Server)
		}
	}
	return locked
}

// BackendName is what a target's backend is locked by: its ports and upstreams are one
// backend, and one service.
func BackendName(t nginx.Target) string {
	if t.Unix != "" {
		return "unix:" + t.Unix
	}
	return strings.ToLower(t.Host)
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
		l.discardStaged()
		s, err := l.journal.State()
		l.begun = err == nil && len(s.EditsOf(l.id)) > 0 // without a reload, it can only be ended
		l.needsLoad = false
		l.unlockConfiguration()
	})
}

// undoUnsent undoes the edits of operations that ended before a reload was sent for them,
// as when their agent was killed. Whoever has the lock on the configuration knows that these
// operations do nothing any more. What another process has changed or loaded since stays as
// it is, and so does what cannot be undone: nobody is kept from editing by it.
func (l *Local) undoUnsent(ctx context.Context) error {
	s, err := l.journal.State()
	if err != nil {
		return nil // the edit that follows says so
	}
	for _, op := range s.Operations {
		if err := l.undoUnsentOf(ctx, &s, op.ID); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
	}
	return nil
}

// undoUnsentOf undoes the unsent edits of one operation.
func (l *Local) undoUnsentOf(ctx context.Context, s *journal.State, id string) error {
	edits, undone, made := s.UnsentOf(id), []journal.Edit(nil), []journal.Edit(nil)
	if len(edits) == 0 {
		return nil
	}
	if !l.isLoaded(ctx, edits) {
		var err error
		if undone, made, err = l.undoOurs(ctx, s, edits); err != nil {
			return nil
		}
	}
	return l.update(ctx, "undone", func(now *journal.State) error {
		keepOurs(now, made)
		err := now.Undone(id, undone...)
		if err == nil && len(undone) < len(edits) {
			err = now.Sent(id) // what is left of it stands
		}
		*s = *now
		return err
	})
}

// isLoaded tells whether nginx was loaded after edits that are in their files.
func (l *Local) isLoaded(ctx context.Context, edits []journal.Edit) bool {
	running, err := l.settled(ctx)
	if err != nil {
		return !errors.Is(err, nginx.ErrNotRunning)
	}
	return slices.ContainsFunc(edits, func(e journal.Edit) bool {
		now, err := os.ReadFile(e.Path)
		if err != nil || hash(string(now)) != e.After {
			return false
		}
		at, err := nginx.ChangeTime(e.Path)
		return err == nil && !at.After(running.LoadedAtLatest())
	})
}

// undoOurs undoes edits in files that nobody else has changed since. It returns the edits that are
// undone, and the edits that it made for that.
func (l *Local) undoOurs(ctx context.Context, s *journal.State, edits []journal.Edit) (undone, made []journal.Edit, err error) {
	for left := slices.Clone(edits); len(left) > 0; {
		i := lastIn(left)
		e := left[i]
		left = slices.Delete(left, i, i+1)
		now, err := os.ReadFile(e.Path)
		sha := hash(string(now))
		if err == nil && sha != e.Before && sha != e.After && !s.Ours(e.Path, sha) {
			continue
		}
		if err == nil && sha != e.Before {
			m, err := l.undoEdit(ctx, e)
			if err != nil {
				return undone, made, err
			}
			if m.Path != "" {
				made = append(made, m)
				keepOurs(s, made)
			}
			l.unloaded[e.Path] = journal.FileHashes{After: l.unloaded[e.Path].After} // what nginx has is not known
		}
		undone = append(undone, e)
	}
	return undone, made, nil
}

// discardStaged undoes the edits of the operation that nginx has not loaded. What others have had nginx
// load stays, as after a reload of this operation.
func (l *Local) discardStaged() {
	if l.editLock == nil {
		return
	}
	s, err := l.journal.State()
	if err != nil {
		return
	}
	if edits := s.UnsentOf(l.id); len(edits) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), editWait)
		defer cancel()
		if !l.noteLoadByOthers(ctx) {
			_, _, _ = l.undo(ctx, edits) // what cannot be undone stays in the journal
		}
		l.needsLoad = false
	}
}
