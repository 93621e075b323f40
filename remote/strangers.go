package remote

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// strangersScript lists the far ends of all sockets but listeners that ss with
// the given arguments shows, except those at the addresses of its first
// argument, which are taken out where the sockets are: they can be 100,000.
const strangersScript = `command -v ss >/dev/null || exit 90
except=" $1 "; shift
exec 3>&1
said=$({ { ss "$@"; echo "exit $?"; } | awk -v except="$except" '
  $1 == "exit" { code = $2; next }
  {
    peer = $5
    sub(/:[^:]*$/, "", peer)
    gsub(/[][]/, "", peer)
    if (peer ~ /^::ffff:[0-9.]+$/) peer = substr(peer, 8)
    if (index(except, " " peer " ") == 0) print $5
  }
  END { print "end " (code == "" ? "unknown" : code) }' >&3; } 2>&1)
[ -z "$said" ] || { printf '%s\n' "$said" >&2; exit 91; }
`

// Strangers lists the far ends, not at one of the addresses except, of all
// connections to ports of h that there are or were until a minute ago: a
// connection that h's side closed stays in TIME-WAIT for that long (tcp(7)).
func Strangers(ctx context.Context, h Host, ports []uint16, except []netip.Addr) ([]netip.AddrPort, error) {
	filter, err := portFilter(ports)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, a := range except {
		known = append(known, a.Unmap().WithZone("").String())
	}
	out, err := ask(ctx, h, "list connections", strangersScript, strings.Join(known, " "), "-Htan", "state", "connected", filter)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	last := len(lines) - 1
	if lines[last] != "end 0" {
		return nil, fmt.Errorf("list connections on %s: ss did not end well: %q", h.Name(), clip(lines[last]))
	}
	var far []netip.AddrPort
	for _, line := range lines[:last] {
		end, err := parseEnd(line)
		if err != nil {
			return nil, fmt.Errorf("list connections on %s: %w", h.Name(), err)
		}
		far = append(far, end)
	}
	slices.SortFunc(far, netip.AddrPort.Compare)
	return far, nil
}

// Addresses lists the addresses of h's own interfaces.
func Addresses(ctx context.Context, h Host) ([]netip.Addr, error) {
	args := []string{"ip", "-o", "addr", "show"}
	r, err := h.Run(ctx, Command{Args: args})
	if err == nil {
		err = r.Err(args...)
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", h.Name(), err)
	}
	var addrs []netip.Addr
	for line := range strings.Lines(string(r.Stdout)) {
		// "2: eth0    inet 192.168.1.2/24 brd … scope global eth0"
		words := strings.Fields(line)
		if len(words) < 4 || (words[2] != "inet" && words[2] != "inet6") {
			continue
		}
		text, _, _ := strings.Cut(words[3], "/")
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a.WithZone(""))
		}
	}
	return addrs, nil
}
