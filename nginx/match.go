package nginx

import (
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

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
			if s.Err != nil && t.MentionedIn(s.Words()[1].Text) {
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
			case t.SameHost(s.Address):
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

// Names are the host names, not addresses, among the servers, each once.
func Names(servers []*Server) []string {
	var names []string
	seen := map[string]bool{}
	for _, s := range servers {
		if a := s.Address; a.Unix == "" && !a.IP.IsValid() && a.Host != "" && !seen[a.Host] {
			seen[a.Host] = true
			names = append(names, a.Host)
		}
	}
	return names
}
