package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// defaultDialTimeout is how long a connection may take until the login.
	defaultDialTimeout = 10 * time.Second
	// beatInterval and beatMisses: a connection on which nothing arrived for
	// one interval is asked for a sign of life; without one for so many
	// more, it is dead. So a cut network is noticed within 12 s.
	beatInterval = 3 * time.Second
	beatMisses   = 3
	// maxJumps bounds the hosts on the way to one, and finds circles.
	maxJumps = 8
	// refusals is how often a session is asked for again where sshd has no
	// room for it (MaxSessions), and refusalPause how long in between.
	refusals     = 50
	refusalPause = 100 * time.Millisecond
)

// connection is one SSH connection to a host.
type connection struct {
	name   string
	client *ssh.Client
	wire   *wire
	hops   []*ssh.Client // those it runs through
	dead   chan struct{} // closed when it is of no more use
	once   sync.Once
	cause  error // why, once dead is closed
}

// wire counts what arrives on a connection, and notes its end.
type wire struct {
	net.Conn
	reads atomic.Int64
	ended atomic.Bool
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.reads.Add(1)
	}
	if err != nil {
		w.ended.Store(true)
	}
	return n, err
}

func (w *wire) Close() error {
	w.ended.Store(true)
	return w.Conn.Close()
}

// dialer makes connections.
type dialer struct {
	config     *sshConfig
	keys       *keyring
	knownHosts string // in the place of the configured files
	timeout    time.Duration
	interval   time.Duration // between signs of life
}

// resolve describes a host and completes it with what was named for this run.
func (d *dialer) resolve(ctx context.Context, alias, user string, port int) (endpoint, error) {
	e, err := d.config.resolve(ctx, alias, user, port)
	if err != nil {
		return endpoint{}, err
	}
	if d.knownHosts != "" {
		e.knownHosts = []string{d.knownHosts}
	}
	if d.timeout > 0 {
		e.timeout = d.timeout
	}
	if e.timeout == 0 {
		e.timeout = defaultDialTimeout
	}
	return e, nil
}

// dial connects to e, through the hosts that its configuration says.
func (d *dialer) dial(ctx context.Context, e endpoint) (*connection, error) {
	hops, err := d.dialJumps(ctx, e.jumps, 0)
	if err != nil {
		closeAll(hops)
		return nil, fmt.Errorf("on the way to %s: %w", e.name(), err)
	}
	client, w, err := d.step(ctx, last(hops), e)
	if err != nil {
		closeAll(hops)
		return nil, err
	}
	c := &connection{name: e.name(), client: client, wire: w, hops: hops, dead: make(chan struct{})}
	go func() {
		c.end(client.Wait())
	}()
	go c.keepalive(d.interval)
	return c, nil
}

// dialJumps connects to each of jumps through the one before it. As with ssh -J,
// the configuration of the first says how that one is reached in turn.
func (d *dialer) dialJumps(ctx context.Context, jumps []string, depth int) ([]*ssh.Client, error) {
	var hops []*ssh.Client
	for i, jump := range jumps {
		if depth+i >= maxJumps {
			return hops, fmt.Errorf("ProxyJump: more than %d hosts, or a circle", maxJumps)
		}
		user, host, port, err := parseJump(jump)
		if err != nil {
			return hops, err
		}
		e, err := d.resolve(ctx, host, user, port)
		if err != nil {
			return hops, err
		}
		if i == 0 {
			if hops, err = d.dialJumps(ctx, e.jumps, depth+1); err != nil {
				return hops, err
			}
		}
		client, _, err := d.step(ctx, last(hops), e)
		if err != nil {
			return hops, err
		}
		hops = append(hops, client)
	}
	return hops, nil
}

// step connects and logs in to e through via, or directly if that is nil.
func (d *dialer) step(ctx context.Context, via *ssh.Client, e endpoint) (*ssh.Client, *wire, error) {
	known, err := loadHostKeys(e.knownHosts, e.revoked)
	if err != nil {
		return nil, nil, fmt.Errorf("ssh to %s: %w", e.name(), err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, e.timeout, fmt.Errorf("no answer within %v", e.timeout))
	defer cancel()
	var conn net.Conn
	if via == nil {
		var nd net.Dialer
		conn, err = nd.DialContext(limited, "tcp", e.addr())
	} else {
		conn, err = via.DialContext(limited, "tcp", e.addr())
	}
	if err != nil {
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
		return nil, nil, fmt.Errorf("ssh to %s: %w: %w", e.name(), ErrConnection, err)
	}
	w := &wire{Conn: conn}
	client, err := d.login(ctx, w, e, known)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return client, w, nil
}

// login does the handshake with e on conn.
func (d *dialer) login(ctx context.Context, conn net.Conn, e endpoint, known *hostKeys) (*ssh.Client, error) {
	keys, err := d.keys.offer(ctx, e)
	if err != nil {
		return nil, err
	}
	defer keys.close()
	late := time.AfterFunc(e.timeout, func() { conn.Close() })
	keys.pause = func() func() {
		late.Stop()
		return func() { late.Reset(e.timeout) }
	}
	inTime := context.AfterFunc(ctx, func() { conn.Close() })
	check := keyCheck{known: known}
	sshConn, chans, reqs, err := ssh.NewClientConn(conn, e.keyAddr(), &ssh.ClientConfig{
		User:          e.user,
		ClientVersion: "SSH-2.0-drainctl",
		Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			return keys.signers, nil
		})},
		HostKeyAlgorithms: known.algorithms(e.keyAddr()),
		HostKeyCallback:   check.check,
	})
	// Either may have closed the connection at the last moment.
	expired, ended := !late.Stop(), !inTime()
	switch {
	case ended:
		return nil, fmt.Errorf("ssh to %s: %w", e.name(), context.Cause(ctx))
	case expired:
		err = fmt.Errorf("%w: no answer within %v", ErrConnection, e.timeout)
	case err == nil:
		return ssh.NewClient(sshConn, chans, reqs), nil
	}
	return nil, loginError(e, keys, check, err)
}

// keyCheck keeps what became of the check of a host key: the library may wrap
// or reword the error.
type keyCheck struct {
	known   *hostKeys
	refused error
	trusted bool
}

func (c *keyCheck) check(addr string, remote net.Addr, key ssh.PublicKey) error {
	c.refused = c.known.check(addr, remote, key)
	c.trusted = c.refused == nil
	return c.refused
}

// loginError is the error for a handshake with e that failed with err.
func loginError(e endpoint, keys *offer, check keyCheck, err error) error {
	switch {
	case check.refused != nil:
		err = check.refused
	case keys.needed != nil, check.trusted && isLoginRefusal(err):
		if keys.needed != nil {
			keys.notes = append(keys.notes, keys.needed.Error())
		}
		return &AuthError{Host: e.name(), Tried: keys.tried, Notes: keys.notes, Cause: keys.needed}
	case errors.Is(err, ErrConnection):
	case strings.Contains(err.Error(), "no common algorithm"):
		// They do not understand each other; trying again will not help.
	default:
		err = fmt.Errorf("%w: %w", ErrConnection, err)
	}
	return fmt.Errorf("ssh to %s: %w", e.name(), err)
}

// isLoginRefusal says whether err is the refusal of all keys. The library has
// no type for it.
func isLoginRefusal(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unable to authenticate") || strings.Contains(text, "Too many authentication failures")
}

func last(clients []*ssh.Client) *ssh.Client {
	if len(clients) == 0 {
		return nil
	}
	return clients[len(clients)-1]
}

// closeAll closes clients, the last first.
func closeAll(clients []*ssh.Client) {
	for i := len(clients) - 1; i >= 0; i-- {
		clients[i].Close()
	}
}

// keepalive asks for a sign of life where there is none, and ends the
// connection if none comes. It counts its own ticks, not time: a process that
// was held up itself must not take that for silence of the host.
func (c *connection) keepalive(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var seen int64
	var asked atomic.Bool
	missed := 0
	for {
		select {
		case <-c.dead:
			return
		case <-tick.C:
		}
		if now := c.wire.reads.Load(); now != seen {
			seen, missed = now, 0
			continue
		}
		if missed++; missed > beatMisses {
			c.end(fmt.Errorf("no sign of life for %v", time.Duration(missed)*interval))
			return
		}
		if asked.CompareAndSwap(false, true) {
			go func() {
				_, _, _ = c.client.SendRequest("keepalive@openssh.com", true, nil)
				asked.Store(false)
			}()
		}
	}
}

// end marks the connection as dead, for the reason err, and closes it.
func (c *connection) end(err error) {
	c.once.Do(func() {
		c.cause = err
		close(c.dead)
		c.wire.Close() // first: a goodbye may block on a network that is cut
		c.client.Close()
		closeAll(c.hops)
	})
}

// isDead says whether the connection has ended.
func (c *connection) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// lost is the error of what was under way on the connection when it ended.
func (c *connection) lost() error {
	select {
	case <-c.dead:
		if c.cause != nil && c.cause.Error() != "EOF" {
			return fmt.Errorf("%s: %w: %w", c.name, ErrConnection, c.cause)
		}
	default:
	}
	return fmt.Errorf("%s: %w", c.name, ErrConnection)
}

// errDead says that a connection ended before something was answered on it.
var errDead = errors.New("the connection is dead")

// query runs f, which asks the host something over c, for as long as that can be
// answered. What f brings after that is given to drop. The library may let f
// wait for ever on a connection that has just ended.
func query[T any](ctx context.Context, c *connection, f func() (T, error), drop func(T)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		a.value, a.err = f()
		got <- a
	}()
	var none T
	var err error
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.dead:
		err = errDead
	}
	go func() {
		if a := <-got; a.err == nil {
			drop(a.value)
		}
	}()
	return none, err
}

// opened is a channel for a session.
type opened struct {
	channel  ssh.Channel
	requests <-chan *ssh.Request
}

func (o opened) close() {
	go ssh.DiscardRequests(o.requests)
	o.channel.Close()
}

// session opens a channel for a session. The error is errDead where another
// connection may do: nothing was sent on this one.
func (c *connection) session(ctx context.Context) (opened, error) {
	for try := 1; ; try++ {
		o, err := query(ctx, c, func() (o opened, err error) {
			o.channel, o.requests, err = c.client.OpenChannel("session", nil)
			return o, err
		}, opened.close)
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return o, nil
		case ctx.Err() != nil:
			return opened{}, context.Cause(ctx)
		case !errors.As(err, &refused):
			c.end(err)
			return opened{}, errDead
		case try == refusals:
			return opened{}, fmt.Errorf("%s refuses another session (%s); see MaxSessions in its sshd_config", c.name, refused.Message)
		}
		select {
		case <-time.After(refusalPause):
		case <-c.dead:
			return opened{}, errDead
		case <-ctx.Done():
			return opened{}, context.Cause(ctx)
		}
	}
}

// dial connects from the host to addr. The error is errDead where another
// connection may do.
func (c *connection) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := query(ctx, c, func() (net.Conn, error) {
		return c.client.DialContext(ctx, network, addr)
	}, func(conn net.Conn) { conn.Close() })
	var refused *ssh.OpenChannelError
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !errors.As(err, &refused):
		c.end(err) // in whatever words: this cannot fail otherwise
		return nil, errDead
	case refused.Reason == ssh.Prohibited:
		return nil, fmt.Errorf("%s (see AllowTcpForwarding and PermitOpen in its sshd_config)", refused.Message)
	}
	return nil, errors.New(refused.Message)
}
