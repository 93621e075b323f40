package remote

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// allScripts are the scripts with what goes before them.
func allScripts() map[string]string {
	return map[string]string{
		"read": readScript, "read many": readManyScript, "stat": statScript, "list": listScript, "exist": existScript,
		"check": checkScript + writableScript, "replace": checkScript + replaceScript, "append": dirsScript + appendScript,
		"lock": dirsScript + lockScript, "sum": sumScript, "raw": rawScript, "unix": unixScript, "by destination": byDestinationScript,
	}
}

// TestScriptsParse has the shells that there are look at the scripts.
func TestScriptsParse(t *testing.T) {
	for _, shell := range []string{"dash", "bash"} {
		needTool(t, shell)
		for name, script := range allScripts() {
			cmd := exec.Command(shell, "-n")
			cmd.Stdin = strings.NewReader(scriptHead + script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v: %s", shell, name, err, out)
			}
		}
	}
}

// TestReplaceShort has less arrive than was sent.
func TestReplaceShort(t *testing.T) {
	needRoot(t)
	path := filepath.Join(place(t), "nginx.conf")
	write(t, path, "old")
	s := scripts{machine: Local(nil).(*local)}
	for _, arrived := range []string{"", "ne", "newer"} {
		_, err := s.try(limit(t, time.Minute), false, "replace", path, checkScript+replaceScript, []byte(arrived), path, hash([]byte("old")), hash([]byte("new")))
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%q arrived: %v", arrived, err)
		}
		_, err = s.try(limit(t, time.Minute), false, "append", path, dirsScript+appendScript, []byte(arrived), path, "3")
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%q arrived to append: %v", arrived, err)
		}
		if got := content(t, path); got != "old" {
			t.Errorf("%q arrived: the file holds %q", arrived, got)
		}
	}
	if got := entries(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
}

// TestReplaceWithout has a host that lacks a tool.
func TestReplaceWithout(t *testing.T) {
	needRoot(t)
	path := filepath.Join(place(t), "nginx.conf")
	write(t, path, "old")
	bin := place(t)
	for _, without := range []string{"sha256sum", "mktemp", "cp", "sync", "mv", "readlink", "stat"} {
		run(t, "sh", "-c", `rm -f "$1"/*; for t in sh cat cp mktemp mv readlink sha256sum stat sync rm; do ln -s "$(command -v $t)" "$1/$t"; done; rm "$1/$2"`, "sh", bin, without)
		h := rawHost{path: bin, Host: Local(nil)}
		err := scripts{machine: hostMachine{h}}.Replace(limit(t, time.Minute), path, []byte("old"), []byte("new"))
		if err == nil || !strings.Contains(err.Error(), without+": not found") {
			t.Errorf("without %s: %v", without, err)
		}
		if got := content(t, path); got != "old" {
			t.Errorf("without %s: the file holds %q", without, got)
		}
	}
}

func TestErrnoOf(t *testing.T) {
	for words, want := range map[string]syscall.Errno{
		"cat: /x: No such file or directory":                                                 syscall.ENOENT,
		"sh: 3: cannot create /x: Directory nonexistent":                                     syscall.ENOENT,
		"mktemp: failed to create file via template '/x/.y.XXXXXXXX': Read-only file system": syscall.EROFS,
		"cat: write error: No space left on device":                                          syscall.ENOSPC,
		"mv: cannot move 'a' to 'b': Device or resource busy":                                syscall.EBUSY,
		"what is this":                      0,
		"":                                  0,
		"No such file or directory, really": 0,
	} {
		if got := errnoOf(words); got != want {
			t.Errorf("%q: %v, not %v", words, got, want)
		}
	}
}

func TestSplitFiles(t *testing.T) {
	for out, want := range map[string][]string{
		"1\n2\nabb1\n2\n":    {"a", "bb"},
		"0\n0\n0\n0\n":       {"", ""},
		"2\n0\n1\n2\n0\n":    {"1\n", ""},
		"1\n2\nabb1\n3\n":    nil, // grew meanwhile
		"1\n2\nab1\n2\n":     nil, // shrank meanwhile
		"1\n2\nabb":          nil,
		"":                   nil,
		"1\n-2\na1\n-2\n":    nil,
		"x\ny\nx\ny\n":       nil,
		"9999999999999\n0\n": nil,
	} {
		var got []string
		for _, b := range splitFiles([]byte(out), 2) {
			got = append(got, string(b))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, not %q", out, got, want)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("1\n2\nabb1\n2\n"), 2)
	f.Add([]byte("a\x00b\x00\x00\x00"), 2)
	f.Fuzz(func(t *testing.T, out []byte, n int) {
		n &= 7
		if got := splitFiles(out, n); got != nil && len(got) != n {
			t.Errorf("%d files, not %d", len(got), n)
		}
		if got, ok := splitNames(out, n); ok && len(got) != n {
			t.Errorf("%d lists, not %d", len(got), n)
		}
		_, _ = parseStat(string(out))
	})
}

func TestSplitNames(t *testing.T) {
	got, ok := splitNames([]byte("a\x00b\nc\x00\x00\x00d\x00\x00"), 3)
	if !ok || !reflect.DeepEqual(got, [][]string{{"a", "b\nc"}, nil, {"d"}}) {
		t.Errorf("%q, %v", got, ok)
	}
	for _, bad := range []string{"a\x00", "a\x00\x00", "a", "\x00\x00\x00\x00", "a\x00\x00b\x00"} {
		if got, ok := splitNames([]byte(bad), 2); ok {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func TestTrips(t *testing.T) {
	var words []string
	for range 3000 {
		words = append(words, strings.Repeat("x", 99)+"'")
	}
	words = append(words, strings.Repeat("y", 2*maxTrip)) // by itself
	var all []string
	n := 0
	for trip := range trips(words) {
		if size := len(Quote(trip...)); size > 2*maxTrip+10 || len(trip) > 1 && size > maxTrip {
			t.Errorf("%d bytes in one trip", size)
		}
		all = append(all, trip...)
		n++
	}
	if !slices.Equal(all, words) || n < 5 {
		t.Errorf("%d words in %d trips", len(all), n)
	}
	for range trips(nil) {
		t.Error("a trip for nothing")
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "a", true}, {"*", "", true}, {"*", ".a", false}, {".*", ".a", true}, {`\.*`, ".a", true}, {"?a", ".a", false}, {"[.]a", ".a", false},
		{"*.conf", "a.conf", true}, {"*.conf", "a.conf.bak", false}, {"*.conf", ".conf", false}, {"**", "ab", true}, {"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXbX", false},
		{"[a-c]", "b", true}, {"[a-c]", "d", false}, {"[!a-c]", "d", true}, {"[^a-c]", "d", true}, {"[]]", "]", true}, {"[!]]", "]", false}, {"[]-a]", "^", true},
		{"[a-]", "-", true}, {"[", "[", true}, {"[a", "[a", true}, {"a[", "a[", true}, {"[[:alpha:]]", "x", true}, {"[[:alpha:]]", "1", false}, {"[[:digit:]-]", "-", true},
		{"[[:nonsense:]]", "n", false}, {`[\]]`, "]", true}, {`\*`, "*", true}, {`\*`, "a", false}, {`a\`, `a\`, true}, {"[[.a.]]", "a", true}, {"[[=a=]-c]", "b", true},
		{"é", "é", true}, {"?", "é", false}, {"??", "é", true}, {"[z-a]", "m", false}, {"", "", true}, {"", "a", false},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("%q with %q: %v", c.pattern, c.name, got)
		}
	}
	begin := time.Now()
	match(strings.Repeat("*a", 30)+"b", strings.Repeat("a", 5000))
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("a hard pattern took %v", d)
	}
}

// FuzzMatch compares with the shell's own matching where the two mean the same.
func FuzzMatch(f *testing.F) {
	f.Add("[!a-c]*.conf", "x.conf")
	f.Add(`\[*[[:alpha:]?`, "[b]")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.Contains(name, "/") || len(pattern) > 100 || len(name) > 1000 {
			return
		}
		match(pattern, name)
		if !strings.ContainsAny(pattern, `*?[\`) && (pattern == name) != match(pattern, name) {
			t.Errorf("%q with %q", pattern, name)
		}
		if !match("*", name) != strings.HasPrefix(name, ".") {
			t.Errorf("* with %q", name)
		}
	})
}

func TestOutlive(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	longer, stop, err := outlive(ctx, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	why := errors.New("why")
	cancel(why)
	if longer.Err() != nil {
		t.Error("ended at once")
	}
	select {
	case <-longer.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("never ended")
	}
	if !errors.Is(context.Cause(longer), why) {
		t.Errorf("cause: %v", context.Cause(longer))
	}
	if _, _, err := outlive(ctx, time.Hour); !errors.Is(err, why) {
		t.Errorf("of an ended one: %v", err)
	}
}

func TestQuote(t *testing.T) {
	for _, args := range [][]string{{""}, {"a"}, {"a b", "it's"}, {"\n", "$x", "`y`", "\xff"}} {
		out, err := exec.Command("sh", "-c", `printf '%s\0' `+Quote(args...)).Output()
		if err != nil || string(out) != strings.Join(args, "\x00")+"\x00" {
			t.Errorf("%q: %q, %v", args, out, err)
		}
	}
}

func TestResultErr(t *testing.T) {
	if err := (Result{}).Err("x"); err != nil {
		t.Error(err)
	}
	for want, r := range map[string]Result{
		"nginx -t: exit status 1: bad":                     {Code: 1, Stderr: []byte("\nbad\n\n"), Stdout: []byte("out")},
		"nginx -t: exit status 1: out":                     {Code: 1, Stdout: []byte("out\n")},
		"nginx -t: exit status 3":                          {Code: 3},
		"nginx -t: exit status 1: 3\n4\n5\n6\n7\n8\n9\n10": {Code: 1, Stderr: []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n")},
	} {
		err := r.Err("nginx", "-t")
		var failed *ExitError
		if !errors.As(err, &failed) || err.Error() != want || failed.Code != r.Code {
			t.Errorf("%q, not %q", err, want)
		}
	}
}

// TestNothingPrinted keeps the package's promise that it prints nothing.
func TestNothingPrinted(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"os.Stdout", "os.Stderr", "fmt.Print", "println("} {
			if strings.Contains(string(text), word) {
				t.Errorf("%s: %s", file, word)
			}
		}
	}
}
