package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// exiting is in the title of a worker that only finishes what it holds
// (ngx_worker_process_cycle).
const exiting = "is shutting down"

// A Running is the nginx that runs, at one moment.
type Running struct {
	Master  Process
	Workers []Process // the serving and the exiting
	// children are the workers and all other children of the master.
	children []Process
	// Age is for how long the oldest serving worker has been running: the
	// running configuration was read before that.
	Age time.Duration
	// Now is the machine's clock when it was looked at.
	Now time.Time
	// Unsure is how much later than Loaded the generation may have started.
	Unsure time.Duration
}

// Loaded is when the serving generation started, or up to Unsure earlier: a file
// that was last changed before is what runs, unless that was while the master
// loaded it.
func (r Running) Loaded() time.Time { return r.Now.Add(-r.Age) }

// LoadedAtLatest is when it started, or up to Unsure later: a file that was
// changed after is not what runs.
func (r Running) LoadedAtLatest() time.Time { return r.Loaded().Add(r.Unsure) }

// ErrNotRunning is wrapped when no nginx master is found.
var ErrNotRunning = errors.New("nginx is not running")

// Serving is the workers that accept connections.
func (r Running) Serving() []Process {
	return slices.DeleteFunc(slices.Clone(r.Workers), Process.IsExiting)
}

// Exiting is the workers of earlier generations that finish what they hold.
func (r Running) Exiting() []Process {
	return slices.DeleteFunc(slices.Clone(r.Workers), func(p Process) bool { return !p.IsExiting() })
}

// generationGap is how far apart the workers of two generations start at least;
// those of one are started in a loop.
const generationGap = 5 // ticks

// Earlier is how many earlier generations still have workers that finish what
// they hold, told apart by when these were started.
func (r Running) Earlier() int {
	exiting := r.Exiting()
	slices.SortFunc(exiting, func(p, q Process) int { return cmp.Compare(p.Started, q.Started) })
	n := 0
	for i, p := range exiting {
		if i == 0 || p.Started-exiting[i-1].Started > generationGap {
			n++
		}
	}
	return n
}

// Replaced tells whether r serves with a generation later than the one of
// before: there are serving workers that before did not have, and every worker
// of before is gone or only finishes what it holds.
func (r Running) Replaced(before Running) bool {
	serving := r.Serving()
	return len(serving) > 0 && !slices.ContainsFunc(serving, before.has)
}

// Started tells whether r has serving workers that before did not have: a load
// has worked, though earlier workers may still accept.
func (r Running) Started(before Running) bool {
	return slices.ContainsFunc(r.Serving(), func(p Process) bool { return !before.has(p) })
}

// isStarting reports whether the master has a child that before did not have and that has no
// title of its own yet: it may become a worker. A child with children is another master: that of an
// upgrade, or of another nginx in a container whose first process is this master.
func (r Running) isStarting(before Running) bool {
	return slices.ContainsFunc(r.children, func(p Process) bool {
		return p.isMaster() && !p.parents && !slices.ContainsFunc(before.children, p.same)
	})
}

func (r Running) has(p Process) bool { return slices.ContainsFunc(r.Workers, p.same) }

// Running looks at the processes of the master with the given PID file, or, if
// that names none and nginx is reloaded by a command of the operator's own, of
// the only master there is. The error wraps [ErrNotRunning] if there is none, and
// lists them if there are several.
func (b Binary) Running(ctx context.Context, pidFile string) (Running, error) {
	if content, err := appendFile(nil, pidFile); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
		if err == nil && pid > 0 {
			if r, err := b.Processes(pid); err == nil || !errors.Is(err, ErrNotRunning) {
				return r, err
			}
		}
	}
	if len(b.ReloadCommand) == 0 {
		// Without its PID file, drainctl does not guess which master to signal.
		return Running{}, fmt.Errorf("%s names no running nginx master: %w", pidFile, ErrNotRunning)
	}
	all, err := processes(b.procDir())
	if err != nil {
		return Running{}, err
	}
	masters := slices.DeleteFunc(all, func(p Process) bool { return !p.isMaster() })
	switch len(masters) {
	case 0:
		return Running{}, fmt.Errorf("no nginx master process, by %s or by name: %w", pidFile, ErrNotRunning)
	case 1:
		return b.Processes(masters[0].PID)
	}
	build, _ := b.Build(ctx) // without a binary, a default is not known
	var list []string
	for _, p := range masters {
		conf := cmp.Or(Running{Master: p}.ConfOf(build), build.Conf, "its default configuration")
		list = append(list, fmt.Sprintf("%d (%s)", p.PID, conf))
	}
	return Running{}, fmt.Errorf("%s names no nginx master, and several run: %s; choose one by its configuration with --nginx-conf, or set pid in the configuration to its PID file",
		pidFile, strings.Join(list, ", "))
}

// Processes looks at the master with the given PID and its workers.
func (b Binary) Processes(pid int) (Running, error) {
	all, err := processes(b.procDir())
	if err != nil {
		return Running{}, err
	}
	boot, now, took := clocks()
	return running(all, pid, boot, now, took)
}

// running picks the master and its workers.
func running(all []Process, pid int, boot time.Duration, now time.Time, took time.Duration) (Running, error) {
	r := Running{Now: now, Unsure: tick + took}
	for _, p := range all {
		if p.Parent == pid {
			p.parents = p.isMaster() && slices.ContainsFunc(all, func(q Process) bool { return q.Parent == p.PID })
			r.children = append(r.children, p)
		}
		switch {
		case p.PID == pid:
			r.Master = p
		case p.Parent == pid && strings.HasPrefix(p.Title, "nginx: worker process"):
			r.Workers = append(r.Workers, p)
			if !p.IsExiting() {
				r.Age = max(r.Age, boot-time.Duration(p.Started)*tick)
			}
		}
	}
	if !r.Master.isMaster() {
		return Running{}, fmt.Errorf("process %d is not an nginx master: %w", pid, ErrNotRunning)
	}
	return r, nil
}

// ConfOf is the main file that the master was started with: the -c of its
// command line, which nginx shows in its title; empty when it has none. A path
// that is not absolute is resolved against the prefix of -p, or of the build.
func (r Running) ConfOf(b Build) string {
	args := strings.Fields(r.Master.Title)
	prefix, conf := b.Prefix, ""
	for i := 0; i+1 < len(args); i++ {
		switch args[i] {
		case "-c":
			conf = args[i+1]
		case "-p":
			prefix = args[i+1]
		}
	}
	if conf == "" || path.IsAbs(conf) {
		return conf
	}
	return path.Join(prefix, conf)
}
