package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// dial connects to each host of the route through the one before it.
func (h *sshHost) dial(ctx context.Context) (*connection, error) {
	var hops []*ssh.Client
	for _, e := range h.route[:len(h.route)-1] {
		client, _, err := h.step(ctx, hops, e)
		if err != nil {
			closeAll(hops)
			return nil, fmt.Errorf("on the way to %s: %w", h.Name(), err)
		}
		hops = append(hops, client)
	}
	client, network, err := h.step(ctx, hops, h.endpoint())
	if err != nil {
		closeAll(hops)
		return nil, err
	}
	return newConnection(h.Name(), client, network, hops, h.limits), nil
}

// step connects and logs in to e through the last of hops, or directly if there
// are none.
func (h *sshHost) step(ctx context.Context, hops []*ssh.Client, e endpoint) (*ssh.Client, *countingConn, error) {
	limited, cancel := context.WithTimeoutCause(ctx, e.timeout, fmt.Errorf("no answer within %v", e.timeout))
	defer cancel()
	conn, err := h.reach(limited, hops, e)
	if err != nil {
		return nil, nil, fmt.Errorf("ssh to %s: %w: %w", e.name(), ErrConnection, err)
	}
	counting := &countingConn{Conn: conn}
	client, err := h.login(ctx, counting, e)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return client, counting, nil
}

// reach connects to e through the last of hops, the ProxyCommand, or directly.
func (h *sshHost) reach(ctx context.Context, hops []*ssh.Client, e endpoint) (net.Conn, error) {
	dial := new(net.Dialer).DialContext
	switch {
	case len(hops) > 0: // ssh -J overrides a ProxyCommand
		dial = hops[len(hops)-1].DialContext
	case e.proxyCommand != "":
		return dialProxy(ctx, e.proxyCommand, h.limits.grace)
	}
	conn, err := dial(ctx, "tcp", e.addr())
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return conn, err
}

// login does the handshake with e on conn. It returns at once when ctx ends,
// whatever a person is being asked at that time.
func (h *sshHost) login(ctx context.Context, conn net.Conn, e endpoint) (*ssh.Client, error) {
	known, err := loadHostKeys(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("ssh to %s: %w", e.name(), err)
	}
	a, err := h.keys.attempt(ctx, e)
	if err != nil {
		return nil, err
	}
	late := time.AfterFunc(e.timeout, func() { conn.Close() })
	left, running := e.timeout, time.Now()
	a.pause = func() func() {
		late.Stop()
		left -= time.Since(running)
		// The host gets no more time by asking for one key after the other.
		return func() { running = time.Now(); late.Reset(max(left, 0)) }
	}
	done := make(chan error, 1)
	var client *ssh.Client
	go func() {
		defer a.close()
		sshConn, chans, reqs, err := ssh.NewClientConn(conn, e.keyAddr(), &ssh.ClientConfig{
			User:              e.user,
			ClientVersion:     "SSH-2.0-drainctl",
			Auth:              []ssh.AuthMethod{ssh.PublicKeys(a.signers...)},
			AuthCallback:      a.note,
			HostKeyAlgorithms: known.algorithms(e.keyAddr()),
			HostKeyCallback: func(addr string, remote net.Addr, key ssh.PublicKey) error {
				a.refused = known.check(addr, remote, key)
				a.trusted = a.refused == nil
				return a.refused
			},
		})
		if err == nil {
			client = ssh.NewClient(sshConn, chans, reqs)
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		late.Stop()
		return nil, fmt.Errorf("ssh to %s: %w", e.name(), context.Cause(ctx)) // the caller closes conn
	}
	switch {
	case !late.Stop(): // it may have closed the connection at the last moment
		err = fmt.Errorf("%w: no answer within %v", ErrConnection, e.timeout)
	case err == nil:
		return client, nil
	}
	return nil, a.failed(e, err)
}

// note notes which methods the host has accepted and still accepts. It leaves the choice to the library.
func (a *authAttempt) note(state *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	a.state = *state
	return nil, nil
}

// failed is the error for a handshake with e that failed with err.
func (a *authAttempt) failed(e endpoint, err error) error {
	// The library has no type for the refusal of all keys.
	denied := strings.Contains(err.Error(), "unable to authenticate") || strings.Contains(err.Error(), "Too many authentication failures")
	switch {
	case a.refused != nil:
		err = a.refused
	case a.needed != nil, a.trusted && denied:
		if a.needed != nil {
			a.notes = append(a.notes, a.needed.Error())
		}
		return &AuthError{
			Host: e.name(), Tried: a.tried, Notes: a.notes, Cause: a.needed,
			Accepted: slices.Contains(a.state.PartialSuccessMethods, publicKey), Wants: a.state.AllowedMethods,
		}
	case errors.Is(err, ErrConnection):
	case strings.Contains(err.Error(), "no common algorithm"):
		err = clippedError{err} // they do not understand each other; trying again will not help
	default:
		err = fmt.Errorf("%w: %w", ErrConnection, clippedError{err})
	}
	return fmt.Errorf("ssh to %s: %w", e.name(), err)
}
