package nginx

import (
	"slices"
	"strings"
)

// A DirectReference is a place outside of upstreams that names the target: down
// has no effect there.
type DirectReference struct {
	Reference // its Text is the address alone: the rest of the word may hold secrets
	// Certain is false where the word may mean something else than an address
	// to send requests to, such as a host name without a port in a map.
	Certain bool
}

// DirectReferences are the places outside of upstreams that name the target, or
// the address of one of servers.
func (c *Config) DirectReferences(t Target, servers []*Server) []DirectReference {
	var found []DirectReference
	for _, r := range c.References {
		a, text, explicit, ok := referenced(r)
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
			r.Text = text
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

// schemes are those that a URL of an address may have.
var schemes = []string{"http", "https", "grpc", "grpcs"}

// referenced is the address in a word such as http://192.168.1.10:8080/path,
// 192.168.1.10:8080 or http://unix:/run/app.sock:/path. Port 0 means that the
// port is not known. text is the address as it is written, with its scheme.
// explicit tells that the word can hardly be anything else than an address.
func referenced(r Reference) (a Address, text string, explicit, ok bool) {
	text, scheme, port := r.Text, "", uint16(0)
	if strings.HasSuffix(r.Directive, "_pass") {
		explicit, port = true, DefaultPort
	}
	if before, rest, found := strings.Cut(text, "://"); found {
		explicit, port = true, DefaultPort
		if strings.EqualFold(before, "https") || strings.EqualFold(before, "grpcs") {
			port = 443
		}
		if slices.Contains(schemes, strings.ToLower(before)) {
			scheme = before + "://"
		}
		text = rest
	}
	if path, found := cutPrefixFold(text, "unix:"); found {
		path, _, _ = strings.Cut(path, ":")
		return Address{Unix: path}, scheme + text[:len("unix:")+len(path)], true, path != ""
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
		return Address{}, "", false, false
	}
	if a.Port == 0 {
		a.Port = port
	} else {
		explicit = true
	}
	return a, scheme + text, explicit, true
}
