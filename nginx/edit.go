package nginx

import (
	"fmt"
	"slices"
	"strings"
)

// An Edit replaces the bytes Start..End of a file by New.
type Edit struct {
	File       *File
	Start, End int
	New        string
	Server     *Server
}

// downWord is what marks a server: one blank and the flag.
const downWord = " down"

// MarkDown is the edit that marks the server down: " down" right after its
// last argument. A server that is down already needs none.
func (s *Server) MarkDown() []Edit {
	if s.IsDown() {
		return nil
	}
	end := int(s.Words[len(s.Words)-1].End)
	return []Edit{{File: s.File, Start: end, End: end, New: downWord, Server: s}}
}

// ClearDown is the edits that take every down off the server, each with the
// blanks before it.
func (s *Server) ClearDown() []Edit {
	var edits []Edit
	for i, w := range s.Words {
		if i < 2 || w.Text != "down" {
			continue
		}
		from := blanksBefore(s.File.Src, int(s.Words[i-1].End), int(w.Start))
		edits = append(edits, Edit{File: s.File, Start: from, End: int(w.End), Server: s})
	}
	return edits
}

// blanksBefore is where the white space right before at begins, not before
// from. The newline that ends a comment stays: without it the comment would
// swallow what follows.
func blanksBefore(src string, from, at int) int {
	gap := src[from:at]
	i := len(strings.TrimRight(gap, " \t\r\n"))
	if i > 0 {
		// Something else than blanks stands between: a comment, which ends
		// with the next newline.
		i += strings.IndexByte(gap[i:], '\n') + 1
	}
	return from + i
}

// Apply makes the edits, which must all be of one file and not overlap, and
// returns the file's new text. The same edit twice is made once: a fragment
// that is included twice has each of its servers twice.
func Apply(src string, edits []Edit) (string, error) {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b Edit) int { return a.Start - b.Start })
	edits = slices.CompactFunc(edits, func(a, b Edit) bool {
		return a.Start == b.Start && a.End == b.End && a.New == b.New
	})
	var b strings.Builder
	b.Grow(len(src) + len(downWord)*len(edits))
	at := 0
	for _, e := range edits {
		if e.Start < at || e.End < e.Start || e.End > len(src) {
			return "", fmt.Errorf("edit at bytes %d to %d overlaps another or lies outside of the file's %d bytes", e.Start, e.End, len(src))
		}
		b.WriteString(src[at:e.Start])
		b.WriteString(e.New)
		at = e.End
	}
	b.WriteString(src[at:])
	return b.String(), nil
}

// Verify reads every piece of the upstream that the edits touch once more, as
// it will stand, by the scanner and by gonginx, and makes sure that its
// servers are the same in the same order, and that exactly the ones in down
// differ: they are down when down is true and not down when it is false.
func (u *Upstream) Verify(edits []Edit, down bool) error {
	for _, p := range u.pieces {
		var inside []Edit
		for _, e := range edits {
			if e.File == p.file && e.Start >= p.start && e.End <= p.end {
				inside = append(inside, e)
			}
		}
		if len(inside) == 0 {
			continue
		}
		if err := u.verifyPiece(p, inside, down); err != nil {
			return fmt.Errorf("%s: the edit of upstream %s does not read back as meant, nothing was written: %w", p.file.Path, u.Name, err)
		}
	}
	return nil
}

func (u *Upstream) verifyPiece(p piece, edits []Edit, down bool) error {
	// By place, not by pointer: a fragment may be in another upstream too.
	touched := map[int32]bool{}
	shifted := make([]Edit, len(edits))
	for i, e := range edits {
		touched[e.Server.Words[0].Start] = true
		shifted[i] = Edit{Start: e.Start - p.start, End: e.End - p.start, New: e.New}
	}
	text, err := Apply(p.file.Src[p.start:p.end], shifted)
	if err != nil {
		return err
	}
	after, err := scanServers(p.file.Path, text)
	if err != nil {
		return err
	}
	before := u.serversIn(p)
	if len(before) != len(after) {
		return fmt.Errorf("%d servers became %d", len(before), len(after))
	}
	for i, s := range after {
		if err := sameButDown(before[i], s, touched[before[i].Words[0].Start], down); err != nil {
			return err
		}
	}
	return agree(p.file.Path, text, 0, text, after)
}

// sameButDown compares a server before and after an edit.
func sameButDown(before, after *Server, touched, down bool) error {
	want := wordsWithout(before, "down")
	if got := wordsWithout(after, "down"); !slices.Equal(want, got) {
		return fmt.Errorf("server %v became %v", want, got)
	}
	wantDown := before.IsDown()
	if touched {
		wantDown = down
	}
	if after.IsDown() != wantDown {
		return fmt.Errorf("server %s: down is %t, not %t", before.Address, after.IsDown(), wantDown)
	}
	return nil
}

func wordsWithout(s *Server, flag string) []string {
	var texts []string
	for _, w := range s.Words {
		if w.Text != flag {
			texts = append(texts, w.Text)
		}
	}
	return texts
}

// scanServers reads the inside of one upstream block. Fragments it includes
// are pieces of their own and not followed.
func scanServers(name, text string) ([]*Server, error) {
	f := &File{Path: name, Src: text}
	c := &serverCollector{file: f}
	if err := scan(text, c); err != nil {
		if te, ok := err.(*tokenError); ok {
			return nil, syntaxError(name, text, te.at, te.msg)
		}
		return nil, err
	}
	return c.servers, nil
}

// serverCollector is the visitor of one piece.
type serverCollector struct {
	file    *File
	depth   int
	servers []*Server
}

func (c *serverCollector) directive(words []Word, block bool, at int) error {
	if c.depth == 0 && !block && words[0].Text == "server" {
		if len(words) < 2 {
			return &tokenError{at, "server without an address"}
		}
		s := &Server{File: c.file, Words: slices.Clone(words)}
		s.Address, s.Err = ParseAddress(words[1].Text)
		c.servers = append(c.servers, s)
	}
	if block {
		c.depth++
	}
	return nil
}

func (c *serverCollector) blockEnd(int) error {
	c.depth--
	return nil
}
