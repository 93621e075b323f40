// Package command runs commands on this machine. Each has a session of its own, an output of
// bounded length, and ends with its context, together with what it has started.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Exit codes with which a shell reports that it could not start a command.
const (
	CannotExecute = 126
	NotFound      = 127
)

// A Command is a program to run, and where its output goes.
type Command struct {
	Args   []string
	Env    []string // nil stands for the environment of this process
	Stdin  []byte   // for Run; Start ignores it
	Stdout *Output  // for Run; Start ignores it
	Stderr *Output
	// Grace is how long the command may take to end after SIGTERM, and how long its output
	// is awaited after it has ended and left something behind that holds the output open.
	Grace time.Duration
}

// Run runs c to its end and returns its exit code: 128 + n when signal n ended it, 126 or 127
// with the reason in c.Stderr when it could not be executed or does not exist. When ctx ends,
// or the output is longer than c.Stdout or c.Stderr takes, the process group of c is told to
// end with SIGTERM and, after c.Grace, with SIGKILL. That is an error with the cause, unless
// the command succeeds all the same and its output is complete.
func Run(ctx context.Context, c Command) (code int, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	c.Stdout.Full, c.Stderr.Full = stop, stop
	p, err := Start(c)
	if code := startFailure(err); code != 0 {
		_, _ = io.WriteString(c.Stderr, err.Error()+"\n")
		return code, nil
	}
	if err != nil {
		return 0, err
	}
	defer p.Close()
	go func() {
		_, _ = p.Write(c.Stdin) // the command need not read all of it
		_ = p.CloseWrite()
	}()
	stdout := collect(p.stdout, c.Stdout)
	select {
	case <-p.ended:
	case <-ctx.Done():
		if !p.Terminate() {
			return 0, fmt.Errorf("given up, it may still run: %w", context.Cause(ctx))
		}
	}
	deadline := time.Now().Add(c.Grace)
	stdout.finish(deadline)
	p.stderr.finish(deadline)
	switch {
	case ctx.Err() != nil && p.code != 0:
		return 0, fmt.Errorf("killed: %w", context.Cause(ctx))
	case c.Stdout.isTooLong():
		return 0, TooLongError(c.Stdout.Max)
	case c.Stderr.isTooLong():
		return 0, TooLongError(c.Stderr.Max)
	}
	return p.code, p.err
}

// startFailure is the exit code with which a shell reports err, the failure to start a
// command; 0 if it is another failure.
func startFailure(err error) int {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		return CannotExecute
	}
	return 0
}

// A Process is a command that runs. Read reads its standard output, Write writes its standard
// input.
type Process struct {
	pid    int
	grace  time.Duration
	stdin  io.WriteCloser
	stdout *os.File
	stderr *collector
	ended  chan struct{}
	code   int // once it has ended
	err    error
}

// Start starts c. A Ctrl-C at the terminal is for drainctl to handle, not for the command, and
// with no terminal in reach sudo cannot ask for a password: c gets a session of its own.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.SysProcAttr = c.Env, &syscall.SysProcAttr{Setsid: true}
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	stderr, err3 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{pid: cmd.Process.Pid, grace: c.Grace, stdin: stdin, stdout: stdout.(*os.File), ended: make(chan struct{})}
	p.stderr = collect(stderr.(*os.File), c.Stderr)
	go func() {
		defer close(p.ended)
		var state *os.ProcessState
		if state, p.err = cmd.Process.Wait(); p.err == nil { // cmd.Wait would close the pipes
			p.code = exitCode(state)
		}
	}()
	return p, nil
}

// exitCode is the exit status, or 128 + n after signal n, as a shell has it.
func exitCode(state *os.ProcessState) int {
	if w, ok := state.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return state.ExitCode()
}

// Read implements io.Reader. After Close the output is at its end.
func (p *Process) Read(b []byte) (int, error) {
	n, err := p.stdout.Read(b)
	if errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// Write implements io.Writer.
func (p *Process) Write(b []byte) (int, error) { return p.stdin.Write(b) }

// CloseWrite ends the input of the command.
func (p *Process) CloseWrite() error { return p.stdin.Close() }

// Stderr returns what is kept of the standard error. After Wait it is complete.
func (p *Process) Stderr() string { return string(p.stderr.into.Bytes()) }

// Done is closed when the command has ended.
func (p *Process) Done() <-chan struct{} { return p.ended }

// Wait returns the exit code of the command when it has ended.
func (p *Process) Wait() (int, error) {
	<-p.ended
	p.stderr.finish(time.Now().Add(p.grace))
	return p.code, p.err
}

// Close closes the pipes to the command. It sends no signal.
func (p *Process) Close() error {
	p.stdin.Close()
	p.stderr.pipe.Close()
	return p.stdout.Close()
}

// Terminate tells the process group to end, first politely, and reports whether the command
// has ended. What sudo has started is root's to signal.
func (p *Process) Terminate() bool {
	if p.signal(syscall.SIGTERM) && p.code == 0 {
		return true
	}
	return p.signal(syscall.SIGKILL) // what the command started may have ignored SIGTERM
}

// signal signals the process group, and reports whether the command ends within the grace.
func (p *Process) signal(s syscall.Signal) bool {
	_ = syscall.Kill(-p.pid, s)
	select {
	case <-p.ended:
		return true
	case <-time.After(p.grace):
		return false
	}
}
