package remote

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Addresses returns the addresses that a host's interfaces have, without zones, by ip(8).
func Addresses(ctx context.Context, h Host) ([]netip.Addr, error) {
	args := []string{"env", "PATH=" + searchPath, "ip", "-o", "address", "show"}
	r, err := h.Run(ctx, Command{Args: args})
	if err == nil {
		err = r.Err(args...)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for its addresses: %w", h.Name(), err)
	}
	return parseAddresses(string(r.Stdout)), nil
}

// parseAddresses reads lines such as "2: eth0    inet 192.168.1.10/24 brd ...". A peer of a
// point-to-point link follows its own address.
func parseAddresses(text string) (all []netip.Addr) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 4 || words[2] != "inet" && words[2] != "inet6" {
			continue
		}
		address, _, _ := strings.Cut(words[3], "/")
		if a, err := netip.ParseAddr(address); err == nil {
			all = append(all, a)
		}
	}
	return all
}
