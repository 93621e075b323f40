package plan

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/drain/balancer"
	"github.com/drainctl/drainctl/drain/spec"
)

// diff is the lines that a plan takes out of the files and puts in.
func diff(p *Plan) []string {
	var lines []string
	for _, l := range strings.Split(p.LBs[0].Report.Diff, "\n") {
		if (strings.HasPrefix(l, "-") || strings.HasPrefix(l, "+")) && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "+++") {
			lines = append(lines, l[:1]+strings.TrimSpace(l[1:]))
		}
	}
	return lines
}

func TestPlanChangesOneWord(t *testing.T) {
	c := httpConf(t, fourServers)
	for _, test := range []struct {
		kind   spec.Kind
		target string
		want   []string
	}{
		{spec.Drain, "10.0.0.1", []string{"-server 10.0.0.1:8080;", "+server 10.0.0.1:8080 down;"}},
		{spec.Drain, "10.0.0.1:8080", []string{"-server 10.0.0.1:8080;", "+server 10.0.0.1:8080 down;"}},
		{spec.Drain, "10.0.0.2", nil},
		{spec.Undrain, "10.0.0.1", nil},
		{spec.Undrain, "10.0.0.2", []string{"-server 10.0.0.2:8080 weight=3 down;", "+server 10.0.0.2:8080 weight=3;"}},
	} {
		p := c.plan(test.kind, test.target, func(s *spec.Spec) { s.Force = true })
		if got := diff(p); !slices.Equal(got, test.want) {
			t.Errorf("%s %s changes %q, want %q", test.kind, test.target, got, test.want)
		}
		if p.Unchanged() != (test.want == nil) {
			t.Errorf("%s %s: unchanged %t", test.kind, test.target, p.Unchanged())
		}
		if err := p.Refusal(); err != nil {
			t.Errorf("%s %s: verdict %v", test.kind, test.target, err)
		}
	}
}

func TestPlanNotMade(t *testing.T) {
	twins := "events {} http { upstream pool { server 10.0.0.1; server 10.0.0.2; } } stream { upstream pool { server 10.0.0.1; server 10.0.0.3; } }"
	four := "events {}\nhttp {\n" + fourServers + "\n}\n"
	upstreams := func(names ...string) func(*spec.Spec) { return func(s *spec.Spec) { s.Upstreams = names } }
	for _, test := range []struct {
		name   string
		conf   string
		target string
		change func(*spec.Spec)
		exit   spec.Exit
		says   string
	}{
		{"no such server", four, "10.0.0.9:8080", nil, spec.Usage, "nginx.conf\nhint: did you mean 10.0.0.1:8080 in web, or 10.0.0.2:8080 in web, or 10.0.0.3:8080 in web?"},
		{"another port", four, "10.0.0.1:80", nil, spec.Usage, "did you mean 10.0.0.1:8080 in web"},
		{"nothing near", four, "app.example.com", nil, spec.Usage, "it has web"},
		{"no target", four, "10.0.0.1:99999", nil, spec.Usage, "99999"},
		{"no upstreams", "events {} http {}", "10.0.0.1", nil, spec.Usage, "it has none"},
		{"no such upstream", four, "10.0.0.1", upstreams("wbe"), spec.Usage, `no upstream "wbe" in `},
		{"one of two upstreams", four, "10.0.0.1", upstreams("web", "wbe"), spec.Usage, `no upstream "wbe"`},
		{"twins", twins, "10.0.0.1", upstreams("pool"), spec.Usage, "hint: say http/pool or stream/pool"},
		{"in the other twin", twins, "10.0.0.3", upstreams("http/pool"), spec.Usage, "nginx.conf\nhint: it is in stream/pool"},
		{"address not read", "events {}\nhttp {\nupstream web { server 10.0.0.1:http; server 10.0.0.2; } }", "10.0.0.1", nil, spec.Usage, `the address "10.0.0.1:http" at `},
		{"no file", "", "10.0.0.1", func(s *spec.Spec) { s.Nginx.Conf += ".gone" }, spec.Refused, "no such file or directory"},
		{"broken", "events {", "10.0.0.1", nil, spec.Refused, "nginx.conf:1: "},
		{"missing include", "events {}\nhttp {\ninclude gone.conf;" + fourServers + "}", "10.0.0.1", nil, spec.Refused, "nginx.conf:3: include gone.conf: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			var change []func(*spec.Spec)
			if test.change != nil {
				change = append(change, test.change)
			}
			_, err := mainConf(t, test.conf).tryPlan(spec.Drain, test.target, change...)
			var f *spec.Failure
			if !errors.As(err, &f) || f.Exit != test.exit || f.Stands.Standing != spec.Untouched || !strings.Contains(f.Error(), test.says) {
				t.Errorf("got %v (%+v), want exit %d, %q", err, f, test.exit, test.says)
			}
		})
	}
}

// A file that cannot be understood matters only where it may be about the target.
func TestPlanWithStrangeFiles(t *testing.T) {
	for _, test := range []struct {
		name               string
		text               string // of the included file
		refusals, warnings []string
	}{
		{"fine", "upstream other { server 10.0.0.1:8080; server 10.0.0.2; server 10.0.0.3; }", nil, nil},
		{"broken", "server {", nil, []string{"conf.d/x.conf:1: ", "skipped: it does not mention 10.0.0.1"}},
		{"broken, and about the target", "upstream other { server 10.0.0.1:8080; ", []string{"the file mentions 10.0.0.1 and cannot be understood"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := httpConf(t, "include conf.d/*.conf;\n"+fourServers)
			c.write("conf.d/x.conf", test.text)
			p := c.plan(spec.Drain, "10.0.0.1")
			contains(t, "refusals", refusals(p), test.refusals)
			contains(t, "warnings", warnings(p), test.warnings)
			if !slices.Contains(diff(p), "+server 10.0.0.1:8080 down;") {
				t.Errorf("the plan changes %q", diff(p))
			}
		})
	}
	unread := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:80", 3, false, false, true)},
		Skipped: []balancer.Skipped{{File: "/x.conf", Error: "/x.conf: permission denied", Unread: true}}}
	p := reported(spec.Drain, "10.0.0.1", unread)
	contains(t, "findings of a file that may not be read", append(refusals(p), warnings(p)...), nil)
	contains(t, "unchecked", p.Unchecked, []string{"/x.conf: permission denied; what it holds is not known"})
}

// Whose file is in two upstreams is edited once.
func TestPlanEditsASharedLineOnce(t *testing.T) {
	c := httpConf(t, "upstream a { include p.inc; server 10.0.0.2; }\nupstream b { include p.inc; server 10.0.0.2; }")
	c.write("p.inc", "server 10.0.0.1;\nserver 10.0.0.3;\n")
	p := c.plan(spec.Drain, "10.0.0.1")
	if got := diff(p); !slices.Equal(got, []string{"-server 10.0.0.1;", "+server 10.0.0.1 down;"}) {
		t.Errorf("%q", got)
	}
	if n := len(p.LBs[0].Report.Servers); n != 2 {
		t.Errorf("%d servers", n)
	}
	narrowed := c.plan(spec.Drain, "10.0.0.1", func(s *spec.Spec) { s.Upstreams = []string{"a"} })
	contains(t, "refusals", refusals(narrowed), []string{"p.inc:1: the line of 10.0.0.1:80 is included by upstream a and by upstream b alike", "--upstream b"})
}

func TestSteps(t *testing.T) {
	server := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:8080", 3, false, false, true)}}
	serve := func(s *spec.Spec) { s.Service = "app" }
	p := reported(spec.Drain, "10.0.0.1", server, serve)
	if len(p.Steps) != 3 || p.Steps[0].Step != StepMarkDown || p.Steps[1].Step != StepWait || p.Steps[2].Step != StepService || p.Steps[2].Direction != Forward {
		t.Errorf("steps of a drain: %+v", p.Steps)
	}
	if d := p.Steps[0].Description; !slices.Equal(d.Servers, []string{"10.0.0.1:8080 in web"}) {
		t.Errorf("mark down: %+v", d)
	}
	if d := p.Steps[1].Description; d.Counter != "ss on 10.0.0.1" || d.Limit.Duration() != spec.DefaultTimeout || d.OnTimeout != spec.TimeoutRollback {
		t.Errorf("wait: %+v", d)
	}
	if d := p.Steps[2].Description; d.Service != "app" || d.Backend != "10.0.0.1" {
		t.Errorf("stop: %+v", d)
	}
	p = reported(spec.Drain, "10.0.0.1", server, func(s *spec.Spec) { s.Timeout, s.Threshold, s.Counter = 0, 1, spec.CounterLB })
	if d := p.Steps[1].Description; len(p.Steps) != 2 || d.Counter != "the sockets of the load balancer" || d.Limit != 0 || d.Threshold != 1 {
		t.Errorf("wait: %+v", d)
	}
	p = reported(spec.Undrain, "10.0.0.1", server, serve)
	if len(p.Steps) != 3 || p.Steps[0].Step != StepService || p.Steps[1].Step != StepWait || p.Steps[2].Step != StepMarkDown || p.Steps[2].Direction != Reverse {
		t.Errorf("steps of an undrain: %+v", p.Steps)
	}
	if d := p.Steps[1].Description; d.Health != spec.HealthTCP || d.Limit.Duration() != spec.DefaultHealthTimeout {
		t.Errorf("wait: %+v", d)
	}
	// One of two backends has a service, whichever: it is stopped.
	server.Servers = append(server.Servers, line("10.0.0.2:8080", 4, false, false, true))
	for _, served := range []string{"10.0.0.1", "10.0.0.2"} {
		p = reported(spec.Drain, "", server, func(s *spec.Spec) {
			s.Targets, s.PerBackend = []string{"10.0.0.1", "10.0.0.2"}, map[string]json.RawMessage{served: json.RawMessage(`{"service":"app"}`)}
		})
		if n := len(p.Steps); n != 3 || p.Steps[2].Description.Service != "app" || p.Steps[2].Description.Backend != served {
			t.Errorf("the service of %s: %+v", served, p.Steps)
		}
	}
}

// Two targets on one host are one backend; each host has its own.
func TestBackends(t *testing.T) {
	r := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:80", 3, false, false, true), line("10.0.0.1:81", 4, false, false, true), line("10.0.0.2:80", 5, false, false, true), line("unix:/run/a.sock", 6, false, false, true)}}
	p := reported(spec.Drain, "", r, func(s *spec.Spec) { s.Targets = []string{"10.0.0.1:80", "10.0.0.1:81", "10.0.0.2", "unix:/run/a.sock"} })
	if len(p.Backends) != 3 || !slices.Equal(p.Backends[0].Ports, []uint16{80, 81}) || p.Backends[1].Address != "10.0.0.2" || p.Backends[2].Address != "" || len(p.Backends[2].Sockets) != 1 {
		t.Errorf("%+v", p.Backends)
	}
	p = reported(spec.Drain, "", r, func(s *spec.Spec) { s.Targets, s.SSH.Host = []string{"10.0.0.1", "10.0.0.2"}, "bastion" })
	if len(p.Backends) != 1 || p.Backends[0].Address != "bastion" || len(p.Backends[0].Ports) != 2 {
		t.Errorf("with --ssh-host: %+v", p.Backends)
	}
	p = reported(spec.Drain, "", r, func(s *spec.Spec) {
		s.Targets, s.PerBackend = []string{"10.0.0.1", "10.0.0.2"}, map[string]json.RawMessage{"10.0.0.2": json.RawMessage(`{"ssh":{"host":"app-2"}}`)}
	})
	if len(p.Backends) != 2 || p.Backends[0].Address != "10.0.0.1" || p.Backends[1].Name != "10.0.0.2" || p.Backends[1].Address != "app-2" {
		t.Errorf("with the SSH host of one: %+v", p.Backends)
	}
}

// What cannot be known without root is no refusal of a dry run.
func TestDryRunWithoutRoot(t *testing.T) {
	sp := spec.Default(spec.Drain)
	sp.Targets = []string{"10.0.0.1"}
	r := balancer.Report{
		Servers: []balancer.Server{line("10.0.0.1:80", 3, false, false, true)},
		Problems: []balancer.Problem{
			{Code: balancer.ProblemRunning, Text: "not running", Unknown: true},
			{Code: balancer.ProblemTest, Text: "nginx's own test needs root here", Unknown: true},
		},
		StateError: &balancer.Error{Code: balancer.CodePermission, Message: "permission denied"},
	}
	p := New(sp, []LBPlan{{LB: "lb1", Report: &r}}, true)
	contains(t, "refusals", refusals(p), nil)
	contains(t, "unchecked", p.Unchecked, []string{"the running nginx, since none was found", "nginx's own test needs root here", "who drained what: permission denied", "SSH to 10.0.0.1, ss on 10.0.0.1 (a dry run does not log in)"})
	r.Problems = append(r.Problems, balancer.Problem{Code: balancer.ProblemTest, Text: `unknown directive "x"`, Override: "--test-command"})
	contains(t, "refusals", refusals(New(sp, []LBPlan{{LB: "lb1", Report: &r}}, true)), []string{`unknown directive "x" | --test-command`})
	if p := New(sp, []LBPlan{{LB: "lb1", Report: &r}}, false); len(refusals(p)) != 4 || p.ExitCode != spec.Refused {
		t.Errorf("refusals of the real run: %q", refusals(p))
	}
}

// A dry run never claims more than it checked: whatever a run tries and it does not, it names.
func TestDryRunNamesWhatItDoesNotTry(t *testing.T) {
	for _, k := range []spec.Kind{spec.Drain, spec.Undrain, spec.Run} {
		for _, test := range []struct {
			what   string
			change func(*spec.Spec, *balancer.Report)
		}{
			{"the running nginx, since none was found", func(_ *spec.Spec, r *balancer.Report) {
				r.Problems = []balancer.Problem{{Code: balancer.ProblemRunning, Unknown: true, Override: balancer.AllowStopped}}
			}},
			{"nginx's own test", func(_ *spec.Spec, r *balancer.Report) {
				r.Problems = []balancer.Problem{{Code: balancer.ProblemTest, Text: "nginx's own test", Unknown: true}}
			}},
			{"who drained what", func(_ *spec.Spec, r *balancer.Report) {
				r.StateError = &balancer.Error{Code: balancer.CodePermission}
			}},
			{"the unit app, the right to stop and start it", func(s *spec.Spec, _ *balancer.Report) { s.Service, s.Counter = "app", spec.CounterLB }},
			{"SSH to 10.0.0.1", func(s *spec.Spec, _ *balancer.Report) { s.Service = "app" }},
			{"which backends --only-if leaves out", func(s *spec.Spec, _ *balancer.Report) { s.Rollout.OnlyIf = "true" }},
			{"whether --gate lets a batch begin", func(s *spec.Spec, _ *balancer.Report) { s.Rollout.Gate = "true" }},
			{"the right to reboot", func(s *spec.Spec, _ *balancer.Report) { s.Rollout.Reboot = true }},
		} {
			sp := spec.Default(k)
			sp.Targets = []string{"10.0.0.1"}
			isDown := k == spec.Undrain
			r := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:80", 3, isDown, isDown, true)}}
			test.change(&sp, &r)
			p := New(sp, []LBPlan{{LB: "lb1", Report: &r}}, true)
			if got := strings.Join(p.Unchecked, "\n"); !strings.Contains(got, test.what) {
				t.Errorf("%s: not checked: %q, want %q", k, got, test.what)
			}
		}
	}
}

// A finding names the LB that it is about, and one LB that needs an edit is enough for one.
func TestPlanOfTheSecondLB(t *testing.T) {
	sp := spec.Default(spec.Drain)
	sp.Targets = []string{"10.0.0.1"}
	done := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:80", 3, true, true, false)}}
	open := balancer.Report{Servers: []balancer.Server{line("10.0.0.1:80", 3, false, false, true)}, Problems: []balancer.Problem{{Code: balancer.ProblemTest, Text: "unknown directive"}}}
	p := New(sp, []LBPlan{{LB: "lb1", Report: &done}, {LB: "lb2", Report: &open}}, false)
	if len(p.Findings) != 1 || p.Findings[0].LB != "lb2" || p.Unchanged() {
		t.Errorf("findings %+v, unchanged %t", p.Findings, p.Unchanged())
	}
	if p := New(sp, []LBPlan{{LB: "lb1", Report: &done}}, false); !p.Unchanged() {
		t.Error("the plan has an edit, and nothing is to be edited")
	}
}

// Load balancers may name a backend in other upstreams, by another name, or not at
// all: two names of one address are one backend, and what is on no LB is an error.
func TestPlanOverDifferentLBs(t *testing.T) {
	confs := []*confDir{
		httpConf(t, "upstream web { server 127.0.0.1:8080; server 10.0.0.2; server 10.0.0.3; }"),
		httpConf(t, "upstream app { server localhost:8080 weight=2; server 10.0.0.2; server 10.0.0.3; }"),
		httpConf(t, "upstream web { server 10.0.0.2; server 10.0.0.3; }"),
	}
	plan := func(targets ...string) (*Plan, error) {
		sp := spec.Default(spec.Drain)
		sp.Targets, sp.Allow.AllAddresses = targets, true
		var reports []LBPlan
		for i, c := range confs {
			o, err := c.spec(spec.Drain, "").Nginx.Options()
			if err != nil {
				t.Fatal(err)
			}
			lb := balancer.NewLocal(o)
			defer lb.Close()
			q := Query(sp)
			q.Preflight = false
			r, err := lb.Plan(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			reports = append(reports, LBPlan{LB: "lb" + strconv.Itoa(i+1), Report: r})
		}
		return New(sp, reports, false), MissingEverywhere(sp, reports)
	}
	p, err := plan("10.0.0.2")
	if err != nil || len(p.Backends) != 1 || !slices.Equal(p.Backends[0].Upstreams, []string{"web", "app"}) {
		t.Errorf("%v, backends %+v", err, p.Backends)
	}
	if n := len(p.LBs[0].Report.Servers); n != 1 {
		t.Errorf("%d servers are changed on lb1", n)
	}
	_, err = plan("10.0.0.9")
	if err == nil || !strings.Contains(err.Error(), "no server 10.0.0.9 in any upstream of "+confs[0].path("nginx.conf")) {
		t.Errorf("got %v", err)
	}
	if _, err = plan("10.0.0.2", "10.0.0.9"); err == nil || strings.Contains(err.Error(), "no server 10.0.0.2") {
		t.Errorf("got %v", err)
	}
	// What is on the loopback interface is a backend on each LB that has it.
	p, err = plan("127.0.0.1", "localhost")
	contains(t, "warnings", warnings(p), []string{"localhost is no server of", "127.0.0.1 is no server of"})
	if err != nil || len(p.Backends) != 2 || p.Backends[0].LB != "lb1" || p.Backends[1].LB != "lb2" {
		t.Errorf("%v, backends %+v", err, p.Backends)
	}
	// One address by two names.
	r := func(s balancer.Server, n balancer.Name) LBPlan {
		return LBPlan{LB: s.File, Report: &balancer.Report{Servers: []balancer.Server{s}, Names: []balancer.Name{n}}}
	}
	sp := spec.Default(spec.Drain)
	sp.Targets = []string{"10.0.0.1", "app1.example.com"}
	one := backendsOf(sp, []LBPlan{
		r(line("10.0.0.1:80", 3, false, false, true), balancer.Name{}),
		r(line("app1.example.com:80", 3, false, false, true), balancer.Name{Host: "app1.example.com", Addresses: addrs("10.0.0.1")}),
	})
	if len(one) != 1 || one[0].Name != "10.0.0.1" || !slices.Equal(one[0].Targets, sp.Targets) || !slices.Equal(one[0].Ports, []uint16{80}) {
		t.Errorf("two names of one address: %+v", one)
	}
}

// A backend that takes UDP alone is counted on the load balancer, and no TCP connection shows its health.
func TestPlanOfUDPBackends(t *testing.T) {
	udp, tcp := line("10.0.0.1:53", 3, false, false, true), line("10.0.0.1:80", 4, false, false, true)
	udp.UDP, udp.OnlyUDP = true, true
	for _, test := range []struct {
		name            string
		servers         []balancer.Server
		change          func(*spec.Spec)
		counter, health string
		unchecked       bool
	}{
		{"UDP", []balancer.Server{udp}, func(s *spec.Spec) { s.Service = "app" }, "the sockets of the load balancer", spec.HealthUDP, false},
		{"without a service", []balancer.Server{udp}, func(*spec.Spec) {}, "the sockets of the load balancer", spec.HealthNone, false},
		{"and back", []balancer.Server{udp}, func(s *spec.Spec) { s.Kind = spec.Undrain }, "the sockets of the load balancer", spec.HealthNone, true},
		{"a reboot", []balancer.Server{udp}, func(s *spec.Spec) { s.Kind, s.Rollout.Reboot = spec.Run, true }, "the sockets of the load balancer", spec.HealthUDP, false},
		{"a URL", []balancer.Server{udp}, func(s *spec.Spec) { s.Health = "http://{host}/" }, "the sockets of the load balancer", "http://10.0.0.1/", false},
		{"a page", []balancer.Server{udp}, func(s *spec.Spec) { s.Counter, s.StatusURL = spec.CounterStubStatus, "http://{host}/" }, "stub_status at http://10.0.0.1/", spec.HealthNone, false},
		{"UDP and TCP", []balancer.Server{udp, tcp}, func(s *spec.Spec) { s.Service = "app" }, "ss on 10.0.0.1", spec.HealthTCP, false},
	} {
		p := reported(spec.Drain, "10.0.0.1", balancer.Report{Servers: test.servers}, test.change)
		b := p.Backends[0]
		if b.CounterText() != test.counter || b.HealthCheck() != test.health || len(p.Unchecked) > 0 != test.unchecked {
			t.Errorf("%s: counted by %s, health %s, not checked: %q", test.name, b.CounterText(), b.HealthCheck(), p.Unchecked)
		}
	}
}
