package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// local is this machine.
type local struct {
	trace  func(host, command string)
	limits limits
	user   string
	root   bool
}

// Local returns this machine as a host. trace, if not nil, is told every
// command before it runs, quoted for a shell, without what it reads.
func Local(trace func(host, command string)) Host { return newLocal(trace, defaultLimits()) }

func newLocal(trace func(host, command string), limits limits) *local {
	uid := os.Geteuid()
	l := &local{trace: trace, limits: limits, user: strconv.Itoa(uid), root: uid == 0}
	if u, err := user.LookupId(l.user); err == nil {
		l.user = u.Username
	}
	return l
}

func (l *local) Name() string { return thisMachine }
func (l *local) User() string { return l.user }
func (l *local) Close() error { return nil }

// DialContext implements Host.
func (l *local) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// Run implements Host.
func (l *local) Run(ctx context.Context, c Command) (Result, error) {
	begin := time.Now()
	s, err := l.Start(ctx, c)
	var r Result
	switch code := shellCode(err); {
	case err == nil:
		if r, err = s.finish(ctx, c); err != nil {
			return Result{}, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
		}
	case code != 0:
		r = Result{Stderr: []byte(err.Error() + "\n"), Code: code}
	default:
		return Result{}, err
	}
	r.Elapsed = time.Since(begin)
	if c.Root && !l.root {
		err = Refusal(l, c.Args, r)
	} else {
		err = nil
	}
	return r, err
}

// Start implements Host. The command gets a session of its own: a Ctrl-C at the
// terminal is for drainctl to handle, not for the command, and with no terminal
// in reach sudo cannot ask on one.
func (l *local) Start(ctx context.Context, c Command) (*Stream, error) {
	if err := checkArgs(c); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("run %s: %w", Quote(c.Args...), context.Cause(ctx))
	}
	args := c.Args
	sudo := c.Root && !l.root
	if sudo {
		args = append([]string{"sudo", "-n"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if sudo {
		cmd.Env = append(os.Environ(), "LC_ALL=C") // its refusals are read
	}
	if l.trace != nil {
		l.trace(l.Name(), Quote(args...))
	}
	s, err := startProcess(cmd, l.limits)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	return s, nil
}

// localProcess is a command on this machine, with the pipes to it.
type localProcess struct {
	pid                   int
	stdin, stdout, stderr *os.File
}

// startProcess starts cmd.
func startProcess(cmd *exec.Cmd, limits limits) (*Stream, error) {
	var ends [6]*os.File // ours and its, for input, output and errors
	closeAll := func(files ...*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for i := 0; i < 6; i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ends[:i]...)
			return nil, err
		}
		ends[i], ends[i+1] = r, w //nolint:gosec // i is even
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ends[0], ends[3], ends[5]
	err := cmd.Start()
	closeAll(ends[0], ends[3], ends[5])
	if err != nil {
		closeAll(ends[1], ends[2], ends[4])
		return nil, err
	}
	p := &localProcess{pid: cmd.Process.Pid, stdin: ends[1], stdout: ends[2], stderr: ends[4]}
	s := newStream(limits, nil)
	s.attach(p, p.stderr)
	go func() {
		_ = cmd.Wait()
		s.end(exitCode(cmd.ProcessState), nil)
	}()
	return s, nil
}

// Read implements io.Reader. After hangup the output is at its end.
func (p *localProcess) Read(b []byte) (int, error) {
	n, err := p.stdout.Read(b)
	if errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (p *localProcess) Write(b []byte) (int, error) { return p.stdin.Write(b) }
func (p *localProcess) CloseWrite() error           { return p.stdin.Close() }
func (p *localProcess) flush() error                { return nil }
func (p *localProcess) cut() error                  { return nil }
func (p *localProcess) abandon()                    {} // hangup does

// signal signals the command's process group. What sudo has started is root's
// to signal.
func (p *localProcess) signal(name string) { _ = syscall.Kill(-p.pid, unix.SignalNum("SIG"+name)) }

func (p *localProcess) hangup() {
	p.stdin.Close()
	p.stdout.Close()
	p.stderr.Close()
}

// shellCode is the exit code with which a shell would report err, the failure
// to start a program; 0 if it is none of its.
func shellCode(err error) int {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return 127
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		return 126
	}
	return 0
}

// exitCode is the exit status, or 128 + n after signal n, as a shell has it.
func exitCode(s *os.ProcessState) int {
	if s == nil {
		return -1
	}
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}
