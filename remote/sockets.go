package remote

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ErrNoSS says that a host has no ss.
var ErrNoSS = errors.New("ss is not there; install iproute2")

// maxPeers is how many peers are named of those that hold connections.
const maxPeers = 8

// maxFilter is how many addresses or ports one filter of ss takes.
const maxFilter = 256

// Sockets is how many connections there are, and with whom.
type Sockets struct {
	Count int    // established connections
	Peers []Peer // those with the most of them, at most eight, the most first
	Total int    // how many different peers there are
}

// Peer is who is at the other end of connections.
type Peer struct {
	Addr  netip.Addr
	Count int
}

// sumScript runs ss with the arguments it gets and prints how many lines it
// printed, and for the addresses in field FIELD how many there are and which
// are the most frequent. Only this travels, however many the sockets are.
//
// ss is followed by its exit status in the same stream, so that awk sees whether
// it is complete: a POSIX shell knows only how the last of a pipeline ended.
// What ss says on standard error may come with exit status 0, and means that
// the count is not to be trusted.
const sumScript = `command -v ss >/dev/null || exit 90
field=$1; shift
exec 3>&1
said=$({ { ss "$@"; echo "exit $?"; } | awk -v field="$field" -v most=8 '
  $1 == "exit" { code = $2; next }
  {
    n++
    peer = $field
    sub(/:[^:]*$/, "", peer)
    gsub(/[][]/, "", peer)
    if (peer !~ /:/) sub(/%.*/, "", peer)
    if (peer ~ /^::ffff:[0-9.]+$/) peer = substr(peer, 8)
    count[peer]++
  }
  END {
    for (p in count) total++
    printf "sockets %d %d\n", n, total
    for (i = 0; i < most && i < total; i++) {
      top = 0
      for (p in count) if (count[p] > top) { top = count[p]; best = p }
      printf "peer %d %s\n", top, best
      delete count[best]
    }
    print "end " (code == "" ? "unknown" : code)
  }' >&3; } 2>&1)
[ -z "$said" ] || { printf '%s\n' "$said" | head -n 3 >&2; exit 91; }
`

// rawScript runs ss with its arguments, and fails where ss says anything.
const rawScript = `command -v ss >/dev/null || exit 90
exec 3>&1
said=$({ ss "$@" >&3; } 2>&1) || { printf '%s\n' "$said" | head -n 3 >&2; exit 91; }
[ -z "$said" ] || { printf '%s\n' "$said" | head -n 3 >&2; exit 91; }
`

// unixScript counts the connections to the stream socket at PATH: those that a
// program has accepted (state 03) and those that wait for it to (02). It
// reads the kernel's list, because ss shows only the former, and takes a path
// for a pattern. The program may have bound the socket under another name of
// the same file, such as /var/run for /run.
const unixScript = `path=$1
list=$(cat /proc/net/unix) || exit 91
names=$(printf '%s\n' "$list" | awk '$4 == "00010000" && $5 == "0001" && $8 != "" { for (i = 0; i < 7; i++) sub(/^ *[^ ]+ +/, ""); print }') || exit 91
match=$path
IFS='
'
set -f
for name in $names; do
  if [ "$name" -ef "$path" ]; then match=$name; fi
done
printf '%s\n' "$list" | WANT=$match awk '
  $4 != "00010000" && $5 == "0001" && ($6 == "02" || $6 == "03") {
    for (i = 0; i < 7; i++) sub(/^ *[^ ]+ +/, "")
    if ($0 == ENVIRON["WANT"]) n++
  }
  END { printf "sockets %d 0\nend 0\n", n }'
`

// exitNoSS is the exit status of the scripts here where there is no ss; 91 is
// that ss, or what stands in for it, failed.
const exitNoSS = 90

// LocalSockets counts the established connections to ports of h: what is open
// on a backend. It needs no root. A count it cannot get is an error, never 0.
func LocalSockets(ctx context.Context, h Host, ports []uint16) (Sockets, error) {
	filter, err := portFilter(ports)
	if err != nil {
		return Sockets{}, err
	}
	return sum(ctx, h, "count connections", sumScript, "4", "-Htn", "state", "established", filter)
}

// RemoteSockets counts the established connections from h to the addresses dst:
// what a load balancer has open to backends. Its peers are those of dst that
// have any.
func RemoteSockets(ctx context.Context, h Host, dst []netip.AddrPort) (Sockets, error) {
	if len(dst) == 0 || len(dst) > maxFilter {
		return Sockets{}, fmt.Errorf("count connections: %d addresses, not 1 to %d", len(dst), maxFilter)
	}
	var terms []string
	for _, d := range dst {
		if !d.IsValid() || d.Port() == 0 {
			return Sockets{}, fmt.Errorf("count connections: %v is not an address and port", d)
		}
		terms = append(terms, "dst "+netip.AddrPortFrom(d.Addr().Unmap().WithZone(""), d.Port()).String())
	}
	return sum(ctx, h, "count connections", sumScript, "4", "-Htn", "state", "established", "( "+strings.Join(terms, " or ")+" )")
}

// UnixSockets counts the connections to the Unix socket at path on h, accepted
// or waiting to be. Who is at the other end is not known.
func UnixSockets(ctx context.Context, h Host, path string) (Sockets, error) {
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\x00\n") {
		return Sockets{}, fmt.Errorf("count connections: %q is not the path of a socket", path)
	}
	return sum(ctx, h, "count connections to "+path, unixScript, path)
}

// Conns lists the far ends of the established connections to ports of h, each
// connection by itself, sorted.
func Conns(ctx context.Context, h Host, ports []uint16) ([]netip.AddrPort, error) {
	filter, err := portFilter(ports)
	if err != nil {
		return nil, err
	}
	const what = "list connections"
	out, err := ask(ctx, h, what, rawScript, "-Htn", "state", "established", filter)
	if err != nil {
		return nil, err
	}
	pairs, err := parseSS(out)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", what, h.Name(), err)
	}
	far := make([]netip.AddrPort, len(pairs))
	for i, p := range pairs {
		far[i] = p.far
	}
	slices.SortFunc(far, netip.AddrPort.Compare)
	return far, nil
}

// Listening says of each of ports whether something listens on it on h, on any
// of its addresses.
func Listening(ctx context.Context, h Host, ports []uint16) ([]bool, error) {
	filter, err := portFilter(ports)
	if err != nil {
		return nil, err
	}
	const what = "look for listeners"
	out, err := ask(ctx, h, what, rawScript, "-Htn", "state", "listening", filter)
	if err != nil {
		return nil, err
	}
	pairs, err := parseSS(out)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", what, h.Name(), err)
	}
	found := make([]bool, len(ports))
	for i, port := range ports {
		found[i] = slices.ContainsFunc(pairs, func(p pair) bool { return p.near.Port() == port })
	}
	return found, nil
}

// portFilter is the filter of ss for sockets with one of ports at the near end.
func portFilter(ports []uint16) (string, error) {
	if len(ports) == 0 || len(ports) > maxFilter {
		return "", fmt.Errorf("count connections: %d ports, not 1 to %d", len(ports), maxFilter)
	}
	var terms []string
	for _, p := range ports {
		if p == 0 {
			return "", errors.New("count connections: 0 is not a port")
		}
		terms = append(terms, fmt.Sprintf("sport = :%d", p))
	}
	return "( " + strings.Join(terms, " or ") + " )", nil
}

// sum runs a script that prints a sum.
func sum(ctx context.Context, h Host, what, script string, args ...string) (Sockets, error) {
	out, err := ask(ctx, h, what, script, args...)
	if err != nil {
		return Sockets{}, err
	}
	s, err := parseSum(out)
	if err != nil {
		return Sockets{}, fmt.Errorf("%s on %s: %w", what, h.Name(), err)
	}
	return s, nil
}

// ask runs a script on h and returns what it prints.
func ask(ctx context.Context, h Host, what, script string, args ...string) (string, error) {
	mark := rand.Text()
	r, err := h.Run(ctx, Command{Args: scriptArgs(script, mark, args)})
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	_, out, found := strings.Cut(string(r.Stdout), mark+"\n")
	switch words := lastLines(r.Stderr, maxWords); {
	case r.Code == exitNoSS:
		return "", fmt.Errorf("%s on %s: %w", what, h.Name(), ErrNoSS)
	case r.Code != 0:
		return "", fmt.Errorf("%s on %s: %w", what, h.Name(), &ExitError{Args: []string{"ss"}, Code: r.Code, Words: words})
	case !found:
		return "", fmt.Errorf("%s on %s: the shell there did not run the script", what, h.Name())
	}
	return out, nil
}

// parseSum reads what sumScript prints.
func parseSum(out string) (Sockets, error) {
	var s Sockets
	bad := fmt.Errorf("cannot make sense of %q", clip(out))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if _, err := fmt.Sscanf(lines[0], "sockets %d %d", &s.Count, &s.Total); err != nil || s.Count < 0 || s.Total < 0 {
		return Sockets{}, bad
	}
	end, ended := strings.CutPrefix(lines[len(lines)-1], "end ")
	if !ended {
		return Sockets{}, bad
	}
	if end != "0" {
		return Sockets{}, fmt.Errorf("ss ended with exit status %s", end)
	}
	for _, line := range lines[1 : len(lines)-1] {
		words := strings.Fields(line)
		if len(words) != 3 || words[0] != "peer" {
			return Sockets{}, bad
		}
		n, err := strconv.Atoi(words[1])
		addr, aerr := netip.ParseAddr(words[2])
		if err != nil || aerr != nil || n <= 0 {
			return Sockets{}, bad
		}
		s.Peers = append(s.Peers, Peer{Addr: addr.Unmap(), Count: n})
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), a.Addr.Compare(b.Addr))
	})
	return s, nil
}

// pair is the two ends of a socket; the far one of a listener is not valid.
type pair struct{ near, far netip.AddrPort }

// parseSS reads the output of ss -Htn with one state named: a line for each
// socket, "RECV-Q SEND-Q NEAR:PORT FAR:PORT".
func parseSS(out string) ([]pair, error) {
	var pairs []pair
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 4 {
			return nil, fmt.Errorf("cannot make sense of %q from ss", clip(line))
		}
		near, err := parseEnd(words[2])
		if err == nil {
			var far netip.AddrPort
			far, err = parseEnd(words[3])
			pairs = append(pairs, pair{near, far})
		}
		if err != nil {
			return nil, fmt.Errorf("cannot make sense of %q from ss: %w", clip(line), err)
		}
	}
	return pairs, nil
}

// parseEnd reads one end as ss prints it: "1.2.3.4:80", "1.2.3.4%eth0:80",
// "[::ffff:1.2.3.4]:80", "[fe80::1]%eth0:80", "*:80", "*:*". An IPv4 address in
// an IPv6 socket comes out as IPv4, and "*" as the unspecified IPv6 address.
func parseEnd(s string) (netip.AddrPort, error) {
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
		host = strings.NewReplacer("[", "", "]", "").Replace(host)
		host, zone, _ := strings.Cut(host, "%")
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

// clip shortens s for an error.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
