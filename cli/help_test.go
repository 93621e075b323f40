package cli

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"al.essio.dev/pkg/shellescape"
	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/remote"
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
			words, err := remote.Split(line)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, ">") }); i >= 0 {
				words = words[:i] // what the shell does with the output
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

// The manual has a page for each command, with all of its flags, that groff and mandoc
// find nothing wrong with.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if h := hear("man", dir); h.code != 0 || h.out != "" {
		t.Fatalf("exit code %d %s%s", h.code, h.err, h.out)
	}
	pages := map[string]*cli.Command{"drainctl": nil}
	app := newApp(newSession(nil, nil))
	for _, name := range commandNames(app) {
		pages["drainctl-"+name] = app.Command(name)
	}
	if files, _ := filepath.Glob(dir + "/*"); len(files) != len(pages) {
		t.Errorf("%d pages of %d", len(files), len(pages))
	}
	for name, cmd := range pages {
		page := filepath.Join(dir, name+".1")
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		wanted := []string{"drainctl undrain 192.168.1.10", "drainctl\\-run", "EXIT STATUS"}
		if cmd != nil {
			wanted = append(strings.Split(roff(cmd.UsageText), "\n"), "EXIT STATUS")
			for _, d := range docsOf(cmd) {
				wanted = append(wanted, "\\fB\\-\\-"+roff(d.Name))
			}
		}
		for _, want := range wanted {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		for _, lint := range [][]string{{"groff", "-ww", "-man", "-z", page}, {"mandoc", "-T", "lint", "-W", "warning", page}} {
			out, _ := exec.Command(lint[0], lint[1:]...).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if !strings.Contains(line, "missing date") { // of a build that knows of no commit
					t.Errorf("%s: %s", lint[0], line)
				}
			}
		}
	}
}

// flagsFile is the table of flags, which make docs writes.
const flagsFile = "../docs/flags.md"

func TestFlagsTable(t *testing.T) {
	want := flagsTable(newApp(newSession(nil, nil)))
	if os.Getenv("UPDATE_DOCS") != "" {
		if err := os.WriteFile(flagsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(flagsFile); err != nil || string(got) != want {
		t.Errorf("%s is not as the flags are (%v): run make docs", flagsFile, err)
	}
}

// flagsTable is a row for each flag, and for each meaning that it has.
func flagsTable(app *cli.App) string {
	type row struct {
		flagDoc
		commands []string
	}
	var rows []*row
	for _, cmd := range app.Commands {
		for _, d := range docsOf(cmd) {
			i := slices.IndexFunc(rows, func(r *row) bool {
				// Of those that the agent shares it takes none from the environment.
				same := d
				if cmd.Name == "agent" {
					same.Env = r.Env
				}
				return r.flagDoc == same
			})
			if i < 0 {
				i, rows = len(rows), append(rows, &row{flagDoc: d})
			}
			if !cmd.Hidden {
				rows[i].commands = append(rows[i].commands, cmd.Name)
			}
		}
	}
	first := func(r *row) int { return slices.IndexFunc(rows, func(f *row) bool { return f.Name == r.Name }) }
	rows = slices.SortedStableFunc(slices.Values(rows), func(a, b *row) int { return first(a) - first(b) })
	var b strings.Builder
	b.WriteString("<!-- Made from the code by make docs. -->\n\n# Flags\n\n" +
		"A flag works anywhere on the line. It goes before its environment variable, and the variable before the configuration file. The agent takes no flag from the environment.\n")
	cell := strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*").Replace
	code := func(text string) string {
		if text == "" {
			return ""
		}
		return "`" + text + "`"
	}
	for _, group := range flagGroups {
		fmt.Fprintf(&b, "\n## %s\n\n| Flag | Commands | Variable | Default | What |\n| --- | --- | --- | --- | --- |\n", strings.TrimSuffix(cmp.Or(group, "General"), ":"))
		for _, r := range rows {
			if r.Group == group {
				fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(strings.TrimSpace(r.words())), strings.Join(r.commands, ", "), code(r.Env), code(r.Initial), cell(r.Usage))
			}
		}
	}
	return b.String()
}

// The flags that are common are flags, and groups are known.
func TestCommonFlags(t *testing.T) {
	app := newApp(newSession(nil, nil))
	for name, flags := range commonFlags {
		for _, flag := range flags {
			if findFlag(app.Command(name).Flags, flag) == nil {
				t.Errorf("%s has no flag --%s", name, flag)
			}
		}
	}
	for _, cmd := range app.Commands {
		for _, d := range docsOf(cmd) {
			if !slices.Contains(flagGroups, d.Group) {
				t.Errorf("%s --%s: the group %q is not known", cmd.Name, d.Name, d.Group)
			}
		}
	}
}
