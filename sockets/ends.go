package sockets

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// destroyed are the groups in which the kernel tells of TCP and UDP sockets, IPv4 and IPv6, that it
// has destroyed (SKNLGRP_*_DESTROY in linux/sock_diag.h; since Linux 4.2).
var destroyed = []uint32{1, 2, 3, 4}

// Ends tells when connections from this machine to some endpoints have ended.
type Ends struct {
	conn *netlink.Conn
	to   map[netip.AddrPort]bool
}

// WatchEnds watches connections to the endpoints from now on. The caller closes it.
func WatchEnds(to []netip.AddrPort) (*Ends, error) {
	c, err := netlink.Dial(familySockDiag, nil)
	if err != nil {
		return nil, fmt.Errorf("watch sockets: %w", err)
	}
	for _, group := range destroyed {
		if err := c.JoinGroup(group); err != nil {
			c.Close()
			return nil, fmt.Errorf("watch sockets: %w", err)
		}
	}
	e := &Ends{conn: c, to: map[netip.AddrPort]bool{}}
	for _, end := range to {
		e.to[end] = true
	}
	return e, nil
}

// Close ends the watch.
func (e *Ends) Close() error { return e.conn.Close() }

// Wait returns when a connection has ended, when some may have that nobody could be told of, or when ctx
// ends. It returns no error for the end of ctx.
func (e *Ends) Wait(ctx context.Context) error {
	if err := e.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		messages, err := e.conn.Receive()
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ENOBUFS): // netlink(7): some were lost
			return nil
		case err != nil:
			return fmt.Errorf("watch sockets: %w", err)
		}
		for _, m := range messages {
			if s, err := parseInet(m.Data); err == nil && e.to[s.Far] {
				return nil
			}
		}
	}
}
