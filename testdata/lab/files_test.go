package lab_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drainctl/drainctl/testdata/lab"
)

// A file is all of a file that a drain must not lose.
type file struct {
	kind  fs.FileMode // type and permissions
	owner string
	text  string // of a symlink: where it leads
	mod   time.Time
}

// configuration reads everything below /etc/nginx on the load balancer.
func configuration(t *testing.T, l *lab.Lab) map[string]file {
	t.Helper()
	return configurationOf(t, l.LB)
}

// configurationOf reads everything below /etc/nginx on any load balancer.
func configurationOf(t *testing.T, lb *lab.Machine) map[string]file {
	t.Helper()
	files := map[string]file{}
	err := filepath.WalkDir(filepath.Join(lb.Root, "etc/nginx"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := file{kind: info.Mode(), owner: fmt.Sprintf("%d:%d", stat.Uid, stat.Gid), mod: info.ModTime()}
		if info.Mode()&fs.ModeSymlink != 0 {
			f.text, err = os.Readlink(path)
		} else {
			var text []byte
			text, err = os.ReadFile(path)
			f.text = string(text)
		}
		files[strings.TrimPrefix(path, lb.Root)] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sameFiles checks that every file is as it was, to the byte, with its owner, its
// mode and its kind.
func sameFiles(t *testing.T, before, after map[string]file) {
	t.Helper()
	names := slices.Collect(maps.Keys(before))
	for name := range after {
		if _, was := before[name]; !was {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		was, now := before[name], after[name]
		was.mod, now.mod = time.Time{}, time.Time{}
		if was != now {
			t.Errorf("%s is not as wanted: %v %s\n%s\nwant %v %s\n%s", name, now.kind, now.owner, now.text, was.kind, was.owner, was.text)
		}
	}
}

// untouched checks that no file was even written.
func untouched(t *testing.T, before, after map[string]file) {
	t.Helper()
	sameFiles(t, before, after)
	for name, was := range before {
		if now, there := after[name]; there && !now.mod.Equal(was.mod) {
			t.Errorf("%s was written again", name)
		}
	}
}

// withDown is the files with " down" on the named line of a file, and on no other.
func withDown(t *testing.T, files map[string]file, name, line string) map[string]file {
	t.Helper()
	changed := maps.Clone(files)
	f := changed[name]
	if strings.Count(f.text, line) != 1 {
		t.Fatalf("%s has %d times the line %q, want 1", name, strings.Count(f.text, line), line)
	}
	f.text = strings.Replace(f.text, line, strings.TrimSuffix(line, ";")+" down;", 1)
	changed[name] = f
	return changed
}

// app1Line is what a drain of the first app changes in the configuration that the
// lab comes up with.
const app1Line = "server 192.168.1.10:8080;"

// workers is the numbers of the workers of nginx that accept connections.
func workers(t *testing.T, l *lab.Lab) []int {
	t.Helper()
	all, err := l.LB.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var serving []int
	for pid, accepts := range all {
		if accepts {
			serving = append(serving, pid)
		}
	}
	slices.Sort(serving)
	return serving
}

// sameWorkers checks that nobody has had nginx load anything.
func sameWorkers(t *testing.T, before, after []int) {
	t.Helper()
	if !slices.Equal(before, after) {
		t.Errorf("nginx's workers are %v, want those from before: %v", after, before)
	}
}
