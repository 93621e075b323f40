package cli

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"al.essio.dev/pkg/shellescape"
	"github.com/kballard/go-shellquote"
)

// What is shown of every command fits the screen: the short help on one, and no line
// of any is longer than 80 columns.
func TestHelpFits(t *testing.T) {
	app := newApp(newSession(nil, nil))
	const rows = 30
	lines := [][]string{{"--help"}, {"--help-all"}}
	for _, name := range commandNames(app) {
		lines = append(lines, []string{name, "--help"}, []string{name, "--help-all"})
	}
	for _, line := range lines {
		text := hear(line...).out
		if n := strings.Count(text, "\n"); !slices.Contains(line, "--help-all") && n > rows {
			t.Errorf("drainctl %s: %d rows, more than %d", strings.Join(line, " "), n, rows)
		}
		for row := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(row, "\n")); n > helpWidth {
				t.Errorf("drainctl %s: %d columns: %s", strings.Join(line, " "), n, row)
			}
		}
	}
}

// Help begins with two examples, each of which is a line that drainctl takes.
func TestExamplesWork(t *testing.T) {
	app := newApp(newSession(nil, nil))
	for _, cmd := range append(slices.Clone(app.Commands), nil) {
		examples, name := app.UsageText, "drainctl"
		if cmd != nil {
			examples, name = cmd.UsageText, cmd.Name
		}
		lines := strings.Split(strings.ReplaceAll(examples, "\\\n", ""), "\n")
		if len(lines) < 2 && (cmd == nil || !cmd.Hidden) {
			t.Errorf("%s: %d examples, want two", name, len(lines))
		}
		for _, line := range lines {
			words, err := shellquote.Split(line)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			i := slices.Index(words, "drainctl")
			if i < 0 {
				continue
			}
			if h := hear(words[i+1:]...); h.code != 0 || !(h.reached || h.out != "") {
				t.Errorf("%s: exit code %d %s", shellescape.QuoteCommand(words), h.code, h.err)
			}
		}
	}
}

// The flags that are common are flags, and groups are known.
func TestCommonFlags(t *testing.T) {
	app := newApp(newSession(nil, nil))
	for name, flags := range commonFlags {
		for _, flag := range flags {
			if findFlag(app.Command(name).Flags, flag) == nil && flag != "watch" && flag != "html" {
				t.Errorf("%s has no flag --%s", name, flag)
			}
		}
	}
	for _, cmd := range app.Commands {
		for _, d := range docsOf(cmd) {
			if !slices.Contains(flagGroups, d.group) {
				t.Errorf("%s --%s: the group %q is not known", cmd.Name, d.name, d.group)
			}
		}
	}
}
