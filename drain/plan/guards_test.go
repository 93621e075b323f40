package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/drain/spec"
)

// fourServers keeps two live servers when one is drained.
const fourServers = `upstream web {
	server 10.0.0.1:8080;
	server 10.0.0.2:8080 weight=3 down;
	server 10.0.0.3:8080;
	server 10.0.0.4:8080;
}`

// A confDir is a configuration in files, which no nginx runs with.
type confDir struct {
	t   *testing.T
	dir string
}

// httpConf is a configuration with the given text in its http block, from line 3
// on.
func httpConf(t *testing.T, text string) *confDir {
	t.Helper()
	return mainConf(t, "events {}\nhttp {\n"+text+"\n}\n")
}

func mainConf(t *testing.T, text string) *confDir {
	t.Helper()
	c := &confDir{t, t.TempDir()}
	c.write("nginx.conf", text)
	return c
}

func (c *confDir) path(name string) string { return filepath.Join(c.dir, name) }

func (c *confDir) write(name, text string) {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.path(name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// spec is a spec as the command line makes it with no flags.
func (c *confDir) spec(k spec.Kind, target string, change ...func(*spec.Spec)) spec.Spec {
	s := spec.Default(k)
	s.Targets = []string{target}
	s.Nginx = spec.Nginx{Conf: c.path("nginx.conf"), StateDir: c.path("state")}
	s.User, s.Host = "ann", "desk"
	for _, ch := range change {
		ch(&s)
	}
	return s
}

// plan plans, without asking nginx.
func (c *confDir) plan(k spec.Kind, target string, change ...func(*spec.Spec)) *Plan {
	c.t.Helper()
	p, err := c.tryPlan(k, target, change...)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *confDir) tryPlan(k spec.Kind, target string, change ...func(*spec.Spec)) (*Plan, error) {
	c.t.Helper()
	sp := c.spec(k, target, change...)
	o, err := sp.Nginx.Options()
	if err != nil {
		c.t.Fatal(err)
	}
	lb := balancer.NewLocal(o)
	defer lb.Close()
	q := Query(sp)
	q.Preflight = false
	report, err := lb.Plan(c.t.Context(), q)
	reports := []LBPlan{{LB: "lb1", Report: report}}
	if err == nil {
		err = MissingEverywhere(sp, reports)
	}
	if err != nil {
		return nil, spec.BeforeTouching(c.t.Context(), err)
	}
	return New(sp, reports, false), nil
}

// refusals and warnings are what the guards found, with the override.
func refusals(p *Plan) []string { return findings(p, false) }
func warnings(p *Plan) []string { return findings(p, true) }

func findings(p *Plan, warning bool) []string {
	var all []string
	for _, f := range p.Findings {
		if f.Warning == warning {
			all = append(all, f.Text+" | "+f.Override)
		}
	}
	return all
}

// contains checks that the texts, taken together, have all that is wanted, and
// that there are none where none is.
func contains(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(strings.Join(got, "\n"), w) {
			t.Errorf("%s are %q, want %q among them", what, got, w)
		}
	}
	if len(want) == 0 && len(got) > 0 {
		t.Errorf("%s are %q, want none", what, got)
	}
}

func TestGuardOfLiveServers(t *testing.T) {
	for _, test := range []struct {
		name     string
		servers  string
		minUp    int
		refusals []string
		warnings []string
	}{
		{"three", "server 10.0.0.1; server 10.0.0.2; server 10.0.0.3;", 1, nil, nil},
		{"the only one", "server 10.0.0.1;", 1, []string{"upstream web (", "nginx.conf:3) would have no live server left: nginx answers 502", "--min-up 0"}, nil},
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
			c := httpConf(t, "upstream web { "+test.servers+" }")
			p := c.plan(spec.Drain, "10.0.0.1", func(s *spec.Spec) { s.MinUp = test.minUp })
			contains(t, "refusals", refusals(p), test.refusals)
			contains(t, "warnings", warnings(p), test.warnings)
			if (p.ExitCode == spec.Refused) != (test.refusals != nil) || (p.Refusal() != nil) != (test.refusals != nil) {
				t.Errorf("the plan ends with %d (%v)", p.ExitCode, p.Refusal())
			}
			// Nothing of this is for an undrain.
			back := c.plan(spec.Undrain, "10.0.0.1", func(s *spec.Spec) { s.MinUp, s.Force = test.minUp, true })
			contains(t, "findings of an undrain", append(refusals(back), warnings(back)...), nil)
		})
	}
}

// Each upstream is looked at for itself.
func TestGuardOfEveryUpstream(t *testing.T) {
	c := httpConf(t, "upstream a { server 10.0.0.1; }\nupstream b { server 10.0.0.1; server 10.0.0.2; }\nupstream c { server 10.0.0.1; server 10.0.0.2; server 10.0.0.3; }")
	p := c.plan(spec.Drain, "10.0.0.1")
	if got := refusals(p); len(got) != 1 || !strings.Contains(got[0], "upstream a (") {
		t.Errorf("refusals %q", got)
	}
	if got := warnings(p); len(got) != 1 || !strings.Contains(got[0], "upstream b ") {
		t.Errorf("warnings %q", got)
	}
	if got := refusals(c.plan(spec.Drain, "10.0.0.1", func(s *spec.Spec) { s.Upstreams = []string{"b", "c"} })); len(got) != 0 {
		t.Errorf("refusals %q where only b and c are drained", got)
	}
}

// A service is stopped for all upstreams, so none may be left that uses it.
func TestGuardOfRemainingUpstreams(t *testing.T) {
	c := httpConf(t, "upstream a { server 10.0.0.1; server 10.0.0.2; server 10.0.0.3; }\nupstream b { server 10.0.0.1; server 10.0.0.2; }\nupstream c { server 10.0.0.1 down; server 10.0.0.2; }")
	narrow := func(s *spec.Spec) { s.Upstreams = []string{"a"} }
	serve := func(s *spec.Spec) { s.Upstreams, s.Service = []string{"a"}, "app" }
	const left = "nginx.conf:4: 10.0.0.1:80 in b stays up"
	p := c.plan(spec.Drain, "10.0.0.1", narrow)
	contains(t, "refusals", refusals(p), nil)
	contains(t, "warnings", warnings(p), []string{left})
	p = c.plan(spec.Drain, "10.0.0.1", serve)
	contains(t, "refusals", refusals(p), []string{left, "stopping app would cut them\nhint: leave out --service, or drain that one too | --upstream b"})
	contains(t, "warnings", warnings(p), nil)
	contains(t, "refusals of an undrain", refusals(c.plan(spec.Undrain, "10.0.0.1", serve)), nil)
	// Of two backends, only one has a service: it is the other one that stays up.
	r := balancer.Report{
		Servers:  []balancer.Server{line("10.0.0.1:80", 3, false, false, true), line("10.0.0.2:80", 4, false, false, true)},
		Excluded: []balancer.Server{line("10.0.0.2:80", 9, false, false, false)},
	}
	p = reported(spec.Drain, "", r, func(s *spec.Spec) {
		s.Targets, s.PerBackend = []string{"10.0.0.1", "10.0.0.2"}, map[string]json.RawMessage{"10.0.0.1": json.RawMessage(`{"service":"app"}`)}
	})
	contains(t, "refusals for the service of another backend", refusals(p), nil)
	contains(t, "warnings", warnings(p), []string{"/nginx.conf:9: 10.0.0.2:80 in web stays up"})
}

// A service is stopped for all ports of its host. The host is asked about those that it may serve.
func TestOtherPorts(t *testing.T) {
	const conf = "upstream a { server %[1]s:8080; server 10.0.0.2:8080; server 10.0.0.3:8080; }\nupstream b { server %[1]s:8081%[2]s; server 10.0.0.2:8081; }\nupstream c { server %[1]s:8081%[2]s; server 10.0.0.2:8081; }"
	serve := func(s *spec.Spec) { s.Service, s.Given = "two", []string{"service"} }
	per := func(text string) func(*spec.Spec) {
		return func(s *spec.Spec) { s.PerBackend = map[string]json.RawMessage{"10.0.0.1:8081": json.RawMessage(text)} }
	}
	for _, test := range []struct {
		name       string
		kind       spec.Kind
		host, down string
		target     string
		change     []func(*spec.Spec)
		want       string
	}{
		{"a port", spec.Drain, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){serve}, "10.0.0.1:8081"},
		{"a port in one upstream", spec.Drain, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){serve, func(s *spec.Spec) { s.Upstreams = []string{"a"} }}, "10.0.0.1:8081"},
		{"nothing is stopped", spec.Drain, "10.0.0.1", "", "10.0.0.1:8080", nil, ""},
		{"the whole host", spec.Drain, "10.0.0.1", "", "10.0.0.1", []func(*spec.Spec){serve}, ""},
		{"the other port is down", spec.Drain, "10.0.0.1", " down", "10.0.0.1:8080", []func(*spec.Spec){serve}, ""},
		{"an undrain", spec.Undrain, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){serve}, ""},
		{"the other port has the unit", spec.Drain, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){serve, per(`{"service":"two"}`)}, "10.0.0.1:8081"},
		{"the other port has another unit", spec.Drain, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){serve, per(`{"service":"other"}`)}, ""},
		{"apps of the load balancer itself", spec.Drain, "127.0.0.1", "", "127.0.0.1:8080", []func(*spec.Spec){serve}, "127.0.0.1:8081"},
		{"a reboot", spec.Run, "10.0.0.1", "", "10.0.0.1:8080", []func(*spec.Spec){func(s *spec.Spec) { s.Rollout.Reboot = true }, per(`{"service":"other"}`)}, "10.0.0.1:8081"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := httpConf(t, fmt.Sprintf(conf, test.host, test.down)).plan(test.kind, test.target, test.change...)
			var got []string
			for _, s := range p.OtherPorts(p.Backends[0]) {
				got = append(got, s.Address)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if isUntried := slices.ContainsFunc(untried(p), func(s string) bool { return strings.Contains(s, "which unit serves "+test.host+":8081") }); isUntried != (test.want != "" && test.kind == spec.Drain) {
				t.Errorf("a dry run says %q", untried(p))
			}
			contains(t, "refusals", refusals(p), nil)
		})
	}
}

func TestGuardOfDirectReferences(t *testing.T) {
	const pool = "upstream web { server 10.0.0.1:8080; server 10.0.0.2:8080; server 10.0.0.3:8080; server localhost:8081; server unix:/run/app.sock; }\n"
	const certain, maybe, none = "certain", "maybe", "none"
	for _, test := range []struct {
		target string
		text   string
		want   string
	}{
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:8080; } }", certain},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:8080/path; } }", certain},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.1:9999; } }", certain},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1:9999; } }", none},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1; } }", none},
		{"10.0.0.1:8080", "server { location / { proxy_pass http://10.0.0.1:$port; } }", certain},
		{"10.0.0.1", "server { location / { fastcgi_pass 10.0.0.1:8080; } }", certain},
		{"10.0.0.1", "server { location / { grpc_pass grpc://10.0.0.1:8080; } }", certain},
		{"10.0.0.1", "map $host $to { default web; old http://10.0.0.1:8080; }", certain},
		{"10.0.0.1", "map $host $to { default web; old 10.0.0.1:8080; }", certain},
		{"10.0.0.1", "map $host $to { default web; old 10.0.0.1; }", maybe},
		{"10.0.0.1", "server { location / { set $to http://10.0.0.1:8080; proxy_pass $to; } }", certain},
		{"10.0.0.1", "split_clients $x $to { 50% 10.0.0.1:8080; * web; }", certain},
		{"10.0.0.1", "server { location / { proxy_pass http://web; } }", none},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.2:8080; } }", none},
		{"10.0.0.1", "server { location / { proxy_pass http://10.0.0.10:8080; } }", none},
		{"10.0.0.1", "# proxy_pass http://10.0.0.1:8080;\nserver { location / { return 200 http://10.0.0.1:8080; } }", none},
		{"localhost", "server { location / { proxy_pass http://LOCALHOST:8081; } }", certain},
		{"unix:/run/app.sock", "server { location / { proxy_pass http://unix:/run/app.sock:/x; } }", certain},
		{"unix:/run/app.sock", "server { location / { proxy_pass http://unix:/run/app.sock2; } }", none},
	} {
		t.Run(test.target+" "+test.text, func(t *testing.T) {
			c := httpConf(t, pool+test.text)
			p := c.plan(spec.Drain, test.target)
			allowed := c.plan(spec.Drain, test.target, func(s *spec.Spec) { s.Allow.Direct = true })
			contains(t, "refusals when allowed", refusals(allowed), nil)
			switch test.want {
			case certain:
				contains(t, "refusals", refusals(p), []string{"reaches the target outside of an upstream", "--allow-direct"})
				contains(t, "warnings when allowed", warnings(allowed), []string{"and continues to do so"})
			case maybe:
				contains(t, "refusals", refusals(p), nil)
				contains(t, "warnings", warnings(p), []string{"names the target outside of an upstream"})
			default:
				contains(t, "refusals", refusals(p), nil)
				contains(t, "warnings", warnings(p), nil)
			}
		})
	}
}

// A reload ends UDP sessions. The operator allows it where the target's own upstream is
// reached over UDP, and is told of others.
func TestGuardOfUDPSessions(t *testing.T) {
	const (
		four    = "server 10.0.0.1:53; server 10.0.0.2:53; server 10.0.0.3:53; server 10.0.0.4:53 down;"
		stream  = "stream { upstream dns { " + four + " }\n"
		udp     = "server { listen 53 udp; proxy_pass dns; }"
		tcp     = "server { listen 53; proxy_pass dns; }"
		ends    = "nginx passes UDP to dns: the reload ends all UDP sessions, and answers that are under way do not reach their clients"
		waits   = "; drainctl waits for them on the load balancer, for idle ones until proxy_timeout\nhint: proxy_responses ends a session with its answer"
		refused = " | --allow-udp"
		other   = "nginx.conf:3), as any reload does | "
	)
	for _, test := range []struct {
		name, conf string
		kind       spec.Kind
		target     string
		refusal    string
		warning    string
	}{
		{"UDP", stream + udp + "}", spec.Drain, "10.0.0.1", ends + waits + refused, ""},
		{"UDP and TCP", stream + udp + tcp + "}", spec.Drain, "10.0.0.1", ends + waits + refused, ""},
		{"by a variable", stream + "server { listen 53 udp; proxy_pass $to; }" + tcp + "}", spec.Drain, "10.0.0.1", ends + waits + refused, ""},
		{"back", stream + udp + "}", spec.Undrain, "10.0.0.4", "", ends},
		{"TCP", stream + tcp + "}", spec.Drain, "10.0.0.1", "", ""},
		{"down already", stream + udp + "}", spec.Drain, "10.0.0.4", "", ""},
		{"up already", stream + udp + "}", spec.Undrain, "10.0.0.1", "", ""},
		{"another upstream", stream + udp + "} http {" + fourServers + "}", spec.Drain, "10.0.0.1:8080", "", other},
		{"and back", stream + udp + "} http {" + fourServers + "}", spec.Undrain, "10.0.0.2:8080", "", other},
		{"not in stream", "http {" + fourServers + "server { listen 443 udp; } }", spec.Drain, "10.0.0.1", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := mainConf(t, "events {}\n"+test.conf)
			for _, allow := range []bool{false, true} {
				p := c.plan(test.kind, test.target, func(s *spec.Spec) { s.Force, s.Allow.UDP = true, allow })
				refusal, warning := test.refusal, test.warning
				if allow && refusal != "" {
					refusal, warning = "", strings.TrimSuffix(refusal, "--allow-udp")
				}
				one := func(text string) []string {
					return slices.DeleteFunc([]string{text}, func(s string) bool { return s == "" })
				}
				contains(t, "refusals", refusals(p), one(refusal))
				contains(t, "warnings", warnings(p), one(warning))
				if n := len(p.Findings); n > 1 {
					t.Errorf("%d findings: %+v", n, p.Findings)
				}
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
		{"30s", 5 * time.Minute, "nginx.conf is shorter than --timeout 5m:"},
		{"30", 5 * time.Minute, "worker_shutdown_timeout 30s"},
		{"1m30s", 2 * time.Minute, "--timeout 1m30s or --allow-shutdown-timeout"},
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
			c := mainConf(t, conf)
			p := c.plan(spec.Drain, "10.0.0.1", func(s *spec.Spec) { s.Timeout = test.timeout })
			allowed := c.plan(spec.Drain, "10.0.0.1", func(s *spec.Spec) { s.Timeout, s.Allow.ShutdownTimeout = test.timeout, true })
			contains(t, "refusals when allowed", refusals(allowed), nil)
			if test.refused == "" {
				contains(t, "refusals", refusals(p), nil)
				contains(t, "warnings when allowed", warnings(allowed), nil)
				return
			}
			contains(t, "refusals", refusals(p), []string{test.refused})
			contains(t, "warnings when allowed", warnings(allowed), []string{"worker_shutdown_timeout"})
		})
	}
	// Of two backends, one is waited for without a limit, whichever.
	for _, unlimited := range []string{"10.0.0.1", "10.0.0.2"} {
		r := balancer.Report{ShutdownTimeout: time.Hour, Servers: []balancer.Server{line("10.0.0.1:80", 3, false, false, true), line("10.0.0.2:80", 4, false, false, true)}}
		p := reported(spec.Drain, "", r, func(s *spec.Spec) {
			s.Targets, s.PerBackend = []string{"10.0.0.1", "10.0.0.2"}, map[string]json.RawMessage{unlimited: json.RawMessage(`{"timeout_ns":0}`)}
		})
		contains(t, "refusals without a limit of "+unlimited, refusals(p), []string{"is shorter than --timeout 0 (no limit)"})
	}
}

// reported is a plan over a report that is made up.
func reported(k spec.Kind, target string, r balancer.Report, change ...func(*spec.Spec)) *Plan {
	s := spec.Default(k)
	s.Targets = []string{target}
	for _, ch := range change {
		ch(&s)
	}
	return New(s, []LBPlan{{LB: "lb1", Report: &r}}, false)
}

// line is a server line of the upstream web.
func line(address string, at int, down, managed, configure bool) balancer.Server {
	return balancer.Server{
		Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "web", Address: address}, File: "/nginx.conf", Line: at, Down: down},
		Name:    "web", Text: address, At: 10 * at, Managed: managed, NeedsEdit: configure,
	}
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func TestGuardOfSeveralAddresses(t *testing.T) {
	lb := func(s *spec.Spec) { s.Counter = spec.CounterLB }
	allow := func(s *spec.Spec) { s.Allow.AllAddresses = true }
	service := func(s *spec.Spec) { s.Service = "app" }
	const both = "app.example.com has 2 addresses (10.0.0.1, 10.0.0.2): down takes them all out"
	two := balancer.Name{Host: "app.example.com", Addresses: addrs("10.0.0.1", "10.0.0.2")}
	for _, test := range []struct {
		name      string
		kind      spec.Kind
		found     balancer.Name
		change    []func(*spec.Spec)
		refusals  []string
		warnings  []string
		unchecked []string
	}{
		{"two", spec.Drain, two, nil, []string{both, "--allow-all-addresses"}, nil, nil},
		{"two, counted here", spec.Drain, two, []func(*spec.Spec){lb}, []string{both, "--allow-all-addresses"}, nil, nil},
		{"two, allowed, one of them watched", spec.Drain, two, []func(*spec.Spec){allow}, nil, []string{both}, nil},
		{"two, allowed, one of them stopped", spec.Drain, two, []func(*spec.Spec){allow, lb, service}, nil, []string{both}, nil},
		{"two, allowed", spec.Drain, two, []func(*spec.Spec){allow, lb}, nil, []string{both}, nil},
		{"one", spec.Drain, balancer.Name{Host: "app.example.com", Addresses: addrs("10.0.0.9")}, nil, nil, nil, nil},
		{"this machine", spec.Drain, balancer.Name{Host: "app.example.com", Addresses: addrs("127.0.0.1", "::1")}, nil, nil, nil, nil},
		{"none", spec.Drain, balancer.Name{Host: "app.example.com", Error: "no such host"}, nil, nil, nil, []string{"how many addresses app.example.com has: no such host"}},
		{"undrain", spec.Undrain, two, nil, nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := reported(test.kind, "app.example.com", balancer.Report{Servers: []balancer.Server{line("app.example.com:80", 3, false, false, true)}, Names: []balancer.Name{test.found}}, test.change...)
			contains(t, "refusals", refusals(p), test.refusals)
			contains(t, "warnings", warnings(p), test.warnings)
			contains(t, "unchecked", p.Unchecked, test.unchecked)
		})
	}
	// Each name is a refusal of its own.
	other := balancer.Name{Host: "api.example.com", Addresses: addrs("10.0.0.3", "10.0.0.4")}
	r := balancer.Report{Servers: []balancer.Server{line("app.example.com:80", 3, false, false, true), line("api.example.com:80", 4, false, false, true)}, Names: []balancer.Name{two, other}}
	p := reported(spec.Drain, "", r, func(s *spec.Spec) { s.Targets = []string{"app.example.com", "api.example.com"} })
	contains(t, "refusals of two names", refusals(p), []string{both, "api.example.com has 2 addresses (10.0.0.3, 10.0.0.4)"})
}

func TestGuardOfOtherNames(t *testing.T) {
	other := func(down bool) balancer.Report {
		return balancer.Report{
			Servers:    []balancer.Server{line("10.0.0.1:80", 3, false, false, true)},
			OtherNames: []balancer.OtherName{{Server: line("app.example.com:80", 4, down, false, false), Address: netip.MustParseAddr("10.0.0.1")}},
		}
	}
	const says = "/nginx.conf:4: app.example.com:80 in web is the same host (10.0.0.1) by another name, and stays up\nhint: drain it too, as the target app.example.com:80"
	p := reported(spec.Drain, "10.0.0.1", other(false))
	contains(t, "refusals", refusals(p), []string{says, "--allow-other-names"})
	if p.ExitCode != spec.Refused {
		t.Errorf("exit %d", p.ExitCode)
	}
	p = reported(spec.Drain, "10.0.0.1", other(false), func(s *spec.Spec) { s.Allow.OtherNames = true })
	contains(t, "refusals when allowed", refusals(p), nil)
	contains(t, "warnings when allowed", warnings(p), []string{says})
	p = reported(spec.Drain, "10.0.0.1", other(true))
	contains(t, "findings where the other is down", append(refusals(p), warnings(p)...), nil)
	p = reported(spec.Undrain, "10.0.0.1", other(false))
	contains(t, "findings of an undrain", append(refusals(p), warnings(p)...), nil)
}

// The names of this machine are all one place, and a pool of its own apps is no
// finding: localhost and 127.0.0.1 are not told apart from here.
func TestGuardOfOtherNamesOnLoopback(t *testing.T) {
	c := httpConf(t, "upstream web { server 127.0.0.1:8080; server localhost:8080; server 127.0.0.3:8080; server 127.0.0.4:8080; }")
	for _, target := range []string{"127.0.0.1", "localhost"} {
		p := c.plan(spec.Drain, target)
		contains(t, "findings", append(refusals(p), warnings(p)...), nil)
	}
}

// Which down an undrain may clear, by what the journal knows.
func TestGuardOfUnmanaged(t *testing.T) {
	server := journal.Server{Module: "http", Upstream: "web", Address: "10.0.0.1:80"}
	mark := journal.Mark{Server: server, Change: journal.Change{Operation: "20260101-000000.000-aaaa", File: "/nginx.conf", Line: 3, At: 30}}
	drain := journal.Operation{ID: mark.Operation, Kind: string(spec.Drain), Targets: []string{"10.0.0.1"}, User: "ann", Host: "desk", Began: time.Now(), Result: journal.ResultDone,
		Servers: []journal.Located{{Server: server, File: "/nginx.conf", Line: 3}}}
	marked := journal.State{Operations: []journal.Operation{drain}, Marks: []journal.Mark{mark}}
	elsewhere := mark
	elsewhere.Address = "10.0.0.9:80"
	for _, test := range []struct {
		name     string
		servers  []balancer.Server
		state    journal.State
		broken   bool
		codes    []string // of the refusals
		says     string
		warnings []string
	}{
		{"drained", []balancer.Server{line("10.0.0.1:80", 3, true, true, true)}, marked, false, nil, "", nil},
		{"up", []balancer.Server{line("10.0.0.1:80", 3, false, false, false)}, journal.State{}, false, nil, "", nil},
		{"marked down outside drainctl", []balancer.Server{line("10.0.0.1:80", 3, true, false, false)}, journal.State{}, false,
			[]string{"unmanaged"}, "10.0.0.1:80 in web (/nginx.conf:3) is marked down outside drainctl: the journal has no drain of it | --force", nil},
		{"one of two", []balancer.Server{line("10.0.0.1:80", 3, true, true, true), line("10.0.0.1:81", 4, true, false, false)}, marked, false,
			nil, "", []string{"10.0.0.1:81 in web (/nginx.conf:4) was marked down outside drainctl before, and stays down\nhint: --force clears it too"}},
		{"the journal cannot be read", []balancer.Server{line("10.0.0.1:80", 3, true, false, false)}, journal.State{}, true,
			[]string{"unmanaged"}, "whether drainctl marked it is not known: no journal", nil},
		{"drained, and renamed", []balancer.Server{line("10.0.0.1:81", 3, true, false, false)}, marked, false,
			[]string{"unmanaged"}, "the journal has 10.0.0.1:80 in web (/nginx.conf:3, drained by ann on desk,", nil},
		{"drained, and removed", []balancer.Server{line("10.0.0.1:81", 3, false, false, false)}, marked, false,
			nil, "", []string{"10.0.0.1:80 in web (/nginx.conf:3, drained by ann on desk,", "was drained, and is not in the configuration any more"}},
		{"drained, and another backend's mark is orphaned", []balancer.Server{line("10.0.0.1:80", 3, true, true, true)},
			journal.State{Operations: marked.Operations, Marks: []journal.Mark{mark, elsewhere}}, false, nil, "", nil},
		{"two lines down, one of them drainctl's", []balancer.Server{line("10.0.0.1:80", 3, true, true, true), line("10.0.0.1:80", 4, true, true, true)}, marked, false,
			[]string{"ambiguous"}, "2 lines are down, and drainctl has marked 1 (/nginx.conf:3): which is not clear | --force", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := balancer.Report{Servers: test.servers, State: test.state}
			if test.broken {
				r.StateError = &balancer.Error{Code: balancer.CodeFailed, Message: "no journal"}
			}
			p := reported(spec.Undrain, "10.0.0.1", r)
			var codes []string
			for _, f := range p.Findings {
				if !f.Warning {
					codes = append(codes, f.Code)
				}
			}
			if !slices.Equal(codes, test.codes) {
				t.Errorf("refused for %q, want %q", codes, test.codes)
			}
			if test.says != "" {
				contains(t, "refusals", refusals(p), []string{test.says})
			}
			contains(t, "warnings", warnings(p), test.warnings)
			forced := reported(spec.Undrain, "10.0.0.1", r, func(s *spec.Spec) { s.Force = true })
			contains(t, "findings with --force", append(refusals(forced), warnings(forced)...), nil)
			drained := reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: test.servers, State: test.state})
			contains(t, "findings of a drain", append(refusals(drained), warnings(drained)...), nil)
		})
	}
}

// A drain, or a run, is refused where nobody could read its journal to undo it.
func TestGuardOfTheJournal(t *testing.T) {
	c := httpConf(t, fourServers)
	c.write("state/state.json", "no JSON")
	contains(t, "refusals", refusals(c.plan(spec.Drain, "10.0.0.1")), []string{"state.json is unreadable", "--state-dir"})
	contains(t, "refusals of a run", refusals(c.plan(spec.Run, "10.0.0.1")), []string{"state.json is unreadable", "--state-dir"})
	contains(t, "refusals of an undrain that is not needed", refusals(c.plan(spec.Undrain, "10.0.0.1")), nil)
	contains(t, "refusals of an undrain", refusals(c.plan(spec.Undrain, "10.0.0.2")), []string{"10.0.0.2:8080 in web", "whether drainctl marked it is not known", "--force"})
}

func TestGuardOfPendingFiles(t *testing.T) {
	at := time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)
	pending := balancer.PendingFile{Path: "/etc/nginx/a.conf", Changed: at, Loaded: at.Add(-time.Hour)}
	future := balancer.PendingFile{Path: "/etc/nginx/b.conf", Changed: at, Future: true}
	server := []balancer.Server{line("10.0.0.1:80", 3, false, false, true)}
	const says = "changed on disk after nginx was last loaded (2026-05-04 11:00:00), so a reload would put it live: /etc/nginx/a.conf (2026-05-04 12:00:00)"
	p := reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: server, Pending: []balancer.PendingFile{pending, future}})
	contains(t, "refusals", refusals(p), []string{says + " | --accept-pending"})
	contains(t, "warnings", warnings(p), []string{"the clock was set back: whether nginx has loaded these files cannot be told: /etc/nginx/b.conf"})
	p = reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: server, Pending: []balancer.PendingFile{pending}}, func(s *spec.Spec) { s.Allow.Pending = true })
	contains(t, "refusals when accepted", refusals(p), nil)
	contains(t, "warnings when accepted", warnings(p), []string{says})
}

// TestNamesOfSettings: settings are found by every name of a backend, the port's own
// before the host's, and of an upstream with and without its module.
func TestNamesOfSettings(t *testing.T) {
	b := Backend{Name: "this machine", Targets: []string{"127.0.0.1:8080"}}
	if names := b.names(); !slices.Equal(names, []string{"this machine", "127.0.0.1", "127.0.0.1:8080"}) {
		t.Errorf("%q", names)
	}
	lbs := []LBPlan{{Report: &balancer.Report{Servers: []balancer.Server{
		{Located: journal.Located{Server: journal.Server{Module: "http", Upstream: "pool", Address: "10.0.0.1:80"}}, Name: "pool"},
	}}}}
	for key, want := range map[string]int{"pool": 7, "http/pool": 7, "stream/pool": 1, "other": 1} {
		s := spec.Default(spec.Drain)
		s.Targets, s.PerUpstream = []string{"10.0.0.1"}, map[string]json.RawMessage{key: json.RawMessage(`{"min_up":7}`)}
		p := &Plan{Spec: s, LBs: lbs, Backends: backendsOf(s, lbs)}
		if got := []int{p.Backends[0].Settings.MinUp, p.minUp(lbs[0], "pool")}; !slices.Equal(got, []int{want, want}) {
			t.Errorf("settings of %s: the backend, and the guard, have %d, want %d", key, got, want)
		}
	}
	s := spec.Spec{PerUpstream: map[string]json.RawMessage{"pool": json.RawMessage(`{"min_up":7}`), "http/pool": json.RawMessage(`{"min_up":8}`)}}
	if set, err := s.SettingsOf(UpstreamNames(lbs[0].Report.Servers[0]), nil); err != nil || set.MinUp != 8 {
		t.Errorf("%+v, %v: want what is named with the module", set, err)
	}
}

// An nginx that is known to be stopped may be allowed. One that only has no PID file may not.
func TestGuardOfStoppedNginx(t *testing.T) {
	server := []balancer.Server{line("10.0.0.1:80", 3, false, false, true)}
	stopped := balancer.Problem{Code: balancer.ProblemRunning, Text: "nginx is not running", Unknown: true, Override: balancer.AllowStopped}
	unclear := balancer.Problem{Code: balancer.ProblemRunning, Text: "process 7 may have the configuration", Unknown: true}
	allow := func(s *spec.Spec) { s.Allow.StoppedNginx = true }
	p := reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: server, Problems: []balancer.Problem{stopped}})
	contains(t, "refusals", refusals(p), []string{"nginx is not running\nhint: start it, as with systemctl start nginx | --allow-stopped-nginx"})
	udp := line("10.0.0.1:80", 3, false, false, true)
	udp.UDP = true
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} { // without a reload no UDP session ends
		p = reported(k, "10.0.0.1", balancer.Report{Servers: []balancer.Server{udp}, UDPServer: "nginx.conf:3", Problems: []balancer.Problem{stopped}}, allow)
		contains(t, "refusals when allowed", refusals(p), nil)
		contains(t, "warnings when allowed", warnings(p), []string{"nginx is not running: its files are edited and tested", "nginx runs on no load balancer"})
	}
	p = reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: server, Problems: []balancer.Problem{unclear}}, allow)
	contains(t, "refusals when unclear", refusals(p), []string{"process 7 may have the configuration"})
	one := LBPlan{LB: "lb1", Report: &balancer.Report{Servers: server}}
	two := LBPlan{LB: "lb2", Report: &balancer.Report{Servers: server, Problems: []balancer.Problem{stopped}}}
	p = New(p.Spec, []LBPlan{one, two}, true)
	if len(warnings(p)) != 1 || p.Findings[len(p.Findings)-1].LB != "lb2" {
		t.Errorf("of one of two: %+v", p.Findings)
	}
}

// nginx may go on sending to a target only where the plan says so, and it is allowed.
func TestMaySend(t *testing.T) {
	const pools = "upstream a { server 10.0.0.1:8080; server 10.0.0.2:8080; server 10.0.0.3:8080; }\n"
	for _, test := range []struct {
		name, conf, target string
		change             func(*spec.Spec)
		want               bool
	}{
		{"one upstream", pools, "10.0.0.1:8080", nil, false},
		{"another port of the host", pools + "upstream b { server 10.0.0.1:8081; }", "10.0.0.1:8080", nil, false},
		{"another port, allowed", pools + "upstream b { server 10.0.0.1:8081; }", "10.0.0.1:8080", func(s *spec.Spec) { s.Allow.OtherNames = true }, false},
		{"another upstream", pools + "upstream b { server 10.0.0.1:8080; }", "10.0.0.1", func(s *spec.Spec) { s.Upstreams = []string{"a"} }, true},
		{"another upstream, in which it is down", pools + "upstream b { server 10.0.0.1:8080 down; }", "10.0.0.1", func(s *spec.Spec) { s.Upstreams = []string{"a"} }, false},
		{"a direct way, allowed", pools + "server { location / { proxy_pass http://10.0.0.1:8080; } }", "10.0.0.1", func(s *spec.Spec) { s.Allow.Direct = true }, true},
		{"none, and one would be allowed", pools, "10.0.0.1", func(s *spec.Spec) { s.Allow.Direct = true }, false},
	} {
		c := mainConf(t, "events {}\nhttp {\n"+test.conf+"}\n")
		var changes []func(*spec.Spec)
		if test.change != nil {
			changes = append(changes, test.change)
		}
		if p := c.plan(spec.Drain, test.target, changes...); p.MaySend() != test.want {
			t.Errorf("%s: %t, want %t; %+v", test.name, p.MaySend(), test.want, p.Findings)
		}
	}
}
