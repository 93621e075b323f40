package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
)

// Numbers of sock_diag(7), linux/inet_diag.h and linux/unix_diag.h. They are written down here, so that
// the package compiles on systems where drainctl runs as a client only.
const (
	familySockDiag = 4 // NETLINK_SOCK_DIAG

	requestTCP      netlink.HeaderType = 18 // TCPDIAG_GETSOCK
	requestByFamily netlink.HeaderType = 20 // SOCK_DIAG_BY_FAMILY

	familyUnix  = 1
	familyInet  = 2
	familyInet6 = 10
	protocolUDP = 17

	attributeBytecode = 1 // INET_DIAG_REQ_BYTECODE
	attributeInfo     = 2 // INET_DIAG_INFO
	conditionFar      = 8 // INET_DIAG_BC_D_COND
	jump              = 1 // INET_DIAG_BC_JMP
)

// State is a state of a TCP socket, as the kernel numbers them (tcp_states.h). A connected UDP socket is
// Established.
type State uint8

// The states that this package tells apart.
const (
	Established State = 1
	SynSent     State = 2
	Listening   State = 10
)

// states is a set of states, a bit for each.
type states uint32

// maxTerms is how many endpoints the kernel is given to filter by. Beyond that it lists everything, and
// the sockets are picked out here.
const maxTerms = 256

// maxTime bounds one dump. The kernel answers as fast as it is read.
const maxTime = 30 * time.Second

// A request is one dump of the sockets of a protocol.
type request struct {
	kind netlink.HeaderType
	data []byte
}

// dump sends requests, and hands over the payload of each answer.
func dump(requests []request, each func([]byte) error) error {
	c, err := netlink.Dial(familySockDiag, nil)
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer c.Close()
	for _, r := range requests {
		if err := r.ask(c, each); err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
	}
	return nil
}

func (r request) ask(c *netlink.Conn, each func([]byte) error) error {
	if err := c.SetDeadline(time.Now().Add(maxTime)); err != nil {
		return err
	}
	if _, err := c.Send(netlink.Message{Header: netlink.Header{Type: r.kind, Flags: netlink.Request | netlink.Dump}, Data: r.data}); err != nil {
		return err
	}
	for m, err := range c.ReceiveIter() {
		if err == nil {
			err = each(m.Data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tcp is a struct inet_diag_req for IPv4 and IPv6: the kernel walks its table of connections once, which
// takes most of the time.
func tcp(in states, detail bool, to []netip.AddrPort) request {
	data := make([]byte, 60)
	if detail {
		data[3] = 1 << (attributeInfo - 1)
	}
	binary.NativeEndian.PutUint32(data[52:], uint32(in))
	return request{requestTCP, filtered(data, to)}
}

// udp is a struct inet_diag_req_v2 for the UDP sockets of a family.
func udp(family uint8, in states, to []netip.AddrPort) request {
	data := make([]byte, 56)
	data[0], data[1] = family, protocolUDP
	binary.NativeEndian.PutUint32(data[4:], uint32(in))
	return request{requestByFamily, filtered(data, to)}
}

// filtered adds a filter for the far end to a request.
func filtered(data []byte, to []netip.AddrPort) []byte {
	if len(to) == 0 || len(to) > maxTerms {
		return data
	}
	code := bytecode(to)
	data = binary.NativeEndian.AppendUint16(data, uint16(4+len(code)))
	data = binary.NativeEndian.AppendUint16(data, attributeBytecode)
	return append(data, code...)
}

// bytecode is a program for the kernel (inet_diag_bc_run) that accepts the sockets whose far end is one
// of to. A term for an IPv4 address accepts an IPv6 socket with that address mapped, too. After a term
// that accepts, a jump leads to the end of the program; a jump beyond the end rejects.
func bytecode(to []netip.AddrPort) (code []byte) {
	const operation, condition = 4, 8 // sizes of inet_diag_bc_op and inet_diag_hostcond
	op := func(kind uint8, yes, no int) {
		code = append(code, kind, uint8(yes))
		code = binary.NativeEndian.AppendUint16(code, uint16(no))
	}
	length := func(end netip.AddrPort) int { return operation + condition + end.Addr().BitLen()/8 }
	left := -operation // the last term needs no jump
	for _, end := range to {
		left += length(end) + operation
	}
	for i, end := range to {
		family := uint8(familyInet)
		if end.Addr().Is6() {
			family = familyInet6
		}
		op(conditionFar, length(end), length(end)+operation)
		code = append(code, family, uint8(end.Addr().BitLen()), 0, 0)
		code = binary.NativeEndian.AppendUint32(code, uint32(end.Port()))
		code = append(code, end.Addr().AsSlice()...)
		left -= length(end)
		if i < len(to)-1 {
			op(jump, operation, left)
			left -= operation
		}
	}
	return code
}

// errShort is an answer of the kernel that is shorter than its type.
var errShort = errors.New("a message of the kernel is too short")

// parseInet reads a struct inet_diag_msg and its attributes.
func parseInet(data []byte) (s Socket, err error) {
	if len(data) < 72 {
		return s, errShort
	}
	s = Socket{
		State: State(data[1]),
		Near:  endpoint(data[0], data[4:6], data[8:24]), Far: endpoint(data[0], data[6:8], data[24:40]),
		Inode: binary.NativeEndian.Uint32(data[68:]),
		Sent:  -1, Received: -1,
	}
	err = attributes(data[72:], func(kind uint16, value []byte) error {
		if kind == attributeInfo && len(value) >= 56 { // struct tcp_info
			s.Sent, s.Received = milliseconds(value[44:]), milliseconds(value[52:])
		}
		return nil
	})
	return s, err
}

func endpoint(family uint8, port, address []byte) netip.AddrPort {
	a := netip.AddrFrom16([16]byte(address)).Unmap()
	if family == familyInet {
		a = netip.AddrFrom4([4]byte(address[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}

// attributes hands over the attributes of a message (rtnetlink(7)).
func attributes(data []byte, each func(kind uint16, value []byte) error) error {
	for len(data) > 0 {
		if len(data) < 4 {
			return errShort
		}
		n, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if n < 4 || n > len(data) {
			return errShort
		}
		if err := each(kind, data[4:n]); err != nil {
			return err
		}
		data = data[min((n+3)&^3, len(data)):]
	}
	return nil
}
