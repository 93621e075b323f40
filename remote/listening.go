package remote

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

var (
	listenerPID = regexp.MustCompile(`\bpid=([0-9]+)`)
	cgroupUnit  = regexp.MustCompile(`(?m)/([\w:.\\@-]+\.service)(?:/.*)?$`)
)

// maxPorts is how many ports one filter of ss takes.
const maxPorts = 256

// containers are words in the cgroup of a process that listens for a container. Which unit runs the
// container is not known then.
var containers = regexp.MustCompile(`docker|containerd|libpod|podman`)

// UnitListening returns the systemd unit that listens on a TCP port of h; empty where none does. isKnown is
// false where that cannot be told: the login user may not see whose the process is, or it is systemd
// itself, or a container's.
func UnitListening(ctx context.Context, h Host, port uint16) (unit string, isKnown bool, err error) {
	text, err := output(ctx, h, "ss", "-Hltnp", fmt.Sprintf("sport = :%d", port))
	pid := listenerPID.FindStringSubmatch(text)
	if err != nil || pid == nil {
		return "", err == nil && strings.TrimSpace(text) == "", err
	}
	text, err = output(ctx, h, "cat", "/proc/"+pid[1]+"/cgroup")
	return unitOf(text), err == nil && pid[1] != "1" && !containers.MatchString(text), err
}

// ListensUDP fails if no process of h has a UDP port open for any sender.
func ListensUDP(ctx context.Context, h Host, port uint16) error {
	text, err := output(ctx, h, "ss", "-Hlun", fmt.Sprintf("sport = :%d", port))
	if err == nil && strings.TrimSpace(text) == "" {
		err = fmt.Errorf("no process on %s has UDP port %d open", h.Name(), port)
	}
	return err
}

// unitOf is the unit in a process's cgroup (systemd.unit(5), proc(5)).
func unitOf(cgroup string) string {
	if m := cgroupUnit.FindStringSubmatch(cgroup); m != nil {
		return m[1]
	}
	return ""
}

// portFilter is the filter of ss for sockets with one of ports at the near end.
func portFilter(ports []uint16) (string, error) {
	if len(ports) == 0 || len(ports) > maxPorts {
		return "", fmt.Errorf("%d ports, not 1 to %d", len(ports), maxPorts)
	}
	var terms []string
	for _, p := range ports {
		if p == 0 {
			return "", errors.New("0 is not a port")
		}
		terms = append(terms, fmt.Sprintf("sport = :%d", p))
	}
	return "( " + strings.Join(terms, " or ") + " )", nil
}

// ParseEnd reads one end as ss prints it: "1.2.3.4:80", "1.2.3.4%eth0:80",
// "[::ffff:1.2.3.4]:80", "[fe80::1]%eth0:80", "*:80", "*:*". An IPv4 address in
// an IPv6 socket comes out as IPv4, and "*" as the unspecified IPv6 address.
func ParseEnd(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
	}
	host, number := s[:i], s[i+1:]
	var port uint64
	if number != "*" {
		var err error
		if port, err = strconv.ParseUint(number, 10, 16); err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q has no port", s)
		}
	}
	addr := netip.IPv6Unspecified()
	if host != "*" {
		host, zone, _ := strings.Cut(strings.NewReplacer("[", "", "]", "").Replace(host), "%")
		var err error
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, err
		}
		if addr = addr.Unmap(); addr.IsLinkLocalUnicast() && addr.Is6() {
			addr = addr.WithZone(zone)
		}
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}
