package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// SSH is how to reach a host over SSH. What is empty is taken from the
// configuration of ssh, then from its defaults. There is no way to turn the
// check of the host key off, whatever StrictHostKeyChecking says there.
type SSH struct {
	Address  string // host name or address, or an alias of the configuration
	User     string
	Port     int
	Identity string // private key file, before all others
	// ConfigFile is read in the place of ~/.ssh/config and
	// /etc/ssh/ssh_config; "none" stands for no file.
	ConfigFile string
	// KnownHosts is read in the place of the configured known_hosts files.
	KnownHosts string
	// Passphrase is asked for the passphrase of the key file at keyPath when
	// the host would take that key and no agent holds it. It may be asked
	// again if it was wrong. What it returns is overwritten. It must return
	// when ctx ends. If it is nil, such a key is an error.
	Passphrase func(ctx context.Context, keyPath string) ([]byte, error)
	// Trace, if not nil, is told every command as it is sent, without what
	// it reads.
	Trace func(host, command string)
	// DialTimeout bounds making a connection to each host on the way, a
	// person's typing not counted. It is ConnectTimeout of the configuration
	// or 10 s if it is 0.
	DialTimeout time.Duration
}

// Connect connects to the host. The error is a *HostKeyError where its key is
// not known, an *AuthError where it refuses the login, and ErrConnection where
// it cannot be reached.
//
// The connection is kept, and made anew when it breaks: by the next call, or
// by the one that finds it broken before it has sent anything.
func (s SSH) Connect(ctx context.Context) (Host, error) {
	return s.connect(ctx, defaultLimits())
}

func (s SSH) connect(ctx context.Context, limits limits) (*sshHost, error) {
	route, err := s.route(ctx)
	if err != nil {
		return nil, err
	}
	h := &sshHost{
		dialer: &dialer{
			route: route, limits: limits,
			keys: &keyring{passphrase: s.Passphrase, mutex: make(chan struct{}, 1), opened: make(map[string]ssh.Signer)},
		},
		endpoint: route[len(route)-1],
		trace:    s.Trace,
		limits:   limits,
		slot:     newSlot(),
		mutex:    make(chan struct{}, 1),
	}
	if _, _, err := h.connection(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// sshHost is a host over SSH.
type sshHost struct {
	dialer   *dialer
	endpoint endpoint
	trace    func(host, command string)
	limits   limits
	slot     *slot

	mutex  chan struct{} // full while somebody uses what follows
	conn   *connection
	closed bool

	asking sync.Mutex // guards isRoot
	isRoot *bool      // whether the login user is root, once that is known
}

func (h *sshHost) Name() string { return h.endpoint.name() }
func (h *sshHost) User() string { return h.endpoint.user }

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
	if h.conn, err = h.dialer.dial(ctx); err != nil {
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

// Run implements Host.
func (h *sshHost) Run(ctx context.Context, c Command) (Result, error) {
	begin := time.Now()
	s, sudo, err := h.start(ctx, c)
	if err != nil {
		return Result{}, err
	}
	r, err := s.finish(ctx, c)
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	r.Elapsed = time.Since(begin)
	if sudo {
		err = Refusal(h, c.Args, r)
	}
	return r, err
}

// Start implements Host.
func (h *sshHost) Start(ctx context.Context, c Command) (*Stream, error) {
	s, _, err := h.start(ctx, c)
	return s, err
}

// start starts c once the slot is free, and says whether through sudo.
func (h *sshHost) start(ctx context.Context, c Command) (s *Stream, sudo bool, err error) {
	args, sudo, err := h.command(ctx, c)
	if err != nil {
		return nil, false, err
	}
	if err := h.slot.take(ctx); err != nil {
		return nil, false, h.failed(c, err)
	}
	if s, err = h.send(ctx, Quote(args...)); err != nil {
		h.slot.free()
		return nil, false, h.failed(c, err)
	}
	return s, sudo, nil
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

// root says whether the login user is root. The host is asked once.
func (h *sshHost) root(ctx context.Context) (bool, error) {
	h.asking.Lock()
	defer h.asking.Unlock()
	if h.isRoot == nil {
		root, err := askRoot(ctx, h)
		if err != nil {
			return false, err
		}
		h.isRoot = &root
	}
	return *h.isRoot, nil
}

// failed is err with what it befell.
func (h *sshHost) failed(c Command, err error) error {
	return fmt.Errorf("run %s on %s: %w", Quote(c.Args...), h.Name(), err)
}

// send starts a command. Where the connection turns out to have been dead
// before anything was sent, a new one is tried, once.
func (h *sshHost) send(ctx context.Context, line string) (*Stream, error) {
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		channel, requests, err := c.open(ctx, h.limits.refusal)
		if errors.Is(err, errDead) {
			if !fresh {
				continue
			}
			return nil, c.lost()
		}
		if err != nil {
			return nil, err
		}
		if h.trace != nil {
			h.trace(h.Name(), line)
		}
		p := &session{conn: c, channel: channel, stream: newStream(h.limits, h.slot)}
		go p.serve(requests)
		if err := p.exec(ctx, line); err != nil {
			p.hangup()
			return nil, err
		}
		p.stream.attach(p, channel.Stderr())
		return p.stream, nil
	}
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
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := c.dial(ctx, network, addr)
		switch {
		case err == nil:
			return conn, nil
		case !errors.Is(err, errDead):
			return fail(err)
		case fresh:
			return fail(c.lost())
		}
	}
}
