package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drainctl/drainctl/nginx"
)

const (
	// lookupTimeout bounds the lookups of a plan.
	lookupTimeout = 5 * time.Second
	// maxLookups bounds how many other names are looked up, and lookupsAtOnce
	// how many at a time.
	maxLookups    = 64
	lookupsAtOnce = 16
)

// resolve is the addresses of a server.
func resolve(ctx context.Context, a nginx.Address) ([]netip.Addr, error) {
	if a.IP.IsValid() {
		return []netip.Addr{a.IP}, nil
	}
	return lookup(ctx, a.Host)
}

// getentNotFound is the exit status with which getent says "no such name".
const getentNotFound = 2

// lookup asks getent for the addresses of a name: it goes by nsswitch.conf, as
// nginx does, which Go's own resolver need not.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if strings.HasPrefix(host, "-") {
		return nil, fmt.Errorf("look up %q: not a host name", host)
	}
	out, err := exec.CommandContext(ctx, "getent", "ahosts", host).Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == getentNotFound {
		return nil, fmt.Errorf("look up %s: no such host", host)
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	var addrs []netip.Addr
	for line := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if a, err := netip.ParseAddr(word); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("look up %s: no address in %.100q", host, out)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// lookupAll looks up many names at once.
func lookupAll(ctx context.Context, hosts []string) map[string]Name {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found := map[string]Name{}
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, lookupsAtOnce)
	for _, host := range hosts {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			n := Name{Host: host}
			var err error
			if n.Addresses, err = lookup(ctx, host); err != nil {
				n.Error = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			found[host] = n
		})
	}
	all.Wait()
	return found
}

// names looks up the host names among the servers, and finds the servers that
// reach the same hosts by another name.
func (r *reading) names(ctx context.Context) {
	names := nginx.Names(r.servers)
	found := lookupAll(ctx, names)
	addresses := map[netip.Addr]bool{}
	for _, host := range names {
		n := found[host]
		r.Names = append(r.Names, n)
		for _, a := range n.Addresses {
			addresses[a] = !a.IsLoopback()
		}
	}
	ports := map[uint16]bool{}
	for _, s := range r.servers {
		if s.Address.IP.IsValid() && !s.Address.IP.IsLoopback() {
			addresses[s.Address.IP] = true
		}
		ports[s.Address.Port] = true
	}
	r.otherNames(ctx, addresses, ports)
}

// otherNames adds the servers, none of the query's own, that are at one of
// addresses and ports, and whose line names the host another way.
func (r *reading) otherNames(ctx context.Context, addresses map[netip.Addr]bool, ports map[uint16]bool) {
	if len(addresses) == 0 {
		return
	}
	var others []*nginx.Server
	known := map[*nginx.Server]bool{}
	for _, s := range r.servers {
		known[s] = true
	}
	hosts := map[string]bool{}
	for _, u := range r.conf.Upstreams {
		for _, s := range u.Servers {
			if s.Err != nil || s.Address.Unix != "" || known[s] || !ports[s.Address.Port] {
				continue
			}
			switch {
			case s.Address.IP.IsValid():
				if addresses[s.Address.IP] {
					others = append(others, s)
				}
			case len(hosts) < maxLookups || hosts[s.Address.Host]:
				hosts[s.Address.Host] = true
				others = append(others, s)
			}
		}
	}
	found := lookupAll(ctx, slices.Sorted(maps.Keys(hosts)))
	for _, s := range others {
		ips := found[s.Address.Host].Addresses
		if s.Address.IP.IsValid() {
			ips = []netip.Addr{s.Address.IP}
		}
		for _, ip := range ips {
			if addresses[ip] && !r.excludes(s) {
				r.OtherNames = append(r.OtherNames, OtherName{Server: r.describe(s), Address: ip})
				break
			}
		}
	}
}

// excludes tells whether a server is one that the targets name, in an upstream
// that the query leaves out.
func (r *reading) excludes(s *nginx.Server) bool {
	return slices.ContainsFunc(r.Excluded, func(e Server) bool { return e.File == s.File.Path && e.At == int(s.At) })
}
