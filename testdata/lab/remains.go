package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// removeRemains takes down all that a lab in a place consists of, as far as it is there:
// after it, a machine is as if none had been there. It is for the holder of the place's
// lock. It goes by what it finds and not by what a lab remembers, so that it is the same
// after a lab that was killed.
func (p place) removeRemains(log io.Writer) error {
	processes, err := p.ownProcesses()
	if err != nil {
		return err
	}
	if len(processes) > 0 {
		_, _ = fmt.Fprintf(log, "lab: ending %d processes that the last lab %d has left\n", len(processes), p)
	}
	errs := []error{p.endAll(processes)}
	errs = append(errs, p.unmountAll(), p.removeNamespaces(), p.removeGroups())
	// Only now: while something is mounted below the directory, removing it would
	// reach through the mount.
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(p.directory()), p.removeTraces())
	}
	return errors.Join(errs...)
}

// Parts tells what there is on this machine of the lab, a line each: nothing once it
// has come down whole.
func (l *Lab) Parts() ([]string, error) {
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if !down {
		return l.at.parts()
	}
	lock, err := l.at.tryLock()
	if err != nil || lock == nil { // another lab is there by now
		return nil, err
	}
	parts, err := l.at.parts()
	return parts, errors.Join(err, lock.Close())
}

func (p place) parts() ([]string, error) {
	var found []string
	processes, err := p.ownProcesses()
	if err != nil {
		return nil, err
	}
	for _, r := range processes {
		found = append(found, fmt.Sprintf("process %d: %s", r.PID, r.What))
	}
	points, err := mountPoints()
	if err != nil {
		return nil, err
	}
	for _, point := range points {
		if p.isMountOfOurs(point) {
			found = append(found, "mount "+point)
		}
	}
	patterns := append([]string{p.directory(), namespacePath(p.prefix() + "*")}, p.nspawnTraces()...)
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		patterns = append(patterns, filepath.Join(hierarchy, p.prefix()+"*"))
	}
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		found = append(found, names...)
	}
	return found, nil
}

// ownProcesses finds the processes of a lab: those that were recorded, each
// systemd-nspawn that runs one of its machines with that machine's first process
// (a kill may have come before they were recorded), and whatever was started in one
// of its network namespaces.
func (p place) ownProcesses() ([]process, error) {
	found, err := p.recorded()
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(r process) bool { return !r.alive() })
	pids, err := processIDs()
	if err != nil {
		return nil, err
	}
	inside, err := p.namespaceInodes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		what := ""
		switch {
		case pid == os.Getpid():
		case p.runsOurMachine(pid):
			what = "systemd-nspawn"
		case inside[networkInode(pid)]:
			what = "in a network namespace of the lab"
		}
		if what == "" || slices.ContainsFunc(found, func(r process) bool { return r.PID == pid }) {
			continue
		}
		if r, err := findProcess(pid, what); err == nil {
			found = append(found, r)
		}
	}
	return found, nil
}

// runsOurMachine says whether a process is the systemd-nspawn of one of our
// machines: both the machine's name and its root have to be ours.
func (p place) runsOurMachine(pid int) bool {
	args := arguments(pid)
	if len(args) == 0 || filepath.Base(args[0]) != "systemd-nspawn" {
		return false
	}
	ours := func(start string) bool {
		return slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, start) })
	}
	return ours("--machine="+p.prefix()) && ours("--directory="+p.rootsDirectory()+"/")
}

// endAll kills processes. First processes of a machine go first: the kernel ends
// the machine's others with them, and systemd-nspawn then tidies up and ends by
// itself, which it could not do if it were killed.
func (p place) endAll(processes []process) error {
	var supervisors, others []process
	for _, r := range processes {
		if p.runsOurMachine(r.PID) {
			supervisors = append(supervisors, r)
		} else {
			others = append(others, r)
		}
	}
	var errs []error
	for _, r := range others {
		errs = append(errs, r.signal(unix.SIGKILL))
	}
	for _, r := range supervisors {
		// One that was just started has no child yet, or one that is not yet a
		// machine's first process. It ends with its supervisor.
		for _, child := range initsBelow(r.PID) {
			errs = append(errs, child.signal(unix.SIGKILL))
		}
	}
	for _, r := range others {
		errs = append(errs, r.gone(endLimit))
	}
	for _, r := range supervisors {
		if r.gone(2*time.Second) != nil {
			errs = append(errs, r.end(endLimit))
		}
	}
	return errors.Join(errs...)
}

func initsBelow(pid int) []process {
	below, err := children(pid)
	if err != nil {
		return nil
	}
	var found []process
	for _, child := range below {
		if p, err := findProcess(child, "first process of a machine"); err == nil && isInit(child) {
			found = append(found, p)
		}
	}
	return found
}

// unmountAll unmounts what a lab has mounted, the last first.
func (p place) unmountAll() error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if p.isMountOfOurs(point) {
			errs = append(errs, unmount(point))
		}
	}
	return errors.Join(errs...)
}

// unmount takes a mount away. A process that is just ending may hold it for a
// moment; what somebody else holds (a shell that stands in it) is detached, and goes
// when they let go of it.
func unmount(point string) error {
	for range 50 {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach %s: %w", point, err)
	}
	return nil
}

// mountPoints lists the machine's mount points in the order they were mounted.
func mountPoints() ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	var points []string
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if fields := strings.Fields(scanner.Text()); len(fields) > 4 {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// Newer versions of systemd-nspawn mount a directory for each machine here, and
// all make some that a killed one leaves.
func (p place) nspawnTraces() []string {
	return []string{
		"/run/systemd/nspawn/unix-export/" + p.prefix() + "*",
		"/run/systemd/nspawn/propagate/" + p.prefix() + "*",
	}
}

func (p place) isMountOfOurs(point string) bool {
	return strings.HasPrefix(point, p.directory()+"/") || slices.ContainsFunc(p.nspawnTraces(), func(pattern string) bool {
		match, _ := filepath.Match(pattern, point)
		return match
	})
}

func (p place) removeTraces() error {
	var errs []error
	for _, pattern := range p.nspawnTraces() {
		names, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, name := range names {
			if err := os.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
