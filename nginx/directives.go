package nginx

import "strings"

// directive notes what matters to a drain.
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
	case name == "server" && block && len(l.blocks) == 1 && l.blocks[0] == "stream":
		l.stream = &streamServer{file: l.file, at: words[0].Start}
		l.conf.streamServers = append(l.conf.streamServers, l.stream)
	case !block:
		l.other(name, words)
	}
	if block {
		l.blocks = append(l.blocks, name)
	}
	return nil
}

func (l *loader) blockEnd(at int) error {
	last := len(l.blocks) - 1
	if l.up != nil && last == 1 {
		l.up.pieces[0].end = at
		l.up.Servers = append(l.up.Servers, l.servers...) // as large as it must be
		l.up = nil
	}
	if last == 1 {
		l.stream = nil
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
	l.servers = l.servers[:0]
	l.conf.Upstreams = append(l.conf.Upstreams, l.up)
}

// slabSize is how many servers are allocated at once.
const slabSize = 256

func (l *loader) server(words []Word, at int) error {
	if len(words) < 2 {
		return &tokenError{at, "server without an address"}
	}
	if len(l.slab) == 0 {
		l.slab = make([]Server, slabSize)
	}
	s := &l.slab[0]
	l.slab = l.slab[1:]
	s.Upstream, s.File, s.At = l.up, l.file, words[0].Start
	s.Address, s.Err = ParseAddress(words[1].Text)
	l.servers = append(l.servers, s)
	return nil
}

// other notes the directives outside of upstreams that matter.
func (l *loader) other(name string, words []Word) {
	if l.stream != nil {
		l.stream.directive(words)
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
	case "worker_shutdown_timeout", "pid", "error_log", "load_module":
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
	case "load_module":
		l.conf.modules = append(l.conf.modules, value)
	case "error_log":
		if value != "stderr" && !strings.HasPrefix(value, "syslog:") && !strings.HasPrefix(value, "memory:") {
			l.conf.ErrorLogs = append(l.conf.ErrorLogs, value)
		}
	}
}
