package nginx

import "strings"

// isLua tells whether the block that words open holds Lua code.
func isLua(words []Word) bool { return strings.HasSuffix(words[0].Text, "_by_lua_block") }

// skipLua passes over the Lua code after the '{' of a *_by_lua_block, up to
// and including its closing '}', by the rules of lua-nginx-module's lexer:
// braces count outside of strings, long brackets and comments.
func (s *scanner) skipLua() error {
	start := s.pos
	depth := 1
	for s.pos < len(s.src) {
		switch c := s.src[s.pos]; c {
		case '{':
			depth++
			s.pos++
		case '}':
			depth--
			s.pos++
			if depth == 0 {
				s.depth--
				return s.v.blockEnd(s.pos - 1)
			}
		case '"', '\'':
			s.skipLuaString(c)
		case '-':
			s.pos++
			if !strings.HasPrefix(s.src[s.pos:], "-") {
				break
			}
			s.pos++
			if !s.skipLongBracket() {
				s.skipLine()
			}
		case '[':
			if !s.skipLongBracket() {
				s.pos++
			}
		default:
			s.pos++
		}
	}
	return &tokenError{start, `Lua block is never closed, expecting "}"`}
}

// skipLuaString passes over a quoted Lua string. One that does not end on its
// line is none to lua-nginx-module: it passes over the quote and goes on.
func (s *scanner) skipLuaString(q byte) {
	none := &s.noString[0]
	if q == '\'' {
		none = &s.noString[1]
	}
	s.pos++
	if s.pos <= *none {
		return
	}
	i := s.pos
	for ; i < len(s.src) && s.src[i] != '\n'; i++ {
		if s.src[i] == q {
			s.pos = i + 1
			return
		}
		if s.src[i] == '\\' && i+1 < len(s.src) && s.src[i+1] != '\n' {
			i++
		}
	}
	*none = i
}

// skipLongBracket passes over [[...]] or [==[...]==] if one starts here.
func (s *scanner) skipLongBracket() bool {
	rest := s.src[s.pos:]
	if !strings.HasPrefix(rest, "[") {
		return false
	}
	level := 0
	for 1+level < len(rest) && rest[1+level] == '=' {
		level++
	}
	if 1+level >= len(rest) || rest[1+level] != '[' {
		return false
	}
	closing := "]" + strings.Repeat("=", level) + "]"
	i := strings.Index(rest[2+level:], closing)
	if i < 0 {
		s.pos = len(s.src)
		return true
	}
	s.pos += 2 + level + i + len(closing)
	return true
}
