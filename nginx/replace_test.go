package nginx

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// names are the entries of a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	all, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	big := strings.Repeat("server 10.0.0.1:80; # \x00\xff\n", 200_000)
	contents := []string{"old", "", "x", "no newline", "\r\n\x00", big, "", big + "1", big + "2"}
	for _, name := range []string{"nginx.conf", "with space", "it's", "new\nline\n", "-rf", "*", "\xff\xfe", ".hidden", strings.Repeat("n", 200)} {
		path := dir + "/" + name
		write(t, dir, map[string]string{name: contents[0]})
		for i, now := range contents[1:] {
			if err := Replace(path, []byte(contents[i]), []byte(now)); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			if got := content(t, path); got != now {
				t.Fatalf("%q: %d bytes, not %d", name, len(got), len(now))
			}
		}
		if err := CheckReplace(path); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	path := dir + "/nginx.conf"
	err := Replace(path, []byte("old"), []byte("newer"))
	var perr *fs.PathError
	if !errors.Is(err, ErrChanged) || !errors.As(err, &perr) || perr.Path != path || strings.Count(err.Error(), path) != 1 {
		t.Errorf("of a changed file: %v", err)
	}
	if got := content(t, path); got != big+"2" {
		t.Error("a changed file was touched")
	}
	if got := names(t, dir); len(got) != 9 {
		t.Errorf("left behind: %q", got)
	}
}

func TestReplaceKeepsAttributes(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path := dir + "/nginx.conf"
	// An ACL that lets user 65534 read, as setfacl would write it:
	// version 2; user::rw, user:65534:r, group::r, mask::r, other::-.
	const acl = "0x02000000" + "01000600ffffffff" + "02000400feff0000" + "04000400ffffffff" + "10000400ffffffff" + "20000000ffffffff"
	attributes := func() string {
		return sh(t, `stat -c '%u %g %a' "$1"; cd "$(dirname "$1")"; getfattr -d -m - -e hex nginx.conf`, path)
	}
	sh(t, `printf old >"$1"; chown 12345:54321 "$1"; chmod 4640 "$1"; setfattr -n user.note -v 'a note' "$1"; setfattr -n user.bin -v 0x00ff00 "$1"
setfattr -n trusted.mark -v t "$1"; setfattr -n system.posix_acl_access -v `+acl+` "$1"; touch -d 2001-01-01 "$1"`, path)
	before := attributes()
	for _, part := range []string{"12345 54321 4640", "user.note", "trusted.mark", "system.posix_acl_access"} {
		if !strings.Contains(before, part) {
			t.Fatalf("the file has not got %s: %s", part, before)
		}
	}
	if err := Replace(path, []byte("old"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if after := attributes(); after != before || content(t, path) != "new" {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if info, err := os.Stat(path); err != nil || info.ModTime().Year() == 2001 {
		t.Errorf("the time of the last change was kept: who looks for changes will not see this one (%v)", err)
	}
	// The group alone is another one.
	sh(t, `chown 0:54321 "$1"; chmod 640 "$1"`, path)
	before = attributes()
	if err := Replace(path, []byte("new"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if after := attributes(); after != before {
		t.Errorf("with a group of its own, before:\n%s\nafter:\n%s", before, after)
	}
	// A default ACL of the directory must not open up a file that has none.
	sh(t, `setfattr -n system.posix_acl_default -v 0x0200000001000700ffffffff02000700feff000004000700ffffffff10000700ffffffff20000500ffffffff "$1"
setfattr -x system.posix_acl_access "$2"; chmod 600 "$2"`, dir, path)
	before = attributes()
	if err := Replace(path, []byte("new"), []byte("newer")); err != nil {
		t.Fatal(err)
	}
	if after := attributes(); after != before {
		t.Errorf("in a directory with a default ACL, before:\n%s\nafter:\n%s", before, after)
	}
}

func TestReplaceSymlink(t *testing.T) {
	dir := t.TempDir()
	sh(t, `cd "$1"; mkdir available enabled; printf old > available/site; ln -s ../available/site enabled/site; ln -s enabled/site twice; ln -s loop loop; ln -s nowhere dangling`, dir)
	for i, link := range []string{"enabled/site", "twice"} {
		was := "old" + strings.Repeat("+", i)
		if err := Replace(dir+"/"+link, []byte(was), []byte(was+"+")); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir+"/available/site"); got != was+"+" {
			t.Errorf("%s: %q", link, got)
		}
		sh(t, `[ -L "$1" ] && [ ! -L "$2" ]`, dir+"/"+link, dir+"/available/site")
		if real, err := RealPath(dir + "/" + link); err != nil || real != dir+"/available/site" {
			t.Errorf("%s is %s, %v", link, real, err)
		}
	}
	for link, want := range map[string]error{"loop": syscall.ELOOP, "dangling": fs.ErrNotExist} {
		if err := Replace(dir+"/"+link, nil, []byte("x")); !errors.Is(err, want) {
			t.Errorf("%s: %v", link, err)
		}
	}
}

func TestReplaceRefuses(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sh(t, `cd "$1"; printf old > two; ln two names; mkdir directory; mkfifo pipe; printf old > bound; printf old > source; mount --bind source bound; printf old > fixed; chattr +i fixed
truncate -s 65M big; mkdir shut; printf old > shut/conf; chattr +i shut`, dir)
	t.Cleanup(func() { sh(t, `cd "$1"; umount bound; chattr -i fixed shut`, dir) })
	before := names(t, dir)
	for name, want := range map[string]error{
		"two": ErrHardLinks, "directory": ErrNotRegular, "pipe": ErrNotRegular, "nowhere": fs.ErrNotExist, "no/where": fs.ErrNotExist,
		"": ErrNotRegular, "big": ErrTooLarge, "fixed": fs.ErrPermission, "bound": syscall.EBUSY, "shut/conf": fs.ErrPermission,
	} {
		if err := Replace(dir+"/"+name, []byte("old"), []byte("new")); !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", name, err, want)
		}
		if err := CheckReplace(dir + "/" + name); !errors.Is(err, want) {
			t.Errorf("%s: check: %v, not %v", name, err, want)
		}
	}
	if got := sh(t, `cd "$1"; cat two names bound source fixed shut/conf`, dir); got != "oldoldoldoldoldold" {
		t.Errorf("touched: %q", got)
	}
	if after := names(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %q, before: %q", after, before)
	}
}

func TestReplaceOnFullOrReadOnlyDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sh(t, `mount -t tmpfs -o size=64k,mode=755 drainctl-test "$1"`, dir)
	t.Cleanup(func() { sh(t, `umount -l "$1"`, dir) })
	path := dir + "/nginx.conf"
	old := bytes.Repeat([]byte("o"), 20_000)
	write(t, dir, map[string]string{"nginx.conf": string(old)})
	for _, size := range []int{45_096, 64_096, 204_096} {
		if err := Replace(path, old, bytes.Repeat([]byte("n"), size)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if content(t, path) != string(old) || len(names(t, dir)) != 1 {
			t.Errorf("%d bytes: touched, or left behind: %q", size, names(t, dir))
		}
	}
	if err := Replace(path, old, []byte("fits")); err != nil {
		t.Error(err)
	}
	sh(t, `mount -o remount,ro "$1"`, dir)
	if err := CheckReplace(path); !errors.Is(err, syscall.EROFS) {
		t.Errorf("check: %v", err)
	}
	if err := Replace(path, []byte("fits"), []byte("new")); !errors.Is(err, syscall.EROFS) || content(t, path) != "fits" {
		t.Errorf("got %v", err)
	}
}

// A file that is replaced is whole at every moment.
func TestReplaceUnderReaders(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/nginx.conf"
	contents := []string{strings.Repeat("a", 300_000), strings.Repeat("b", 200_000)}
	write(t, dir, map[string]string{"nginx.conf": contents[0]})
	stop, looks := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { looks <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := appendFile(nil, path)
			if err != nil || !slices.Contains(contents, string(got)) {
				t.Errorf("neither the old content nor the new: %d bytes, %v", len(got), err)
				return
			}
			n++
		}
	}()
	for i := range 10 {
		if err := Replace(path, []byte(contents[i%2]), []byte(contents[(i+1)%2])); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if n := <-looks; n == 0 {
		t.Error("never looked")
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"empty": "", "text": "a\r\n\x00"})
	for path, want := range map[string]string{dir + "/empty": "", dir + "/text": "a\r\n\x00", os.DevNull: ""} {
		if got, err := appendFile([]byte("x"), path); err != nil || string(got) != "x"+want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got, err := appendFile(nil, "/proc/version"); err != nil || !bytes.HasPrefix(got, []byte("Linux version")) {
		t.Errorf("a file that has no size: %q, %v", got, err)
	}
	for path, want := range map[string]error{"": fs.ErrNotExist, dir + "/nul\x00": syscall.EINVAL, dir + "/text/below": syscall.ENOTDIR, "/dev/zero": ErrNotRegular} {
		var perr *fs.PathError
		if _, err := appendFile(nil, path); !errors.Is(err, want) || !errors.As(err, &perr) || perr.Path != path {
			t.Errorf("%q: %v, not %v", path, err, want)
		}
	}
}

func TestChangeTime(t *testing.T) {
	dir := t.TempDir()
	began := time.Now().Add(-time.Second)
	write(t, dir, map[string]string{"a": "x"})
	sh(t, `cd "$1"; touch -d 2001-01-01 a; ln -s a b`, dir)
	if got, err := ChangeTime(dir + "/b"); err != nil || got.Before(began) || got.After(time.Now()) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ChangeTime(dir + "/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
