package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// keepaliveMisses is after how many intervals without an answer a connection is
// dead. So a cut network is noticed within 12 s.
const keepaliveMisses = 3

// maxPause is the longest pause before sshd is asked for a session again.
const maxPause = 100 * time.Millisecond

// connection is one SSH connection to a host.
type connection struct {
	name    string
	client  *ssh.Client
	network *countingConn
	hops    []*ssh.Client   // those it runs through
	answer  time.Duration   // for the host to answer a request
	ctx     context.Context // ends with the connection; the cause says why
	cancel  context.CancelCauseFunc
}

func newConnection(name string, client *ssh.Client, network *countingConn, hops []*ssh.Client, l limits) *connection {
	c := &connection{name: name, client: client, network: network, hops: hops, answer: l.answer}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	go func() { c.end(client.Wait()) }()
	go c.keepalive(l.keepalive)
	return c
}

// countingConn counts what arrives on a connection, and notes its end.
type countingConn struct {
	net.Conn
	reads atomic.Int64
	ended atomic.Bool
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	if err != nil {
		c.ended.Store(true)
	}
	return n, err
}

func (c *countingConn) Close() error {
	c.ended.Store(true)
	return c.Conn.Close()
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
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		if now := c.network.reads.Load(); now != seen {
			seen, missed = now, 0
			continue
		}
		if missed++; missed > keepaliveMisses {
			c.end(fmt.Errorf("no sign of life for %v", time.Duration(missed)*interval))
			return
		}
		if asked.CompareAndSwap(false, true) {
			go func() {
				_ = c.ping()
				asked.Store(false)
			}()
		}
	}
}

// ping asks the host for an answer. All that the host has sent before arrives first.
func (c *connection) ping() error {
	_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
	return err
}

// end closes the connection, for the reason err unless it has ended before.
func (c *connection) end(err error) {
	c.cancel(clippedError{err})
	c.network.Close() // first: a goodbye may block on a network that is cut
	c.client.Close()
	closeAll(c.hops)
}

// closeAll closes clients, the last first.
func closeAll(clients []*ssh.Client) {
	for _, c := range slices.Backward(clients) {
		c.Close()
	}
}

// isDead reports whether the connection has ended.
func (c *connection) isDead() bool { return c.ctx.Err() != nil }

// isBroken reports whether the connection has ended or will do so at once.
func (c *connection) isBroken() bool { return c.network.ended.Load() || c.isDead() }

// lost is the error of what was under way on the connection when it ended.
func (c *connection) lost() error {
	if cause := context.Cause(c.ctx); cause != nil && cause.Error() != "EOF" {
		return fmt.Errorf("%s: %w: %w", c.name, ErrConnection, cause)
	}
	return fmt.Errorf("%s: %w", c.name, ErrConnection)
}

// errDead says that a connection ended before something was answered on it.
var errDead = errors.New("the connection is dead")

// query runs f, which asks the host something over c, for as long as that can be
// answered. What f brings after that is given to drop. The library may let f wait for
// ever on a connection that has just ended. The error is errDead when the connection has
// ended. A host that does not answer in time loses the connection.
func query[T any](ctx context.Context, c *connection, f func() (T, error), drop func(T)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		value, err := f()
		got <- answer{value, err}
	}()
	var none T
	err := errDead
	select {
	case a := <-got:
		if a.err == nil || errors.As(a.err, new(*ssh.OpenChannelError)) {
			return a.value, a.err
		}
		c.end(a.err) // in whatever words: f cannot fail otherwise
		return none, errDead
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.ctx.Done():
	case <-time.After(c.answer):
		c.end(fmt.Errorf("no answer within %v", c.answer))
	}
	go func() {
		if a := <-got; a.err == nil {
			drop(a.value)
		}
	}()
	return none, err
}

// channel is a channel for a command, and what the host requests on it.
type channel struct {
	ssh.Channel
	requests <-chan *ssh.Request
}

// open opens a channel for a command. sshd may not have noticed yet that the last
// command has ended: it is asked again for as long as limit. The error is errDead
// where another connection may do: nothing was sent on this one.
func (c *connection) open(ctx context.Context, limit time.Duration) (channel, error) {
	begin := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		ch, err := query(ctx, c, func() (ch channel, err error) {
			ch.Channel, ch.requests, err = c.client.OpenChannel("session", nil)
			return ch, err
		}, func(ch channel) {
			go ssh.DiscardRequests(ch.requests)
			ch.Close()
		})
		var refused *ssh.OpenChannelError
		switch {
		case !errors.As(err, &refused):
			return ch, err
		case time.Since(begin) > limit:
			return ch, fmt.Errorf("%s refuses another session (%s); see MaxSessions in its sshd_config", c.name, clip(refused.Message))
		}
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return ch, errDead
		case <-ctx.Done():
			return ch, context.Cause(ctx)
		}
	}
}

// dial connects from the host to addr. The error is errDead where another
// connection may do.
func (c *connection) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := query(ctx, c, func() (net.Conn, error) {
		return c.client.Dial(network, addr)
	}, func(conn net.Conn) { conn.Close() })
	var refused *ssh.OpenChannelError
	switch {
	case !errors.As(err, &refused):
		return conn, err
	case refused.Reason == ssh.Prohibited:
		return nil, fmt.Errorf("%s (see AllowTcpForwarding and PermitOpen in its sshd_config)", clip(refused.Message))
	}
	return nil, errors.New(clip(refused.Message))
}
