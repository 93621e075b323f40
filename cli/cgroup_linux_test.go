package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/drain/journal"
)

// newGroup makes a control group for a test and returns the mount and the path of the
// group. It skips the test where none can be made.
func newGroup(t *testing.T, uid int) (mount, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make a control group and give it to another user")
	}
	mount, _, err := cgroupMount()
	if err != nil {
		t.Fatal(err)
	}
	if mount == "" {
		t.Skip("cgroup2 is not mounted here")
	}
	had := func() bool { _, err := os.Stat(mount + "/" + agentGroup); return err == nil }()
	dir = filepath.Join(mount, fmt.Sprintf("drainctl-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no control group can be made here: %v", err)
	}
	t.Cleanup(func() {
		removeGroup(t, dir)
		if !had {
			_ = os.Remove(mount + "/" + agentGroup) // fails while another agent is in it
		}
	})
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return mount, dir
}

// removeGroup removes a group, which takes as long as its last process needs to end.
func removeGroup(t *testing.T, dir string) {
	t.Helper()
	var err error
	for range 100 {
		if err = os.Remove(dir); err == nil || os.IsNotExist(err) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error(err)
}

// leaves starts the agent in a control group, and makes sure that it moves to root's.
func (a *testedAgent) leaves(dir string) {
	a.t.Helper()
	group, err := os.Open(dir)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { group.Close() })
	a.cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := a.start(); err != nil {
		a.t.Fatal(err)
	}
	a.greeting()
	if got := groupOf(a.t, a.cmd.Process.Pid); got != "/"+agentGroup {
		a.t.Errorf("the agent is in the group %s", got)
	}
}

// groupOf is the control group of a process.
func groupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return groupIn(string(text))
}

// A caller who owns the control group in which the agent starts can neither freeze nor
// kill the agent: it moves to a group that only root can write.
func TestCallerCannotFreezeTheAgent(t *testing.T) {
	mount, dir := newGroup(t, 1000)
	agent := agentProcess(t)
	agent.leaves(dir)
	pid := agent.cmd.Process.Pid
	if err := checkGroup(mount, mount+"/"+agentGroup, []int{0}); err != nil {
		t.Error(err)
	}
	for _, file := range []string{"cgroup.freeze", "cgroup.kill"} {
		if err := os.WriteFile(dir+"/"+file, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := agent.cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the agent was killed: %v", err)
	}
	if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(stat), ") Z") {
		t.Errorf("the agent was killed: %s, error %v", stat, err)
	}
}

// A group is root's alone if root owns it and all groups above it, and nobody else can
// write to one of its files.
func TestCheckGroup(t *testing.T) {
	mount, dir := newGroup(t, 0)
	if err := checkGroup(mount, dir, []int{0}); err != nil {
		t.Errorf("root's group: %v", err)
	}
	below := dir + "/below"
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	defer removeGroup(t, below)
	for name, change := range map[string]func() error{
		"another owner":              func() error { return os.Chown(below, 1000, 0) },
		"another owner above":        func() error { return os.Chown(dir, 1000, 0) },
		"writable by the group":      func() error { return os.Chmod(below, 0o775) },
		"writable by others":         func() error { return os.Chmod(dir, 0o757) },
		"sticky":                     func() error { return os.Chmod(dir, 0o777|os.ModeSticky) },
		"another owner of a file":    func() error { return os.Chown(below+"/cgroup.freeze", 1000, 0) },
		"a file that others write":   func() error { return os.Chmod(below+"/cgroup.kill", 0o222) },
		"another owner of the procs": func() error { return os.Chown(dir+"/cgroup.procs", 1000, 0) },
	} {
		if err := change(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := checkGroup(mount, below, []int{0}); err == nil {
			t.Errorf("%s: the group counts as root's alone", name)
		}
		for _, path := range []string{dir, below} {
			for _, file := range []string{"", "/cgroup.freeze", "/cgroup.procs", "/cgroup.kill"} {
				mode := os.FileMode(0o644)
				if file == "" {
					mode = 0o755
				}
				if err := os.Chown(path+file, 0, 0); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path+file, mode); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := checkGroup(mount, below, []int{0}); err != nil {
			t.Fatalf("%s, put back: %v", name, err)
		}
	}
	for _, group := range []string{mount + "/no-such", filepath.Dir(mount)} {
		if err := checkGroup(mount, group, []int{0}); err == nil {
			t.Errorf("%s counts as root's alone", group)
		}
	}
}

// Root of this machine owns the groups of an agent here, and nobody else.
func TestGroupOwners(t *testing.T) {
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || len(strings.Fields(string(users))) != 3 || strings.Fields(string(users))[2] != "4294967295" {
		t.Skip("this is a container with users of its own")
	}
	if got := groupOwners(journal.Recorder{UID: 1000}); len(got) != 1 || got[0] != 0 {
		t.Errorf("owners %v", got)
	}
}

// An agent also leaves a group that only root can write: logind signals the processes in the
// group of a session for the user of that session.
func TestAgentLeavesTheGroupOfASession(t *testing.T) {
	_, dir := newGroup(t, 0)
	agentProcess(t).leaves(dir)
}

// The agent of root stays in its group. An agent that cannot leave its group is refused, with
// advice, if its caller can write that group.
func TestAgentThatCannotLeaveItsGroup(t *testing.T) {
	mount, dir := newGroup(t, 1000)
	name := "/" + filepath.Base(dir)
	deploy := journal.Recorder{UID: 1000, Name: "deploy"}
	if err := leaveGroup(journal.Recorder{}, mount, "/", name); err != nil {
		t.Errorf("root: %v", err)
	}
	if err := leaveGroup(deploy, "", "/", name); err != nil {
		t.Errorf("cgroup2 is not mounted: %v", err)
	}
	if got := groupOf(t, os.Getpid()); got == "/"+agentGroup {
		t.Errorf("moved to %s", got)
	}
	// A mount in which a group of the agent's name is not root's.
	err := leaveGroup(deploy, dir, "/", "/no-such")
	if err == nil || !strings.Contains(err.Error(), "deploy (uid 1000)") || !strings.Contains(err.Error(), "\nhint: ") {
		t.Errorf("a group that cannot be left: %v", err)
	}
	removeGroup(t, dir+"/"+agentGroup)
	// Only root can write the group, and the name of the agent's is taken by a file.
	plain := t.TempDir()
	if err := os.Mkdir(plain+"/session", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plain+"/"+agentGroup, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := leaveGroup(deploy, plain, "/", "/session"); err != nil {
		t.Errorf("a group of root's that cannot be left: %v", err)
	}
}

func TestGroupMounts(t *testing.T) {
	const info = `30 22 0:27 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
39 30 0:36 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
40 30 0:37 /docker/x /mnt/part rw - cgroup2 cgroup2 rw
41 30 0:37 / /mnt/a\040-\040cgroup2 rw shared:1 master:2 - cgroup2 cgroup2 rw
42 30 0:99 / /home/deploy/fuse rw - fuse.cgroup2 cgroup2 rw
`
	for text, want := range map[string][2]string{
		info: {"/mnt/a - cgroup2", "/"},
		strings.ReplaceAll(info, "0:37 / ", "0:37 /docker/y "): {"/mnt/part", "/docker/x"},
		strings.ReplaceAll(info, "- cgroup2", "- ext4"):        {},
	} {
		if mount, root := cgroupMountIn(text); mount != want[0] || root != want[1] {
			t.Errorf("%q shows %q, want %q", mount, root, want)
		}
	}
	if got := groupIn("9:name=systemd:/x\n1:cpu:/0::/y\n0::/user.slice/a b:c\n"); got != "/user.slice/a b:c" {
		t.Errorf("group %q", got)
	}
}
