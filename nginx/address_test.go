package nginx

import (
	"strings"
	"testing"
)

// addressCases are first arguments of a server line. Each is put to the real
// nginx too.
var addressCases = []struct {
	in   string
	want string // what String gives; empty: an error
}{
	{"192.168.1.10:8080", "192.168.1.10:8080"},
	{"192.168.1.10", "192.168.1.10:80"},
	{"192.168.1.10:65535", "192.168.1.10:65535"},
	{"192.168.001.010:00080", "192.168.1.10:80"},
	{"192.168..1:81", "192.168.0.1:81"},
	{"localhost", "localhost:80"},
	{"LocalHost:8080", "localhost:8080"},
	{"localhost.:81", "localhost.:81"},
	{"[::1]", "[::1]:80"},
	{"[::1]:8080", "[::1]:8080"},
	{"[0:0::0:1]:8080", "[::1]:8080"},
	{"[2001:DB8::1]:8080", "[2001:db8::1]:8080"},
	{"[::ffff:192.168.1.10]:8080", "192.168.1.10:8080"},
	{"unix:/run/app.sock", "unix:/run/app.sock"},
	{"UNIX:/run/app.sock", "unix:/run/app.sock"},
	{"unix:/run/a:b.sock", "unix:/run/a:b.sock"},
	{"unix:relative.sock", "unix:relative.sock"},

	{"", ""},
	{":8080", ""},
	{"192.168.1.10:", ""},
	{"192.168.1.10:0", ""},
	{"192.168.1.10:65536", ""},
	{"192.168.1.10:99999999999999999999", ""},
	{"192.168.1.10:+80", ""},
	{"192.168.1.10:-80", ""},
	{"192.168.1.10:80x", ""},
	{"192.168.1.10:80:81", ""},
	{"192.168.1.10:80/path", ""},
	{"2001:db8::1", ""},
	{"[::1", ""},
	{"[::1]8080", ""},
	{"[::1]:", ""},
	{"[192.168.1.10]:80", ""},
	{"[]:80", ""},
	{"[localhost]:80", ""},
	{"[::1%lo]:80", ""},
	{"unix:", ""},
}

func TestParseAddress(t *testing.T) {
	for _, c := range addressCases {
		a, err := ParseAddress(c.in)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("ParseAddress(%q) = %v, want an error", c.in, a)
		case c.want != "" && err != nil:
			t.Errorf("ParseAddress(%q): %v", c.in, err)
		case c.want != "" && a.String() != c.want:
			t.Errorf("ParseAddress(%q) = %s, want %s", c.in, a, c.want)
		}
	}
}

func TestAddressesAgainstNginx(t *testing.T) {
	needNginx(t)
	for _, c := range addressCases {
		dir := t.TempDir()
		write(t, dir, map[string]string{"nginx.conf": `events {} http { upstream u { server "` + c.in + `"; } }`})
		out, ok := ask(t, dir, "-t")
		// A name that does not resolve here is an address all the same.
		if ok = ok || strings.Contains(out, "host not found"); ok != (c.want != "") {
			t.Errorf("nginx takes %q: %t: %s", c.in, ok, out)
		}
	}
}

func TestParseTarget(t *testing.T) {
	cases := []struct{ in, want string }{
		{"192.168.1.10", "192.168.1.10"},
		{"192.168.1.10:8080", "192.168.1.10:8080"},
		{"192.168.001.010", "192.168.1.10"},
		{"2001:DB8::1", "[2001:db8::1]"},
		{"::1", "[::1]"},
		{"[::1]", "[::1]"},
		{"[::1]:8080", "[::1]:8080"},
		{"::ffff:192.168.1.10", "192.168.1.10"},
		{"App1.Example.com", "app1.example.com"},
		{"app_1:8080", "app_1:8080"},
		{"bücher.example", "bücher.example"},
		{"unix:/run/app.sock", "unix:/run/app.sock"},
		{"", ""}, {" ", ""}, {":8080", ""}, {"192.168.1.10:", ""}, {"192.168.1.10:0", ""},
		{"192.168.1.10 ", ""}, {"192.168.1.10:8080 ", ""}, {"app1,app2", ""}, {"app;reboot", ""},
		{"http://192.168.1.10", ""}, {"http://192.168.1.10:8080/", ""}, {"192.168.1.10/24", ""},
		{"unix:", ""}, {"unix:app.sock", ""}, {"fe80::1%eth0", ""}, {"[fe80::1%eth0]:80", ""},
		{"*", ""}, {"app*", ""}, {"--dry-run=x", ""}, {"a\nb", ""}, {"2001:db8::1::2", ""},
		// A printed command has a target as a word: none may be read as a flag, or act on a terminal.
		{"-", ""}, {"-c", ""}, {"--force", ""}, {"-app:8080", ""}, {"--lb:80", ""},
		{"a\u00a0b", ""}, {"a\u2028b", ""}, {"a\u0085b", ""}, {"a\u202eb", ""}, {"a\xffb", ""}, {"app-1", "app-1"},
		{"unix:/run/\x1b[2J.sock", ""}, {"unix:/run/a\nb.sock", ""}, {"unix:/run/\u202e.sock", ""}, {"unix:/run/my app.sock", "unix:/run/my app.sock"},
	}
	for _, c := range cases {
		got, err := ParseTarget(c.in)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("ParseTarget(%q) = %v, want an error", c.in, got)
		case c.want == "" && c.in != "" && strings.TrimSpace(c.in) != "" && !strings.Contains(err.Error(), "target"):
			t.Errorf("ParseTarget(%q): the error does not name the target: %v", c.in, err)
		case c.want != "" && err != nil:
			t.Errorf("ParseTarget(%q): %v", c.in, err)
		case c.want != "" && got.String() != c.want:
			t.Errorf("ParseTarget(%q) = %s, want %s", c.in, got, c.want)
		}
	}
}

func TestMatches(t *testing.T) {
	cases := []struct {
		target, address string
		want            bool
	}{
		{"192.168.1.10", "192.168.1.10:8080", true},
		{"192.168.1.10", "192.168.1.10", true},
		{"192.168.1.10", "192.168.1.100:8080", false},
		{"192.168.1.10", "192.168.1.1:8080", false},
		{"192.168.1.10:8080", "192.168.1.10:8080", true},
		{"192.168.1.10:80", "192.168.1.10", true},
		{"192.168.1.10:8080", "192.168.1.10:8081", false},
		{"192.168.1.10", "192.168.001.010:8080", true},
		{"192.168.1.10", "[::ffff:192.168.1.10]:8080", true},
		{"::ffff:c0a8:10a", "192.168.1.10:8080", true},
		{"2001:db8::1", "[2001:DB8:0::1]:8080", true},
		{"2001:db8::1", "[2001:db8::2]:8080", false},
		{"app1.example.com", "APP1.example.com:8080", true},
		{"app1.example.com.", "app1.example.com:8080", true},
		{"app1.example.com", "app1.example.com.:8080", true},
		{"app1", "app1.example.com:8080", false},
		{"app1", "192.168.1.10", false},
		{"192.168.1.10", "app1", false},
		{"unix:/run/app.sock", "unix:/run/app.sock", true},
		{"unix:/run/app.sock", "unix:/run/app.sock2", false},
		{"unix:/run/app.sock", "192.168.1.10", false},
		{"192.168.1.10", "unix:/run/app.sock", false},
	}
	for _, c := range cases {
		a, err := ParseAddress(c.address)
		if err != nil {
			t.Fatal(err)
		}
		if got := target(t, c.target).Matches(a); got != c.want {
			t.Errorf("%s matches %s: %t", c.target, c.address, got)
		}
	}
}
