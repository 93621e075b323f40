package show

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hinshun/vt10x"
)

// onTerminal is what a terminal shows in the end of what was written to it.
func onTerminal(width, height int, written string) []string {
	t := vt10x.New(vt10x.WithSize(width, height))
	_, _ = t.Write([]byte(strings.ReplaceAll(written, "\n", "\r\n"))) // as the kernel does
	var lines []string
	for line := range strings.Lines(t.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// What is drawn in place stands once, and leaves nothing behind: at the bottom of the
// terminal, where it scrolls, too.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	var lines []string
	ends := func(rows ...string) {
		t.Helper()
		got, all := onTerminal(80, 24, out.String()), slices.Concat(lines, rows)
		if len(got) < min(len(all), 21) || !slices.Equal(got, all[max(0, len(all)-len(got)):]) {
			t.Fatalf("%q, want the end of %q", got, all)
		}
	}
	for i := range 40 {
		s.draw([]string{fmt.Sprint("step ", i), "many", strings.Repeat("x", 200)}, 80, 24)
		ends(fmt.Sprint("step ", i), "many", strings.Repeat("x", 78)+"…")
		s.draw([]string{fmt.Sprint("again ", i), "few"}, 80, 24)
		ends(fmt.Sprint("again ", i), "few")
		s.clear()
		lines = append(lines, fmt.Sprint("line ", i))
		fmt.Fprintln(&out, lines[i])
	}
	ends()
}

// Rows are cut to the terminal: a wrapped one would be two.
func TestScreenCuts(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, ascii: true}
	s.draw([]string{"\x1b[1mmuch too long\x1b[22m", "▁▂ ok…"}, 10, 24)
	if got, want := onTerminal(10, 24, out.String()), []string{"much too~", "_. ok~"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Enter, typed while the rows stand there, leaves none of them behind.
func TestScreenAndEnter(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	s.draw([]string{"one", "two", "three"}, 80, 24)
	out.WriteString("\n")
	s.draw([]string{"1", "2", "3"}, 80, 24)
	if got, want := onTerminal(80, 24, out.String()), []string{"1", "2", "3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
