package cli

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/drainctl/drainctl/cli/show"
	"github.com/drainctl/drainctl/drain/fleet"
	"github.com/drainctl/drainctl/drain/spec"
	"github.com/drainctl/drainctl/drain/status"
	"github.com/drainctl/drainctl/nginx"
	"github.com/drainctl/drainctl/remote"
)

// completions are the scripts of shells, by the shells' names. Each asks
// "drainctl __complete" for what the line up to the cursor may go on with.
//
//go:embed completion
var completions embed.FS

// shells are those that have a script.
var shells = []string{"bash", "fish", "zsh"}

func completionCommand(s *session) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of bash, fish or zsh",
		ArgsUsage: "SHELL",
		Category:  catSetUp,
		UsageText: "source <(drainctl completion bash)\n" +
			"drainctl completion fish >~/.config/fish/completions/drainctl.fish",
		Description: "It completes commands, flags and their values, and from the configuration of this machine, or of the " +
			"load balancers on the line: targets, upstreams, groups, units and operations. It asks no password " +
			"and gives up after a second. Where the package has not put it in place:\n\n" +
			"    bash: source <(drainctl completion bash)   in ~/.bashrc\n" +
			"    zsh:  source <(drainctl completion zsh)    in ~/.zshrc, after compinit\n" +
			"    fish: the file of the example above",
		Action: func(c *cli.Context) error {
			script, err := completions.ReadFile("completion/" + c.Args().First())
			if err != nil || c.NArg() != 1 {
				return usage("completion takes the name of a shell: %s", strings.Join(shells, ", "))
			}
			fmt.Fprintf(s.stdout, "%s", script)
			return nil
		},
	}
}

// completeLimit bounds how long a shell waits for what a line may go on with.
const completeLimit = time.Second

// completeFile is printed in place of candidates where a file is to be named.
const completeFile = ":file"

func completeCommand(s *session) *cli.Command {
	return &cli.Command{
		Name:   "__complete",
		Usage:  "print what a command line may go on with",
		Hidden: true,
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, completeLimit)
			defer cancel()
			for _, found := range s.complete(ctx, c.App, c.Args().First()) {
				fmt.Fprintln(s.stdout, strings.TrimSuffix(found.word+"\t"+show.Clean(found.about), "\t"))
			}
			return nil
		},
	}
}

// A candidate is a word that a line may go on with.
type candidate struct{ word, about string }

// complete is what a line, which ends at the cursor, may go on with.
func (s *session) complete(ctx context.Context, app *cli.App, line string) []candidate {
	words := lineWords(line)
	c := &completion{s: s, app: app}
	if len(words) < 2 || !c.read(words[1:len(words)-1]) {
		return nil
	}
	word := words[len(words)-1]
	all, before := c.candidates(ctx, word)
	for i := range all {
		if all[i].word == completeFile {
			return all
		}
		all[i].word = before + all[i].word
	}
	return slices.DeleteFunc(all, func(found candidate) bool {
		isFlag := strings.HasPrefix(found.word, "-") && !strings.HasPrefix(word, "-")
		return isFlag || !strings.HasPrefix(found.word, word) || !plainWord.MatchString(found.word)
	})
}

// plainWord is a word that no shell expands or runs. A configuration or a history may hold
// other ones.
var plainWord = regexp.MustCompile(`^[\pL\pN._:/@,=+%\[\]-]+$`)

// lineWords parts a line as a shell does. The last word may be unfinished, or empty.
func lineWords(line string) []string {
	for _, end := range []string{"\x00", "'\x00", "\"\x00"} { // after a quote that is still open
		if words, err := remote.Split(line + end); err == nil {
			last := len(words) - 1
			words[last] = strings.Trim(words[last], "\x00")
			return words
		}
	}
	return nil
}

// A completion is a line that is being typed.
type completion struct {
	s       *session
	app     *cli.App
	cmd     *cli.Command
	args    []string
	given   []string // flags, as --NAME=VALUE where they have one
	pending cli.Flag // whose value comes next
	end     bool     // after --
}

// read takes in the words before the cursor, and tells whether it knows them.
func (c *completion) read(words []string) bool {
	for _, w := range words {
		name, _, hasValue, isFlag := flagWord(w)
		switch {
		case c.pending != nil:
			c.given = append(c.given, dashes(c.pending.Names()[0])+"="+w)
			c.pending = nil
		case w == "--":
			c.end = true
		case !isFlag || c.end:
			if c.cmd != nil {
				c.args = append(c.args, w)
			} else if c.cmd = c.app.Command(w); c.cmd == nil {
				return false
			}
		default:
			f := c.flag(name)
			if f == nil {
				return false
			}
			if takesValue(f) && !hasValue {
				c.pending = f
			} else {
				c.given = append(c.given, w)
			}
		}
	}
	return c.cmd != nil || !c.end
}

// flag is a flag of the command, or of any while there is none.
func (c *completion) flag(name string) cli.Flag {
	if c.cmd != nil {
		return findFlag(c.cmd.Flags, name)
	}
	f := findFlag(c.app.Flags, name)
	for _, cmd := range c.app.Commands {
		if f == nil {
			f = findFlag(cmd.Flags, name)
		}
	}
	return f
}

// candidates are the words that may stand where word does, and what is before each.
func (c *completion) candidates(ctx context.Context, word string) (all []candidate, before string) {
	name, value, hasValue, isFlag := flagWord(word)
	switch {
	case c.pending != nil:
		return c.values(ctx, c.pending), ""
	case c.end && c.cmd.Name == string(spec.Run):
		return []candidate{{word: completeFile}}, ""
	case isFlag && hasValue && !c.end:
		if f := c.flag(name); f != nil {
			return c.values(ctx, f), strings.TrimSuffix(word, value)
		}
		return nil, ""
	case strings.HasPrefix(word, "-") && !c.end:
		return c.flags(), ""
	case c.cmd == nil:
		for _, cmd := range c.app.Commands {
			if !cmd.Hidden {
				all = append(all, candidate{cmd.Name, cmd.Usage})
			}
		}
		return all, ""
	}
	return c.arguments(ctx, word), ""
}

// flags are those that the line may still have.
func (c *completion) flags() (all []candidate) {
	flags := c.app.Flags
	if c.cmd != nil {
		flags = c.cmd.Flags
	}
	for _, f := range flags {
		d := docOf(f)
		_, many := f.(*cli.StringSliceFlag)
		if many || !slices.ContainsFunc(c.given, func(w string) bool {
			name, _, _, _ := flagWord(w)
			return slices.Contains(f.Names(), name)
		}) {
			all = append(all, candidate{dashes(d.Name), d.Text(true)})
		}
	}
	return all
}

// values are what a flag may have.
func (c *completion) values(ctx context.Context, f cli.Flag) []candidate {
	d := docOf(f)
	if few := choicesOf(d.Name); few != nil {
		return plain(few, "")
	}
	switch d.Name {
	case "lb":
		return c.groupMembers()
	case "group":
		return c.groups()
	case "service":
		return c.units(ctx)
	case "upstream":
		var all []candidate
		for _, s := range c.servers(ctx) {
			all = append(all, candidate{s.Name, s.Module + " upstream"})
		}
		return unique(all)
	}
	if slices.Contains([]string{"FILE", "PATH", "DIRECTORY"}, d.Value) {
		return []candidate{{word: completeFile}}
	}
	return nil
}

// arguments are what a command may be given.
func (c *completion) arguments(ctx context.Context, word string) []candidate {
	switch c.cmd.Name {
	case "schema":
		return plain(schemaNames(), "")
	case "completion":
		return plain(shells, "")
	case "man":
		return []candidate{{word: completeFile}}
	case "history":
		return c.operations(ctx)
	case "agent":
		return nil
	}
	var all []candidate
	for _, s := range c.servers(ctx) {
		down := map[string]bool{string(spec.Drain): false, string(spec.Run): false, string(spec.Undrain): true}
		wanted, matters := down[c.cmd.Name]
		a, err := nginx.ParseAddress(s.Address)
		if err != nil || (matters && s.Down != wanted) {
			continue
		}
		if isRemoved := s.State == status.StateRemoved; isRemoved && matters || !isRemoved && c.cmd.Name == string(spec.Forget) {
			continue
		}
		about := s.Name + ", " + string(s.State)
		if c.cmd.Name == "resume" {
			if s.State != status.StateInterrupted && s.State != status.StateNotDrained || s.Operation == nil {
				continue
			}
			all = append(all, candidate{s.Operation.ID, s.Operation.Kind + " of " + strings.Join(s.Operation.Targets, ", ")})
		}
		// The host alone is every port of it; with its port once that is asked for.
		host := a
		host.Port = 0
		all = append(all, candidate{host.String(), about})
		if strings.HasPrefix(word, host.String()) {
			all = append(all, candidate{a.String(), about})
		}
	}
	return slices.DeleteFunc(unique(all), func(found candidate) bool { return slices.Contains(c.args, found.word) })
}

// asked is what the flags on the line say of where to look, and whether they make
// sense.
func (c *completion) asked() (f *specFlags, ok bool) {
	f = &specFlags{spec: spec.Default(""), config: &config{}}
	f.which()
	f.where()
	f.nginx()
	f.shown()
	var given []string
	for _, w := range c.given {
		name, value, _, _ := flagWord(w)
		if findFlag(f.flags, name) != nil && value != "-" { // that is the terminal
			given = append(given, w)
		}
	}
	app := &cli.App{
		Name: c.app.Name, Flags: f.flags, HideHelp: true, Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: func(*cli.Context, error) {},
		Action: func(ctx *cli.Context) error { return f.read(c.s, ctx) },
	}
	return f, app.Run(append([]string{c.app.Name}, given...)) == nil
}

// machines asks nobody anything, and leaves nothing behind.
func (c *completion) machines() fleet.Machines {
	return fleet.Machines{
		Version: versionText(), System: c.s.system, Unprivileged: true, NoCopy: true,
		Passphrase: func(context.Context, string) ([]byte, error) { return nil, errors.New("nobody is asked") },
	}
}

// servers are those of the load balancers that can be asked.
func (c *completion) servers(ctx context.Context) (all []status.ServerStatus) {
	f, ok := c.asked()
	if !ok {
		return nil
	}
	if st, _ := status.Read(ctx, f.spec, c.machines()); st != nil {
		for _, lb := range st.LBs {
			all = append(all, lb.Servers...)
		}
	}
	return all
}

// history is the operations, the latest first.
func (c *completion) history(ctx context.Context) []status.HistoryEntry {
	f, ok := c.asked()
	if !ok {
		return nil
	}
	entries, _, _ := status.ReadHistory(ctx, f.spec, c.machines())
	slices.Reverse(entries)
	return entries
}

func (c *completion) operations(ctx context.Context) (all []candidate) {
	for _, e := range c.history(ctx) {
		all = append(all, candidate{e.ID, string(e.Began.Kind) + " of " + strings.Join(e.Began.Targets, ", ") + " by " + e.Began.User})
	}
	return all
}

func (c *completion) groups() (all []candidate) {
	f, _ := c.asked()
	for _, name := range slices.Sorted(maps.Keys(f.config.groups)) {
		all = append(all, candidate{name, strings.Join(f.config.groups[name].texts, ", ")})
	}
	return all
}

func (c *completion) groupMembers() (all []candidate) {
	f, _ := c.asked()
	for name, group := range f.config.groups {
		all = append(all, plain(group.texts, "in the group "+name)...)
	}
	return unique(all)
}

// units are those that drainctl has to do with, and where it knows none, those that
// this machine has.
func (c *completion) units(ctx context.Context) (all []candidate) {
	f, _ := c.asked()
	for _, part := range []map[string]section{{"": f.config.defaults}, f.config.upstreams, f.config.backends} {
		for _, set := range part {
			all = append(all, plain(set["service"].texts, "in drainctl.yaml")...)
		}
	}
	for _, e := range c.history(ctx) {
		all = append(all, plain(e.Began.Service.List(), "in the history")...)
	}
	if len(all) > 0 {
		return unique(all)
	}
	for _, dir := range []string{"/etc", "/usr/lib", "/lib"} {
		files, _ := filepath.Glob(dir + "/systemd/system/*.service")
		for _, file := range files {
			all = append(all, candidate{strings.TrimSuffix(filepath.Base(file), ".service"), "on this machine"})
		}
	}
	return unique(all)
}

func plain(words []string, about string) (all []candidate) {
	for _, w := range words {
		all = append(all, candidate{w, about})
	}
	return all
}

// unique is the first candidate of each word.
func unique(all []candidate) (once []candidate) {
	seen := map[string]bool{}
	for _, found := range all {
		if !seen[found.word] {
			seen[found.word] = true
			once = append(once, found)
		}
	}
	return once
}
