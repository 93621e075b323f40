package remote

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for line, want := range map[string][]string{
		"":                                  nil,
		" \t\n":                             nil,
		"docker exec lb nginx -t":           {"docker", "exec", "lb", "nginx", "-t"},
		"sh -c 'kill -HUP $(cat /run/pid)'": {"sh", "-c", "kill -HUP $(cat /run/pid)"},
		"a; b|c >d & $e `f` *? # g":         {"a;", "b|c", ">d", "&", "$e", "`f`", "*?", "#", "g"},
		`a''b "" '' c" d"`:                  {"ab", "", "", "c d"},
		`a\ b \"c\' "d\e\"\$\\"`:            {"a b", `"c'`, `d\e"$\`},
		`'\' 'a"b' "a'b"`:                   {`\`, `a"b`, `a'b`},
		"a\\\nb \\\n c \"d\\\ne\" 'f\\\ng'": {"ab", "c", "de", "f\\\ng"},
		"a\x00b":                            {"a\x00b"},
	} {
		if got, err := Split(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", line, got, err, want)
		}
	}
	for _, line := range []string{`'`, `"`, `a 'b`, `"a\"`, `\`, `a \`, `"\`} {
		if got, err := Split(line); err == nil {
			t.Errorf("%q is %q, want an error", line, got)
		}
	}
}

// What Quote writes, Split reads.
func FuzzSplitUndoesQuote(f *testing.F) {
	f.Add("a b", `'"\!$`, "")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if got, err := Split(Quote(a, b, c)); err != nil || !slices.Equal(got, []string{a, b, c}) {
			t.Errorf("%q: %q, %v", Quote(a, b, c), got, err)
		}
	})
}

// Where a line has nothing that a shell expands, Split finds the words that sh finds.
func FuzzSplitAsSh(f *testing.F) {
	for _, line := range []string{"a b", `a\ b"c d"'e f'`, `"\a\"\\" '\' ''`, "a\\\nb", `a\`, `'a`, `"a`, "\xff\x81'\x88'"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\x00$`|&;<>()*?[]#~{}") || strings.ContainsRune(strings.ReplaceAll(line, "\\\n", ""), '\n') {
			t.Skip("a shell does more with it than to find words")
		}
		got, err := Split(line)
		out, shErr := exec.Command("sh", "-c", `printf '%s\0' first `+line).Output()
		if err == nil && shErr != nil {
			t.Fatalf("%q is %q, and sh says %v", line, got, shErr)
		}
		want := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")[1:]
		if err == nil && !slices.Equal(got, want) {
			t.Errorf("%q is %q, for sh %q", line, got, want)
		}
	})
}
