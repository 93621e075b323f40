package nginx

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// DefaultPort is what nginx assumes for a server without a port
// (ngx_http_upstream_server).
const DefaultPort = 80

// An Address is where a server listens, as nginx reads it (ngx_parse_url).
type Address struct {
	Host string     // lower case, without brackets; empty for a unix socket
	IP   netip.Addr // set when Host is an IP address
	Port uint16
	Unix string // path of a unix socket, empty otherwise
}

// ParseAddress reads the first argument of a server line. A missing port is
// [DefaultPort]. The error quotes nothing of s, which may be from a file that the reader of
// the error may not read.
func ParseAddress(s string) (Address, error) {
	a, err := splitAddress(s)
	if err != nil {
		return Address{}, err
	}
	if a.Unix == "" && a.Port == 0 {
		a.Port = DefaultPort
	}
	return a, nil
}

// splitAddress reads unix:PATH, [v6], [v6]:port, host, host:port. Port is 0
// where none is given.
func splitAddress(s string) (Address, error) {
	if path, ok := cutPrefixFold(s, "unix:"); ok {
		if path == "" {
			return Address{}, errors.New("no path in the unix socket address")
		}
		return Address{Unix: path}, nil
	}
	host, port := s, ""
	hasPort := false
	// nginx takes the first colon, not the last.
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 0 {
			return Address{}, errors.New("no closing bracket")
		}
		host, port = s[1:i], s[i+1:]
		if port != "" {
			if port[0] != ':' {
				return Address{}, errors.New("unexpected characters after the bracket")
			}
			port, hasPort = port[1:], true
		}
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return Address{}, errors.New("the text in brackets is not an IPv6 address")
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port, hasPort = s[:i], s[i+1:], true
	}
	if host == "" {
		return Address{}, errors.New("no host")
	}
	a := Address{}
	if a.Host, a.IP = parseHost(host); !hasPort {
		return a, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Address{}, errors.New("the text after the colon is not a port from 1 to 65535")
	}
	a.Port = uint16(n)
	return a, nil
}

// parseHost is a host as it is compared: an address as it is usually written, a
// name in lower case.
func parseHost(s string) (string, netip.Addr) {
	// Most are IPv4 addresses, and need no memory of their own.
	if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() {
		return s, ip
	}
	if ip, ok := parseIP(s); ok {
		return ip.String(), ip
	}
	return strings.ToLower(s), netip.Addr{}
}

// parseIP reads an IP address as nginx does (ngx_inet_addr, ngx_inet6_addr):
// the numbers of an IPv4 address may have leading zeros, which change nothing.
func parseIP(s string) (netip.Addr, bool) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		return ip.Unmap(), true
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	var octets [4]byte
	for i, part := range parts {
		n, err := strconv.ParseUint("0"+part, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		octets[i] = byte(n)
	}
	return netip.AddrFrom4(octets), true
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// String is the address with its port, brackets around IPv6.
func (a Address) String() string {
	switch {
	case a.Unix != "":
		return "unix:" + a.Unix
	case a.Port == 0:
		return a.bracketed()
	}
	return a.bracketed() + ":" + strconv.Itoa(int(a.Port))
}

func (a Address) bracketed() string {
	if a.IP.Is6() {
		return "[" + a.Host + "]"
	}
	return a.Host
}

// A Target is what the operator names: one address, or every port of a host.
type Target struct {
	Address // Port 0: every port
}

// ParseTarget reads IP, IP:port, host, host:port, [v6]:port, a bare IPv6
// address, or unix:/path. It refuses a host that begins with "-", which RFC 952 and
// RFC 1123 do not allow and a program would read as a flag, and characters that are not
// printable.
func ParseTarget(s string) (Target, error) {
	if ip, ok := parseIP(s); ok {
		return Target{Address{Host: ip.String(), IP: ip}}, nil
	}
	a, err := splitAddress(s)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	if a.Unix != "" && !strings.HasPrefix(a.Unix, "/") {
		return Target{}, fmt.Errorf("target %q: a unix socket is named by its absolute path, as in unix:/run/app.sock", s)
	}
	if strings.HasPrefix(a.Host, "-") {
		return Target{}, fmt.Errorf("target %q: a host name does not begin with -", s)
	}
	for _, r := range a.Host {
		if notInHostName(r) {
			return Target{}, fmt.Errorf("target %q: %q does not belong in a host name", s, r)
		}
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(a.Unix, notPrintable) {
		return Target{}, fmt.Errorf("target %q: a character in it is not printable", s)
	}
	return Target{a}, nil
}

// notInHostName is true for what no address in a configuration can hold. An
// underscore is no part of a DNS name, but Docker's names have it.
func notInHostName(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9',
		r == '.', r == '-', r == '_', r == ':':
		return false
	}
	return r < 0x80 || unicode.IsSpace(r) || notPrintable(r)
}

// notPrintable is true for control characters, text directions and invisible characters.
func notPrintable(r rune) bool { return !unicode.IsPrint(r) }

// Matches tells whether the target names a.
func (t Target) Matches(a Address) bool {
	if t.Unix != "" || a.Unix != "" {
		return t.Unix == a.Unix
	}
	if t.Port != 0 && t.Port != a.Port {
		return false
	}
	return t.SameHost(a)
}

// SameHost tells whether the target names the host of a, on whichever port.
func (t Target) SameHost(a Address) bool {
	if t.Unix != "" || a.Unix != "" {
		return false
	}
	if t.IP.IsValid() || a.IP.IsValid() {
		return t.IP == a.IP
	}
	return strings.TrimSuffix(t.Host, ".") == strings.TrimSuffix(a.Host, ".")
}
