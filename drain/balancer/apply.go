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

// Apply implements [Balancer]. From here to the reload, no other operation edits
// this LB.
func (l *Local) Apply(ctx context.Context, c Change) (Applied, error) {
	l.serial.Lock()
	defer l.serial.Unlock()
	a, err := l.apply(ctx, c)
	if err != nil {
		return a, asError(err)
	}
	l.needsReload = l.needsReload || a.NeedsReload
	return a, nil
}

func (l *Local) apply(ctx context.Context, c Change) (a Applied, err error) {
	if !l.begun {
		return a, &Error{Code: CodeRefused, Message: "no operation has begun"}
	}
	if err := l.lockConfiguration(ctx); err != nil {
		return a, err
	}
	conf, build, err := l.load(ctx)
	if err != nil {
		return a, err
	}
	servers, err := locate(conf, c.Files)
	if err != nil {
		return a, err
	}
	last := l.before
	if l.before, err = l.running(ctx, conf, build); err != nil {
		return a, err
	}
	if l.after = l.before; l.before.Started(last) {
		l.mayHaveLoaded() // somebody else has reloaded it
	}
	if a.Notices, err = l.acceptPending(ctx, conf, c.AcceptPending); err != nil {
		return a, err
	}
	changes, err := fileChanges(servers)
	if err != nil {
		return a, &Error{Code: CodeRefused, Message: err.Error(), cause: err}
	}
	if len(changes) == 0 {
		return l.stale(ctx, a, c.Files)
	}
	if err := l.test(ctx); err != nil {
		return a, fmt.Errorf("the configuration was refused before any edit: %w", err)
	}
	had := len(l.edits)
	for _, ch := range changes {
		if err := l.replace(ctx, ch); err != nil {
			return a, l.giveUp(ctx, had, err)
		}
		a.Edited = append(a.Edited, l.edits[len(l.edits)-1])
	}
	a.Diff = diffOf(changes)
	if err := l.test(ctx); err != nil {
		return a, l.giveUp(ctx, had, fmt.Errorf("the edited configuration was refused: %w", err))
	}
	if a.NeedsReload = l.differs(); !a.NeedsReload {
		l.unlockConfiguration()
	}
	return a, nil
}

// maxDiff bounds the diff that a history keeps of an edit, in bytes.
const maxDiff = 32 << 10

// diffOf is the diff of changes, for people: what was done is in the splices. It has no
// context, so that the history stays small.
func diffOf(changes []*fileChange) string {
	var edits []nginx.Edit
	for _, ch := range changes {
		edits = append(edits, ch.edits...)
	}
	text, err := nginx.Diff(edits, 0)
	if err != nil || len(text) > maxDiff {
		return ""
	}
	return text
}

// differs tells whether nginx has loaded other files than there are: an edit that was
// undone before any reload needs none.
func (l *Local) differs() bool {
	for _, f := range l.unloaded {
		if f.Before != f.After {
			return true
		}
	}
	return false
}

// mayHaveLoaded notes that nginx may have loaded what there is, or not.
func (l *Local) mayHaveLoaded() {
	for path, f := range l.unloaded {
		l.unloaded[path] = journal.FileHashes{After: f.After}
	}
}

// giveUp undoes the edits after the first keep of them, which nothing has loaded
// yet, after err.
func (l *Local) giveUp(ctx context.Context, keep int, err error) error {
	if _, restoreErr := l.restoreFiles(context.WithoutCancel(ctx), keep); restoreErr != nil {
		return fmt.Errorf("%w; restoring the files failed too: %w", err, restoreErr)
	}
	return err
}

// A wanted is a server line and the state that it is to have.
type wanted struct {
	*nginx.Server
	nginx.Want
}

// locate finds the server lines that edits name. Whatever is not a server line
// of a file that the configuration includes, with the content that the caller
// knows, is an error.
func locate(conf *nginx.Config, edits []FileEdit) ([]wanted, error) {
	byLine := map[string]map[int][]*nginx.Server{}
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			if byLine[s.File.Path] == nil {
				byLine[s.File.Path] = map[int][]*nginx.Server{}
			}
			byLine[s.File.Path][int(s.At)] = append(byLine[s.File.Path][int(s.At)], s)
		}
	}
	var servers []wanted
	for _, e := range edits {
		i := slices.IndexFunc(conf.Files, func(f *nginx.File) bool { return f.Path == e.Path })
		if i < 0 {
			return nil, &Error{Code: CodeRefused, Message: fmt.Sprintf("%q is no file of the configuration %s", e.Path, conf.Path)}
		}
		if hash(conf.Files[i].Src) != e.SHA256 {
			return nil, &Error{Code: CodeChanged, Message: fmt.Sprintf("%s was changed in between", e.Path)}
		}
		for _, s := range e.Servers {
			if len(byLine[e.Path][s.At]) == 0 {
				return nil, &Error{Code: CodeRefused, Message: fmt.Sprintf("no server line of an upstream begins at byte %d of %s", s.At, e.Path)}
			}
			for _, server := range byLine[e.Path][s.At] {
				servers = append(servers, wanted{server, s.Want})
			}
		}
	}
	return servers, nil
}

// acceptPending refuses to put live what somebody else has not finished.
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

// PendingText says which files are pending, and of which that cannot be told.
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
func fileChanges(servers []wanted) ([]*fileChange, error) {
	var edits []nginx.Edit
	for _, s := range servers {
		edits = append(edits, s.Edits(s.Want)...)
	}
	if err := verify(edits); err != nil {
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

// replace announces one edit in the journal and makes it.
func (l *Local) replace(ctx context.Context, ch *fileChange) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	edit := journal.Edit{Path: ch.file.Path, Before: hash(ch.file.Src), After: hash(ch.now), Splices: ch.splices}
	if err := l.updateOwn(ctx, "announce an edit", func(s *journal.State) error { return s.Announce(l.id, edit) }); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	// Noted first: a replacement whose end is not known may have happened.
	l.edits = append(l.edits, edit)
	if had, ok := l.unloaded[edit.Path]; ok {
		l.unloaded[edit.Path] = journal.FileHashes{Before: had.Before, After: edit.After}
	} else {
		l.unloaded[edit.Path] = journal.FileHashes{Before: edit.Before, After: edit.After}
	}
	err := l.replaceFile(ch.file.Path, []byte(ch.file.Src), []byte(ch.now))
	l.wrote = time.Now()
	if errors.Is(err, nginx.ErrChanged) {
		l.edits = l.edits[:len(l.edits)-1]
		_ = l.updateOwn(ctx, "withdraw an edit", func(s *journal.State) error { return s.Withdraw(l.id, edit.Path) })
		return &Error{Code: CodeChanged, Message: fmt.Sprintf("%s was changed in between", ch.file.Path), cause: err}
	}
	return err
}

func (l *Local) replaceFile(path string, was, now []byte) error {
	return l.effect("replace "+path, func() error { return nginx.Replace(path, was, now) })
}

// stale tells whether a file that says what is wanted was changed after nginx
// was loaded: nginx may not serve it yet.
func (l *Local) stale(ctx context.Context, a Applied, edits []FileEdit) (Applied, error) {
	for _, e := range edits {
		at, err := nginx.ChangeTime(e.Path)
		if err != nil {
			return a, err
		}
		if was, ok := l.unloaded[e.Path]; at.After(l.before.Loaded()) && !(ok && was.Before == e.SHA256) {
			a.Stale = append(a.Stale, e.Path)
		}
	}
	if len(a.Stale) == 0 {
		l.unlockConfiguration()
		return a, nil
	}
	a.NeedsReload = true
	return a, l.test(ctx)
}
