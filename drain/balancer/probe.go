package balancer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// probeTimeout bounds one attempt to connect.
	probeTimeout = 2 * time.Second
	// probeTime is how long a probe is open at most: the caller may be gone.
	probeTime = 15 * time.Second
	// maxProbes bounds the probes that are open.
	maxProbes = 256
)

// Probe implements [Balancer]. It connects to each address of the servers; a Unix socket has none.
func (l *Local) Probe(ctx context.Context, r ProbeRequest) ([]Probed, error) {
	if err := errors.Join(checkNumber("servers", len(r.Servers)), checkNumber("connections", len(r.Close))); err != nil {
		return nil, err
	}
	if len(r.Close) > 0 {
		l.endProbes(r.Close...)
		return nil, nil
	}
	addresses, err := l.addresses(ctx, r.Servers)
	if err != nil {
		return nil, asError(err)
	}
	to, err := endpoints(ctx, addresses)
	if err != nil {
		return nil, asError(err)
	}
	ends := slices.Concat(to...)
	slices.SortFunc(ends, netip.AddrPort.Compare)
	ends = slices.Compact(ends)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.probes)+len(ends) > maxProbes {
		return nil, refusal("probe: more than %d connections", maxProbes)
	}
	return l.connect(ctx, ends), nil
}

// connect connects to all ends at once.
func (l *Local) connect(ctx context.Context, ends []netip.AddrPort) []Probed {
	all := make([]Probed, len(ends))
	var dials errgroup.Group
	var mu sync.Mutex
	for i, end := range ends {
		dials.Go(func() error {
			d := net.Dialer{Timeout: probeTimeout}
			conn, err := d.DialContext(ctx, "tcp", end.String())
			all[i].Far = end
			if err != nil {
				all[i].Error = err.Error()
				return nil
			}
			near := conn.LocalAddr().(*net.TCPAddr).AddrPort()
			all[i].Near = netip.AddrPortFrom(near.Addr().Unmap().WithZone(""), near.Port())
			mu.Lock()
			defer mu.Unlock()
			l.probes[all[i].Near] = conn
			time.AfterFunc(probeTime, func() { conn.Close() })
			return nil
		})
	}
	_ = dials.Wait()
	return all
}

// endProbes closes the probes with these near ends; none named: all.
func (l *Local) endProbes(near ...netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for end, conn := range l.probes {
		if len(near) == 0 || slices.Contains(near, end) {
			conn.Close()
			delete(l.probes, end)
		}
	}
}
