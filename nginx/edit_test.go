package nginx

import (
	"maps"
	"path"
	"strings"
	"testing"
)

// editCases are files with an upstream, before the servers at 127.0.0.1 are
// marked down and after. Where only src and want are given, they stand inside
// of an upstream u in the main file. Each is put to the real nginx too.
var editCases = []struct {
	name        string
	src, want   string
	files       map[string]string // instead of src, by name; "nginx.conf" is one
	wantFiles   map[string]string // those that change
	unnamed     bool              // no server is at 127.0.0.1
	nginxCannot bool              // what nginx 1.22 does not take: a module it lacks
}{
	{name: "plain", src: "server 127.0.0.1:81;", want: "server 127.0.0.1:81 down;"},
	{name: "parameters", src: "server 127.0.0.1:81 weight=5  max_fails=3 ;", want: "server 127.0.0.1:81 weight=5  max_fails=3 down ;"},
	{name: "backup", src: "server 127.0.0.2; server 127.0.0.1:81 backup;", want: "server 127.0.0.2; server 127.0.0.1:81 backup down;"},
	{name: "several on a line", src: "server 127.0.0.1:81;server 127.0.0.2:82;server 127.0.0.1:83;",
		want: "server 127.0.0.1:81 down;server 127.0.0.2:82;server 127.0.0.1:83 down;"},
	{name: "over several lines", src: "server\n\t127.0.0.1:81\n  # one; server 127.0.0.1:82;\n\tweight=2\n  # two\n;",
		want: "server\n\t127.0.0.1:81\n  # one; server 127.0.0.1:82;\n\tweight=2 down\n  # two\n;"},
	{name: "comment before the semicolon", src: "server 127.0.0.1:81 # first\n;", want: "server 127.0.0.1:81 down # first\n;"},
	{name: "comment after", src: "server 127.0.0.1:81; # down;\n", want: "server 127.0.0.1:81 down; # down;\n"},
	{name: "commented out", src: "# server 127.0.0.1:81;\n server 127.0.0.1:82;", want: "# server 127.0.0.1:81;\n server 127.0.0.1:82 down;"},
	{name: "double quotes", src: `server "127.0.0.1:81";`, want: `server "127.0.0.1:81" down;`},
	{name: "quoted parameter", src: `server '127.0.0.1:81' "weight=5";`, want: `server '127.0.0.1:81' "weight=5" down;`},
	{name: "CRLF", src: "server 127.0.0.1:81;\r\nserver 127.0.0.2:81;\r\n", want: "server 127.0.0.1:81 down;\r\nserver 127.0.0.2:81;\r\n"},
	{name: "CRLF before the semicolon", src: "server 127.0.0.1:81\r\n;\r\n", want: "server 127.0.0.1:81 down\r\n;\r\n"},
	{name: "tabs", src: "\tserver\t127.0.0.1:81\tweight=1\t;", want: "\tserver\t127.0.0.1:81\tweight=1 down\t;"},
	{name: "down already", src: "server 127.0.0.1:81 down;", want: "server 127.0.0.1:81 down;"},
	{name: "down already, in quotes", src: `server 127.0.0.1:81 "down";`, want: `server 127.0.0.1:81 "down";`},
	{name: "one down already", src: "server 127.0.0.1:81 down; server 127.0.0.1:82;", want: "server 127.0.0.1:81 down; server 127.0.0.1:82 down;"},
	{name: "no server of that address", src: "server 127.0.0.11:81; server 127.0.0.2;", want: "server 127.0.0.11:81; server 127.0.0.2;", unnamed: true},
	{name: "the same server twice", src: "server 127.0.0.1:81; server 127.0.0.1:81;", want: "server 127.0.0.1:81 down; server 127.0.0.1:81 down;"},
	{name: "other directives", src: "zone z 64k; server 127.0.0.1:81; keepalive 3;", want: "zone z 64k; server 127.0.0.1:81 down; keepalive 3;"},
	{name: "text in no encoding", src: "# caf\xe9\n server 127.0.0.1:81; # \xff\xfe\n", want: "# caf\xe9\n server 127.0.0.1:81 down; # \xff\xfe\n"},
	{name: "lua block", src: "server 127.0.0.1:81; balancer_by_lua_block { local server = '} 127.0.0.1:81;' }",
		want: "server 127.0.0.1:81 down; balancer_by_lua_block { local server = '} 127.0.0.1:81;' }", nginxCannot: true},
	{name: "no final newline",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.1:81; } }"},
		wantFiles: map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.1:81 down; } }"}},
	{name: "byte order mark",
		files:       map[string]string{"nginx.conf": "\xef\xbb\xbfevents {}\nhttp { upstream u { server 127.0.0.1:81; } }"},
		wantFiles:   map[string]string{"nginx.conf": "\xef\xbb\xbfevents {}\nhttp { upstream u { server 127.0.0.1:81 down; } }"},
		nginxCannot: true},
	{name: "stream",
		files:     map[string]string{"nginx.conf": "events {} stream { upstream u { server 127.0.0.1:81; } }"},
		wantFiles: map[string]string{"nginx.conf": "events {} stream { upstream u { server 127.0.0.1:81 down; } }"}},
	{name: "two upstreams",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.1:81; } upstream v { server 127.0.0.2:81; server 127.0.0.1:82; } }"},
		wantFiles: map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.1:81 down; } upstream v { server 127.0.0.2:81; server 127.0.0.1:82 down; } }"}},
	{name: "odd words elsewhere",
		files:     map[string]string{"nginx.conf": "events {} http { log_format f '${uri} \\' { ; }'; map $uri $x { ~^/a\\{2\\} 'b;'; \"~x{2}\" ${uri}c; } upstream u { server 127.0.0.1:81; } server { location ~ \"^/x{1,3}$\" { return 200 '}{'; } } }"},
		wantFiles: map[string]string{"nginx.conf": "events {} http { log_format f '${uri} \\' { ; }'; map $uri $x { ~^/a\\{2\\} 'b;'; \"~x{2}\" ${uri}c; } upstream u { server 127.0.0.1:81 down; } server { location ~ \"^/x{1,3}$\" { return 200 '}{'; } } }"}},
	{name: "fragment in an upstream",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.2; include f; server 127.0.0.1:83; } }", "f": "server 127.0.0.1:81;\nserver 127.0.0.2:82;"},
		wantFiles: map[string]string{"nginx.conf": "events {} http { upstream u { server 127.0.0.2; include f; server 127.0.0.1:83 down; } }", "f": "server 127.0.0.1:81 down;\nserver 127.0.0.2:82;"}},
	{name: "fragment twice in an upstream",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { include f; include f; } }", "f": "server 127.0.0.1:81;\nserver 127.0.0.2:82;"},
		wantFiles: map[string]string{"f": "server 127.0.0.1:81 down;\nserver 127.0.0.2:82;"}},
	{name: "fragment in two upstreams",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { include f; } upstream v { server 127.0.0.3; include f; } }", "f": "server 127.0.0.2:82; server 127.0.0.1:81;"},
		wantFiles: map[string]string{"f": "server 127.0.0.2:82; server 127.0.0.1:81 down;"}},
	{name: "fragment in a fragment",
		files:     map[string]string{"nginx.conf": "events {} http { upstream u { include f; } }", "f": "include g; server 127.0.0.2;", "g": "server 127.0.0.1;"},
		wantFiles: map[string]string{"g": "server 127.0.0.1 down;"}},
	{name: "upstream in an included file",
		files:     map[string]string{"nginx.conf": "events {} http { include conf.d/*.conf; }", "conf.d/u.conf": "upstream u {\n server 127.0.0.1:81;\n}\n"},
		wantFiles: map[string]string{"conf.d/u.conf": "upstream u {\n server 127.0.0.1:81 down;\n}\n"}},
}

// clearCases are upstreams of which every server at 127.0.0.1 loses its downs.
var clearCases = []struct{ name, src, want string }{
	{"plain", "server 127.0.0.1:81 down;", "server 127.0.0.1:81;"},
	{"in the middle", "server 127.0.0.1:81 down weight=2;", "server 127.0.0.1:81 weight=2;"},
	{"many blanks", "server 127.0.0.1:81 \t  down \t;", "server 127.0.0.1:81 \t;"},
	{"twice", "server 127.0.0.1:81 down down;", "server 127.0.0.1:81;"},
	{"twice, apart", "server 127.0.0.1:81 down weight=2\tdown;", "server 127.0.0.1:81 weight=2;"},
	{"in quotes", `server "127.0.0.1:81" "down" 'down';`, `server "127.0.0.1:81";`},
	{"on its own line", "server 127.0.0.1:81\n  down\n;", "server 127.0.0.1:81\n;"},
	{"on its own line, CRLF", "server 127.0.0.1:81\r\n  down;\r\n", "server 127.0.0.1:81;\r\n"},
	{"after a comment", "server 127.0.0.1:81 # one\n  down;", "server 127.0.0.1:81 # one\n;"},
	{"after a comment, CRLF", "server 127.0.0.1:81 # one\r\n  down;", "server 127.0.0.1:81 # one\r\n;"},
	{"after two comments", "server 127.0.0.1:81 # one\n # down\n\n down;", "server 127.0.0.1:81 # one\n # down\n;"},
	{"before a comment", "server 127.0.0.1:81 down # down\n;", "server 127.0.0.1:81 # down\n;"},
	{"between comments", "server 127.0.0.1:81 # a\n down # b\n weight=2;", "server 127.0.0.1:81 # a\n # b\n weight=2;"},
	{"others stay", "server 127.0.0.2 down; server 127.0.0.1:81 down; server 127.0.0.3 down;",
		"server 127.0.0.2 down; server 127.0.0.1:81; server 127.0.0.3 down;"},
	{"not down", "server 127.0.0.1:81 backup; server 127.0.0.2;", "server 127.0.0.1:81 backup; server 127.0.0.2;"},
	{"a word that begins with down", "server 127.0.0.1:81 downs;", "server 127.0.0.1:81 downs;"},
}

// inUpstream is a main file around servers.
func inUpstream(servers string) string {
	return "events {}\nhttp {\nupstream u {\n" + servers + "\n}\n}\n"
}

// files of a case, by their full names.
func caseFiles(dir, src string, files map[string]string) memory {
	if src != "" {
		files = map[string]string{"nginx.conf": inUpstream(src)}
	}
	m := memory{}
	for name, text := range files {
		m[path.Join(dir, name)] = text
	}
	return m
}

// edited is files after every server that the target names was marked down, or
// cleared of it, by all the steps that a drain takes.
func edited(t testing.TB, files memory, to Target, down bool) memory {
	t.Helper()
	c := parseFiles(t, files)
	var all []Edit
	byFile := map[*File][]Edit{}
	for _, s := range c.Match(to, nil) {
		if err := s.Upstream.CrossCheck(); err != nil {
			t.Fatalf("CrossCheck: %v", err)
		}
		edits := s.Edits(down)
		all = append(all, edits...)
		byFile[s.File] = append(byFile[s.File], edits...)
	}
	if err := c.Verify(all); err != nil {
		t.Fatalf("Verify: %v", err)
	}
	after := maps.Clone(files)
	for f, edits := range byFile {
		text, err := Apply(f.Src, edits)
		if err != nil {
			t.Fatalf("Apply: %v", err)
		}
		after[f.Path] = text
	}
	return after
}

func sameFiles(t *testing.T, got, want memory) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s is\n%q\nwant\n%q", name, got[name], want[name])
		}
	}
}

func TestMarkDown(t *testing.T) {
	to := target(t, "127.0.0.1")
	for _, c := range editCases {
		t.Run(c.name, func(t *testing.T) {
			before := caseFiles("/etc/nginx", c.src, c.files)
			want := maps.Clone(before)
			maps.Copy(want, caseFiles("/etc/nginx", c.want, c.wantFiles))

			after := edited(t, before, to, true)
			sameFiles(t, after, want)
			servers := parseFiles(t, after).Match(to, nil)
			if len(servers) == 0 != c.unnamed {
				t.Errorf("%d servers after the edit", len(servers))
			}
			for _, s := range servers {
				if !s.IsDown() {
					t.Errorf("server %s on line %d is not down", s.Address, s.Line())
				}
			}
			if strings.Contains(c.name, "already") {
				return // there was a down before, which undoing by hand would take too
			}
			sameFiles(t, edited(t, after, to, false), before)
		})
	}
}

func TestClearDown(t *testing.T) {
	to := target(t, "127.0.0.1")
	for _, c := range clearCases {
		t.Run(c.name, func(t *testing.T) {
			after := edited(t, caseFiles("/etc/nginx", c.src, nil), to, false)
			sameFiles(t, after, caseFiles("/etc/nginx", c.want, nil))
		})
	}
}

func TestEditsAgainstNginx(t *testing.T) {
	needNginx(t)
	check := func(t *testing.T, files map[string]string) {
		t.Helper()
		dir := t.TempDir()
		files = maps.Clone(files)
		files["nginx.conf"] = "load_module " + streamModule + ";\n" + files["nginx.conf"]
		write(t, dir, files)
		out, ok := ask(t, dir, "-T")
		if !ok {
			t.Fatalf("nginx refuses it: %s", out)
		}
		for name, text := range files {
			if !strings.Contains(out, text) {
				t.Errorf("nginx does not load %s as it is", name)
			}
		}
	}
	for _, c := range editCases {
		if c.nginxCannot {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			files := c.files
			if c.src != "" {
				files = map[string]string{"nginx.conf": inUpstream(c.src)}
			}
			check(t, files)
			after := maps.Clone(files)
			if c.src != "" {
				after["nginx.conf"] = inUpstream(c.want)
			}
			maps.Copy(after, c.wantFiles)
			check(t, after)
		})
	}
	for _, c := range clearCases {
		if c.name == "a word that begins with down" {
			continue // nginx refuses it
		}
		t.Run("clear "+c.name, func(t *testing.T) {
			check(t, map[string]string{"nginx.conf": inUpstream(c.src)})
			check(t, map[string]string{"nginx.conf": inUpstream(c.want)})
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for _, edits := range [][]Edit{
		{{Start: 0, End: 3}, {Start: 2, End: 4}},
		{{Start: -1, End: 0}},
		{{Start: 3, End: 2}},
		{{Start: 5, End: 11}},
		{{Start: 0, End: 3}, {Start: 0, End: 3, New: "x"}},
	} {
		if got, err := Apply("0123456789", edits); err == nil {
			t.Errorf("Apply(%v) = %q, want an error", edits, got)
		}
	}
	got, err := Apply("0123456789", []Edit{{Start: 8, End: 10}, {Start: 2, End: 2, New: "x"}, {Start: 2, End: 2, New: "x"}, {Start: 0, End: 1, New: "y"}})
	if err != nil || got != "y1x234567" {
		t.Errorf("Apply = %q, %v", got, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	conf := parse(t, inUpstream("server 10.0.0.1:81; # one\nserver 10.0.0.2:82 down;")+
		"http { upstream v { server 10.0.0.4:84; server 10.0.0.5:85 down; } } # the end\n")
	one, two := conf.Upstreams[0].Servers[0], conf.Upstreams[0].Servers[1]
	other, otherDown := conf.Upstreams[1].Servers[0], conf.Upstreams[1].Servers[1]
	end := func(s *Server) int { return int(s.Words()[len(s.Words())-1].End) }
	at := func(s *Server, from, to int, text string) []Edit {
		return []Edit{{File: s.File, Start: from, End: to, New: text, Server: s, Down: s == one || text == " down"}}
	}
	with := func(s *Server, edits []Edit) []Edit {
		return append(edits, s.Edits(!s.IsDown())...)
	}
	cases := []struct {
		name  string
		edits []Edit
	}{
		{"marks a server of another upstream instead", at(one, end(other), end(other), " down")},
		{"marks a server of another upstream too", with(one, at(one, end(other), end(other), " down"))},
		{"clears a server of another upstream too", with(one, at(one, end(otherDown)-5, end(otherDown), ""))},
		{"renames another upstream too", with(one, at(one, int(conf.Upstreams[1].At)+9, int(conf.Upstreams[1].At)+10, "w"))},
		{"removes another upstream too", with(one, at(one, int(conf.Upstreams[1].At), int(conf.Upstreams[1].At), "x"))},
		{"adds an upstream too", with(one, at(one, int(conf.Upstreams[1].At), int(conf.Upstreams[1].At), "upstream w {} "))},
		{"breaks the file elsewhere", with(one, at(one, len(conf.Files[0].Src), len(conf.Files[0].Src), "}"))},
		{"marks another server", at(two, end(one), end(one), " down")},
		{"marks none", at(one, end(one), end(one), " ")},
		{"clears none", at(two, end(two), end(two), " ")},
		{"changes a parameter", at(one, end(one), end(one), " down weight=2")},
		{"changes the address", at(one, end(one)-1, end(one), "3 down")},
		{"removes a server", at(one, int(one.At), end(one)+1, "")},
		{"adds a server", at(one, end(one), end(one), " down; server 10.0.0.3")},
		{"comments out", at(one, end(one), end(one), " down #")},
		{"breaks a quote", at(one, end(one), end(one), " down \"")},
		{"closes the block", at(one, end(one), end(one), " down; } server x")},
	}
	for _, c := range cases {
		if err := conf.Verify(c.edits); err == nil {
			t.Errorf("an edit that %s is verified", c.name)
		}
	}
	if err := parse(t, conf.Files[0].Src).Verify(one.Edits(true)); err == nil {
		t.Error("an edit of another configuration's file is verified")
	}
	if err := conf.Verify(one.Edits(true)); err != nil {
		t.Error(err)
	}
	if err := conf.Verify(two.Edits(false)); err != nil {
		t.Error(err)
	}
	if err := conf.Verify(nil); err != nil {
		t.Errorf("no edits: %v", err)
	}
}

func TestServerParameters(t *testing.T) {
	s := parse(t, inUpstream(`server a:1 weight=5 "fail_timeout=10s" backup weight=6;`)).Upstreams[0].Servers[0]
	if s.Param("weight") != "5" || s.Param("fail_timeout") != "10s" || s.Param("max_fails") != "" {
		t.Errorf("weight %q, fail_timeout %q, max_fails %q", s.Param("weight"), s.Param("fail_timeout"), s.Param("max_fails"))
	}
	if !s.Has("backup") || s.Has("weight") || s.Has("a:1") || s.IsPrimary() || s.IsDown() || s.Line() != 4 {
		t.Errorf("server reads as %+v", s)
	}
}
