package sockets

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// destroyed are the groups in which the kernel tells of TCP and UDP sockets, IPv4 and IPv6, that it
// has destroyed (SKNLGRP_*_DESTROY in linux/sock_diag.h; since Linux 4.2).
var destroyed = []uint32{1, 2, 3, 4}

// endsBuffer is what the kernel keeps of such messages, in bytes, until they are read: each takes about
// 1 KB there (netlink(7), SO_RCVBUFFORCE).
const endsBuffer = 4 << 20

// Ends tells when connections of this machine have ended.
type Ends struct{ conn *netlink.Conn }

// WatchEnds watches connections from now on. The caller closes it.
func WatchEnds() (*Ends, error) {
	c, err := netlink.Dial(familySockDiag, nil)
	if err != nil {
		return nil, fmt.Errorf("watch sockets: %w", err)
	}
	_ = c.SetReadBuffer(endsBuffer) // a smaller one loses more of them
	for _, group := range destroyed {
		if err := c.JoinGroup(group); err != nil {
			c.Close()
			return nil, fmt.Errorf("watch sockets: %w", err)
		}
	}
	return &Ends{c}, nil
}

// Close ends the watch.
func (e *Ends) Close() error { return e.conn.Close() }

// Next returns connections that have ended. None: some have, and the kernel could not tell which.
func (e *Ends) Next() (ended []Socket, err error) {
	messages, err := e.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) { // netlink(7)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch sockets: %w", err)
	}
	for _, m := range messages {
		if s, err := parseInet(m.Data); err == nil {
			ended = append(ended, s)
		}
	}
	return ended, nil
}
