package nginx

import (
	"errors"
	"fmt"
	"strings"

	gonginx "github.com/tufanbarisyildirim/gonginx/config"
	"github.com/tufanbarisyildirim/gonginx/parser"
)

// ErrDisagree is wrapped by the error of a block that the scanner and gonginx
// do not read alike.
var ErrDisagree = errors.New("two readings of this block differ; nothing is changed that is not understood for certain")

// Agree has gonginx read every piece of the upstream block, and compares what
// it sees with what the scanner saw, server by server. The error names the
// file and the line, and wraps [ErrDisagree].
func (u *Upstream) Agree() error {
	for _, p := range u.pieces {
		if err := agree(p.file.Path, p.file.Src, p.start, p.file.Src[p.start:p.end], u.serversIn(p)); err != nil {
			return err
		}
	}
	return nil
}

// serversIn is the servers whose lines stand in the piece, each line once even
// if its file is included twice.
func (u *Upstream) serversIn(p piece) []*Server {
	var found []*Server
	for _, s := range u.Servers {
		at := int(s.Words[0].Start)
		if s.File != p.file || at < p.start || at >= p.end {
			continue
		}
		if n := len(found); n > 0 && int(found[n-1].Words[0].Start) >= at {
			break // the second time round
		}
		found = append(found, s)
	}
	return found
}

// agree compares the servers the scanner found in text, which stands at offset
// in src, with gonginx's.
func agree(name, src string, offset int, text string, ours []*Server) error {
	theirs, err := readServers(text)
	if err != nil {
		return fmt.Errorf("%s:%d: the upstream block that starts here: gonginx: %w: %w", name, lineOf(src, offset), err, ErrDisagree)
	}
	for i, s := range ours {
		if i >= len(theirs) {
			return disagreement(s, "the other reading does not see this server")
		}
		if why := differ(s, theirs[i]); why != "" {
			return disagreement(s, why)
		}
	}
	if len(theirs) > len(ours) {
		return fmt.Errorf("%s:%d: in the upstream block that starts here: the other reading sees a server %q more: %w",
			name, lineOf(src, offset), theirs[len(ours)].Address, ErrDisagree)
	}
	return nil
}

func disagreement(s *Server, why string) error {
	se := syntaxError(s.File.Path, s.File.Src, int(s.Words[0].Start), why)
	return fmt.Errorf("%w: %w", se, ErrDisagree)
}

// maxBraces bounds the opening braces in one piece. gonginx calls itself for
// each that it takes for a block, by rules that are not nginx's, and a stack
// that overflows cannot be recovered from.
const maxBraces = 10000

// readServers is gonginx's reading of what stands between an upstream's
// braces. A panic in the library is an error like any other.
func readServers(text string) (servers []*gonginx.UpstreamServer, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the parser crashed: %v", r)
		}
	}()
	if n := strings.Count(text, "{"); n > maxBraces {
		return nil, fmt.Errorf("%d braces are more than the %d it is given", n, maxBraces)
	}
	if text, err = withoutLua(strings.TrimPrefix(text, bom)); err != nil {
		return nil, err
	}
	p := parser.NewStringParser("upstream drainctl {\n"+text+"\n}\n", parser.WithSkipValidDirectivesErr())
	conf, err := p.Parse()
	if err != nil {
		return nil, err
	}
	ups := conf.FindUpstreams()
	if len(ups) != 1 {
		return nil, fmt.Errorf("%d upstream blocks where one was expected", len(ups))
	}
	return ups[0].UpstreamServers, nil
}

// withoutLua is text with blanks in place of its Lua code, which gonginx reads
// as if it were nginx's.
func withoutLua(text string) (string, error) {
	l := &luaFinder{}
	if err := scan(text, l); err != nil {
		return "", err
	}
	blanked := []byte(text)
	for _, r := range l.ranges {
		for i := r[0]; i < r[1]; i++ {
			blanked[i] = ' '
		}
	}
	return string(blanked), nil
}

// luaFinder is the visitor that notes where Lua code stands.
type luaFinder struct {
	ranges [][2]int // offsets after the '{' and of the '}'
	inside bool
}

func (l *luaFinder) directive(words []Word, block bool, at int) error {
	if l.inside = block && isLua(words); l.inside {
		l.ranges = append(l.ranges, [2]int{at + 1, 0})
	}
	return nil
}

func (l *luaFinder) blockEnd(at int) error {
	if l.inside {
		l.ranges[len(l.ranges)-1][1] = at
		l.inside = false
	}
	return nil
}

// differ says how two readings of one server line differ, or nothing.
func differ(ours *Server, theirs *gonginx.UpstreamServer) string {
	if a := unquote(theirs.Address); a != ours.Words[1].Text {
		return fmt.Sprintf("the address is %q in one reading and %q in the other", ours.Words[1].Text, a)
	}
	flags := map[string]int{}
	params := map[string]string{}
	for _, w := range ours.Params() {
		if k, v, ok := strings.Cut(w.Text, "="); ok {
			params[k] = v
		} else {
			flags[w.Text]++
		}
	}
	for _, f := range theirs.Flags {
		flags[unquote(f)]--
	}
	for f, n := range flags {
		if n != 0 {
			return fmt.Sprintf("the flag %q is in one reading only", f)
		}
	}
	for k, v := range theirs.Parameters {
		// gonginx cuts "weight=5" at the '=' with its quotes still on.
		k, v, _ := strings.Cut(unquote(k+"="+v), "=")
		if params[k] != v {
			return fmt.Sprintf("the parameter %s is %q in one reading and %q in the other", k, params[k], v)
		}
		delete(params, k)
	}
	for k := range params {
		return fmt.Sprintf("the parameter %q is in one reading only", k)
	}
	return ""
}

// unquote is the text of a word that gonginx left as it stands in the file.
func unquote(s string) string {
	if n := len(s); n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		s = s[1 : n-1]
	}
	if strings.Contains(s, `\`) {
		s = unescape(s)
	}
	return s
}
