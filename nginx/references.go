package nginx

import (
	"slices"
	"strings"
)

// A DirectReference is a place outside of upstreams that names the target: down
// has no effect there.
type DirectReference struct {
	Reference
	// Certain is false where the word may mean something else than an address
	// to send requests to, such as a host name without a port in a map.
	Certain bool
}

// DirectReferences are the places outside of upstreams that name the target, or
// the address of one of servers.
func (c *Config) DirectReferences(t Target, servers []*Server) []DirectReference {
	var found []DirectReference
	for _, r := range c.References {
		a, explicit, ok := referenced(r)
		if !ok {
			continue
		}
		named := func(u Target) bool {
			if a.Port == 0 {
				u.Port = 0
			}
			return u.Matches(a)
		}
		if !named(t) && !slices.ContainsFunc(servers, func(s *Server) bool { return named(Target{s.Address}) }) {
			continue
		}
		if !c.isUpstream(r.module, a) {
			found = append(found, DirectReference{r, explicit})
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
