package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// boot lays the hosts' file systems, starts them all at once, and waits until each
// serves.
func (l *Lab) boot(ctx context.Context) error {
	err := l.onHosts(func(m *Machine) error { return l.bootMachine(ctx, m) })
	if err != nil {
		return err
	}
	if err := l.keepInitial(ctx); err != nil {
		return err
	}
	return l.waitServing(ctx)
}

func (l *Lab) bootMachine(ctx context.Context, m *Machine) error {
	if err := l.layRoot(m); err != nil {
		return fmt.Errorf("files of %s: %w", m.Name, err)
	}
	if err := l.start(m); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	if err := l.waitLeader(ctx, m); err != nil {
		return fmt.Errorf("boot %s: %w\n%s", m.Name, err, m.consoleTail())
	}
	if err := m.waitServing(ctx); err != nil {
		return fmt.Errorf("boot %s: %w\n%s", m.Name, err, m.consoleTail())
	}
	return nil
}

// inotifyInstances is how many inotify(7) instances root may have while labs are up: each
// host takes about six, and Debian allows 128.
const inotifyInstances = 1024

// allowInotify raises the machine's limit if it is lower. It stays until the next boot.
func (l *Lab) allowInotify() error {
	const path = "/proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || now >= inotifyInstances {
		return err
	}
	l.say("raising fs.inotify.max_user_instances of this machine from %d to %d, until its next boot", now, inotifyInstances)
	return os.WriteFile(path, fmt.Appendf(nil, "%d\n", inotifyInstances), 0o644)
}

// waitServing waits until each load balancer reaches each app, and serves itself.
func (l *Lab) waitServing(ctx context.Context) error {
	for _, lb := range l.LBs() {
		for _, app := range l.Apps {
			if err := lb.waitAnswer(ctx, fmt.Sprintf("http://%s:%d/health", app.Addr, AppPort)); err != nil {
				return fmt.Errorf("%s on %s: %w", AppUnit, app.Name, err)
			}
		}
		if err := l.Client.waitAnswer(ctx, "http://"+lb.Addr+"/"); err != nil {
			return fmt.Errorf("nginx on %s: %w", lb.Name, err)
		}
	}
	return nil
}

// waitAnswer waits until a URL, asked from the machine, has an answer.
func (m *Machine) waitAnswer(ctx context.Context, url string) error {
	return poll(ctx, bootLimit, func() error {
		_, err := m.Run(ctx, "curl", "-sS", "--fail", "--max-time", "5", url)
		return err
	})
}

// start starts the host's systemd-nspawn, and has it start again whenever the host
// reboots.
func (l *Lab) start(m *Machine) error {
	console, err := os.Create(m.consolePath())
	if err != nil {
		return err
	}
	cmd, err := l.startNspawn(m, console)
	if err != nil {
		return errors.Join(err, console.Close())
	}
	m.ended = make(chan struct{})
	go func() {
		defer close(m.ended)
		defer func() { _ = console.Close() }()
		for rebooted(cmd.Wait()) {
			if cmd, err = l.startNspawn(m, console); err != nil {
				_, _ = fmt.Fprintf(console, "lab: boot %s again: %v\n", m.Name, err)
				return
			}
		}
	}()
	return nil
}

// rebooted says whether systemd-nspawn ended because its host wants to boot again. With
// --keep-unit it leaves that to whoever has started it, and without it it does it itself.
func rebooted(end error) bool {
	const forceRestart = 133
	var exit *exec.ExitError
	return errors.As(end, &exit) && exit.ExitCode() == forceRestart
}

// startNspawn starts the host's systemd-nspawn. It has a session of its own: a Ctrl-C is
// for the program that has the lab, which then takes the host down.
func (l *Lab) startNspawn(m *Machine, console *os.File) (*exec.Cmd, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("the lab is down")
	}
	arguments, err := m.nspawnArguments()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(arguments[0], arguments[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p, err := findProcess(cmd.Process.Pid, "systemd-nspawn of "+m.Name)
	if err != nil {
		return nil, err
	}
	m.setSupervisor(p)
	return cmd, l.record.add(p)
}

func (m *Machine) nspawnArguments() ([]string, error) {
	arguments := []string{
		"systemd-nspawn", "--quiet", "--boot",
		"--directory=" + m.Root,
		"--machine=" + m.namespace(),
		"--network-namespace-path=" + namespacePath(m.namespace()),
		"--console=pipe",
		"--register=no", "--settings=no", "--link-journal=no",
		"--timezone=off", "--resolv-conf=off",
	}
	// Where systemd runs the machine, nspawn asks it for a scope of its own for each
	// host. Elsewhere nobody gives it one: it would put all hosts into one control
	// group, in which each host's systemd takes the others' processes for its own.
	if systemdRuns() {
		return arguments, nil
	}
	groups, err := makeGroups(m.namespace())
	if err != nil {
		return nil, err
	}
	const join = `n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1/cgroup.procs" || exit; shift; n=$((n-1)); done; exec "$@"`
	head := append([]string{"sh", "-c", join, "join", fmt.Sprint(len(groups))}, groups...)
	return append(append(head, arguments...), "--keep-unit"), nil
}

// waitLeader waits for the host's first process.
func (l *Lab) waitLeader(ctx context.Context, m *Machine) error {
	err := poll(ctx, bootLimit, func() error {
		select {
		case <-m.ended:
			return nil
		default:
		}
		if m.leaderPID() == 0 {
			return errors.New("the host's first process has not started")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if m.leaderPID() == 0 {
		return errors.New("systemd-nspawn has ended")
	}
	return l.record.add(m.leader)
}

func (m *Machine) consolePath() string { return filepath.Join(m.at.directory(), m.Name+".console") }

// consoleTail is the end of what the host said on its console.
func (m *Machine) consoleTail() string {
	text, err := os.ReadFile(m.consolePath())
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	tail := bytes.Join(lines[max(0, len(lines)-20):], []byte("\n"))
	return "console of " + m.Name + ":\n" + string(tail)
}

// systemdRuns says whether systemd is the machine's own init, as sd_booted(3) does.
func systemdRuns() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// groupHierarchies lists the mounts at which a control group for systemd is made:
// the unified hierarchy, or on a machine that has both kinds, the two that systemd
// uses there.
func groupHierarchies() ([]string, error) {
	var found []string
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no control group hierarchy for systemd is mounted below /sys/fs/cgroup")
	}
	return found, nil
}

// makeGroups makes a host's control groups. What an earlier boot of it has left there goes
// first: in a group that has groups below it there may be no process (cgroups(7)).
func makeGroups(name string) ([]string, error) {
	hierarchies, err := groupHierarchies()
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, hierarchy := range hierarchies {
		group := filepath.Join(hierarchy, name)
		if err := removeGroup(group); err != nil {
			return nil, err
		}
		if err := os.Mkdir(group, 0o755); err != nil {
			return nil, fmt.Errorf("control group: %w", err)
		}
		groups = append(groups, group)
	}
	return groups, nil
}

func (p place) removeGroups() error {
	if systemdRuns() {
		return nil // the scopes go with their last process
	}
	hierarchies, err := groupHierarchies()
	if err != nil {
		return nil // no hierarchy, no groups
	}
	var errs []error
	for _, hierarchy := range hierarchies {
		groups, err := filepath.Glob(filepath.Join(hierarchy, p.prefix()+"*"))
		errs = append(errs, err)
		for _, group := range groups {
			errs = append(errs, removeGroup(group))
		}
	}
	return errors.Join(errs...)
}

// removeGroup removes a control group and those below it. A process that has just
// been killed keeps its group busy until the kernel is done with it.
func removeGroup(group string) error {
	below, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range below {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(endLimit); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(group)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", strings.TrimPrefix(group, "/sys/fs/cgroup/"), err)
		}
	}
}
