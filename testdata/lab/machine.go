package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is one host of the lab.
type Machine struct {
	Name string // lb, app1, app2, app3 or client; in a fleet also lb2, jump, desk
	Addr string // in 192.168.1.0/24
	// Root is where the machine that the lab runs on sees the host's files. What a
	// host mounts for itself (/run, /tmp, /proc) is not seen there, and a symlink in
	// it leads to the machine's own files: ReadFile and WriteFile have neither fault.
	Root string

	at         place
	role       role
	ended      chan struct{} // closed when the host has ended and does not boot again
	mu         sync.Mutex
	leader     process // the host's first process, another one after a reboot
	supervisor process // its systemd-nspawn
}

func (l *Lab) newMachine(name, addr string, r role) *Machine {
	return &Machine{Name: name, Addr: addr, Root: filepath.Join(l.at.rootsDirectory(), name), at: l.at, role: r}
}

func (m *Machine) namespace() string { return m.at.prefix() + m.Name }

// booted says whether the machine has a system of its own; the client has not.
func (m *Machine) booted() bool { return m.Root != "/" }

// leaderPID is the number of the host's first process; 0 while it is between two boots.
func (m *Machine) leaderPID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader.PID != 0 && m.leader.alive() {
		return m.leader.PID
	}
	m.leader = process{}
	if m.supervisor.alive() {
		for _, p := range initsBelow(m.supervisor.PID) {
			m.leader = p
		}
	}
	return m.leader.PID
}

func (m *Machine) setSupervisor(p process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.supervisor = p
}

// Command is a command that runs on the host as root when it is started, with the
// environment and the working directory (/) of a fresh login. It has a session of
// its own, so that a Ctrl-C at the terminal is not for it. When ctx ends it is
// killed. Use Signal, not cmd.Process, to send it a signal.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", m.enterArguments(args)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash",
		"LANG=C.UTF-8", "TERM=xterm-256color",
	}
	if !m.booted() {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return m.Signal(cmd, unix.SIGKILL) }
	// A grandchild may hold the output open after the command has ended.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (m *Machine) enterArguments(args []string) []string {
	if !m.booted() {
		return append([]string{"--net=" + namespacePath(m.namespace()), "--"}, args...)
	}
	// A shell waits for the command, and not nsenter itself: nsenter stops when its command
	// is stopped, as a host that shuts down does to all there is, and for as long as nobody
	// waits for the command the host does not end. The shell itself is not among the host's
	// processes, so it may do nothing on its own: exec makes even kill, which it has built
	// in, a program.
	enter := []string{"--no-fork", "--target", strconv.Itoa(m.leaderPID()),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", "sh", "-c", `(exec "$@"); exit $?`, "sh"}
	return append(enter, args...)
}

// Signal sends a signal to a command that Command made and that was started. The
// process that exec knows is a shell, which waits for the real one and passes no signal
// on; so the signal goes to the real one, and the shell ends with it.
func (m *Machine) Signal(cmd *exec.Cmd, signal unix.Signal) error {
	pid, err := m.PID(cmd)
	if err != nil {
		return err
	}
	p, err := findProcess(pid, strings.Join(cmd.Args, " "))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.signal(signal)
}

// PID is the number, on the machine that the lab runs on, of the process that a
// started command runs on the host.
func (m *Machine) PID(cmd *exec.Cmd) (int, error) {
	if cmd.Process == nil {
		return 0, fmt.Errorf("%s on %s was not started", cmd, m.Name)
	}
	if !m.booted() {
		return cmd.Process.Pid, nil // nsenter became the command
	}
	// The shell forks once it is inside, which takes a few milliseconds.
	for range 200 {
		if below, err := children(cmd.Process.Pid); err == nil && len(below) > 0 {
			return below[0], nil
		}
		if stat, err := readStat(cmd.Process.Pid); err != nil || stat.state == 'Z' {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return cmd.Process.Pid, nil
}

// Run runs a command on the host as root and waits for it. It returns what the
// command wrote to both outputs; when it fails, the error tells that too.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	return m.run(ctx, nil, args...)
}

func (m *Machine) run(ctx context.Context, input []byte, args ...string) (string, error) {
	cmd := m.Command(ctx, args...)
	if input != nil {
		cmd.Stdin = bytes.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s on %s: %w: %s", strings.Join(args, " "), m.Name, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// ReadFile reads a file as the host sees it.
func (m *Machine) ReadFile(ctx context.Context, name string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := m.Command(ctx, "cat", "--", name)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("read %s on %s: %w: %s", name, m.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// WriteFile writes a file as the host sees it, following symlinks and making the
// directories that are missing. The file is written in place, not replaced. The
// client has no files of its own, so for it this is an error.
func (m *Machine) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	if !m.booted() {
		return fmt.Errorf("write %s: %s has no files of its own", name, m.Name)
	}
	const script = `mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod -- "$2" "$1"`
	if data == nil {
		data = []byte{}
	}
	_, err := m.run(ctx, data, "sh", "-c", script, "write", path.Clean(name), fmt.Sprintf("%04o", mode.Perm()))
	return err
}

// Cut pulls the host's network cable: nothing gets through any more, and nobody is
// told. Connections stay open on both sides.
func (m *Machine) Cut(ctx context.Context) error {
	return ipBatch(ctx, m.at.lan(), "link set "+m.Name+" down")
}

// Mend plugs the cable in again. It is no error if it was in.
func (m *Machine) Mend(ctx context.Context) error {
	return ipBatch(ctx, m.at.lan(), "link set "+m.Name+" up")
}

// BootID is another one each time the host has booted. It is read without a command on the
// host: systemd-shutdown waits ten seconds for one that somebody else has started.
func (m *Machine) BootID() (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/sys/kernel/random/boot_id", m.leaderPID()))
	if err != nil {
		return "", fmt.Errorf("boot ID of %s: %w", m.Name, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// Reboot has the host reboot, as systemctl does it, and waits until it serves again.
func (m *Machine) Reboot(ctx context.Context) error {
	before, err := m.BootID()
	if err != nil {
		return err
	}
	// It may take the command with it, whose end then tells nothing.
	_, failed := m.Run(ctx, "systemctl", "reboot")
	if err := m.WaitReboot(ctx, before); err != nil {
		return errors.Join(err, failed)
	}
	return nil
}

// WaitReboot waits until a host that had the boot ID before has another one, and serves.
func (m *Machine) WaitReboot(ctx context.Context, before string) error {
	err := poll(ctx, bootLimit, func() error {
		now, err := m.BootID()
		if err == nil && now == before {
			err = fmt.Errorf("%s has not rebooted", m.Name)
		}
		return err
	})
	if err != nil {
		return err
	}
	return m.waitServing(ctx)
}

// waitServing waits until all that the host is to run serves.
func (m *Machine) waitServing(ctx context.Context) error {
	return m.waitActive(ctx, append([]string{"ssh", "systemd-user-sessions"}, m.role.units...)...)
}

// waitActive waits until systemd on the host says that every unit is active.
func (m *Machine) waitActive(ctx context.Context, units ...string) error {
	var out string
	err := poll(ctx, bootLimit, func() error {
		var err error
		// It ends with 0 as soon as one of them is active.
		out, err = m.Run(ctx, append([]string{"systemctl", "is-active", "--"}, units...)...)
		others := func(state string) bool { return state != "active" }
		if err == nil && slices.ContainsFunc(strings.Fields(out), others) {
			err = errors.New("not all are active")
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		status, _ := m.Run(ctx, append([]string{"systemctl", "--no-pager", "--lines=20", "status", "--"}, units...)...)
		return fmt.Errorf("%s on %s did not become active (%s): %w\n%s",
			strings.Join(units, ", "), m.Name, strings.Join(strings.Fields(out), " "), err, status)
	}
	return err
}

// poll calls try until it succeeds, the limit has passed (then it returns the last
// error) or ctx has ended.
func poll(ctx context.Context, limit time.Duration, try func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
