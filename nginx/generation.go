package nginx

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Process is one of nginx's, told from a later one of the same PID by when
// it started.
type Process struct {
	PID     int
	Started uint64 // ticks since boot, /proc/PID/stat field 22
	Title   string // its command line, which nginx sets
}

// exiting is in the title of a worker that only finishes what it holds
// (ngx_worker_process_cycle).
const exiting = "is shutting down"

// A Running is the nginx that runs, at one moment.
type Running struct {
	Master  Process
	Workers []Process // the serving and the exiting
	// Age is for how long the oldest serving worker has been running: the
	// running configuration was read before that.
	Age time.Duration
	// Now is the host's clock when it was looked at.
	Now time.Time
	// Unsure is how much later than Loaded the generation may have started.
	Unsure time.Duration
}

// Loaded is when, by the host's clock, the serving generation started, or up to
// Unsure earlier: a file that was last changed before is what runs, unless that
// was while the master loaded it.
func (r Running) Loaded() time.Time { return r.Now.Add(-r.Age - tick) }

// LoadedAtLatest is when it started, or up to Unsure later: a file that was
// changed after is not what runs.
func (r Running) LoadedAtLatest() time.Time { return r.Loaded().Add(r.Unsure) }

// ErrNotRunning is wrapped when no nginx master is found.
var ErrNotRunning = errors.New("nginx is not running")

// Serving is the workers that accept connections.
func (r Running) Serving() []Process {
	return slices.DeleteFunc(slices.Clone(r.Workers), func(p Process) bool { return strings.Contains(p.Title, exiting) })
}

// Exiting is the workers of earlier generations that finish what they hold.
func (r Running) Exiting() []Process {
	return slices.DeleteFunc(slices.Clone(r.Workers), func(p Process) bool { return !strings.Contains(p.Title, exiting) })
}

// Replaced tells whether r serves with a generation later than the one of
// before: there are serving workers that before did not have, and every worker
// of before is gone or only finishes what it holds.
func (r Running) Replaced(before Running) bool {
	serving := r.Serving()
	for _, p := range serving {
		if before.has(p) {
			return false
		}
	}
	return len(serving) > 0
}

// Started tells whether r has serving workers that before did not have: a load
// has worked, though earlier workers may still accept.
func (r Running) Started(before Running) bool {
	return slices.ContainsFunc(r.Serving(), func(p Process) bool { return !before.has(p) })
}

func (r Running) has(p Process) bool {
	return slices.ContainsFunc(r.Workers, func(q Process) bool { return q.PID == p.PID && q.Started == p.Started })
}

// processScript prints the uptime and how it was before the time was taken, the
// time, and, for a PID and each of its children, PID, start time and command
// line, a line each. The time was taken between the two, so they tell how well
// the start times are known by the host's clock. The uptime is read without a
// process of its own, as that would take long. /proc/PID/stat is cut after the
// last ')', as the name before it may hold anything.
const processScript = `read -r first idle < /proc/uptime || exit 1
now=$(date +%s.%N)
read -r up idle < /proc/uptime || exit 1
printf '%s %s\n%s\n' "$up" "$first" "$now"
pid=$1
[ -d "/proc/$pid" ] || exit 3
read -r children 2>/dev/null < "/proc/$pid/task/$pid/children"
for p in $pid $children; do
	read -r stat 2>/dev/null < "/proc/$p/stat" || continue
	set -- ${stat##*) }
	title=$(tr '\000\n' '  ' < "/proc/$p/cmdline" 2>/dev/null) || continue
	printf '%s %s %s\n' "$p" "${20}" "$title"
done`

// mastersScript prints the PIDs of all processes titled as an nginx master.
const mastersScript = `for d in /proc/[0-9]*; do
	t=$(tr '\000\n' '  ' < "$d/cmdline" 2>/dev/null) || continue
	case $t in "nginx: master process"*) echo "${d#/proc/}";; esac
done`

// Running looks at the processes of the master with the given PID file, or, if
// that names none and nginx is reloaded by a command of the operator's own, of
// the only master there is.
func (b Binary) Running(ctx context.Context, pidFile string) (Running, error) {
	content, err := b.Host.ReadFile(ctx, pidFile)
	if err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
		if err == nil && pid > 0 {
			if r, err := b.Processes(ctx, pid); err == nil || !errors.Is(err, ErrNotRunning) {
				return r, err
			}
		}
	}
	if len(b.ReloadCommand) == 0 {
		// nginx -s reload goes by the same file, and would not find it either.
		return Running{}, fmt.Errorf("%s names no running nginx master: %w", pidFile, ErrNotRunning)
	}
	pid, err := b.onlyMaster(ctx, pidFile)
	if err != nil {
		return Running{}, err
	}
	return b.Processes(ctx, pid)
}

// Processes looks at the master with the given PID and its workers.
func (b Binary) Processes(ctx context.Context, pid int) (Running, error) {
	out, errOut, code, err := b.Host.Exec(ctx, "sh", "-c", processScript, "sh", strconv.Itoa(pid))
	if err != nil {
		return Running{}, fmt.Errorf("look at the processes of nginx: %w", err)
	}
	if code == 3 {
		return Running{}, fmt.Errorf("process %d is gone: %w", pid, ErrNotRunning)
	}
	if code != 0 {
		return Running{}, fmt.Errorf("look at the processes of nginx: %s", strings.TrimSpace(errOut))
	}
	return parseProcesses(out, pid)
}

// ticksPerSecond is USER_HZ, which Linux has fixed at 100 for all it tells
// user space.
const ticksPerSecond = 100

// tick is the unit of start times, and of the uptime.
const tick = time.Second / ticksPerSecond

// parseProcesses reads the output of processScript.
func parseProcesses(out string, pid int) (Running, error) {
	var r Running
	first, rest, _ := strings.Cut(out, "\n")
	uptime, taken, err := parseUptime(first)
	if err != nil {
		return Running{}, err
	}
	clock, rest, _ := strings.Cut(rest, "\n")
	var unit time.Duration
	if r.Now, unit, err = parseClock(clock); err != nil {
		return Running{}, err
	}
	// Start times and uptimes are cut off after a tick, each in its direction.
	r.Unsure = taken + 2*tick + unit
	for line := range strings.Lines(rest) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) < 3 {
			continue
		}
		p := Process{Title: f[2]}
		if p.PID, err = strconv.Atoi(f[0]); err != nil {
			return Running{}, fmt.Errorf("process line %q: %w", line, err)
		}
		if p.Started, err = strconv.ParseUint(f[1], 10, 64); err != nil {
			return Running{}, fmt.Errorf("process line %q: %w", line, err)
		}
		switch {
		case p.PID == pid:
			r.Master = p
		case strings.HasPrefix(p.Title, "nginx: worker process"):
			r.Workers = append(r.Workers, p)
			age := time.Duration((uptime - float64(p.Started)/ticksPerSecond) * float64(time.Second))
			if !strings.Contains(p.Title, exiting) && age > r.Age {
				r.Age = age
			}
		}
	}
	if !strings.HasPrefix(r.Master.Title, "nginx: master process") {
		return Running{}, fmt.Errorf("process %d is %q, not an nginx master: %w", pid, r.Master.Title, ErrNotRunning)
	}
	return r, nil
}

// parseUptime reads the uptime, in seconds, and for how long the time was being
// taken before.
func parseUptime(line string) (uptime float64, taken time.Duration, err error) {
	up, before, _ := strings.Cut(line, " ")
	uptime, err = strconv.ParseFloat(up, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("uptime %q: %w", line, err)
	}
	first, err := strconv.ParseFloat(before, 64)
	if err != nil || !(first <= uptime) {
		return 0, 0, fmt.Errorf("uptime %q: not two times, the later first", line)
	}
	return uptime, time.Duration((uptime - first) * float64(time.Second)), nil
}

// parseClock reads seconds and nanoseconds since the epoch, and how finely they
// were told. A date without nanoseconds (busybox) prints the %N as it is, or
// nothing.
func parseClock(s string) (now time.Time, unit time.Duration, err error) {
	sec, nsec, _ := strings.Cut(strings.TrimSpace(s), ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("the host's clock %q: %w", s, err)
	}
	frac, err := strconv.ParseInt(nsec, 10, 64)
	if err != nil || frac < 0 || frac > 999999999 {
		return time.Unix(n, 0), time.Second, nil
	}
	return time.Unix(n, frac), 0, nil
}

// onlyMaster is the PID of the only nginx master there is.
func (b Binary) onlyMaster(ctx context.Context, pidFile string) (int, error) {
	out, _, _, err := b.Host.Exec(ctx, "sh", "-c", mastersScript)
	if err != nil {
		return 0, fmt.Errorf("look for an nginx master: %w", err)
	}
	switch pids := strings.Fields(out); len(pids) {
	case 0:
		return 0, fmt.Errorf("no nginx master process, by %s or by name: %w", pidFile, ErrNotRunning)
	case 1:
		return strconv.Atoi(pids[0])
	default:
		return 0, fmt.Errorf("%s names no nginx master, and there are several (%s): %w", pidFile, strings.Join(pids, ", "), ErrNotRunning)
	}
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

// PIDPath is where the master of this configuration writes its PID.
func (c *Config) PIDPath(b Build) string {
	if c.PIDFile != "" {
		return b.abs(c.PIDFile)
	}
	return b.PID
}

// LogPaths are the files that the master of this configuration writes its
// errors to.
func (c *Config) LogPaths(b Build) []string {
	if len(c.ErrorLogs) == 0 {
		if b.ErrorLog == "" {
			return nil
		}
		return []string{b.ErrorLog}
	}
	var paths []string
	for _, p := range c.ErrorLogs {
		paths = append(paths, b.abs(p))
	}
	return paths
}
