package drain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// A Reading is how many connections a gauge counts, and from whom.
type Reading struct {
	Count int
	Peers []remote.Peer // the peers that hold most; empty when the gauge cannot know
	More  int           // peers that are not listed
}

// from names the peers, for a message.
func (r Reading) from() string {
	if len(r.Peers) == 0 || r.Count == 0 {
		return ""
	}
	var texts []string
	for _, p := range r.Peers {
		texts = append(texts, fmt.Sprintf("%s (%d)", p.Addr, p.Count))
	}
	if r.More > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", r.More))
	}
	return ", from " + strings.Join(texts, ", ")
}

// A gauge counts open connections.
type gauge interface {
	read(ctx context.Context) (Reading, error)
	describe() string
}

// backendGauge is ss on the backend. It counts by port and not by address:
// behind address translation the backend knows itself by another one.
type backendGauge struct {
	host  remote.Host
	ports []uint16
}

func (g backendGauge) describe() string {
	return fmt.Sprintf("ss on %s, port %s", g.host.Name(), joinPorts(g.ports))
}

func (g backendGauge) read(ctx context.Context) (Reading, error) {
	return reading(remote.LocalSockets(ctx, g.host, g.ports))
}

func joinPorts(ports []uint16) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, fmt.Sprint(p))
	}
	return strings.Join(texts, ", ")
}

func reading(s remote.Sockets, err error) (Reading, error) {
	return Reading{Count: s.Count, Peers: s.Peers, More: max(0, s.Total-len(s.Peers))}, err
}

// lbGauge is ss on the load balancers, towards the servers.
type lbGauge struct {
	parts []LBPlan
}

func (g lbGauge) describe() string {
	var names []string
	for _, p := range g.parts {
		names = append(names, p.LB.Host.Name())
	}
	return "ss on " + strings.Join(names, ", ") + ", connections to the servers"
}

func (g lbGauge) read(ctx context.Context) (Reading, error) {
	var sum Reading
	for _, p := range g.parts {
		dst, err := destinations(ctx, p.LB.Host, p.Servers)
		if err != nil {
			return Reading{}, err
		}
		if len(dst) == 0 {
			continue
		}
		r, err := reading(remote.RemoteSockets(ctx, p.LB.Host, dst))
		if err != nil {
			return Reading{}, err
		}
		// The peers are the servers themselves here, which says nothing new.
		sum.Count += r.Count
	}
	return sum, nil
}

// destinations is the addresses of the servers as the host resolves them.
func destinations(ctx context.Context, h remote.Host, servers []*nginx.Server) ([]netip.AddrPort, error) {
	var dst []netip.AddrPort
	add := func(ap netip.AddrPort) {
		if !slices.Contains(dst, ap) {
			dst = append(dst, ap)
		}
	}
	for _, s := range servers {
		switch {
		case s.Address.Unix != "":
		case s.Address.IP.IsValid():
			add(netip.AddrPortFrom(s.Address.IP, s.Address.Port))
		default:
			addrs, err := h.Lookup(ctx, s.Address.Host)
			if err != nil {
				return nil, err
			}
			for _, a := range addrs {
				add(netip.AddrPortFrom(a, s.Address.Port))
			}
		}
	}
	return dst, nil
}

// unixGauge counts the connections to unix sockets, which are all on the load
// balancer itself.
type unixGauge struct {
	host  remote.Host
	paths []string
}

func (g unixGauge) describe() string {
	return fmt.Sprintf("ss on %s, %s", g.host.Name(), strings.Join(g.paths, ", "))
}

func (g unixGauge) read(ctx context.Context) (Reading, error) {
	var sum Reading
	for _, p := range g.paths {
		s, err := remote.UnixSockets(ctx, g.host, p)
		if err != nil {
			return Reading{}, err
		}
		sum.Count += s.Count
	}
	return sum, nil
}

// statusGauge is the stub_status of the backend's own nginx.
type statusGauge struct {
	host remote.Host // where it is asked from
	url  string
}

func (g statusGauge) describe() string { return "stub_status at " + g.url }

func (g statusGauge) read(ctx context.Context) (Reading, error) {
	code, body, err := remote.Get(ctx, g.host, g.url)
	if err != nil {
		return Reading{}, err
	}
	if code != 200 {
		return Reading{}, fmt.Errorf("%s answered with status %d", g.url, code)
	}
	s, err := nginx.ParseStubStatus(body)
	if err != nil {
		return Reading{}, fmt.Errorf("%s: %w", g.url, err)
	}
	return Reading{Count: s.Open()}, nil
}
