package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// shape is a configuration's upstreams as text, one a line:
// http/name@3: 10.0.0.1:80 weight=2; 10.0.0.2:80
func shape(c *Config) string {
	var b strings.Builder
	for _, u := range c.Upstreams {
		fmt.Fprintf(&b, "%s/%s@%d:", u.Module, u.Name, u.Line())
		for i, s := range u.Servers {
			if i > 0 {
				b.WriteString(";")
			}
			fmt.Fprintf(&b, " %s", s.Address)
			for _, w := range s.Params() {
				fmt.Fprintf(&b, " %s", w.Text)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestLoadUpstreams(t *testing.T) {
	cases := []struct{ name, src, want string }{
		{"nothing", "", ""},
		{"one", "http { upstream u { server 10.0.0.1:8080; } }", "http/u@1: 10.0.0.1:8080\n"},
		{"stream", "stream { upstream u { server 10.0.0.1:8080; } }", "stream/u@1: 10.0.0.1:8080\n"},
		{"both", "http {\nupstream u { server a:1; } }\nstream {\nupstream u { server b:2; } }",
			"http/u@2: a:1\nstream/u@4: b:2\n"},
		{"parameters", "http { upstream u { server a:1 weight=5 \"max_fails=3\" down 'backup'; } }",
			"http/u@1: a:1 weight=5 max_fails=3 down backup\n"},
		{"several on a line", "http { upstream u { server a:1;server b:2 down; server c:3; } }",
			"http/u@1: a:1; b:2 down; c:3\n"},
		{"over several lines", "http { upstream u {\nserver\n# one; two {\na:1\n  # three }\n weight=2\n;\n} }",
			"http/u@1: a:1 weight=2\n"},
		{"CRLF", "http {\r\nupstream u {\r\nserver a:1\r\ndown\r\n;\r\n}\r\n}\r\n", "http/u@2: a:1 down\n"},
		{"byte order mark", "\xef\xbb\xbfhttp { upstream u { server a:1; } }", "http/u@1: a:1\n"},
		{"no final newline", "http { upstream u { server a:1; } }", "http/u@1: a:1\n"},
		{"no servers", "http { upstream u { zone z 1m; } }", "http/u@1:\n"},
		{"other directives", "http { upstream u { zone z 64k; hash $k consistent; server a:1; keepalive 3; } }", "http/u@1: a:1\n"},
		{"commented out", "http { upstream u { # server a:1;\n server b:1; } }", "http/u@1: b:1\n"},
		{"a virtual server is none", "http { server { listen 80; } upstream u { server a:1; } server { } }", "http/u@1: a:1\n"},
		{"a block in an upstream", "http { upstream u { check { server x:1; } server a:1; } }", "http/u@1: a:1\n"},
		{"lua in an upstream", "http { upstream u { server 0.0.0.1; balancer_by_lua_block { server = { '}' } } server a:1; } }",
			"http/u@1: 0.0.0.1:80; a:1\n"},
		{"not where an upstream may be", "upstream a { server a:1; } events { upstream b { server b:1; } } http { server { upstream c { server c:1; } } }", ""},
		{"not an upstream", "http { upstream { server a:1; } upstream a b { server a:1; } upstream x; }", ""},
		{"quoted everything", `"http" { 'upstream' "u x" { "server" 'a:1' "down"; } }`, "http/u x@1: a:1 down\n"},
		{"unix socket", "http { upstream u { server unix:/run/a.sock down; } }", "http/u@1: unix:/run/a.sock down\n"},
		{"address that cannot be read", "http { upstream u { server a:b; server c; } }", "http/u@1: ; c:80\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := strings.ReplaceAll(c.want, " ;", " "+Address{}.String()+";")
			if got := shape(parse(t, c.src)); got != want {
				t.Errorf("got  %swant %s", got, want)
			}
		})
	}
}

func TestLoadFragments(t *testing.T) {
	c := parseFiles(t, memory{
		mainConf:                  "http {\n include a.conf; include a.conf;\n upstream u {\n include servers.conf;\n server own:1;\n include more/*.conf;\n }\n}\ninclude empty/*.conf;\n",
		"/etc/nginx/a.conf":       "upstream a { include servers.conf; }",
		"/etc/nginx/servers.conf": "server one:1;\ninclude /srv/two.conf;\nserver three:3;",
		"/srv/two.conf":           "server two:2 down;",
		"/etc/nginx/more/b.conf":  "server b:1;",
		"/etc/nginx/more/a.conf":  "server a:1;",
	})
	want := "http/a@1: one:1; two:2 down; three:3\nhttp/a@1: one:1; two:2 down; three:3\n" +
		"http/u@3: one:1; two:2 down; three:3; own:1; a:1; b:1\n"
	if got := shape(c); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := len(c.Files); got != 6 {
		t.Errorf("%d files, want each once", got)
	}
	for _, u := range c.Upstreams {
		if err := u.CrossCheck(); err != nil {
			t.Errorf("%s: %v", u.Name, err)
		}
		for _, s := range u.Servers {
			if s.Upstream != u || s.File.Src[s.At:s.Words()[0].End] != "server" {
				t.Errorf("%s: server %s stands in %s at %d", u.Name, s.Address, s.File.Path, s.At)
			}
		}
	}
}

func TestLoadSettings(t *testing.T) {
	c := parse(t, `pid run/x.pid; worker_shutdown_timeout 1m30s;
		error_log /var/log/nginx/a.log; error_log logs/b.log debug; error_log stderr; error_log syslog:server=x; error_log memory:32m;
		http { error_log /not/this.log; pid no; }`)
	if c.PIDFile != "run/x.pid" || c.ShutdownTimeout != 90*time.Second {
		t.Errorf("pid %q, worker_shutdown_timeout %v", c.PIDFile, c.ShutdownTimeout)
	}
	if want := []string{"/var/log/nginx/a.log", "logs/b.log"}; !slices.Equal(c.ErrorLogs, want) {
		t.Errorf("error logs %q, want %q", c.ErrorLogs, want)
	}
	build := Build{Prefix: "/usr/share/nginx", PID: "/run/nginx.pid", ErrorLog: "/var/log/nginx/error.log"}
	if got := c.PIDPath(build); got != "/usr/share/nginx/run/x.pid" {
		t.Errorf("PIDPath %q", got)
	}
	if got, want := c.LogPaths(build), []string{"/var/log/nginx/a.log", "/usr/share/nginx/logs/b.log"}; !slices.Equal(got, want) {
		t.Errorf("LogPaths %q, want %q", got, want)
	}
	c = parse(t, "worker_shutdown_timeout soon;")
	if c.ShutdownTimeout != 0 {
		t.Errorf("worker_shutdown_timeout %v", c.ShutdownTimeout)
	}
	if got := c.PIDPath(build); got != build.PID {
		t.Errorf("PIDPath %q", got)
	}
	if got := c.LogPaths(build); !slices.Equal(got, []string{build.ErrorLog}) {
		t.Errorf("LogPaths %q", got)
	}
	if got := c.LogPaths(Build{}); got != nil {
		t.Errorf("LogPaths of a build that logs to no file: %q", got)
	}
}

// denied are files of which one may not be read.
type denied struct {
	memory
	name string
}

func (d denied) ReadFile(name string) (string, error) {
	if name == d.name {
		return "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return d.memory.ReadFile(name)
}

func TestSkippedFiles(t *testing.T) {
	files := memory{
		mainConf:               "http {\ninclude a.conf;\ninclude b.conf;\nupstream own { server own:1; }\n}\n",
		"/etc/nginx/a.conf":    "upstream a { server a:1; }\ninclude in.conf;\nupstream half {\n server half:1;\n include frag.conf; \"x\"y; }\n}",
		"/etc/nginx/in.conf":   "upstream in { server in:1; }",
		"/etc/nginx/frag.conf": "server frag:1;",
		"/etc/nginx/b.conf":    "upstream b { server b:1; }\n",
	}
	c := parseFiles(t, files)
	want := "http/a@1: a:1\nhttp/in@1: in:1\nhttp/b@1: b:1\nhttp/own@4: own:1\n"
	if got := shape(c); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if len(c.Skipped) != 1 || c.Skipped[0].File.Path != "/etc/nginx/a.conf" || c.Skipped[0].File.Src == "" {
		t.Fatalf("skipped %v", c.Skipped)
	}
	var se *SyntaxError
	if !errors.As(c.Skipped[0].Err, &se) || se.Line != 5 {
		t.Errorf("skipped because of %v", c.Skipped[0].Err)
	}
	for _, u := range c.Upstreams {
		if err := u.CrossCheck(); err != nil {
			t.Error(err)
		}
	}

	c, err := load(t.Context(), denied{files, "/etc/nginx/b.conf"}, mainConf)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Skipped) != 2 || c.Skipped[1].File.Path != "/etc/nginx/b.conf" || !errors.Is(c.Skipped[1].Err, fs.ErrPermission) {
		t.Errorf("skipped %v", c.Skipped)
	}
	if _, err := load(t.Context(), denied{files, mainConf}, mainConf); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a main file that may not be read: %v", err)
	}
}

func TestSkippedFragment(t *testing.T) {
	c := parseFiles(t, memory{
		mainConf:       "http { upstream u {\n server a:1;\n include f; server b:1; }\n upstream v { server c:1; } }",
		"/etc/nginx/f": "server x:1; }",
	})
	if got, want := shape(c), "http/u@1: a:1; x:1; b:1\nhttp/v@4: c:1\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	x := c.Upstreams[0].Servers[1]
	if err := c.Verify(x.Edits(true)); err == nil {
		t.Error("an edit of a fragment that cannot be read is verified")
	}
}

func TestLoadErrors(t *testing.T) {
	cases := []struct {
		name  string
		files memory
		want  string // a regular expression
	}{
		{"no main file", memory{}, `/etc/nginx/nginx\.conf`},
		{"missing include", memory{mainConf: "\n include x.conf;"}, `^/etc/nginx/nginx\.conf:2: include x\.conf: .*/etc/nginx/x\.conf`},
		{"missing include within an include", memory{mainConf: "\ninclude a;", "/etc/nginx/a": "\n\ninclude b;"},
			`nginx\.conf:2: include a: /etc/nginx/a:3: include b: `},
		{"include without a name", memory{mainConf: "include;"}, `nginx\.conf:1: include takes one argument`},
		{"include of two names", memory{mainConf: "include a b;"}, `nginx\.conf:1: include takes one argument`},
		{"server without an address", memory{mainConf: "http { upstream u { server; } }"}, `nginx\.conf:1: server without an address`},
		{"includes itself", memory{mainConf: "include nginx.conf;"}, `includes nested deeper than 50`},
		{"include each other", memory{mainConf: "include a;", "/etc/nginx/a": "include b;", "/etc/nginx/b": "include a;"}, `includes nested deeper than 50`},
		{"includes itself many times over", memory{mainConf: "include a;", "/etc/nginx/a": strings.Repeat("include a*;", 30)}, `includes nested deeper than 50|more than 20000 files`},
		{"syntax", memory{mainConf: "http {\n}\n}"}, `^/etc/nginx/nginx\.conf:3: unexpected "}"$`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t.Context(), c.files, mainConf)
			if err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) {
				t.Errorf("error is %v, want %s", err, c.want)
			}
		})
	}
}

func TestLoadLimits(t *testing.T) {
	big := strings.Repeat("# comment\n", MaxFileSize/10+1)
	if _, err := load(t.Context(), memory{mainConf: big}, mainConf); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a file of %d bytes: %v", len(big), err)
	}
	set := newFileSet(t.Context(), memory{"/a": "0123456789"})
	set.total.Add(MaxTotalSize - 9)
	if _, err := set.read("/a"); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("files of %d bytes: %v", MaxTotalSize+1, err)
	}
	files := memory{mainConf: strings.Repeat("include a;", MaxFiles+1), "/etc/nginx/a": ""}
	if _, err := load(t.Context(), files, mainConf); err == nil || !strings.Contains(err.Error(), "files") {
		t.Errorf("%d includes: %v", MaxFiles+1, err)
	}
}

func TestLoadStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := load(ctx, memory{mainConf: "include a;", "/etc/nginx/a": ""}, mainConf)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// includeCases are directories with a main file, their links, and whether
// nginx loads them. The list of the files and its order is compared with the
// one that nginx -T prints.
var includeCases = []struct {
	name  string
	files map[string]string
	links map[string]string // link: what it points to
	fails bool
}{
	{name: "plain", files: map[string]string{"nginx.conf": "include a.conf; events {}", "a.conf": ""}},
	{name: "order of globs", files: map[string]string{
		"nginx.conf": "include d/*; events {}",
		"d/b":        "", "d/a": "", "d/B": "", "d/10": "", "d/9": "", "d/a-b": "", "d/a.b": "", "d/_": "", "d/~": "", "d/é": ""}},
	{name: "order across directories", files: map[string]string{
		"nginx.conf": "include */x; events {}", "a/x": "", "a-b/x": "", "a.b/x": "", "b/x": ""}},
	{name: "dot files", files: map[string]string{
		"nginx.conf": "include d/*; include d/.h*; include */e; events {}",
		"d/.hidden":  "", "d/shown": "", ".d/e": "", "d/e": ""}},
	{name: "brackets", files: map[string]string{
		"nginx.conf": "include d/[ab].conf; include d/[!ab].conf; include d/[x-z]*; events {}",
		"d/a.conf":   "", "d/b.conf": "", "d/c.conf": "", "d/x": "", "d/yy": ""}},
	{name: "classes, dashes and brackets in brackets", files: map[string]string{
		"nginx.conf": "include d/[[:digit:]]*; include d/[![:alnum:]]; include d/[-a]*; include d/[^-a]*; include d/[a-]; include d/[]b]; include d/[[]x; include d/[!]a]; include d/[a-c0-9]; events {}",
		"d/0":        "", "d/9x": "", "d/-": "", "d/-x": "", "d/a": "", "d/b": "", "d/]": "", "d/[x": "", "d/^": "", "d/é": "", "d/\xe9": ""}},
	{name: "bracket that is not closed", files: map[string]string{"nginx.conf": "include d/[ab; events {}", "d/[ab": ""}},
	{name: "bracket that is not closed and names nothing", files: map[string]string{"nginx.conf": "include d/[ab; events {}"}},
	{name: "question mark", files: map[string]string{
		"nginx.conf": "include d/?.conf; events {}", "d/a.conf": "", "d/bb.conf": "", "d/.conf": ""}},
	{name: "quotes", files: map[string]string{
		"nginx.conf": `include "a b.conf"; include 'd/*.conf'; events {}`, "a b.conf": "", "d/x y.conf": ""}},
	{name: "relative to the main file", files: map[string]string{
		"nginx.conf": "include d/a.conf; events {}", "d/a.conf": "include d/b.conf; include c.conf;", "d/b.conf": "", "c.conf": "", "d/c.conf": ""}},
	{name: "the same file twice", files: map[string]string{
		"nginx.conf": "include a.conf; include a.conf; include a*.conf; events {}", "a.conf": ""}},
	{name: "the same file by two names", files: map[string]string{
		"nginx.conf": "include a.conf; include ./a.conf; include d/../a.conf; include d//b; events {}", "a.conf": "", "d/b": ""}},
	{name: "link to a file", files: map[string]string{
		"nginx.conf": "include enabled/*; events {}", "available/x": "include y;", "y": ""},
		links: map[string]string{"enabled/x": "../available/x"}},
	{name: "link to a directory", files: map[string]string{
		"nginx.conf": "include l/*; include l/../z; events {}", "far/away/d/x": "", "far/away/z": "", "z": ""},
		links: map[string]string{"l": "far/away/d"}},
	{name: "link to nowhere", files: map[string]string{"nginx.conf": "include d/*; events {}", "d/x": ""},
		links: map[string]string{"d/y": "nowhere"}, fails: true},
	{name: "pattern that matches nothing", files: map[string]string{"nginx.conf": "include d/*.conf; include nowhere/*; events {}", "d/x": ""}},
	{name: "missing", files: map[string]string{"nginx.conf": "include a.conf; events {}"}, fails: true},
	{name: "missing in an upstream", files: map[string]string{
		"nginx.conf": "events {} http { upstream u { include a.conf; } }"}, fails: true},
	{name: "a directory", files: map[string]string{"nginx.conf": "include d; events {}", "d/x": ""}, fails: true},
	{name: "a directory by a pattern", files: map[string]string{"nginx.conf": "include d*; events {}", "d/x": ""}, fails: true},
	{name: "in every kind of block", files: map[string]string{
		"nginx.conf":  "include events.conf; http { include types; include map; map $uri $b { include m*p.d; } geo $c { include geo; } include v/*; server { include s; location / { include l; } } } stream { include st; }",
		"events.conf": "events {}", "types": "types { include mime; }", "mime": "text/html html;", "map": "", "map.d": "x y;",
		"geo": "10.0.0.0/8 x;", "v/1": "upstream u { include s?rvers; }", "servers": "server 127.0.0.1:1;", "s": "", "l": "", "st": ""}},
	{name: "twice in an upstream", files: map[string]string{
		"nginx.conf": "events {} http { upstream u { include servers; include servers; include w; } }", "servers": "server 127.0.0.1:1;", "w": "include servers;"}},
	{name: "nested eight deep", files: map[string]string{
		"nginx.conf": "include 1; events {}", "1": "include 2;", "2": "include 3;", "3": "include 4;", "4": "include 5;", "5": "include 6;", "6": "include 7;", "7": "include 8;", "8": "# end"}},
	{name: "a file does not close its includer's block", files: map[string]string{
		"nginx.conf": "events {} http { include a;", "a": "}"}, fails: true},
	{name: "a file does not open a block for its includer", files: map[string]string{
		"nginx.conf": "events {} include a; }", "a": "http {"}, fails: true},
	{name: "a directive does not go on in another file", files: map[string]string{
		"nginx.conf": "events {} include a; 1;", "a": "worker_processes"}, fails: true},
}

var dumpedFile = regexp.MustCompile(`(?m)^# configuration file (.*):$`)

func TestIncludesAgainstNginx(t *testing.T) {
	needNginx(t)
	for _, c := range includeCases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.files["nginx.conf"] = "load_module " + streamModule + ";\n" + c.files["nginx.conf"]
			write(t, dir, c.files)
			for link, to := range c.links {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, link)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
					t.Fatal(err)
				}
			}
			out, ok := ask(t, dir, "-T")
			if ok == c.fails {
				t.Fatalf("nginx loads it: %t\n%s", ok, out)
			}
			conf, err := Load(t.Context(), dir+"/nginx.conf")
			understood := err == nil && len(conf.Skipped) == 0
			if understood != ok {
				t.Fatalf("nginx loads it: %t (%s); we: %v, %v", ok, out, err, conf)
			}
			if !ok {
				return
			}
			var ours, theirs []string
			for _, f := range conf.Files {
				ours = append(ours, f.Path)
			}
			for _, m := range dumpedFile.FindAllStringSubmatch(out, -1) {
				theirs = append(theirs, m[1])
			}
			if !slices.Equal(ours, theirs) {
				t.Errorf("we load\n%q\nnginx loads\n%q", ours, theirs)
			}
		})
	}
}

func TestParseTime(t *testing.T) {
	cases := []struct {
		in   string
		want time.Duration // -1: an error
	}{
		{"30", 30 * time.Second}, {"30s", 30 * time.Second}, {"0", 0}, {"500ms", 500 * time.Millisecond},
		{"5m", 5 * time.Minute}, {"1h", time.Hour}, {"1h30m", 90 * time.Minute}, {"1h 30m", 90 * time.Minute},
		{"1m500ms", time.Minute + 500*time.Millisecond}, {"2d", 48 * time.Hour}, {"1w", 7 * 24 * time.Hour},
		{"1M", 30 * 24 * time.Hour}, {"1y", 365 * 24 * time.Hour}, {"1y2M3w4d5h6m7s8ms", 365*24*time.Hour + 60*24*time.Hour + 21*24*time.Hour + 4*24*time.Hour + 5*time.Hour + 6*time.Minute + 7*time.Second + 8*time.Millisecond},
		{"", -1}, {" ", -1}, {"s", -1}, {"-5s", -1}, {"1.5s", -1}, {"5x", -1}, {"5sec", -1}, {"soon", -1}, {"s5", -1},
		{"99999999999999999999s", -1}, {"9999999999y", -1},
	}
	for _, c := range cases {
		got, err := ParseTime(c.in)
		if (err != nil) != (c.want < 0) || (err == nil && got != c.want) {
			t.Errorf("ParseTime(%q) = %v, %v, want %v", c.in, got, err, c.want)
		}
	}
}

func TestTimesAgainstNginx(t *testing.T) {
	needNginx(t)
	for _, in := range []string{"30", "500ms", "1h30m", "1h 30m", "1m500ms", "1w4d5h6m7s8ms", "s", "-5s", "1.5s", "5x", "5sec", "99999999999999999999s"} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"nginx.conf": `worker_shutdown_timeout "` + in + `"; events {}`})
		out, ok := ask(t, dir, "-t")
		if _, err := ParseTime(in); (err == nil) != ok {
			t.Errorf("%q: nginx takes it: %t (%s); we: %v", in, ok, out, err)
		}
	}
}

// Files that are read side by side are each read whole, and listed in order.
func TestLoadManyFiles(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"nginx.conf": "http { include d/*; include shared; }", "shared": "upstream s { server s; }"}
	for i := range 300 {
		files[fmt.Sprintf("d/%03d", i)] = fmt.Sprintf("upstream u%d {\n%s}\ninclude shared;\n", i, strings.Repeat(fmt.Sprintf("server %d.example.com;\n", i), 1+i*37%200))
	}
	write(t, dir, files)
	for range 10 {
		c, err := Load(t.Context(), dir+"/nginx.conf")
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Files) != len(files) || len(c.Upstreams) != 2*300+1 || len(c.Skipped) != 0 {
			t.Fatalf("%d files, %d upstreams, skipped %v", len(c.Files), len(c.Upstreams), c.Skipped)
		}
		for _, f := range c.Files {
			if f.Src != files[strings.TrimPrefix(f.Path, dir+"/")] {
				t.Fatalf("%s is %q", f.Path, f.Src)
			}
		}
		for i := range 300 {
			u := c.Upstreams[2*i]
			if u.Name != fmt.Sprintf("u%d", i) || len(u.Servers) != 1+i*37%200 || u.Servers[0].Address.Host != fmt.Sprintf("%d.example.com", i) {
				t.Fatalf("upstream %d is %s of %d servers", i, u.Name, len(u.Servers))
			}
		}
	}
}
