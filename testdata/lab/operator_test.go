package lab_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// commandLimit bounds a run of drainctl. It is for machines that are slow or busy.
const commandLimit = 3 * time.Minute

// An ending is how a command ended, and what it said.
type ending struct {
	line           string
	code           int
	stdout, stderr string
}

// A typed command runs on the load balancer.
type typed struct {
	t      *testing.T
	l      *lab.Lab
	line   string
	cmd    *exec.Cmd
	stdout *screen
	stderr *screen
	cancel context.CancelFunc
}

// screen is what a command has written so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// start types a command on the load balancer, as root, and does not wait for it.
func start(t *testing.T, l *lab.Lab, args ...string) *typed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	c := &typed{t: t, l: l, line: strings.Join(args, " "), cancel: cancel, stdout: &screen{}, stderr: &screen{}}
	c.cmd = l.LB.Command(ctx, args...)
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	if err := c.cmd.Start(); err != nil {
		cancel()
		t.Fatalf("%s: %v", c.line, err)
	}
	return c
}

// wait waits until the command ends.
func (c *typed) wait() ending {
	c.t.Helper()
	defer c.cancel()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%s: %v\n%s%s", c.line, err, c.stdout, c.stderr)
	}
	return ending{c.line, c.cmd.ProcessState.ExitCode(), c.stdout.String(), c.stderr.String()}
}

// until waits until the command has said something.
func (c *typed) until(words string) {
	c.t.Helper()
	eventually(c.t, c.line+" says "+words, func() bool { return strings.Contains(c.stdout.String(), words) })
}

// signal sends the command a signal, as the terminal or another program does.
func (c *typed) signal(s unix.Signal) {
	c.t.Helper()
	if err := c.l.LB.Signal(c.cmd, s); err != nil {
		c.t.Fatal(err)
	}
}

// on types a command on the load balancer and waits for its end.
func on(t *testing.T, l *lab.Lab, args ...string) ending {
	t.Helper()
	return start(t, l, args...).wait()
}

// drainctl runs it on the load balancer.
func drainctl(t *testing.T, l *lab.Lab, args ...string) ending {
	t.Helper()
	return on(t, l, append([]string{"drainctl"}, args...)...)
}

// wants checks how a command ended, and that it said all the words, on whichever of
// the outputs. If it ended otherwise the test ends: what follows would mean nothing.
func (e ending) wants(t *testing.T, code int, words ...string) ending {
	t.Helper()
	if e.code != code {
		t.Fatalf("%s: exit code %d, want %d\n%s%s", e.line, e.code, code, e.stdout, e.stderr)
	}
	for _, w := range words {
		if !strings.Contains(e.stdout+e.stderr, w) {
			t.Errorf("%s: it does not say %q:\n%s%s", e.line, w, e.stdout, e.stderr)
		}
	}
	return e
}

// next is the command that the ending says goes on from there.
func (e ending) next(t *testing.T) []string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^drainctl: next: (drainctl [^(\n]*)`).FindStringSubmatch(e.stderr)
	if found == nil {
		t.Fatalf("%s: it names no command that goes on from there:\n%s", e.line, e.stderr)
	}
	return strings.Fields(found[1])
}

// patience bounds what is waited for. Nothing is meant to take that long.
const patience = 2 * time.Minute

// eventually polls until it is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for began := time.Now(); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("after %s it is still not so: %s", patience, what)
		}
	}
}
