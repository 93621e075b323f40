package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Load reads the configuration whose main file is at path, includes and all,
// as nginx resolves them: relative to the main file's directory, patterns by
// glob(3), a plain name that does not exist is an error. A main file that
// cannot be parsed is an error (*[SyntaxError]); an included file that cannot
// is kept in Skipped, for the caller to judge. A file that changes while it is
// read is the caller's to notice. With an error comes what was read until then,
// if anything.
func Load(ctx context.Context, path string) (*Config, error) {
	return load(ctx, &disk{}, path)
}

// A source has the files of a configuration.
type source interface {
	// ReadFile's error wraps fs.ErrNotExist or fs.ErrPermission where that is
	// the cause.
	ReadFile(path string) (string, error)
	// Glob expands a pattern as glob(3) does, sorted bytewise.
	Glob(pattern string) ([]string, error)
}

// disk is the source of this machine's files.
type disk struct{ buffers sync.Pool }

func (d *disk) Glob(pattern string) ([]string, error) { return glob(pattern) }

func (d *disk) ReadFile(path string) (string, error) {
	buf, _ := d.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer d.buffers.Put(buf) // after the text is copied out of it
	b, err := appendFile((*buf)[:0], path)
	*buf = b
	return string(b), err
}

func load(ctx context.Context, from source, mainPath string) (*Config, error) {
	return newFileSet(ctx, from).load(mainPath)
}

func (s *fileSet) load(mainPath string) (*Config, error) {
	l := &loader{
		files: s,
		// As ngx_conf_full_name: "a/../b" goes through a, even a symbolic link.
		prefix: strings.TrimSuffix(path.Dir(mainPath), "/") + "/",
		conf:   &Config{Path: mainPath, files: s},
	}
	f, err := l.read(mainPath)
	if err != nil {
		return nil, err
	}
	if err := l.scanFile(f); err != nil {
		return l.conf, err
	}
	seen := make(map[*File]bool, len(l.conf.Files))
	l.conf.Files = slices.DeleteFunc(l.conf.Files, func(f *File) bool {
		again := seen[f]
		seen[f] = true
		return again
	})
	l.conf.findUDP()
	return l.conf, nil
}

// A fileSet reads each file and expands each pattern once, for all loaders of one
// configuration.
type fileSet struct {
	ctx    context.Context
	from   source
	visits atomic.Int64 // how often a file was scanned
	total  atomic.Int64 // bytes of all files
	mu     sync.Mutex
	byPath map[string]func() (*File, error)
	globs  map[string]func() ([]string, error) // by pattern
}

func newFileSet(ctx context.Context, from source) *fileSet {
	return &fileSet{ctx: ctx, from: from, byPath: map[string]func() (*File, error){}, globs: map[string]func() ([]string, error){}}
}

func (s *fileSet) read(name string) (*File, error) { return once(s, s.byPath, name, s.open) }

func (s *fileSet) glob(pattern string) ([]string, error) {
	return once(s, s.globs, pattern, s.from.Glob)
}

// once returns what do returned for name the first time. results holds it, by name.
func once[T any](s *fileSet, results map[string]func() (T, error), name string, do func(string) (T, error)) (T, error) {
	s.mu.Lock()
	result := results[name]
	if result == nil {
		result = sync.OnceValues(func() (T, error) { return do(name) })
		results[name] = result
	}
	s.mu.Unlock()
	return result()
}

func (s *fileSet) open(name string) (*File, error) {
	if s.ctx.Err() != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: context.Cause(s.ctx)}
	}
	src, err := s.from.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if s.total.Add(int64(len(src))) > MaxTotalSize {
		return nil, fmt.Errorf("%s: the configuration has more than the %d bytes this program reads", name, MaxTotalSize)
	}
	return &File{Path: name, Src: src}, nil
}

// A loader walks the files. It is the visitor of one scan after the other.
type loader struct {
	files  *fileSet
	prefix string // of names that are not absolute
	conf   *Config
	depth  int
	blocks []string // names of the open blocks, those of including files too
	file   *File
	up     *Upstream     // the open upstream block
	stream *streamServer // the open server block in stream
	// servers are those of the open block.
	servers []*Server
	slab    []Server // that servers are taken from
	beside  bool     // other loaders run beside this one
}

// read reads a file and lists it. Files are listed at each visit.
func (l *loader) read(name string) (*File, error) {
	f, err := l.files.read(name)
	if err == nil {
		l.conf.Files = append(l.conf.Files, f)
	}
	return f, err
}

// scanFile reads one file within the blocks that are open now.
func (l *loader) scanFile(f *File) error {
	if l.files.visits.Add(1) > MaxFiles {
		return fmt.Errorf("%s: more than %d files are included", f.Path, MaxFiles)
	}
	outer := l.file
	l.file = f
	err := scan(f.Src, l)
	l.file = outer
	var te *tokenError
	if errors.As(err, &te) {
		return syntaxError(f.Path, f.Src, te.at, te.msg)
	}
	return err
}

// include follows one include directive, in the context it stands in.
func (l *loader) include(words []Word) error {
	if len(words) != 2 {
		return &tokenError{int(words[0].Start), "include takes one argument"}
	}
	place := func() string { return fmt.Sprintf("%s:%d", l.file.Path, lineOf(l.file.Src, int(words[0].Start))) }
	if l.depth++; l.depth > MaxIncludeDepth {
		return fmt.Errorf("%s: includes nested deeper than %d", place(), MaxIncludeDepth)
	}
	defer func() { l.depth-- }()
	names, err := l.expand(words[1].Text)
	if err != nil {
		return fmt.Errorf("%s: %w", place(), err)
	}
	if err = l.includeAll(names); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: include %s: %w", place(), words[1].Text, err)
	}
	return err
}

func (l *loader) expand(name string) ([]string, error) {
	if !path.IsAbs(name) {
		name = l.prefix + name
	}
	if !hasMeta(name) {
		return []string{name}, nil
	}
	if err := l.lookInto(above(name)); err != nil {
		return nil, err
	}
	names, err := l.files.glob(name)
	if err != nil {
		return nil, fmt.Errorf("include %s: %w", name, err)
	}
	return names, nil
}

// lookInto notes the directories that a pattern looks into: a file can be added to each.
func (l *loader) lookInto(dir string) error {
	dirs := []string{dir}
	if hasMeta(dir) {
		if err := l.lookInto(above(dir)); err != nil {
			return err
		}
		var err error
		if dirs, err = l.files.glob(dir); err != nil {
			return err
		}
	}
	for _, dir := range dirs {
		if !slices.Contains(l.conf.includeDirs, dir) {
			l.conf.includeDirs = append(l.conf.includeDirs, dir)
		}
	}
	return nil
}

// above is the directory of a path, as it stands there: "a/../b" goes through a.
func above(name string) string {
	dir, _ := path.Split(strings.TrimRight(name, "/"))
	return dir
}

// includeAll includes files one after the other or, outside of an upstream and of a server in stream,
// where each stands by itself, side by side.
func (l *loader) includeAll(names []string) error {
	if l.up != nil || l.stream != nil || l.beside || len(names) < 2 {
		for _, name := range names {
			if err := l.includeFile(name); err != nil {
				return err
			}
		}
		return nil
	}
	confs, errs := make([]Config, len(names)), make([]error, len(names))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(len(names), runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			w := &loader{files: l.files, prefix: l.prefix, depth: l.depth, blocks: slices.Clone(l.blocks), file: l.file, beside: true}
			for i := int(next.Add(1)) - 1; i < len(names); i = int(next.Add(1)) - 1 {
				w.conf = &confs[i]
				errs[i] = w.includeFile(names[i])
			}
		})
	}
	workers.Wait()
	for i := range names {
		l.conf.merge(&confs[i])
		if errs[i] != nil {
			return errs[i]
		}
	}
	return nil
}

// includeFile scans one included file. One that cannot be read for lack of
// permission, or not be parsed, is skipped. What stands before the place that
// cannot be parsed is kept.
func (l *loader) includeFile(name string) error {
	f, err := l.read(name)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			l.conf.Skipped = append(l.conf.Skipped, Skipped{&File{Path: name}, err})
			return nil
		}
		return err
	}
	open, up, stream := len(l.blocks), l.up, l.stream
	if up != nil && l.inUpstream() {
		up.pieces = append(up.pieces, piece{file: f, start: 0, end: len(f.Src)})
	}
	err = l.scanFile(f)
	var se *SyntaxError
	if errors.As(err, &se) && se.File == f.Path {
		l.conf.Skipped = append(l.conf.Skipped, Skipped{f, se})
		if l.up != up {
			// Half an upstream, always the last, is of no use to anybody.
			l.conf.Upstreams = l.conf.Upstreams[:len(l.conf.Upstreams)-1]
		}
		l.blocks, l.up, l.stream = l.blocks[:open], up, stream
		return nil
	}
	return err
}
