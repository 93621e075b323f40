package nginx

import (
	"slices"
	"strings"
)

// A Server is one server line of an upstream. There may be 100,000: what is
// seldom asked for is read from the file's text again.
type Server struct {
	Upstream *Upstream
	File     *File
	Address  Address
	Err      error // why Address could not be read; nil otherwise
	At       int32 // byte offset of the word "server"
}

// Words are the words of the line: server, the address, the parameters.
func (s *Server) Words() []Word {
	words, _ := directiveAt(s.File.Src, s.At)
	return words
}

// directiveAt reads again the directive at a byte of a file that could be read. end is
// the offset of its ';' or '{'.
func directiveAt(src string, at int32) (words []Word, end int) {
	sc := scanner{src: src, pos: int(at), v: ignore{}, words: make([]Word, 0, 8)}
	_, _ = sc.next() // it could be read before
	return sc.words, sc.pos - 1
}

// ignore is a visitor that does nothing.
type ignore struct{}

func (ignore) directive([]Word, bool, int) error { return nil }
func (ignore) blockEnd(int) error                { return nil }

// Line is the line the server's first word stands on.
func (s *Server) Line() int { return lineOf(s.File.Src, int(s.At)) }

// Params are the words after the address.
func (s *Server) Params() []Word { return s.Words()[2:] }

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
