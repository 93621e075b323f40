package status

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/plan"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A status waits for no backend longer than backendLimit, and for all of them
// together no longer than countLimit: it is for a quick look.
const (
	backendLimit = 4 * time.Second
	countLimit   = 10 * time.Second
)

// backendCounts counts the connections on the backends of a status, over
// connections that it keeps. nil counts none.
type backendCounts struct {
	spec    spec.Spec
	connect fleet.Connector
	hosts   map[string]*countedHost // by name; nil: one that is not counted over SSH
}

// A countedHost is one backend. Each port has a counter of its own.
type countedHost struct {
	plan     plan.Backend
	host     remote.Host
	ports    map[uint16]bool
	counters map[uint16]*remote.Counter
	open     map[uint16]int
	err      error
	tried    time.Time
}

func (b *backendCounts) close() {
	if b == nil {
		return
	}
	for _, h := range b.hosts {
		if h != nil && h.host != nil {
			_ = h.host.Close()
		}
	}
}

// count fills in what the backends count, side by side.
func (b *backendCounts) count(ctx context.Context, st *Status) {
	if b == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, countLimit, fmt.Errorf("no answer within %s", countLimit))
	defer cancel()
	b.each(st, func(_ *ServerStatus, h *countedHost, port uint16) {
		h.ports[port] = true
	})
	var all errgroup.Group
	all.SetLimit(max(1, b.spec.Parallel))
	for _, h := range b.hosts {
		if h != nil {
			all.Go(func() error {
				h.read(ctx, b.connect)
				return nil
			})
		}
	}
	_ = all.Wait() // each host has its own error
	b.each(st, func(s *ServerStatus, h *countedHost, port uint16) {
		if n, ok := h.open[port]; ok {
			s.OnBackend = &n
		} else if h.err != nil {
			s.BackendError = h.err.Error()
		}
	})
}

// each visits the servers that take TCP with the host that each is on, but for those on the LB
// itself.
func (b *backendCounts) each(st *Status, visit func(s *ServerStatus, h *countedHost, port uint16)) {
	for i := range st.LBs {
		for j := range st.LBs[i].Servers {
			s := &st.LBs[i].Servers[j]
			a, err := nginx.ParseAddress(s.Address)
			if err != nil || s.OnlyUDP || spec.OnLB(nginx.Target{Address: a}) {
				continue
			}
			h, known := b.hosts[a.Host]
			if !known {
				h = b.newHost(a.Host, s)
				b.hosts[a.Host] = h
			}
			if h != nil {
				visit(s, h, a.Port)
			}
		}
	}
}

// newHost is the host of a server by its settings; nil where these have its
// connections counted elsewhere.
func (b *backendCounts) newHost(name string, s *ServerStatus) *countedHost {
	set, err := b.spec.SettingsOf(plan.UpstreamNames(s.Server), []string{name, s.Address})
	if err != nil || set.Counter != spec.CounterSS {
		return nil
	}
	pl := plan.Backend{Name: name, Address: name, Settings: set}
	if set.SSH.Host != "" {
		pl.Address = set.SSH.Host
	}
	return &countedHost{plan: pl, ports: map[uint16]bool{}, counters: map[uint16]*remote.Counter{}}
}

// read counts on one host. One that could not be reached is left alone for a while.
func (h *countedHost) read(ctx context.Context, c fleet.Connector) {
	h.open = nil
	if h.host == nil {
		if h.err != nil && time.Since(h.tried) < retryAfter {
			return
		}
		h.tried = time.Now()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, backendLimit, fmt.Errorf("%s: no answer within %s", h.plan.Address, backendLimit))
	defer cancel()
	if h.host == nil {
		if h.host, h.err = c.Backend(ctx, h.plan); h.err != nil {
			h.host = nil
			return
		}
	}
	open := map[uint16]int{}
	for _, port := range slices.Sorted(maps.Keys(h.ports)) {
		if h.counters[port] == nil {
			h.counters[port] = remote.NewCounter(h.host, []uint16{port})
		}
		n, err := h.counters[port].Count(ctx)
		if h.err = err; err != nil {
			return
		}
		open[port] = n.Open
	}
	h.open = open
}
