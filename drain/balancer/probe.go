package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
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
	if len(ends) > maxProbes {
		return nil, refusal("probe: %d addresses, more than %d", len(ends), maxProbes)
	}
	if !l.reserve(len(ends)) {
		return nil, &Error{Code: CodeBusy, Message: fmt.Sprintf("probe: %d connections are open", maxProbes)}
	}
	defer l.reserve(-len(ends))
	return l.connect(ctx, ends), nil
}

// reserve keeps places for n more probes, and gives them back if n is negative.
func (l *Local) reserve(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > 0 && len(l.probes)+l.probing+n > maxProbes {
		return false
	}
	l.probing += n
	return true
}

// connect connects to all ends at once.
func (l *Local) connect(ctx context.Context, ends []netip.AddrPort) []Probed {
	all := make([]Probed, len(ends))
	var dials errgroup.Group
	for i, end := range ends {
		dials.Go(func() error {
			all[i].Far = end
			d := net.Dialer{Timeout: probeTimeout}
			conn, err := d.DialContext(ctx, "tcp", end.String())
			if err != nil {
				all[i].Error, all[i].Refused = err.Error(), errors.Is(err, syscall.ECONNREFUSED)
				return nil
			}
			l.traffic.own(conn)
			all[i].Near = endOf(conn.LocalAddr().(*net.TCPAddr))
			l.mu.Lock()
			defer l.mu.Unlock()
			l.probes[all[i].Ends] = conn
			time.AfterFunc(probeTime, func() { l.expire(all[i].Ends, conn) })
			return nil
		})
	}
	_ = dials.Wait()
	return all
}

// expire closes a probe that its caller has not closed.
func (l *Local) expire(ends Ends, conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	conn.Close()
	if l.probes[ends] == conn {
		delete(l.probes, ends)
	}
}

// endProbes closes the probes with these ends; none named: all.
func (l *Local) endProbes(named ...Ends) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ends, conn := range l.probes {
		if len(named) == 0 || slices.Contains(named, ends) {
			conn.Close()
			delete(l.probes, ends)
		}
	}
}
