// Package nginx is one nginx on this machine: its configuration as upstreams
// and servers, edits of single bytes and the safe replacement of a file; its
// test, its reload, its processes, its stub_status.
package nginx

import (
	"fmt"
	"strings"
)

// MaxBlockDepth is how deep blocks may be nested in one file. nginx itself has
// no limit but its stack; real configurations stay below ten.
const MaxBlockDepth = 64

// A Word is one argument of a directive, as nginx reads it, and where it
// stands.
type Word struct {
	Text  string // quotes taken off, escapes resolved
	Start int32  // byte offset of its first byte, the quote if it has one
	End   int32  // byte offset after its last byte, the closing quote included
}

// A SyntaxError is a place in a configuration that cannot be read by nginx's
// own token rules, or that is beyond this package's limits. It quotes nothing of the file:
// an include may lead to a file that whoever reads the error may not read.
type SyntaxError struct {
	File string
	Line int // from 1
	Msg  string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// bom may stand before the first directive. nginx reads it as part of the first
// word and usually refuses the file; that is left to nginx, and the bytes are
// kept.
const bom = "\xef\xbb\xbf"

// A visitor receives what a scan finds, in order. words is valid only during
// the call.
type visitor interface {
	// directive is called at the ';' or '{' that ends words; at is its offset.
	directive(words []Word, block bool, at int) error
	// blockEnd is called at each '}'.
	blockEnd(at int) error
}

// A tokenError is a scan's error before the file's name and line are known.
type tokenError struct {
	at  int
	msg string
}

func (e *tokenError) Error() string { return e.msg }

// scanner reads words by the rules of ngx_conf_read_token in nginx's
// src/core/ngx_conf_file.c.
type scanner struct {
	src   string
	pos   int
	words []Word
	depth int
	v     visitor
	// noString is, for " and ', up to where no Lua string in such quotes ends:
	// what has been looked through once is not looked through again.
	noString [2]int
}

// scan reads src to its end, or to the first error: a *tokenError, or what the
// visitor returned.
func scan(src string, v visitor) error {
	s := scanner{src: src, v: v, words: make([]Word, 0, 16)}
	if strings.HasPrefix(src, bom) {
		s.pos = len(bom)
	}
	for {
		more, err := s.next()
		if err != nil || !more {
			return err
		}
	}
}

// next reads up to and including one ';', '{' or '}'.
func (s *scanner) next() (bool, error) {
	s.words = s.words[:0]
	for {
		if err := s.skipBlank(); err != nil {
			return false, err
		}
		if s.pos >= len(s.src) {
			return false, s.atEOF()
		}
		switch s.src[s.pos] {
		case ';', '{':
			return true, s.end()
		case '}':
			if len(s.words) > 0 {
				return false, &tokenError{s.pos, `unexpected "}"`}
			}
			if s.depth == 0 {
				return false, &tokenError{s.pos, `unexpected "}"`}
			}
			s.depth--
			s.pos++
			return true, s.v.blockEnd(s.pos - 1)
		case '"', '\'':
			if err := s.quoted(); err != nil {
				return false, err
			}
		default:
			if err := s.plain(); err != nil {
				return false, err
			}
		}
	}
}

func (s *scanner) atEOF() error {
	switch {
	case len(s.words) > 0:
		return &tokenError{int(s.words[0].Start), `unexpected end of file, expecting ";" or "}"`}
	case s.depth > 0:
		return &tokenError{len(s.src), `unexpected end of file, expecting "}"`}
	}
	return nil
}

// skipBlank passes over white space and comments. A '#' starts a comment only
// where a word could start.
func (s *scanner) skipBlank() error {
	for s.pos < len(s.src) {
		switch s.src[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		case '#':
			start := s.pos
			s.skipLine()
			if err := s.fits(start, s.pos); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// confBuffer is NGX_CONF_BUFFER: nginx reads a file in pieces of that many
// bytes, and a word or a comment must lie in one.
const confBuffer = 4096

// fits checks that nginx can read what starts at start and is known to have
// ended when the byte at last is read.
func (s *scanner) fits(start, last int) error {
	if last-start < confBuffer || start+confBuffer >= len(s.src) {
		return nil
	}
	return &tokenError{start, fmt.Sprintf("a word or comment longer than the %d bytes nginx can read", confBuffer)}
}

// end passes the words on at ';' or '{'.
func (s *scanner) end() error {
	at := s.pos
	block := s.src[at] == '{'
	if len(s.words) == 0 {
		return &tokenError{at, fmt.Sprintf("unexpected %q", s.src[at])}
	}
	s.pos++
	if block {
		if s.depth++; s.depth > MaxBlockDepth {
			return &tokenError{at, fmt.Sprintf("blocks nested deeper than %d", MaxBlockDepth)}
		}
	}
	if err := s.v.directive(s.words, block, at); err != nil {
		return err
	}
	if block && isLua(s.words) {
		return s.skipLua()
	}
	return nil
}

// quoted reads a word in quotes. After the closing quote nginx wants white
// space, ';', '{' or ')'.
func (s *scanner) quoted() error {
	start, q := s.pos, s.src[s.pos]
	escaped := false
	i := start + 1
	for ; i < len(s.src) && s.src[i] != q; i++ {
		if s.src[i] == '\\' {
			escaped = true
			i++
		}
	}
	if i >= len(s.src) {
		return &tokenError{start, "quote is never closed"}
	}
	s.add(start, i+1, start+1, i, escaped)
	s.pos = i + 1
	if s.pos >= len(s.src) {
		return nil
	}
	switch s.src[s.pos] {
	case ' ', '\t', '\r', '\n':
		return s.fits(start+1, s.pos+1)
	case ';', '{', ')':
		return s.fits(start+1, s.pos)
	}
	return &tokenError{s.pos, "unexpected character after a closing quote"}
}

// Bytes that matter within a word without quotes.
const (
	endsWord = 1 + iota
	isEscape
	isDollar
)

// inWord says of each byte what it does within a word without quotes.
var inWord = [256]byte{' ': endsWord, '\t': endsWord, '\r': endsWord, '\n': endsWord, ';': endsWord, '{': endsWord, '\\': isEscape, '$': isDollar}

// plain reads a word without quotes. "${" does not end it.
func (s *scanner) plain() error {
	src, start, escaped := s.src, s.pos, false
	i := start
loop:
	for ; i < len(src); i++ {
		switch inWord[src[i]] {
		case endsWord:
			break loop
		case isEscape:
			escaped = true
			i++
		case isDollar:
			// As in nginx, "${{" is one word too.
			for i+1 < len(src) && src[i+1] == '{' {
				i++
			}
		}
	}
	i = min(i, len(src))
	s.add(start, i, start, i, escaped)
	s.pos = i
	if i < len(src) && src[i] != ';' && src[i] != '{' {
		// nginx begins the next word only when it has read the byte after
		// the blank.
		return s.fits(start, i+1)
	}
	return s.fits(start, i)
}

// add appends the word that stands at start..end, its text at from..to.
func (s *scanner) add(start, end, from, to int, escaped bool) {
	text := s.src[from:to]
	if escaped {
		text = unescape(text)
	}
	s.words = append(s.words, Word{Text: text, Start: int32(start), End: int32(end)})
}

// unescape resolves the escapes nginx knows: \" \' \\ \t \r \n. Others keep
// their backslash.
func unescape(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			switch s[i+1] {
			case '"', '\'', '\\':
				i++
			case 't':
				b.WriteByte('\t')
				i++
				continue
			case 'r':
				b.WriteByte('\r')
				i++
				continue
			case 'n':
				b.WriteByte('\n')
				i++
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (s *scanner) skipLine() {
	for s.pos < len(s.src) && s.src[s.pos] != '\n' {
		s.pos++
	}
}

// lineOf is the number of the line that holds offset at, from 1.
func lineOf(src string, at int) int {
	return 1 + strings.Count(src[:min(max(at, 0), len(src))], "\n")
}

// syntaxError gives a place in a file its name and line.
func syntaxError(file, src string, at int, msg string) *SyntaxError {
	return &SyntaxError{File: file, Line: lineOf(src, at), Msg: msg}
}
