package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An agent runs programs only from directories in which nobody but root can put one.
func TestAgentPathHasRootsDirectoriesOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a directory to another user")
	}
	top := "/run/" + filepath.Base(t.TempDir()) + t.Name() // below /tmp no directory is safe
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := func(name string, mode os.FileMode, uid int) string {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, 0); err != nil {
			t.Fatal(err)
		}
		return path
	}
	safe := dir("safe", 0o755, 0)
	link := filepath.Join(top, "link")
	bad := []string{
		dir("group", 0o775, 0), dir("others", 0o757, 0), dir("sticky", 0o777|os.ModeSticky, 0),
		dir("theirs", 0o755, 1000), filepath.Join(top, "missing"), dir("theirs/below", 0o755, 0), link,
	}
	if err := os.Symlink("theirs/below", link); err != nil {
		t.Fatal(err)
	}
	path := safe
	for _, b := range bad {
		path += ":" + b
	}
	if got := safeDirs(path); !slices.Equal(got, []string{safe}) {
		t.Errorf("safe are %v, want %s alone", got, safe)
	}
	if got := safeDirs(agentPath); !slices.Contains(got, "/usr/bin") {
		t.Errorf("of the agent's path there is only %v", got)
	}
}

// Of the environment an agent keeps what sudo says of its caller. To clean it again
// changes nothing, so that the agent starts again once.
func TestAgentEnvironment(t *testing.T) {
	env := agentEnv([]string{"PATH=/tmp", "NGINX=3;4;", "LD_PRELOAD=x", "SUDO_UID=1000", "SUDO_COMMAND=x", "SUDO_UIDX=1", "SUDO_USER=a=b"})
	want := []string{env[0], "LC_ALL=C", "SUDO_UID=1000", "SUDO_USER=a=b"}
	if !slices.Equal(env, want) || env[0] == "PATH=/tmp" {
		t.Errorf("environment %q", env)
	}
	if again := agentEnv(env); !slices.Equal(again, env) {
		t.Errorf("%q becomes %q", env, again)
	}
}

// The caller's timer slack, I/O priority, CPU affinity and scheduling policy stay with the
// caller: an agent with a timer slack of days would never look at its lease.
func TestAgentResetsItsCallersScheduling(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root's agent resets all of it")
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	agent := agentProcess(t)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		var first unix.CPUSet
		for cpu := range 1 << 10 {
			if all.IsSet(cpu) {
				first.Set(cpu)
				break
			}
		}
		err := errors.Join(
			unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_BATCH}, 0),
			unix.Prctl(unix.PR_SET_TIMERSLACK, 1e15, 0, 0, 0),
			setIOPriority(3<<13), // idle
			unix.SchedSetaffinity(0, &first))
		if err == nil {
			err = agent.start() // it inherits from this thread
		}
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	agent.greeting()
	for _, tid := range agent.threads() {
		slack, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
		if got := strings.TrimSpace(string(slack)); err != nil || got != "50000" {
			t.Errorf("thread %d has a timer slack of %s ns, error %v", tid, got, err)
		}
		if attr, err := unix.SchedGetAttr(tid, 0); err != nil || attr.Policy != unix.SCHED_NORMAL {
			t.Errorf("thread %d has the scheduling policy %+v, error %v", tid, attr, err)
		}
		if class, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(tid), 0); errno != 0 || class>>13 == 3 {
			t.Errorf("thread %d has the I/O priority %#x, error %v", tid, class, errno)
		}
		var cpus unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &cpus); err != nil || cpus != all {
			t.Errorf("thread %d may run on %d CPUs of %d, error %v", tid, cpus.Count(), all.Count(), err)
		}
	}
}

// A testedAgent is an agent that uid 1000 has started through sudo, as far as it can tell.
type testedAgent struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	out    *bufio.Reader
	input  io.Closer
}

func agentProcess(t *testing.T) *testedAgent {
	t.Helper()
	program := filepath.Join(t.TempDir(), "isolated")
	if err := os.Symlink(os.Args[0], program); err != nil {
		t.Fatal(err)
	}
	a := &testedAgent{t: t, cmd: exec.Command(program, agentName), stderr: &bytes.Buffer{}}
	a.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SUDO_UID=1000", "SUDO_USER=deploy"}
	a.cmd.Stderr = a.stderr
	return a
}

func (a *testedAgent) start() error {
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	a.out = bufio.NewReader(out)
	if a.input, err = a.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.t.Cleanup(func() {
		a.input.Close()
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	})
	return nil
}

// greeting reads what an agent says once it serves.
func (a *testedAgent) greeting() {
	a.t.Helper()
	if line, err := a.out.ReadString('\n'); err != nil || !strings.Contains(line, `"agent":"drainctl"`) {
		a.input.Close()
		_ = a.cmd.Wait()
		a.t.Fatalf("the agent says %q, error %v: %s", line, err, a.stderr)
	}
}

func (a *testedAgent) threads() (ids []int) {
	a.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			a.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}
