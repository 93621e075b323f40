package remote

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// brief is limits that a test can wait for.
func brief() limits {
	l := quick()
	l.command, l.answer, l.output = time.Second, time.Second, 256<<10
	return l
}

// A hostileServer is an SSH server of which each answer is up to a test.
type hostileServer struct {
	t        *testing.T
	listener net.Listener
	config   *ssh.ServerConfig
	how      SSH
	deaf     atomic.Bool // it reads nothing more from the network
	// open says whether the server takes a session, exec what it does once a command was
	// asked for. Both may be nil.
	open func(ssh.NewChannel) bool
	exec func(ssh.Channel, *ssh.Request)
}

// gated is a connection that a server stops to read from.
type gated struct {
	net.Conn
	deaf *atomic.Bool
}

func (g gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	for g.deaf.Load() && err == nil {
		time.Sleep(10 * time.Millisecond)
		if _, werr := g.Conn.Write(nil); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

// startHostile starts a server that takes every connection to serve, or, if that is nil,
// speaks SSH.
func startHostile(t *testing.T, serve func(net.Conn)) *hostileServer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := &hostileServer{t: t, config: &ssh.ServerConfig{NoClientAuth: true}}
	s.config.AddHostKey(signer)
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.listener.Close() })
	if serve == nil {
		serve = s.serve
	}
	go func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go serve(conn)
		}
	}()
	known := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{s.listener.Addr().String()}, signer.PublicKey())
	if err := os.WriteFile(known, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.how = SSH{Address: "127.0.0.1", User: "root", Port: s.listener.Addr().(*net.TCPAddr).Port, ConfigFile: "none", KnownHosts: known}
	return s
}

func (s *hostileServer) serve(conn net.Conn) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(gated{conn, &s.deaf}, s.config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if s.open != nil && !s.open(c) {
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				if r.Type == "exec" {
					go s.exec(channel, r)
				}
			}
		}()
	}
}

func (s *hostileServer) connect() *sshHost {
	s.t.Helper()
	h, err := s.how.connect(limit(s.t, time.Minute), brief())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { h.Close() })
	return h
}

// exits is an answer that ends the command with the status 0.
func exits(c ssh.Channel) {
	_, _ = c.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{0}))
}

// repeat writes text until that fails, and no more than 2 GiB.
func repeat(w io.Writer, text []byte) {
	for range 2 << 30 / len(text) {
		if _, err := w.Write(text); err != nil {
			return
		}
	}
}

// heap is how many bytes of memory the process has from the system for its heap.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys
}

// within runs f, which must return within a minute and take less than 100 MiB of memory.
func within(t *testing.T, f func() error) error {
	t.Helper()
	before := heap()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		if after := heap(); after > before+100<<20 {
			t.Errorf("it took %d MiB of memory", (after-before)>>20)
		}
		return err
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
		return nil
	}
}

// A host that answers a command in whatever way costs no more than bounded time and
// memory, and the answer is an error that says which command, where, and what was wrong.
func TestHostileAnswers(t *testing.T) {
	big, line := bytes.Repeat([]byte("x"), 64<<10), []byte("0 0 10.0.0.1:80 10.0.0.2:5000\n")
	ok := func(r *ssh.Request) { _ = r.Reply(true, nil) }
	for _, c := range []struct {
		name  string
		open  func(ssh.NewChannel) bool
		exec  func(ssh.Channel, *ssh.Request)
		stdin []byte
		deaf  bool
		want  string
	}{
		{name: "endless lines", exec: func(c ssh.Channel, r *ssh.Request) { ok(r); repeat(c, line) }, want: "it printed more than 256 KiB"},
		{name: "an endless line", exec: func(c ssh.Channel, r *ssh.Request) { ok(r); repeat(c, big) }, want: "it printed more than 256 KiB"},
		{name: "endless errors", exec: func(c ssh.Channel, r *ssh.Request) { ok(r); repeat(c.Stderr(), big) }, want: "it did not end within 1s"},
		{name: "silence", exec: func(_ ssh.Channel, r *ssh.Request) { ok(r) }, want: "it did not end within 1s"},
		{name: "output without an end after the exit status", exec: func(c ssh.Channel, r *ssh.Request) { ok(r); exits(c); repeat(c, line) }, want: "it printed more than 256 KiB"},
		{name: "too much, and success", exec: func(c ssh.Channel, r *ssh.Request) {
			ok(r)
			_, _ = c.Write(bytes.Repeat(line, 10_000))
			exits(c)
			c.Close()
		}, want: "it printed more than 256 KiB"},
		{name: "no answer to the request", exec: func(ssh.Channel, *ssh.Request) {}, want: "no answer within 1s"},
		{name: "no answer to a new session", open: func(ssh.NewChannel) bool { return false }, want: "no answer within 1s"},
		{name: "a long refusal of a session", open: func(c ssh.NewChannel) bool {
			_ = c.Reject(ssh.ResourceShortage, strings.Repeat("x", 200<<10))
			return false
		}, want: "refuses another session"},
		{name: "nothing is read, and output comes", deaf: true, stdin: make([]byte, 32<<20), exec: func(c ssh.Channel, r *ssh.Request) {
			ok(r)
			for range 1000 {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}, want: "it did not end within 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := startHostile(t, nil)
			s.open, s.exec = c.open, func(ch ssh.Channel, r *ssh.Request) {
				s.deaf.Store(c.deaf)
				c.exec(ch, r)
			}
			h := s.connect()
			h.limits.refusal = 100 * time.Millisecond
			err := within(t, func() error {
				_, err := h.Run(context.Background(), Command{Args: []string{"cat", "/etc/motd"}, Stdin: c.stdin})
				return err
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "root@127.0.0.1") || len(err.Error()) > 8<<10 {
				t.Errorf("got %.300v", err)
			}
		})
	}
}

// A command that ended is not held up by a host that neither closes its session nor
// answers: what it printed is whole only when the host says so.
func TestHostileEnd(t *testing.T) {
	s := startHostile(t, nil)
	s.exec = func(c ssh.Channel, r *ssh.Request) {
		_ = r.Reply(true, nil)
		_, _ = c.Write([]byte("1"))
		exits(c)
		for range 1000 { // on and on, so that the connection seems to live
			time.Sleep(20 * time.Millisecond)
			if _, err := c.Write([]byte("2")); err != nil {
				return
			}
			s.deaf.Store(true)
		}
	}
	h := s.connect()
	err := within(t, func() error {
		_, err := h.Run(context.Background(), Command{Args: []string{"true"}})
		return err
	})
	if err == nil {
		t.Error("part of an output was taken for the whole")
	}
}

// A host that does not close the session of a command that has ended would refuse the next
// command. So the connection ends, and the next command has a new one.
func TestHostileSession(t *testing.T) {
	s := startHostile(t, nil)
	var runs atomic.Int32
	s.exec = func(c ssh.Channel, r *ssh.Request) {
		s.deaf.Store(runs.Add(1) == 1)
		_ = r.Reply(true, nil)
		_, _ = c.Write([]byte("ok\n"))
		exits(c)
		_ = c.CloseWrite()
	}
	h := s.connect()
	first, _, err := h.connection(limit(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := within(t, func() error {
			r, err := h.Run(context.Background(), Command{Args: []string{"true"}})
			if err == nil && string(r.Stdout) != "ok\n" {
				err = fmt.Errorf("got %q", r.Stdout)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if !first.isDead() {
			t.Error("the connection is kept")
		}
		s.deaf.Store(false)
	}
}

// The same holds for a command on this machine.
func TestHostileLocalCommand(t *testing.T) {
	for script, want := range map[string]string{
		"yes": "it printed more than 256 KiB", "yes >&2": "it did not end within 1s", "sleep 60": "it did not end within 1s",
		"tr '\\0' x </dev/zero": "it printed more than 256 KiB",
	} {
		err := within(t, func() error {
			_, err := newLocal(nil, brief()).Run(context.Background(), Command{Args: []string{"sh", "-c", script}})
			return err
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %.300v", script, err)
		}
	}
	// Some commands have a limit of their own, or none.
	for _, limit := range []time.Duration{time.Minute, NoLimit} {
		if _, err := newLocal(nil, brief()).Run(context.Background(), Command{Args: []string{"sleep", "1.5"}, Limit: limit}); err != nil {
			t.Errorf("limit %v: %v", limit, err)
		}
	}
}

// The shell that counts connections may be any program.
func TestHostileCounter(t *testing.T) {
	// greets answers as the script does, up to the first request.
	const greets = `read -r first; first=${first#ready=}; echo "${first%% *}"; while read -r what id rest; do case $what in count) break;; esac; done; `
	for _, c := range []struct{ name, script, want string }{
		{"endless lines before it is ready", "yes", "it printed more than 1024 KiB"},
		{"an endless line before it is ready", "tr '\\0' x </dev/zero", "it printed more than 64 KiB"},
		{"silence", "sleep 60", "no answer within 1s"},
		{"silence after it was ready", greets + "sleep 60", "no answer within 1s"},
		{"endless lines", greets + `yes "peer 1 10.0.0.1"`, "it printed more than 1024 KiB"},
		{"an endless line", greets + "tr '\\0' x </dev/zero", "it printed more than 64 KiB"},
		{"endless errors", greets + "yes >&2", "no answer within 1s"},
		{"its end", greets, "the shell there ended"},
		{"a count that no host has", greets + `echo "open 9000000000 0"; echo "end $id 0"`, "unexpected output"},
		{"a count beyond all numbers", greets + `echo "open 99999999999999999999999 0"; echo "end $id 0"`, "unexpected output"},
		{"a count below 0", greets + `echo "open -5 0"; echo "end $id 0"`, "unexpected output"},
		{"peers below 0", greets + `echo "open 0 -5"; echo "end $id 0"`, "unexpected output"},
		{"many peers", greets + `echo "open 20 20"; for i in 1 2 3 4 5 6 7 8 9; do echo "peer 1 10.0.0.$i"; done; echo "end $id 0"`, "unexpected output"},
		{"a long error", greets + `i=0; while [ $i -lt 2000 ]; do echo "error $what $what $what $what $what $what"; i=$((i+1)); done; echo "end $id 0"`, "ss: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			counter := NewCounter(scriptHost{newLocal(nil, brief()), c.script}, ports(80))
			defer counter.Close()
			err := within(t, func() error {
				_, err := counter.Count(context.Background())
				return err
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "on this machine") || len(err.Error()) > 4<<10 {
				t.Errorf("got %.300v", err)
			}
		})
	}
}

// A scriptHost runs a script for whatever it is to run.
type scriptHost struct {
	Host
	script string
}

func (h scriptHost) Start(ctx context.Context, _ Command) (*Stream, error) {
	return h.Host.Start(ctx, Command{Args: []string{"sh", "-c", h.script}})
}

// A list is no longer than what the script on a host prints.
func TestHostileLists(t *testing.T) {
	var clients, held []string
	held = append(held, "open 3000 1", "peer 3000 10.0.0.1")
	for i := range 3000 {
		clients = append(clients, fmt.Sprintf("client 10.0.0.1:%d", i+1))
		held = append(held, fmt.Sprintf("held 10.0.0.1:%d 1 1", i+1))
	}
	if all, err := parseClients(append(clients, "end 0")); err == nil {
		t.Errorf("%d clients", len(all))
	}
	if count, err := parseCount(append(held, "end 0")); err != nil || len(count.Held) != maxHeld {
		t.Errorf("%d connections, %v", len(count.Held), err)
	}
}

// A state of a unit has one word for each of what is asked.
func TestHostileState(t *testing.T) {
	for _, text := range []string{"active " + strings.Repeat("x", 1000), strings.Repeat("x", 100), "\x1b[2J", "ACTIVE"} {
		out := "LoadState=loaded\nActiveState=" + text + "\nSubState=running\nResult=success\n"
		state, err := (Service{Host: printer{newLocal(nil, brief()), out}, Unit: "app"}).State(context.Background())
		if err == nil || len(err.Error()) > 1000 {
			t.Errorf("%+v, %.300v", state, err)
		}
	}
}

// A printer prints a text, whatever it is to run.
type printer struct {
	Host
	text string
}

func (p printer) Run(context.Context, Command) (Result, error) {
	return Result{Stdout: []byte(p.text)}, nil
}

// What a host sends before the login costs no more than the time for a connection.
func TestHostileLogin(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  string
	}{
		"silence":                      {func(net.Conn) {}, "no answer within 1s"},
		"endless lines before version": {func(c net.Conn) { repeat(c, []byte("welcome\r\n")) }, ""},
		"an endless version":           {func(c net.Conn) { repeat(c, bytes.Repeat([]byte("S"), 4096)) }, ""},
		"a version and silence":        {func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n") }, "no answer within 1s"},
		"a version and noise": {func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
			repeat(c, bytes.Repeat([]byte{0xff}, 4096))
		}, ""},
		"a slow version": {func(c net.Conn) {
			for range 600 {
				if _, err := io.WriteString(c, "welcome\r\n"); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := startHostile(t, c.serve)
			refusedLogin(t, s, c.want)
		})
	}
	t.Run("endless banners", func(t *testing.T) {
		s := startHostile(t, nil)
		s.config.NoClientAuth = false
		s.config.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, errors.New("no") }
		s.config.PreAuthConnCallback = func(c ssh.ServerPreAuthConn) {
			for range 1 << 20 {
				if c.SendAuthBanner(strings.Repeat("welcome ", 4096)) != nil {
					return
				}
			}
		}
		refusedLogin(t, s, "no answer within 1s")
	})
}

func refusedLogin(t *testing.T, s *hostileServer, want string) {
	t.Helper()
	s.how.DialTimeout = time.Second
	err := within(t, func() error {
		_, err := s.how.connect(context.Background(), brief())
		return err
	})
	if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 8<<10 {
		t.Errorf("got %.300v", err)
	}
}
