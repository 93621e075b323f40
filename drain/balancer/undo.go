package balancer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// stageBefore puts servers back to the state in which the operation found them. Edits for which no
// reload was sent need neither a test nor a reload.
func (l *Local) stageBefore(ctx context.Context, wants []Wanted) (a Staged, err error) {
	if l.id == "" {
		return a, nil
	}
	var servers []journal.Server
	for _, w := range wants {
		servers = append(servers, w.Servers...)
	}
	edits, served, err := l.changesOf(servers)
	if err != nil || len(edits) == 0 && !served && !l.needsLoad && !l.adopted {
		return a, err
	}
	if err := l.lockConfiguration(ctx); err != nil {
		return a, err
	}
	if edits, served, err = l.changesOf(servers); err != nil { // others may have edited meanwhile
		return a, err
	}
	if a.Edited, a.Notices, err = l.undo(ctx, edits); err != nil {
		return a, err
	}
	if a.NeedsLoad = served || l.differs(); !a.NeedsLoad && !l.adopted {
		return a, nil
	}
	conf, build, err := l.load(ctx)
	if err != nil {
		return a, err
	}
	if !a.NeedsLoad {
		if a.NeedsLoad, err = l.isStale(ctx, conf, build, servers); err != nil {
			return a, err
		}
	}
	if !a.NeedsLoad {
		return a, nil
	}
	what := "nginx refuses the files as they are now: %w"
	if s, err := l.ownState(); err == nil && len(s.EditsOf(l.id)) == 0 {
		op, _ := s.Find(l.id)
		// A rolling run may have put other servers back with the same edit: they need the load.
		l.undone = op.Kind != journal.KindRun || !l.differs()
		what = "the files hold nothing of this operation any more, but nginx refuses them as they are now: %w"
	}
	if err := l.test(ctx, l.binary()); err != nil {
		return a, fmt.Errorf(what, err)
	}
	a.Notices = append(a.Notices, l.noticesOfPending(ctx)...)
	return a, nil
}

// changesOf returns the edits that the operation has made to servers, and whether nginx may serve
// one of them.
func (l *Local) changesOf(servers []journal.Server) (edits []journal.Edit, served bool, err error) {
	s, err := l.ownState()
	if err != nil {
		return nil, false, err
	}
	served = slices.ContainsFunc(s.Marks, func(m journal.Mark) bool { return slices.Contains(servers, m.Server) && mayServe(m, l.id) })
	return s.EditsOf(l.id, servers...), served, nil
}

// mayServe reports whether nginx may serve the change that an operation made to a mark. The file may
// have another text by now.
func mayServe(m journal.Mark, id string) bool {
	if m.Operation == id {
		return m.Cleared != nil || !m.Unsent
	}
	return m.Cleared != nil && m.Cleared.Operation == id && !m.Cleared.Unsent
}

// isStale reports whether a file with one of the servers was changed after nginx was loaded. An agent
// that has adopted an operation does not know which edits the agent before it has loaded.
func (l *Local) isStale(ctx context.Context, conf *nginx.Config, build nginx.Build, servers []journal.Server) (bool, error) {
	running, err := l.runningOrStopped(ctx, conf, build)
	if err != nil || running.Master.PID == 0 {
		return false, err
	}
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			if !slices.Contains(servers, keyOf(s)) {
				continue
			}
			if at, err := nginx.ChangeTime(s.File.Path); err != nil || at.After(running.Loaded()) {
				return true, err
			}
		}
	}
	return false, nil
}

// undo undoes edits of the operation, the last one of each file first. If the journal cannot be
// written, undo returns a notice and no error: the files matter more.
func (l *Local) undo(ctx context.Context, edits []journal.Edit) (made []journal.Edit, notices []string, err error) {
	for left := slices.Clone(edits); len(left) > 0; {
		i := lastIn(left)
		e, err := l.undoEdit(ctx, left[i])
		if err != nil {
			return made, nil, fmt.Errorf("restore %s: %w", left[i].Path, err)
		}
		if e.Path != "" {
			made = append(made, e)
		}
		left = slices.Delete(left, i, i+1)
	}
	if len(edits) == 0 {
		return nil, nil, nil
	}
	l.noteLoadByOthers(context.WithoutCancel(ctx)) // a load that begins later reads the restored files
	err = l.updateOwn(context.WithoutCancel(ctx), "undone", func(s *journal.State) error {
		keepOurs(s, made)
		return s.Undone(l.id, edits...)
	})
	if err != nil {
		notices = append(notices, fmt.Sprintf("write the journal: %v", err))
	}
	return made, notices, nil
}

// noteLoadByOthers reports whether another process may have had nginx load edits for which this
// operation has sent no reload. If so, it notes that as after a reload of this operation.
func (l *Local) noteLoadByOthers(ctx context.Context) bool {
	s, err := l.ownState()
	if err != nil || len(s.UnsentOf(l.id)) == 0 || !l.hasOtherWorkers(ctx) {
		return false
	}
	l.forgetLoadedText()
	l.needsLoad = true
	_ = l.markSent(ctx) // the memory of this agent is enough for what it does itself
	return true
}

// hasOtherWorkers reports whether nginx serves with other workers than before the last edit: others have
// reloaded or restarted it. It reports true if it cannot tell. An nginx that does not run serves nothing.
func (l *Local) hasOtherWorkers(ctx context.Context) bool {
	now, err := l.settled(ctx)
	if errors.Is(err, nginx.ErrNotRunning) {
		return false
	}
	return err != nil || now.Started(l.before)
}

// settled looks at nginx once no reload is under way: a reload may have read files that its workers are
// yet to serve.
func (l *Local) settled(ctx context.Context) (nginx.Running, error) {
	now, err := l.now(ctx)
	if err != nil && l.allowStopped && l.before.Master.PID == 0 {
		return now, err // it may just start
	}
	if err != nil {
		now = l.before // the files do not say where it is
	}
	err = l.effect("look at nginx's processes", func() (err error) {
		now, err = l.binary().Settled(ctx, now.Master.PID, settleLimit)
		return err
	})
	return now, err
}

// settleLimit is how long a reload of others is waited for. An undo that cannot wait so long counts it
// as one that has loaded the edit.
const settleLimit = 10 * time.Second

// keepOurs notes that files which only drainctl had changed before edits are so after them too.
func keepOurs(s *journal.State, made []journal.Edit) {
	for _, e := range made {
		if s.Ours(e.Path, e.Before) {
			s.Edits[e.Path] = journal.FileHashes{Before: e.Before, After: e.After}
		}
	}
}

// lastIn returns the index of an edit whose file has the text that the edit made, otherwise of the
// last edit.
func lastIn(edits []journal.Edit) int {
	for i, e := range edits {
		if now, err := os.ReadFile(e.Path); err == nil && hash(string(now)) == e.After {
			return i
		}
	}
	return len(edits) - 1
}

// attempts bounds how often a file is read again because another process
// edits it at the same time.
const attempts = 5

// undoEdit undoes one edit and returns the edit that undoes it; that has no path if there was
// nothing to undo. If another process has changed the file since, or only some servers of the edit
// are undone, undoEdit changes the lines of these servers one by one.
func (l *Local) undoEdit(ctx context.Context, e journal.Edit) (made journal.Edit, err error) {
	for range attempts {
		var now []byte
		if now, err = os.ReadFile(e.Path); err != nil {
			return made, err
		}
		if hash(string(now)) == e.Before {
			return made, nil
		}
		was, exact := inverseOf(e, string(now))
		if !exact {
			if was, err = l.around(ctx, e, string(now)); err != nil || was == "" {
				return made, err
			}
		}
		err = l.replaceFile(e.Path, now, []byte(was))
		if err == nil {
			return journal.Edit{Path: e.Path, Before: hash(string(now)), After: hash(was), Splices: reversed(e.Splices)}, nil
		}
		if !errors.Is(err, nginx.ErrChanged) {
			return made, err
		}
	}
	return made, err
}

// inverseOf returns the text of a file before an edit, byte for byte. exact is false if the file has
// changed since, or if the edit has splices that are not in e.
func inverseOf(e journal.Edit, now string) (was string, exact bool) {
	if hash(now) != e.After {
		return "", false
	}
	was = inverse(now, e.Splices)
	return was, hash(was) == e.Before
}

func reversed(splices []journal.Splice) (all []journal.Splice) {
	for _, sp := range splices {
		sp.Old, sp.New = sp.New, sp.Old
		all = append(all, sp)
	}
	return all
}

// inverse undoes splices in the text that they made.
func inverse(text string, splices []journal.Splice) string {
	splices = slices.Clone(splices)
	slices.SortStableFunc(splices, func(a, b journal.Splice) int { return a.At - b.At })
	// A line of a fragment that two upstreams include is one line.
	splices = slices.CompactFunc(splices, func(a, b journal.Splice) bool { return a.At == b.At })
	var b strings.Builder
	from, shift := 0, 0
	for _, s := range splices {
		at := s.At + shift
		b.WriteString(text[from:at])
		b.WriteString(s.Old)
		from = at + len(s.New)
		shift += len(s.New) - len(s.Old)
	}
	b.WriteString(text[from:])
	return b.String()
}

// around returns the text of a changed file without the edit, or "" if nothing of the edit is left
// in it.
func (l *Local) around(ctx context.Context, e journal.Edit, now string) (string, error) {
	conf, _, err := l.load(ctx)
	if err != nil {
		return "", err
	}
	var edits []nginx.Edit
	done := map[*nginx.Server]bool{}
	for _, sp := range e.Splices {
		s, err := lineOf(conf, e, now, sp, done)
		if err != nil {
			return "", err
		}
		if s != nil {
			done[s] = true
			edits = append(edits, s.Edits(sp.New == "")...)
		}
	}
	if len(edits) == 0 {
		return "", nil
	}
	if err := verify(conf, edits); err != nil {
		return "", err
	}
	return nginx.Apply(now, edits)
}

// lineOf returns the line that a splice has changed. If several lines of the server are alike, it is
// the one on the old line number. It fails if the file has changed since and none is there.
func lineOf(conf *nginx.Config, e journal.Edit, now string, sp journal.Splice, done map[*nginx.Server]bool) (found *nginx.Server, err error) {
	var all []*nginx.Server
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			if keyOf(s) == sp.Server && s.File.Path == e.Path && s.File.Src == now && s.IsDown() == (sp.New != "") && !done[s] {
				all = append(all, s)
			}
		}
	}
	same := 0 // splices of the server that are left
	for _, other := range e.Splices {
		if other.Server == sp.Server {
			same++
		}
	}
	for s := range done {
		if keyOf(s) == sp.Server {
			same--
		}
	}
	at := slices.IndexFunc(all, func(s *nginx.Server) bool { return s.Line() == sp.Line })
	switch {
	case len(all) == 0:
		return nil, nil
	case at >= 0 && (len(all) <= same || hash(now) == e.After):
		return all[at], nil
	case len(all) <= same:
		return all[0], nil
	}
	return nil, fmt.Errorf("several lines of %s in upstream %s are alike now, and which of them drainctl has changed is not known", sp.Address, sp.Upstream)
}
