package nginx

import (
	"fmt"
	"maps"
	"slices"
)

// Verify loads the configuration again, from memory and with the edits made, and checks that
// exactly the edits' servers changed, as wanted. All other servers of the configuration must be
// as before, in the same order. The upstreams that changed must pass the cross-check.
func (c *Config) Verify(edits []Edit) error {
	if len(edits) == 0 {
		return nil
	}
	after, err := c.edited(edits)
	if err == nil {
		err = c.compare(after, edits)
	}
	if err != nil {
		return fmt.Errorf("the edit was not verified, so nothing was written: %w", err)
	}
	return nil
}

// edited loads the configuration with edits made. Files without edits are those of c.
func (c *Config) edited(edits []Edit) (*Config, error) {
	byFile := map[*File][]Edit{}
	for _, e := range edits {
		byFile[e.File] = append(byFile[e.File], e)
	}
	files := newFileSet(c.files.ctx, c.files.from)
	files.byPath, files.globs = maps.Clone(c.files.byPath), c.files.globs
	for f, edits := range byFile {
		if !slices.Contains(c.Files, f) {
			return nil, fmt.Errorf("%s: it is not a file of this configuration", f.Path)
		}
		text, err := Apply(f.Src, edits)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		files.byPath[f.Path] = func() (*File, error) { return &File{Path: f.Path, Src: text}, nil }
	}
	return files.load(c.Path)
}

// A position is the place of a server line. A line of a fragment is of one server in each
// upstream that includes the fragment.
type position struct {
	file *File
	at   int32
}

// compare checks that after has the servers of c, with the states that edits want.
func (c *Config) compare(after *Config, edits []Edit) error {
	wants := map[position]bool{}
	for _, e := range edits {
		wants[position{e.Server.File, e.Server.At}] = e.Down
	}
	if len(after.Skipped) != len(c.Skipped) || len(after.Upstreams) != len(c.Upstreams) {
		return fmt.Errorf("%d upstreams became %d, and %d unreadable files became %d", len(c.Upstreams), len(after.Upstreams), len(c.Skipped), len(after.Skipped))
	}
	for i, u := range c.Upstreams {
		v := after.Upstreams[i]
		if err := u.compare(v, wants); err != nil {
			return fmt.Errorf("%s:%d: upstream %s: %w", v.File.Path, v.Line(), v.Name, err)
		}
	}
	return nil
}

func (u *Upstream) compare(after *Upstream, wants map[position]bool) error {
	if u.Name != after.Name || u.Module != after.Module || len(u.Servers) != len(after.Servers) {
		return fmt.Errorf("it was %s with %d servers, and now has %d", u.Name, len(u.Servers), len(after.Servers))
	}
	changed := false
	for i, s := range u.Servers {
		now := after.Servers[i]
		down, wanted := wants[position{s.File, s.At}]
		switch {
		case !wanted && now.File == s.File && now.At == s.At:
			continue // the file has no edits; there may be 100,000 servers
		case !wanted:
			down = s.IsDown()
		}
		if now.IsDown() != down || !slices.Equal(withoutState(s), withoutState(now)) {
			return fmt.Errorf("the server on line %d of %s is not as wanted", now.Line(), now.File.Path)
		}
		changed = changed || wanted
	}
	if changed {
		return after.CrossCheck()
	}
	return nil
}

// withoutState returns the words of a server line that no edit changes.
func withoutState(s *Server) (texts []string) {
	for _, w := range s.Words() {
		if w.Text != "down" {
			texts = append(texts, w.Text)
		}
	}
	return texts
}
