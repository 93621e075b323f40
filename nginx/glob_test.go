package nginx

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFnmatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "a", true}, {"*", "", true}, {"*", ".a", false}, {".*", ".a", true}, {`\.*`, ".a", true}, {"?a", ".a", false}, {"[.]a", ".a", false},
		{"*.conf", "a.conf", true}, {"*.conf", "a.conf.bak", false}, {"*.conf", ".conf", false}, {"**", "ab", true}, {"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXbX", false},
		{"[a-c]", "b", true}, {"[a-c]", "d", false}, {"[!a-c]", "d", true}, {"[^a-c]", "d", true}, {"[]]", "]", true}, {"[!]]", "]", false}, {"[]-a]", "^", true},
		{"[a-]", "-", true}, {"[", "[", true}, {"[a", "[a", true}, {"a[", "a[", true}, {"[[:alpha:]]", "x", true}, {"[[:alpha:]]", "1", false}, {"[[:digit:]-]", "-", true},
		{"[-0-9]*", "-x", true}, {"[!-a]", "-", false}, {"[^-a]", "b", true}, {`[\]]`, "]", true}, {`\*`, "*", true}, {`\*`, "a", false}, {"[a&&b]", "&", true}, {"[~[]", "[", true}, {"[:word:]", "w", true}, {"[:word:]", "n", false},
		{"é", "é", true}, {"?", "é", false}, {"??", "é", true}, {"", "", true}, {"", "a", false},
		{"[[:punct:]]", "[", true}, {"[[:punct:]]", "]", true}, {"[[:punct:]]", `\`, true}, {"[[:punct:]]", "a", false}, {"[![:punct:]]", "a", true}, {"[\xe0-\xff]", "\xe9", true},
		{"[[:space:]]", "\v", true}, {"[a-b-z]", "-", true}, {"[!-]", "-", false}, {"[^]", "[^]", true}, {"[a^]", "^", true}, {"[[]", "[", true},
	} {
		if got := matches(t, c.pattern, c.name); got != c.want {
			t.Errorf("%q with %q: %v", c.pattern, c.name, got)
		}
	}
	for _, unclear := range []string{"[[.a.]]", "[[=a=]-c]", "[z-a]", "[[:nonsense:]]", "[[:word:]]", "[![:ascii:]]", `*\`} {
		if _, err := matcher(unclear); err == nil {
			t.Errorf("%q is not refused", unclear)
		}
	}
	began := time.Now()
	matches(t, strings.Repeat("*a", 30)+"b", strings.Repeat("a", 5000))
	if d := time.Since(began); d > generous/3 {
		t.Errorf("a hard pattern took %v", d)
	}
}

func matches(t *testing.T, pattern, name string) bool {
	t.Helper()
	match, err := matcher(pattern)
	if err != nil {
		t.Fatalf("%q: %v", pattern, err)
	}
	return match(name)
}

func FuzzFnmatch(f *testing.F) {
	f.Add("[!a-c]*.conf", "x.conf")
	f.Add(`\[*[[:alpha:]?`, "[b]")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.Contains(name+pattern, "/") || len(pattern) > 100 || len(name) > 1000 {
			return
		}
		match, err := matcher(pattern)
		if err == nil && !strings.ContainsAny(pattern, `*?[\`) && (pattern == name) != match(name) {
			t.Errorf("%q with %q", pattern, name)
		}
		if !matches(t, "*", name) != strings.HasPrefix(name, ".") {
			t.Errorf("* with %q", name)
		}
	})
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	sh(t, `cd "$1"; mkdir -p conf.d sub/a sub/b sub/.c 'odd [x]'; ln -s nowhere conf.d/dangling.conf; ln -s sub/a link; mkdir sub/b/x.conf
cd conf.d; touch b.conf a.conf B.conf .hidden.conf 10.conf 9.conf a-b.conf ab.conf "$2" readme ../sub/a/x.conf ../sub/.c/x.conf '../odd [x]/f.conf' ../sub/a/y.conf`, dir, "new\nline.conf")
	for pattern, want := range map[string]string{
		"conf.d/*.conf":        "conf.d/10.conf|conf.d/9.conf|conf.d/B.conf|conf.d/a-b.conf|conf.d/a.conf|conf.d/ab.conf|conf.d/b.conf|conf.d/dangling.conf|conf.d/new\nline.conf",
		"conf.d/[!a-z]*.conf":  "conf.d/10.conf|conf.d/9.conf|conf.d/B.conf",
		"conf.d/.*.conf":       "conf.d/.hidden.conf",
		"conf.d/[[:digit:]]*":  "conf.d/10.conf|conf.d/9.conf",
		"conf.d/nothing*":      "",
		"conf.d/a.conf":        "conf.d/a.conf",
		"conf.d/x.conf":        "",
		"nowhere/*":            "",
		"conf.d/a.conf/*":      "",
		"conf.d/dangling.conf": "conf.d/dangling.conf",
		`conf.d/\a.con[f]`:     "conf.d/a.conf",
		`odd \[x]/*.conf`:      "odd [x]/f.conf",
		`odd ?x]/*.conf`:       "odd [x]/f.conf",
		"sub/*/x.conf":         "sub/a/x.conf|sub/b/x.conf",
		"*/x.conf":             "link/x.conf",
		"sub/*/*.conf":         "sub/a/x.conf|sub/a/y.conf|sub/b/x.conf",
		"/conf.d//a.*":         "/conf.d//a.conf",
		"s*/":                  "sub/",
		"conf.d/r*/":           "",
		"[":                    "",
	} {
		var full []string
		for _, name := range strings.Split(want, "|") {
			if name != "" {
				full = append(full, dir+"/"+name)
			}
		}
		if got, err := glob(dir + "/" + pattern); err != nil || !slices.Equal(got, full) {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", pattern, got, err, full)
		}
	}
}

// A directory that may not be read must not look like an empty one.
func TestGlobForbidden(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sh(t, `cd "$1"; chmod 755 . ..; mkdir -m 700 shut; mkdir -m 711 blind; touch shut/a.conf blind/a.conf`, dir)
	asNobody(t, func() {
		for _, pattern := range []string{"/shut/*.conf", "/blind/*.conf", "/*/a.conf", "/[s]hut/a.conf"} {
			if got, err := glob(dir + pattern); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s: %q, %v", pattern, got, err)
			}
		}
		if got, err := glob(dir + "/[b]lind/a.conf"); err != nil || len(got) != 1 {
			t.Errorf("a directory that need not be listed: %q, %v", got, err)
		}
	})
}

// sh runs a shell script, as whoever runs the test.
func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("this needs root: what others may not, and file systems of its own")
	}
}

// asNobody runs f with the rights of nobody, in a thread of its own that ends
// with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		const nobody = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			t.Error(errno)
			return
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Error(errno)
			return
		}
		f()
	}()
	<-done
}
