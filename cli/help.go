package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/backend"
)

// Help, manual pages and the table of flags all come from the commands themselves.
// There UsageText is examples, a line each; and what a flag's usage says after a
// semicolon is details, which the short help leaves out.

// Kinds of commands, which the help groups them by.
const (
	catWork  = "Take out and put back"
	catLook  = "Look"
	catSetUp = "Set up"
)

// flagGroups are the groups of flags, in the order in which they are shown.
var flagGroups = []string{"", catRun, catWait, catLBs, catGuards, catOutput, catNginx, catSSH}

// commonFlags are the flags that a command's --help shows, on one screen; --help-all
// has all. A command that is not here shows all.
var commonFlags = map[string][]string{
	"drain":   {"service", "upstream", "dry-run", "reason", "timeout", "on-timeout", "threshold", "poll", "lb", "group"},
	"undrain": {"service", "force", "upstream", "dry-run", "reason", "health", "health-timeout", "lb", "group"},
	"run":     {"service", "upstream", "dry-run", "batch", "canary", "reboot", "on-failure", "timeout", "health", "lb", "group"},
	"resume":  {"reason", "wait", "lb", "group"},
	"forget":  {"upstream", "dry-run", "reason", "lb", "group"},
	"check":   {"service", "upstream", "poll", "reboot", "lb", "group"},
	"status":  {"upstream", "watch", "lb", "group", "output"},
	"history": {"html", "lb", "group", "output"},
	"init":    {"force", "config", "lb", "lb-from", "nginx-conf"},
	"config":  {"config", "upstream", "group", "output"},
	"agent":   {"nginx", "nginx-conf", "test-command", "reload-command", "state-dir"},
}

// helpWidth is the columns of a help text.
const helpWidth = 80

// helpFlags are flags of every command. They are named here so that they, too, work
// anywhere.
func helpFlags() []cli.Flag {
	return []cli.Flag{cli.HelpFlag, &cli.BoolFlag{Name: "help-all", Usage: "show every flag"}}
}

// helpAsked is the help that an arranged line asks for.
func helpAsked(app *cli.App, line []string) (text string, ok bool) {
	end := slices.Index(append(slices.Clone(line), "--"), "--")
	if !slices.ContainsFunc(line[:end], isHelp) {
		return "", false
	}
	all := slices.Contains(line[:end], "--help-all")
	if cmd := app.Command(line[1]); cmd != nil {
		return commandHelp(cmd, all), true
	}
	text = appHelp(app)
	for _, cmd := range app.Commands {
		if all && !cmd.Hidden {
			text += fmt.Sprintf("\n--- drainctl %s ---\n%s", cmd.Name, commandHelp(cmd, true))
		}
	}
	return text, true
}

// appHelp is the help of the program: the commands that matter first.
func appHelp(app *cli.App) string {
	var b strings.Builder
	b.WriteString(wrapped(sentence(app.Usage), 0, 0) + "\n\n" + indented(app.UsageText) + "\nUsage: " + appUsageLine + "\n")
	for _, kind := range kindsOf(app) {
		b.WriteString("\n" + kind.Name + ":\n")
		for _, cmd := range kind.Commands {
			fmt.Fprintf(&b, "  %-10s  %s\n", cmd.Name, wrapped(cmd.Usage, 14, 14))
		}
	}
	b.WriteString("\nOn one command: drainctl drain --help. The manual: man drainctl.\n")
	return b.String()
}

// A kind is commands that belong together.
type kind struct {
	Name     string
	Commands []*cli.Command
}

// kindsOf is the commands of the program by kind, but for hidden ones.
func kindsOf(app *cli.App) (kinds []kind) {
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		name := cmp.Or(cmd.Category, "More")
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.Name == name })
		if i < 0 {
			i, kinds = len(kinds), append(kinds, kind{Name: name})
		}
		kinds[i].Commands = append(kinds[i].Commands, cmd)
	}
	return kinds
}

// commandHelp is the help of a command, with the common flags or all of them.
func commandHelp(cmd *cli.Command, all bool) string {
	var b strings.Builder
	b.WriteString(wrapped(sentence(cmd.Usage), 0, 0) + "\n\n" + indented(cmd.UsageText) + "\n" + wrapped("Usage: "+usageLine(cmd), 0, 7) + "\n")
	if cmd.Description != "" {
		b.WriteString("\n" + paragraphs(cmd.Description))
	}
	docs := docsOf(cmd)
	names, few := commonFlags[cmd.Name]
	few = few && !all
	shown := slices.DeleteFunc(slices.Clone(docs), func(d flagDoc) bool { return few && !slices.Contains(names, d.Name) })
	b.WriteString(flagList(shown, few))
	if few {
		fmt.Fprintf(&b, "\n%d more flags: drainctl %s --help-all. The manual: man drainctl-%s.\n", len(docs)-len(shown), cmd.Name, cmd.Name)
	}
	return b.String()
}

// flagList is flags under the headings of their groups; in brief, without details.
func flagList(docs []flagDoc, brief bool) string {
	var b strings.Builder
	column := 0
	for _, d := range docs {
		column = max(column, len(d.words())+4)
	}
	for i, d := range docs {
		if i == 0 || d.Group != docs[i-1].Group {
			if i == 0 || !brief {
				b.WriteString("\n")
			}
			b.WriteString(cmp.Or(d.Group, "Flags:") + "\n")
		}
		fmt.Fprintf(&b, "  %-*s%s\n", column-2, d.words(), wrapped(d.Text(brief), column, column))
	}
	return b.String()
}

const appUsageLine = "drainctl COMMAND [FLAG...] [ARGUMENT...]"

// usageLine is what can be typed.
func usageLine(cmd *cli.Command) string {
	words := []string{"drainctl", cmd.Name}
	if len(docsOf(cmd)) > 2 { // it has more than help
		words = append(words, "[FLAG...]")
	}
	return strings.TrimSpace(strings.Join(append(words, cmd.ArgsUsage), " "))
}

// A flagDoc is what there is to say of a flag.
type flagDoc struct {
	Name, Short string
	Value       string // a word for it; "": it takes none
	Usage       string
	Initial     string // its value when it is not given, where there is one
	Env, Group  string
}

// words is the flag as it is typed.
func (d flagDoc) words() string {
	text := "    "
	if d.Short != "" {
		text = "-" + d.Short + ", "
	}
	return strings.TrimRight(text+"--"+d.Name+" "+d.Value, " ")
}

// Text is what a flag is for; in brief, up to the first semicolon.
func (d flagDoc) Text(brief bool) string {
	text, details, more := strings.Cut(d.Usage, "; ")
	if d.Initial != "" {
		text += " (default: " + d.Initial + ")"
	}
	if more && !brief {
		text += "; " + details
	}
	return text
}

// docsOf is the flags of a command, group by group.
func docsOf(cmd *cli.Command) []flagDoc {
	var docs []flagDoc
	for _, f := range cmd.Flags {
		docs = append(docs, docOf(f))
	}
	slices.SortStableFunc(docs, func(a, b flagDoc) int { return slices.Index(flagGroups, a.Group) - slices.Index(flagGroups, b.Group) })
	return docs
}

func docOf(f cli.Flag) flagDoc {
	doc := f.(cli.DocGenerationFlag)
	d := flagDoc{Name: f.Names()[0], Usage: strings.ReplaceAll(doc.GetUsage(), "`", ""), Initial: doc.GetDefaultText()}
	if len(f.Names()) > 1 {
		d.Short = f.Names()[1]
	}
	if env := doc.GetEnvVars(); len(env) > 0 {
		d.Env = env[0]
	}
	if in, ok := f.(cli.CategorizableFlag); ok {
		d.Group = in.GetCategory()
	}
	switch f.(type) {
	case *cli.BoolFlag:
		d.Initial = ""
	case *cli.DurationFlag:
		d.Value = "TIME"
		span, _ := time.ParseDuration(d.Initial)
		d.Initial = ""
		if span > 0 {
			d.Initial = backend.Span(span)
		}
	case *cli.IntFlag:
		d.Value = "N"
	case *cli.StringFlag:
		d.Value = "TEXT"
	}
	if parts := strings.Split(doc.GetUsage(), "`"); len(parts) > 1 {
		d.Value = parts[1]
	}
	if text, err := strconv.Unquote(d.Initial); err == nil {
		d.Initial = text
	}
	if strings.Contains(d.Usage, "default:") {
		d.Initial = ""
	}
	return d
}

// sentence is a usage as a sentence.
func sentence(text string) string {
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// indented is lines, such as examples, with two blanks before them.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// paragraphs wraps a description, but for the lines of it that are indented.
func paragraphs(text string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(text, "\n\n") {
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		if !strings.HasPrefix(part, " ") {
			part = wrapped(part, 0, 0)
		}
		b.WriteString(part + "\n")
	}
	return b.String()
}

// wrapped is a text in lines that end before helpWidth, the first of which begins at the
// column from, and the others after indent blanks.
func wrapped(text string, from, indent int) string {
	const noBreak = "\uE000" // as wide as a blank; a default stays on the line of its word
	text = strings.ReplaceAll(text, "(default: ", "(default:"+noBreak)
	lines := show.Wrap(strings.Repeat(" ", from), strings.Repeat(" ", indent), text, helpWidth)
	return strings.ReplaceAll(strings.Join(lines, "\n")[from:], noBreak, " ")
}
