package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxSessions is how many commands run at once on one connection. sshd allows
// ten sessions unless told otherwise, and locks need some.
const maxSessions = 8

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
	// again if it was wrong. What it returns is overwritten. If it is nil,
	// such a key is an error.
	Passphrase func(keyPath string) ([]byte, error)
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
	return s.connect(ctx, beatInterval)
}

// connect is Connect with the interval between signs of life.
func (s SSH) connect(ctx context.Context, interval time.Duration) (*sshHost, error) {
	config, err := loadSSHConfig(s.ConfigFile)
	if err != nil {
		return nil, err
	}
	h := &sshHost{
		dialer: &dialer{
			config: config, knownHosts: s.KnownHosts, timeout: s.DialTimeout, interval: interval,
			keys: &keyring{passphrase: s.Passphrase, opened: make(map[string]ssh.Signer)},
		},
		trace:    s.Trace,
		turn:     make(chan struct{}, 1),
		sessions: make(chan struct{}, maxSessions),
	}
	if h.endpoint, err = h.dialer.resolve(ctx, strings.Trim(s.Address, "[]"), s.User, s.Port); err != nil {
		return nil, err
	}
	if s.Identity != "" {
		named := identity{path: s.Identity, explicit: true, named: true}
		h.endpoint.identities = append([]identity{named}, h.endpoint.identities...)
	}
	h.scripts = scripts{machine: h}
	if _, _, err := h.connection(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// sshHost is a host over SSH.
type sshHost struct {
	scripts  // files and locks
	dialer   *dialer
	endpoint endpoint
	trace    func(host, command string)
	sessions chan struct{} // holds a token for each running command

	turn   chan struct{} // holds a token while somebody looks at what follows
	conn   *connection
	closed bool

	asking    sync.Mutex // guards superuser
	superuser *bool      // whether the login user is root, once that is known
}

func (h *sshHost) Name() string { return h.endpoint.name() }
func (h *sshHost) User() string { return h.endpoint.user }

// connection returns the connection, which it makes if there is none that
// works. fresh says that it has just been made.
func (h *sshHost) connection(ctx context.Context) (c *connection, fresh bool, err error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, false, fmt.Errorf("ssh to %s: %w", h.Name(), context.Cause(ctx))
	}
	defer func() { <-h.turn }()
	if h.closed {
		return nil, false, fmt.Errorf("ssh to %s: %w", h.Name(), net.ErrClosed)
	}
	if h.conn != nil && !h.conn.isDead() {
		return h.conn, false, nil
	}
	if h.conn, err = h.dialer.dial(ctx, h.endpoint); err != nil {
		h.conn = nil
		return nil, false, err
	}
	return h.conn, true, nil
}

// Close implements Host.
func (h *sshHost) Close() error {
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	h.closed = true
	if h.conn != nil {
		h.conn.end(net.ErrClosed)
	}
	return nil
}

// isRoot says whether the login user is root.
func (h *sshHost) isRoot(ctx context.Context) (bool, error) {
	if h.User() == "root" {
		return true, nil
	}
	h.asking.Lock()
	defer h.asking.Unlock()
	if h.superuser == nil {
		root, err := askRoot(ctx, h)
		if err != nil {
			return false, err
		}
		h.superuser = &root
	}
	return *h.superuser, nil
}

// line is c as one line for the shell at the other end.
func (h *sshHost) line(ctx context.Context, c Command) (line string, sudo bool, err error) {
	if err := checkArgs(c); err != nil {
		return "", false, err
	}
	args := c.Args
	if c.Root {
		root, err := h.isRoot(ctx)
		if err != nil {
			return "", false, err
		}
		if sudo = !root; sudo {
			// sudo's refusals are read; env, as not every shell sets
			// variables in front of a command.
			args = append([]string{"env", "LC_ALL=C", "sudo", "-n"}, args...)
		}
	}
	return Quote(args...), sudo, nil
}

// Run implements Host.
func (h *sshHost) Run(ctx context.Context, c Command) (Result, error) {
	line, sudo, err := h.line(ctx, c)
	if err != nil {
		return Result{}, err
	}
	select {
	case h.sessions <- struct{}{}:
		defer func() { <-h.sessions }()
	case <-ctx.Done():
		return Result{}, h.failed(c, context.Cause(ctx))
	}
	begin := time.Now()
	s, err := h.send(ctx, line)
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	s.sudo = sudo
	r, err := s.finish(ctx, c.Stdin)
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	r.Elapsed = time.Since(begin)
	if sudo {
		if err := sudoRefusal(h, c.Args, r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// failed is err with what it befell.
func (h *sshHost) failed(c Command, err error) error {
	return fmt.Errorf("run %s on %s: %w", brief(c.Args), h.Name(), err)
}

// brief is a command for an error: a script is only named.
func brief(args []string) string {
	if isScript(args) {
		return "a script"
	}
	return Quote(args...)
}

// send starts the command line. Where the connection turns out to have been dead
// before anything was sent, a new one is tried, once.
func (h *sshHost) send(ctx context.Context, line string) (*session, error) {
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		channel, requests, err := c.session(ctx)
		if errors.Is(err, errUnused) {
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
		s := newSession(c, channel, requests)
		if err := s.exec(ctx, line); err != nil {
			s.channel.Close()
			return nil, err
		}
		return s, nil
	}
}

// start starts c with its input and output held by the caller.
func (h *sshHost) start(ctx context.Context, c Command) (*process, error) {
	line, _, err := h.line(ctx, c)
	if err != nil {
		return nil, err
	}
	s, err := h.send(ctx, line)
	if err != nil {
		return nil, h.failed(c, err)
	}
	p := newProcess(sessionInput{s}, func() {
		s.signal("TERM")
		s.channel.Close()
	})
	go func() {
		var stderr bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(&stderr, s.channel.Stderr())
		}()
		p.scan(s.channel)
		<-read
		<-s.closed
		s.channel.Close()
		code, known := s.status()
		if known {
			p.end(code, stderr.Bytes(), nil)
			return
		}
		p.end(0, stderr.Bytes(), s.conn.lost())
	}()
	return p, nil
}

// DialContext implements Host.
func (h *sshHost) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := c.client.DialContext(ctx, network, addr)
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return conn, nil
		case errors.As(err, &refused):
			why := refused.Message
			if refused.Reason == ssh.Prohibited {
				why += " (see AllowTcpForwarding and PermitOpen in its sshd_config)"
			}
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s from %s: %s", addr, h.Name(), why)}
		case ctx.Err() != nil:
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s from %s: %w", addr, h.Name(), context.Cause(ctx))}
		case c.isDead() && fresh:
			return nil, c.lost()
		case !c.isDead() && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("dial %s from %s: %w", addr, h.Name(), err)
		}
		c.end(err)
	}
}

// Lookup implements Host.
func (h *sshHost) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return lookup(ctx, h, name)
}
