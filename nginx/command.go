package nginx

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/drainctl/drainctl/command"
)

const (
	killGrace = time.Second // see command.Command
	maxOutput = 4 << 20     // bytes that a command may print to each of its outputs
	maxLines  = 50          // lines of the output that an error repeats, the last
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
	all := command.Lines(out)
	telling := slices.DeleteFunc(slices.Clone(all), func(line string) bool {
		return !strings.Contains(line, "[emerg]") && !strings.Contains(line, "[alert]") && !strings.Contains(line, "[crit]")
	})
	if len(telling) == 0 {
		telling = all
	}
	return &CommandError{Command: args, Code: code, Lines: telling[max(0, len(telling)-maxLines):]}
}

// run runs a command to its end: see [command.Run]. One that fails is a *[CommandError].
func run(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	out, errOut := &command.Output{Max: maxOutput}, &command.Output{Max: maxOutput}
	code, err := command.Run(ctx, command.Command{Args: args, Stdout: out, Stderr: errOut, Grace: killGrace})
	stdout, stderr = string(out.Bytes()), string(errOut.Bytes())
	switch {
	case err != nil:
		return "", "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	case code != 0:
		return "", "", commandError(args, code, stdout+stderr)
	}
	return stdout, stderr, nil
}
