package nginx

import (
	"strings"
	"testing"
)

// diffOf is the diff of marking the servers at 127.0.0.1 down, or of clearing that where
// clear is set.
func diffOf(t testing.TB, files memory, clear bool, context int) string {
	t.Helper()
	var edits []Edit
	for _, s := range parseFiles(t, files).Match(target(t, "127.0.0.1"), nil) {
		edits = append(edits, s.Edits(!clear)...)
	}
	text, err := Diff(edits, context)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const mainHead = "--- " + mainConf + "\n+++ " + mainConf + "\n"

// A diff shows server lines and the braces of their upstream. SECRET stands for all that
// it must not show.
func TestDiff(t *testing.T) {
	for _, test := range []struct {
		name, src, want string
		clear           bool
	}{
		{name: "context", src: "http {\n upstream u {\n  server 127.0.0.1;\n  server 127.0.0.2;\n  server 127.0.0.3;\n }\n}\n",
			want: "@@ -2,5 +2,5 @@\n  upstream u {\n-  server 127.0.0.1;\n+  server 127.0.0.1 down;\n   server 127.0.0.2;\n   server 127.0.0.3;\n  }\n"},
		{name: "at most three lines", src: "http {\nupstream u {\nserver 127.0.0.2;\nserver 127.0.0.3;\nserver 127.0.0.4;\nserver 127.0.0.1;\nserver 127.0.0.5;\nserver 127.0.0.6;\nserver 127.0.0.7;\n}\n}\n",
			want: "@@ -3,7 +3,7 @@\n server 127.0.0.2;\n server 127.0.0.3;\n server 127.0.0.4;\n-server 127.0.0.1;\n+server 127.0.0.1 down;\n server 127.0.0.5;\n server 127.0.0.6;\n server 127.0.0.7;\n"},
		{name: "lines around", src: "http { SECRET;\nproxy_set_header A SECRET;\nupstream u {\nserver 127.0.0.1;\n}\nproxy_set_header A SECRET;\n}\n",
			want: "@@ -3,3 +3,3 @@\n upstream u {\n-server 127.0.0.1;\n+server 127.0.0.1 down;\n }\n"},
		{name: "lines between", src: "http {\nupstream u {\nserver 127.0.0.2;\nsticky SECRET;\nserver 127.0.0.1;\n# SECRET\nserver 127.0.0.3;\n}\n}\n",
			want: "@@ -5 +5 @@\n-server 127.0.0.1;\n+server 127.0.0.1 down;\n"},
		{name: "comments", src: "http {\nupstream u { # SECRET\nserver 127.0.0.1 # SECRET\n weight=2; # SECRET\n} # SECRET\n}\n",
			want: "@@ -2,4 +2,4 @@\n upstream u { …\n server 127.0.0.1 …\n- weight=2; …\n+ weight=2 down; …\n } …\n"},
		{name: "one line", src: `http { set $a "SECRET"; upstream u { hash "SECRET"; server 127.0.0.1; sticky SECRET; server 127.0.0.2; } server { set $a "SECRET"; } }`,
			want: "@@ -1 +1 @@\n-… upstream u { … server 127.0.0.1; … server 127.0.0.2; } …\n\\ No newline at end of file\n+… upstream u { … server 127.0.0.1 down; … server 127.0.0.2; } …\n\\ No newline at end of file\n"},
		{name: "another upstream", src: "http {\nupstream u {\nserver 127.0.0.1;\n}\nupstream v { server 10.0.0.1:SECRET; }\n}\n",
			want: "@@ -2,3 +2,3 @@\n upstream u {\n-server 127.0.0.1;\n+server 127.0.0.1 down;\n }\n"},
		{name: "two hunks", src: "http {\nupstream u {\nserver 127.0.0.1:81;\n}\nset SECRET;\nupstream v {\nserver 127.0.0.1:82;\n}\n}\n",
			want: "@@ -2,3 +2,3 @@\n upstream u {\n-server 127.0.0.1:81;\n+server 127.0.0.1:81 down;\n }\n@@ -6,3 +6,3 @@\n upstream v {\n-server 127.0.0.1:82;\n+server 127.0.0.1:82 down;\n }\n"},
		{name: "one hunk", src: "http {\nupstream u {\nserver 127.0.0.1:81;\nserver 127.0.0.2;\nserver 127.0.0.1:82;\n}\n}\n",
			want: "@@ -2,5 +2,5 @@\n upstream u {\n-server 127.0.0.1:81;\n+server 127.0.0.1:81 down;\n server 127.0.0.2;\n-server 127.0.0.1:82;\n+server 127.0.0.1:82 down;\n }\n"},
		{name: "CRLF", src: "http {\r\nupstream u { # SECRET\r\nserver 127.0.0.1;\r\n}\r\n}\r\n",
			want: "@@ -2,3 +2,3 @@\n upstream u { …\r\n-server 127.0.0.1;\r\n+server 127.0.0.1 down;\r\n }\r\n"},
		{name: "a line less", clear: true, src: "http {\nupstream u {\nserver 127.0.0.1:81 # SECRET\n down\n down; server 127.0.0.1:82 down;\nserver 127.0.0.1:83\n down;\n}\n}\n",
			want: "@@ -2,7 +2,5 @@\n upstream u {\n server 127.0.0.1:81 …\n- down\n- down; server 127.0.0.1:82 down;\n+; server 127.0.0.1:82;\n-server 127.0.0.1:83\n- down;\n+server 127.0.0.1:83;\n }\n"},
		{name: "two on the last line", clear: true, src: "http { upstream u {\nserver 127.0.0.1:81 down; server 127.0.0.1:82 down; } }",
			want: "@@ -1,2 +1,2 @@\n … upstream u {\n-server 127.0.0.1:81 down; server 127.0.0.1:82 down; } …\n\\ No newline at end of file\n+server 127.0.0.1:81; server 127.0.0.1:82; } …\n\\ No newline at end of file\n"},
		{name: "a word of two lines", src: "http {\nupstream u {\nserver 127.0.0.1 'route=a\nb';\n}\n}\n",
			want: "@@ -2,4 +2,4 @@\n upstream u {\n server 127.0.0.1 'route=a\n-b';\n+b' down;\n }\n"},
		{name: "nothing to edit", clear: true, src: "http {\nupstream u {\nserver 127.0.0.1;\n}\n}\n"},
	} {
		want := test.want
		if want != "" {
			want = mainHead + want
		}
		if got := diffOf(t, memory{mainConf: test.src}, test.clear, 3); got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", test.name, got, want)
		}
	}
}

// Without context it is the changed lines alone.
func TestDiffWithoutContext(t *testing.T) {
	got := diffOf(t, memory{mainConf: "http {\nupstream u { # SECRET\nserver 127.0.0.1:81;\nserver 127.0.0.1:82; # SECRET\nserver 127.0.0.2;\n}\n}\n"}, false, 0)
	want := mainHead + "@@ -3,2 +3,2 @@\n-server 127.0.0.1:81;\n+server 127.0.0.1:81 down;\n-server 127.0.0.1:82; …\n+server 127.0.0.1:82 down; …\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// A fragment has no braces of its upstreams. It is one file, however often it is included.
func TestDiffOfFragment(t *testing.T) {
	got := diffOf(t, memory{
		mainConf:       "http {\nupstream u { include f; include f; server 127.0.0.2; }\nupstream v { include f; }\n}\n",
		"/etc/nginx/f": "# SECRET\nserver 127.0.0.1;\nserver 127.0.0.3; # SECRET\n",
	}, false, 3)
	want := "--- /etc/nginx/f\n+++ /etc/nginx/f\n@@ -2,2 +2,2 @@\n-server 127.0.0.1;\n+server 127.0.0.1 down;\n server 127.0.0.3; …\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// Whatever the comments around a server line are, a diff shows nothing of them.
func FuzzDiff(f *testing.F) {
	f.Add("SECRET", "SECRET", "SECRET")
	f.Add("a\tb { ; }", "\xff\xfe", "…")
	f.Fuzz(func(t *testing.T, first, second, third string) {
		var all []string
		for _, s := range []string{first, second, third} {
			all = append(all, "#"+strings.NewReplacer("\n", "", "\x00", "").Replace(s))
		}
		c, err := load(t.Context(), memory{mainConf: "http {\nupstream u { " + all[0] + "\nserver 127.0.0.1 " + all[1] + "\nbackup; " + all[2] + "\n}\n}\n"}, mainConf)
		if err != nil {
			return // a comment that is too long
		}
		for context := range 3 {
			text, err := Diff(c.Upstreams[0].Servers[0].Edits(true), context)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text, "#") {
				t.Errorf("it shows a comment:\n%s", text)
			}
			if !strings.Contains(text, "-backup; …") || !strings.Contains(text, "+backup down; …") {
				t.Errorf("it does not show the edit:\n%s", text)
			}
		}
	})
}
