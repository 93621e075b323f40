package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
	"github.com/drainctl/drainctl/sockets"
)

// Connections implements [Balancer].
func (l *Local) Connections(ctx context.Context, q ConnectionsQuery) (remote.Count, error) {
	if err := checkNumber("servers", len(q.Servers)); err != nil {
		return remote.Count{}, err
	}
	if q.StatusURL != "" {
		n, err := statusOf(l.traffic.trace(ctx), q.StatusURL)
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
	if slices.ContainsFunc(addresses, isName) && l.traffic.isFirst() {
		l.addFormer(ctx, addresses)
		l.addEarlier(addresses, to)
	}
	c, err := l.await(ctx, q, addresses, to)
	if err != nil {
		return c, asError(err)
	}
	c.Openers = l.traffic.openers(l.traffic.onlyOut(addresses, to))
	return c, nil
}

const (
	// maxAwait bounds one wait for a connection to end, and maxAwaited how many are under way: beyond
	// that a call returns at once, and its caller asks again.
	maxAwait   = 10 * time.Second
	maxAwaited = 8
	// awaitGap is between two counts of a wait.
	awaitGap = 5 * time.Millisecond
)

// await counts the connections. If as many are open as the caller knows, it waits until one ends.
func (l *Local) await(ctx context.Context, q ConnectionsQuery, addresses []nginx.Address, to [][]netip.AddrPort) (c remote.Count, err error) {
	if q.Wait <= 0 || l.awaited.Add(1) > maxAwaited {
		q.Known = -1
	}
	if q.Wait > 0 {
		defer l.awaited.Add(-1)
	}
	limited, cancel := context.WithTimeout(ctx, min(q.Wait, maxAwait))
	defer cancel()
	gap := maxAwait
	if slices.ContainsFunc(addresses, func(a nginx.Address) bool { return a.Unix != "" }) {
		gap = unixGap // the kernel does not tell when they end
	}
	for {
		changed := l.traffic.watch(addresses, to)
		c, err = l.count(addresses, to, q.Held)
		if err != nil || c.Open != q.Known || limited.Err() != nil {
			return c, err
		}
		select {
		case <-changed:
			_ = remote.Sleep(limited, awaitGap)
		case <-time.After(gap):
		case <-limited.Done():
		}
	}
}

// count counts the connections, and looks for the owner of each one to a server that is out.
func (l *Local) count(addresses []nginx.Address, to [][]netip.AddrPort, held bool) (remote.Count, error) {
	var found []sockets.Socket
	out := l.traffic.onlyOut(addresses, to)
	c, _, err := countTo(addresses, to, held, func(s sockets.Socket) {
		if slices.Contains(out, s.Far) {
			found = append(found, s)
		}
	})
	if err == nil {
		l.traffic.saw(out, found, nil)
	}
	return c, err
}

// unixGap is between two counts of the connections to a Unix socket.
const unixGap = 20 * time.Millisecond

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

func isName(a nginx.Address) bool { return a.Host != "" && !a.IP.IsValid() }

// addFormer adds to the servers that are given by name where earlier workers have connections and no server
// is now: nginx looked the name up when it loaded the configuration, and the answer has changed since.
func (l *Local) addFormer(ctx context.Context, addresses []nginx.Address) {
	exiting := l.traffic.now().Exiting()
	ours := map[uint32]bool{}
	for _, p := range exiting {
		maps.Copy(ours, socketsOf(p.PID))
	}
	former := map[netip.AddrPort]bool{}
	_ = sockets.TCP(sockets.Established, func(s sockets.Socket) { // a count that fails says so itself
		if ours[s.Inode] && slices.ContainsFunc(addresses, func(a nginx.Address) bool { return isName(a) && a.Port == s.Far.Port() }) {
			former[s.Far] = true
		}
	})
	if len(former) == 0 {
		return
	}
	l.mu.Lock()
	var hosts []string
	for _, a := range l.known {
		delete(former, netip.AddrPortFrom(a.IP, a.Port))
		if isName(a) && !slices.Contains(hosts, a.Host) {
			hosts = append(hosts, a.Host)
		}
	}
	l.mu.Unlock()
	for _, name := range lookupAll(ctx, hosts) {
		maps.DeleteFunc(former, func(end netip.AddrPort, _ bool) bool { return slices.Contains(name.Addresses, end.Addr()) })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		for end := range former {
			if isName(a) && a.Port == end.Port() {
				l.earlier[a] = append(l.earlier[a], end)
			}
		}
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

// networkOf fails if nginx runs in another network namespace, that of a container.
func (l *Local) networkOf(ctx context.Context, conf *nginx.Config, build nginx.Build) error {
	r, err := l.running(ctx, conf, build)
	if err != nil {
		return err
	}
	return otherNetwork(r.Master.PID)
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
	_, each, err := countTo(addresses, to, false, nil)
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
// held is true, countTo lists the connections, too. It hands over each socket but Unix
// ones to found, if it is not nil.
func countTo(addresses []nginx.Address, to [][]netip.AddrPort, held bool, found func(sockets.Socket)) (c remote.Count, each []int, err error) {
	each = make([]int, len(addresses))
	open := map[netip.AddrPort]int{}
	err = sockets.To(slices.Concat(to...), held, func(s sockets.Socket) {
		open[s.Far]++
		if found != nil {
			found(s)
		}
		// In SYN-SENT, nginx has sent no request yet, and the backend has no such socket.
		if held && len(c.Held) < maxHeld && s.State != sockets.SynSent && !s.UDP {
			c.Held = append(c.Held, remote.Held{Far: s.Near, Sent: s.Received, Received: s.Sent}) // by the server
		}
	})
	if err != nil {
		return c, each, fmt.Errorf("count connections: %w", err)
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
			if each[i], err = sockets.ToUnix(a.Unix); err != nil {
				return c, each, fmt.Errorf("count connections: %w", err)
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

// maxHeld is how many connections are listed at most.
const maxHeld = 2000

// bufferedRequests counts, over processes, how many more connections each has
// accepted than it has made: requests that nginx has not sent to a server yet,
// uploads that are still being read most often (it connects to a server when it
// has all of the body, see proxy_request_buffering). -1: it cannot be known.
func bufferedRequests(workers []nginx.Process) int {
	if len(workers) == 0 {
		return 0
	}
	var open []sockets.Socket
	listens := map[uint16]bool{}
	err := errors.Join(
		sockets.TCP(sockets.Established, func(s sockets.Socket) { open = append(open, s) }),
		sockets.TCP(sockets.Listening, func(s sockets.Socket) { listens[s.Near.Port()] = true }))
	if err != nil {
		return -1
	}
	total := 0
	for _, w := range workers {
		held, balance := socketsOf(w.PID), 0
		for _, s := range open {
			switch {
			case !held[s.Inode]:
			case listens[s.Near.Port()]:
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
func socketsOf(pid int) map[uint32]bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	held := map[uint32]bool{}
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		text, found := strings.CutPrefix(to, "socket:[")
		inode, bad := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
		if err == nil && found && bad == nil {
			held[uint32(inode)] = true
		}
	}
	return held
}
