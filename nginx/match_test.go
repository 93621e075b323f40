package nginx

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// twoModules has one host in several upstreams, on several ports.
const twoModules = `
http {
	upstream web { server 192.168.1.10:8080; server 192.168.1.11:8080; server 192.168.1.12:8080 backup; }
	upstream api { server 192.168.1.10:9090 weight=2; server app1.example.com:9090; server unix:/run/app.sock; }
	upstream bad { server 192.168.1.10:http; server $app1; server ""; }
}
stream {
	upstream web { server 192.168.1.10:5432; server [2001:db8::1]:5432; }
	upstream http/web { server 192.168.1.10:1; }
}`

func addresses(servers []*Server) string {
	var all []string
	for _, s := range servers {
		all = append(all, fmt.Sprintf("%s/%s %s", s.Upstream.Module, s.Upstream.Name, s.Address))
	}
	return strings.Join(all, ", ")
}

// Match is, as a plan finds them, the servers the target names, in the order of the configuration,
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

func TestMatch(t *testing.T) {
	c := parse(t, twoModules)
	cases := []struct {
		target    string
		upstreams []string
		want      string
	}{
		{"192.168.1.10", nil, "http/web 192.168.1.10:8080, http/api 192.168.1.10:9090, stream/web 192.168.1.10:5432, stream/http/web 192.168.1.10:1"},
		{"192.168.1.10:8080", nil, "http/web 192.168.1.10:8080"},
		{"192.168.1.10", []string{"web"}, "http/web 192.168.1.10:8080, stream/web 192.168.1.10:5432"},
		{"192.168.1.10", []string{"stream/web"}, "stream/web 192.168.1.10:5432"},
		{"192.168.1.10", []string{"http/web"}, "http/web 192.168.1.10:8080, stream/http/web 192.168.1.10:1"},
		{"192.168.1.10", []string{"api", "stream/http/web"}, "http/api 192.168.1.10:9090, stream/http/web 192.168.1.10:1"},
		{"192.168.1.10", []string{"none"}, ""},
		{"192.168.1.1", nil, ""},
		{"app1.example.com", nil, "http/api app1.example.com:9090"},
		{"2001:db8::1", nil, "stream/web [2001:db8::1]:5432"},
		{"unix:/run/app.sock", nil, "http/api unix:/run/app.sock"},
		{"unix:/run/app", nil, ""},
	}
	for _, m := range cases {
		if got := addresses(c.Match(target(t, m.target), m.upstreams)); got != m.want {
			t.Errorf("Match(%s, %q) = %s, want %s", m.target, m.upstreams, got, m.want)
		}
	}
	if got := c.Unreadable(target(t, "192.168.1.10:8080")); len(got) != 1 || got[0].Words()[1].Text != "192.168.1.10:http" {
		t.Errorf("Unreadable = %v", got)
	}
	if got := c.Unreadable(target(t, "unix:/run/app.sock")); got != nil {
		t.Errorf("Unreadable = %v", got)
	}
	if got, want := Names(c.Match(target(t, "app1.example.com"), nil)), []string{"app1.example.com"}; !slices.Equal(got, want) {
		t.Errorf("Names = %q", got)
	}
	var all []*Server
	for _, u := range c.Upstreams {
		for _, s := range u.Servers {
			if s.Err == nil {
				all = append(all, s, s)
			}
		}
	}
	// nginx resolves "$app1" as any name: it knows no variables there.
	if got, want := Names(all), []string{"app1.example.com", "$app1"}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q", got, want)
	}
}

func TestNear(t *testing.T) {
	c := parse(t, twoModules)
	cases := []struct {
		target string
		n      int
		want   string
	}{
		{"192.168.1.10:8081", 1, "http/web 192.168.1.10:8080"},
		{"192.168.1.11:9090", 1, "http/web 192.168.1.11:8080"},
		{"192.168.1.13", 2, "http/web 192.168.1.10:8080, http/web 192.168.1.11:8080"},
		{"app2.example.com", 3, "http/api app1.example.com:9090"},
		{"app1.exmaple.com", 3, "http/api app1.example.com:9090"},
		{"unix:/run/ap.sock", 3, "http/api unix:/run/app.sock"},
		{"2001:db8::2", 3, "stream/web [2001:db8::1]:5432"},
		{"database.internal", 3, ""},
		{"10.20.30.40", 3, ""},
	}
	for _, m := range cases {
		if got := addresses(c.Near(target(t, m.target), m.n)); got != m.want {
			t.Errorf("Near(%s, %d) = %s, want %s", m.target, m.n, got, m.want)
		}
	}
}

func TestDirectReferences(t *testing.T) {
	const upstreams = `
	upstream app { server 192.168.1.10:8080; server app1.example.com:8080; server unix:/run/app.sock; }
	upstream app2.example.com { server 192.168.1.11:8080; }
	`
	cases := []struct {
		target, http string
		want         string // each as directive text certain
	}{
		{"192.168.1.10", "server { location / { proxy_pass http://192.168.1.10:8080/x?y; } }", "proxy_pass http://192.168.1.10:8080 true"},
		{"192.168.1.10", "server { location / { proxy_pass http://192.168.1.10; } }", "proxy_pass http://192.168.1.10 true"},
		{"192.168.1.10:8080", "server { location / { proxy_pass http://192.168.1.10; } }", ""},
		{"192.168.1.10:80", "server { location / { proxy_pass http://192.168.1.10; } }", "proxy_pass http://192.168.1.10 true"},
		{"192.168.1.10:443", "server { location / { proxy_pass https://192.168.1.10; } }", "proxy_pass https://192.168.1.10 true"},
		{"192.168.1.10:443", "server { location / { proxy_pass HTTPS://192.168.1.10; } }", "proxy_pass HTTPS://192.168.1.10 true"},
		{"192.168.1.10:443", "server { location / { grpc_pass grpcs://192.168.1.10; } }", "grpc_pass grpcs://192.168.1.10 true"},
		{"192.168.1.10", "server { location / { proxy_pass http://192.168.1.10$request_uri; } }", "proxy_pass http://192.168.1.10 true"},
		{"192.168.1.10:8080", "server { location / { proxy_pass http://192.168.1.10:$port; } }", "proxy_pass http://192.168.1.10 true"},
		{"192.168.1.10", "server { location / { fastcgi_pass 192.168.1.10:9000; } }", "fastcgi_pass 192.168.1.10:9000 true"},
		{"192.168.1.10", "server { location / { grpc_pass grpc://192.168.1.10:9000; uwsgi_pass 192.168.1.10:1; scgi_pass 192.168.1.10:2; memcached_pass 192.168.1.10:3; } }",
			"grpc_pass grpc://192.168.1.10:9000 true, uwsgi_pass 192.168.1.10:1 true, scgi_pass 192.168.1.10:2 true, memcached_pass 192.168.1.10:3 true"},
		{"2001:db8::1", "server { location / { proxy_pass http://[2001:db8::1]:8080/; } }", "proxy_pass http://[2001:db8::1]:8080 true"},
		{"unix:/run/app.sock", "server { location / { proxy_pass http://unix:/run/app.sock:/x; } }", "proxy_pass http://unix:/run/app.sock true"},
		{"unix:/run/app.sock", "server { location / { fastcgi_pass unix:/run/app.sock; } }", "fastcgi_pass unix:/run/app.sock true"},
		{"192.168.1.10", "server { location / { proxy_pass http://app; } location /x { proxy_pass http://$backend; } location /y { proxy_pass $x; } }", ""},
		{"192.168.1.10", "server { location / { proxy_pass http://192.168.1.100:8080; } }", ""},
		{"app1.example.com", "server { location / { proxy_pass http://App1.example.com:8080; } }", "proxy_pass http://App1.example.com:8080 true"},
		{"app2.example.com", "server { location / { proxy_pass http://app2.example.com; } }", ""},
		{"192.168.1.10", "map $uri $b { default app; /x 192.168.1.10:8080; /y http://192.168.1.10; /z 192.168.1.10; /w 192.168.1.11:8080; }",
			"map 192.168.1.10:8080 true, map http://192.168.1.10 true, map 192.168.1.10 false"},
		{"app1.example.com", "map $uri $b { app1.example.com x; x app1.example.com; }", "map app1.example.com false"},
		{"192.168.1.10", "geo $b { 192.168.1.10 x; 10.0.0.0/8 192.168.1.10:8080; }", "geo 192.168.1.10:8080 true"},
		{"192.168.1.10", "split_clients $uri $b { 50% 192.168.1.10:8080; * app; }", "split_clients 192.168.1.10:8080 true"},
		{"192.168.1.10", "server { set $b 192.168.1.10:8080; set $c 192.168.1.10; allow 192.168.1.10; proxy_set_header X 192.168.1.10; }",
			"set 192.168.1.10:8080 true, set 192.168.1.10 false"},
	}
	for _, b := range cases {
		c := parse(t, "http {"+upstreams+b.http+"}")
		var got []string
		for _, found := range c.DirectReferences(target(t, b.target), nil) {
			got = append(got, fmt.Sprintf("%s %s %t", found.Directive, found.Text, found.Certain))
			if found.File.Src[found.At:int(found.At)+len(found.Text)] != found.Text || found.Line() != 4 {
				t.Errorf("%s: found at %d, line %d", b.http, found.At, found.Line())
			}
		}
		if s := strings.Join(got, ", "); s != b.want {
			t.Errorf("target %s, %s:\ngot  %s\nwant %s", b.target, b.http, s, b.want)
		}
	}
}

// What stands before and after the address in a word may be a secret.
func TestDirectReferenceTellsTheAddressAlone(t *testing.T) {
	for _, word := range []string{"SECRET://192.168.1.10:8080", "http://192.168.1.10:8080/SECRET", "http://192.168.1.10:8080?SECRET", "192.168.1.10:8080/SECRET", "http://192.168.1.10:${SECRET}"} {
		c := parse(t, "http { map $uri $to { default "+word+"; } }")
		found := c.DirectReferences(target(t, "192.168.1.10"), nil)
		if len(found) != 1 || strings.Contains(found[0].Text, "SECRET") || !strings.Contains(found[0].Text, "192.168.1.10") {
			t.Errorf("%s: %v", word, found)
		}
	}
}

// The target is one server of a host name's; what else the configuration says
// of the servers it names counts too.
func TestDirectReferencesOfServers(t *testing.T) {
	c := parse(t, `http { upstream app { server 192.168.1.10:8080; }
		upstream db.example.com { server 192.168.1.10; }
		server { location / { proxy_pass http://192.168.1.10:8080; } location /x { proxy_pass http://192.168.1.10:9090; } } }
		stream { server { listen 1; proxy_pass db.example.com:5432; } }`)
	if got := c.DirectReferences(target(t, "app"), c.Upstreams[0].Servers); len(got) != 1 || got[0].Text != "http://192.168.1.10:8080" {
		t.Errorf("DirectReferences = %v", got)
	}
	// An upstream of http is none in stream.
	if got := c.DirectReferences(target(t, "db.example.com"), nil); len(got) != 1 || got[0].Text != "db.example.com:5432" {
		t.Errorf("DirectReferences = %v", got)
	}
}
