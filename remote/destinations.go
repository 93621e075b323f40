package remote

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// byDestinationScript prints, for each far end among the sockets that ss with
// the given arguments shows, how many there are.
const byDestinationScript = `command -v ss >/dev/null || exit 90
exec 3>&1
said=$({ { ss "$@"; echo "exit $?"; } | awk '
  $1 == "exit" { code = $2; next }
  { count[$4]++ }
  END {
    for (p in count) print count[p], p
    print "end " (code == "" ? "unknown" : code)
  }' >&3; } 2>&1)
[ -z "$said" ] || { printf '%s\n' "$said" | head -n 3 >&2; exit 91; }
`

// CountByPeer counts the established connections from h to each address that
// has one of ports, summed on h. Addresses without any are not in the map.
func CountByPeer(ctx context.Context, h Host, ports []uint16) (map[netip.AddrPort]int, error) {
	sums := map[netip.AddrPort]int{}
	for chunk := range slices.Chunk(ports, maxFilter) {
		filter, err := portFilter(chunk)
		if err != nil {
			return nil, err
		}
		filter = strings.ReplaceAll(filter, "sport", "dport")
		out, err := ask(ctx, h, "count connections", byDestinationScript, "-Htn", "state", "established", filter)
		if err != nil {
			return nil, err
		}
		if err := addDestinations(sums, out); err != nil {
			return nil, fmt.Errorf("count connections on %s: %w", h.Name(), err)
		}
	}
	return sums, nil
}

// addDestinations reads the output of byDestinationScript.
func addDestinations(sums map[netip.AddrPort]int, out string) error {
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	last := len(lines) - 1
	if lines[last] != "end 0" {
		return fmt.Errorf("ss did not end well: %q", clip(lines[last]))
	}
	for _, line := range lines[:last] {
		number, end, _ := strings.Cut(line, " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("cannot make sense of %q", clip(line))
		}
		far, err := parseEnd(end)
		if err != nil {
			return err
		}
		sums[far] += n
	}
	return nil
}
