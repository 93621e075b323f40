package nginx

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

// Match is the servers the target names, in the order of the configuration,
// narrowed to the named upstreams when there are any. A name is an upstream's
// name, or http/NAME or stream/NAME where both have it.
func (c *Config) Match(t Target, upstreams []string) []*Server {
	var found []*Server
	for _, u := range c.Upstreams {
		if len(upstreams) > 0 && !slices.ContainsFunc(upstreams, u.Named) {
			continue
		}
		for _, s := range u.Servers {
			if s.Err == nil && t.Matches(s.Address) {
				found = append(found, s)
			}
		}
	}
	return found
}

// Named tells whether name means this upstream: NAME, http/NAME or
// stream/NAME. An upstream's own name may hold a slash too.
func (u *Upstream) Named(name string) bool {
	return name == u.Name || name == u.Module+"/"+u.Name
}

// DisplayName is the upstream's name, with its module before it where http and
// stream have one of that name each.
func (c *Config) DisplayName(u *Upstream) string {
	for _, other := range c.Upstreams {
		if other.Name == u.Name && other.Module != u.Module {
			return u.Module + "/" + u.Name
		}
	}
	return u.Name
}

// Unreadable is the servers whose address could not be read but whose text
// holds the target's host: they may be the target.
func (c *Config) Unreadable(t Target) []*Server {
	var found []*Server
	for _, u := range c.Upstreams {
		for _, s := range u.Servers {
			if s.Err != nil && t.MentionedIn(s.Words[1].Text) {
				found = append(found, s)
			}
		}
	}
	return found
}

// MentionedIn tells whether text holds the target's host or socket path.
func (t Target) MentionedIn(text string) bool {
	if t.Unix != "" {
		return strings.Contains(text, t.Unix)
	}
	return strings.Contains(strings.ToLower(text), t.Host)
}

// Near is up to n servers that the operator may have meant by a target that
// matches none: the same host on another port first, then the nearest
// spellings.
func (c *Config) Near(t Target, n int) []*Server {
	type candidate struct {
		s    *Server
		cost int
	}
	var all []candidate
	wanted := t.String()
	limit := max(2, len(wanted)/4)
	for _, u := range c.Upstreams {
		for _, s := range u.Servers {
			if s.Err != nil {
				continue
			}
			text := s.Address.String()
			if t.Unix == "" && t.Port == 0 {
				text = s.Address.bracketed()
			}
			switch d := len(text) - len(wanted); {
			case t.Unix == "" && s.Address.Unix == "" && t.sameHost(s.Address):
				all = append(all, candidate{s, 0})
			case d <= limit && -d <= limit:
				if cost := smetrics.WagnerFischer(text, wanted, 1, 1, 1); cost <= limit {
					all = append(all, candidate{s, cost})
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return a.cost - b.cost })
	var found []*Server
	for _, c := range all {
		if len(found) < n {
			found = append(found, c.s)
		}
	}
	return found
}

// A Bypass is a place outside of upstreams that names the target: down does
// not reach it.
type Bypass struct {
	Reference
	// Certain is false where the word may mean something else than an address
	// to send requests to, such as a host name without a port in a map.
	Certain bool
}

// Bypasses is the places outside of upstreams that name the target, or the
// address of one of servers.
func (c *Config) Bypasses(t Target, servers []*Server) []Bypass {
	var found []Bypass
	for _, r := range c.References {
		a, explicit, ok := referenced(r)
		if !ok || c.isUpstream(r.module, a) {
			continue
		}
		named := func(u Target) bool {
			if a.Port == 0 {
				u.Port = 0
			}
			return u.Matches(a)
		}
		if named(t) || slices.ContainsFunc(servers, func(s *Server) bool { return named(Target{s.Address}) }) {
			found = append(found, Bypass{r, explicit})
		}
	}
	return found
}

// isUpstream tells whether a's host is the name of an upstream of the module:
// nginx takes that before it looks for a host.
func (c *Config) isUpstream(module string, a Address) bool {
	return slices.ContainsFunc(c.Upstreams, func(u *Upstream) bool {
		return u.Module == module && strings.EqualFold(u.Name, a.Host)
	})
}

// referenced is the address in a word such as http://192.168.1.10:8080/path,
// 192.168.1.10:8080 or http://unix:/run/app.sock:/path. Port 0 means that the
// port is not known. explicit tells that the word can hardly be anything else
// than an address.
func referenced(r Reference) (a Address, explicit, ok bool) {
	text, port := r.Text, uint16(0)
	if strings.HasSuffix(r.Directive, "_pass") {
		explicit, port = true, DefaultPort
	}
	if scheme, rest, found := strings.Cut(text, "://"); found {
		explicit, port = true, DefaultPort
		if strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "grpcs") {
			port = 443
		}
		text = rest
	}
	if rest, found := cutPrefixFold(text, "unix:"); found {
		rest, _, _ = strings.Cut(rest, ":")
		return Address{Unix: rest}, true, rest != ""
	}
	if i := strings.IndexAny(text, "/?$"); i >= 0 {
		// What follows the address does not matter, but for a variable in
		// place of the port: then it may be any.
		if strings.HasSuffix(text[:i], ":") {
			text, port = text[:i-1], 0
		} else {
			text = text[:i]
		}
	}
	a, err := splitAddress(text)
	if err != nil {
		return Address{}, false, false
	}
	if a.Port == 0 {
		a.Port = port
	} else {
		explicit = true
	}
	return a, explicit, true
}

// Names are the host names, not addresses, among the servers.
func Names(servers []*Server) []string {
	var names []string
	for _, s := range servers {
		if s.Address.Unix == "" && s.Address.IP == (netip.Addr{}) && !slices.Contains(names, s.Address.Host) {
			names = append(names, s.Address.Host)
		}
	}
	return names
}
