package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/drain/journal"
)

// agentGroup is the control group below the mount of cgroup2 that agents move to.
const agentGroup = "drainctl"

// leaveCallersGroup moves this process out of the control group of its caller. Who owns a
// group can freeze its processes, which then keep their locks, or kill them (cgroups(7),
// cgroup.freeze and cgroup.kill). systemd gives each user such a group, user@UID.service, and
// signals all processes in the group of a session for its user (loginctl(1), kill-session).
func leaveCallersGroup() error {
	if os.Geteuid() != 0 {
		return nil // the agent has no right that its caller lacks
	}
	caller, err := journal.Caller()
	if err != nil {
		return err
	}
	mount, root, err := cgroupMount()
	if err != nil {
		return fmt.Errorf("find the control groups: %w", err)
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without control groups
	}
	if err != nil {
		return fmt.Errorf("find the control group of the agent: %w", err)
	}
	return leaveGroup(caller, mount, root, groupIn(string(text)))
}

// leaveGroup moves this process from its control group to one that only root can write. mount
// shows the groups below root. It does nothing if the caller is root or if cgroup2 is not mounted.
// A failed move is an error only if another user than root can write the group.
func leaveGroup(caller journal.Recorder, mount, root, group string) error {
	if caller.UID == 0 || mount == "" || group == "" {
		return nil
	}
	owners := groupOwners(caller)
	below, err := filepath.Rel(root, group)
	exposed := fmt.Errorf("%s does not show the control group %s", mount, group)
	if err == nil && filepath.IsLocal(below) && !strings.Contains(root+group+"/", "/../") {
		exposed = checkGroup(mount, filepath.Join(mount, below), owners)
	}
	safe := filepath.Join(mount, agentGroup)
	if err := moveToGroup(mount, safe, owners); err != nil && exposed != nil {
		return usage("%s can freeze or kill the agent (%v), and the agent cannot move to %s: %v\n"+
			"hint: start drainctl from a login session, not from a service or a scope of user@%d.service\n"+
			"hint: as root, run mkdir -m 755 %s", caller, exposed, safe, err, caller.UID, safe)
	}
	return nil
}

// moveToGroup moves this process to a group of root's, which it makes if it is not there.
func moveToGroup(mount, safe string, owners []int) error {
	if err := os.Mkdir(safe, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := checkGroup(mount, safe, owners); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(safe, "cgroup.procs"), fmt.Appendln(nil, os.Getpid()), 0)
}

// groupOwners returns the users who may own the group of an agent: root and, in a container
// with users of its own, the container's host. There the kernel shows the host's users as
// one user (user_namespaces(7), overflowuid).
func groupOwners(caller journal.Recorder) []int {
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || slices.Equal(strings.Fields(string(users)), []string{"0", "0", "4294967295"}) {
		return []int{0}
	}
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	host, convErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || convErr != nil || host == int(caller.UID) {
		return []int{0}
	}
	return []int{0, host}
}

// checkGroup refuses a group that somebody but its owners can write: its directory, a
// directory between it and the mount, or a file of one of them.
func checkGroup(mount, dir string, owners []int) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if err := checkGroupDir(at, owners); err != nil {
			return err
		}
		if at == filepath.Clean(mount) {
			return nil
		}
		if at == filepath.Dir(at) {
			return fmt.Errorf("the control group %s is not below %s", dir, mount)
		}
	}
}

// checkGroupDir checks one directory and its files. Files of pressure stall information
// are left out: they only tell of it.
func checkGroupDir(dir string, owners []int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	infos := []fs.FileInfo{info}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.IsDir() || strings.HasSuffix(f.Name(), ".pressure") {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		infos = append(infos, info)
	}
	for i, info := range infos {
		at := dir
		if i > 0 {
			at = filepath.Join(dir, info.Name())
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !slices.Contains(owners, int(stat.Uid)) {
			return fmt.Errorf("%s is not root's", at)
		}
		if info.Mode().Perm()&0o022 != 0 { // whatever the sticky bit says
			return fmt.Errorf("%s is writable by its group or by others", at)
		}
	}
	return nil
}

// groupIn returns the group of cgroup2 in the text of /proc/PID/cgroup, "" if there is none.
func groupIn(text string) string {
	for line := range strings.Lines(text) {
		if group, found := strings.CutPrefix(line, "0::"); found {
			return strings.TrimSuffix(group, "\n")
		}
	}
	return ""
}

// cgroupMount returns the directory where cgroup2 is mounted and the group that it shows
// there. Both are empty where cgroup2 is not mounted.
func cgroupMount() (mount, root string, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	mount, root = cgroupMountIn(string(text))
	var stat unix.Statfs_t
	if mount == "" || unix.Statfs(mount, &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", "", nil
	}
	return mount, root, nil
}

// cgroupMountIn finds a mount of cgroup2 in the text of /proc/self/mountinfo
// (proc_pid_mountinfo(5)): that of all groups, otherwise the first one.
func cgroupMountIn(text string) (mount, root string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)
	for line := range strings.Lines(text) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if mount == "" || fields[3] == "/" {
			mount, root = unescape.Replace(fields[4]), unescape.Replace(fields[3])
		}
		if root == "/" {
			break
		}
	}
	return mount, root
}
