package balancer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// A fileChange is one file's old and new text.
type fileChange struct {
	file    *nginx.File
	now     string
	edits   []nginx.Edit
	splices []journal.Splice
}

// Stage implements [Balancer]. From here to the reload, no other operation edits
// this LB.
func (l *Local) Stage(ctx context.Context, r StageRequest) (a Staged, err error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	wants, err := wantsOf(r)
	if err != nil {
		return a, err
	}
	l.allowStopped = r.AllowStopped
	for server, want := range wants {
		l.out[server] = want == Out
	}
	if r.Wants[0].Want == AsBefore {
		a, err = l.stageBefore(ctx, r.Wants)
	} else {
		a, err = l.stage(ctx, r, wants)
	}
	if err != nil {
		return a, asError(err)
	}
	if l.needsLoad = a.NeedsLoad; !l.needsLoad {
		l.unlockConfiguration()
	}
	return a, nil
}

// wantsOf returns the wanted state of each server. A request for AsBefore has no other wants.
func wantsOf(r StageRequest) (map[journal.Server]Want, error) {
	wants, n, undo := map[journal.Server]Want{}, 0, 0
	for _, w := range r.Wants {
		n += len(w.Servers)
		switch w.Want {
		case Out, Back:
		case AsBefore:
			undo++
		default:
			return nil, refusal("%.40q is nothing that a server can be brought to", w.Want)
		}
		for _, s := range w.Servers {
			if had, ok := wants[s]; ok && had != w.Want {
				return nil, refusal("%.200q in upstream %.200q is wanted %s and %s", s.Address, s.Upstream, had, w.Want)
			}
			wants[s] = w.Want
		}
	}
	switch {
	case n == 0:
		return nil, refusal("no server is named")
	case undo > 0 && undo < len(r.Wants):
		return nil, refusal("what an operation has done is undone in a request of its own")
	}
	return wants, checkNumber("servers", n)
}

// stage edits the files and has nginx test them. If all servers are as wanted already, it checks
// whether nginx has loaded their files.
func (l *Local) stage(ctx context.Context, r StageRequest, wants map[journal.Server]Want) (a Staged, err error) {
	if !l.begun {
		return a, errNotBegun()
	}
	if err := l.lockConfiguration(ctx); err != nil {
		return a, err
	}
	l.undone = false
	conf, build, err := l.load(ctx)
	if err != nil {
		return a, err
	}
	servers, edits, err := l.locate(conf, r, wants)
	if err != nil {
		return a, err
	}
	if err := l.lookBefore(ctx, conf, build); err != nil {
		return a, err
	}
	if a.Notices, err = l.acceptPending(ctx, conf, r.AcceptPending); err != nil {
		return a, err
	}
	changes, err := fileChanges(conf, edits)
	if err != nil {
		return a, &Error{Code: CodeRefused, Message: err.Error(), cause: err}
	}
	if len(changes) == 0 {
		return l.unchanged(ctx, a, servers)
	}
	if err := l.test(ctx, l.binary()); err != nil {
		return a, fmt.Errorf("the configuration was refused before any edit: %w", err)
	}
	for _, ch := range changes {
		if err := l.replace(ctx, ch, &a); err != nil {
			return a, l.giveUp(ctx, a.Edited, err)
		}
	}
	a.Diff = diffOf(edits)
	if err := l.test(ctx, l.binary()); err != nil {
		return a, l.giveUp(ctx, a.Edited, fmt.Errorf("the edited configuration was refused: %w", err))
	}
	if a.NeedsLoad = l.differs(); !a.NeedsLoad {
		err = l.noteLoaded(ctx) // nginx serves what the files say
	}
	return a, err
}

// lookBefore looks at nginx before an edit. If others have reloaded nginx since the last edit, that one
// counts as loaded.
func (l *Local) lookBefore(ctx context.Context, conf *nginx.Config, build nginx.Build) error {
	now, err := l.runningOrStopped(ctx, conf, build)
	if err != nil {
		return err
	}
	if now.Started(l.before) {
		l.forgetLoadedText()
		if err := l.markSent(ctx); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
	}
	l.before = now
	l.serves(now, false)
	s, err := l.ownState()
	if err == nil && !l.needsLoad && !slices.ContainsFunc(s.Marks, func(m journal.Mark) bool { return mayServe(m, l.id) }) {
		l.original = now
	}
	return nil
}

// maxDiff bounds the diff that a history keeps of an edit, in bytes.
const maxDiff = 32 << 10

// diffOf returns the diff of edits for the history. It has no context lines, so that the history
// stays small. Programs read the splices instead.
func diffOf(edits []nginx.Edit) string {
	text, err := nginx.Diff(edits, 0)
	if err != nil || len(text) > maxDiff {
		return ""
	}
	return text
}

// differs reports whether nginx has loaded another text than the files have now. An edit that was
// undone before any reload needs no reload.
func (l *Local) differs() bool {
	for _, f := range l.unloaded {
		if f.Before != f.After {
			return true
		}
	}
	return false
}

// forgetLoadedText notes that drainctl no longer knows which text of the edited files nginx has loaded.
func (l *Local) forgetLoadedText() {
	for path, f := range l.unloaded {
		l.unloaded[path] = journal.FileHashes{After: f.After}
	}
}

// giveUp undoes edits after err. No reload was sent for them.
func (l *Local) giveUp(ctx context.Context, edits []journal.Edit, err error) error {
	if _, _, undoErr := l.undo(context.WithoutCancel(ctx), edits); undoErr != nil {
		return fmt.Errorf("%w; restoring the files failed too: %w", err, undoErr)
	}
	return err
}

// locate finds the lines of servers, and the edits that bring them to the wanted state. It fails if a
// file has changed since the caller planned with it. Back leaves out lines that somebody else marked down, unless the request has Force.
func (l *Local) locate(conf *nginx.Config, r StageRequest, wants map[journal.Server]Want) (lines []*nginx.Server, edits []nginx.Edit, err error) {
	for path, sha := range r.Files {
		i := slices.IndexFunc(conf.Files, func(f *nginx.File) bool { return f.Path == path })
		if i < 0 {
			return nil, nil, refusal("%q is no file of the configuration %s", path, conf.Path)
		}
		if hash(conf.Files[i].Src) != sha {
			return nil, nil, &Error{Code: CodeChanged, Message: fmt.Sprintf("%s was changed in between", path)}
		}
	}
	state, err := l.journal.State()
	if err != nil {
		return nil, nil, fmt.Errorf("read the journal: %w", err)
	}
	state = ofConf(state, conf.Path)
	found := map[journal.Server]bool{}
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			key := keyOf(s)
			want, ok := wants[key]
			found[key] = found[key] || ok
			if ok && (want == Out || !s.IsDown() || r.Force || len(state.MarksOn(key)) > 0) {
				lines, edits = append(lines, s), append(edits, s.Edits(want == Out)...)
			}
		}
	}
	for s, want := range wants {
		if want == Out && !found[s] {
			return nil, nil, refusal("%.200q is no server of upstream %.200q here", s.Address, s.Upstream)
		}
	}
	return lines, edits, nil
}

// acceptPending refuses to load files that somebody else has changed and not loaded.
func (l *Local) acceptPending(ctx context.Context, conf *nginx.Config, accept bool) (notices []string, err error) {
	files, err := l.pending(ctx, conf, l.before)
	if err != nil {
		return nil, err
	}
	text, future := PendingText(files)
	if future != "" {
		notices = append(notices, future)
	}
	switch {
	case text == "":
		return notices, nil
	case accept:
		return append(notices, text), nil
	}
	return notices, &Error{Code: CodeRefused, Message: text, Override: "--accept-pending"}
}

// PendingText says which files are pending, and for which files that is not known.
func PendingText(files []PendingFile) (pending, future string) {
	const layout = "2006-01-02 15:04:05"
	var names, unknown []string
	loaded := ""
	for _, f := range files {
		text := fmt.Sprintf("%s (%s)", f.Path, f.Changed.Local().Format(layout))
		if f.Future {
			unknown = append(unknown, text)
			continue
		}
		names, loaded = append(names, text), f.Loaded.Local().Format(layout)
	}
	if len(names) > 0 {
		pending = fmt.Sprintf("changed on disk after nginx was last loaded (%s), so a reload would put it live: %s", loaded, strings.Join(names, ", "))
	}
	if len(unknown) > 0 {
		future = fmt.Sprintf("the clock was set back: whether nginx has loaded these files cannot be told: %s", strings.Join(unknown, ", "))
	}
	return pending, future
}

// fileChanges works out and verifies the new text of each file.
func fileChanges(conf *nginx.Config, edits []nginx.Edit) ([]*fileChange, error) {
	if err := verify(conf, edits); err != nil {
		return nil, err
	}
	var changes []*fileChange
	for _, e := range edits {
		i := slices.IndexFunc(changes, func(ch *fileChange) bool { return ch.file == e.File })
		if i < 0 {
			i = len(changes)
			changes = append(changes, &fileChange{file: e.File})
		}
		changes[i].edits = append(changes[i].edits, e)
		changes[i].splices = append(changes[i].splices, journal.Splice{
			Server: keyOf(e.Server), At: e.Start, Old: e.File.Src[e.Start:e.End], New: e.New, Line: e.Server.Line(),
		})
	}
	for _, ch := range changes {
		now, err := nginx.Apply(ch.file.Src, ch.edits)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ch.file.Path, err)
		}
		ch.now = now
	}
	return changes, nil
}

// replace records one edit in the journal and makes it. It adds the edit to a before it replaces the
// file: a replacement that fails may have happened.
func (l *Local) replace(ctx context.Context, ch *fileChange, a *Staged) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	edit := journal.Edit{Path: ch.file.Path, Before: hash(ch.file.Src), After: hash(ch.now), Splices: ch.splices}
	if err := l.updateOwn(ctx, "stage an edit", func(s *journal.State) error { return s.Stage(l.id, edit) }); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	a.Edited = append(a.Edited, edit)
	err := l.replaceFile(ch.file.Path, []byte(ch.file.Src), []byte(ch.now))
	if errors.Is(err, nginx.ErrChanged) {
		a.Edited = a.Edited[:len(a.Edited)-1]
		_ = l.updateOwn(ctx, "withdraw an edit", func(s *journal.State) error { return s.Undone(l.id, edit) })
		return &Error{Code: CodeChanged, Message: fmt.Sprintf("%s was changed in between", ch.file.Path), cause: err}
	}
	return err
}

// replaceFile replaces the text of a file and notes that nginx has not loaded the new text.
func (l *Local) replaceFile(path string, was, now []byte) error {
	err := l.effect("replace "+path, func() error { return nginx.Replace(path, was, now) })
	l.wrote = time.Now()
	if errors.Is(err, nginx.ErrChanged) {
		return err
	}
	before := hash(string(was))
	if had, ok := l.unloaded[path]; ok {
		before = had.Before
	}
	l.unloaded[path] = journal.FileHashes{Before: before, After: hash(string(now))}
	return err
}

// unchanged reports whether servers that are as wanted need a load: they do if a file with one of
// them was changed after nginx was loaded.
func (l *Local) unchanged(ctx context.Context, a Staged, servers []*nginx.Server) (Staged, error) {
	for _, s := range servers {
		path := s.File.Path
		at, err := nginx.ChangeTime(path)
		if err != nil {
			return a, err
		}
		was, ok := l.unloaded[path]
		if l.before.Master.PID != 0 && at.After(l.before.Loaded()) && !(ok && was.Before == hash(s.File.Src)) && !slices.Contains(a.Stale, path) {
			a.Stale = append(a.Stale, path)
		}
	}
	if a.NeedsLoad = len(a.Stale) > 0 || l.differs(); !a.NeedsLoad {
		return a, nil
	}
	return a, l.test(ctx, l.binary())
}
