package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHost runs one suite against every kind of host.
func TestHost(t *testing.T) {
	if name := os.Getenv(asUserEnv); name != "" {
		t.Run("local as "+name, func(t *testing.T) {
			hostSuite(t, func(t *testing.T) Host { return newLocal(nil, quick()) })
		})
		return
	}
	t.Parallel()
	needRoot(t)
	makeUsers(t)
	s := startServer(t, serverOptions{})
	t.Run("local", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return newLocal(nil, quick()) })
	})
	t.Run("ssh as root", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return s.connect(t, "root") })
	})
	t.Run("ssh as a user with sudo", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return s.connect(t, opUser) })
	})
	t.Run("local as a user with sudo", func(t *testing.T) {
		t.Parallel()
		rerunAs(t, opUser)
	})
}

// rerunAs runs this test in a copy of this program that belongs to the user.
func rerunAs(t *testing.T, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(place(t), "test")
	run(t, "cp", os.Args[0], program)
	run(t, "chmod", "755", program)
	args := []string{"-test.run=^TestHost$", "-test.count=1"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = u.HomeDir
	cmd.Env = []string{asUserEnv + "=" + name, "HOME=" + u.HomeDir, "USER=" + name, "PATH=" + os.Getenv("PATH")}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("as %s: %v", name, err)
	}
}

// hostSuite is what every host must do.
func hostSuite(t *testing.T, newHost func(t *testing.T) Host) {
	h := newHost(t)
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Host)
	}{
		{"run", testRun},
		{"run quotes", testRunQuotes},
		{"run big", testRunBig},
		{"run cancelled", testRunCancelled},
		{"run leaves something behind", testRunBackground},
		{"run as root", testRunRoot},
		{"stream", testStream},
		{"stream closed", testStreamClosed},
		{"dial", testDial},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// sh runs a shell script on h.
func sh(t *testing.T, h Host, script string, args ...string) Result {
	t.Helper()
	r, err := h.Run(limit(t, time.Minute), Command{Args: append([]string{"sh", "-c", script, "sh"}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testRun(t *testing.T, h Host) {
	r := sh(t, h, `printf out; printf err >&2; exit 7`)
	if string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.Code != 7 {
		t.Errorf("got %q, %q, %d", r.Stdout, r.Stderr, r.Code)
	}
	if err := r.Err("sh"); err == nil || !strings.Contains(err.Error(), "exit status 7: err") {
		t.Errorf("error of it: %v", err)
	}
	r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"cat"}, Stdin: []byte("a\x00b\r\n")})
	if err != nil || string(r.Stdout) != "a\x00b\r\n" || r.Err() != nil {
		t.Errorf("cat: %q, %v", r.Stdout, err)
	}
	// Nothing to read is the end of the input at once, not a terminal.
	if r := sh(t, h, `cat; tty`); !strings.Contains(string(r.Stdout), "not a tty") {
		t.Errorf("tty: %q", r.Stdout)
	}
	// Input that nobody reads does not stand in the way.
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"true"}, Stdin: bytes.Repeat([]byte("x"), 5<<20)})
	if err != nil || r.Code != 0 {
		t.Errorf("true: %d, %v", r.Code, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"drainctl-no-such-command"}})
	if err != nil || r.Code != 127 {
		t.Errorf("a command that does not exist: %d, %v", r.Code, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"/etc"}})
	if err != nil || r.Code != 126 {
		t.Errorf("a command that is a directory: %d, %v", r.Code, err)
	}
	if r := sh(t, h, `kill -9 $$`); r.Code != 128+9 {
		t.Errorf("a command that is killed: %d", r.Code)
	}
	for _, args := range [][]string{nil, {""}, {"a\x00b"}, {"echo", "\x00"}} {
		if _, err := h.Run(limit(t, time.Minute), Command{Args: args}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func testRunQuotes(t *testing.T, h Host) {
	checkQuotes(t, h)
	_, err := h.Run(limit(t, time.Minute), Command{Args: []string{"echo", "a\nb"}})
	if _, local := h.(*local); local != (err == nil) || !local && !strings.Contains(err.Error(), "newline") {
		t.Errorf("a newline: %v", err)
	}
}

// checkQuotes checks that words arrive as they are.
func checkQuotes(t *testing.T, h Host) {
	t.Helper()
	var all strings.Builder
	for c := 1; c < 256; c++ {
		if c != '\n' {
			all.WriteByte(byte(c))
		}
	}
	args := []string{
		"", " ", "a b", "'", `"`, `\`, "`id`", "$(id)", "$HOME", "*", "~", "!", "!!", "-n", "--", "#", "&", ";", "|",
		"{a,b}", "ä€😀", "\xff\xfe", "%s", "'\"'\"'", "a=b", "=b", "%1", "^a", "it's\\", `\\\`, "'!'", all.String(),
	}
	r, err := h.Run(limit(t, time.Minute), Command{Args: append([]string{"printf", `<%s>\0`}, args...)})
	if err != nil || r.Code != 0 {
		t.Fatalf("%v, %d: %s", err, r.Code, r.Stderr)
	}
	var want strings.Builder
	for _, a := range args {
		fmt.Fprintf(&want, "<%s>\x00", a)
	}
	if string(r.Stdout) != want.String() {
		t.Errorf("got  %q\nwant %q", r.Stdout, want.String())
	}
}

func testRunBig(t *testing.T, h Host) {
	big := bytes.Repeat([]byte("0123456789abcdef\n"), 1<<20) // 17 MB
	r, err := h.Run(limit(t, 2*time.Minute), Command{Args: []string{"sh", "-c", "tee /dev/stderr | wc -c"}, Stdin: big})
	if n := strings.TrimSpace(string(r.Stdout)); err != nil || n != strconv.Itoa(len(big)) || !bytes.Equal(r.Stderr, big[len(big)-maxStderr:]) {
		t.Errorf("%v: it counts %q of %d bytes, and %d came back", err, r.Stdout, len(big), len(r.Stderr))
	}
}

func testRunCancelled(t *testing.T, h Host) {
	// One that ends at SIGTERM, and one that does not.
	for _, script := range []string{"sleep WORD", "trap '' TERM; sleep WORD; sleep WORD"} {
		word := fmt.Sprintf("7.%d", time.Now().UnixNano())
		script := strings.ReplaceAll(script, "WORD", word)
		ctx, cancel := context.WithCancel(limit(t, time.Minute))
		go func() {
			for range 600 {
				if running(word) {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			cancel()
		}()
		begin := time.Now()
		_, err := h.Run(ctx, Command{Args: []string{"sh", "-c", script + "; echo done"}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", script, err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s: it took %v", script, d)
		}
		if _, ssh := h.(*sshHost); !ssh || h.User() != "root" { // sshd signals nothing that root runs
			eventually(t, script+" is gone", func() bool { return !running(word) })
		}
		if r := sh(t, h, "echo ok"); string(r.Stdout) != "ok\n" {
			t.Errorf("afterwards: %q", r.Stdout)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	mark := filepath.Join(place(t), "mark")
	if _, err := h.Run(ctx, Command{Args: []string{"touch", mark}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// running says whether there is a process with word in its arguments.
func running(word string) bool {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte(word)) {
			return true
		}
	}
	return false
}

func testRunBackground(t *testing.T, h Host) {
	begin := time.Now()
	r := sh(t, h, `sleep 8 & echo started`)
	if string(r.Stdout) != "started\n" || r.Code != 0 {
		t.Errorf("got %q, %d", r.Stdout, r.Code)
	}
	if d := time.Since(begin); d > 6*time.Second {
		t.Errorf("it took %v, as long as what it left behind", d)
	}
}

func testRunRoot(t *testing.T, h Host) {
	r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"id", "-u"}, Root: true})
	if err != nil || string(r.Stdout) != "0\n" {
		t.Errorf("as root: %q, %v", r.Stdout, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"sh", "-c", "cat; exit 3"}, Root: true, Stdin: []byte("a\x00\x03\x04b")})
	if err != nil || r.Code != 3 || string(r.Stdout) != "a\x00\x03\x04b" {
		t.Errorf("as root: %q, %d, %v", r.Stdout, r.Code, err)
	}
	if err := SudoCheck(limit(t, time.Minute), h, "systemctl", "stop", "x"); err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"-i"}, {"A=b", "id"}} {
		if _, err := h.Run(limit(t, time.Minute), Command{Args: args, Root: true}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func testDial(t *testing.T, h Host) {
	socket := filepath.Join(t.TempDir(), "s")
	if os.Getuid() == 0 {
		socket = place(t) + "/s"
	}
	for _, network := range []string{"tcp", "unix"} {
		at := "127.0.0.1:0"
		if network == "unix" {
			at = socket
		}
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		if network == "unix" {
			if err := os.Chmod(socket, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
		conn, err := h.DialContext(limit(t, time.Minute), network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", network, got, err)
		}
		conn.Close()
		l.Close()
		if _, err := h.DialContext(limit(t, time.Minute), network, l.Addr().String()); err == nil || errors.Is(err, ErrConnection) {
			t.Errorf("%s: nobody listens, and the error is %v", network, err)
		}
	}
	// The host still works.
	if r := sh(t, h, "echo ok"); string(r.Stdout) != "ok\n" {
		t.Errorf("after all: %q", r.Stdout)
	}
}

func testStream(t *testing.T, h Host) {
	for _, root := range []bool{false, true} {
		s, err := h.Start(limit(t, time.Minute), Command{Args: []string{"sh", "-c", "echo begin >&2; cat; echo end >&2; exit 3"}, Root: root})
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(s)
		for i := range 100 {
			want := fmt.Sprintf("line %d\n", i)
			if _, err := io.WriteString(s, want); err != nil {
				t.Fatal(err)
			}
			if got, err := in.ReadString('\n'); err != nil || got != want {
				t.Fatalf("%q, %v", got, err)
			}
		}
		select {
		case <-s.Done():
			t.Error("done already")
		default:
		}
		big := bytes.Repeat([]byte("0123456789abcdef\n"), 1<<18)
		go func() {
			_, _ = s.Write(big)
			_ = s.CloseWrite()
		}()
		if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
		}
		if code, err := s.Wait(); code != 3 || err != nil || s.Stderr() != "begin\nend\n" {
			t.Errorf("%d, %v, %q", code, err, s.Stderr())
		}
		<-s.Done()
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := h.Start(limit(t, time.Minute), Command{Args: []string{""}}); err == nil {
		t.Error("no command, no error")
	}
}

// testStreamClosed leaves no process behind that reads its input.
func testStreamClosed(t *testing.T, h Host) {
	word := fmt.Sprintf("word-%d", time.Now().UnixNano())
	s, err := h.Start(limit(t, time.Minute), Command{Args: []string{"sh", "-c", "echo ready; cat; : " + word}})
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(s).ReadString('\n'); line != "ready\n" || !running(word) {
		t.Errorf("%q, %v", line, err)
	}
	s.Close()
	eventually(t, "it is gone", func() bool { return !running(word) })
	// One that does not read its input is left alone, and does not keep others waiting.
	if s, err = h.Start(limit(t, time.Minute), Command{Args: []string{"sleep", "8"}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("read after Close: no error")
	}
	if r := sh(t, h, "echo ok"); string(r.Stdout) != "ok\n" || time.Since(begin) > 6*time.Second {
		t.Errorf("afterwards: %q, %v", r.Stdout, time.Since(begin))
	}
}

// No line that a program printed is taken for a line of the error's own, such as a hint.
func TestPrintedLinesAreIndented(t *testing.T) {
	r := Result{Stderr: []byte("first\nhint: run this\r\nlast\n"), Code: 1}
	if got, want := r.Err("systemctl", "stop", "app").Error(), "systemctl stop app: exit status 1: first\n  hint: run this\n  last"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	broken := &SudoError{Host: "lb", User: "ann", Problem: SudoBroken, Output: "sudo: broken\nhint: run this"}
	if strings.Contains(broken.Error(), "\nhint: ") {
		t.Errorf("%q", broken.Error())
	}
}
