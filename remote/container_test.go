package remote

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The container is a host with a booted systemd, an sshd and an address, in
// namespaces of its own: what the machine that runs the test may not have.

const (
	containerName = "drainctl-remote-host"
	containerNear = "drremote2"
	containerFar  = "drremote3"
	containerAddr = "198.18.80.2"
	containerPort = 2222
)

// container is the running host.
type container struct {
	server // its keys; the process is systemd-nspawn
	root   string
	ended  chan struct{}
}

// startContainer boots a host with the given files, names to texts.
func startContainer(t *testing.T, files map[string]string) *container {
	t.Helper()
	needRoot(t)
	needTool(t, "systemd-nspawn", "ip", "/usr/sbin/sshd", "sudo", "/lib/systemd/systemd")
	makeUsers(t)
	stopContainers()
	c := &container{ended: make(chan struct{})}
	c.dir = place(t)
	t.Cleanup(stopContainers) // before the place is removed
	c.key, c.knownHosts = c.dir+"/id_ed25519", c.dir+"/known_hosts"
	c.layRoot(t, files)
	c.link(t)
	c.boot(t)
	c.setKnown(t, fmt.Sprintf("[%s]:%d %s\n", containerAddr, containerPort, c.hostKey(t, "ed25519")))
	return c
}

// layRoot mounts the host's root: the machine's own with the files over it.
func (c *container) layRoot(t *testing.T, files map[string]string) {
	t.Helper()
	for _, name := range []string{c.key, c.dir + "/host_ed25519"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
	}
	layers := c.dir + "/layers"
	run(t, "mkdir", layers)
	run(t, "mount", "-t", "tmpfs", "-o", "size=512m,mode=755", "drainctl-test", layers)
	c.root = c.dir + "/root"
	run(t, "mkdir", c.root, layers+"/upper", layers+"/work")
	read := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	files["etc/machine-id"] = strings.Repeat("0123456789abcdef", 2) + "\n"
	files["etc/hostname"] = "host\n"
	files["etc/fstab"] = ""
	files["etc/drainctl-test/host_key"] = read(c.dir + "/host_ed25519")
	files["etc/drainctl-test/authorized_keys"] = read(c.key + ".pub")
	files["etc/drainctl-test/sshd_config"] = fmt.Sprintf("Port %d\nHostKey /etc/drainctl-test/host_key\nPidFile none\nAuthorizedKeysFile /etc/drainctl-test/authorized_keys\nStrictModes no\nUsePAM no\n", containerPort)
	files["etc/systemd/system/test-ssh.service"] = "[Service]\nExecStartPre=/bin/mkdir -p /run/sshd\nExecStart=/usr/sbin/sshd -D -e -f /etc/drainctl-test/sshd_config\nKillMode=process\n"
	files["etc/systemd/system/test.target"] = "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=dbus.service test-ssh.service\nAllowIsolate=yes\n"
	for name, text := range files {
		path := layers + "/upper/" + name
		run(t, "mkdir", "-p", filepath.Dir(path))
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, "_key") {
			mode = 0o600
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"default.target": "test.target", "systemd-tmpfiles-clean.timer": "/dev/null", "masked.service": "/dev/null",
	} {
		run(t, "ln", "-s", to, layers+"/upper/etc/systemd/system/"+name)
	}
	run(t, "mount", "-t", "overlay", "-o", fmt.Sprintf("lowerdir=/,upperdir=%[1]s/upper,workdir=%[1]s/work", layers), "drainctl-test", c.root)
}

// link gives the host a network that leads to this machine and nowhere else.
func (c *container) link(t *testing.T) {
	t.Helper()
	run(t, "ip", "netns", "add", containerName)
	run(t, "ip", "link", "add", containerNear, "type", "veth", "peer", "name", containerFar, "netns", containerName)
	run(t, "ip", "addr", "add", "198.18.80.1/30", "dev", containerNear)
	run(t, "ip", "link", "set", containerNear, "up")
	for _, args := range []string{"addr add " + containerAddr + "/30 dev " + containerFar, "link set " + containerFar + " up", "link set lo up"} {
		run(t, append([]string{"ip", "netns", "exec", containerName, "ip"}, strings.Fields(args)...)...)
	}
}

// boot starts the host and waits for its sshd.
func (c *container) boot(t *testing.T) {
	t.Helper()
	args := []string{
		"systemd-nspawn", "--quiet", "--boot", "--directory=" + c.root, "--machine=" + containerName,
		"--network-namespace-path=/run/netns/" + containerName, "--console=pipe", "--register=no", "--settings=no",
		"--link-journal=no", "--timezone=off", "--resolv-conf=off",
	}
	// With no systemd on the machine, nobody gives the host a control group of
	// its own; without one its systemd would take other processes for its own.
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		join := `n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1/cgroup.procs" || exit; shift; n=$((n-1)); done; exec "$@"`
		head := []string{"sh", "-c", join, "sh", strconv.Itoa(len(makeGroups(t)))}
		args = append(append(append(head, groups()...), args...), "--keep-unit")
	}
	cmd := exec.Command(args[0], args[1:]...)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(c.ended) }()
	for range 600 {
		conn, err := net.DialTimeout("tcp", joinPort(containerAddr, containerPort), time.Second)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-c.ended:
			t.Fatalf("the host has not booted: %s", &console)
		case <-time.After(200 * time.Millisecond):
		}
	}
	stopContainers()
	<-c.ended
	t.Fatalf("the host has not booted in 2 minutes: %s", &console)
}

// groups are the control groups of the host.
func groups() []string {
	var found []string
	for _, at := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(at + "/cgroup.procs"); err == nil {
			found = append(found, at+"/"+containerName)
		}
	}
	return found
}

func makeGroups(t *testing.T) []string {
	t.Helper()
	for _, group := range groups() {
		if err := os.MkdirAll(group, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return groups()
}

// stopContainers ends the host, this run's or one that a killed run left, and
// removes its network and groups.
func stopContainers() {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		words := strings.Split(string(text), "\x00")
		if err != nil || filepath.Base(words[0]) != "systemd-nspawn" || !strings.Contains(string(text), "\x00--machine="+containerName+"\x00") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		for _, leader := range children(pid) {
			_ = unix.Kill(leader, unix.SIGKILL)
		}
		for range 500 {
			if unix.Kill(pid, 0) != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = exec.Command("ip", "netns", "del", containerName).Run()
	_ = exec.Command("ip", "link", "del", containerNear).Run()
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.HasPrefix(f[1], "/tmp/drainctl-remote-") && (strings.HasSuffix(f[1], "/root") || strings.HasSuffix(f[1], "/layers")) {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	for _, group := range groups() {
		for range 100 {
			out, _ := exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").CombinedOutput()
			if _, err := os.Stat(group); err != nil || len(out) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// connect connects to the host as user.
func (c *container) connect(t *testing.T, user string) *sshHost {
	t.Helper()
	how := SSH{Address: containerAddr, Port: containerPort, User: user, Identity: c.key, ConfigFile: "none", KnownHosts: c.knownHosts}
	return connect(t, how)
}
