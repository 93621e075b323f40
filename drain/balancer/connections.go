package balancer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// Connections implements [Balancer].
func (l *Local) Connections(ctx context.Context, q ConnectionsQuery) (remote.Count, error) {
	if err := checkNumber("servers", len(q.Servers)); err != nil {
		return remote.Count{}, err
	}
	if q.StatusURL != "" {
		n, err := statusOf(ctx, q.StatusURL)
		return remote.Count{Open: n}, err
	}
	addresses, err := l.addresses(ctx, q.Servers)
	if err != nil {
		return remote.Count{}, asError(err)
	}
	to, err := endpoints(ctx, addresses)
	if err = errors.Join(err, l.checkNetwork(ctx)); err != nil {
		return remote.Count{}, asError(fmt.Errorf("count connections: %w", err))
	}
	l.addEarlier(addresses, to)
	c, _, err := countTo(ctx, addresses, to, q.Held)
	if err != nil && q.Held {
		c, _, err = countTo(ctx, addresses, to, false) // the count is worth more
	}
	if err != nil {
		return c, asError(err)
	}
	return c, nil
}

// addEarlier adds the endpoints that the names among addresses have had before. nginx looks a name
// up when it loads the configuration, and connections stay where they are when the answer changes.
func (l *Local) addEarlier(addresses []nginx.Address, to [][]netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, a := range addresses {
		to[i] = append(to[i], l.earlier[a]...)
		slices.SortFunc(to[i], netip.AddrPort.Compare)
		to[i] = slices.Compact(to[i])
		l.earlier[a] = to[i]
	}
}

// checkNetwork fails if nginx has its sockets where they cannot be counted. A good result is kept,
// so that a count costs no look at the configuration.
func (l *Local) checkNetwork(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sameNetwork {
		return nil
	}
	l.serial.Lock()
	defer l.serial.Unlock()
	conf, build, err := l.load(ctx)
	if err == nil {
		err = l.networkOf(ctx, conf, build)
	}
	if errors.Is(err, nginx.ErrNotRunning) {
		return nil // it has no sockets
	}
	l.sameNetwork = err == nil
	return err
}

// networkOf fails if nginx runs in another network namespace, that of a container: ss shows the
// sockets of its own (network_namespaces(7)). The files below /proc/PID/net of two processes are the
// same where the namespace is; unlike /proc/PID/ns/net, they tell that without CAP_SYS_PTRACE.
func (l *Local) networkOf(ctx context.Context, conf *nginx.Config, build nginx.Build) error {
	r, err := l.running(ctx, conf, build)
	if err != nil {
		return err
	}
	here, errHere := os.Stat("/proc/self/net/unix")
	there, errThere := os.Stat(fmt.Sprintf("/proc/%d/net/unix", r.Master.PID))
	err = errors.Join(errHere, errThere)
	if err == nil && !os.SameFile(here, there) {
		err = fmt.Errorf("nginx (process %d) is in another network namespace (a container?): its connections cannot be seen here", r.Master.PID)
	}
	return err
}

// count fills in the open connections of every server of a report.
func (r *reading) count(ctx context.Context, l *Local) {
	if err := l.networkOf(ctx, r.conf, r.build); err != nil && !errors.Is(err, nginx.ErrNotRunning) {
		r.Uncounted = err.Error()
		return
	}
	var addresses []nginx.Address
	for _, s := range r.servers {
		addresses = append(addresses, s.Address)
	}
	to, _ := endpoints(ctx, addresses) // a server whose name has no address is not counted
	_, each, err := countTo(ctx, addresses, to, false)
	if err != nil {
		r.Uncounted = err.Error()
		return
	}
	for i, n := range each {
		r.Servers[i].Open = n
	}
}

// endpoints is the IPs and ports of each address, none of a Unix socket. The error is that of the
// names that have no address.
func endpoints(ctx context.Context, addresses []nginx.Address) (to [][]netip.AddrPort, err error) {
	to = make([][]netip.AddrPort, len(addresses))
	for i, a := range addresses {
		if a.Unix != "" {
			continue
		}
		ips, lookupErr := resolve(ctx, a)
		err = errors.Join(err, lookupErr)
		for _, ip := range ips {
			to[i] = append(to[i], netip.AddrPortFrom(ip.WithZone(""), a.Port))
		}
	}
	return to, err
}

// countTo counts the open connections from here to each address, whose endpoints are to. An address
// without endpoints has the count -1. The sum counts an address that several servers share once. If
// held is true, countTo lists the connections, too.
func countTo(ctx context.Context, addresses []nginx.Address, to [][]netip.AddrPort, held bool) (c remote.Count, each []int, err error) {
	each = make([]int, len(addresses))
	option := "-Htune"
	if held {
		option += "i"
	}
	open := map[netip.AddrPort]int{}
	err = openTo(ctx, option, slices.Concat(to...), func(s socket) {
		open[s.far]++
		if held && len(c.Held) < maxHeld {
			c.Held = append(c.Held, remote.Held{Far: s.near, Sent: s.received, Received: s.sent}) // by the server
		}
	})
	if err != nil {
		return c, each, err
	}
	for _, n := range open {
		c.Open += n
	}
	counted := map[string]bool{}
	for i, a := range addresses {
		for _, ap := range to[i] {
			each[i] += open[ap]
		}
		switch {
		case a.Unix != "":
			if each[i], err = unixConnections(ctx, a.Unix); err != nil {
				return c, each, err
			}
			if !counted[a.Unix] {
				c.Open += each[i]
			}
			counted[a.Unix] = true
		case len(to[i]) == 0:
			each[i] = -1
		}
	}
	return c, each, nil
}

// maxFilter is how many terms a filter of ss is given; beyond that it lists
// everything, and the sockets are picked out here.
const maxFilter = 256

// maxHeld is how many connections are listed at most.
const maxHeld = 2000

// noInode is what ss prints of a socket that no process has any more.
const noInode = "0"

// openTo runs ss, with an option, for the connections from here to any of to that a process
// has. Their state does not matter: one in SYN-SENT waits for the app to take it, and on one in
// FIN-WAIT-2 or CLOSE-WAIT one side still sends. Of itself, ss leaves out what listens, SYN-RECV
// and TIME-WAIT. nginx connects its UDP sockets to a server, one for each session
// (ngx_event_connect_peer).
func openTo(ctx context.Context, option string, to []netip.AddrPort, each func(socket)) error {
	if len(to) == 0 {
		return nil
	}
	args := []string{option}
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
	return ss(ctx, args, func(s socket) {
		if wanted[s.far] && s.inode != noInode {
			each(s)
		}
	})
}

// A socket is what ss prints of one.
type socket struct {
	near, far      netip.AddrPort
	inode          string        // with -e
	sent, received time.Duration // ago, with -i; negative: not known
}

// socketLine is "[PROTOCOL] [STATE] RECV-Q SEND-Q NEAR FAR" and more.
var socketLine = regexp.MustCompile(`^(?:[a-z]+ +)?(?:[A-Z][A-Z0-9-]* +)?[0-9]+ +[0-9]+ +([^ ]+:[^ ]+) +([^ ]+:[^ \n]+)`)

var inodeField = regexp.MustCompile(`\bino:([0-9]+)`)

// ss runs ss and hands over each socket.
func ss(ctx context.Context, args []string, each func(socket)) error {
	text, err := runSS(ctx, args)
	if err != nil {
		return err
	}
	sockets, err := parseSockets(text)
	for _, s := range sockets {
		each(s)
	}
	return err
}

// runSS returns what ss prints. What it says on standard error may come with exit
// status 0, and means that its output is not to be trusted.
func runSS(ctx context.Context, args []string) (string, error) {
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
		return "", errors.New("count connections: ss is not there; install iproute2")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		return "", fmt.Errorf("count connections: ss: %w: %s", errors.Join(err, errors.New("it printed")), strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// parseSockets reads the output of ss. Each socket has one line, which begins with the protocol and the
// state if the command asked for several of them. With -i, a second line follows that begins with a
// blank.
func parseSockets(text string) (all []socket, err error) {
	for line := range strings.Lines(text) {
		if last := len(all) - 1; last >= 0 && strings.TrimLeft(line, " \t") != line {
			if strings.Contains(line, " rto:") || strings.Contains(line, " cwnd:") {
				all[last].sent, all[last].received = ago(line, " lastsnd:"), ago(line, " lastrcv:")
			}
			continue
		}
		m := socketLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("count connections: unexpected output of ss: %q", line)
		}
		s := socket{sent: -1, received: -1}
		if s.near, err = endpoint(m[1]); err == nil {
			s.far, err = endpoint(m[2])
		}
		if err != nil {
			return nil, fmt.Errorf("count connections: unexpected output of ss: %q: %w", line, err)
		}
		if m := inodeField.FindStringSubmatch(line); m != nil {
			s.inode = m[1]
		}
		all = append(all, s)
	}
	return all, nil
}

// ago is a field in milliseconds. ss leaves it out where it is 0.
func ago(line, field string) time.Duration {
	_, value, found := strings.Cut(line, field)
	if !found {
		return 0
	}
	value, _, _ = strings.Cut(strings.TrimSpace(value), " ")
	ms, err := strconv.ParseUint(value, 10, 32) // as the kernel has it
	if err != nil {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}

// endpoint reads one end as ss prints it. It has no zone: a server of nginx has none.
func endpoint(text string) (netip.AddrPort, error) {
	end, err := remote.ParseEnd(text)
	return netip.AddrPortFrom(end.Addr().WithZone(""), end.Port()), err
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

// unixConnection matches a connection in /proc/net/unix (proc(5)): its inode and the name of the
// listening socket. State 02 waits in the listen queue and has the inode 0; a program has accepted
// state 03. The name may hold blanks.
var unixConnection = regexp.MustCompile(`^\S+ \S+ \S+ \S+ 0001 0[23] +([0-9]+) (.+)`)

// unixConnections counts the connections to the socket at path: those that a program has
// accepted and those that wait for it to. It reads the kernel's own list, because ss shows only
// the former. The program may have bound the socket by another name: another path of the file,
// a relative path, or the path in a container.
func unixConnections(ctx context.Context, path string) (n int, err error) {
	text, err := os.ReadFile("/proc/net/unix")
	if err == nil && !strings.HasPrefix(string(text), "Num ") {
		err = errors.New("unexpected /proc/net/unix")
	}
	if err != nil {
		return 0, fmt.Errorf("count connections to %s: %w", path, err)
	}
	file := fileAt(path)
	named := map[string]os.FileInfo{}
	var other []string // the inodes of sockets whose name does not tell the file
	for line := range strings.Lines(string(text)) {
		m := unixConnection.FindStringSubmatch(line)
		if m == nil { // also the rest of a name with a line break
			continue
		}
		inode, name := m[1], m[2]
		if _, known := named[name]; !known {
			named[name] = fileAt(name)
		}
		switch {
		case name == path, file != nil && os.SameFile(named[name], file):
			n++
		case filepath.Base(name) != filepath.Base(path):
		case inode != noInode:
			other = append(other, inode)
		case named[name] == nil: // it waits, and nothing tells its file
			n++
		}
	}
	if len(other) == 0 {
		return n, nil
	}
	files, err := unixFiles(ctx)
	for _, inode := range other {
		is, known := files[inode]
		if !known || file == nil || is == fmt.Sprint(file.Sys().(*syscall.Stat_t).Ino) {
			n++
		}
	}
	return n, err
}

// fileAt is the file at an absolute path, nil if there is none.
func fileAt(path string) os.FileInfo {
	info, err := os.Stat(path)
	if err != nil || !filepath.IsAbs(path) {
		return nil
	}
	return info
}

// unixFile is the inodes of a connected Unix socket and of the file that it is bound to, as ss
// prints them with -e.
var unixFile = regexp.MustCompile(` ([0-9]+) +\* +[0-9]+ .*\bino:([0-9]+) `)

// unixFiles is the inode of the file of each connected Unix socket, by the socket's inode.
func unixFiles(ctx context.Context) (map[string]string, error) {
	text, err := runSS(ctx, []string{"-Hxe"})
	files := map[string]string{}
	for _, m := range unixFile.FindAllStringSubmatch(text, -1) {
		files[m[1]] = m[2]
	}
	return files, err
}
