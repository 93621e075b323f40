package nginx

import (
	"os"
	"path"
	"slices"
	"strings"
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
// those of load_module, the directories that includes look into, and the directories on the
// way to all of them. groups are all groups of the user, the primary one first. Owners and
// access control lists count. build resolves relative paths of modules.
func (c *Config) WritableBy(uid uint32, groups []uint32, build Build) ([]Writable, error) {
	w := &wayfinder{seen: map[string]bool{}}
	for _, f := range c.Files {
		w.follow(f.Path, 0)
	}
	for _, skipped := range c.Skipped {
		w.follow(skipped.File.Path, 0)
	}
	for _, dir := range c.includeDirs {
		w.follow(dir, 0)
		w.lists = append(w.lists, dir)
	}
	for _, module := range c.modules {
		w.follow(build.abs(module), 0)
	}
	return w.writable(uid, groups)
}

// A wayfinder finds every file and directory that the way to some files goes through.
type wayfinder struct {
	seen  map[string]bool
	paths []string // what is passed, without links
	lists []string // directories that are listed
}

// follow walks the way to a file, a link at a time. What is missing ends the way.
func (w *wayfinder) follow(name string, links int) {
	name = "/" + strings.TrimPrefix(name, "/")
	if w.seen[name] || links > maxLinks {
		return
	}
	w.seen[name] = true
	dir := "/"
	w.pass(dir)
	words := strings.Split(strings.Trim(name, "/"), "/")
	for i, word := range words {
		switch word {
		case "", ".":
			continue
		case "..": // of a directory without links, which dir is
			dir = path.Dir(dir)
			continue
		}
		next := path.Join(dir, word)
		info, err := os.Lstat(next)
		if err != nil {
			return
		}
		if info.Mode()&os.ModeSymlink == 0 {
			w.pass(next)
			dir = next
			continue
		}
		to, err := os.Readlink(next)
		if err != nil {
			return
		}
		if !path.IsAbs(to) {
			to = dir + "/" + to
		}
		w.follow(strings.Join(append([]string{to}, words[i+1:]...), "/"), links+1)
		return
	}
}

func (w *wayfinder) pass(name string) {
	if !w.seen["passed "+name] {
		w.seen["passed "+name] = true
		w.paths = append(w.paths, name)
	}
}

// writable is what a user can change of what was passed.
func (w *wayfinder) writable(uid uint32, groups []uint32) (found []Writable, err error) {
	allowed, err := mayWrite(w.paths, uid, groups)
	if err != nil {
		return nil, err
	}
	for i, name := range w.paths {
		info, err := os.Lstat(name)
		if err != nil {
			continue
		}
		owns := ownerOf(info) == uid
		// In a sticky directory, such as /tmp, others than the owner can only add.
		kept := info.IsDir() && info.Mode()&os.ModeSticky != 0 && !slices.ContainsFunc(w.lists, func(dir string) bool { return path.Clean(dir) == name })
		if owns || allowed[i] && !kept {
			found = append(found, Writable{name, info.IsDir()})
		}
	}
	return found, nil
}
