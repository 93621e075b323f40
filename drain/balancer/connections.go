package balancer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/drainctl/drainctl/nginx"
)

// Connections implements [Balancer].
func (l *Local) Connections(ctx context.Context, q ConnectionsQuery) (Connections, error) {
	if q.StatusURL != "" {
		n, err := statusOf(ctx, q.StatusURL)
		return Connections{Open: n}, err
	}
	l.mu.Lock()
	addresses, err := of(l.addresses, q.Targets)
	l.mu.Unlock()
	if err != nil {
		return Connections{}, err
	}
	c, err := countTo(ctx, addresses)
	if err != nil {
		return c, asError(err)
	}
	return c, nil
}

// count fills in the open connections of every server of a report.
func (r *reading) count(ctx context.Context) {
	var addresses []nginx.Address
	for _, s := range r.servers {
		addresses = append(addresses, s.Address)
	}
	c, err := countTo(ctx, addresses)
	if err != nil {
		r.Uncounted = err.Error()
		return
	}
	for i, n := range c.PerServer {
		r.Servers[i].Open = n
	}
}

// countTo counts the established connections from here to each address. One
// that several servers share is counted once in the sum.
func countTo(ctx context.Context, addresses []nginx.Address) (Connections, error) {
	c := Connections{PerServer: make([]int, len(addresses))}
	to := make([][]netip.AddrPort, len(addresses))
	var all []netip.AddrPort
	for i, a := range addresses {
		if a.Unix != "" {
			continue
		}
		ips, err := resolve(ctx, a)
		if err != nil {
			c.PerServer[i] = -1
			if len(addresses) == 1 {
				return c, err
			}
			continue
		}
		for _, ip := range ips {
			to[i] = append(to[i], netip.AddrPortFrom(ip, a.Port))
		}
		all = append(all, to[i]...)
	}
	open, err := established(ctx, all)
	if err != nil {
		return c, err
	}
	for _, n := range open {
		c.Open += n
	}
	counted := map[string]bool{}
	for i, a := range addresses {
		for _, ap := range to[i] {
			c.PerServer[i] += open[ap]
		}
		if a.Unix != "" {
			if c.PerServer[i], err = unixConnections(a.Unix); err != nil {
				return c, err
			}
			if !counted[a.Unix] {
				c.Open += c.PerServer[i]
			}
			counted[a.Unix] = true
		}
	}
	return c, nil
}

// maxFilter is how many terms a filter of ss is given; beyond that it lists
// everything, and the sockets are picked out here.
const maxFilter = 256

// established counts the established connections from here to each of to.
func established(ctx context.Context, to []netip.AddrPort) (map[netip.AddrPort]int, error) {
	open := map[netip.AddrPort]int{}
	if len(to) == 0 {
		return open, nil
	}
	args := []string{"-Htn", "state", "established"}
	var terms []string
	for _, ap := range to {
		if term := "dst " + ap.String(); !slices.Contains(terms, term) && len(terms) <= maxFilter {
			terms = append(terms, term)
		}
	}
	if len(terms) <= maxFilter {
		args = append(args, "( "+strings.Join(terms, " or ")+" )")
	}
	wanted := map[netip.AddrPort]bool{}
	for _, ap := range to {
		wanted[ap] = true
	}
	err := ss(ctx, args, func(s socket) {
		if wanted[s.far] {
			open[s.far]++
		}
	})
	return open, err
}

// A socket is one line of ss.
type socket struct {
	near, far netip.AddrPort
	inode     string // with -e
}

var inodeField = regexp.MustCompile(`\bino:([0-9]+)`)

// ss runs ss with one state named, and hands over each socket. What it says on
// standard error may come with exit status 0, and means that its output is not
// to be trusted.
func ss(ctx context.Context, args []string, each func(socket)) error {
	path, err := exec.LookPath("ss")
	for _, usual := range []string{"/usr/sbin/ss", "/sbin/ss", "/usr/bin/ss"} {
		if err == nil {
			break
		}
		if _, e := os.Stat(usual); e == nil {
			path, err = usual, nil
		}
	}
	if err != nil {
		return errors.New("count connections: ss is not there; install iproute2")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		return fmt.Errorf("count connections: ss: %w: %s", errors.Join(err, errors.New("it printed")), strings.TrimSpace(stderr.String()))
	}
	lines := bufio.NewScanner(&stdout)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 {
			continue
		}
		var s socket
		if s.near, err = endpoint(fields[2]); err == nil {
			s.far, err = endpoint(fields[3])
		}
		if err != nil {
			return fmt.Errorf("count connections: unexpected output of ss: %q: %w", lines.Text(), err)
		}
		if m := inodeField.FindStringSubmatch(lines.Text()); m != nil {
			s.inode = m[1]
		}
		each(s)
	}
	return lines.Err()
}

// endpoint reads one end as ss prints it: "1.2.3.4:80", "1.2.3.4%eth0:80",
// "[::ffff:1.2.3.4]:80", "*:80", "*:*".
func endpoint(text string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		i := strings.LastIndexByte(text, ':')
		if i < 0 {
			return netip.AddrPort{}, err
		}
		host, port = strings.Trim(text[:i], "[]"), text[i+1:]
	}
	host, _, _ = strings.Cut(host, "%")
	host = strings.Trim(host, "[]")
	addr := netip.IPv6Unspecified()
	if host != "*" {
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, err
		}
	}
	n := uint64(0)
	if port != "*" {
		if n, err = strconv.ParseUint(port, 10, 16); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// bufferedRequests counts, over processes, how many more connections each has
// accepted than it has made: requests that nginx has not sent to a server yet,
// uploads that are still being read most often (it connects to a server when it
// has all of the body, see proxy_request_buffering). -1: it cannot be known.
func bufferedRequests(ctx context.Context, workers []nginx.Process) int {
	if len(workers) == 0 {
		return 0
	}
	var open []socket
	failed := make(chan error, 1)
	go func() {
		failed <- ss(ctx, []string{"-Htne", "state", "established"}, func(s socket) { open = append(open, s) })
	}()
	listens := map[uint16]bool{}
	err := ss(ctx, []string{"-Htn", "state", "listening"}, func(s socket) { listens[s.near.Port()] = true })
	if errors.Join(err, <-failed) != nil {
		return -1
	}
	total := 0
	for _, w := range workers {
		held, balance := socketsOf(w.PID), 0
		for _, s := range open {
			switch {
			case !held[s.inode]:
			case listens[s.near.Port()]:
				balance++
			default:
				balance--
			}
		}
		total += max(0, balance)
	}
	return total
}

// socketsOf is the inodes of a process's sockets (proc(5), /proc/PID/fd). One
// that is gone has none.
func socketsOf(pid int) map[string]bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	held := map[string]bool{}
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		if inode, found := strings.CutPrefix(to, "socket:["); err == nil && found {
			held[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return held
}

// unixConnections counts the connections to the socket at path: those that a
// program has accepted and those that wait for it to. It reads the kernel's own
// list (proc(5), /proc/net/unix), because ss shows only the former. The program
// may have bound the socket under another name of the same file.
func unixConnections(path string) (int, error) {
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, fmt.Errorf("count connections to %s: %w", path, err)
	}
	const (
		acceptsConnections = 0x10000
		stream             = 1
		connecting         = 2
		connected          = 3
	)
	names := map[string]bool{path: true}
	type entry struct {
		name  string
		state uint64
	}
	var found []entry
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		flags, err1 := strconv.ParseUint(f[3], 16, 64)
		kind, err2 := strconv.ParseUint(f[4], 16, 64)
		state, err3 := strconv.ParseUint(f[5], 16, 64)
		if err1 != nil || err2 != nil || err3 != nil || kind != stream {
			continue
		}
		// The path may hold blanks: it is all that follows the inode.
		_, name, _ := strings.Cut(strings.TrimRight(line, "\n"), f[6]+" ")
		if flags&acceptsConnections != 0 {
			if sameFile(name, path) {
				names[name] = true
			}
			continue
		}
		if state == connecting || state == connected {
			found = append(found, entry{name, state})
		}
	}
	n := 0
	for _, e := range found {
		if names[e.name] {
			n++
		}
	}
	return n, nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
