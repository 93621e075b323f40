package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
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
	name   string
	client *ssh.Client
	conn   *countingConn
	hops   []*ssh.Client // those it runs through
	answer time.Duration // for the host to answer a request
	dead   chan struct{} // closed when it is of no more use
	once   sync.Once
	cause  error // why, once dead is closed
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
		case <-c.dead:
			return
		case <-tick.C:
		}
		if now := c.conn.reads.Load(); now != seen {
			seen, missed = now, 0
			continue
		}
		if missed++; missed > keepaliveMisses {
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
		c.cause = clippedError{err}
		close(c.dead)
		c.conn.Close() // first: a goodbye may block on a network that is cut
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
	if c.isDead() && c.cause != nil && c.cause.Error() != "EOF" {
		return fmt.Errorf("%s: %w: %w", c.name, ErrConnection, c.cause)
	}
	return fmt.Errorf("%s: %w", c.name, ErrConnection)
}

// errDead says that a connection ended before something was answered on it.
var errDead = errors.New("the connection is dead")

// query runs f, which asks the host something over c, for as long as that can be
// answered. What f brings after that is given to drop. The library may let f
// wait for ever on a connection that has just ended. A host that does not answer in
// time loses the connection.
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
	case <-time.After(c.answer):
		c.end(fmt.Errorf("no answer within %v", c.answer))
		err = errDead
	}
	go func() {
		if a := <-got; a.err == nil {
			drop(a.value)
		}
	}()
	return none, err
}

// open opens a channel for a session. sshd may not have taken in the end of the
// last one yet: it is asked again for as long as limit. The error is errDead
// where another connection may do: nothing was sent on this one.
func (c *connection) open(ctx context.Context, limit time.Duration) (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		channel  ssh.Channel
		requests <-chan *ssh.Request
	}
	begin := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		o, err := query(ctx, c, func() (o opened, err error) {
			o.channel, o.requests, err = c.client.OpenChannel("session", nil)
			return o, err
		}, func(o opened) {
			go ssh.DiscardRequests(o.requests)
			o.channel.Close()
		})
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return o.channel, o.requests, nil
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case !errors.As(err, &refused):
			c.end(err)
			return nil, nil, errDead
		case time.Since(begin) > limit:
			return nil, nil, fmt.Errorf("%s refuses another session (%s); see MaxSessions in its sshd_config", c.name, clip(refused.Message))
		}
		select {
		case <-time.After(pause):
		case <-c.dead:
			return nil, nil, errDead
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
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
		return nil, fmt.Errorf("%s (see AllowTcpForwarding and PermitOpen in its sshd_config)", clip(refused.Message))
	}
	return nil, errors.New(clip(refused.Message))
}
