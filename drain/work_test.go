package drain

import (
	"io"
	"strings"
	"testing"
)

// A line of a command's output is told in pieces if it is long, and nothing of it is lost.
func TestOutputOfLongLines(t *testing.T) {
	var told []string
	o := &Operation{options: Options{Emit: func(e Event) { told = append(told, e.(*WorkOutput).Line) }}}
	out := o.output("app-1", StepWork)
	long := strings.Repeat("x", 10*maxWorkLine+5)
	for _, text := range []string{"one\r\n", long[:7], long[7:], "\ntwo\n", "three"} {
		if _, err := io.WriteString(out, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(told); n != 14 || told[0] != "one" || told[n-2] != "two" || told[n-1] != "three" || strings.Join(told[1:n-2], "") != long {
		t.Errorf("%d lines were told, want 14", n)
	}
	for _, line := range told {
		if len(line) > maxWorkLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}
