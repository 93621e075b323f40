package nginx

import (
	"errors"
	"fmt"
	"strings"

	gonginx "github.com/tufanbarisyildirim/gonginx/config"
	"github.com/tufanbarisyildirim/gonginx/parser"
)

// ErrCrossCheck is wrapped by the error of a block that drainctl and gonginx do
// not read alike.
var ErrCrossCheck = errors.New("the cross-check failed, so nothing in this block is changed")

// CrossCheck has gonginx read every piece of the upstream block, and compares
// its servers with ours, one by one. The error names the file and the line, and
// wraps [ErrCrossCheck].
func (u *Upstream) CrossCheck() error {
	for _, p := range u.pieces {
		if err := crossCheck(p.file.Path, p.file.Src, p.start, p.file.Src[p.start:p.end], u.serversIn(p)); err != nil {
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
		at := int(s.At)
		if s.File != p.file || at < p.start || at >= p.end {
			continue
		}
		if n := len(found); n > 0 && int(found[n-1].At) >= at {
			break // the second time round
		}
		found = append(found, s)
	}
	return found
}

// crossCheck compares our servers in text, which stands at offset in src, with
// gonginx's.
func crossCheck(name, src string, offset int, text string, ours []*Server) error {
	block := func(err error) error {
		return fmt.Errorf("%s:%d: in the upstream block that starts here: %w: %w", name, lineOf(src, offset), err, ErrCrossCheck)
	}
	theirs, err := readServers(text)
	if err != nil {
		return block(errors.New("gonginx cannot read it")) // its error quotes the file
	}
	for i, s := range ours {
		why := "gonginx does not see this server"
		if i < len(theirs) {
			why = diff(s.Words(), theirs[i])
		}
		if why != "" {
			return fmt.Errorf("%w: %w", syntaxError(s.File.Path, s.File.Src, int(s.At), why), ErrCrossCheck)
		}
	}
	if len(theirs) > len(ours) {
		return block(errors.New("gonginx sees one more server"))
	}
	return nil
}

// maxBraces bounds the opening braces in one piece. gonginx calls itself for
// each that it reads as a block, by rules that are not nginx's, and a stack
// overflow cannot be recovered from.
const maxBraces = 10000

// readServers is what gonginx reads between an upstream's braces. A panic in the
// library is an error like any other.
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

// diff says, without a word of the file, how gonginx reads a server line in another way than we do; empty if
// it does not.
func diff(ours []Word, theirs *gonginx.UpstreamServer) string {
	if unquote(theirs.Address) != ours[1].Text {
		return "gonginx reads another address"
	}
	flags := map[string]int{}
	params := map[string]string{}
	for _, w := range ours[2:] {
		if k, v, ok := strings.Cut(w.Text, "="); ok {
			params[k] = v
		} else {
			flags[w.Text]++
		}
	}
	for _, f := range theirs.Flags {
		flags[unquote(f)]--
	}
	for _, n := range flags {
		if n != 0 {
			return "gonginx reads other flags"
		}
	}
	for k, v := range theirs.Parameters {
		// gonginx cuts "weight=5" at the '=' with its quotes still on.
		k, v, _ := strings.Cut(unquote(k+"="+v), "=")
		if params[k] != v {
			return "gonginx reads another value of a parameter"
		}
		delete(params, k)
	}
	if len(params) > 0 {
		return "gonginx does not see all parameters"
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
