package nginx

import (
	"cmp"
	"time"
)

// Limits on what a configuration may be. They are far above what real ones
// are: a strange file is answered with an error.
const (
	MaxFileSize     = 64 << 20  // bytes of one file
	MaxTotalSize    = 256 << 20 // bytes of all files
	MaxFiles        = 20000     // files, each include counted
	MaxIncludeDepth = 50        // includes within includes
)

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
	// Skipped are included files that could not be read or parsed to their
	// end. What else they hold is unknown.
	Skipped []Skipped
	// ShutdownTimeout is worker_shutdown_timeout; 0 when it is not set, and
	// nginx then never cuts a request off.
	ShutdownTimeout time.Duration
	PIDFile         string   // the pid directive, empty when there is none
	ErrorLogs       []string // files of the error_log directives of the main context
	modules         []string // files of load_module
	includeDirs     []string // directories that patterns of includes look into
	streamServers   []*streamServer
	files           *fileSet // what it was loaded from
}

// A Skipped is an included file that could not be read or parsed.
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
	// UDP tells that a stream server passes UDP to it, or may by a variable; OnlyUDP that none passes
	// TCP to it.
	UDP, OnlyUDP bool
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

// PIDPath is where the master of this configuration writes its PID.
func (c *Config) PIDPath(b Build) string {
	return b.abs(cmp.Or(c.PIDFile, b.PID))
}

// LogPaths are the files that the master of this configuration writes its
// errors to.
func (c *Config) LogPaths(b Build) []string {
	var paths []string
	for _, p := range c.ErrorLogs {
		paths = append(paths, b.abs(p))
	}
	if len(paths) == 0 && b.ErrorLog != "" {
		paths = []string{b.ErrorLog}
	}
	return paths
}

// merge adds what an included file says to what stands before it.
func (c *Config) merge(included *Config) {
	c.Files = append(c.Files, included.Files...)
	c.Upstreams = append(c.Upstreams, included.Upstreams...)
	c.References = append(c.References, included.References...)
	c.Skipped = append(c.Skipped, included.Skipped...)
	c.ErrorLogs = append(c.ErrorLogs, included.ErrorLogs...)
	c.modules = append(c.modules, included.modules...)
	c.includeDirs = append(c.includeDirs, included.includeDirs...)
	c.streamServers = append(c.streamServers, included.streamServers...)
	c.ShutdownTimeout = cmp.Or(included.ShutdownTimeout, c.ShutdownTimeout)
	c.PIDFile = cmp.Or(included.PIDFile, c.PIDFile)
}
