package remote

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// getentNotFound is the exit status with which getent says "no such name".
const getentNotFound = 2

// lookup asks getent on m for the addresses of name. It goes by the host's
// nsswitch.conf, as nginx does there, which Go's own resolver need not.
func lookup(ctx context.Context, m machine, name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, " \t\r\n\x00/") {
		return nil, &net.DNSError{Err: "not a host name", Name: name}
	}
	r, err := m.Run(ctx, Command{Args: []string{"getent", "ahosts", name}})
	if err != nil {
		return nil, err
	}
	if r.Code == getentNotFound {
		return nil, &net.DNSError{Err: "no such host for " + m.Name(), Name: name, IsNotFound: true}
	}
	if err := r.Err("getent", "ahosts", name); err != nil {
		return nil, fmt.Errorf("look up %s on %s: %w", name, m.Name(), err)
	}
	addrs := parseAhosts(r.Stdout)
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no address for " + m.Name(), Name: name, IsNotFound: true}
	}
	return addrs, nil
}

// parseAhosts reads the output of getent ahosts: "ADDRESS TYPE [NAME]", a line
// for each socket type.
func parseAhosts(out []byte) []netip.Addr {
	var addrs []netip.Addr
	for line := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if addr, err := netip.ParseAddr(word); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
