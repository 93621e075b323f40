package cli

import (
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// agentPath is where an agent looks for nginx, ss, getent and the commands of root's
// configuration file: the secure_path of common sudoers files.
const agentPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"

// isolate takes away what the caller of an agent has chosen for its process: control group,
// environment, working directory, umask, open files, limits, scheduling, signals and
// terminal. sudo passes on most of it. The program then starts again: the Go runtime has
// read the environment (GODEBUG, GOGC, GOTRACEBACK) before main, and the scheduling and the
// signal mask belong to one thread until then.
func isolate() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Umask(0o022)
	if err := leaveCallersGroup(); err != nil {
		return err
	}
	err := os.Chdir("/")
	if err == nil {
		err = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
	}
	if err == nil {
		err = closeInherited()
	}
	if err == nil {
		err = resetLimits()
	}
	if err == nil {
		err = resetScheduling()
	}
	if err != nil {
		return fmt.Errorf("isolate the agent from its caller: %w", err)
	}
	leaveTerminal()
	env := agentEnv(os.Environ())
	if slices.Equal(env, os.Environ()) {
		return nil
	}
	program, err := os.Executable()
	if err == nil {
		err = syscall.Exec(program, os.Args, env)
	}
	return fmt.Errorf("start the agent in a clean environment: %w", err)
}

// agentEnv returns the environment of an agent: nothing of its caller's but what sudo
// itself says about the caller (sudo(8)).
func agentEnv(environ []string) []string {
	env := []string{"PATH=" + strings.Join(safeDirs(agentPath), ":"), "LC_ALL=C"}
	for _, kv := range environ {
		if name, _, _ := strings.Cut(kv, "="); slices.Contains([]string{"SUDO_UID", "SUDO_GID", "SUDO_USER"}, name) {
			env = append(env, kv)
		}
	}
	return env
}

// safeDirs returns the directories of a PATH in which only root can put or replace a
// program.
func safeDirs(path string) []string {
	return slices.DeleteFunc(filepath.SplitList(path), func(dir string) bool {
		info, err := lstatWay(dir, func(at string, info fs.FileInfo) error {
			if why := brokenRule(info, []int{0}); why != "" {
				return fmt.Errorf("%s must %s", at, why)
			}
			return nil
		})
		return err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0
	})
}

// closeInherited has every open file but the standard three close when a program starts.
func closeInherited() error {
	files, err := os.ReadDir("/proc/self/fd")
	for _, f := range files {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

// A limit is one that an agent gives itself in the place of its caller's.
type limit struct {
	resource int
	name     string
	want     unix.Rlimit
	least    uint64 // of the hard limit, where root may not raise it
}

const unlimited = unix.RLIM_INFINITY

// agentLimits are an agent's: no core files, which would show what root can read; for open
// files and the stack what programs expect; for the rest none.
var agentLimits = []limit{
	{unix.RLIMIT_CORE, "core files", unix.Rlimit{}, 0},
	{unix.RLIMIT_NOFILE, "the number of open files", unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}, 1 << 11},
	{unix.RLIMIT_STACK, "the stack", unix.Rlimit{Cur: 8 << 20, Max: unlimited}, 8 << 20},
	{unix.RLIMIT_FSIZE, "the size of files", unix.Rlimit{Cur: unlimited, Max: unlimited}, unlimited},
	{unix.RLIMIT_CPU, "the processor time", unix.Rlimit{Cur: unlimited, Max: unlimited}, unlimited},
	{unix.RLIMIT_AS, "the memory", unix.Rlimit{Cur: unlimited, Max: unlimited}, 2 << 30},
	{unix.RLIMIT_DATA, "the memory for data", unix.Rlimit{Cur: unlimited, Max: unlimited}, 2 << 30},
}

// resetLimits sets the limits. Where root may not raise them (CAP_SYS_RESOURCE, which
// containers may lack), the caller's stay if an agent can work with them. Otherwise that
// is an error: a limit could end the agent in the middle of an edit.
func resetLimits() error {
	for _, l := range agentLimits {
		if unix.Setrlimit(l.resource, &l.want) == nil {
			continue
		}
		var have unix.Rlimit
		err := unix.Getrlimit(l.resource, &have)
		if err == nil && have.Max < l.least {
			err = fmt.Errorf("%s is limited to %d, and root may not raise that", l.name, have.Max)
		}
		if have.Cur = min(l.want.Cur, have.Max); err == nil {
			err = unix.Setrlimit(l.resource, &have)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// defaultTimerSlack is the timer slack of Linux's first process, in nanoseconds.
const defaultTimerSlack = 50_000

// resetScheduling resets how the kernel runs this thread: its policy, nice value, I/O
// priority and CPUs, how late its timers fire, and the score by which the kernel chooses
// what to kill when memory is short. Root in a container may lack the right to some of it:
// then the agent runs as its caller chose. The timer slack is an error: with a slack of
// days, the lease and the limits of the agent never end.
func resetScheduling() error {
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_NORMAL}, 0)
	_ = setIOPriority(0)
	var all unix.CPUSet
	all.Fill()
	_ = unix.SchedSetaffinity(0, &all) // the kernel takes those that there are
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, defaultTimerSlack, 0, 0, 0); err != nil {
		return fmt.Errorf("reset the timer slack: %w", err)
	}
	return nil
}

// setIOPriority sets the I/O priority of this thread (ioprio_set(2)). 0 is none: the kernel
// derives it from the nice value.
func setIOPriority(priority uintptr) error {
	const process = 1 // IOPRIO_WHO_PROCESS, which is a thread
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, priority); errno != 0 {
		return errno
	}
	return nil
}

// leaveTerminal has no terminal stop the agent, which may hold locks. A new session has no
// terminal. The leader of a process group can start none, and stays in the group that the
// terminal signals.
func leaveTerminal() {
	signal.Ignore(unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	if _, err := unix.Setsid(); err == nil {
		return
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	if session, err := unix.Getsid(0); err == nil && session != os.Getpid() { // a leader's end of it is everybody's
		_ = unix.IoctlSetInt(int(tty.Fd()), unix.TIOCNOTTY, 0)
	}
}
