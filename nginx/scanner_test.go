package nginx

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A recorder is the visitor that writes down what it is told.
type recorder struct {
	directives [][]Word
	blocks     int
	ends       int
	noBlocks   bool // a block is an error, as within types {}
}

func (r *recorder) directive(words []Word, block bool, at int) error {
	if block && r.noBlocks {
		return &tokenError{at, "a block"}
	}
	if block {
		r.blocks++
	}
	r.directives = append(r.directives, slices.Clone(words))
	return nil
}

func (r *recorder) blockEnd(int) error { r.ends++; return nil }

func texts(words []Word) []string {
	var all []string
	for _, w := range words {
		all = append(all, w.Text)
	}
	return all
}

// tokenCases are the first words of a file, up to its first ';' or '{', or an
// error. Each is put to the real nginx too.
var tokenCases = []struct {
	name string
	src  string
	want []string // nil: an error
}{
	{"words", "a b c;", []string{"a", "b", "c"}},
	{"blanks of all kinds", "\t a\r\n\r\n  b\t\tc  ;", []string{"a", "b", "c"}},
	{"block", "a b{}", []string{"a", "b"}},
	{"double quotes", `a "b c" d;`, []string{"a", "b c", "d"}},
	{"single quotes", `a 'b; {"c' d;`, []string{"a", `b; {"c`, "d"}},
	{"empty quotes", `a "" '';`, []string{"a", "", ""}},
	{"quoted name", `"a" b;`, []string{"a", "b"}},
	{"newline in quotes", "a \"b\nc\";", []string{"a", "b\nc"}},
	{"comment in quotes", "a \"b # c\";", []string{"a", "b # c"}},
	{"quote within a word", `a b"c d"e;`, []string{"a", `b"c`, `d"e`}},
	{"escaped quote in quotes", `a "b\"c" 'd\'e';`, []string{"a", `b"c`, `d'e`}},
	{"other quote escaped", `a "b\'c";`, []string{"a", `b'c`}},
	{"escaped backslash before the end of quotes", `a "b\\" c;`, []string{"a", `b\`, "c"}},
	{"escaped letters", `a "b\tc\rd\ne";`, []string{"a", "b\tc\rd\ne"}},
	{"escape that means nothing keeps its backslash", `a b\.c\$d;`, []string{"a", `b\.c\$d`}},
	{"escaped blank", `a b\ c;`, []string{"a", `b\ c`}},
	{"escaped semicolon", `a b\;c;`, []string{"a", `b\;c`}},
	{"escaped brace", `a b\{c;`, []string{"a", `b\{c`}},
	{"escaped at the start of a word", `a \"b;`, []string{"a", `"b`}},
	{"escaped hash at the start of a word", `a \#b;`, []string{"a", `\#b`}},
	{"escaped newline", "a b\\\nc;", []string{"a", "b\\\nc"}},
	{"closing brace within a word", `a b}c };d;`, nil},
	{"closing brace at the end of a word", `a b};`, []string{"a", "b}"}},
	{"variable", `a $b;`, []string{"a", "$b"}},
	{"variable in braces", `a ${b}c;`, []string{"a", "${b}c"}},
	{"variable in braces within", `a x${b};`, []string{"a", "x${b}"}},
	{"two braces after a dollar", `a ${{b;`, []string{"a", "${{b"}},
	{"dollar before a blank and a block", `a $ {}`, []string{"a", "$"}},
	{"brace after a variable", `a $b{}`, []string{"a", "$b"}},
	{"dollar at the end of quotes", `a "$" {}`, []string{"a", "$"}},
	{"hash within a word", `a b#c;`, []string{"a", "b#c"}},
	{"comment before", "# x ; {\na b;", []string{"a", "b"}},
	{"comment between", "a # x ; { \" '\n b;", []string{"a", "b"}},
	{"comment right after a blank", "a b #c\n;", []string{"a", "b"}},
	{"comment ends with a newline, not with a return", "a # x\rb;\n c;", []string{"a", "c"}},
	{"escape in a comment", "a # x\\\nb;", []string{"a", "b"}},
	{"parenthesis after a quote", `a ("b") c;`, []string{"a", `("b")`, "c"}},
	{"parenthesis ends a quoted word", `a "b")c;`, []string{"a", "b", ")c"}},
	{"backquote is nothing", "a `b c`;", []string{"a", "`b", "c`"}},
	{"bytes that are not UTF-8", "a \xff\xfe;", []string{"a", "\xff\xfe"}},

	{"no words before a semicolon", ";", nil},
	{"two semicolons", "a b;;", nil},
	{"no words before a brace", "{}", nil},
	{"closing brace too many", "}", nil},
	{"closing brace after words", "a b }", nil},
	{"word at the end of the file", "a b", nil},
	{"word that begins at the end of the file", "a", nil},
	{"backslash at the end of the file", `a \`, nil},
	{"quote at the end of the file", `a "b"`, nil},
	{"quote never closed", `a "b; c;`, nil},
	{"quote closed by an escaped one only", `a "b\";`, nil},
	{"letter after a quote", `a "b"c;`, nil},
	{"closing brace after a quote", `a "b"}`, nil},
	{"hash after a quote", "a \"b\"#c\n;", nil},
	{"quote after a quote", `a "b""c";`, nil},
	{"block never closed", "a {b;", nil},
}

func TestTokens(t *testing.T) {
	for _, c := range tokenCases {
		t.Run(c.name, func(t *testing.T) {
			r := &recorder{}
			err := scan(c.src, r)
			if c.want == nil {
				var te *tokenError
				if !errors.As(err, &te) {
					t.Fatalf("scan(%q) = %v, want an error about a token", c.src, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("scan(%q): %v", c.src, err)
			}
			if got := texts(r.directives[0]); !slices.Equal(got, c.want) {
				t.Errorf("scan(%q) = %q, want %q", c.src, got, c.want)
			}
			checkWords(t, c.src, r.directives)
		})
	}
}

// checkWords makes sure that the offsets of words are where the words stand.
func checkWords(t testing.TB, src string, directives [][]Word) {
	t.Helper()
	at := int32(0)
	for _, words := range directives {
		for _, w := range words {
			if w.Start < at || w.End < w.Start || int(w.End) > len(src) {
				t.Fatalf("word %q stands at %d to %d, after %d, of %d bytes", w.Text, w.Start, w.End, at, len(src))
			}
			at = w.End
			raw := src[w.Start:w.End]
			if raw == "" || raw[0] != '"' && raw[0] != '\'' {
				if raw == "" || (raw != w.Text && !strings.Contains(raw, `\`)) {
					t.Fatalf("word %q stands where %q is", w.Text, raw)
				}
				continue
			}
			if raw[len(raw)-1] != raw[0] {
				t.Fatalf("quoted word %q stands where %q is", w.Text, raw)
			}
		}
	}
}

// tokenTrouble is how nginx says that it cannot read the words of a file.
var tokenTrouble = regexp.MustCompile(`unexpected "|unexpected end of file|too long parameter`)

// askWords has the real nginx read src, and returns whether it could, and the
// second word of src, which it shows as it understood it.
func askWords(t *testing.T, src string) (readable bool, said string) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{"nginx.conf": src})
	out, _ := ask(t, dir, "-t")
	return !tokenTrouble.MatchString(out), out
}

func TestTokensAgainstNginx(t *testing.T) {
	needNginx(t)
	for _, c := range tokenCases {
		t.Run(c.name, func(t *testing.T) {
			src := c.src
			if c.want == nil {
				// Inside of types {} nginx takes any words.
				if src != "}" && src != `a "b"}` {
					src = "events {} http { types {\n" + src
				}
				if ok, said := askWords(t, src); ok {
					t.Errorf("nginx reads %q: %s", src, said)
				}
				return
			}
			ok, said := askWords(t, src)
			if !ok {
				t.Fatalf("nginx cannot read %q: %s", src, said)
			}
			if !strings.Contains(said, fmt.Sprintf("unknown directive \"%s\"", c.want[0])) {
				t.Errorf("nginx does not take %q for the first word: %s", c.want[0], said)
			}
			askSecond(t, c.src, c.want[0], c.want[1])
		})
	}
}

// askSecond compares the second word of src with what nginx reads there: it
// names the log level that it does not know.
func askSecond(t *testing.T, src, first, second string) {
	t.Helper()
	at := strings.Index(src, first)
	if at > 0 && (src[at-1] == '"' || src[at-1] == '#' || src[at-1] == '\'') {
		return // the first word itself is the odd one
	}
	_, said := askWords(t, src[:at]+"error_log stderr"+src[at+len(first):])
	if want := fmt.Sprintf("invalid log level \"%s\"", second); !strings.Contains(said, want) && !strings.Contains(said, "is not terminated by") {
		t.Errorf("nginx does not take %q for the second word of %q: %s", second, src, said)
	}
}

// nginx has to have a word whole in its buffer of 4096 bytes; where exactly the
// limit lies depends on what ends the word.
func TestLongWordsAgainstNginx(t *testing.T) {
	needNginx(t)
	kinds := []struct{ name, before, after string }{
		{"word and semicolon", "a ", ";\nb;"},
		{"word and blank", "a ", " ;\nb;"},
		{"quoted and semicolon", `a "`, "\";\nb;"},
		{"quoted and blank", `a "`, "\" ;\nb;"},
		{"comment", "a; #", "\nb;"},
	}
	for _, kind := range kinds {
		for size := 4092; size <= 4097; size++ {
			src := kind.before + strings.Repeat("x", size) + kind.after
			err := scan(src, &recorder{})
			ok, said := askWords(t, "events {} http { types {\n"+src+"}}")
			if ok != (err == nil) {
				t.Errorf("%s, %d bytes: nginx reads it: %t (%.200s); we: %v", kind.name, size, ok, said, err)
			}
		}
	}
}

// Words put together at random, read by nginx and by us.
func TestRandomTokensAgainstNginx(t *testing.T) {
	needNginx(t)
	const rounds = 150
	pieces := strings.Split(`a|b| | |;|;|"|"|'|\|#|$|{|)|t|n|`+"\n|\n|\r|\t|a b;|\"a\" |'b';|${x} |\\\"", "|")
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range rounds {
		var b strings.Builder
		for range 3 + random.IntN(12) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		err := scan("events {} http { types {\n"+b.String()+"\n;}}", &typesOnly{})
		ok, said := askWords(t, "events {} http { types {\n"+b.String()+"\n;}}")
		if ok != (err == nil) {
			t.Errorf("%q: nginx reads it: %t (%s); we: %v", b.String(), ok, said, err)
		}
		if !ok {
			refused++
		}
	}
	t.Logf("%d texts, of which nginx refused %d", rounds, refused)
}

// typesOnly is a visitor that allows blocks only as deep as types.
type typesOnly struct {
	depth int
}

func (v *typesOnly) directive(_ []Word, block bool, at int) error {
	if block {
		if v.depth++; v.depth > 2 {
			return &tokenError{at, `unexpected "{"`}
		}
	}
	return nil
}

func (v *typesOnly) blockEnd(int) error { v.depth--; return nil }

// What the Lua module's lexer makes of the same blocks was tried with
// lua-nginx-module 0.10.23 by hand.
func TestLuaBlocks(t *testing.T) {
	cases := []struct {
		name, lua string
		ok        bool
	}{
		{"plain", `ngx.say("x")`, true},
		{"table", `local t = { a = { 1 }, { 2 } }`, true},
		{"brace in a string", `local s = "}" .. '{{{'`, true},
		{"escaped quote in a string", `local s = "\"}" .. '\'}'`, true},
		{"escaped backslash ends a string", `local s = "a\\" .. "}"`, true},
		{"long string", "local s = [[ } ]] .. [==[ ]] } ]=] ]==]", true},
		{"comment to the end of the line", "-- it's a }\nx = 1 ", true},
		{"long comment", "--[[ } ' ]] --[=[ ]] }\n ]=] x = 1", true},
		{"comment that looks like a long one", "--[=} {{{\n x = 1", true},
		{"not an index", "x = t[t[1]]", true},
		{"minus", "x = 1 - 2 -- }\n", true},
		{"hash is length", "x = #t + #'}'", true},
		{"a string that does not end on its line is no string", "x = 'abc\n y = { 1 }", true},
		{"escaped newline is not part of a string", "x = 'abc\\\n y = { '}' }", true},
		{"carriage returns", "x = 1 -- }\r\ny = '}'\r\n", true},
		{"never closed", "x = {", false},
		{"long string never closed", "x = [[ ", false},
		{"comment swallows the end", "x = 1 -- ", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			src := "http { init_by_lua_block {" + c.lua + "} upstream u { server 10.0.0.1; } }"
			conf, err := load(t.Context(), memory{mainConf: src}, mainConf)
			if !c.ok {
				if err == nil {
					t.Fatal("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(conf.Upstreams) != 1 || len(conf.Upstreams[0].Servers) != 1 {
				t.Fatalf("%d upstreams", len(conf.Upstreams))
			}
		})
	}
}

func TestNestingLimit(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("a {", n) + strings.Repeat("}", n) }
	if err := scan(deep(MaxBlockDepth), &recorder{}); err != nil {
		t.Errorf("%d deep: %v", MaxBlockDepth, err)
	}
	if err := scan(deep(MaxBlockDepth+1), &recorder{}); err == nil {
		t.Errorf("%d deep: no error", MaxBlockDepth+1)
	}
	if err := scan(deep(1<<20), &recorder{}); err == nil {
		t.Error("a million deep: no error")
	}
}

// A Lua block in which every quote is open must not be looked through once for
// each of them.
func TestManyOpenLuaStrings(t *testing.T) {
	src := "a_by_lua_block {" + strings.Repeat(`"\`, 1<<20) + "\n}"
	if err := scan(src, &recorder{}); err != nil {
		t.Error(err)
	}
}

func TestSyntaxErrorPlace(t *testing.T) {
	_, err := load(t.Context(), memory{mainConf: "events {}\n\nhttp {\n  x \"a\"b;\n}\n"}, mainConf)
	want := `/etc/nginx/nginx.conf:4: unexpected character after a closing quote`
	if err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	var se *SyntaxError
	if !errors.As(err, &se) || se.Line != 4 || se.File != mainConf {
		t.Errorf("error is %#v", err)
	}
	_, err = load(t.Context(), memory{mainConf: "x " + strings.Repeat("y", 3000)}, mainConf)
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("error is not short: %v", err)
	}
}
