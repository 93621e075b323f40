package nginx

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// hidden stands for text that a diff does not show.
const hidden = "…"

// Diff is a unified diff of edits, file by file, with at most context lines before and
// after each. It shows the server lines and the braces of the edited upstreams, and
// nothing else: other directives and comments may hold secrets. Context ends at the
// first line that has none of them. Other text on a shown line is "…".
func Diff(edits []Edit, context int) (string, error) {
	var files []*File
	byFile := map[*File][]Edit{}
	for _, e := range edits {
		if byFile[e.File] == nil {
			files = append(files, e.File)
		}
		byFile[e.File] = append(byFile[e.File], e)
	}
	var b strings.Builder
	for _, f := range files {
		v := viewOf(f, byFile[f])
		edited, err := Apply(v.text, byFile[f])
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.Path, err)
		}
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", f.Path, f.Path)
		v.writeHunks(&b, v.regions(byFile[f]), edited, context)
	}
	return b.String(), nil
}

// A span is the bytes start..end of a text.
type span struct{ start, end int }

// shownIn is what a diff shows of an upstream in a file: the words and the end of its
// server lines and of its own first line, and its closing brace.
func (u *Upstream) shownIn(f *File) (spans []span) {
	add := func(at int32) {
		words, end := directiveAt(f.Src, at)
		for _, w := range words {
			spans = append(spans, span{int(w.Start), int(w.End)})
		}
		spans = append(spans, span{end, end + 1})
	}
	if u.File == f {
		add(u.At)
		spans = append(spans, span{u.pieces[0].end, u.pieces[0].end + 1})
	}
	for _, s := range u.Servers {
		if s.File == f {
			add(s.At)
		}
	}
	return spans
}

// A view is a file's text, line by line, with a zero byte for each byte that is hidden.
type view struct {
	text   string
	starts []int  // of the lines, and the end of the text
	shown  []bool // by line: whether a part of it is shown
}

// viewOf hides what is not of the edits' upstreams, except blanks.
func viewOf(f *File, edits []Edit) *view {
	var spans []span
	seen := map[*Upstream]bool{}
	for _, e := range edits {
		if u := e.Server.Upstream; !seen[u] {
			seen[u] = true
			spans = append(spans, u.shownIn(f)...)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	spans = slices.Compact(spans) // a fragment may be included twice
	v := &view{starts: []int{0}}
	for line := range strings.Lines(f.Src) {
		v.starts = append(v.starts, v.starts[len(v.starts)-1]+len(line))
	}
	v.shown = make([]bool, len(v.starts))
	text := []byte(f.Src)
	at := 0
	for _, s := range append(spans, span{len(text), len(text)}) {
		for line := range strings.Lines(f.Src[at:s.start]) {
			trimmed := strings.TrimSpace(line)
			from := at + strings.Index(line, trimmed)
			clear(text[from : from+len(trimmed)])
			at += len(line)
		}
		at = s.end
	}
	for _, s := range spans {
		for line := v.line(s.start); line <= v.line(s.end-1); line++ { // a word in quotes may have several
			v.shown[line] = true
		}
	}
	v.text = string(text)
	return v
}

// line is the line, from 0, that a byte is on.
func (v *view) line(at int) int {
	i, found := slices.BinarySearch(v.starts[:len(v.starts)-1], at)
	if !found {
		i--
	}
	return i
}

// A region is whole lines of a view, from 0 and both included. Their new text is at from..to of
// the edited text.
type region struct{ first, last, from, to int }

// regions are the lines that the edits change.
func (v *view) regions(edits []Edit) (all []region) {
	shift := 0 // how much longer the edited text is so far
	for _, e := range inOrder(edits) {
		first, last := v.line(e.Start), v.line(e.End)
		if n := len(all); n == 0 || first > all[n-1].last {
			all = append(all, region{first: first, from: v.starts[first] + shift})
		}
		shift += len(e.New) - (e.End - e.Start)
		r := &all[len(all)-1]
		r.last = max(r.last, last)
		r.to = v.starts[r.last+1] + shift
	}
	return all
}

// writeHunks writes the changed regions with their context. Lines that follow each
// other are one hunk.
func (v *view) writeHunks(b *strings.Builder, changed []region, edited string, context int) {
	added := 0
	for i := 0; i < len(changed); {
		first := v.reach(changed[i].first, -1, context)
		var body strings.Builder
		before, now, line := 0, 0, first
		for {
			r := changed[i]
			for ; line < r.first; line++ {
				writeLines(&body, ' ', v.lines(line, line))
			}
			before += writeLines(&body, '-', v.lines(r.first, r.last))
			now += writeLines(&body, '+', edited[r.from:r.to])
			line = r.last + 1
			i++
			end := v.reach(r.last, 1, context)
			if i < len(changed) && v.reach(changed[i].first, -1, context) <= end+1 {
				continue
			}
			for ; line <= end; line++ {
				writeLines(&body, ' ', v.lines(line, line))
			}
			break
		}
		same := line - first - before
		fmt.Fprintf(b, "@@ -%s +%s @@\n%s", rangeText(first, same+before), rangeText(first+added, same+now), &body)
		added += now - before
	}
}

// reach is the last line of the context of a line, in the direction of step.
func (v *view) reach(line, step, context int) int {
	for range context {
		if next := line + step; next < 0 || !v.shown[next] {
			break
		}
		line += step
	}
	return line
}

// lines is the text of lines, from 0 and both included.
func (v *view) lines(first, last int) string { return v.text[v.starts[first]:v.starts[last+1]] }

var hiddenBytes = regexp.MustCompile(`\x00+`)

// writeLines writes lines with a mark before each, and returns how many they are.
func writeLines(b *strings.Builder, mark byte, text string) (n int) {
	for line := range strings.Lines(hiddenBytes.ReplaceAllLiteralString(text, hidden)) {
		n++
		b.WriteByte(mark)
		b.WriteString(line)
		if !strings.HasSuffix(line, "\n") {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
	return n
}

// rangeText is a hunk's range of n lines, the first of them counted from 0.
func rangeText(first, n int) string {
	if n == 1 {
		return fmt.Sprint(first + 1)
	}
	return fmt.Sprintf("%d,%d", first+1, n)
}
