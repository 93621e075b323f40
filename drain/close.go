package drain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// closeStep marks the target's servers down and sees every load balancer serve
// so; its way back clears them.
type closeStep struct {
	r   *run
	lbs []*closing
}

// A closing is what this run has done on one load balancer.
type closing struct {
	lb      *LB
	part    *LBPlan       // as read at the last way taken
	before  nginx.Running // the generation before the last reload of this run
	after   nginx.Running // the generation seen to serve after it
	earlier []int         // workers of earlier generations that finish what they hold
	written []Change      // files replaced by this run and not put back
	wrote   time.Time     // when a file was last replaced, by this machine's clock
	sent    bool          // a reload was sent since written last changed
	refused bool          // that reload's command itself failed
}

func newCloseStep(r *run) *closeStep {
	s := &closeStep{r: r}
	for i := range r.plan.LBs {
		part := r.plan.LBs[i]
		s.lbs = append(s.lbs, &closing{lb: part.LB, part: &part})
	}
	return s
}

func (s *closeStep) name() StepName { return StepClose }

func (s *closeStep) describe(w Way) string {
	if w == Forward {
		return "mark " + s.r.targets() + " down, test, reload, see the new generation serve"
	}
	return "clear down on " + s.r.targets() + ", test, reload, see the new generation serve"
}

func (s *closeStep) forward(ctx context.Context) (bool, string, error) {
	if s.r.undoing {
		return s.undo(ctx)
	}
	return s.apply(ctx, Drain)
}

func (s *closeStep) back(ctx context.Context) (bool, string, error) {
	if s.r.undoing {
		return s.undo(ctx)
	}
	return s.apply(ctx, Undrain)
}

// apply edits and tests everywhere before anything is reloaded. From the
// reading to the reload, no other drainctl edits these load balancers.
func (s *closeStep) apply(ctx context.Context, op Operation) (changed bool, text string, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return false, "", err
	}
	defer unlock()
	var stale []*closing
	for _, c := range s.lbs {
		reload, err := s.write(ctx, c, op)
		changed = changed || len(c.written) > 0
		if err != nil {
			return changed, "", err
		}
		c.earlier = numbers(c.before.Exiting())
		if reload {
			stale = append(stale, c)
		}
	}
	var told []string
	for _, c := range s.lbs {
		told = append(told, s.told(c, op)...)
	}
	for _, c := range stale {
		changed = true
		if c.after, err = s.reload(ctx, c); err != nil {
			c.refused = isCommandError(err)
			return changed, "", err
		}
		c.earlier = numbers(c.after.Exiting())
		s.r.tell(Progress{StepClose, "a new generation serves: " + workers(len(c.after.Serving())) + finishing(len(c.after.Exiting()))})
	}
	return changed, strings.Join(told, "\n"), nil
}

// lockWait is how long another drainctl's edit of the same load balancer is
// waited for. It holds the lock for one test and one reload.
const lockWait = 2 * time.Minute

// lock keeps other drainctls from editing these load balancers. The locks die
// with their holder.
func (s *closeStep) lock(ctx context.Context) (unlock func(), err error) {
	var held []remote.Lock
	unlock = func() {
		for _, l := range held {
			_ = l.Unlock()
		}
	}
	for _, c := range s.lbs {
		l, err := c.lb.Host.Lock(ctx, path.Join(s.r.req.StateDir, "lock"), lockWait)
		if err != nil {
			unlock()
			if errors.Is(err, remote.ErrLocked) {
				err = fmt.Errorf("another drainctl has been editing the configuration on %s for %s: %w", c.lb.Host.Name(), lockWait, err)
			}
			return nil, err
		}
		held = append(held, l)
	}
	return unlock, nil
}

// reloadGap is how long after the last edit a reload is sent at the earliest.
// The start of a worker is known to a hundredth of a second, and in relation to
// the clock that dates files a little less exactly. Without the gap, a later run
// could take what these workers have loaded for newer than they are.
const reloadGap = 100 * time.Millisecond

// reload has nginx load what was written.
func (s *closeStep) reload(ctx context.Context, c *closing) (nginx.Running, error) {
	if err := sleep(ctx, time.Until(c.wrote.Add(reloadGap))); err != nil {
		return nginx.Running{}, err
	}
	c.sent = true
	return c.lb.reload(ctx, c.part.Conf, s.r.req.ReloadTimeout)
}

func numbers(processes []nginx.Process) []int {
	var pids []int
	for _, p := range processes {
		pids = append(pids, p.PID)
	}
	return pids
}

func workers(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return fmt.Sprintf("%d workers", n)
}

// finishing tells of the workers of earlier generations.
func finishing(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "; 1 earlier worker finishes what it holds"
	}
	return fmt.Sprintf("; %d earlier workers finish what they hold", n)
}

// told says what the servers are now; the ones that an undrain leaves down are
// not its doing.
func (s *closeStep) told(c *closing, op Operation) []string {
	if op == Drain {
		return []string{serverNames(c.part) + ": down"}
	}
	var texts []string
	up, down := s.sides(c)
	if len(up) > 0 {
		texts = append(texts, namesOf(c.part, up)+": up")
	}
	if len(down) > 0 {
		texts = append(texts, namesOf(c.part, down)+": stays down, it was so by hand")
	}
	return texts
}

// sides parts the servers of an undrain into those that it puts up and those
// that it leaves down.
func (s *closeStep) sides(c *closing) (up, down []*nginx.Server) {
	mine := s.r.plan.mine(c.part)
	for _, server := range c.part.Servers {
		if server.IsDown() && mine != nil && !mine(server) {
			down = append(down, server)
		} else {
			up = append(up, server)
		}
	}
	return up, down
}

// rereads bounds how often writing starts again from reading because somebody
// else writes too.
const rereads = 5

// write edits the files of one load balancer and has nginx test the result.
// reload tells whether the running generation does not serve it yet.
func (s *closeStep) write(ctx context.Context, c *closing, op Operation) (reload bool, err error) {
	for try := 0; ; try++ {
		if err := s.look(ctx, c, op); err != nil {
			return false, err
		}
		if len(c.part.Changes) == 0 {
			return s.stale(ctx, c)
		}
		if err := c.lb.binary().Test(ctx); err != nil {
			return false, fmt.Errorf("the configuration was refused before any edit: %w", err)
		}
		err := s.replace(ctx, c, op)
		if err == nil {
			break
		}
		if !errors.Is(err, remote.ErrChanged) || try == rereads {
			return false, err
		}
		s.r.tell(Progress{StepClose, fmt.Sprintf("%v: reading again", err)})
		if err := s.restore(ctx, c); err != nil {
			return false, err
		}
	}
	if err := c.lb.binary().Test(ctx); err != nil {
		return false, fmt.Errorf("the edited configuration was refused: %w", err)
	}
	s.r.tell(Progress{StepClose, "edited and tested: " + changedPaths(c.part.Changes)})
	return true, nil
}

// look reads what is on disk and what runs now, and refuses to edit what
// somebody else has not finished.
func (s *closeStep) look(ctx context.Context, c *closing, op Operation) error {
	part, findings, err := s.r.plan.reread(ctx, c.part, op)
	var gone *goneError
	if errors.As(err, &gone) {
		findings, err = []Finding{missing("%v", gone)}, nil
	}
	switch {
	case err != nil:
		return err
	case len(findings) > 0:
		return refuse(findings)
	}
	c.part = part
	if c.before, err = c.lb.running(ctx, part.Conf); err != nil {
		return err
	}
	c.after = c.before
	pending, warnings, err := s.r.pending(ctx, part, c.before)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		s.r.tell(Warned{w})
	}
	if len(pending) > 0 {
		return refuse(pending)
	}
	return nil
}

func changedPaths(changes []Change) string {
	var paths []string
	for _, c := range changes {
		paths = append(paths, c.Path)
	}
	return strings.Join(paths, ", ")
}

// replace writes the changes of one load balancer.
func (s *closeStep) replace(ctx context.Context, c *closing, op Operation) error {
	c.sent = false
	for _, ch := range c.part.Changes {
		edit := announce(c.part, ch)
		if err := s.r.note(ctx, Record{Kind: RecordEdit, Edit: edit}); err != nil {
			return err
		}
		s.r.edits = append(s.r.edits, edit)
		// Noted first: a replacement whose end is not known may have happened.
		c.written = append(c.written, ch)
		err := c.lb.Host.Replace(ctx, ch.Path, []byte(ch.Was), []byte(ch.Now))
		c.wrote = time.Now()
		if err != nil {
			if errors.Is(err, remote.ErrChanged) {
				c.written = c.written[:len(c.written)-1]
			}
			return fmt.Errorf("write %s: %w", ch.Path, err)
		}
	}
	return nil
}

// announce is the journal's record of one change that is about to be made. A
// line of a fragment that two upstreams include is a server in each.
func announce(part *LBPlan, ch Change) *Edited {
	e := &Edited{Path: ch.Path, Before: sha(ch.Was), After: sha(ch.Now)}
	for _, edit := range ch.Edits {
		for _, s := range part.Servers {
			if sameLine(s, edit.Server) {
				m := marked(s)
				m.Offset, m.Text = edit.Start, edit.New
				e.Marks = append(e.Marks, m)
			}
		}
	}
	return e
}

// marked names a server for the journal.
func marked(s *nginx.Server) Marked {
	return Marked{
		Module: s.Upstream.Module, Upstream: s.Upstream.Name, Address: s.Address.String(),
		Down: s.IsDown(), File: s.File.Path, Line: s.Line(), Offset: int(s.Words[0].Start),
	}
}

func sha(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// stale tells whether a file with the target's servers was changed after the
// running generation was loaded: it says what is wanted, but nginx may not
// serve it yet.
func (s *closeStep) stale(ctx context.Context, c *closing) (bool, error) {
	seen := map[string]bool{}
	for _, server := range c.part.Servers {
		if seen[server.File.Path] {
			continue
		}
		seen[server.File.Path] = true
		info, err := c.lb.Host.Stat(ctx, server.File.Path)
		if err != nil {
			return false, err
		}
		if info.Change.After(c.before.Loaded()) {
			s.r.tell(Progress{StepClose, fmt.Sprintf("%s was changed after nginx was last loaded", server.File.Path)})
			return true, c.lb.binary().Test(ctx)
		}
	}
	return false, nil
}

// undo takes back what this run wrote, and sees nginx serve as before.
func (s *closeStep) undo(ctx context.Context) (changed bool, text string, err error) {
	if !s.touched() {
		return false, "", nil
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return false, "", err
	}
	defer unlock()
	for _, c := range s.lbs {
		restored := len(c.written) > 0
		if err := s.restore(ctx, c); err != nil {
			return changed, "", err
		}
		if err := s.reloadBack(ctx, c); err != nil {
			return changed, "", err
		}
		changed = changed || restored
	}
	return changed, "configuration as before", nil
}

func (s *closeStep) touched() bool {
	return slices.ContainsFunc(s.lbs, func(c *closing) bool { return len(c.written) > 0 || c.sent })
}

// restore puts the old bytes back. Where somebody has edited the file since,
// only this run's own words are taken out of it, or put back into it.
func (s *closeStep) restore(ctx context.Context, c *closing) error {
	for len(c.written) > 0 {
		ch := c.written[len(c.written)-1]
		err := s.putBack(ctx, c, ch)
		c.wrote = time.Now()
		if err != nil {
			return fmt.Errorf("put %s back: %w", ch.Path, err)
		}
		c.written = c.written[:len(c.written)-1]
	}
	return nil
}

// putBack reverses one change. A file that was never replaced is left alone:
// what kept it from being replaced would do so again.
func (s *closeStep) putBack(ctx context.Context, c *closing, ch Change) error {
	now, err := c.lb.Host.ReadFile(ctx, ch.Path)
	if err != nil || string(now) == ch.Was {
		return err
	}
	err = c.lb.Host.Replace(ctx, ch.Path, []byte(ch.Now), []byte(ch.Was))
	for try := 0; errors.Is(err, remote.ErrChanged) && try < rereads; try++ {
		err = s.restoreAround(ctx, c, ch)
	}
	return err
}

// restoreAround reverses one change in a file that is no longer as this run
// wrote it. Where the server is gone, so is what this run wrote.
func (s *closeStep) restoreAround(ctx context.Context, c *closing, ch Change) error {
	inverse := Undrain
	if s.r.req.Operation == Undrain {
		inverse = Drain
	}
	ours := map[string]int{}
	for _, e := range ch.Edits {
		ours[serverKey(e.Server)]++
	}
	part, _, err := s.r.plan.reread(ctx, c.part, inverse)
	var gone *goneError
	switch {
	case errors.As(err, &gone):
		return nil
	case err != nil:
		return err
	}
	if err := part.plan(inverse, func(server *nginx.Server) bool { return ours[serverKey(server)] > 0 }); err != nil {
		return err
	}
	for _, back := range part.Changes {
		if back.Path == ch.Path {
			return c.lb.Host.Replace(ctx, back.Path, []byte(back.Was), []byte(back.Now))
		}
	}
	return nil
}

// serverKey tells servers apart across two readings of a configuration.
func serverKey(s *nginx.Server) string {
	return s.Upstream.Module + "\x00" + s.Upstream.Name + "\x00" + s.Address.String()
}

func isCommandError(err error) bool {
	var ce *nginx.CommandError
	return errors.As(err, &ce)
}

// reloadBack has nginx load the restored files, unless it never loaded
// anything else, or somebody has had it load them already.
func (s *closeStep) reloadBack(ctx context.Context, c *closing) error {
	if !c.sent {
		return nil
	}
	if err := c.lb.binary().Test(ctx); err != nil {
		return fmt.Errorf("the files hold nothing of this run any more, but nginx refuses them as they are now: %w", err)
	}
	s.warnOfPending(ctx, c)
	_, err := s.reload(ctx, c)
	var notLoaded *reloadError
	if errors.As(err, &notLoaded) || (c.refused && isCommandError(err)) {
		now, lookErr := c.lb.running(ctx, c.part.Conf)
		if lookErr == nil && !now.Started(c.before) {
			// The generation of before still serves, and whatever the master
			// may load later is the restored configuration.
			s.r.tell(Warned{"nginx does not load its configuration; it goes on with the one it had before this run: " + err.Error()})
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("the files are as before, but nginx was not seen to load them: %w", err)
	}
	c.sent = false
	return nil
}

// warnOfPending says what else the reload of a way back puts live. There is no
// way back without it.
func (s *closeStep) warnOfPending(ctx context.Context, c *closing) {
	running, err := c.lb.running(ctx, c.part.Conf)
	if err != nil {
		return
	}
	now, err := (&Plan{Request: s.r.req}).load(ctx, c.lb, c.part.Ledger, c.part.LedgerErr)
	if err != nil {
		return
	}
	findings, warnings, err := s.r.pending(ctx, now, running)
	if err != nil {
		return
	}
	for _, f := range findings {
		warnings = append(warnings, f.Text)
	}
	for _, text := range warnings {
		s.r.tell(Warned{text})
	}
}
