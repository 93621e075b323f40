package nginx

import (
	"errors"
	"fmt"
	"slices"
)

// Verify reads every piece of the upstream that the edits touch as it will be,
// with the cross-check, and makes sure that its servers are the same in the same
// order, and that exactly the edited ones have their wanted state.
func (u *Upstream) Verify(edits []Edit) error {
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
		if err := u.verifyPiece(p, inside); err != nil {
			return fmt.Errorf("%s: the edit of upstream %s was not verified, so nothing was written: %w", p.file.Path, u.Name, err)
		}
	}
	return nil
}

func (u *Upstream) verifyPiece(p piece, edits []Edit) error {
	// By place, not by pointer: a fragment may be in another upstream too.
	wants := map[int32]Want{}
	shifted := make([]Edit, len(edits))
	for i, e := range edits {
		wants[e.Server.At] = e.Want
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
		state, touched := wants[before[i].At]
		if !touched {
			state = Want{Down: before[i].IsDown()}
		}
		if err := sameButState(before[i], s, state); err != nil {
			return err
		}
	}
	return crossCheck(p.file.Path, text, 0, text, after)
}

// sameButState compares a server before and after an edit.
func sameButState(before, after *Server, want Want) error {
	if !slices.Equal(withoutState(before), withoutState(after)) {
		return errors.New("the words of a server changed")
	}
	if after.IsDown() != want.Down {
		return fmt.Errorf("down is %t at a server, not %t", after.IsDown(), want.Down)
	}
	return nil
}

// withoutState is the words of a server line that no edit changes.
func withoutState(s *Server) []string {
	var texts []string
	for _, w := range s.Words() {
		if w.Text != "down" {
			texts = append(texts, w.Text)
		}
	}
	return texts
}

// scanServers reads the inside of one upstream block. Fragments it includes
// are pieces of their own and not followed.
func scanServers(name, text string) ([]*Server, error) {
	c := &serverCollector{file: &File{Path: name, Src: text}}
	err := scan(text, c)
	var te *tokenError
	if errors.As(err, &te) {
		err = syntaxError(name, text, te.at, te.msg)
	}
	return c.servers, err
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
		s := &Server{File: c.file, At: words[0].Start}
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
