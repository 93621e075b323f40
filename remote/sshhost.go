package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
)

// sshHost is a host over SSH.
type sshHost struct {
	route  []endpoint // the hosts on the way, and the host itself
	keys   *keyring
	trace  func(host, command string)
	limits limits
	isRoot atomic.Pointer[bool] // whether the login user is root, once that is known
	// turn has a value while no command runs, as the host may have one session at a time:
	// the Stream that is parked, or nil. A parked Stream keeps its session while it has
	// nothing to do. Who takes the value may run a command, and closes the parked Stream.
	turn chan *Stream

	mutex  chan struct{} // full while somebody uses what follows
	conn   *connection
	closed bool
}

func (s SSH) connect(ctx context.Context, limits limits) (*sshHost, error) {
	route, err := s.route(ctx)
	if err != nil {
		return nil, err
	}
	h := &sshHost{
		route: route, keys: &keyring{passphrase: s.Passphrase},
		trace: s.Trace, limits: limits, turn: make(chan *Stream, 1), mutex: make(chan struct{}, 1),
	}
	h.turn <- nil
	if _, _, err := h.connection(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// endpoint is the host itself.
func (h *sshHost) endpoint() endpoint { return h.route[len(h.route)-1] }

func (h *sshHost) Name() string { return h.endpoint().name() }
func (h *sshHost) User() string { return h.endpoint().user }

// connection returns the connection, which it makes if there is none that
// works. fresh says that it has just been made.
func (h *sshHost) connection(ctx context.Context) (c *connection, fresh bool, err error) {
	select {
	case h.mutex <- struct{}{}:
	case <-ctx.Done():
		return nil, false, fmt.Errorf("ssh to %s: %w", h.Name(), context.Cause(ctx))
	}
	defer func() { <-h.mutex }()
	if h.closed {
		return nil, false, fmt.Errorf("ssh to %s: %w", h.Name(), net.ErrClosed)
	}
	if h.conn != nil && !h.conn.isDead() {
		return h.conn, false, nil
	}
	if h.conn, err = h.dial(ctx); err != nil {
		h.conn = nil
		return nil, false, err
	}
	return h.conn, true, nil
}

// Close implements Host.
func (h *sshHost) Close() error {
	h.mutex <- struct{}{}
	defer func() { <-h.mutex }()
	h.closed = true
	if h.conn != nil {
		h.conn.end(net.ErrClosed)
	}
	return nil
}

// useConnection runs f, which uses a connection to the host. Where that turns out to have been dead
// before anything was sent, f runs once more, on a new one.
func useConnection[T any](ctx context.Context, h *sshHost, f func(*connection) (T, error)) (value T, err error) {
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return value, err
		}
		value, err = f(c)
		switch {
		case !errors.Is(err, errDead):
			return value, err
		case fresh:
			return value, c.lost()
		}
	}
}

// Run implements Host.
func (h *sshHost) Run(ctx context.Context, c Command) (Result, error) {
	p, sudo, err := h.start(ctx, c)
	if err != nil {
		return Result{}, err
	}
	r, err := p.finish(ctx, c)
	p.Close()
	h.turn <- nil
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	if sudo {
		err = Refusal(h, c.Args, r)
	}
	return r, err
}

// Start implements Host.
func (h *sshHost) Start(ctx context.Context, c Command) (*Stream, error) {
	p, _, err := h.start(ctx, c)
	if err != nil {
		return nil, err
	}
	return newStream(p, h.limits, h.turn), nil
}

// start starts c when it is its turn, and says whether through sudo.
func (h *sshHost) start(ctx context.Context, c Command) (p *sshProcess, sudo bool, err error) {
	args, sudo, err := h.command(ctx, c)
	if err != nil {
		return nil, false, err
	}
	idle, err := wait(ctx, h.turn)
	if err != nil {
		return nil, false, h.failed(c, err)
	}
	if idle != nil {
		idle.Close()
	}
	line := Quote(args...)
	p, err = useConnection(ctx, h, func(conn *connection) (*sshProcess, error) {
		ch, err := conn.open(ctx, h.limits.refusal)
		if err != nil {
			return nil, err
		}
		if h.trace != nil {
			h.trace(h.Name(), line)
		}
		return conn.exec(ctx, ch, line, h.limits)
	})
	if err != nil {
		h.turn <- nil
		return nil, false, h.failed(c, err)
	}
	return p, sudo, nil
}

// command is c as it is sent.
func (h *sshHost) command(ctx context.Context, c Command) (args []string, sudo bool, err error) {
	if err := checkArgs(c); err != nil {
		return nil, false, err
	}
	if strings.Contains(strings.Join(c.Args, ""), "\n") {
		return nil, false, h.failed(c, errors.New("a newline in an argument, which not every login shell passes on"))
	}
	if !c.Root {
		return c.Args, false, nil
	}
	if root, err := h.root(ctx); err != nil || root {
		return c.Args, false, err
	}
	// sudo's refusals are read; env, as not every shell sets variables in
	// front of a command.
	return append([]string{"env", "LC_ALL=C", "sudo", "-n"}, c.Args...), true, nil
}

// root says whether the login user is root. The host is asked until it has answered.
func (h *sshHost) root(ctx context.Context) (bool, error) {
	if known := h.isRoot.Load(); known != nil {
		return *known, nil
	}
	root, err := askRoot(ctx, h)
	if err == nil {
		h.isRoot.Store(&root)
	}
	return root, err
}

// failed is err with what it befell.
func (h *sshHost) failed(c Command, err error) error {
	return fmt.Errorf("run %s on %s: %w", Quote(c.Args...), h.Name(), err)
}

// DialContext implements Host.
func (h *sshHost) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s from %s: %w", addr, h.Name(), err)}
	}
	switch network {
	case "unix":
	case "tcp", "tcp4", "tcp6":
		_, port, err := net.SplitHostPort(addr)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return fail(err)
		}
	default:
		return fail(net.UnknownNetworkError(network))
	}
	conn, err := useConnection(ctx, h, func(c *connection) (net.Conn, error) { return c.dial(ctx, network, addr) })
	if err != nil {
		return fail(err)
	}
	return conn, nil
}
