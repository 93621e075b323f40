package drain

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/drainctl/drainctl/drain/event"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/remote"
)

// work is what a rolling run is for: a command, here or on the backend, or a
// reboot. There is no way back from it.
func (b *batch) work(ctx context.Context) Verdict {
	stop := b.watch(ctx)
	defer stop()
	return joined(b.rows, gather(b.rows, func(r *row) Verdict {
		if err := b.o.work(ctx, r); err != nil {
			return failed(true, err)
		}
		return Verdict{Changed: true}
	}))
}

// watchInterval is how often an LB is looked at during the work, at the most: that may take hours.
const watchInterval = time.Second

// watch looks, until stop is called, whether the LBs keep requests away from the batch. The first time
// that they do not, it says so, and the run ends after the batch: to break off the work helps nobody.
func (b *batch) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	look, over := newLookout(b), make(chan struct{})
	every := cmp.Or(b.o.options.bounds.watch, max(watchInterval, b.o.plan.Spec.Interval))
	go func() {
		defer close(over)
		for remote.Sleep(ctx, every) == nil {
			_, err := look.look(ctx, true, false)
			if ctx.Err() != nil || b.o.lbs.IsBroken() { // a connection that breaks ends the run by itself
				return
			}
			var drift *driftError
			switch {
			case errors.As(err, &drift):
				b.o.drifted = fmt.Errorf("during the work: %w", err)
				b.o.emit(&event.Warning{Header: event.Header{Step: plan.StepWork}, Text: err.Error() + "; the run ends after this batch"})
				return
			case err != nil: // work may take hours: an LB that cannot be looked at for a while says nothing
				look = newLookout(b)
			}
		}
	}()
	return func() { cancel(); <-over }
}

// work does the work on one backend.
func (o *Operation) work(ctx context.Context, m *row) error {
	r := o.plan.Spec.Rollout
	if r.Reboot {
		o.emit(&event.Rebooting{Header: event.Header{Target: m.Name, Step: plan.StepWork}})
		if err := m.Reboot(ctx, r.RebootTimeout); err != nil {
			return err
		}
		// What was seen active before is not known to be now.
		for _, u := range m.Units {
			u.Active, u.Touched = false, true
		}
	}
	if len(r.Command) == 0 {
		return nil
	}
	var words []string
	for _, w := range r.Command {
		words = append(words, m.plan.Fill(w))
	}
	run := func() (int, error) { return o.runHere(ctx, words, m.plan, plan.StepWork) }
	if r.OnBackend {
		run = func() (int, error) { return o.runThere(ctx, m, words) }
	}
	code, err := run()
	if err == nil && code != 0 {
		err = &remote.ExitError{Args: words, Code: code}
	}
	return err
}

// WorkVariables are the environment variables that tell a command which backend
// it is for.
var WorkVariables = []string{"DRAINCTL_HOST", "DRAINCTL_ADDRESS", "DRAINCTL_PORT", "DRAINCTL_UPSTREAM_NAME", "DRAINCTL_OPERATION"}

// workGrace is how long a command that is told to end has for it.
const workGrace = 10 * time.Second

// runHere runs a command on this machine, never through a shell, and shows what
// it prints. It has a process group of its own: a Ctrl-C at the terminal is for
// drainctl to handle. When ctx ends, the group is killed.
func (o *Operation) runHere(ctx context.Context, words []string, b plan.Backend, step plan.StepName) (code int, err error) {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = workGrace
	values := []string{b.Fill("{host}"), b.Fill("{address}"), b.Fill("{port}"), b.Fill("{upstream}"), o.id}
	cmd.Env = os.Environ()
	for i, name := range WorkVariables {
		cmd.Env = append(cmd.Env, name+"="+values[i])
	}
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, write
	err = cmd.Start()
	write.Close()
	if err == nil {
		told := o.tell(read, b.Name, step)
		err = cmd.Wait()
		_ = awaitOutput(told) // a pipe of this machine does not break
		read.Close()
		for range told { // what could not be read is lost with the pipe
		}
	}
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case errors.As(err, &ended):
		return max(1, ended.ExitCode()), nil
	case err != nil:
		return 0, fmt.Errorf("run %s: %w", remote.Quote(words...), err)
	}
	return 0, nil
}

// mergeScript has a command's errors come with its output. It is one word, and its
// arguments reach the command as they are.
const mergeScript = `exec "$@" 2>&1`

// runThere runs a command on a backend, and shows what it prints.
func (o *Operation) runThere(ctx context.Context, m *row, words []string) (code int, err error) {
	stream, err := m.Host.Start(ctx, remote.Command{Args: append([]string{"sh", "-c", mergeScript, "sh"}, words...)})
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	defer stream.Close()
	_ = stream.CloseWrite()
	told := o.tell(stream, m.Name, plan.StepWork)
	code, err = stream.Wait()
	cut := awaitOutput(told)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return code, cmp.Or(err, cut)
}

// outputGrace is how long the output of a command that has ended is read on. What it has
// left running in the background may hold it open for ever.
const outputGrace = time.Second

// awaitOutput waits until the output of a command that has ended was told.
func awaitOutput(told <-chan error) error {
	select {
	case err := <-told:
		return err
	case <-time.After(outputGrace):
		return nil
	}
}

// maxWorkLine is how many bytes of a command's output are told at most in one event.
const maxWorkLine = 64 << 10

// tell tells each line of a command's output as an event, and one longer than maxWorkLine
// in pieces. What a command prints may hold a secret: it is shown, and not kept in the
// history. The channel has the error of the reading, and is closed when that is over.
func (o *Operation) tell(output io.Reader, backend string, step plan.StepName) <-chan error {
	over := make(chan error, 1)
	go func() {
		defer close(over)
		lines := bufio.NewReaderSize(output, maxWorkLine)
		for {
			line, err := lines.ReadSlice('\n')
			if len(line) > 0 {
				o.emit(&event.WorkOutput{Header: event.Header{Target: backend, Step: step}, Line: strings.TrimRight(string(line), "\r\n")})
			}
			switch {
			case err == nil, errors.Is(err, bufio.ErrBufferFull):
				continue
			case !errors.Is(err, io.EOF):
				over <- err
			}
			return
		}
	}()
	return over
}

// splitWords takes a command line apart, which was checked before.
func splitWords(line string) []string {
	words, _ := remote.Split(line)
	return words
}

// onlyIfLimit is how long --only-if may take on a backend. It may have to ask others, as
// a package manager does.
const onlyIfLimit = 5 * time.Minute

// askOnlyIf asks each backend whether it is to be done. 0 is yes and 1 is no. Any other code is an
// error, as of test(1) and grep(1), or the end by a signal: the backend is neither done nor skipped.
func (o *Operation) askOnlyIf(ctx context.Context) error {
	words := splitWords(o.plan.Spec.Rollout.OnlyIf)
	if len(words) == 0 {
		return nil
	}
	// Others are under way since an earlier process asked.
	rows := o.whole.where(func(m *row) bool { return m.isOpen() && m.reached == plan.NotBegun }).rows
	reasons := make([]string, len(rows))
	errs := gather(rows, func(m *row) error {
		var args []string
		for _, w := range words {
			args = append(args, m.plan.Fill(w))
		}
		r, err := m.Host.Run(ctx, remote.Command{Args: args, Limit: onlyIfLimit})
		hint := "0 is yes and 1 is no; for a command with other codes, say sh -c '... || exit 1'"
		switch {
		case err != nil:
			return err
		case r.Code == 0:
			return nil
		case r.Code == 1:
			reasons[slices.Index(rows, m)] = "--only-if: exit status 1"
			return nil
		case r.Code == 126 || r.Code == 127: // of a shell that cannot run it (POSIX, 2.8.2)
			hint = "it is a command and its words; for a shell's line, say sh -c '...'"
		}
		return fmt.Errorf("--only-if on %s: %w\nhint: %s", m.Name, r.Err(args...), hint)
	})
	for i, m := range rows {
		if reasons[i] != "" {
			m.end = skipped
			o.skipped = append(o.skipped, plan.Skip{Backend: m.Name, Reason: reasons[i]})
			if !o.plan.DryRun { // whose plan says so
				o.emit(&event.BackendSkipped{Header: event.Header{Target: m.Name}, Reason: reasons[i]})
			}
		}
	}
	return errors.Join(errs...)
}
