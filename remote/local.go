package remote

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"

	"github.com/drainctl/drainctl/command"
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
	cmd, err := l.command(ctx, c)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := c.limited(ctx, l.limits)
	defer cancel()
	code, err := command.Run(ctx, cmd)
	if err != nil {
		return Result{}, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	r := Result{Stdout: cmd.Stdout.Bytes(), Stderr: cmd.Stderr.Bytes(), Code: code}
	if c.Root && !l.root {
		err = Refusal(l, c.Args, r)
	}
	return r, err
}

// Start implements Host.
func (l *local) Start(ctx context.Context, c Command) (*Stream, error) {
	cmd, err := l.command(ctx, c)
	if err != nil {
		return nil, err
	}
	p, err := command.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", Quote(c.Args...), err)
	}
	return newStream(p, l.limits, nil), nil
}

// command is c as it is run.
func (l *local) command(ctx context.Context, c Command) (command.Command, error) {
	if err := checkArgs(c); err != nil {
		return command.Command{}, err
	}
	if ctx.Err() != nil {
		return command.Command{}, fmt.Errorf("run %s: %w", Quote(c.Args...), context.Cause(ctx))
	}
	cmd := command.Command{
		Args: c.Args, Stdin: c.Stdin, Grace: l.limits.grace,
		Stdout: &command.Output{Max: l.limits.output}, Stderr: &command.Output{Max: maxStderr, Last: true},
	}
	if c.Root && !l.root {
		cmd.Args = append([]string{"sudo", "-n"}, c.Args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C") // its refusals are read
	}
	if l.trace != nil {
		l.trace(l.Name(), Quote(cmd.Args...))
	}
	return cmd, nil
}
