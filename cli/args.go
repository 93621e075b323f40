package cli

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"github.com/drainctl/drainctl/drain"
	"github.com/drainctl/drainctl/drain/spec"
)

// errUsage is wrapped by every error of the command line itself.
var errUsage = errors.New("usage")

type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }
func (e *usageError) Unwrap() error { return errUsage }

func usage(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// arrange puts the flags of a command line before its arguments, as urfave/cli
// needs it: it does not look for flags after the first argument, and takes
// `drain 192.168.1.10 --dry-run` for a drain of two targets, for real. Nothing
// is guessed: a flag that is not known, stands twice, or lacks its value is an
// error.
//
// What follows "--" are arguments too, but for run: there it is the command to
// run, and comes back as it is.
func arrange(app *cli.App, args []string) (line, command []string, err error) {
	at, err := commandAt(app, args)
	if err != nil || at < 0 {
		return args, nil, err
	}
	cmd := app.Command(args[at])
	if cmd == nil {
		return nil, nil, usage("unknown command %q%s", args[at], didYouMean(args[at], commandNames(app), "\nhint: drainctl --help lists the commands"))
	}
	rest := slices.Concat(args[1:at], args[at+1:])
	if end := slices.Index(rest, "--"); end >= 0 && cmd.Name == string(spec.Run) {
		rest, command = rest[:end], rest[end+1:]
	}
	flags, positional, err := split(cmd, rest)
	if err != nil {
		return nil, nil, err
	}
	if slices.ContainsFunc(flags, isHelp) {
		return []string{args[0], cmd.Name, flags[slices.IndexFunc(flags, isHelp)]}, nil, nil
	}
	line = append([]string{args[0], cmd.Name}, flags...)
	return append(append(line, "--"), positional...), command, nil
}

func isHelp(word string) bool {
	name, _, _, ok := flagWord(word)
	return ok && findFlag(helpFlags(), name) != nil
}

// commandAt is where the command's name stands: the first word that is no flag
// and no flag's value. -1: there is none.
func commandAt(app *cli.App, args []string) (int, error) {
	needsCommand := ""
	for i := 1; i < len(args); i++ {
		name, _, hasValue, ok := flagWord(args[i])
		if !ok {
			return i, nil
		}
		f := findFlag(app.Flags, name)
		for _, c := range app.Commands {
			if f == nil {
				f = findFlag(c.Flags, name)
			}
		}
		if f == nil {
			return 0, usage("unknown flag %s\nhint: drainctl --help-all lists the flags of every command", args[i])
		}
		if findFlag(app.Flags, name) == nil {
			needsCommand = dashes(name)
		}
		if takesValue(f) && !hasValue {
			i++
		}
	}
	if needsCommand != "" {
		return 0, usage("%s needs a command\nhint: commands are %s", needsCommand, strings.Join(commandNames(app), ", "))
	}
	return -1, nil
}

// split tells a command's flags, each with its value, from its arguments.
func split(cmd *cli.Command, args []string) (flags, positional []string, err error) {
	seen := map[cli.Flag]bool{}
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return flags, append(positional, args[i+1:]...), nil
		}
		name, value, hasValue, ok := flagWord(args[i])
		if !ok {
			positional = append(positional, args[i])
			continue
		}
		f := findFlag(cmd.Flags, name)
		if f == nil {
			return nil, nil, usage("unknown flag %s for %s%s", dashes(name), cmd.Name, didYouMean(dashes(name), flagNames(cmd), "\nhint: drainctl "+cmd.Name+" --help-all lists its flags"))
		}
		if _, many := f.(*cli.StringSliceFlag); seen[f] && !many {
			return nil, nil, usage("%s is given twice", dashes(name))
		}
		seen[f] = true
		if takesValue(f) && !hasValue {
			i++
			if i == len(args) {
				return nil, nil, usage("%s needs a value", dashes(name))
			}
			if next, _, _, ok := flagWord(args[i]); args[i] == "--" || (ok && findFlag(cmd.Flags, next) != nil) {
				return nil, nil, usage("%s needs a value, and %s is a flag\nhint: write %s=%s if it is meant", dashes(name), args[i], dashes(name), args[i])
			}
			value = args[i]
		}
		if takesValue(f) || hasValue {
			if err := checkValue(f, dashes(name), value); err != nil {
				return nil, nil, err
			}
			flags = append(flags, dashes(f.Names()[0])+"="+value) // urfave/cli refuses two forms of a flag
			continue
		}
		if i+1 < len(args) && (args[i+1] == "true" || args[i+1] == "false") {
			// It would be taken for a target.
			return nil, nil, usage("%s takes no value after a blank\nhint: write %s=%s", dashes(name), dashes(name), args[i+1])
		}
		flags = append(flags, dashes(name))
	}
	return flags, positional, nil
}

// flagWord takes a word such as --name=value apart. A lone "-" and "--" are no
// flags.
func flagWord(word string) (name, value string, hasValue, ok bool) {
	if len(word) < 2 || word[0] != '-' || word == "--" {
		return "", "", false, false
	}
	name = strings.TrimPrefix(word[1:], "-")
	name, value, hasValue = strings.Cut(name, "=")
	return name, value, hasValue, true
}

func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	_, isBool := f.(*cli.BoolFlag)
	return !isBool
}

// checkValue tells whether a value is of the flag's kind.
func checkValue(f cli.Flag, name, value string) error {
	var to any
	switch f.(type) {
	case *cli.BoolFlag:
		to = new(bool)
	case *cli.IntFlag:
		to = new(int)
	case *cli.DurationFlag:
		to = new(time.Duration)
	default:
		if value == "" {
			return usage("%s is empty", name)
		}
		return nil
	}
	if err := spec.ParseFlag(reflect.ValueOf(to).Elem(), value); err != nil {
		return usage("%s: %v", name, err)
	}
	return nil
}

// envPrefix begins the environment variables that stand for flags.
const envPrefix = "DRAINCTL_"

// envName is the environment variable of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// checkEnv makes sure that every DRAINCTL_ variable is a flag's and has a
// value of its kind: a mistyped DRAINCTL_DRYRUN must not be a run for real.
func checkEnv(app *cli.App, environ []string) error {
	known := map[string]cli.Flag{}
	var names []string
	for _, c := range app.Commands {
		for _, f := range c.Flags {
			if name := envName(f.Names()[0]); known[name] == nil && findFlag(helpFlags(), f.Names()[0]) == nil {
				known[name] = f
				names = append(names, name)
			}
		}
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(strings.ToUpper(name), envPrefix) {
			continue
		}
		if slices.Contains(drain.WorkVariables, name) {
			continue // drainctl itself sets it, for the command of a rolling run
		}
		f := known[name]
		if f == nil {
			return usage("the environment variable %s is no flag's%s", name, didYouMean(name, names))
		}
		if value == "" {
			return usage("the environment variable %s is empty\nhint: unset it if nothing is meant", name)
		}
		if err := checkValue(f, name, value); err != nil {
			return err
		}
	}
	return nil
}

func commandNames(app *cli.App) []string {
	var names []string
	for _, c := range app.Commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

func flagNames(cmd *cli.Command) []string {
	var names []string
	for _, f := range cmd.Flags {
		names = append(names, dashes(f.Names()[0]))
	}
	return names
}

// didYouMean offers the nearest of names, if one is near; else it says what does.
func didYouMean(word string, names []string, or ...string) string {
	plain := func(s string) string { return strings.ToLower(strings.TrimLeft(s, "-")) }
	best, cost := "", 1+len(word)/4
	for _, n := range names {
		if c := smetrics.WagnerFischer(plain(word), plain(n), 1, 1, 1); c <= cost {
			best, cost = n, c-1
		}
	}
	if best == "" {
		return strings.Join(or, "")
	}
	return fmt.Sprintf("\nhint: did you mean %s?", best)
}
