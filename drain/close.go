package drain

import (
	"context"
	"errors"
	"fmt"
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
	before  nginx.Running // the generation before the first reload of this run
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

// apply edits and tests everywhere before anything is reloaded.
func (s *closeStep) apply(ctx context.Context, op Operation) (changed bool, text string, err error) {
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
		told = append(told, s.told(c, op))
	}
	for _, c := range stale {
		changed = true
		after, err := s.reload(ctx, c)
		if err != nil {
			c.refused = isCommandError(err)
			return changed, "", err
		}
		c.earlier = numbers(after.Exiting())
		s.r.tell(Progress{StepClose, "a new generation serves: " + workers(len(after.Serving())) + finishing(len(after.Exiting()))})
	}
	return changed, strings.Join(told, "\n"), nil
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

func (s *closeStep) told(c *closing, op Operation) string {
	state := "down"
	if op == Undrain {
		state = "up"
	}
	return fmt.Sprintf("%s: %s", serverNames(c.part), state)
}

// rereads bounds how often writing starts again from reading because somebody
// else writes too.
const rereads = 5

// write edits the files of one load balancer and has nginx test the result.
// reload tells whether the running generation does not serve it yet.
func (s *closeStep) write(ctx context.Context, c *closing, op Operation) (reload bool, err error) {
	for range rereads {
		if c.part, err = s.r.plan.reread(ctx, c.lb, op); err != nil {
			return false, err
		}
		if c.before, err = c.lb.running(ctx, c.part.Conf); err != nil {
			return false, err
		}
		if len(c.part.Changes) == 0 {
			return s.stale(ctx, c)
		}
		if err = c.lb.binary().Test(ctx); err != nil {
			return false, fmt.Errorf("the configuration was refused before any edit: %w", err)
		}
		if err = s.replace(ctx, c); err == nil {
			break
		}
		if !errors.Is(err, remote.ErrChanged) {
			return false, err
		}
		s.r.tell(Progress{StepClose, fmt.Sprintf("%v: reading again", err)})
		if err := s.restore(ctx, c); err != nil {
			return false, err
		}
	}
	if err != nil {
		return false, fmt.Errorf("gave up after %d tries: %w", rereads, err)
	}
	if err = c.lb.binary().Test(ctx); err != nil {
		return false, fmt.Errorf("the edited configuration was refused: %w", err)
	}
	s.r.tell(Progress{StepClose, "edited and tested: " + changedPaths(c.part.Changes)})
	return true, nil
}

func changedPaths(changes []Change) string {
	var paths []string
	for _, c := range changes {
		paths = append(paths, c.Path)
	}
	return strings.Join(paths, ", ")
}

// replace writes the changes of one load balancer.
func (s *closeStep) replace(ctx context.Context, c *closing) error {
	c.sent = false
	for _, ch := range c.part.Changes {
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
	for _, c := range s.lbs {
		restored := len(c.written) > 0
		if err := s.restore(ctx, c); err != nil {
			return changed, "", err
		}
		if err := s.reloadBack(ctx, c, restored); err != nil {
			return changed, "", err
		}
		changed = changed || restored
	}
	return changed, "configuration as before", nil
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
	if errors.Is(err, remote.ErrChanged) {
		err = s.restoreAround(ctx, c, ch)
	}
	return err
}

// restoreAround reverses one change in a file that is no longer as this run
// wrote it.
func (s *closeStep) restoreAround(ctx context.Context, c *closing, ch Change) error {
	inverse := Undrain
	if s.r.req.Operation == Undrain {
		inverse = Drain
	}
	ours := map[string]int{}
	for _, e := range ch.Edits {
		ours[serverKey(e.Server)]++
	}
	part, err := s.r.plan.reread(ctx, c.lb, inverse)
	if err != nil {
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
// anything else.
func (s *closeStep) reloadBack(ctx context.Context, c *closing, restored bool) error {
	if !c.sent {
		return nil
	}
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
