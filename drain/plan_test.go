package drain

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/drainctl/drainctl/nginx"
)

// fourServers keeps two live servers when one is drained.
const fourServers = `upstream web {
	server 10.0.0.1:8080;
	server 10.0.0.2:8080 weight=3 down;
	server 10.0.0.3:8080;
	server 10.0.0.4:8080;
}`

// texts is the new text of every file that a plan changes.
func texts(p *Plan) map[string]string {
	all := map[string]string{}
	for _, part := range p.LBs {
		for _, c := range part.Changes {
			all[c.Path] = c.Now
		}
	}
	return all
}

func TestPlanChangesOneWord(t *testing.T) {
	host := httpConf(fourServers)
	before := host.files[mainConf]
	for _, test := range []struct {
		op       Operation
		target   string
		was, now string // of the line; empty: nothing is changed
	}{
		{Drain, "10.0.0.1", "10.0.0.1:8080;", "10.0.0.1:8080 down;"},
		{Drain, "10.0.0.1:8080", "10.0.0.1:8080;", "10.0.0.1:8080 down;"},
		{Drain, "10.0.0.2", "", ""},
		{Undrain, "10.0.0.1", "", ""},
		{Undrain, "10.0.0.2", "weight=3 down;", "weight=3;"},
	} {
		t.Run(fmt.Sprintf("%s %s", test.op, test.target), func(t *testing.T) {
			p := plan(t, ask(t, test.op, host, test.target, func(r *Request) { r.Force = true }))
			want := map[string]string{}
			if test.was != "" {
				want[mainConf] = strings.Replace(before, test.was, test.now, 1)
			}
			if got := texts(p); !maps.Equal(got, want) {
				t.Errorf("the plan makes %q, want %q", got, want)
			}
			if p.Already() != (test.was == "") {
				t.Errorf("already so: %t", p.Already())
			}
			if err := p.Verdict(); err != nil {
				t.Errorf("verdict %v", err)
			}
		})
	}
}

// Whatever is drained and undrained again is as it was, byte for byte.
func TestPlanThereAndBack(t *testing.T) {
	for _, conf := range []string{
		fourServers,
		"upstream web {server 10.0.0.1:8080;server 10.0.0.2;}",
		"upstream web {\r\n\tserver\t10.0.0.1:8080\t;\r\n\tserver 10.0.0.2;\r\n}\r\n",
		"upstream web { server '10.0.0.1:8080' # the old one;\n weight=2\n; server 10.0.0.2; }",
		"upstream web { server 10.0.0.1:8080; server 10.0.0.2; } upstream api { server 10.0.0.1:9000 backup; server 10.0.0.2; }",
		"upstream web { include pool.inc; server 10.0.0.2; } upstream api { include pool.inc; server 10.0.0.2; }",
		"upstream web { include pool.inc; include pool.inc; server 10.0.0.2; }",
	} {
		host := httpConf(conf)
		host.files["/etc/nginx/pool.inc"] = "server 10.0.0.1:8080 weight=2;server 10.0.0.4;"
		before := maps.Clone(host.files)
		down := plan(t, ask(t, Drain, host, "10.0.0.1"))
		if down.Already() {
			t.Errorf("nothing is drained in %s", conf)
		}
		carryOut(t, down)
		for _, s := range plan(t, ask(t, Drain, host, "10.0.0.1")).LBs[0].Servers {
			if !s.IsDown() {
				t.Errorf("%s:%d is not down", s.File.Path, s.Line())
			}
		}
		again := plan(t, ask(t, Drain, host, "10.0.0.1"))
		if !again.Already() {
			t.Errorf("drained twice: %q", texts(again))
		}
		up := plan(t, ask(t, Undrain, host, "10.0.0.1"))
		contains(t, "refusals of the undrain", refusalTexts(up), nil)
		contains(t, "warnings of the undrain", up.Warnings, nil)
		carryOut(t, up)
		for name, text := range before {
			if host.files[name] != text {
				t.Errorf("there and back: %s is %q, want %q", name, host.files[name], text)
			}
		}
	}
}

func TestPlanNotMade(t *testing.T) {
	twins := on("events {} http { upstream pool { server 10.0.0.1; server 10.0.0.2; } } stream { upstream pool { server 10.0.0.1; server 10.0.0.3; } }")
	upstreams := func(names ...string) func(*Request) { return func(r *Request) { r.Upstreams = names } }
	for _, test := range []struct {
		name   string
		host   *paper
		target string
		change func(*Request)
		kind   Kind
		says   string
	}{
		{"no such server", httpConf(fourServers), "10.0.0.9:8080", nil, Misused, "no server 10.0.0.9:8080 in any upstream of /etc/nginx/nginx.conf; did you mean 10.0.0.1:8080 in web, or 10.0.0.2:8080 in web, or 10.0.0.3:8080 in web?"},
		{"another port", httpConf(fourServers), "10.0.0.1:80", nil, Misused, "did you mean 10.0.0.1:8080 in web"},
		{"nothing near", httpConf(fourServers), "app.example.com", nil, Misused, "it has web"},
		{"no upstreams", httpConf(""), "10.0.0.1", nil, Misused, "it has none"},
		{"no such upstream", httpConf(fourServers), "10.0.0.1", upstreams("wbe"), Misused, `no upstream "wbe" in /etc/nginx/nginx.conf; it has web`},
		{"one of two upstreams", httpConf(fourServers), "10.0.0.1", upstreams("web", "wbe"), Misused, `no upstream "wbe"`},
		{"twins", twins, "10.0.0.1", upstreams("pool"), Misused, `there are 2 upstreams "pool": say http/pool or stream/pool`},
		{"in the other twin", twins, "10.0.0.3", upstreams("http/pool"), Misused, "no server 10.0.0.3 in upstream http/pool of /etc/nginx/nginx.conf; it is in stream/pool"},
		{"address not read", httpConf("upstream web { server 10.0.0.1:http; server 10.0.0.2; }"), "10.0.0.1", nil, Misused, `the address "10.0.0.1:http" at /etc/nginx/nginx.conf:3 could not be read`},
		{"no file", &paper{}, "10.0.0.1", nil, Refused, "read the configuration: open /etc/nginx/nginx.conf: file does not exist"},
		{"secret", &paper{secret: []string{mainConf}}, "10.0.0.1", nil, Refused, "permission denied"},
		{"broken", on("events {"), "10.0.0.1", nil, Refused, "/etc/nginx/nginx.conf:1: "},
		{"missing include", httpConf("include gone.conf;" + fourServers), "10.0.0.1", nil, Refused, "/etc/nginx/nginx.conf:3: include gone.conf: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := ask(t, Drain, test.host, test.target)
			if test.change != nil {
				test.change(req)
			}
			_, err := Read(t.Context(), req)
			var f *Failure
			if !errors.As(err, &f) || f.Kind != test.kind || f.Now != "nothing was touched" || !strings.Contains(f.Error(), test.says) {
				t.Errorf("got %v (%+v), want kind %d, %q", err, f, test.kind, test.says)
			}
		})
	}
}

// A file that cannot be read or understood matters only where it may be about
// the target.
func TestPlanWithStrangeFiles(t *testing.T) {
	for _, test := range []struct {
		name                          string
		text                          string // of the included file; empty: it may not be read
		refusals, warnings, unchecked []string
	}{
		{"fine", "upstream other { server 10.0.0.1:8080; server 10.0.0.2; server 10.0.0.3; }", nil, nil, nil},
		{"broken", "server {", nil, []string{"/etc/nginx/conf.d/x.conf:1: ", "passed over: it does not mention 10.0.0.1"}, nil},
		{"broken, and about the target", "upstream other { server 10.0.0.1:8080; ", []string{"the file mentions 10.0.0.1 and cannot be understood"}, nil, nil},
		{"secret", "", nil, nil, []string{"/etc/nginx/conf.d/x.conf: ", "permission denied; what it holds is not known"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := httpConf("include conf.d/*.conf;\n" + fourServers)
			if test.text == "" {
				host.secret = []string{"/etc/nginx/conf.d/x.conf"}
			} else {
				host.files["/etc/nginx/conf.d/x.conf"] = test.text
			}
			p := plan(t, ask(t, Drain, host, "10.0.0.1"))
			contains(t, "refusals", refusalTexts(p), test.refusals)
			contains(t, "warnings", p.Warnings, test.warnings)
			contains(t, "unchecked", p.Unchecked, test.unchecked)
			if now := texts(p)[mainConf]; !strings.Contains(now, "10.0.0.1:8080 down;") {
				t.Errorf("the plan makes %q", now)
			}
		})
	}
}

func refusalTexts(p *Plan) []string {
	var all []string
	for _, r := range p.Refusals {
		all = append(all, r.Text+" | "+r.Override)
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

// Whose file is in two upstreams is edited once.
func TestPlanEditsASharedLineOnce(t *testing.T) {
	host := httpConf("upstream a { include p.inc; server 10.0.0.2; }\nupstream b { include p.inc; server 10.0.0.2; }")
	host.files["/etc/nginx/p.inc"] = "server 10.0.0.1;\nserver 10.0.0.3;\n"
	p := plan(t, ask(t, Drain, host, "10.0.0.1"))
	if got := texts(p); len(got) != 1 || got["/etc/nginx/p.inc"] != "server 10.0.0.1 down;\nserver 10.0.0.3;\n" {
		t.Errorf("%q", got)
	}
	if len(p.LBs[0].Servers) != 2 {
		t.Errorf("%d servers", len(p.LBs[0].Servers))
	}
	narrowed := plan(t, ask(t, Drain, host, "10.0.0.1", func(r *Request) { r.Upstreams = []string{"a"} }))
	contains(t, "refusals", refusalTexts(narrowed), []string{"/etc/nginx/p.inc:1: the line of 10.0.0.1:80 is included by upstream a and by upstream b alike", "--upstream b"})
	if narrowed.Verdict() == nil {
		t.Error("no verdict")
	}
}

func TestSteps(t *testing.T) {
	host := httpConf(fourServers)
	with := func(r *Request) { r.Service, r.BackendName = "app", "app-1" }
	for _, test := range []struct {
		req  *Request
		want []string
	}{
		{ask(t, Drain, host, "10.0.0.1", with), []string{
			"mark 10.0.0.1:8080 in web down, test, reload, see the new generation serve",
			"wait until no connection is open, by ss on app-1 (at most 5m, then roll back)",
			"stop app on app-1, see it inactive"}},
		{ask(t, Drain, host, "10.0.0.1", func(r *Request) { r.Timeout, r.Threshold, r.Poll = 0, 1, PollLB }), []string{
			"mark 10.0.0.1:8080 in web down, test, reload, see the new generation serve",
			"wait until 1 connection or fewer are open, by ss on the load balancer (no limit)"}},
		{ask(t, Undrain, host, "10.0.0.2", with), []string{
			"start app on app-1, see it active",
			"wait until healthy: TCP connect from the load balancer (at most 1m, then roll back)",
			"clear down on 10.0.0.2:8080 in web, test, reload, see the new generation serve"}},
	} {
		if got := plan(t, test.req).Steps(); !slices.Equal(got, test.want) {
			t.Errorf("steps %q, want %q", got, test.want)
		}
	}
}

// A dry run has nginx judge as the user that it is, and says what it could not
// ask. It never runs anything as root: the paper host would fail it.
func TestDryRun(t *testing.T) {
	for _, test := range []struct {
		name      string
		code      int
		says      string
		refusals  []string
		unchecked []string
	}{
		{"passes", 0, "", nil, []string{"whether nginx runs", "SSH to 10.0.0.1, ss (a dry run does not log in)"}},
		{"no nginx", 127, "", nil, []string{"nginx's own test of the configuration: there is no nginx here to run"}},
		{"no rights", 1, "nginx: [emerg] open() \"/run/nginx.pid\" failed (13: Permission denied)\n", nil, []string{"it needs root here", "/run/nginx.pid"}},
		{"wrong", 1, "nginx: [emerg] unknown directive \"x\" in /etc/nginx/nginx.conf:1\n", []string{`unknown directive "x"`, "--test-command"}, []string{"whether nginx runs"}},
		{"wrong, and no rights", 1, "nginx: [alert] could not open error log file: open() \"/x\" failed (13: Permission denied)\nnginx: [emerg] unknown directive \"x\" in /etc/nginx/nginx.conf:1\n", []string{`unknown directive "x"`}, []string{"whether nginx runs"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := httpConf(fourServers)
			host.test.Code, host.test.Stderr = test.code, []byte(test.says)
			p, err := DryRun(t.Context(), ask(t, Drain, host, "10.0.0.1"))
			if err != nil {
				t.Fatal(err)
			}
			contains(t, "refusals", refusalTexts(p), test.refusals)
			contains(t, "unchecked", p.Unchecked, test.unchecked)
			if (KindOf(p.Verdict()) == Refused) != (test.refusals != nil) {
				t.Errorf("verdict %v", p.Verdict())
			}
		})
	}
}

func TestOnLB(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1": true, "127.8.8.8:80": true, "::1": true, "[::1]:80": true, "localhost:80": true, "LocalHost": true,
		"unix:/run/app.sock": true, "10.0.0.1": false, "localhost.example.com": false, "0.0.0.0": false,
	} {
		to, err := nginx.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		if OnLB(to) != want {
			t.Errorf("%s is on the load balancer: %t, want %t", target, !want, want)
		}
	}
}

func TestOverSSH(t *testing.T) {
	host := httpConf(fourServers)
	for _, test := range []struct {
		name   string
		op     Operation
		target string
		change func(*Request)
		want   bool
	}{
		{"drain", Drain, "10.0.0.1", func(*Request) {}, true},
		{"counted here", Drain, "10.0.0.1", func(r *Request) { r.Poll = PollLB }, false},
		{"counted here, service there", Drain, "10.0.0.1", func(r *Request) { r.Poll, r.Service = PollLB, "app" }, true},
		{"status from here", Drain, "10.0.0.1", func(r *Request) { r.Poll, r.StatusURL = PollStubStatus, "http://10.0.0.1/s" }, false},
		{"status there", Drain, "10.0.0.1", func(r *Request) { r.Poll, r.StatusURL = PollStubStatus, "http://localhost/s" }, true},
		{"local", Drain, "127.0.0.1:80", func(r *Request) { r.Service = "app" }, false},
		{"undrain", Undrain, "10.0.0.1", func(*Request) {}, false},
		{"undrain with a service", Undrain, "10.0.0.1", func(r *Request) { r.Service = "app" }, true},
	} {
		if got := ask(t, test.op, host, test.target, test.change).OverSSH(); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}
