// Package sockets lists and counts the TCP, UDP and Unix sockets of this machine, as the kernel has them
// (sock_diag(7)). It sees the network namespace it runs in.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"
)

// A Socket is one end of a connection that is on this machine.
type Socket struct {
	Near, Far netip.AddrPort // an IPv4 address in an IPv6 socket is given as IPv4
	State     State
	Inode     uint32 // 0: no process has the socket
	UDP       bool
	// Sent and Received are how long ago something was last sent and received. Negative: not known, or
	// not asked for.
	Sent, Received time.Duration
}

// open are the states in which a process still has its end of a TCP connection: all but those of a
// listening socket, SYN-RECV (of which only the client's end is a connection yet) and TIME-WAIT.
const open = 1<<Established | 1<<SynSent | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

// To lists the TCP and UDP connections from this machine to any of the endpoints, if a process owns the
// local socket. The state does not matter: one in SYN-SENT waits for the server to take it, and on one
// in FIN-WAIT-2 or CLOSE-WAIT one side still sends. nginx connects its UDP sockets to a server, one for
// each session (ngx_event_connect_peer). With detail, Sent and Received are filled in.
func To(to []netip.AddrPort, detail bool, each func(Socket)) error {
	if len(to) == 0 {
		return nil
	}
	wanted := map[netip.AddrPort]bool{}
	for _, end := range to {
		wanted[end] = true
	}
	to = slices.Collect(maps.Keys(wanted))
	add := func(isUDP bool) func(Socket) {
		return func(s Socket) {
			if s.UDP = isUDP; s.Inode != 0 && wanted[s.Far] {
				each(s)
			}
		}
	}
	if err := list([]request{tcp(open, detail, to)}, add(false)); err != nil {
		return err
	}
	err := list([]request{udp(familyInet, open, to), udp(familyInet6, open, to)}, add(true))
	if errors.Is(err, os.ErrNotExist) { // sock_diag(7)
		err = fmt.Errorf("%w: the kernel lists no UDP sockets\nhint: modprobe udp_diag", err)
	}
	return err
}

// TCP lists all TCP sockets in one state.
func TCP(state State, each func(Socket)) error {
	return list([]request{tcp(1<<state, false, nil)}, each)
}

// list asks the kernel for TCP and UDP sockets.
func list(requests []request, each func(Socket)) error {
	return dump(requests, func(data []byte) error {
		s, err := parseInet(data)
		if err == nil {
			each(s)
		}
		return err
	})
}

func milliseconds(data []byte) time.Duration {
	return time.Duration(binary.NativeEndian.Uint32(data)) * time.Millisecond
}
