package remote

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The rig: real sshds on loopback, real users with real sudo rules. All names
// begin with drainctl-test-; what a killed run left behind goes first.

const (
	opUser  = "drainctl-test-all"  // may do everything through sudo
	webUser = "drainctl-test-unit" // may start and stop one unit
	noUser  = "drainctl-test-none" // may do nothing
)

// asUserEnv is set in the copy of this test that runs as an unprivileged user.
const asUserEnv = "DRAINCTL_TEST_AS_USER"

func TestMain(m *testing.M) {
	// What another run of this test has started shares its lock.
	part := os.Getenv(asUserEnv) != "" || os.Getenv(clientsEnv) != "" || slices.Contains(os.Args, "-test.fuzzworker")
	if part || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	// One run at a time: they have the names of users and networks in common.
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "drainctl-tests-of-remote.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock out other runs of this test:", err)
		os.Exit(1)
	}
	clean()
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // most of them wait
	os.Unsetenv("SSH_AUTH_SOCK")       // the tests have agents of their own
	code := m.Run()
	clean()
	lock.Close() // here, and not when the garbage collector thinks it is of no more use
	os.Exit(code)
}

// clean removes what a run has left, this one or one that was killed.
func clean() {
	stopContainers()
	stopServers()
	removeUsers()
	unmountLeftovers()
}

// stopServers ends every sshd that runs with a configuration of this rig.
func stopServers() {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		words := strings.ReplaceAll(string(text), "\x00", " ") // sshd rewrites it into one word
		if err != nil || !strings.Contains(words, "/usr/sbin/sshd -D -e -f /tmp/drainctl-remote-") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// needRoot fails a test that cannot do its work.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it starts sshd, creates users and sudo rules, and mounts file systems")
	}
}

// needTool fails a test for want of a program.
func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("this test needs %s, which is not installed", name)
		}
	}
}

// shells are the login shells that there may be on a host; for each there is a
// user shellUser+name.
var shells = []string{"bash", "dash", "fish", "tcsh", "zsh"}

const shellUser = "drainctl-test-"

func removeUsers() {
	all := []string{opUser, webUser, noUser}
	for _, shell := range shells {
		all = append(all, shellUser+shell)
	}
	for _, u := range all {
		os.Remove("/etc/sudoers.d/" + u)
		if _, err := user.Lookup(u); err == nil {
			if out, err := exec.Command("userdel", "-r", "-f", u).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("mail spool")) {
				fmt.Fprintf(os.Stderr, "userdel %s: %v: %s", u, err, out)
			}
		}
	}
}

func unmountLeftovers() {
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "/tmp/drainctl-remote-") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	left, _ := filepath.Glob("/tmp/drainctl-remote-*")
	for _, dir := range left {
		_ = exec.Command("rm", "-rf", "--one-file-system", dir).Run()
	}
}

var users sync.Once

// makeUsers creates the test's users, once.
func makeUsers(t testing.TB) {
	t.Helper()
	needRoot(t)
	needTool(t, "useradd", "sudo")
	users.Do(func() {
		for u, rules := range map[string]string{
			opUser: opUser + " ALL=(root) NOPASSWD: ALL\n",
			webUser: webUser + " ALL=(root) NOPASSWD: /usr/bin/systemctl start my-web-app, /usr/bin/systemctl stop my-web-app\n" +
				webUser + " ALL=(root) /usr/bin/id\n",
			noUser: "",
		} {
			// "*" is a password that none matches; "!" would lock the account for sshd.
			run(t, "useradd", "-m", "-p", "*", "-s", "/bin/sh", u)
			if rules != "" {
				if err := os.WriteFile("/etc/sudoers.d/"+u, []byte(rules), 0o440); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// run runs a command of the rig.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", Quote(args...), err, out)
	}
	return string(out)
}

// admin runs a shell script as root, whoever runs the test.
func admin(t testing.TB, script string, args ...string) string {
	t.Helper()
	words := append([]string{"sh", "-euc", script, "sh"}, args...)
	if os.Getuid() != 0 {
		words = append([]string{"sudo", "-n"}, words...)
	}
	cmd := exec.Command(words[0], words[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("as root: %s %q: %v: %s", script, args, err, &stderr)
	}
	return string(out)
}

// place makes an empty directory that everybody can look into and only root can
// write.
func place(t testing.TB) string {
	t.Helper()
	dir := strings.TrimSpace(admin(t, `d=$(mktemp -d /tmp/drainctl-remote-XXXXXX); chmod 755 "$d"; echo "$d"`))
	t.Cleanup(func() { admin(t, `rm -rf --one-file-system "$1"`, dir) })
	return dir
}

// write writes a file as root.
func write(t testing.TB, path, content string) {
	t.Helper()
	words := []string{"sh", "-c", `cat > "$1"`, "sh", path}
	if os.Getuid() != 0 {
		words = append([]string{"sudo", "-n"}, words...)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write %s: %v: %s", path, err, out)
	}
}

// server is a running sshd.
type server struct {
	dir        string
	port       int
	pid        int
	knownHosts string
	key        string // a private key that every user may log in with
	log        string
}

// options of a server.
type serverOptions struct {
	config  string // more lines for sshd_config
	address string // to listen on; 127.0.0.1 if empty
}

// rsaKey is the RSA host key of every server: making one takes long.
const rsaKey = "/tmp/drainctl-remote-rsa"

var makeRSA sync.Once

// startServer starts an sshd on loopback with keys of its own.
func startServer(t testing.TB, o serverOptions) *server {
	t.Helper()
	needRoot(t)
	needTool(t, "/usr/sbin/sshd", "ssh-keygen")
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd will not start without
		t.Fatal(err)
	}
	s := &server{dir: place(t)}
	s.knownHosts = filepath.Join(s.dir, "known_hosts")
	s.key = filepath.Join(s.dir, "id_ed25519")
	s.log = filepath.Join(s.dir, "log")
	for _, kind := range []string{"ed25519", "ecdsa"} {
		run(t, "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", filepath.Join(s.dir, "host_"+kind))
	}
	makeRSA.Do(func() { run(t, "ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", rsaKey) })
	run(t, "cp", "-p", rsaKey, filepath.Join(s.dir, "host_rsa"))
	run(t, "cp", rsaKey+".pub", filepath.Join(s.dir, "host_rsa.pub"))
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", s.key)
	s.authorize(t, s.key+".pub")
	if o.address == "" {
		o.address = "127.0.0.1"
	}
	for try := 1; ; try++ {
		if s.try(t, o) {
			break
		}
		if try == 5 {
			text, _ := os.ReadFile(s.log)
			t.Fatalf("sshd does not start: %s", text)
		}
	}
	s.know(t, "ed25519")
	return s
}

// try starts sshd on a port that was free a moment ago. What root's shell does at its
// start on this machine, by files in its home, is none of the tests' affair: some of it
// waits for a lock that a session which is killed leaves behind.
func (s *server) try(t testing.TB, o serverOptions) bool {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	config := fmt.Sprintf(`Port %d
ListenAddress %s
HostKey %[3]s/host_ed25519
HostKey %[3]s/host_ecdsa
HostKey %[3]s/host_rsa
PidFile none
AuthorizedKeysFile %[3]s/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
MaxAuthTries 20
%[4]s
Match User root
SetEnv HOME=%[3]s
`, s.port, o.address, s.dir, o.config)
	path := filepath.Join(s.dir, "sshd_config")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", path)
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.pid = cmd.Process.Pid
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	for range 2000 {
		if conn, err := net.Dial("tcp", joinPort("127.0.0.1", s.port)); err == nil {
			conn.Close()
			t.Cleanup(func() {
				if text, err := os.ReadFile(s.log); t.Failed() && err == nil {
					t.Logf("sshd on port %d: %s", s.port, lastLines(text, 20))
				}
				s.cut(t)
				_ = cmd.Process.Kill()
				<-exited
			})
			return true
		}
		select {
		case <-exited:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	_ = cmd.Process.Kill()
	<-exited
	return false
}

// authorize lets every user log in with a public key.
func (s *server) authorize(t testing.TB, public string) {
	t.Helper()
	key, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "authorized_keys"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(key); err != nil {
		t.Fatal(err)
	}
}

// hostKey is the public host key of a kind, "TYPE BASE64".
func (s *server) hostKey(t testing.TB, kind string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "host_"+kind+".pub"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text))[:2], " ")
}

// name is the server in known_hosts.
func (s *server) name() string { return fmt.Sprintf("[127.0.0.1]:%d", s.port) }

// know makes the host key of a kind the one that is known.
func (s *server) know(t testing.TB, kind string) {
	t.Helper()
	s.setKnown(t, s.name()+" "+s.hostKey(t, kind)+"\n")
}

func (s *server) setKnown(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(s.knownHosts, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ssh is how to reach the server as user.
func (s *server) ssh(user string) SSH {
	return SSH{
		Address: "127.0.0.1", Port: s.port, User: user, Identity: s.key,
		ConfigFile: "none", KnownHosts: s.knownHosts,
	}
}

// connect connects to the server as user.
func (s *server) connect(t testing.TB, user string) *sshHost {
	t.Helper()
	return connect(t, s.ssh(user))
}

func connect(t testing.TB, s SSH) *sshHost {
	t.Helper()
	h, err := s.connect(limit(t, time.Minute), quick())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// quick is shorter limits for tests.
func quick() limits {
	l := defaultLimits()
	l.grace, l.pipe = 300*time.Millisecond, 300*time.Millisecond
	return l
}

// cut kills the processes of sshd that serve connections. What they have started
// goes on, and finds its input and output closed.
func (s *server) cut(t testing.TB) {
	t.Helper()
	for _, pid := range children(s.pid) {
		for _, below := range append(children(pid), pid) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", below)); strings.HasPrefix(string(name), "sshd") {
				_ = syscall.Kill(below, syscall.SIGKILL)
			}
		}
	}
}

// children lists the child processes of pid.
func children(pid int) []int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var pids []int
	for _, word := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(word); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// shellOf says whether a user runs a shell.
func shellOf(uid string) bool {
	procs, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		if err == nil && strings.HasPrefix(string(text), "Name:\tsh\n") && strings.Contains(string(text), "\nUid:\t"+uid+"\t") {
			return true
		}
	}
	return false
}

// limit is a context that ends with the test, or after d.
func limit(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until what is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("not within 30 s: %s", what)
}

// makeNamespace makes a network namespace that only a link to this host leads to: near with address
// here on the host, far with address there in the namespace. It removes both after the test.
func makeNamespace(t *testing.T, ns, near, far, here, there string) {
	t.Helper()
	down := func() {
		_ = exec.Command("ip", "netns", "del", ns).Run()
		_ = exec.Command("ip", "link", "del", near).Run()
	}
	down() // what an earlier test that was killed has left
	t.Cleanup(down)
	run(t, "ip", "netns", "add", ns)
	run(t, "ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", ns)
	run(t, "ip", "addr", "add", here+"/30", "dev", near)
	run(t, "ip", "link", "set", near, "up")
	run(t, "ip", "netns", "exec", ns, "ip", "addr", "add", there+"/30", "dev", far)
	run(t, "ip", "netns", "exec", ns, "ip", "link", "set", far, "up")
}
