package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// killGrace is how long a command has to end after SIGTERM before SIGKILL, and
// how long output is awaited after a command has ended and left something behind
// that holds it open.
const killGrace = time.Second

// maxOutput is how many bytes a command may print, and maxLines how many lines of that
// an error has, the last.
const (
	maxOutput = 4 << 20
	maxLines  = 50
)

// Exit codes as a shell has them.
const (
	codeCannotExecute = 126
	codeNotFound      = 127
)

// A CommandError is a command about nginx that failed, in its own words.
type CommandError struct {
	Command []string
	Code    int      // 126: it could not be executed; 127: there is no such command
	Lines   []string // what it printed, only the most telling if there are any
}

func (e *CommandError) Error() string {
	what := strings.Join(e.Command, " ")
	if len(e.Lines) == 0 {
		return fmt.Sprintf("%s: exit status %d, and it printed nothing", what, e.Code)
	}
	return fmt.Sprintf("%s: %s", what, strings.Join(e.Lines, "\n  ")) // so that none of them is taken for a hint
}

// Unprivileged tells whether the test failed only for want of permission: it
// was not run as root.
func (e *CommandError) Unprivileged() bool {
	for _, line := range e.Lines {
		if !strings.Contains(line, "(13: Permission denied)") && !strings.Contains(line, "(1: Operation not permitted)") {
			return false
		}
	}
	return len(e.Lines) > 0
}

// commandError keeps the lines in which nginx says why, or all of them when
// none does.
func commandError(args []string, code int, out string) *CommandError {
	e := &CommandError{Command: args, Code: code}
	var all []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		all = append(all, line)
		if strings.Contains(line, "[emerg]") || strings.Contains(line, "[alert]") || strings.Contains(line, "[crit]") {
			e.Lines = append(e.Lines, line)
		}
	}
	if len(e.Lines) == 0 {
		e.Lines = all
	}
	e.Lines = e.Lines[max(0, len(e.Lines)-maxLines):]
	return e
}

// An output keeps what a command prints. It calls full when that is more than maxOutput.
type output struct {
	text bytes.Buffer
	full func(error)
}

// errOutput says that a command printed too much.
var errOutput = fmt.Errorf("it printed more than %d MiB", maxOutput>>20)

func (o *output) Write(p []byte) (int, error) {
	if len(p) > maxOutput-o.text.Len() {
		o.full(errOutput)
		return 0, errOutput
	}
	return o.text.Write(p)
}

// run runs a command to its end. One that fails is a *CommandError. When ctx ends, or
// it prints more than 4 MiB, its process group gets SIGTERM and, after killGrace,
// SIGKILL. It has a session of its own: a Ctrl-C at the terminal is for drainctl to
// handle.
func run(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	out, errOut := &output{full: stop}, &output{full: stop}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killGrace
	err = cmd.Run()
	if ctx.Err() != nil {
		if cmd.Process != nil && !cmd.ProcessState.Success() {
			// What of the group ignored the signal must not outlive its leader.
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		if cmd.ProcessState == nil || !cmd.ProcessState.Success() || errors.Is(context.Cause(ctx), errOutput) {
			return "", "", fmt.Errorf("%s: killed: %w", strings.Join(args, " "), context.Cause(ctx))
		}
	}
	code := 0
	switch state := cmd.ProcessState; {
	case state != nil && !state.Success():
		if code = state.ExitCode(); code < 0 {
			code = 128 + int(state.Sys().(syscall.WaitStatus).Signal())
		}
	case state != nil: // what it left behind does not matter
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		code = codeNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		code = codeCannotExecute
	default:
		return "", "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	if code == 0 {
		return out.text.String(), errOut.text.String(), nil
	}
	if cmd.ProcessState == nil {
		errOut.text.WriteString(err.Error())
	}
	return "", "", commandError(args, code, out.text.String()+errOut.text.String())
}
