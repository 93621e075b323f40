package remote

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
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

// launch is a command as it is sent to the shell at the other end.
type launch struct {
	line  string
	shown string // the same for a person
	sudo  bool   // it goes through sudo
	mark  string // begins the line on standard error that tells the process group, if one does
}

// groupScript tells its process group and becomes the command: MARK COMMAND...
// The signals that sshd can be asked for do not do to kill a command: it sends
// none to what root runs, nor any more once the login shell has ended
// (session_signal_req in OpenSSH's session.c).
const groupScript = `read -r pid name state parent group rest </proc/$$/stat; echo "$1 $group" >&2; shift; exec "$@"`

// launch prepares c.
func (h *sshHost) launch(ctx context.Context, c Command) (launch, error) {
	if err := checkArgs(c); err != nil {
		return launch{}, err
	}
	args := c.Args
	sudo := false
	if c.Root {
		root, err := h.isRoot(ctx)
		if err != nil {
			return launch{}, err
		}
		if sudo = !root; sudo {
			// sudo's refusals are read; env, as not every shell sets
			// variables in front of a command.
			args = append([]string{"env", "LC_ALL=C", "sudo", "-n"}, args...)
		}
	}
	mark := rand.Text()
	wrapped := append([]string{"sh", "-c", groupScript, "sh", mark}, args...)
	return launch{line: Quote(wrapped...), shown: Quote(args...), sudo: sudo, mark: mark}, nil
}

// Run implements Host.
func (h *sshHost) Run(ctx context.Context, c Command) (Result, error) {
	l, err := h.launch(ctx, c)
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
	s, err := h.send(ctx, l)
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	r, err := s.finish(ctx, c.Stdin)
	if err != nil {
		return Result{}, h.failed(c, err)
	}
	r.Elapsed = time.Since(begin)
	if l.sudo {
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

// send starts a command. Where the connection turns out to have been dead
// before anything was sent, a new one is tried, once.
func (h *sshHost) send(ctx context.Context, l launch) (*session, error) {
	for {
		c, fresh, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		o, err := c.session(ctx)
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
			h.trace(h.Name(), l.shown)
		}
		s := newSession(c, o, l)
		if err := s.exec(ctx); err != nil {
			return nil, err
		}
		return s, nil
	}
}

// start starts c with its input and output held by the caller.
func (h *sshHost) start(ctx context.Context, c Command) (*process, error) {
	l, err := h.launch(ctx, c)
	if err != nil {
		return nil, err
	}
	s, err := h.send(ctx, l)
	if err != nil {
		return nil, h.failed(c, err)
	}
	p := newProcess(sessionInput{s}, func() {
		s.signal("TERM")
		s.signal("KILL")
		s.channel.Close()
	})
	go func() {
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(&s.stderr, s.channel.Stderr())
		}()
		p.scan(s.channel)
		<-read
		<-s.closed
		s.channel.Close()
		if code, known := s.status(); known {
			p.end(code, s.stderr.Bytes(), nil)
			return
		}
		p.end(0, s.stderr.Bytes(), s.conn.lost())
	}()
	return p, nil
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

// Lookup implements Host.
func (h *sshHost) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return lookup(ctx, h, name)
}
