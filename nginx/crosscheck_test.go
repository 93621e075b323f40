package nginx

import (
	"errors"
	"strings"
	"testing"
)

func TestCrossCheck(t *testing.T) {
	cases := []struct {
		name, servers string
		line          string // in the error; empty: it passes
	}{
		{"plain", "server a:1 weight=2 down;", ""},
		{"quotes", `server "a:1" "weight=2" 'down';`, ""},
		{"escaped quotes", `server "unix:/run/a\"b.sock";`, ""},
		{"comments", "# x\nserver a:1 # y\n weight=2 # z\n; # ;\n", ""},
		{"an address with =", "server unix:/run/a=b.sock;", ""},
		{"a parameter with two =", "server a:1 route=x=y;", ""},
		{"the same parameter twice", "server a:1 weight=2 weight=3;", ""},
		{"lua", "server a:1; balancer_by_lua_block { x = { '}' , {} } -- it's\n }", ""},
		{"block within", "check { server b:1; }\nserver a:1;", ""},
		{"empty", "", ""},
		// What follows gonginx reads in a way that is not nginx's.
		{"escaped semicolon", "\nserver unix:/run/a\\;b.sock;", ":5:"},
		{"closing brace in a word", "\nserver unix:/run/}a.sock;", ":5:"},
		{"quoted directive", `"server" a:1;`, ":4:"},
		{"backquotes", "server `a b`;", ":4:"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := parse(t, inUpstream(c.servers)).Upstreams[0].CrossCheck()
			if (err == nil) != (c.line == "") {
				t.Fatalf("CrossCheck: %v", err)
			}
			if err != nil && !errors.Is(err, ErrCrossCheck) {
				t.Errorf("the error does not wrap ErrCrossCheck: %v", err)
			}
		})
	}
}

// What each reading says is compared in every part.
func TestCrossCheckDiff(t *testing.T) {
	ours := func(servers string) []*Server {
		return parse(t, inUpstream(servers)).Upstreams[0].Servers
	}
	const theirs = "server a:1 weight=2 down;"
	if err := crossCheck(mainConf, theirs, 0, theirs, ours(theirs)); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{
		"server b:1 weight=2 down;", "server a:1 weight=3 down;", "server a:1 weight=2;", "server a:1 down;",
		"server a:1 weight=2 down down;", "server a:1 weight=2 down backup;", "server a:1 weight=2 max_fails=1 down;",
		"server a:1 weight=2 down; server b:1;", "",
	} {
		if err := crossCheck(mainConf, theirs, 0, theirs, ours(other)); !errors.Is(err, ErrCrossCheck) {
			t.Errorf("the cross-check of %q and %q passes: %v", theirs, other, err)
		}
	}
}

// gonginx takes an escaped brace for a block, and calls itself for each.
func TestCrossCheckIsNotCrashed(t *testing.T) {
	for word, n := range map[string]int{`a\{`: 3 << 20, `\{`: 1 << 16, `"{"`: 1 << 16, `a${{`: 1 << 16} {
		c := parse(t, inUpstream("server x "+strings.Repeat(word+" ", n)+";"))
		if err := c.Upstreams[0].CrossCheck(); !errors.Is(err, ErrCrossCheck) {
			t.Errorf("%d times %q: %v", n, word, err)
		}
	}
}
