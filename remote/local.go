package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

const (
	// killGrace is how long a command has to end after SIGTERM before SIGKILL.
	killGrace = time.Second
	// pipeGrace is how long output is awaited after a command has ended,
	// where something it left behind still holds its output open.
	pipeGrace = 2 * time.Second
)

// local is this machine.
type local struct {
	trace func(host, command string)
	uid   int
	user  string
	// scripts reaches what only root may, through sudo.
	scripts scripts
}

// Local returns this machine as a host. trace, if not nil, is told every
// command before it runs, quoted for a shell, without what it reads.
func Local(trace func(host, command string)) Host {
	l := &local{trace: trace, uid: os.Geteuid()}
	if u, err := user.LookupId(strconv.Itoa(l.uid)); err == nil {
		l.user = u.Username
	} else {
		l.user = strconv.Itoa(l.uid)
	}
	l.scripts = scripts{machine: l}
	return l
}

func (l *local) Name() string { return thisMachine }
func (l *local) User() string { return l.user }
func (l *local) Close() error { return nil }

// isRoot says whether the login user is root.
func (l *local) isRoot(context.Context) (bool, error) { return l.uid == 0, nil }

// command prepares c. It gets a session of its own: a Ctrl-C at the terminal is
// for drainctl to handle, not for the nginx -t it is running, and with no
// terminal in reach sudo cannot ask or relay through one.
func (l *local) command(c Command) (*exec.Cmd, error) {
	if err := checkArgs(c); err != nil {
		return nil, err
	}
	args := c.Args
	sudo := c.Root && l.uid != 0
	if sudo {
		args = append([]string{"sudo", "-n"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if sudo {
		cmd.Env = append(os.Environ(), "LC_ALL=C") // its refusals are read
	}
	cmd.WaitDelay = pipeGrace
	if l.trace != nil {
		l.trace(l.Name(), Quote(args...))
	}
	return cmd, nil
}

// Run implements Host.
func (l *local) Run(ctx context.Context, c Command) (Result, error) {
	cmd, err := l.command(c)
	if err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("run %s: %w", Quote(c.Args...), context.Cause(ctx))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if len(c.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		if code := shellCode(err); code != 0 {
			return l.finish(c, Result{Stderr: []byte(err.Error() + "\n"), Code: code, Elapsed: time.Since(begin)})
		}
		return Result{}, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		if err = l.kill(cmd.Process.Pid, done); err != nil {
			return Result{}, fmt.Errorf("run %s: %w: %w", Quote(c.Args...), context.Cause(ctx), err)
		}
		if !cmd.ProcessState.Success() {
			return Result{}, fmt.Errorf("run %s: killed: %w", Quote(c.Args...), context.Cause(ctx))
		}
	}
	if err != nil && cmd.ProcessState == nil {
		return Result{}, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	return l.finish(c, Result{
		Stdout: stdout.Bytes(), Stderr: stderr.Bytes(),
		Code: exitCode(cmd.ProcessState), Elapsed: time.Since(begin),
	})
}

// finish turns a refusal of sudo into an error.
func (l *local) finish(c Command, r Result) (Result, error) {
	if c.Root && l.uid != 0 {
		if err := sudoRefusal(l, c.Args, r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// kill ends the session of the process pid, whose end done tells. The error
// says that it goes on running: what sudo has started is root's to kill.
func (l *local) kill(pid int, done <-chan error) error {
	err := syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-done:
		// What of the group ignored the signal must not outlive its leader.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return nil
	case <-time.After(killGrace):
	}
	if kerr := syscall.Kill(-pid, syscall.SIGKILL); kerr != nil {
		err = kerr
	}
	select {
	case <-done:
		return nil
	case <-time.After(killGrace + pipeGrace):
		if err == nil {
			err = errors.New("no answer to SIGKILL")
		}
		return fmt.Errorf("process %d could not be killed and may still run: %w", pid, err)
	}
}

// start starts c with its input and output held by the caller. Ending its input
// is the way to end it; ctx does not.
func (l *local) start(_ context.Context, c Command) (*process, error) {
	cmd, err := l.command(c)
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	p := newProcess(stdin, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) })
	go func() {
		p.scan(stdout)
		_ = cmd.Wait()
		p.end(exitCode(cmd.ProcessState), stderr.Bytes(), nil)
	}()
	return p, nil
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

// asRoot says whether err is one that root would not have met.
func (l *local) asRoot(err error) bool {
	return l.uid != 0 && errors.Is(err, fs.ErrPermission)
}

// ReadFile implements Host.
func (l *local) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if err := checkPath("open", path); err != nil {
		return nil, err
	}
	b, err := readLocal(path)
	if !l.asRoot(err) {
		return b, err
	}
	b, err = l.scripts.asRoot().ReadFile(ctx, path)
	var refused *SudoError
	if errors.As(err, &refused) {
		// For the caller it is a file that may not be read, and why.
		err = &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%w, and as root: %w", fs.ErrPermission, refused)}
	}
	return b, err
}

// readLocal reads a regular file of at most MaxFile bytes.
func readLocal(path string) ([]byte, error) {
	// A pipe with no writer must not hang the open; regular files do not mind.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && path != os.DevNull {
		return nil, &fs.PathError{Op: "read", Path: path, Err: notRegular(info.Mode())}
	}
	if info.Size() > MaxFile {
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	// One byte more, so that a file of the expected size ends in this read.
	buf := bytes.NewBuffer(make([]byte, 0, info.Size()+bytes.MinRead))
	if _, err := buf.ReadFrom(io.LimitReader(f, MaxFile+1)); err != nil {
		return nil, err
	}
	if buf.Len() > MaxFile {
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	return buf.Bytes(), nil
}

// notRegular is what is wrong with a file of mode m, ErrNotRegular among its causes.
func notRegular(m fs.FileMode) error {
	if m.IsDir() {
		return fmt.Errorf("%w: %w", ErrNotRegular, syscall.EISDIR)
	}
	return ErrNotRegular
}

// ReadFiles implements Host.
func (l *local) ReadFiles(ctx context.Context, paths []string) ([][]byte, error) {
	all := make([][]byte, 0, len(paths))
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: context.Cause(ctx)}
		}
		b, err := l.ReadFile(ctx, path)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// Glob implements Host.
func (l *local) Glob(ctx context.Context, pattern string) ([]string, error) {
	if err := checkPath("glob", pattern); err != nil {
		return nil, err
	}
	paths, err := expand(ctx, localTree{}, pattern)
	if l.asRoot(err) {
		return l.scripts.asRoot().Glob(ctx, pattern)
	}
	return paths, err
}

// Stat implements Host.
func (l *local) Stat(ctx context.Context, path string) (FileInfo, error) {
	if err := checkPath("stat", path); err != nil {
		return FileInfo{}, err
	}
	info, err := statLocal(path)
	if l.asRoot(err) {
		return l.scripts.asRoot().Stat(ctx, path)
	}
	return info, err
}

// Replace implements Host.
func (l *local) Replace(ctx context.Context, path string, was, now []byte) error {
	if err := checkPath("replace", path); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &fs.PathError{Op: "replace", Path: path, Err: context.Cause(ctx)}
	}
	err := replaceLocal(path, was, now)
	if l.asRoot(err) {
		return l.scripts.asRoot().Replace(ctx, path, was, now)
	}
	return err
}

// Append implements Host.
func (l *local) Append(ctx context.Context, path string, data []byte) error {
	if err := checkPath("append", path); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return &fs.PathError{Op: "append", Path: path, Err: context.Cause(ctx)}
	}
	err := appendLocal(path, data)
	if l.asRoot(err) {
		return l.scripts.asRoot().Append(ctx, path, data)
	}
	return err
}

// Lock implements Host.
func (l *local) Lock(ctx context.Context, path string, wait time.Duration) (Lock, error) {
	if err := checkPath("lock", path); err != nil {
		return nil, err
	}
	lock, err := lockLocal(ctx, path, wait)
	if l.asRoot(err) {
		return l.scripts.asRoot().Lock(ctx, path, wait)
	}
	return lock, err
}

// DialContext implements Host.
func (l *local) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// Lookup implements Host.
func (l *local) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return lookup(ctx, l, name)
}
