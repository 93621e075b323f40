package balancer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// The codes of problems, which are those of findings too.
const (
	ProblemTest    = "nginx-test"
	ProblemRunning = "nginx-not-running"
	ProblemConf    = "other-configuration"
	ProblemPlace   = "other-namespace"
	ProblemWrite   = "not-writable"
	ProblemPending = "pending"
	ProblemJournal = "journal"
)

// preflight tries what a run needs of this LB.
func (l *Local) preflight(ctx context.Context, r *reading, tested <-chan error) {
	running, notRunning := l.running(ctx, r.conf, r.build)
	if notRunning == nil {
		r.Generation = generation(running)
		l.checkConf(r, running)
		r.checkPlace(running.Master.PID)
		l.addPending(ctx, r, running)
	}
	var err error
	if r.Free, err = l.journal.Free(); err != nil {
		r.Problems = append(r.Problems, Problem{Code: ProblemJournal, Text: err.Error(), Override: "--state-dir", Unknown: unprivileged(err)})
	}
	if err := <-tested; err != nil {
		r.Problems = append(r.Problems, testProblem(err))
	}
	if notRunning != nil { // after the test, which is a process of nginx
		r.Problems = slices.Insert(r.Problems, 0, l.runningProblem(ctx, r.conf, notRunning))
	}
	done := map[string]bool{}
	for _, s := range r.Servers {
		if !s.NeedsEdit || done[s.File] {
			continue
		}
		done[s.File] = true
		if err := nginx.CheckReplace(s.File); err != nil {
			r.Problems = append(r.Problems, Problem{Code: ProblemWrite, Text: err.Error(), Unknown: unprivileged(err)})
		}
	}
}

// runningProblem says that no master was found. Only a confirmed stop can be allowed.
func (l *Local) runningProblem(ctx context.Context, conf *nginx.Config, err error) Problem {
	p := Problem{Code: ProblemRunning, Text: err.Error(), Unknown: true}
	if !errors.Is(err, nginx.ErrNotRunning) {
		return p
	}
	switch stopped, err := l.isStopped(ctx, conf, planLimit); {
	case stopped:
		p.Override = AllowStopped
	case err != nil:
		p.Text = err.Error()
	}
	return p
}

// planLimit is how long a plan waits for a process that may become nginx's master.
const planLimit = 2 * time.Second

// AllowStopped is the flag that has an LB edited whose nginx is stopped.
const AllowStopped = "--allow-stopped-nginx"

// StoppedText says what is done on such an LB.
const StoppedText = "nginx is not running: its files are edited and tested, and it loads them when it starts"

// testProblem is nginx's refusal of the configuration as it is.
func testProblem(err error) Problem {
	p := Problem{Code: ProblemTest, Text: fmt.Sprintf("the configuration is refused before any edit: %s", remote.Redact(err.Error())), Override: "--test-command"}
	var ce *nginx.CommandError
	switch {
	case !errors.As(err, &ce):
	case ce.Code == 126 || ce.Code == 127:
		p.Text, p.Unknown = "nginx's own test of the configuration: there is no "+ce.Command[0]+" here to run", true
	case os.Geteuid() != 0 && ce.Unprivileged():
		p.Text, p.Unknown = "nginx's own test of the configuration: it needs root here ("+ce.Lines[0]+")", true
	}
	return p
}

// checkConf makes sure that the nginx that runs was started with the
// configuration that is about to be edited.
func (l *Local) checkConf(r *reading, running nginx.Running) {
	if l.customCommands() || r.build.Conf == "" {
		return
	}
	conf := running.ConfOf(r.build)
	if conf == "" {
		conf = r.build.Conf
	}
	ours, err1 := nginx.RealPath(r.ConfPath)
	theirs, err2 := nginx.RealPath(conf)
	if err1 != nil || err2 != nil || ours == theirs {
		return
	}
	r.Problems = append(r.Problems, Problem{Code: ProblemConf, Override: "--nginx-conf " + conf,
		Text: fmt.Sprintf("the nginx that runs (process %d) was started with %s, not with %s", running.Master.PID, conf, r.ConfPath)})
}

// customCommands tells that nginx is tested or reloaded by the operator's own
// commands, so that the binary here may not be the one that runs.
func (l *Local) customCommands() bool {
	return len(l.options.Nginx.TestCommand) > 0 || len(l.options.Nginx.ReloadCommand) > 0
}

func (l *Local) addPending(ctx context.Context, r *reading, running nginx.Running) {
	pending, err := l.pending(ctx, r.conf, running)
	if err != nil {
		r.Problems = append(r.Problems, Problem{Code: ProblemPending, Text: fmt.Sprintf("whether files were changed since nginx was last loaded: %v", err), Unknown: unprivileged(err)})
	}
	r.Pending = pending
}

// pending finds files that were changed on disk after the running generation
// was loaded: a reload would put somebody's unfinished work live. What an
// operation of drainctl's has written is not somebody else's.
func (l *Local) pending(ctx context.Context, conf *nginx.Config, running nginx.Running) ([]PendingFile, error) {
	var found []PendingFile
	if running.Master.PID == 0 {
		return nil, nil // no reload puts them live
	}
	state, stateErr := l.journal.State()
	for _, f := range conf.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at, err := nginx.ChangeTime(f.Path)
		if err != nil {
			return nil, err
		}
		// What somebody edits and loads in one command line is not pending.
		if !at.After(running.LoadedAtLatest()) {
			continue
		}
		sha := hash(f.Src)
		if stateErr == nil && state.Ours(f.Path, sha) {
			continue
		}
		found = append(found, PendingFile{Path: f.Path, Changed: at, Loaded: running.Loaded(), Future: at.After(running.Now)})
	}
	return found, nil
}

// find asks the binary what it is, once.
func (l *Local) find(ctx context.Context) (nginx.Build, error) {
	if l.build != nil {
		return *l.build, nil
	}
	found, build, err := nginx.Find(ctx, l.options.Nginx)
	if err == nil {
		l.options.Nginx, l.build = found, &build
	}
	return build, err
}

func (l *Local) binary() nginx.Binary { return l.options.Nginx }

// running looks at the nginx that runs, by what conf says of it.
func (l *Local) running(ctx context.Context, conf *nginx.Config, build nginx.Build) (nginx.Running, error) {
	var r nginx.Running
	err := l.effect("look for nginx's master", func() (err error) {
		r, err = l.binary().Running(ctx, conf.PIDPath(build))
		return err
	})
	return r, err
}

// runningOrStopped looks at the nginx that runs. If nginx is stopped, and the operation allows it, there
// is none: it has no process.
func (l *Local) runningOrStopped(ctx context.Context, conf *nginx.Config, build nginx.Build) (nginx.Running, error) {
	for {
		now, err := l.running(ctx, conf, build)
		if !l.allowStopped || !errors.Is(err, nginx.ErrNotRunning) {
			return now, err
		}
		if stopped, err := l.isStopped(ctx, conf, settleLimit); stopped || err != nil {
			return nginx.Running{}, err
		}
	}
}

// isStopped reports whether nginx is known to be stopped.
func (l *Local) isStopped(ctx context.Context, conf *nginx.Config, limit time.Duration) (stopped bool, err error) {
	err = l.effect("look for processes of nginx", func() (err error) {
		stopped, err = l.binary().Stopped(ctx, conf, limit)
		return err
	})
	return stopped, err
}

func generation(r nginx.Running) *Generation {
	g := &Generation{Serving: len(r.Serving()), Finishing: len(r.Exiting()), Earlier: r.Earlier(), Loaded: r.Loaded()}
	for _, p := range r.Exiting() {
		g.Memory += p.Memory()
	}
	return g
}
