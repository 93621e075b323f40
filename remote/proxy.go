package remote

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drainctl/drainctl/command"
)

// proxyConn is a connection through a ProxyCommand (ssh_config(5)): what the command reads and writes.
type proxyConn struct {
	*command.Process
	output  *bufio.Reader // of the command
	closing sync.Once
	closed  atomic.Bool
}

// dialProxy starts a ProxyCommand as ssh does, and waits for the first byte that the host sends. Before
// that, the command may do what the login needs: sss_ssh_knownhostsproxy writes the key of the host to
// a file.
func dialProxy(ctx context.Context, line string, grace time.Duration) (net.Conn, error) {
	p, err := command.Start(command.Command{
		Args:   []string{cmp.Or(os.Getenv("SHELL"), "/bin/sh"), "-c", "exec " + line},
		Stderr: &command.Output{Max: maxStderr, Last: true}, Grace: grace,
	})
	if err != nil {
		return nil, fmt.Errorf("ProxyCommand: %w", err)
	}
	c := &proxyConn{Process: p, output: bufio.NewReader(p)}
	first := make(chan error, 1)
	go func() {
		_, err := c.output.Peek(1)
		first <- err
	}()
	select {
	case err = <-first:
		if err != nil {
			err = c.failure()
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
		if said := lastLines([]byte(p.Stderr()), outputLines); said != "" {
			err = fmt.Errorf("%w: %s", err, indentRest(said))
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// failure is the error for an output that has ended.
func (c *proxyConn) failure() error {
	if !endsWithin(c, time.Second) {
		return errors.New("the ProxyCommand has closed its output")
	}
	code, err := c.Wait()
	if err != nil {
		return err
	}
	return &ExitError{Args: []string{"ProxyCommand"}, Code: code, Output: lastLines([]byte(c.Stderr()), outputLines)}
}

// Read implements net.Conn.
func (c *proxyConn) Read(b []byte) (int, error) {
	n, err := c.output.Read(b)
	if err != nil && !c.closed.Load() {
		err = c.failure()
	}
	return n, err
}

// Close implements net.Conn. It ends the command, and what that has started.
func (c *proxyConn) Close() error {
	c.closing.Do(func() {
		c.closed.Store(true)
		c.Process.Close()
		c.Terminate()
	})
	return nil
}

// LocalAddr implements net.Conn.
func (c *proxyConn) LocalAddr() net.Addr { return c.RemoteAddr() }

// RemoteAddr implements net.Conn. Only the command knows the address.
func (*proxyConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }

// SetDeadline implements net.Conn, and does nothing: SSH sets none.
func (*proxyConn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements net.Conn, and does nothing.
func (*proxyConn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn, and does nothing.
func (*proxyConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// askKnownHosts runs the KnownHostsCommand of e (ssh_config(5)) and returns the known_hosts lines that it
// prints. ssh runs it once more, to order its algorithms; one answer is enough for both.
func (e endpoint) askKnownHosts(ctx context.Context) ([]byte, error) {
	if len(e.knownHostsCommand) == 0 {
		return nil, nil
	}
	here := &local{limits: defaultLimits()}
	r, err := here.Run(ctx, Command{Args: e.knownHostsCommand, Limit: e.timeout})
	if err == nil {
		err = r.Err(knownHostsCommand)
	}
	return r.Stdout, err
}
