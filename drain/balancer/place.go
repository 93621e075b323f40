package balancer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/drainctl/drainctl/nginx"
)

// checkPlace refuses an nginx whose connections cannot be seen here, or that does not see the files
// that drainctl edits: one in a container.
func (r *reading) checkPlace(master int) {
	add := func(err error) {
		r.Problems = append(r.Problems, Problem{Code: ProblemPlace, Text: err.Error(), Unknown: unprivileged(err)})
	}
	if err := otherNetwork(master); err != nil {
		add(fmt.Errorf("%w\nhint: run drainctl in that namespace, as with nsenter(1)", err))
	}
	if !isSeen(master, r.ConfPath, false) {
		add(notSeen(master, r.ConfPath, "as it is here"))
		return
	}
	for _, file := range slices.Sorted(maps.Keys(r.Files)) {
		switch {
		case !isSeen(master, file, false):
			add(notSeen(master, file, "as it is here"))
		case !isSeen(master, file, true):
			add(fmt.Errorf("%w\nhint: mount its directory instead", notSeen(master, file, "when it is replaced: the file is mounted there by itself")))
		}
	}
}

func notSeen(master int, file, how string) error {
	return fmt.Errorf("%s does not see %s %s", describeMaster(master), file, how)
}

// otherNetwork fails if nginx's master is in another network namespace: the kernel lists the sockets
// of one (network_namespaces(7)). The files below /proc/PID/net of two processes are the same where the
// namespace is; unlike /proc/PID/ns/net, they tell that without CAP_SYS_PTRACE.
func otherNetwork(master int) error {
	here, errHere := os.Stat("/proc/self/net/unix")
	there, errThere := os.Stat(fmt.Sprintf("/proc/%d/net/unix", master))
	err := errors.Join(errHere, errThere)
	if err == nil && !os.SameFile(here, there) {
		err = fmt.Errorf("%s is in another network namespace: its connections cannot be seen here", describeMaster(master))
	}
	return err
}

// isSeen reports whether a process finds the same file at a path as drainctl or, if its directory is
// asked about, in the same directory: a file that is replaced there is replaced for both. The
// mount namespaces do not decide: systemd gives a unit with PrivateTmp= one of its own. What may not
// be looked at (ptrace(2), PTRACE_MODE_READ) counts as seen.
func isSeen(pid int, path string, directory bool) bool {
	here, err := nginx.RealPath(path)
	if err != nil {
		return true // of a file that is not here, others say more
	}
	there, err := realPathIn(fmt.Sprintf("/proc/%d/root", pid), path)
	if err == nil && directory {
		here, there = filepath.Dir(here), filepath.Dir(there)
	}
	var a, b fs.FileInfo
	if err == nil {
		b, err = os.Stat(there)
	}
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	a, err = os.Stat(here)
	return err != nil || os.SameFile(a, b)
}

// maxLinks bounds the symbolic links of one path, as Linux does (path_resolution(7)).
const maxLinks = 40

// realPathIn follows the symbolic links of an absolute path as a process does whose root directory is
// root. The kernel itself would follow an absolute one from the root of drainctl.
func realPathIn(root, path string) (string, error) {
	real, rest, links := "/", path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := filepath.Join(real, name)
		to, err := os.Readlink(root + next)
		switch {
		case errors.Is(err, syscall.EINVAL) || next == "/": // no link
			real = next
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(to) {
			real = "/"
		}
		rest = to + "/" + rest
	}
	return root + real, nil
}

func describeMaster(pid int) string {
	cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if name := containerIn(string(cgroup)); name != "" {
		return fmt.Sprintf("nginx (process %d in %s)", pid, name)
	}
	return fmt.Sprintf("nginx (process %d)", pid)
}

// containerName matches the names of control groups that containers are in: the ID of Docker, Podman,
// containerd and CRI-O, of which their commands show 12 digits, or the name of LXC or systemd-nspawn.
var containerName = regexp.MustCompile(`\b([0-9a-f]{12})[0-9a-f]{52}\b|/(?:lxc\.payload\.|lxc/|systemd-nspawn@)([^/\n]+)`)

// containerIn returns the container that a file /proc/PID/cgroup names (cgroups(7)); empty if it names
// none.
func containerIn(cgroup string) string {
	m := containerName.FindStringSubmatch(cgroup)
	if m == nil {
		return ""
	}
	return "container " + m[1] + strings.TrimSuffix(m[2], ".service")
}

// identity tells this LB from all others: sessions that have it in common reach one nginx, with one
// journal, in the same namespaces of one machine. Each part alone is not enough: containers have the
// boot ID of their host, machines that were cloned have the machine ID of the other (machine-id(5)), and
// those that were resumed from one snapshot both. It is empty if the namespaces or the boot ID
// are not known, and a hash since machine-id(5) asks to show none.
func (l *Local) identity(conf string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	machine, _ := os.ReadFile("/etc/machine-id") // not every system has it
	parts := []string{string(boot), string(machine), l.journal.Dir, conf}
	for _, kind := range []string{"mnt", "net", "pid"} {
		namespace, nsErr := os.Readlink("/proc/self/ns/" + kind)
		parts, err = append(parts, namespace), errors.Join(err, nsErr)
	}
	addresses, addrErr := net.InterfaceAddrs()
	if errors.Join(err, addrErr) != nil {
		return ""
	}
	for _, a := range addresses {
		parts = append(parts, a.String())
	}
	return hash(strings.Join(parts, "\x00"))
}
