package sockets

import (
	"errors"
	"fmt"
	"math"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
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

// maxFiltered is how many ports the kernel is given to filter by: a jump of its filter has 8 bits.
const maxFiltered = 200

// portAt is where the port of the far end is in a message: after a struct nlmsghdr, in struct
// inet_diag_sockid.
const portAt = 16 + 6

// Only has the kernel leave out what was not connected to one of some ports. If there are too many,
// it leaves out nothing.
func (e *Ends) Only(ports []uint16) error {
	if len(ports) > maxFiltered {
		ports = nil
	}
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: portAt, Size: 2}}
	for i, port := range ports {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipTrue: uint8(len(ports) - i)})
	}
	if len(ports) > 0 {
		program = append(program, bpf.RetConstant{Val: 0})
	}
	code, err := bpf.Assemble(append(program, bpf.RetConstant{Val: math.MaxUint32}))
	if err != nil {
		return err
	}
	return e.conn.SetBPF(code)
}

// Close ends the watch.
func (e *Ends) Close() error { return e.conn.Close() }

// Next returns connections that have ended. An empty result means that messages were lost: any connection
// may have ended.
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
