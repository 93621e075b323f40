package balancer

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/drainctl/drainctl/drain/journal"
	"github.com/drainctl/drainctl/nginx"
)

// attempts bounds how often a file is read again because another process
// changes it too.
const attempts = 5

// restoreFile undoes one edit. A file that holds the old bytes is left alone; one
// that is as the edit left it gets them back; in one that has been changed since,
// the edit's own words are taken out, or put back, server by server.
func (l *Local) restoreFile(ctx context.Context, e journal.Edit) error {
	var err error
	for range attempts {
		var now []byte
		if now, err = os.ReadFile(e.Path); err != nil {
			return err
		}
		var was string
		switch hash(string(now)) {
		case e.Before:
			return nil
		case e.After:
			was = inverse(string(now), e.Splices)
		default:
			if was, err = l.around(ctx, e, string(now)); err != nil || was == "" {
				return err
			}
		}
		if err = l.replaceFile(e.Path, now, []byte(was)); !errors.Is(err, nginx.ErrChanged) {
			return err
		}
	}
	return err
}

// inverse undoes splices in text, which is as they left it.
func inverse(text string, splices []journal.Splice) string {
	splices = slices.Clone(splices)
	slices.SortStableFunc(splices, func(a, b journal.Splice) int { return a.At - b.At })
	// A line of a fragment that two upstreams include is one line.
	splices = slices.CompactFunc(splices, func(a, b journal.Splice) bool { return a.At == b.At })
	var b strings.Builder
	from, shift := 0, 0
	for _, s := range splices {
		at := s.At + shift
		b.WriteString(text[from:at])
		b.WriteString(s.Old)
		from = at + len(s.New)
		shift += len(s.New) - len(s.Old)
	}
	b.WriteString(text[from:])
	return b.String()
}

// around is the file's text without the edit, where somebody has changed the
// file since; "" if there is nothing of the edit left in it.
func (l *Local) around(ctx context.Context, e journal.Edit, now string) (string, error) {
	conf, _, err := l.load(ctx)
	if err != nil {
		return "", err
	}
	var edits []nginx.Edit
	for _, u := range conf.Upstreams {
		for _, s := range u.Servers {
			i := slices.IndexFunc(e.Splices, func(sp journal.Splice) bool { return sp.Server == keyOf(s) })
			if s.File.Path == e.Path && s.File.Src == now && i >= 0 {
				edits = append(edits, s.Edits(nginx.Want{Down: e.Splices[i].New == ""})...)
			}
		}
	}
	if len(edits) == 0 {
		return "", nil
	}
	if err := verify(edits); err != nil {
		return "", err
	}
	return nginx.Apply(now, edits)
}
