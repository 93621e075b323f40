package drain

import (
	"strings"
	"testing"
	"time"
)

func TestGuardOfLiveServers(t *testing.T) {
	for _, test := range []struct {
		name     string
		servers  string
		minUp    int
		refusals []string
		warnings []string
	}{
		{"three", "server 10.0.0.1; server 10.0.0.2; server 10.0.0.3;", 1, nil, nil},
		{"the only one", "server 10.0.0.1;", 1, []string{"upstream web (/etc/nginx/nginx.conf:3) would have no live server left: nginx answers 502", "--min-up 0"}, nil},
		{"the only one, allowed", "server 10.0.0.1;", 0, nil, nil},
		{"the others are down", "server 10.0.0.1; server 10.0.0.2 down; server 10.0.0.3 weight=2 down;", 1, []string{"no live server left: nginx answers 502"}, nil},
		{"a backup is left", "server 10.0.0.1; server 10.0.0.2 backup;", 1, []string{"no live server left but a backup, which is no live primary", "--min-up 0"}, nil},
		{"a backup that is down is left", "server 10.0.0.1; server 10.0.0.2 backup down;", 1, []string{"nginx answers 502"}, nil},
		{"its own backup is no other", "server 10.0.0.1; server 10.0.0.1:81 backup;", 1, []string{"nginx answers 502"}, nil},
		{"the backup goes", "server 10.0.0.1 backup; server 10.0.0.2;", 1, nil, nil},
		{"two left where two must be", "server 10.0.0.1; server 10.0.0.2; server 10.0.0.3;", 2, nil, nil},
		{"two left where three must be", "server 10.0.0.1; server 10.0.0.2; server 10.0.0.3;", 3, []string{"would keep 2 live servers, fewer than 3", "--min-up 2"}, nil},
		{"one left where two must be", "server 10.0.0.1; server 10.0.0.2;", 2, []string{"would keep 1 live server, fewer than 2", "--min-up 1"}, nil},
		{"one left", "server 10.0.0.1; server 10.0.0.2;", 1, nil, []string{"one live server left, 10.0.0.2:80: ", "502s for 10s (fail_timeout)"}},
		{"one left with its own time", "server 10.0.0.1; server 10.0.0.2 fail_timeout=1m;", 1, nil, []string{"502s for 1m (fail_timeout)"}},
		{"one left that is never failed", "server 10.0.0.1; server 10.0.0.2 max_fails=0;", 1, nil, nil},
		{"one left beside a backup", "server 10.0.0.1; server 10.0.0.2; server 10.0.0.3 backup;", 1, nil, []string{"one live server left"}},
		{"all ports of a host", "server 10.0.0.1:1; server 10.0.0.1:2; server 10.0.0.2;", 1, nil, []string{"one live server left, 10.0.0.2:80"}},
		{"down already", "server 10.0.0.1 down;", 1, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := httpConf("upstream web { " + test.servers + " }")
			p := plan(t, ask(t, Drain, host, "10.0.0.1", func(r *Request) { r.MinUp = test.minUp }))
			contains(t, "refusals", refusalTexts(p), test.refusals)
			contains(t, "warnings", p.Warnings, test.warnings)
			// Nothing of this is for an undrain.
			back := plan(t, ask(t, Undrain, host, "10.0.0.1", func(r *Request) { r.MinUp, r.Force = test.minUp, true }))
			contains(t, "refusals of an undrain", refusalTexts(back), nil)
			contains(t, "warnings of an undrain", back.Warnings, nil)
		})
	}
}

// Each upstream is looked at for itself.
func TestGuardOfEveryUpstream(t *testing.T) {
	host := httpConf("upstream a { server 10.0.0.1; }\nupstream b { server 10.0.0.1; server 10.0.0.2; }\nupstream c { server 10.0.0.1; server 10.0.0.2; server 10.0.0.3; }")
	p := plan(t, ask(t, Drain, host, "10.0.0.1"))
	if got := refusalTexts(p); len(got) != 1 || !strings.Contains(got[0], "upstream a (/etc/nginx/nginx.conf:3)") {
		t.Errorf("refusals %q", got)
	}
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "upstream b ") {
		t.Errorf("warnings %q", p.Warnings)
	}
	if got := refusalTexts(plan(t, ask(t, Drain, host, "10.0.0.1", func(r *Request) { r.Upstreams = []string{"b", "c"} }))); len(got) != 0 {
		t.Errorf("refusals %q where only b and c are drained", got)
	}
}

// A service is stopped for all upstreams, so none may be left that uses it.
func TestGuardOfUpstreamsLeftUp(t *testing.T) {
	host := httpConf("upstream a { server 10.0.0.1; server 10.0.0.2; server 10.0.0.3; }\nupstream b { server 10.0.0.1; server 10.0.0.2; }\nupstream c { server 10.0.0.1 down; server 10.0.0.2; }")
	narrow := func(r *Request) { r.Upstreams = []string{"a"} }
	serve := func(r *Request) { r.Upstreams, r.Service = []string{"a"}, "app" }
	const left = "/etc/nginx/nginx.conf:4: 10.0.0.1:80 in b stays up"
	p := plan(t, ask(t, Drain, host, "10.0.0.1", narrow))
	contains(t, "refusals", refusalTexts(p), nil)
	contains(t, "warnings", p.Warnings, []string{left})
	p = plan(t, ask(t, Drain, host, "10.0.0.1", serve))
	contains(t, "refusals", refusalTexts(p), []string{left, "stopping app would cut them", "--upstream b as well"})
	contains(t, "warnings", p.Warnings, nil)
	contains(t, "refusals of an undrain", refusalTexts(plan(t, ask(t, Undrain, host, "10.0.0.1", serve))), nil)
}

func TestGuardOfBypasses(t *testing.T) {
	const pool = "upstream web { server 10.0.0.1:8080; server 10.0.0.2:8080; server 10.0.0.3:8080; server app.example.com:8080; server unix:/run/app.sock; }\n"
	const sure, maybe, not = "sure", "maybe", "not"
	for _, test := range []struct {
		target string
		text   string
		want   string
	}{
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:8080; } }", sure},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:8080/path; } }", sure},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:9999; } }", sure},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1:9999; } }", not},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1; } }", not},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1:$port; } }", sure},
		{"10.0.0.1", "server { location / { fastcgi_pass 10.0.0.1:8080; } }", sure},
		{"10.0.0.1", "server { location / { grpc_pass grpc://10.0.0.1:8080; } }", sure},
		{"10.0.0.1", "map $host $to { default web; old http://10.0.0.1:8080; }", sure},
		{"10.0.0.1", "map $host $to { default web; old 10.0.0.1:8080; }", sure},
		{"10.0.0.1", "map $host $to { default web; old 10.0.0.1; }", maybe},
		{"10.0.0.1", "server { location / { set $to http://10.0.0.1:8080; proxy_pass $to; } }", sure},
		{"10.0.0.1", "split_clients $x $to { 50% 10.0.0.1:8080; * web; }", sure},
		{"10.0.0.1", "server { location / { proxy_pass http://web; } }", not},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.2:8080; } }", not},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.10:8080; } }", not},
		{"10.0.0.1", "# proxy_pass http://10.0.0.1:8080;\nserver { location / { return 200 http://10.0.0.1:8080; } }", not},
		{"app.example.com", "server { location / { proxy_pass http://APP.example.com:8080; } }", sure},
		{"unix:/run/app.sock", "server { location / { proxy_pass http://unix:/run/app.sock:/x; } }", sure},
		{"unix:/run/app.sock", "server { location / { proxy_pass http://unix:/run/app.sock2; } }", not},
	} {
		t.Run(test.target+" "+test.text, func(t *testing.T) {
			host := httpConf(pool + test.text)
			p := plan(t, ask(t, Drain, host, test.target))
			allowed := plan(t, ask(t, Drain, host, test.target, func(r *Request) { r.Allow.Direct = true }))
			contains(t, "refusals when allowed", refusalTexts(allowed), nil)
			switch test.want {
			case sure:
				contains(t, "refusals", refusalTexts(p), []string{"reaches the target outside of an upstream", "--allow-direct"})
				contains(t, "warnings when allowed", allowed.Warnings, []string{"and goes on doing so"})
			case maybe:
				contains(t, "refusals", refusalTexts(p), nil)
				contains(t, "warnings", p.Warnings, []string{"names the target outside of an upstream"})
			default:
				contains(t, "refusals", refusalTexts(p), nil)
				contains(t, "warnings", p.Warnings, nil)
			}
		})
	}
}

func TestGuardOfShutdownTimeout(t *testing.T) {
	for _, test := range []struct {
		cut     string
		timeout time.Duration
		refused string // empty: it is not
	}{
		{"", 5 * time.Minute, ""},
		{"", 0, ""},
		{"0", 0, ""}, // nginx takes 0 for never
		{"30s", 5 * time.Minute, "worker_shutdown_timeout 30s in /etc/nginx/nginx.conf is shorter than --timeout 5m:"},
		{"30", 5 * time.Minute, "worker_shutdown_timeout 30s"},
		{"1m30s", 2 * time.Minute, "--timeout 1m30s, or --allow-shutdown-timeout"},
		{"5m", 5 * time.Minute, ""},
		{"1h", 5 * time.Minute, ""},
		{"1h", 0, "is shorter than --timeout 0 (no limit)"},
		{"500ms", 501 * time.Millisecond, "worker_shutdown_timeout 500ms"},
	} {
		t.Run(test.cut+" "+test.timeout.String(), func(t *testing.T) {
			conf := "events {}\nhttp {" + fourServers + "}"
			if test.cut != "" {
				conf = "worker_shutdown_timeout " + test.cut + ";\n" + conf
			}
			p := plan(t, ask(t, Drain, on(conf), "10.0.0.1", func(r *Request) { r.Timeout = test.timeout }))
			allowed := plan(t, ask(t, Drain, on(conf), "10.0.0.1", func(r *Request) { r.Timeout, r.Allow.ShutdownTimeout = test.timeout, true }))
			contains(t, "refusals when allowed", refusalTexts(allowed), nil)
			if test.refused == "" {
				contains(t, "refusals", refusalTexts(p), nil)
				contains(t, "warnings when allowed", allowed.Warnings, nil)
				return
			}
			contains(t, "refusals", refusalTexts(p), []string{test.refused})
			contains(t, "warnings when allowed", allowed.Warnings, []string{"worker_shutdown_timeout"})
		})
	}
}

func TestGuardOfSeveralAddresses(t *testing.T) {
	host := httpConf("upstream web { server app.example.com:8080; server one.example.com; server local.example.com; server gone.example.com; server 10.0.0.3; server 10.0.0.4; }")
	host.names = map[string][]string{
		"app.example.com": {"10.0.0.1", "10.0.0.2"}, "one.example.com": {"10.0.0.9"}, "local.example.com": {"127.0.0.1", "::1"},
	}
	lb := func(r *Request) { r.Poll = PollLB }
	allow := func(r *Request) { r.Allow.AllAddresses = true }
	service := func(r *Request) { r.Service = "app" }
	both := "app.example.com has 2 addresses (10.0.0.1, 10.0.0.2): down takes them all out"
	for _, test := range []struct {
		name      string
		op        Operation
		target    string
		change    []func(*Request)
		refusals  []string
		warnings  []string
		unchecked []string
	}{
		{"two", Drain, "app.example.com", nil, []string{both, "--allow-all-addresses"}, nil, nil},
		{"two, counted here", Drain, "app.example.com", []func(*Request){lb}, []string{both, "--allow-all-addresses"}, nil, nil},
		{"two, allowed, one of them watched", Drain, "app.example.com", []func(*Request){allow}, []string{"over SSH only one of them would be watched and stopped", "--poll lb, and no --service"}, nil, nil},
		{"two, allowed, one of them stopped", Drain, "app.example.com", []func(*Request){allow, lb, service}, []string{"only one of them"}, nil, nil},
		{"two, allowed", Drain, "app.example.com", []func(*Request){allow, lb}, nil, []string{both}, nil},
		{"one", Drain, "one.example.com", nil, nil, nil, nil},
		{"this machine", Drain, "local.example.com", nil, nil, nil, nil},
		{"none", Drain, "gone.example.com", nil, nil, nil, []string{"how many addresses gone.example.com has: "}},
		{"an address", Drain, "10.0.0.3", nil, nil, nil, nil},
		{"undrain", Undrain, "app.example.com", nil, nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := plan(t, ask(t, test.op, host, test.target, test.change...))
			contains(t, "refusals", refusalTexts(p), test.refusals)
			contains(t, "warnings", p.Warnings, test.warnings)
			contains(t, "unchecked", p.Unchecked, test.unchecked)
		})
	}
}
