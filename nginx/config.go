package nginx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Limits on what a configuration may be. They are far above what real ones
// are, and are there so that a strange file is answered with an error.
const (
	MaxFileSize     = 64 << 20  // bytes of one file
	MaxTotalSize    = 256 << 20 // bytes of all files
	MaxFiles        = 20000     // files, each include counted
	MaxIncludeDepth = 50        // includes within includes
)

// A Host is the machine that nginx runs on, as far as this package needs it.
type Host interface {
	// ReadFile's error wraps fs.ErrNotExist or fs.ErrPermission where that is
	// the cause.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Glob expands a pattern as glob(3) does, sorted bytewise.
	Glob(ctx context.Context, pattern string) ([]string, error)
	// Exec runs a command as root. A command that ran and failed is code != 0
	// and a nil error.
	Exec(ctx context.Context, args ...string) (stdout, stderr string, code int, err error)
}

// A File is one configuration file as it was read.
type File struct {
	Path string // as nginx opens it; symbolic links are not resolved
	Src  string
}

// A Config is what a configuration says about upstreams, and where.
type Config struct {
	Path      string // the main file
	Files     []*File
	Upstreams []*Upstream
	// References are addresses in places that reach a server without an
	// upstream: arguments of proxy_pass and its kin, values of map,
	// split_clients, geo and set.
	References []Reference
	// Skipped are included files that could not be read or understood to
	// their end. What else they hold is not known.
	Skipped []Skipped
	// ShutdownTimeout is worker_shutdown_timeout; 0 when it is not set, and
	// nginx then never cuts a request off.
	ShutdownTimeout time.Duration
	PIDFile         string   // the pid directive, empty when there is none
	ErrorLogs       []string // files of the error_log directives of the main context
}

// A Skipped is an included file that could not be read or understood.
type Skipped struct {
	File *File // Src is empty when it could not be read
	Err  error
}

// A Reference is a word that may hold an address outside any upstream.
type Reference struct {
	Directive string
	Text      string
	File      *File
	At        int32  // byte offset of the word
	module    string // "http", "stream" or whatever main block it is in
}

// Line is the line the reference stands on.
func (r Reference) Line() int { return lineOf(r.File.Src, int(r.At)) }

// An Upstream is one upstream block, in http or stream.
type Upstream struct {
	Name    string
	Module  string // "http" or "stream"
	File    *File
	At      int32 // byte offset of the word upstream
	Servers []*Server
	// pieces are the parts of files the block consists of: its own braces,
	// and the fragments included between them.
	pieces []piece
}

// Line is the line the block starts on.
func (u *Upstream) Line() int { return lineOf(u.File.Src, int(u.At)) }

// A piece is a part of a file inside one upstream block.
type piece struct {
	file       *File
	start, end int // between the braces, or the whole of an included file
}

// A Server is one server line of an upstream.
type Server struct {
	Upstream *Upstream
	File     *File
	Address  Address
	Err      error  // why Address could not be read; nil otherwise
	Words    []Word // server, the address, the parameters
}

// Line is the line the server's first word stands on.
func (s *Server) Line() int { return lineOf(s.File.Src, int(s.Words[0].Start)) }

// Params are the words after the address.
func (s *Server) Params() []Word { return s.Words[2:] }

// Has tells whether the server has a parameter without a value, such as down
// or backup.
func (s *Server) Has(flag string) bool {
	return slices.ContainsFunc(s.Params(), func(w Word) bool { return w.Text == flag })
}

// Param is the value of a parameter such as weight; empty when it is not there.
func (s *Server) Param(name string) string {
	for _, w := range s.Params() {
		if v, ok := strings.CutPrefix(w.Text, name+"="); ok {
			return v
		}
	}
	return ""
}

// IsDown tells whether the server is marked down.
func (s *Server) IsDown() bool { return s.Has("down") }

// IsPrimary tells whether the server is not a backup.
func (s *Server) IsPrimary() bool { return !s.Has("backup") }

// Load reads the configuration whose main file is mainPath, includes and all,
// as nginx resolves them: relative to the main file's directory, patterns by
// glob(3), a plain name that does not exist is an error. A main file that
// cannot be understood is an error (*[SyntaxError]); an included file that
// cannot is kept in Skipped, for the caller to judge. A file that changes while
// it is read is the caller's to notice.
func Load(ctx context.Context, h Host, mainPath string) (*Config, error) {
	l := &loader{
		ctx:    ctx,
		host:   h,
		prefix: path.Dir(mainPath),
		conf:   &Config{Path: mainPath},
		files:  map[string]*File{},
	}
	f, err := l.read(mainPath)
	if err != nil {
		return nil, err
	}
	if err := l.scanFile(f); err != nil {
		return nil, err
	}
	return l.conf, nil
}

// loader walks the files. It is the visitor of one scan after the other.
type loader struct {
	ctx     context.Context
	host    Host
	prefix  string
	conf    *Config
	files   map[string]*File
	total   int
	visits  int
	depth   int
	blocks  []string // names of the open blocks, those of including files too
	file    *File
	up      *Upstream // the open upstream block
	servers []Server  // slab that servers are taken from
	words   []Word    // slab that words are taken from
}

func (l *loader) read(name string) (*File, error) {
	if f, ok := l.files[name]; ok {
		return f, nil
	}
	b, err := l.host.ReadFile(l.ctx, name)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxFileSize {
		return nil, fmt.Errorf("%s: %d bytes is more than the %d this program reads", name, len(b), MaxFileSize)
	}
	if l.total += len(b); l.total > MaxTotalSize {
		return nil, fmt.Errorf("%s: the configuration has more than the %d bytes this program reads", name, MaxTotalSize)
	}
	f := &File{Path: name, Src: string(b)}
	l.files[name] = f
	l.conf.Files = append(l.conf.Files, f)
	return f, nil
}

// scanFile reads one file within the blocks that are open now.
func (l *loader) scanFile(f *File) error {
	if l.visits++; l.visits > MaxFiles {
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

func (l *loader) directive(words []Word, block bool, at int) error {
	name := words[0].Text
	switch {
	case name == "include" && !block:
		return l.include(words)
	case l.up != nil:
		if name == "server" && !block && l.inUpstream() {
			return l.server(words, at)
		}
	case name == "upstream" && block:
		l.upstream(words, at)
	default:
		l.other(name, words, block)
	}
	if block {
		l.blocks = append(l.blocks, name)
	}
	return nil
}

func (l *loader) blockEnd(at int) error {
	last := len(l.blocks) - 1
	if l.up != nil && last == 1 {
		p := &l.up.pieces[0]
		p.end = at
		l.up = nil
	}
	l.blocks = l.blocks[:last]
	return nil
}

// inUpstream tells whether the innermost open block is the upstream itself.
func (l *loader) inUpstream() bool { return len(l.blocks) == 2 }

// upstream opens a block if it stands right inside http or stream. Anything
// else of that name is nginx's to judge.
func (l *loader) upstream(words []Word, at int) {
	if len(l.blocks) != 1 || len(words) != 2 || (l.blocks[0] != "http" && l.blocks[0] != "stream") {
		return
	}
	l.up = &Upstream{
		Name:   words[1].Text,
		Module: l.blocks[0],
		File:   l.file,
		At:     words[0].Start,
		pieces: []piece{{file: l.file, start: at + 1}},
	}
	l.conf.Upstreams = append(l.conf.Upstreams, l.up)
}

func (l *loader) server(words []Word, at int) error {
	if len(words) < 2 {
		return &tokenError{at, "server without an address"}
	}
	if len(l.servers) == 0 {
		l.servers = make([]Server, 256)
	}
	s := &l.servers[0]
	l.servers = l.servers[1:]
	*s = Server{Upstream: l.up, File: l.file, Words: l.keep(words)}
	s.Address, s.Err = ParseAddress(words[1].Text)
	l.up.Servers = append(l.up.Servers, s)
	return nil
}

// keep copies words out of the scanner's buffer.
func (l *loader) keep(words []Word) []Word {
	if len(l.words) < len(words) {
		l.words = make([]Word, 1024+len(words))
	}
	kept := l.words[:len(words):len(words)]
	l.words = l.words[len(words):]
	copy(kept, words)
	return kept
}

// other notes the directives outside of upstreams that matter to a drain.
func (l *loader) other(name string, words []Word, block bool) {
	if block {
		return
	}
	if n := len(l.blocks); n > 0 {
		switch l.blocks[n-1] {
		case "map", "split_clients", "geo":
			l.reference(l.blocks[n-1], words[len(words)-1])
			return
		}
	}
	switch name {
	case "proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass":
		if len(words) > 1 {
			l.reference(name, words[1])
		}
	case "set":
		if len(words) > 2 {
			l.reference(name, words[2])
		}
	case "worker_shutdown_timeout", "pid", "error_log":
		if len(l.blocks) == 0 && len(words) > 1 {
			l.setting(name, words[1].Text)
		}
	}
}

func (l *loader) reference(directive string, w Word) {
	r := Reference{Directive: directive, Text: w.Text, File: l.file, At: w.Start}
	if len(l.blocks) > 0 {
		r.module = l.blocks[0]
	}
	l.conf.References = append(l.conf.References, r)
}

func (l *loader) setting(name, value string) {
	switch name {
	case "worker_shutdown_timeout":
		// A value that is no time is refused by nginx itself.
		if d, err := ParseTime(value); err == nil {
			l.conf.ShutdownTimeout = d
		}
	case "pid":
		l.conf.PIDFile = value
	case "error_log":
		if value != "stderr" && !strings.HasPrefix(value, "syslog:") && !strings.HasPrefix(value, "memory:") {
			l.conf.ErrorLogs = append(l.conf.ErrorLogs, value)
		}
	}
}

// include follows one include directive, in the context it stands in.
func (l *loader) include(words []Word) error {
	if len(words) != 2 {
		return &tokenError{int(words[0].Start), "include takes one argument"}
	}
	at := int(words[0].Start)
	if l.depth++; l.depth > MaxIncludeDepth {
		return fmt.Errorf("%s:%d: includes nested deeper than %d", l.file.Path, lineOf(l.file.Src, at), MaxIncludeDepth)
	}
	defer func() { l.depth-- }()
	names, err := l.expand(words[1].Text)
	if err != nil {
		return fmt.Errorf("%s:%d: %w", l.file.Path, lineOf(l.file.Src, at), err)
	}
	for _, name := range names {
		if err := l.includeFile(name); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s:%d: include %s: %w", l.file.Path, lineOf(l.file.Src, at), words[1].Text, err)
			}
			return err
		}
	}
	return nil
}

func (l *loader) expand(name string) ([]string, error) {
	if !path.IsAbs(name) {
		// As ngx_conf_full_name: "a/../b" goes through a, even a symbolic link.
		name = strings.TrimSuffix(l.prefix, "/") + "/" + name
	}
	if !strings.ContainsAny(name, "*?[") {
		return []string{name}, nil
	}
	names, err := l.host.Glob(l.ctx, name)
	if err != nil {
		return nil, fmt.Errorf("include %s: %w", name, err)
	}
	return names, nil
}

// includeFile scans one included file. One that cannot be read for lack of
// permission, or not be understood, is set aside. What stands before the place
// that is not understood is kept.
func (l *loader) includeFile(name string) error {
	f, err := l.read(name)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			l.conf.Skipped = append(l.conf.Skipped, Skipped{&File{Path: name}, err})
			return nil
		}
		return err
	}
	blocks, up := slices.Clone(l.blocks), l.up
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
		l.blocks, l.up = blocks, up
		return nil
	}
	return err
}

// ParseTime reads a time as nginx writes it: a number of seconds, or numbers
// with the units ms, s, m, h, d, w, M, y (ngx_parse_time). Whether a directive
// takes the units, and in that order, is nginx's to judge.
func ParseTime(s string) (time.Duration, error) {
	units := []struct {
		name string
		d    time.Duration
	}{
		{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour},
		{"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour}, {"M", 30 * 24 * time.Hour}, {"y", 365 * 24 * time.Hour},
	}
	total := time.Duration(0)
	rest := strings.TrimSpace(s)
	if rest == "" {
		return 0, fmt.Errorf("%q is not a time", s)
	}
	for rest != "" {
		i := 0
		n := time.Duration(0)
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' && i < 12 {
			n = n*10 + time.Duration(rest[i]-'0')
			i++
		}
		if i == 0 {
			return 0, fmt.Errorf("%q is not a time", s)
		}
		rest = rest[i:]
		unit := time.Second
		if rest != "" && rest[0] != ' ' {
			found := false
			for _, u := range units {
				if strings.HasPrefix(rest, u.name) {
					unit, rest, found = u.d, rest[len(u.name):], true
					break
				}
			}
			if !found {
				return 0, fmt.Errorf("%q is not a time", s)
			}
		}
		if n > (math.MaxInt64-total)/unit {
			return 0, fmt.Errorf("%q is too long a time", s)
		}
		total += n * unit
		rest = strings.TrimLeft(rest, " ")
	}
	return total, nil
}
