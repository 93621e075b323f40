package nginx

import (
	"fmt"
	"strings"
	"testing"
)

// Which upstreams a stream server passes UDP to, and which of them get no TCP connection.
func TestUDP(t *testing.T) {
	const pool = "upstream dns { server 10.0.0.1:53; }\nupstream web { server 10.0.0.1:80; }\n"
	for _, test := range []struct{ name, stream, want string }{
		{"no server", "", "dns no, web no"},
		{"TCP", "server { listen 53; proxy_pass dns; }", "dns no, web no"},
		{"UDP", "server { listen 53 udp; proxy_pass dns; }", "dns only, web no"},
		{"its parameters", "server { listen [::]:53 reuseport 'udp' rcvbuf=1m; proxy_pass \"dns\"; }", "dns only, web no"},
		{"the address is no parameter", "server { listen udp:53; proxy_pass dns; }", "dns no, web no"},
		{"after proxy_pass", "server { proxy_pass dns; listen 53 udp; }", "dns only, web no"},
		{"a name in capitals", "server { listen 53 udp; proxy_pass DNS; }", "dns only, web no"},
		{"one server, both", "server { listen 53; listen 53 udp; proxy_pass dns; }", "dns also, web no"},
		{"two servers", "server { listen 53; proxy_pass dns; } server { listen 53 udp; proxy_pass dns; }", "dns also, web no"},
		{"each its own", "server { listen 80; proxy_pass web; } server { listen 53 udp; proxy_pass dns; }", "dns only, web no"},
		{"an address", "server { listen 53 udp; proxy_pass 10.0.0.1:53; }", "dns no, web no"},
		{"no proxy_pass", "server { listen 53 udp; return x; }", "dns no, web no"},
		{"commented out", "server { listen 53; # udp\n proxy_pass dns; }", "dns no, web no"},
		{"included", "include udp.conf;", "dns only, web no"},
		{"its parts are included", "server { include part-*.conf; }", "dns only, web no"},

		// A variable may be any name.
		{"UDP by a variable", "server { listen 53 udp; proxy_pass $to; }", "dns only, web only"},
		{"and TCP", "server { listen 53 udp; proxy_pass $to; } server { listen 80; proxy_pass web; }", "dns only, web also"},
		{"a part of the name", "server { listen 53 udp; proxy_pass ${to}s; } server { listen 80; proxy_pass $to; }", "dns also, web also"},
		{"TCP by a variable", "server { listen 80; proxy_pass $to; } server { listen 53 udp; proxy_pass dns; }", "dns only, web no"},
		{"that may be it", "map $x $to { default web; a dns; } server { listen 80; proxy_pass $to; } server { listen 53 udp; proxy_pass dns; }", "dns also, web no"},
	} {
		t.Run(test.name, func(t *testing.T) {
			main := "/etc/nginx/nginx.conf"
			files := map[string]string{
				main:                      "http {\n upstream web { server 10.0.0.1:80; } server { listen 80 udp; location / { proxy_pass http://web; } }\n}\nstream {\n" + pool + test.stream + "\n}",
				"/etc/nginx/udp.conf":     "server { listen 53 udp; proxy_pass dns; }",
				"/etc/nginx/part-1.conf":  "listen 53 udp;",
				"/etc/nginx/part-2.conf":  "proxy_pass dns;",
				"/etc/nginx/unused1.conf": "listen 53;",
			}
			conf, err := load(t.Context(), memory(files), main)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range conf.Upstreams {
				how := map[[2]bool]string{{false, false}: "no", {true, false}: "also", {true, true}: "only"}[[2]bool{u.UDP, u.OnlyUDP}]
				if u.Module == "http" {
					if how != "no" {
						t.Errorf("the upstream in http: %s", how)
					}
					continue
				}
				got = append(got, fmt.Sprintf("%s %s", u.Name, how))
			}
			if got := strings.Join(got, ", "); got != test.want {
				t.Errorf("got %s, not %s", got, test.want)
			}
		})
	}
}

// The first UDP server is named by its place: any reload ends its sessions.
func TestUDPServer(t *testing.T) {
	for _, test := range []struct{ src, want string }{
		{"stream { server { listen 53; proxy_pass a:1; } }", ""},
		{"http { server { listen 443 udp; } }", ""},
		{"stream {\nserver { listen 53; proxy_pass a:1; }\nserver {\nlisten 53 udp; proxy_pass a:1; } }", "/c:3"},
	} {
		conf, err := load(t.Context(), memory{"/c": test.src}, "/c")
		if err != nil || conf.UDPServer() != test.want {
			t.Errorf("%s: got %q, %v", test.src, conf.UDPServer(), err)
		}
	}
}
