// Package remote is other machines: SSH with its logins and host keys, commands
// and streams there, and what a backend needs: connections counted with ss,
// units started and stopped with systemctl. This machine is a host too.
//
// It prints nothing and knows neither nginx nor what a drain is.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/drainctl/drainctl/command"
)

// ErrConnection says that the connection to a host could not be made or was
// lost. Where a command had been sent, its end is not known.
var ErrConnection = errors.New("no connection")

// thisMachine is the name of the local host.
const thisMachine = "this machine"

// Host is a machine on which commands are run, this one or one over SSH. It is
// safe for concurrent use. A host over SSH runs one command at a time, so that
// an sshd with MaxSessions 1 will do; others wait for their turn.
type Host interface {
	// Name is the host for a person: "this machine", or "user@address",
	// with ":port" where the port is not 22.
	Name() string
	// User is the login user on the host.
	User() string
	// Run runs c to its end. A command that ran and failed is a Result with
	// Code other than 0 and no error; so is a command that does not exist,
	// with the shell's code 127, and one that cannot be executed, 126. An
	// error means that it could not be started, that sudo refused it
	// (*SudoError), that ctx or its Limit ended, that it printed more than
	// 1 MiB, or that its end is not known (ErrConnection). In the first two
	// cases the command is told to end; one that does not, or runs as root,
	// may go on.
	Run(ctx context.Context, c Command) (Result, error)
	// Start starts c, to be talked to. It uses ctx and c.Stdin no longer
	// than until the command has started. Close the Stream in the end: until
	// then, no other command runs on a host over SSH.
	Start(ctx context.Context, c Command) (*Stream, error)
	// DialContext connects from the host to addr; network is "tcp" or "unix".
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	// Close ends the connection to the host, and every Stream on it.
	Close() error
}

// Command is a command to run on a host.
type Command struct {
	// Args is the program and its arguments. They reach the program as they
	// are: over SSH every word is quoted for any login shell. A newline in
	// one is refused there, as tcsh can be given none.
	Args []string
	// Root runs it as root: as it is when the login user is root, else with
	// exactly `sudo -n` before it, so that a sudoers rule may name it with
	// its arguments.
	Root bool
	// Stdin is what Run has it read; nothing if empty. Start ignores it.
	Stdin []byte
	// Limit is how long Run lets it take, from when it has started: 30 s if it
	// is 0, and as long as ctx lasts if it is NoLimit.
	Limit time.Duration
}

// limited is ctx, ended when the time of c is up.
func (c Command) limited(ctx context.Context, l limits) (context.Context, context.CancelFunc) {
	limit := cmp.Or(c.Limit, l.command)
	if limit < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not end within %v", limit))
}

// NoLimit leaves it to the context how long a command may take.
const NoLimit time.Duration = -1

// Result is how a command ended.
type Result struct {
	Stdout []byte
	Stderr []byte
	Code   int // exit status; 128 + n when signal n ended it
}

// outputLines is how many of a tool's last lines an error repeats.
const outputLines = 8

// Err is nil if the command succeeded. Otherwise it is an *ExitError with the
// last lines that the tool printed.
func (r Result) Err(args ...string) error {
	if r.Code == 0 {
		return nil
	}
	output := lastLines(r.Stderr, outputLines)
	if output == "" {
		output = lastLines(r.Stdout, outputLines)
	}
	return &ExitError{Args: args, Code: r.Code, Output: output}
}

// output runs a command that must succeed, and returns what it printed.
func output(ctx context.Context, h Host, args ...string) (string, error) {
	r, err := h.Run(ctx, Command{Args: args})
	if err == nil {
		err = r.Err(args...)
	}
	return string(r.Stdout), err
}

// ExitError is a command that ran and failed.
type ExitError struct {
	Args   []string
	Code   int
	Output string // the last lines of its standard error, or output
}

func (e *ExitError) Error() string {
	command := "command"
	if len(e.Args) > 0 {
		command = Quote(e.Args...)
	}
	if e.Output == "" {
		return fmt.Sprintf("%s: exit status %d", command, e.Code)
	}
	return fmt.Sprintf("%s: exit status %d: %s", command, e.Code, indentRest(e.Output))
}

// lastLines returns the last n lines of b that are not blank, each clipped to 4 KiB.
func lastLines(b []byte, n int) string {
	lines := command.Lines(string(b))
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// indentRest indents the lines after the first, so that none of what a program printed is
// taken for a line of the error's own, such as a hint.
func indentRest(text string) string { return strings.ReplaceAll(text, "\n", "\n  ") }

// checkArgs refuses what no command line can carry.
func checkArgs(c Command) error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return errors.New("run: no command")
	}
	for _, a := range c.Args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("run %s: NUL byte in an argument", Quote(c.Args[0]))
		}
	}
	// sudo would take these words for an option or for a variable to set.
	if c.Root && (strings.HasPrefix(c.Args[0], "-") || strings.Contains(c.Args[0], "=")) {
		return fmt.Errorf("run %s as root: not a command name", Quote(c.Args[0]))
	}
	return nil
}
