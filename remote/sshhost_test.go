package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// BenchmarkRun is what a small command costs on a host that is connected.
func BenchmarkRun(b *testing.B) {
	makeUsers(b)
	ssh := startServer(b, serverOptions{}).connect(b, opUser)
	for _, h := range []Host{Local(nil), ssh} {
		b.Run(h.Name(), func(b *testing.B) {
			for b.Loop() {
				if _, err := h.Run(limit(b, time.Minute), Command{Args: []string{"true"}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	h := s.connect(t, opUser)
	if want := fmt.Sprintf("%s@127.0.0.1:%d", opUser, s.port); h.Name() != want || h.User() != opUser {
		t.Errorf("%q, %q, not %q", h.Name(), h.User(), want)
	}
	for e, want := range map[*endpoint]string{
		{alias: "app1", user: "deploy", port: 22}:        "deploy@app1",
		{alias: "2001:db8::1", user: "d", port: 22}:      "d@2001:db8::1",
		{alias: "2001:db8::1", user: "d", port: 2222}:    "d@[2001:db8::1]:2222",
		{alias: "app1", host: "x", user: "d", port: 222}: "d@app1:222",
	} {
		if got := e.name(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	if l := Local(nil); l.Name() != "this machine" || l.User() != "root" {
		t.Errorf("%q, %q", l.Name(), l.User())
	}
}

// TestTrace checks that what is shown is what runs, and that no input is shown.
func TestTrace(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	var mu sync.Mutex
	var shown []string
	trace := func(host, command string) {
		mu.Lock()
		defer mu.Unlock()
		shown = append(shown, host+": "+command)
	}
	how := s.ssh(opUser)
	how.Trace = trace
	h := connect(t, how)
	for _, host := range []Host{h, Local(trace)} {
		shown = nil
		for _, root := range []bool{false, true} {
			if _, err := host.Run(limit(t, time.Minute), Command{Args: []string{"echo", "a b", "it's"}, Stdin: []byte("secret"), Root: root}); err != nil {
				t.Fatal(err)
			}
		}
		all := strings.Join(shown, "\n")
		if !strings.Contains(all, host.Name()+`: echo 'a b' 'it'\''s'`) || strings.Contains(all, "secret") {
			t.Errorf("shown: %s", all)
		}
		if host == Host(h) && !strings.Contains(all, `: env LC_ALL=C sudo -n echo 'a b'`) {
			t.Errorf("shown: %s", all)
		}
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	h := s.connect(t, "root")
	echo := func() error {
		r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", "ok"}})
		if err == nil && string(r.Stdout) != "ok\n" {
			err = fmt.Errorf("got %q", r.Stdout)
		}
		return err
	}
	for range 5 {
		s.cut(t)
		if err := echo(); err != nil {
			t.Errorf("after a cut: %v", err)
		}
	}
	s.cut(t)
	if conn, err := h.DialContext(limit(t, time.Minute), "tcp", joinPort("127.0.0.1", s.port)); err != nil {
		t.Errorf("dial after a cut: %v", err)
	} else {
		conn.Close()
	}

	// A command that is cut off is not run again, and its end is not known.
	count := filepath.Join(s.dir, "count")
	go func() {
		eventually(t, "the command runs", func() bool { _, err := os.Stat(count); return err == nil })
		s.cut(t)
	}()
	_, err := h.Run(limit(t, time.Minute), Command{Args: []string{"sh", "-c", `echo x >> "$1"; sleep 8`, "sh", count}})
	if !errors.Is(err, ErrConnection) {
		t.Errorf("cut off: %v", err)
	}
	if err := echo(); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(count); string(text) != "x\n" {
		t.Errorf("it ran %d times", bytes.Count(text, []byte("x")))
	}

	// Many at once, cut again and again: each gives its output or ErrConnection.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var good, lost atomic.Int64
	for i := range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprintf("%d\n", i)
				r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", fmt.Sprint(i)}})
				switch {
				case err == nil && string(r.Stdout) == want:
					good.Add(1)
				case errors.Is(err, ErrConnection):
					lost.Add(1)
				default:
					t.Errorf("%q, %v", r.Stdout, err)
					return
				}
			}
		}()
	}
	for range 8 {
		time.Sleep(250 * time.Millisecond)
		s.cut(t)
	}
	eventually(t, "commands succeed", func() bool { return good.Load() > 20 })
	close(stop)
	wg.Wait()
	t.Logf("%d succeeded, %d were lost", good.Load(), lost.Load())

	// Nobody listens any more.
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := echo(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	h := s.connect(t, opUser)
	s.cut(t) // while its processes are still its children
	_ = syscall.Kill(s.pid, syscall.SIGKILL)
	eventually(t, "sshd is gone", func() bool {
		conn, err := net.Dial("tcp", joinPort("127.0.0.1", s.port))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	for range 3 {
		if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); !errors.Is(err, ErrConnection) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := s.ssh(opUser).Connect(limit(t, time.Minute)); !errors.Is(err, ErrConnection) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect: %v", err)
	}
}

// relay passes connections on to a server until it is told to be silent: then
// it passes on nothing more and closes nothing, as a network does that is cut.
type relay struct {
	port   int
	silent atomic.Bool
	bytes  atomic.Int64 // both ways
}

func startRelay(t *testing.T, to int) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{port: l.Addr().(*net.TCPAddr).Port}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); close(done) })
	pass := func(to, from net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			r.bytes.Add(int64(n))
			if r.silent.Load() {
				<-done
			}
			if n > 0 {
				_, _ = to.Write(buf[:n])
			}
			if err != nil {
				to.Close()
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			if r.silent.Load() {
				continue // and says nothing
			}
			out, err := net.Dial("tcp", joinPort("127.0.0.1", to))
			if err != nil {
				in.Close()
				continue
			}
			go pass(in, out)
			go pass(out, in)
		}
	}()
	return r
}

func TestSilence(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	s := startServer(t, serverOptions{})
	r := startRelay(t, s.port)
	how := s.ssh("root")
	how.Port = r.port
	how.DialTimeout = time.Second
	s.setKnown(t, fmt.Sprintf("[127.0.0.1]:%d %s\n", r.port, s.hostKey(t, "ed25519")))
	fast := quick()
	fast.keepalive = 200 * time.Millisecond
	h, err := how.connect(limit(t, time.Minute), fast)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	// An idle connection stays.
	conn, _, err := h.connection(limit(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(fast.keepalive * (keepaliveMisses + 3))
	if conn.isDead() {
		t.Fatalf("an idle connection was given up: %v", context.Cause(conn.ctx))
	}
	started := make(chan time.Time, 1)
	time.AfterFunc(500*time.Millisecond, func() {
		r.silent.Store(true)
		started <- time.Now()
	})
	_, err = h.Run(limit(t, time.Minute), Command{Args: []string{"sleep", "8"}})
	noticed := time.Since(<-started)
	if !errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("got %v", err)
	}
	t.Logf("noticed after %v", noticed)
	if noticed > 8*time.Second { // 1 s, and some for a busy machine
		t.Errorf("noticed only after %v", noticed)
	}
	begin := time.Now()
	if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); !errors.Is(err, ErrConnection) {
		t.Errorf("got %v", err)
	} else if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("a new connection was given up after %v", d)
	}
	r.silent.Store(false)
	if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); err != nil {
		t.Errorf("the host is back: %v", err)
	}
	if t := defaultLimits(); t.keepalive*(keepaliveMisses+1) > 12*time.Second {
		panic("a dead connection must be noticed within 12 s")
	}
}

// TestCutNetwork is a network that is really cut: an sshd in a network
// namespace of its own, and the link to it taken down.
func TestCutNetwork(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needTool(t, "ip")
	makeUsers(t)
	const ns, far = "drainctl-remote-ns", "drremote1"
	makeNamespace(t, ns, "drremote0", far, "198.18.79.1", "198.18.79.2")
	s := startServer(t, serverOptions{})
	cmd := exec.Command("ip", "netns", "exec", ns, "/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"),
		"-o", "ListenAddress=198.18.79.2", "-o", "Port=2222")
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer func() {
			if t.Failed() {
				t.Logf("sshd: %s", &log)
			}
		}()
		far := &server{pid: cmd.Process.Pid}
		far.cut(t)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "sshd answers in its namespace", func() bool {
		conn, err := net.DialTimeout("tcp", "198.18.79.2:2222", time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	s.setKnown(t, "[198.18.79.2]:2222 "+s.hostKey(t, "ed25519")+"\n")
	how := s.ssh(opUser)
	how.Address, how.Port, how.DialTimeout = "198.18.79.2", 2222, 2*time.Second
	fast := quick()
	fast.keepalive = time.Second
	h, err := how.connect(limit(t, time.Minute), fast)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	started := make(chan time.Time, 1)
	time.AfterFunc(500*time.Millisecond, func() {
		// The far end: the route to it stays, and nothing looks for another way.
		_ = exec.Command("ip", "netns", "exec", ns, "ip", "link", "set", far, "down").Run()
		started <- time.Now()
	})
	_, err = h.Run(limit(t, time.Minute), Command{Args: []string{"sleep", "8"}})
	noticed := time.Since(<-started)
	t.Logf("noticed after %v: %v", noticed, err)
	if !errors.Is(err, ErrConnection) || noticed > 8*time.Second {
		t.Errorf("noticed after %v: %v", noticed, err)
	}
	if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); !errors.Is(err, ErrConnection) {
		t.Errorf("while it is cut: %v", err)
	}
	run(t, "ip", "netns", "exec", ns, "ip", "link", "set", far, "up")
	eventually(t, "the host is back", func() bool {
		_, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}})
		if err != nil {
			t.Log(err)
		}
		return err == nil
	})
}

func TestConnectCancelled(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	how := SSH{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "x", ConfigFile: "none", KnownHosts: "/dev/null"}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := how.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 8*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	how.DialTimeout = 300 * time.Millisecond
	begin = time.Now()
	if _, err := how.Connect(limit(t, time.Minute)); !errors.Is(err, ErrConnection) || time.Since(begin) > 8*time.Second || !strings.Contains(err.Error(), "no answer within 300ms") {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

func TestJump(t *testing.T) {
	t.Parallel()
	makeUsers(t)
	a, b, c := startServer(t, serverOptions{}), startServer(t, serverOptions{}), startServer(t, serverOptions{})
	config := filepath.Join(c.dir, "config")
	known := filepath.Join(c.dir, "all_known")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := func(s *server) string { return s.name() + " " + s.hostKey(t, "ed25519") + "\n" }
	hosts := fmt.Sprintf(`
Host a b c
  HostName 127.0.0.1
  UserKnownHostsFile "%s"
Host a
  Port %d
  User %s
  IdentityFile %s
Host b
  Port %d
  IdentityFile %s
Host c
  Port %d
  IdentityFile %s
Host *
  User root
`, known, a.port, opUser, a.key, b.port, b.key, c.port, c.key)
	write(known, line(a)+line(b)+line(c))
	for _, jumps := range []struct {
		name, config string
		log          []*server // who has seen a login
	}{
		{"none", "", nil},
		{"none, said so", "Host c\n ProxyJump none\n", nil},
		{"one", "Host c\n ProxyJump a\n", []*server{a}},
		{"two", "Host c\n ProxyJump a,b\n", []*server{a, b}},
		{"one that has one itself", "Host c\n ProxyJump b\nHost b\n ProxyJump a\n", []*server{a, b}},
		{"with user and port", fmt.Sprintf("Host c\n ProxyJump ssh://%s@a:%d\n", opUser, a.port), []*server{a}},
	} {
		t.Run(jumps.name, func(t *testing.T) {
			write(config, jumps.config+hosts)
			before := make(map[*server]int)
			for _, s := range []*server{a, b, c} {
				before[s] = logins(t, s)
			}
			h := connect(t, SSH{Address: "c", ConfigFile: config})
			if r := sh(t, h, `echo "$SSH_CONNECTION"`); !strings.Contains(string(r.Stdout), fmt.Sprint(" ", c.port)) {
				t.Errorf("arrived at %q, not %d", r.Stdout, c.port)
			}
			for _, s := range append([]*server{c}, jumps.log...) {
				if logins(t, s) != before[s]+1 {
					t.Errorf("nobody came through %s", s.name())
				}
			}
			// A cut anywhere on the way, and a new connection.
			for _, s := range append([]*server{c}, jumps.log...) {
				s.cut(t)
				eventually(t, "the host is back", func() bool {
					_, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}})
					return err == nil
				})
			}
		})
	}
	t.Run("the host key of each is checked", func(t *testing.T) {
		write(config, "Host c\n ProxyJump a,b\n"+hosts)
		for name, missing := range map[string]*server{"a": a, "b": b, "c": c} {
			var text string
			for _, s := range []*server{a, b, c} {
				if s != missing {
					text += line(s)
				}
			}
			write(known, text)
			_, err := SSH{Address: "c", ConfigFile: config}.Connect(limit(t, time.Minute))
			var refused *HostKeyError
			if !errors.As(err, &refused) || refused.Host != missing.name() {
				t.Errorf("%s: %v", name, err)
			}
		}
		write(known, line(a)+line(b)+line(c))
	})
	t.Run("in a circle", func(t *testing.T) {
		write(config, "Host a\n ProxyJump b\nHost b\n ProxyJump a\n"+hosts)
		if _, err := (SSH{Address: "a", ConfigFile: config}).Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "circle") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a jump that is not allowed", func(t *testing.T) {
		shut := startServer(t, serverOptions{config: "AllowTcpForwarding no"})
		write(known, line(a)+line(b)+line(c)+line(shut))
		write(config, fmt.Sprintf("Host c\n ProxyJump d\nHost d\n HostName 127.0.0.1\n Port %d\n IdentityFile %s\n UserKnownHostsFile %s\n", shut.port, shut.key, known)+hosts)
		if _, err := (SSH{Address: "c", ConfigFile: config}).Connect(limit(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "prohibited") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silence behind a jump", func(t *testing.T) {
		write(config, "Host c\n ProxyJump a\n"+hosts)
		fast := quick()
		fast.keepalive = 200 * time.Millisecond
		h, err := SSH{Address: "c", ConfigFile: config}.connect(limit(t, time.Minute), fast)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, pid := range children(c.pid) {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
		if _, err := h.Run(limit(t, time.Minute), Command{Args: []string{"true"}}); err != nil {
			t.Errorf("nothing had been sent, a new connection should have been made: %v", err)
		}
	})
}

// logins is how many logins a server has let in.
func logins(t *testing.T, s *server) int {
	t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("Accepted publickey"))
}
