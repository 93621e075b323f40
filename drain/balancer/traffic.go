package balancer

import (
	"fmt"
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
	mu      sync.Mutex
	ends    *sockets.Ends
	tried   bool                              // to watch ends: Linux can since 4.2
	changed chan struct{}                     // closed when a connection may have ended
	servers map[netip.AddrPort]*serverTraffic // those that were counted since the last load
	mine    map[Ends]bool                     // connections of this process
	begun   bool                              // serving is known
	serving nginx.Running                     // no process: nginx is stopped
	counted bool                              // since the last load
	search  time.Time                         // no process is searched for before
	isHunt  bool                              // somebody is looked for who connects for moments only
}

// A serverTraffic is the connections to one address.
type serverTraffic struct {
	open    map[netip.AddrPort]bool // their near ends at the last count; nil: there was none yet
	isAlone bool                    // at the last count no earlier worker of nginx was left
	openers []opener                // the latest first
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

// serves notes what runs; after a load, everything begins anew.
func (t *traffic) serves(now nginx.Running, isLoaded bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serving, t.begun = now, true
	if isLoaded {
		t.servers, t.counted = nil, false
	}
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
func (t *traffic) watch(to []netip.AddrPort) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	if !t.tried {
		t.tried = true
		if ends, err := sockets.WatchEnds(); err == nil {
			t.ends = ends
			go t.follow(ends)
		}
	}
	if t.servers == nil {
		t.servers = map[netip.AddrPort]*serverTraffic{}
	}
	for _, end := range to {
		if t.servers[end] == nil {
			t.servers[end] = &serverTraffic{}
		}
	}
	return t.changed
}

func (t *traffic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tried = true
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

// ended notes a connection that was opened and has ended since the last count.
func (t *traffic) ended(s sockets.Socket) (isWatched bool) {
	to, isMine := t.servers[s.Far], t.mine[Ends{s.Near, s.Far}]
	delete(t.mine, Ends{s.Near, s.Far})
	if to == nil {
		return false
	}
	if to.open != nil && !to.open[s.Near] && !isMine {
		by := remote.OpenedByUnknown
		if to.isAlone {
			by = remote.OpenedByOther // not by an earlier worker
		}
		to.note(remote.Opener{Near: s.Near.Addr(), By: by})
		if !t.isHunt {
			t.isHunt = true
			go t.hunt(s.Far)
		}
	}
	delete(to.open, s.Near)
	return true
}

// A hunt looks so often, so long apart, and half of the time at most.
const (
	hunts   = 100
	huntGap = 10 * time.Millisecond
)

// hunt counts the connections to a server often, so that who opens them for a moment is seen while it
// has one.
func (t *traffic) hunt(server netip.AddrPort) {
	to, gap := []netip.AddrPort{server}, huntGap
	for range hunts {
		time.Sleep(gap)
		began := time.Now()
		var found []sockets.Socket
		if err := sockets.To(to, false, func(s sockets.Socket) { found = append(found, s) }); err != nil {
			break
		}
		if t.saw(to, found); slices.ContainsFunc(t.openers(to), func(o remote.Opener) bool { return o.Process != "" }) {
			break
		}
		gap = max(huntGap, time.Since(began))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isHunt = false
}

// note adds an opener. A process that is not known is taken for the latest one that is.
func (to *serverTraffic) note(o remote.Opener) {
	if i := slices.IndexFunc(to.openers, func(known opener) bool { return known.Process != "" }); i >= 0 && o.By == remote.OpenedByOther && o.Process == "" {
		o = to.openers[i].Opener
	}
	to.openers = slices.DeleteFunc(to.openers, func(known opener) bool {
		return known.Opener == o || known.By == remote.OpenedByOther && known.Process == ""
	})
	to.openers = slices.Insert(to.openers, 0, opener{o, time.Now()})
	to.openers = to.openers[:min(len(to.openers), maxOpeners)]
}

// saw compares the connections that a count has found with those of the last one.
func (t *traffic) saw(to []netip.AddrPort, found []sockets.Socket) {
	t.mu.Lock()
	if !t.begun {
		t.mu.Unlock()
		return
	}
	serving := t.serving
	open := map[netip.AddrPort]map[netip.AddrPort]bool{}
	for _, end := range to {
		open[end] = map[netip.AddrPort]bool{}
	}
	fresh := map[uint32]sockets.Socket{}
	for _, s := range found {
		open[s.Far][s.Near] = true
		if known := t.servers[s.Far]; known != nil && !known.open[s.Near] && !t.mine[Ends{s.Near, s.Far}] {
			fresh[s.Inode] = s
		}
	}
	isAlone := !slices.ContainsFunc(serving.Exiting(), nginx.Process.IsThere)
	for _, end := range to {
		if known := t.servers[end]; known != nil {
			known.open, known.isAlone = open[end], isAlone
		}
	}
	canSearch := time.Now().After(t.search)
	t.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	began, owners := time.Now(), map[uint32]int{}
	if canSearch {
		owners = ownersOf(fresh, serving.Workers)
	}
	var noted []sockets.Socket
	var openers []remote.Opener
	for inode, s := range fresh {
		if o, isOpener := openerOf(owners[inode], serving.Master.PID); isOpener {
			o.Near = s.Near.Addr()
			noted, openers = append(noted, s), append(openers, o)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if canSearch {
		t.search = time.Now().Add(searchShare * time.Since(began))
	}
	for i, s := range noted {
		if known := t.servers[s.Far]; known != nil {
			known.note(openers[i])
		}
	}
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

// ownersOf finds the processes that have sockets, by their inodes. It looks at some workers first.
func ownersOf(fresh map[uint32]sockets.Socket, first []nginx.Process) map[uint32]int {
	var pids []int
	for _, p := range first {
		pids = append(pids, p.PID)
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
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

// openerOf tells what a process is that has opened a connection, which is none if it may: an earlier
// worker, which sends the requests that it still holds, or drainctl. A PID of 0 is not known.
func openerOf(pid, master int) (o remote.Opener, isOpener bool) {
	p, err := nginx.FindProcess(pid)
	switch {
	case pid == 0 || err != nil:
		return remote.Opener{By: remote.OpenedByUnknown}, true
	case isDrainctl(pid):
		return o, false
	case p.Parent == master && master != 0:
		return remote.Opener{By: remote.OpenedByWorker, Process: p.Describe()}, !p.IsExiting()
	}
	return remote.Opener{By: remote.OpenedByOther, Process: p.Describe()}, true
}

// isDrainctl tells whether a process runs the program that this one does: it tries out a server.
func isDrainctl(pid int) bool {
	own, err := os.Stat("/proc/self/exe")
	other, otherErr := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && otherErr == nil && os.SameFile(own, other)
}

// trace notes the connections of a request of this process.
func (t *traffic) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		near, isTCP := c.Conn.LocalAddr().(*net.TCPAddr)
		far, _ := c.Conn.RemoteAddr().(*net.TCPAddr)
		if !isTCP || far == nil {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.ends == nil {
			return // nothing would take it out again
		}
		if t.mine == nil {
			t.mine = map[Ends]bool{}
		}
		t.mine[Ends{endOf(near), endOf(far)}] = true
	}}
}

// endOf is an address as the kernel's list of sockets has it.
func endOf(a *net.TCPAddr) netip.AddrPort {
	end := a.AddrPort()
	return netip.AddrPortFrom(end.Addr().Unmap().WithZone(""), end.Port())
}
