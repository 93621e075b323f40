package nginx

import (
	"cmp"
	"fmt"
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
		changed, err := v.regions(byFile[f])
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.Path, err)
		}
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", f.Path, f.Path)
		v.writeHunks(&b, changed, context)
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

// A view is a file's text with all but some spans hidden, line by line.
type view struct {
	text    string
	starts  []int  // of the lines, and the end of the text
	shown   []bool // whether a line has a span
	anchors []anchor
}

// An anchor is a byte of the file and its place in the view. What follows it, up to the
// next anchor, is the same in both, or hidden.
type anchor struct{ file, view int }

// viewOf hides what is not of the edits' upstreams.
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
	var b strings.Builder
	at := 0
	for _, s := range append(spans, span{len(f.Src), len(f.Src)}) {
		for line := range strings.Lines(f.Src[at:s.start]) {
			v.anchors = append(v.anchors, anchor{at, b.Len()})
			b.WriteString(hide(line))
			at += len(line)
			if strings.HasSuffix(line, "\n") {
				v.endLine(b.Len())
			}
		}
		v.anchors = append(v.anchors, anchor{at, b.Len()})
		if s.start < s.end {
			v.show(b.Len(), f.Src[s.start:s.end])
		}
		b.WriteString(f.Src[s.start:s.end])
		at = s.end
	}
	v.text = b.String()
	if v.starts[len(v.starts)-1] < len(v.text) {
		v.endLine(len(v.text))
	}
	return v
}

// hide is a line, or a part of one, with its blanks alone.
func hide(line string) string {
	text := strings.TrimSpace(line)
	if text == "" {
		return line
	}
	return strings.Replace(line, text, hidden, 1)
}

// show notes that text, which begins at a byte of the view, is shown. A word in quotes
// may have several lines.
func (v *view) show(at int, text string) {
	v.mark()
	for i, c := range []byte(text) {
		if c == '\n' {
			v.endLine(at + i + 1)
			v.mark()
		}
	}
}

func (v *view) mark() {
	for len(v.shown) < len(v.starts) {
		v.shown = append(v.shown, false)
	}
	v.shown[len(v.starts)-1] = true
}

func (v *view) endLine(at int) { v.starts = append(v.starts, at) }

// place is where a byte of the file is in the view.
func (v *view) place(at int) int {
	i, found := slices.BinarySearchFunc(v.anchors, at, func(a anchor, at int) int { return cmp.Compare(a.file, at) })
	if !found {
		i--
	}
	return v.anchors[i].view + at - v.anchors[i].file
}

// line is the line, from 0, that a byte of the view is on.
func (v *view) line(at int) int {
	i, found := slices.BinarySearch(v.starts[:len(v.starts)-1], at)
	if !found {
		i--
	}
	return i
}

// A region is whole lines of a view, from 0 and both included, and their new text.
type region struct {
	first, last int
	now         string
}

// regions are the lines that the edits change.
func (v *view) regions(edits []Edit) (all []region, err error) {
	var of [][]Edit
	for _, e := range inOrder(edits) {
		e.Start, e.End = v.place(e.Start), v.place(e.End)
		first, last := v.line(e.Start), v.line(e.End)
		if n := len(all); n > 0 && first <= all[n-1].last {
			all[n-1].last, of[n-1] = max(last, all[n-1].last), append(of[n-1], e)
			continue
		}
		all, of = append(all, region{first: first, last: last}), append(of, []Edit{e})
	}
	for i := range all {
		from, to := v.starts[all[i].first], v.starts[all[i].last+1]
		for k := range of[i] {
			of[i][k].Start -= from
			of[i][k].End -= from
		}
		if all[i].now, err = Apply(v.text[from:to], of[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// writeHunks writes the changed regions with their context. Lines that follow each
// other are one hunk.
func (v *view) writeHunks(b *strings.Builder, changed []region, context int) {
	added := 0
	for i := 0; i < len(changed); {
		first := v.contextBefore(changed[i].first, context)
		var body strings.Builder
		before, now, line := 0, 0, first
		for {
			r := changed[i]
			for ; line < r.first; line++ {
				writeLines(&body, ' ', v.lines(line, line))
			}
			before += writeLines(&body, '-', v.lines(r.first, r.last))
			now += writeLines(&body, '+', r.now)
			line = r.last + 1
			i++
			end := v.contextAfter(r.last, context)
			if i < len(changed) && v.contextBefore(changed[i].first, context) <= end+1 {
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

// contextBefore is the first line of the context before a line.
func (v *view) contextBefore(line, context int) int {
	first := line
	for first > 0 && first > line-context && v.isShown(first-1) {
		first--
	}
	return first
}

// contextAfter is the last line of the context after a line.
func (v *view) contextAfter(line, context int) int {
	last := line
	for last < line+context && v.isShown(last+1) {
		last++
	}
	return last
}

func (v *view) isShown(line int) bool { return line < len(v.shown) && v.shown[line] }

// lines is the text of lines, from 0 and both included.
func (v *view) lines(first, last int) string { return v.text[v.starts[first]:v.starts[last+1]] }

// writeLines writes lines with a mark before each, and returns how many they are.
func writeLines(b *strings.Builder, mark byte, text string) (n int) {
	for line := range strings.Lines(text) {
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
