package nginx

import (
	"fmt"
	"slices"
	"strings"
)

// A streamServer is a server block in stream. It passes what its listens receive to one place.
type streamServer struct {
	file *File
	at   int32
	transports
	pass string // the argument of proxy_pass
}

// transports are those that something is reached over.
type transports struct{ tcp, udp bool }

func (t *transports) add(more transports) { t.tcp, t.udp = t.tcp || more.tcp, t.udp || more.udp }

// directive notes what matters (ngx_stream_core_listen, ngx_stream_proxy_pass).
func (s *streamServer) directive(words []Word) {
	switch {
	case len(words) < 2:
	case words[0].Text == "listen":
		isUDP := slices.ContainsFunc(words[2:], func(w Word) bool { return w.Text == "udp" })
		s.add(transports{tcp: !isUDP, udp: isUDP})
	case words[0].Text == "proxy_pass":
		s.pass = words[1].Text
	}
}

// UDPServer returns the place of the first server in stream that listens on UDP, such as
// /etc/nginx/nginx.conf:12; empty if there is none.
func (c *Config) UDPServer() string {
	for _, s := range c.streamServers {
		if s.udp {
			return fmt.Sprintf("%s:%d", s.file.Path, lineOf(s.file.Src, int(s.at)))
		}
	}
	return ""
}

// anyName stands for what a proxy_pass with a variable names.
const anyName = "$"

// findUDP finds the upstreams that are reached over UDP. A proxy_pass with a variable may name any upstream.
// Over TCP it counts for an upstream with UDP only if a map or the like names that upstream.
func (c *Config) findUDP() {
	if c.UDPServer() == "" {
		return
	}
	passed := map[string]*transports{anyName: {}} // by name, in lower case: nginx compares so
	reached := func(name string) *transports {
		name = strings.ToLower(name)
		if passed[name] == nil {
			passed[name] = &transports{}
		}
		return passed[name]
	}
	for _, s := range c.streamServers {
		if strings.Contains(s.pass, "$") {
			passed[anyName].add(s.transports)
		} else {
			reached(s.pass).add(s.transports)
		}
	}
	values := map[string]bool{} // of variables
	for _, r := range c.References {
		if r.module == "stream" && r.Directive != "proxy_pass" {
			values[strings.ToLower(r.Text)] = true
		}
	}
	for _, u := range c.Upstreams {
		if u.Module != "stream" {
			continue
		}
		direct, variable := reached(u.Name), passed[anyName]
		isTCP := direct.tcp || variable.tcp && (!direct.udp || values[strings.ToLower(u.Name)])
		u.UDP = direct.udp || variable.udp
		u.OnlyUDP = u.UDP && !isTCP
	}
}
