package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHost runs one suite against every kind of host.
func TestHost(t *testing.T) {
	if name := os.Getenv(asUserEnv); name != "" {
		t.Run("local as "+name, func(t *testing.T) {
			hostSuite(t, func(t *testing.T) Host { return Local(nil) })
		})
		return
	}
	t.Parallel()
	needRoot(t)
	makeUsers(t)
	s := startServer(t, serverOptions{})
	t.Run("local", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return Local(nil) })
	})
	t.Run("ssh as root", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return s.connect(t, "root") })
	})
	t.Run("ssh as a user with sudo", func(t *testing.T) {
		t.Parallel()
		hostSuite(t, func(t *testing.T) Host { return s.connect(t, opUser) })
	})
	t.Run("local as a user with sudo", func(t *testing.T) {
		t.Parallel()
		rerunAs(t, opUser)
	})
}

// rerunAs runs this test in a copy of this program that belongs to the user.
func rerunAs(t *testing.T, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(place(t), "test")
	run(t, "cp", os.Args[0], program)
	run(t, "chmod", "755", program)
	args := []string{"-test.run=^TestHost$", "-test.count=1"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = u.HomeDir
	cmd.Env = []string{asUserEnv + "=" + name, "HOME=" + u.HomeDir, "USER=" + name, "PATH=" + os.Getenv("PATH")}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("as %s: %v", name, err)
	}
}

// hostSuite is what every host must do.
func hostSuite(t *testing.T, newHost func(t *testing.T) Host) {
	h := newHost(t)
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Host)
	}{
		{"run", testRun},
		{"run quotes", testRunQuotes},
		{"run big", testRunBig},
		{"run cancelled", testRunCancelled},
		{"run leaves something behind", testRunBackground},
		{"run as root", testRunRoot},
		{"read", testRead},
		{"read many", testReadMany},
		{"read and grow", testReadProc},
		{"glob", testGlob},
		{"glob forbidden", testGlobForbidden},
		{"stat", testStat},
		{"replace", testReplace},
		{"replace contents", testReplaceContents},
		{"replace keeps attributes", testReplaceKeeps},
		{"replace through symlinks", testReplaceSymlink},
		{"replace own file", testReplaceOwn},
		{"replace refuses", testReplaceRefuses},
		{"replace on a full disk", testReplaceFull},
		{"replace on a read-only file system", testReplaceReadOnly},
		{"replace under readers", testReplaceReaders},
		{"append", testAppend},
		{"append on a full disk", testAppendFull},
		{"lock", func(t *testing.T, h Host) { testLock(t, h, newHost(t)) }},
		{"dial", testDial},
		{"lookup", testLookup},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// sh runs a shell script on h.
func sh(t *testing.T, h Host, script string, args ...string) Result {
	t.Helper()
	r, err := h.Run(limit(t, time.Minute), Command{Args: append([]string{"sh", "-c", script, "sh"}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testRun(t *testing.T, h Host) {
	r := sh(t, h, `printf out; printf err >&2; exit 7`)
	if string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.Code != 7 || r.Elapsed <= 0 {
		t.Errorf("got %q, %q, %d, %v", r.Stdout, r.Stderr, r.Code, r.Elapsed)
	}
	if err := r.Err("sh"); err == nil || !strings.Contains(err.Error(), "exit status 7: err") {
		t.Errorf("error of it: %v", err)
	}
	r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"cat"}, Stdin: []byte("a\x00b\r\n")})
	if err != nil || string(r.Stdout) != "a\x00b\r\n" || r.Err() != nil {
		t.Errorf("cat: %q, %v", r.Stdout, err)
	}
	// Nothing to read is the end of the input at once, not a terminal.
	if r := sh(t, h, `cat; tty`); !strings.Contains(string(r.Stdout), "not a tty") {
		t.Errorf("tty: %q", r.Stdout)
	}
	// Input that nobody reads does not stand in the way.
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"true"}, Stdin: bytes.Repeat([]byte("x"), 5<<20)})
	if err != nil || r.Code != 0 {
		t.Errorf("true: %d, %v", r.Code, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"drainctl-no-such-command"}})
	if err != nil || r.Code != 127 {
		t.Errorf("a command that does not exist: %d, %v", r.Code, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"/etc"}})
	if err != nil || r.Code != 126 {
		t.Errorf("a command that is a directory: %d, %v", r.Code, err)
	}
	if r := sh(t, h, `kill -9 $$`); r.Code != 128+9 {
		t.Errorf("a command that is killed: %d", r.Code)
	}
	for _, args := range [][]string{nil, {""}, {"a\x00b"}, {"echo", "\x00"}} {
		if _, err := h.Run(limit(t, time.Minute), Command{Args: args}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func testRunQuotes(t *testing.T, h Host) {
	var all strings.Builder
	for c := 1; c < 256; c++ {
		all.WriteByte(byte(c))
	}
	args := []string{
		"", " ", "a b", "'", `"`, `\`, "`id`", "$(id)", "$HOME", "*", "~", "!", "!!", "a\nb", "\n", "-n", "--", "#", "&", ";", "|",
		"{a,b}", "ä€😀", "\xff\xfe", "%s", "'\"'\"'", all.String(),
	}
	r, err := h.Run(limit(t, time.Minute), Command{Args: append([]string{"printf", `<%s>\0`}, args...)})
	if err != nil || r.Code != 0 {
		t.Fatalf("%v, %d: %s", err, r.Code, r.Stderr)
	}
	var want strings.Builder
	for _, a := range args {
		fmt.Fprintf(&want, "<%s>\x00", a)
	}
	if string(r.Stdout) != want.String() {
		t.Errorf("got  %q\nwant %q", r.Stdout, want.String())
	}
}

func testRunBig(t *testing.T, h Host) {
	big := bytes.Repeat([]byte("0123456789abcdef\n"), 1<<20) // 17 MB
	r, err := h.Run(limit(t, 2*time.Minute), Command{Args: []string{"sh", "-c", "tee /dev/stderr"}, Stdin: big})
	if err != nil || !bytes.Equal(r.Stdout, big) || !bytes.Equal(r.Stderr, big) {
		t.Errorf("%v: %d and %d bytes came back of %d", err, len(r.Stdout), len(r.Stderr), len(big))
	}
}

func testRunCancelled(t *testing.T, h Host) {
	// One that ends at SIGTERM, and one that does not.
	for _, script := range []string{"sleep WORD", "trap '' TERM; sleep WORD; sleep WORD"} {
		word := fmt.Sprintf("987.%d", time.Now().UnixNano())
		script := strings.ReplaceAll(script, "WORD", word)
		ctx, cancel := context.WithCancel(limit(t, time.Minute))
		go func() {
			for range 600 {
				if running(word) {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			cancel()
		}()
		begin := time.Now()
		_, err := h.Run(ctx, Command{Args: []string{"sh", "-c", script + "; echo done"}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", script, err)
		}
		if d := time.Since(begin); d > 45*time.Second {
			t.Errorf("%s: it took %v", script, d)
		}
		eventually(t, script+" is gone", func() bool { return !running(word) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	mark := filepath.Join(place(t), "mark")
	if _, err := h.Run(ctx, Command{Args: []string{"touch", mark}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// running says whether there is a process with word in its arguments.
func running(word string) bool {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte(word)) {
			return true
		}
	}
	return false
}

func testRunBackground(t *testing.T, h Host) {
	begin := time.Now()
	r := sh(t, h, `sleep 40 & echo started`)
	if string(r.Stdout) != "started\n" || r.Code != 0 {
		t.Errorf("got %q, %d", r.Stdout, r.Code)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v, as long as what it left behind", d)
	}
}

func testRunRoot(t *testing.T, h Host) {
	r, err := h.Run(limit(t, time.Minute), Command{Args: []string{"id", "-u"}, Root: true})
	if err != nil || string(r.Stdout) != "0\n" {
		t.Errorf("as root: %q, %v", r.Stdout, err)
	}
	r, err = h.Run(limit(t, time.Minute), Command{Args: []string{"sh", "-c", "cat; exit 3"}, Root: true, Stdin: []byte("a\x00\x03\x04b")})
	if err != nil || r.Code != 3 || string(r.Stdout) != "a\x00\x03\x04b" {
		t.Errorf("as root: %q, %d, %v", r.Stdout, r.Code, err)
	}
	if err := SudoCheck(limit(t, time.Minute), h, "systemctl", "stop", "x"); err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"-i"}, {"A=b", "id"}} {
		if _, err := h.Run(limit(t, time.Minute), Command{Args: args, Root: true}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// oddNames are names of files that trip what is not careful.
var oddNames = []string{
	"plain", "with space", " lead", "trail ", "it's", `dou"ble`, "new\nline", "ends in newline\n", "back\\slash", "-rf", "--", "$HOME",
	"`id`", "*", "[a]", "?", "!", "(", "-e", "ä€", "\xff\xfe", ".hidden", ";true", strings.Repeat("n", 200),
}

func testRead(t *testing.T, h Host) {
	dir := place(t)
	for i, name := range oddNames {
		want := fmt.Sprintf("content %d\r\n\x00%s", i, name)
		write(t, filepath.Join(dir, name), want)
		got, err := h.ReadFile(limit(t, time.Minute), dir+"/"+name)
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	write(t, dir+"/empty", "")
	if got, err := h.ReadFile(limit(t, time.Minute), dir+"/empty"); err != nil || len(got) != 0 {
		t.Errorf("empty: %q, %v", got, err)
	}
	write(t, dir+"/secret", "secret")
	admin(t, `chmod 600 "$1"; mkdir -m 700 "$2"; cp "$1" "$2/inside"; mkfifo -m 644 "$3"`, dir+"/secret", dir+"/closed", dir+"/pipe")
	for _, path := range []string{dir + "/secret", dir + "/closed/inside"} {
		if got, err := h.ReadFile(limit(t, time.Minute), path); err != nil || string(got) != "secret" {
			t.Errorf("%s, which only root can read: %q, %v", path, got, err)
		}
	}
	for path, want := range map[string]error{
		dir + "/nowhere":        fs.ErrNotExist,
		dir + "/nowhere/deep":   fs.ErrNotExist,
		dir + "/closed/nowhere": fs.ErrNotExist,
		dir + "/plain/below":    syscall.ENOTDIR,
		dir:                     ErrNotRegular,
		dir + "/pipe":           ErrNotRegular,
		"":                      fs.ErrNotExist,
		dir + "/nul\x00":        fs.ErrInvalid,
	} {
		_, err := h.ReadFile(limit(t, time.Minute), path)
		var perr *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &perr) || perr.Path != path {
			t.Errorf("%q: %v, not %v", path, err, want)
		}
	}
	admin(t, `truncate -s 65M "$1"`, dir+"/big")
	if _, err := h.ReadFile(limit(t, time.Minute), dir+"/big"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("65 MiB: %v", err)
	}
}

func testReadMany(t *testing.T, h Host) {
	dir := place(t)
	var paths, want []string
	for i, name := range oddNames {
		paths = append(paths, dir+"/"+name)
		want = append(want, strings.Repeat(name+"\n", i))
	}
	for i := range 1500 {
		paths = append(paths, fmt.Sprintf("%s/a longer name, so that one trip is not enough for all of them %04d", dir, i))
		want = append(want, strconv.Itoa(i))
	}
	paths = append(paths, paths[3], dir+"/closed/secret")
	want = append(want, want[3], "secret")
	var all strings.Builder
	for i, path := range paths[:len(paths)-2] {
		fmt.Fprintf(&all, "mkdir -p -m 755 -- %s; printf %%s %s > %s\n", Quote(dir), Quote(want[i]), Quote(path))
	}
	write(t, dir+"/make", "cd /\n"+all.String()+"rm -- \"$0\"\n")
	admin(t, `sh "$1/make"; mkdir -m 700 "$1/closed"; printf secret > "$1/closed/secret"`, dir)
	got, err := h.ReadFiles(limit(t, 2*time.Minute), paths)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d files, not %d", len(got), len(want))
	}
	for i := range want {
		if string(got[i]) != want[i] {
			t.Errorf("%q: %q, not %q", paths[i], got[i], want[i])
		}
	}
	if got, err := h.ReadFiles(limit(t, time.Minute), nil); err != nil || len(got) != 0 {
		t.Errorf("none: %q, %v", got, err)
	}
	for bad, cause := range map[string]error{dir + "/nowhere": fs.ErrNotExist, dir: ErrNotRegular} {
		_, err = h.ReadFiles(limit(t, time.Minute), []string{paths[0], dir + "/closed/secret", bad, dir + "/nowhere2"})
		var perr *fs.PathError
		if !errors.As(err, &perr) || perr.Path != bad || !errors.Is(err, cause) {
			t.Errorf("one is not there: %v", err)
		}
	}
}

func testReadProc(t *testing.T, h Host) {
	// Files that have no size, and one that is another at every reading.
	paths := []string{"/proc/version", "/proc/uptime", "/proc/self/status"}
	got, err := h.ReadFiles(limit(t, time.Minute), paths)
	if err != nil || len(got) != 3 || !strings.HasPrefix(string(got[0]), "Linux version") {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := h.ReadFile(limit(t, time.Minute), "/dev/null"); err != nil || len(got) != 0 {
		t.Errorf("/dev/null: %q, %v", got, err)
	}
}

func testGlob(t *testing.T, h Host) {
	dir := place(t)
	admin(t, `cd "$1"; mkdir conf.d sub sub/a sub/b sub/.c 'odd [x]' sub/b/x.conf; touch conf.d/b.conf conf.d/a.conf conf.d/B.conf conf.d/.hidden.conf conf.d/10.conf conf.d/9.conf conf.d/a-b.conf conf.d/ab.conf "conf.d/$2" conf.d/readme sub/a/x.conf sub/.c/x.conf 'odd [x]/f.conf' sub/a/y.conf
ln -s nowhere conf.d/dangling.conf; ln -s sub/a link`, dir, "new\nline.conf")
	for pattern, want := range map[string][]string{
		"conf.d/*.conf":        {"10.conf", "9.conf", "B.conf", "a-b.conf", "a.conf", "ab.conf", "b.conf", "dangling.conf", "new\nline.conf"},
		"conf.d/[!a-z]*.conf":  {"10.conf", "9.conf", "B.conf"},
		"conf.d/[^a-z]*.conf":  {"10.conf", "9.conf", "B.conf"},
		"conf.d/.*.conf":       {".hidden.conf"},
		"conf.d/?.conf":        {"9.conf", "B.conf", "a.conf", "b.conf"},
		"conf.d/[[:digit:]]*":  {"10.conf", "9.conf"},
		"conf.d/nothing*":      {},
		"conf.d/a.conf":        {"a.conf"},
		"conf.d/x.conf":        {},
		"nowhere/*":            {},
		"conf.d/a.conf/*":      {},
		"conf.d/dangling.conf": {"dangling.conf"},
		`conf.d/\a.con[f]`:     {"a.conf"},
		`odd \[x]/*.conf`:      {"f.conf"},
		`odd ?x]/*.conf`:       {"f.conf"},
	} {
		var full []string
		at, _, _ := strings.Cut(pattern, "/")
		if strings.HasPrefix(at, "odd") {
			at = "odd [x]"
		}
		for _, name := range want {
			full = append(full, dir+"/"+at+"/"+name)
		}
		checkGlob(t, h, dir+"/"+pattern, full)
	}
	checkGlob(t, h, dir+"/sub/*/x.conf", []string{dir + "/sub/a/x.conf", dir + "/sub/b/x.conf"})
	checkGlob(t, h, dir+"/*/x.conf", []string{dir + "/link/x.conf"})
	checkGlob(t, h, dir+"/sub/*/*.conf", []string{dir + "/sub/a/x.conf", dir + "/sub/a/y.conf", dir + "/sub/b/x.conf"})
	checkGlob(t, h, dir+"//conf.d//a.*", []string{dir + "//conf.d//a.conf"})
	checkGlob(t, h, dir+"/s*/", []string{dir + "/sub/"})
	checkGlob(t, h, dir+"/[", nil)
}

func checkGlob(t *testing.T, h Host, pattern string, want []string) {
	t.Helper()
	got, err := h.Glob(limit(t, time.Minute), pattern)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q:\ngot  %q, %v\nwant %q", pattern, got, err, want)
	}
}

func testGlobForbidden(t *testing.T, h Host) {
	dir := place(t)
	admin(t, `cd "$1"; mkdir -m 700 shut shut/deep; mkdir -m 711 blind; touch shut/a.conf shut/deep/a.conf blind/a.conf`, dir)
	checkGlob(t, h, dir+"/shut/*.conf", []string{dir + "/shut/a.conf"})
	checkGlob(t, h, dir+"/blind/*.conf", []string{dir + "/blind/a.conf"})
	checkGlob(t, h, dir+"/*/a.conf", []string{dir + "/blind/a.conf", dir + "/shut/a.conf"})
	checkGlob(t, h, dir+"/shut/deep/*.conf", []string{dir + "/shut/deep/a.conf"})
	checkGlob(t, h, dir+"/shut/nowhere/*.conf", nil)
}

func testStat(t *testing.T, h Host) {
	dir := place(t)
	admin(t, `cd "$1"; mkdir -m 700 shut; printf 12345 > 'shut/a file
'; ln 'shut/a file
' other; ln -s 'shut/a file
' link; touch -d '2001-02-03 04:05:06.123456789 UTC' other`, dir)
	real := dir + "/shut/a file\n"
	for _, path := range []string{dir + "/link", real, dir + "/./shut/../link"} {
		got, err := h.Stat(limit(t, time.Minute), path)
		if err != nil {
			t.Fatal(err)
		}
		if got.Path != real || got.Size != 5 || got.Links != 2 || !got.Mod.Equal(time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)) {
			t.Errorf("%q: %+v", path, got)
		}
		want := strings.Fields(admin(t, `stat -c '%d %i %.9Z' "$1"`, real))
		seconds := fmt.Sprintf("%d.%09d", got.Change.Unix(), got.Change.Nanosecond())
		if is := []string{fmt.Sprint(got.Dev), fmt.Sprint(got.Ino), seconds}; !slices.Equal(is, want) {
			t.Errorf("%q: device, inode, ctime %q, not %q", path, is, want)
		}
	}
	if _, err := h.Stat(limit(t, time.Minute), dir+"/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nowhere: %v", err)
	}
	if got, err := h.Stat(limit(t, time.Minute), dir); err != nil || got.Path != dir {
		t.Errorf("a directory: %+v, %v", got, err)
	}
}

// entries lists the names in a directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	return strings.Fields(admin(t, `ls -A "$1"`, dir))
}

func testReplace(t *testing.T, h Host) {
	dir := place(t)
	path := dir + "/nginx.conf"
	write(t, path, "old\n")
	if err := CheckReplace(limit(t, time.Minute), h, path); err != nil {
		t.Error(err)
	}
	if err := h.Replace(limit(t, time.Minute), path, []byte("old\n"), []byte("new\r\n\x00")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "new\r\n\x00" {
		t.Errorf("got %q", got)
	}
	err := h.Replace(limit(t, time.Minute), path, []byte("old\n"), []byte("newer"))
	var perr *fs.PathError
	if !errors.Is(err, ErrChanged) || !errors.As(err, &perr) || perr.Path != path {
		t.Errorf("of a changed file: %v", err)
	}
	if got := content(t, path); got != "new\r\n\x00" {
		t.Errorf("a changed file was touched: %q", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Replace(ctx, path, []byte("new\r\n\x00"), []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := entries(t, dir); !slices.Equal(got, []string{"nginx.conf"}) {
		t.Errorf("left behind: %q", got)
	}
}

func testReplaceContents(t *testing.T, h Host) {
	dir := place(t)
	big := strings.Repeat("server 10.0.0.1:80; # \x00\xff\n", 200_000) // 5 MB
	contents := []string{"", "x", "no newline at the end", "\r\n", "\x00", "\n\n\n", big, "", "\xef\xbb\xbfbom", big + "1", big + "2"}
	for _, name := range oddNames {
		path := dir + "/" + name
		write(t, path, "start")
		was := "start"
		for _, now := range contents {
			if err := h.Replace(limit(t, time.Minute), path, []byte(was), []byte(now)); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			was = now
			if name != "plain" && len(now) == 1 {
				break // all contents with one name, some with the others
			}
		}
		if got := content(t, path); got != was {
			t.Errorf("%q: %d bytes, not %d", name, len(got), len(was))
		}
	}
	if got := strings.Count(admin(t, `cd "$1"; printf '%s\0' * .[!.]* | tr '\n\0' '_\n'`, dir), "\n"); got != len(oddNames) {
		t.Errorf("%d files, not %d", got, len(oddNames))
	}
}

// attributes are owner, mode and extended attributes of a file.
func attributes(t *testing.T, path string) string {
	t.Helper()
	return admin(t, `stat -c '%u %g %a' "$1"; cd "$(dirname "$1")"; getfattr -d -m - -e hex "$(basename "$1")"`, path)
}

func testReplaceKeeps(t *testing.T, h Host) {
	dir := place(t)
	path := dir + "/nginx.conf"
	write(t, path, "old")
	// An ACL that lets user 65534 read, as setfacl would write it:
	// version 2; user::rw, user:65534:r, group::r, mask::r, other::-.
	const acl = "0x02000000" + "01000600ffffffff" + "02000400feff0000" + "04000400ffffffff" + "10000400ffffffff" + "20000000ffffffff"
	admin(t, `chown 12345:54321 "$1"; chmod 4640 "$1"; setfattr -n user.note -v 'a note' "$1"; setfattr -n user.bin -v 0x00ff00 "$1"
setfattr -n trusted.mark -v t "$1"; setfattr -n system.posix_acl_access -v `+acl+` "$1"`, path)
	before := attributes(t, path)
	for _, part := range []string{"12345 54321 4640", "user.note", "trusted.mark", "system.posix_acl_access"} {
		if !strings.Contains(before, part) {
			t.Fatalf("the file has not got %s: %s", part, before)
		}
	}
	mod := admin(t, `touch -d '2001-01-01' "$1"; stat -c %Y "$1"`, path)
	if err := h.Replace(limit(t, time.Minute), path, []byte("old"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if after := attributes(t, path); after != before || content(t, path) != "new" {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if admin(t, `stat -c %Y "$1"`, path) == mod {
		t.Error("the time of the last change was kept: who looks for changes will not see this one")
	}
	// A default ACL of the directory must not open up a file that had none.
	admin(t, `setfattr -n system.posix_acl_default -v 0x0200000001000700ffffffff02000700feff000004000700ffffffff10000700ffffffff20000500ffffffff "$1"`, dir)
	admin(t, `setfattr -x system.posix_acl_access "$1"; chmod 600 "$1"`, path)
	before = attributes(t, path)
	if err := h.Replace(limit(t, time.Minute), path, []byte("new"), []byte("newer")); err != nil {
		t.Fatal(err)
	}
	if after := attributes(t, path); after != before {
		t.Errorf("in a directory with a default ACL, before:\n%s\nafter:\n%s", before, after)
	}
}

func testReplaceSymlink(t *testing.T, h Host) {
	dir := place(t)
	admin(t, `cd "$1"; mkdir available enabled shut; chmod 700 shut; printf old > available/site; ln -s ../available/site enabled/site; ln -s enabled/site twice; ln -s "$1/shut/target" into; printf old > shut/target`, dir)
	for link, real := range map[string]string{"enabled/site": "available/site", "twice": "available/site", "into": "shut/target"} {
		was := content(t, dir+"/"+real)
		if err := h.Replace(limit(t, time.Minute), dir+"/"+link, []byte(was), []byte(was+"+")); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir+"/"+real); got != was+"+" {
			t.Errorf("%s: %q", link, got)
		}
		admin(t, `[ -L "$1" ]; [ -f "$2" ]; [ ! -L "$2" ]`, dir+"/"+link, dir+"/"+real)
	}
	admin(t, `ln -s loop "$1/loop"; ln -s nowhere "$1/dangling"`, dir)
	if err := h.Replace(limit(t, time.Minute), dir+"/loop", nil, []byte("x")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a loop: %v", err)
	}
	if err := h.Replace(limit(t, time.Minute), dir+"/dangling", nil, []byte("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link: %v", err)
	}
}

func testReplaceOwn(t *testing.T, h Host) {
	dir := place(t)
	path := dir + "/mine"
	write(t, path, "old")
	admin(t, `chown -R "$2" "$1"; chmod 640 "$1/mine"`, dir, h.User())
	if err := h.Replace(limit(t, time.Minute), path, []byte("old"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, `stat -c '%U %a' "$1"; cat "$1"`, path); got != h.User()+" 640\nnew" {
		t.Errorf("got %q", got)
	}
	// A directory that the user can write, a file in it that is root's: it must stay root's.
	admin(t, `chown 0:0 "$1"; chmod 644 "$1"`, path)
	if err := h.Replace(limit(t, time.Minute), path, []byte("new"), []byte("newer")); err != nil {
		t.Fatal(err)
	}
	if got := admin(t, `stat -c '%u:%g %a' "$1"; cat "$1"`, path); got != "0:0 644\nnewer" {
		t.Errorf("got %q", got)
	}
	if got := entries(t, dir); !slices.Equal(got, []string{"mine"}) {
		t.Errorf("left behind: %q", got)
	}
}

func testReplaceRefuses(t *testing.T, h Host) {
	dir := place(t)
	admin(t, `cd "$1"; printf old > two; ln two names; mkdir directory; mkfifo pipe; printf old > bound; printf other > source; mount --bind source bound; printf old > fixed; chattr +i fixed`, dir)
	t.Cleanup(func() { admin(t, `umount "$1/bound"; chattr -i "$1/fixed"`, dir) })
	before := entries(t, dir)
	for name, want := range map[string]error{
		"two": ErrHardLinks, "directory": ErrNotRegular, "pipe": ErrNotRegular, "nowhere": fs.ErrNotExist, "no/where": fs.ErrNotExist,
		"fixed": fs.ErrPermission,
	} {
		err := h.Replace(limit(t, time.Minute), dir+"/"+name, []byte("old"), []byte("new"))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", name, err, want)
		}
		if name != "fixed" {
			if err := CheckReplace(limit(t, time.Minute), h, dir+"/"+name); !errors.Is(err, want) {
				t.Errorf("%s: check: %v, not %v", name, err, want)
			}
		}
	}
	err := h.Replace(limit(t, time.Minute), dir+"/bound", []byte("other"), []byte("new"))
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("a mount point: %v", err)
	}
	if got := admin(t, `cd "$1"; cat two names bound source fixed`, dir); got != "oldoldotherotherold" {
		t.Errorf("touched: %q", got)
	}
	if after := entries(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %q, before: %q", after, before)
	}
}

// small mounts a file system of 64 KiB.
func small(t *testing.T) string {
	t.Helper()
	dir := place(t)
	admin(t, `mount -t tmpfs -o size=64k,mode=755 drainctl-test "$1"`, dir)
	t.Cleanup(func() { admin(t, `umount -l "$1"`, dir) })
	return dir
}

func testReplaceFull(t *testing.T, h Host) {
	dir := small(t)
	path := dir + "/nginx.conf"
	old := strings.Repeat("o", 20_000)
	write(t, path, old)
	for _, size := range []int{41_000, 60_000, 200_000} {
		err := h.Replace(limit(t, time.Minute), path, []byte(old), bytes.Repeat([]byte("n"), size+4096))
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if got := content(t, path); got != old {
			t.Errorf("%d bytes: the file was touched: %d bytes", size, len(got))
		}
		if got := entries(t, dir); !slices.Equal(got, []string{"nginx.conf"}) {
			t.Errorf("%d bytes: left behind: %q", size, got)
		}
	}
	if err := h.Replace(limit(t, time.Minute), path, []byte(old), []byte("fits")); err != nil {
		t.Error(err)
	}
}

func testReplaceReadOnly(t *testing.T, h Host) {
	dir := small(t)
	path := dir + "/nginx.conf"
	write(t, path, "old")
	admin(t, `mount -o remount,ro "$1"`, dir)
	if err := CheckReplace(limit(t, time.Minute), h, path); !errors.Is(err, syscall.EROFS) {
		t.Errorf("check: %v", err)
	}
	if err := h.Replace(limit(t, time.Minute), path, []byte("old"), []byte("new")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("got %v", err)
	}
	if err := h.Append(limit(t, time.Minute), path, []byte("new")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("append: %v", err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("touched: %q", got)
	}
}

// testReplaceReaders looks at the file all the time while it is replaced.
func testReplaceReaders(t *testing.T, h Host) {
	dir := place(t)
	path := dir + "/nginx.conf"
	contents := []string{strings.Repeat("a", 300_000), strings.Repeat("b", 200_000)}
	write(t, path, contents[0])
	stop, looked := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { looked <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := os.ReadFile(path)
			if err != nil || !slices.Contains(contents, string(got)) {
				t.Errorf("neither the old content nor the new: %d bytes, %v", len(got), err)
				return
			}
			n++
		}
	}()
	for i := range 10 {
		if err := h.Replace(limit(t, time.Minute), path, []byte(contents[i%2]), []byte(contents[(i+1)%2])); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	if n := <-looked; n == 0 {
		t.Error("never looked")
	}
}

func testAppend(t *testing.T, h Host) {
	dir := place(t)
	path := dir + "/var/lib dir/drain'ctl/journal\n"
	if err := h.Append(limit(t, time.Minute), path, []byte("one\n")); err != nil {
		t.Fatal(err)
	}
	if err := h.Append(limit(t, time.Minute), path, []byte("two\x00\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := h.Append(limit(t, time.Minute), path, nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "one\ntwo\x00\r\n" {
		t.Errorf("got %q", got)
	}
	if got := admin(t, `cd "$1"; stat -c %a var "var/lib dir" "$2"`, dir, path); got != "755\n755\n600\n" {
		t.Errorf("modes: %q", got)
	}
	big := bytes.Repeat([]byte("x"), 3<<20)
	if err := h.Append(limit(t, time.Minute), dir+"/big", big); err != nil {
		t.Error(err)
	}
	if got := content(t, dir+"/big"); got != string(big) {
		t.Errorf("big: %d bytes", len(got))
	}
	admin(t, `mkfifo "$1/pipe"`, dir)
	for name, want := range map[string]error{"": ErrNotRegular, "/big/below": syscall.ENOTDIR} {
		if err := h.Append(limit(t, time.Minute), dir+name, []byte("x")); !errors.Is(err, want) {
			t.Errorf("%q: %v, not %v", name, err, want)
		}
	}
	if err := h.Append(limit(t, time.Minute), dir+"/pipe", []byte("x")); err == nil {
		t.Error("to a pipe: no error")
	}
}

func testAppendFull(t *testing.T, h Host) {
	path := small(t) + "/journal"
	if err := h.Append(limit(t, time.Minute), path, []byte("first\n")); err != nil {
		t.Fatal(err)
	}
	if err := h.Append(limit(t, time.Minute), path, bytes.Repeat([]byte("x"), 100_000)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if got := content(t, path); got != "first\n" {
		t.Errorf("not cut back: %d bytes", len(got))
	}
	if err := h.Append(limit(t, time.Minute), path, []byte("second\n")); err != nil {
		t.Error(err)
	}
	if got := content(t, path); got != "first\nsecond\n" {
		t.Errorf("got %q", got)
	}
}

func testLock(t *testing.T, h, other Host) {
	path := place(t) + "/some dir/lock"
	lock, err := h.Lock(limit(t, time.Minute), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := admin(t, `stat -c %a "$1"`, path); got != "600\n" {
		t.Errorf("mode %q", got)
	}
	for _, who := range []Host{h, other} {
		_, err := who.Lock(limit(t, time.Minute), path, 0)
		if !errors.Is(err, ErrLocked) {
			t.Errorf("locked twice: %v", err)
		}
		begin := time.Now()
		if _, err := who.Lock(limit(t, time.Minute), path, 300*time.Millisecond); !errors.Is(err, ErrLocked) || time.Since(begin) < 300*time.Millisecond {
			t.Errorf("waited %v: %v", time.Since(begin), err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := other.Lock(ctx, path, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that is given up: %v", err)
	}
	select {
	case <-lock.Lost():
		t.Error("lost")
	default:
	}
	got := make(chan error, 1)
	go func() {
		second, err := other.Lock(limit(t, time.Minute), path, 30*time.Second)
		if err == nil {
			err = second.Unlock()
		}
		got <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Errorf("unlocked twice: %v", err)
	}
	// The lock of a file that somebody removed keeps nobody out; the next is of the new file.
	admin(t, `rm "$1"`, path)
	again, err := h.Lock(limit(t, time.Minute), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Unlock()
	if _, err := other.Lock(limit(t, time.Minute), path, 0); !errors.Is(err, ErrLocked) {
		t.Errorf("after it was removed: %v", err)
	}
}

func testDial(t *testing.T, h Host) {
	socket := filepath.Join(t.TempDir(), "s")
	if os.Getuid() == 0 {
		socket = place(t) + "/s"
	}
	for _, network := range []string{"tcp", "unix"} {
		at := "127.0.0.1:0"
		if network == "unix" {
			at = socket
		}
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		if network == "unix" {
			if err := os.Chmod(socket, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
		conn, err := h.DialContext(limit(t, time.Minute), network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", network, got, err)
		}
		conn.Close()
		l.Close()
		if _, err := h.DialContext(limit(t, time.Minute), network, l.Addr().String()); err == nil || errors.Is(err, ErrConnection) {
			t.Errorf("%s: nobody listens, and the error is %v", network, err)
		}
	}
	if err := Connect(limit(t, time.Minute), h, "127.0.0.1:1"); err == nil {
		t.Error("connected to a port where nobody listens")
	}
	// The host still works.
	if r := sh(t, h, "echo ok"); string(r.Stdout) != "ok\n" {
		t.Errorf("after all: %q", r.Stdout)
	}
}

func testLookup(t *testing.T, h Host) {
	got, err := h.Lookup(limit(t, time.Minute), "localhost")
	if err != nil || !slices.ContainsFunc(got, netip.Addr.IsLoopback) || !slices.IsSortedFunc(got, netip.Addr.Compare) {
		t.Errorf("localhost: %v, %v", got, err)
	}
	for name, want := range map[string]string{"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "[2001:db8::1]": "2001:db8::1"} {
		got, err := h.Lookup(limit(t, time.Minute), name)
		if err != nil || !reflect.DeepEqual(got, []netip.Addr{netip.MustParseAddr(want)}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"no-such-name.invalid", "-x", "", "a b", "$(id)"} {
		_, err := h.Lookup(limit(t, time.Minute), name)
		var derr *net.DNSError
		if !errors.As(err, &derr) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
