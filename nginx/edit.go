package nginx

import (
	"fmt"
	"slices"
	"strings"
)

// An Edit replaces the bytes Start..End of a file by New, for a server that is to
// be down or up.
type Edit struct {
	File       *File
	Start, End int
	New        string
	Server     *Server
	Down       bool
}

// downWord is what marks a server: one blank and the flag.
const downWord = " down"

// Edits mark the server down or up; none if it is so. A server is
// marked down right after its last argument. Every down is cleared with the
// blanks before it.
func (s *Server) Edits(down bool) []Edit {
	words := s.Words()
	if down {
		if s.IsDown() {
			return nil
		}
		end := int(words[len(words)-1].End)
		return []Edit{{File: s.File, Start: end, End: end, New: downWord, Server: s, Down: down}}
	}
	var edits []Edit
	for i, w := range words {
		if i < 2 || w.Text != "down" {
			continue
		}
		from := blanksBefore(s.File.Src, int(words[i-1].End), int(w.Start))
		edits = append(edits, Edit{File: s.File, Start: from, End: int(w.End), Server: s, Down: down})
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

// inOrder is edits by their place. The same edit twice is made once: a fragment
// that is included twice has each of its servers twice.
func inOrder(edits []Edit) []Edit {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b Edit) int { return a.Start - b.Start })
	return slices.CompactFunc(edits, func(a, b Edit) bool {
		return a.Start == b.Start && a.End == b.End && a.New == b.New
	})
}

// Apply makes the edits, which must all be of one file and not overlap, and
// returns the file's new text. The same edit twice is made once.
func Apply(src string, edits []Edit) (string, error) {
	var b strings.Builder
	b.Grow(len(src) + len(downWord)*len(edits))
	at := 0
	for _, e := range inOrder(edits) {
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
