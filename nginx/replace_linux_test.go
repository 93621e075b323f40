package nginx

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Somebody writes the file while its replacement is on its way to the disk. Replace
// notices it before the rename, and what they wrote stays.
func TestReplaceWhileSomebodyWrites(t *testing.T) {
	const was, theirs = "old\n", "theirs\n"
	now := []byte(strings.Repeat("server 10.0.0.1:80;\n", 400_000)) // takes a while
	for range 20 {                                                  // the writer may be late
		dir := t.TempDir()
		path := dir + "/nginx.conf"
		write(t, dir, map[string]string{"nginx.conf": was})
		created, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.InotifyAddWatch(created, dir, unix.IN_CREATE); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := unix.Read(created, make([]byte, 4096)) // the temporary file
			wrote <- errors.Join(err, os.WriteFile(path, []byte(theirs), 0o644))
		}()
		err = Replace(path, []byte(was), now)
		if err := errors.Join(<-wrote, unix.Close(created)); err != nil {
			t.Fatal(err)
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, ErrChanged) || content(t, path) != theirs:
			t.Fatalf("error %v, and the file has %d bytes", err, len(content(t, path)))
		}
		if left := names(t, dir); !slices.Equal(left, []string{"nginx.conf"}) {
			t.Errorf("left in the directory: %q", left)
		}
		return
	}
	t.Error("Replace has never noticed that somebody else writes the file")
}
