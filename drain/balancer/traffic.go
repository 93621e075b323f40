package balancer

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
	"github.com/drainctl/drainctl/sockets"
)

// A traffic tells who opens connections from this machine to servers that nginx sends nothing to since
// the last verified load. A count finds those that are open, and the kernel tells of those that came and
// went between two counts.
type traffic struct {
	mu        sync.Mutex
	ends      *sockets.Ends
	tried     bool                               // to watch ends: Linux can since 4.2
	changed   chan struct{}                      // closed when a connection may have ended
	at        map[nginx.Address][]netip.AddrPort // where servers are that were counted
	servers   map[netip.AddrPort]*serverTraffic  // those that are counted
	begun     bool                               // serving is known
	serving   nginx.Running                      // no process: nginx is stopped
	out       []nginx.Address                    // servers that nginx is to send nothing to
	loads     int                                // verified ones
	counted   bool                               // since the last load
	isAlone   bool                               // no earlier worker has a request that it may still send
	search    time.Time                          // no process is searched for before
	isHunting bool                               // somebody is looked for who connects for moments only
}

// A serverTraffic is the connections to one address.
type serverTraffic struct {
	// open are the near ends of the connections that a count has found, and whether their owner is known;
	// nil: there was no count yet.
	open    map[netip.AddrPort]bool
	isAlone bool     // as it was at the last count
	openers []opener // the latest first
}

type opener struct {
	remote.Opener
	at time.Time
}

// maxOpeners is how many openers are told of a server.
const maxOpeners = 16

// searchShare keeps the search for the owners of sockets to a part of the time: it rests at least this
// many times what the last one took.
const searchShare = 10

// serves notes what runs, and which servers are out. After a load, everything begins anew.
func (t *traffic) serves(now nginx.Running, out []nginx.Address, isLoaded bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serving, t.out, t.begun = now, out, true
	if !isLoaded {
		return
	}
	t.loads++
	t.servers, t.counted, t.isAlone, t.search = nil, false, false, time.Time{}
	var to []netip.AddrPort
	for _, a := range out {
		to = append(to, t.at[a]...)
	}
	t.add(to)
	go t.begin(t.loads, to, now.Exiting())
}

// earlierLimit is how long an earlier worker that holds a request may still open a connection for it. The
// wait is patient for as long (bufferedGrace in package drain). earlierGap is between two looks.
const (
	earlierLimit = 10 * time.Second
	earlierGap   = 50 * time.Millisecond
)

// begin counts for the first time after a load, and follows the earlier workers until they open no
// connections any more.
func (t *traffic) begin(load int, to []netip.AddrPort, earlier []nginx.Process) {
	t.look(to, nil)
	isLast := func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.loads == load
	}
	for end := time.Now().Add(earlierLimit); isLast() && time.Now().Before(end); {
		began := time.Now()
		earlier = slices.DeleteFunc(earlier, func(p nginx.Process) bool { return !p.IsThere() })
		if bufferedRequests(earlier) == 0 {
			break
		}
		time.Sleep(max(earlierGap, searchShare*time.Since(began)))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isAlone = t.isAlone || t.loads == load
}

// isFirst tells, once after each load, that nothing was counted since.
func (t *traffic) isFirst() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	isFirst := t.begun && !t.counted
	t.counted = t.counted || isFirst
	return isFirst
}

// now returns what serves.
func (t *traffic) now() nginx.Running {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.serving
}

// watch returns a channel that is closed when a connection to one of the servers may have ended.
func (t *traffic) watch(addresses []nginx.Address, to [][]netip.AddrPort) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed, t.at = make(chan struct{}), map[nginx.Address][]netip.AddrPort{}
	}
	if !t.tried {
		t.tried = true
		if ends, err := sockets.WatchEnds(); err == nil {
			t.ends = ends
			go t.follow(ends)
		}
	}
	for i, a := range addresses {
		t.at[a] = to[i]
	}
	t.add(slices.Concat(to...))
	return t.changed
}

// add has the kernel tell of connections to servers.
func (t *traffic) add(to []netip.AddrPort) {
	if t.servers == nil {
		t.servers = map[netip.AddrPort]*serverTraffic{}
	}
	isNew := false
	for _, end := range to {
		if t.servers[end] == nil {
			t.servers[end], isNew = &serverTraffic{}, true
		}
	}
	if !isNew || t.ends == nil {
		return
	}
	var ports []uint16
	for end := range t.servers {
		if !slices.Contains(ports, end.Port()) {
			ports = append(ports, end.Port())
		}
	}
	_ = t.ends.Only(ports) // it is cheaper, and no more
}

func (t *traffic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tried, t.loads = true, t.loads+1
	if t.ends != nil {
		t.ends.Close()
	}
}

// follow reads what the kernel tells until the watch is closed.
func (t *traffic) follow(ends *sockets.Ends) {
	for {
		ended, err := ends.Next()
		if err != nil {
			return
		}
		t.mu.Lock()
		isWatched := len(ended) == 0
		if isWatched { // some were lost
			for _, to := range t.servers {
				to.unseen(remote.OpenedByUnknown, netip.Addr{})
			}
		}
		for _, s := range ended {
			isWatched = t.ended(s) || isWatched
		}
		if isWatched {
			close(t.changed)
			t.changed = make(chan struct{})
		}
		t.mu.Unlock()
	}
}

// ended notes a connection that was opened and has ended while nobody found its owner.
func (t *traffic) ended(s sockets.Socket) (isWatched bool) {
	to := t.servers[s.Far]
	if to == nil {
		return false
	}
	if _, isSeen := to.open[s.Near]; !isSeen {
		by := remote.OpenedByUnknown
		if to.isAlone {
			by = remote.OpenedByOther // not by an earlier worker
		}
		if to.unseen(by, s.Near.Addr()) && !t.isHunting {
			t.isHunting = true
			go t.hunt(s.Far)
		}
	}
	delete(to.open, s.Near)
	return true
}

// unseen notes a connection whose owner is not known, if the server was counted before.
func (to *serverTraffic) unseen(by remote.OpenedBy, near netip.Addr) bool {
	if to.open != nil {
		to.note(remote.Opener{Near: near, By: by})
	}
	return to.open != nil
}

// A hunt makes so many counts, so far apart, and takes half of the time at most. Then it rests for several
// times its duration.
const (
	hunts    = 100
	huntGap  = 10 * time.Millisecond
	huntRest = 2
)

// hunt counts the connections to a server often, so that who opens them for a moment is seen while it
// has one. Most often it is another nginx. If nobody is found, that one is named as the likely one.
func (t *traffic) hunt(server netip.AddrPort) {
	began, gap, to := time.Now(), huntGap, []netip.AddrPort{server}
	others := t.otherNginx()
	likely := slices.Concat(t.now().Workers, others)
	isFound := func() bool {
		return slices.ContainsFunc(t.openers(to), func(o remote.Opener) bool { return o.Process != "" && o.Ago < time.Since(began) })
	}
	for range hunts {
		time.Sleep(gap)
		look := time.Now()
		if t.look(to, likely); isFound() {
			break
		}
		gap = max(huntGap, time.Since(look))
	}
	if !isFound() {
		t.suspect(server, others)
	}
	time.Sleep(huntRest * time.Since(began))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isHunting = false
}

// otherNginx returns the processes of nginx that are not of the master that serves.
func (t *traffic) otherNginx() []nginx.Process {
	master := t.now().Master.PID
	all, _ := nginx.AllProcesses() // without them, nobody is suspected
	return slices.DeleteFunc(all, func(p nginx.Process) bool { return p.PID == master || p.Parent == master })
}

// suspect names the first of some processes where a process that is not known has opened a connection.
func (t *traffic) suspect(server netip.AddrPort, of []nginx.Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.servers[server]
	if known == nil || len(of) == 0 {
		return
	}
	i := slices.IndexFunc(known.openers, func(o opener) bool { return o.By == remote.OpenedByOther && o.Process == "" })
	if i >= 0 {
		known.openers[i].Process, known.openers[i].PID = "perhaps "+of[0].Describe(), of[0].PID
	}
}

// look counts the connections to servers, and searches some processes for their owners first.
func (t *traffic) look(to []netip.AddrPort, first []nginx.Process) {
	var found []sockets.Socket
	if err := sockets.To(to, false, func(s sockets.Socket) { found = append(found, s) }); err == nil {
		t.saw(to, found, first)
	}
}

// note adds an opener. A process that is not known is taken for the latest one that is.
func (to *serverTraffic) note(o remote.Opener) {
	isSame := func(k opener) bool { return k.By == o.By && k.Near == o.Near }
	if o.By == remote.OpenedByOther && o.Process == "" {
		if i := slices.IndexFunc(to.openers, func(k opener) bool { return isSame(k) && k.Process != "" }); i >= 0 {
			o = to.openers[i].Opener
		}
	}
	to.openers = slices.DeleteFunc(to.openers, func(k opener) bool { return k.Opener == o || isSame(k) && k.Process == "" })
	to.openers = slices.Insert(to.openers, 0, opener{o, time.Now()})
	to.openers = to.openers[:min(len(to.openers), maxOpeners)]
}

// onlyOut returns the endpoints of the servers that are out.
func (t *traffic) onlyOut(addresses []nginx.Address, to [][]netip.AddrPort) (out []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, a := range addresses {
		if slices.Contains(t.out, a) {
			out = append(out, to[i]...)
		}
	}
	return out
}

// saw looks for the owners of the connections that a count has found, and that are new. It looks at all
// processes only now and then, as that takes long, and else at some.
func (t *traffic) saw(to []netip.AddrPort, found []sockets.Socket, some []nginx.Process) {
	fresh, load, serving, isFull := t.fresh(to, found)
	if len(fresh) == 0 || !isFull && len(some) == 0 {
		return
	}
	if isFull && len(some) == 0 {
		some = serving.Workers
	}
	began, openers := time.Now(), map[int]*remote.Opener{}
	owners := ownersOf(fresh, some, isFull)
	for _, pid := range owners {
		if _, isKnown := openers[pid]; !isKnown {
			openers[pid] = openerOf(pid, serving.Master.PID)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if isFull {
		t.search = time.Now().Add(searchShare * time.Since(began))
	}
	if t.loads != load {
		return
	}
	for inode, pid := range owners {
		s := fresh[inode]
		known := t.servers[s.Far]
		if known == nil {
			continue
		}
		if _, isOpen := known.open[s.Near]; isOpen { // it may have ended meanwhile
			known.open[s.Near] = true
		}
		if o := openers[pid]; o != nil {
			noted := *o
			noted.Near = s.Near.Addr()
			known.note(noted)
		}
	}
}

// fresh returns the sockets whose owner is not known, by inode, and what serves. isFull tells that all
// processes may be searched again.
func (t *traffic) fresh(to []netip.AddrPort, found []sockets.Socket) (fresh map[uint32]sockets.Socket, load int, serving nginx.Running, isFull bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.begun {
		return nil, 0, serving, false
	}
	for _, end := range to {
		if known := t.servers[end]; known != nil {
			if known.isAlone = t.isAlone; known.open == nil {
				known.open = map[netip.AddrPort]bool{}
			}
		}
	}
	there := map[Ends]bool{}
	fresh = map[uint32]sockets.Socket{}
	for _, s := range found {
		there[Ends{s.Near, s.Far}] = true
		if known := t.servers[s.Far]; known != nil && !known.open[s.Near] {
			fresh[s.Inode], known.open[s.Near] = s, false
		}
	}
	if t.ends == nil { // nobody else takes them out
		for end, known := range t.servers {
			maps.DeleteFunc(known.open, func(near netip.AddrPort, _ bool) bool { return slices.Contains(to, end) && !there[Ends{near, end}] })
		}
	}
	return fresh, t.loads, t.serving, time.Now().After(t.search)
}

// openers returns who has opened connections to servers.
func (t *traffic) openers(to []netip.AddrPort) (all []remote.Opener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, end := range to {
		if known := t.servers[end]; known != nil {
			for _, o := range known.openers {
				o.Ago = time.Since(o.at)
				all = append(all, o.Opener)
			}
		}
	}
	return all
}

// ownersOf finds the processes that have sockets, by their inodes. It looks at some first, and then at
// all if it is to.
func ownersOf(fresh map[uint32]sockets.Socket, first []nginx.Process, all bool) map[uint32]int {
	var pids []int
	for _, p := range first {
		pids = append(pids, p.PID)
	}
	var entries []os.DirEntry
	if all {
		entries, _ = os.ReadDir("/proc")
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && !slices.Contains(pids[:len(first)], pid) {
			pids = append(pids, pid)
		}
	}
	owners := map[uint32]int{}
	for _, pid := range pids {
		if len(owners) == len(fresh) {
			break
		}
		for inode := range socketsOf(pid) {
			if _, isFresh := fresh[inode]; isFresh && owners[inode] == 0 {
				owners[inode] = pid
			}
		}
	}
	return owners
}

// openerOf describes a process that has opened a connection. It returns nil for one that may: an earlier
// worker, which sends the requests that it still holds, or drainctl.
func openerOf(pid, master int) *remote.Opener {
	p, err := nginx.FindProcess(pid)
	switch {
	case err != nil:
		return &remote.Opener{By: remote.OpenedByUnknown}
	case isDrainctl(pid), p.Parent == master && master != 0 && p.IsExiting():
		return nil
	case p.Parent == master && master != 0:
		return &remote.Opener{By: remote.OpenedByWorker, Process: p.Describe(), PID: pid}
	}
	return &remote.Opener{By: remote.OpenedByOther, Process: p.Describe(), PID: pid}
}

// isDrainctl reports whether a process runs the same program as this one. Its probes and health checks
// connect to servers.
func isDrainctl(pid int) bool {
	own, err := os.Stat("/proc/self/exe")
	other, otherErr := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && otherErr == nil && os.SameFile(own, other)
}

// trace notes the connections of a request of this process.
func (t *traffic) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { t.own(c.Conn) }})
}

// own notes a connection of this process.
func (t *traffic) own(c net.Conn) {
	near, isTCP := c.LocalAddr().(*net.TCPAddr)
	far, _ := c.RemoteAddr().(*net.TCPAddr)
	if !isTCP || far == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if to := t.servers[endOf(far)]; to != nil && to.open != nil {
		to.open[endOf(near)] = true
	}
}

// endOf is an address as the kernel's list of sockets has it.
func endOf(a *net.TCPAddr) netip.AddrPort {
	end := a.AddrPort()
	return netip.AddrPortFrom(end.Addr().Unmap().WithZone(""), end.Port())
}
