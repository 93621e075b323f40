package nginx

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// Whoever can change what nginx reads as root is root: a configuration loads modules, and
// writes logs wherever it says.

// A Writable is a file or directory that a user can change.
type Writable struct {
	Path string
	Dir  bool
}

// maxLinks bounds the symbolic links on the way to a file, as the kernel does (ELOOP).
const maxLinks = 40

// WritableBy is what a user can change of a configuration: the files that it has loaded,
// those of load_module, the PID file, the directories that includes look into, and the
// directories on the way to all of them. groups are all groups of the user, the primary one
// first. Owners and access control lists count. build resolves relative paths of modules.
func (c *Config) WritableBy(uid uint32, groups []uint32, build Build) ([]Writable, error) {
	w := &wayfinder{seen: map[string]bool{}, passed: map[string]bool{}, open: map[string]bool{}}
	paths := append([]string{c.Path, c.PIDPath(build)}, c.includeDirs...)
	for _, f := range c.Files {
		paths = append(paths, f.Path)
	}
	for _, skipped := range c.Skipped {
		paths = append(paths, skipped.File.Path)
	}
	for _, module := range c.modules {
		paths = append(paths, build.abs(module))
	}
	for _, p := range paths {
		if err := w.follow(p, 0); err != nil {
			return nil, err
		}
	}
	for _, dir := range c.includeDirs {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			w.open[real] = true
		}
	}
	return w.writable(uid, groups)
}

// A place is a file or directory that is no link, nor behind one.
type place struct {
	path string
	info os.FileInfo
}

// A wayfinder finds every file and directory that the way to some files goes through.
type wayfinder struct {
	seen   map[string]bool // names that were followed
	passed map[string]bool // real paths
	places []place
	// open are directories in which a file that somebody adds, or a link that its owner
	// replaces, changes what is read.
	open map[string]bool
}

// follow walks the way to a file, a link at a time. What is missing ends the way.
func (w *wayfinder) follow(name string, links int) error {
	name = "/" + strings.TrimPrefix(name, "/")
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	if links > maxLinks {
		return &fs.PathError{Op: "follow", Path: name, Err: syscall.ELOOP}
	}
	dir := "/"
	words := strings.Split(name, "/")
	for i, word := range words {
		if word == ".." { // of a directory without links, which dir is
			dir = path.Dir(dir)
			continue
		}
		next := path.Join(dir, word) // dir itself for "" and "."
		if w.passed[next] {
			dir = next
			continue
		}
		info, err := os.Lstat(next)
		switch {
		case absent(err):
			w.open[dir] = true
			return nil
		case err != nil:
			return err
		case info.Mode()&os.ModeSymlink == 0:
			w.pass(next, info)
			dir = next
			continue
		}
		w.open[dir] = w.open[dir] || ownerOf(info) != 0
		to, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if !path.IsAbs(to) {
			to = dir + "/" + to
		}
		return w.follow(strings.Join(append([]string{to}, words[i+1:]...), "/"), links+1)
	}
	return nil
}

// pass notes a place. What is written to a device is not read again.
func (w *wayfinder) pass(name string, info os.FileInfo) {
	w.passed[name] = true
	if info.IsDir() || info.Mode().IsRegular() {
		w.places = append(w.places, place{name, info})
	}
}

// writable is what a user can change of what was passed.
func (w *wayfinder) writable(uid uint32, groups []uint32) (found []Writable, err error) {
	allowed, err := mayWrite(w.places, uid, groups)
	if err != nil {
		return nil, err
	}
	for i, p := range w.places {
		// In a sticky directory, such as /tmp, others than the owner can only add.
		kept := p.info.IsDir() && p.info.Mode()&os.ModeSticky != 0 && !w.open[p.path]
		if ownerOf(p.info) == uid || allowed[i] && !kept {
			found = append(found, Writable{p.path, p.info.IsDir()})
		}
	}
	return found, nil
}
