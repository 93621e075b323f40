package remote

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// SudoProblem is why a command cannot be run as root.
type SudoProblem int

const (
	// SudoMissing says that there is no sudo on the host.
	SudoMissing SudoProblem = iota
	// SudoPassword says that sudo would ask for a password.
	SudoPassword
	// SudoDenied says that no rule allows the command.
	SudoDenied
	// SudoBroken says that sudo itself does not work.
	SudoBroken
)

// SudoError says that commands cannot be run as root on a host through sudo,
// and what would allow them.
type SudoError struct {
	Host     string
	User     string
	Problem  SudoProblem
	Commands [][]string // what was to be run, the program with its full path where it is known
	Output   string     // what sudo said
}

func (e *SudoError) Error() string {
	why := ": no sudoers rule allows it"
	hint := "\nhint: log in as root, or add with visudo: " + e.Rule()
	switch e.Problem {
	case SudoMissing:
		why, hint = ": there is no sudo", "\nhint: install it, or log in as root"
	case SudoPassword:
		why = ": sudo would ask for a password"
	case SudoBroken:
		why, hint = ": "+indentRest(e.Output), ""
	}
	return fmt.Sprintf("%s on %s may not run as root: ", e.User, e.Host) + e.commands(func(c []string) string { return Quote(c...) }) + why + hint
}

// Rule is the line for sudoers(5) that allows the commands without a password.
func (e *SudoError) Rule() string {
	return fmt.Sprintf("%s ALL=(root) NOPASSWD: %s", e.User, e.commands(ruleCommand))
}

// commands lists the commands as text writes them.
func (e *SudoError) commands(text func([]string) string) string {
	var all []string
	for _, c := range e.Commands {
		all = append(all, text(c))
	}
	return strings.Join(all, ", ")
}

// ruleCommand writes a command as sudoers(5) wants it: the full path, and a
// backslash before what the grammar or fnmatch(3) would take for its own.
func ruleCommand(args []string) string {
	words := slices.Clone(args)
	if !path.IsAbs(words[0]) {
		words[0] = "/usr/bin/" + words[0]
	}
	for i, w := range words {
		words[i] = ruleSpecial.ReplaceAllStringFunc(w, func(c string) string {
			if c == `\` { // once for the grammar, and once for fnmatch
				return `\\\\`
			}
			return `\` + c
		})
	}
	if len(words) == 1 {
		words = append(words, `""`)
	}
	return strings.Join(words, " ")
}

// ruleSpecial matches the characters that mean something in a rule.
var ruleSpecial = regexp.MustCompile(`[\\,:=*?\[\]!# ]`)

// Refusal is the *SudoError in r, the end of the command args that was run on h
// with sudo -n before it; nil if sudo did run it. It looks only at how sudo
// itself fails, with status 1 and its own words (sudo's logging.c and
// auth/sudo_auth.c, in the C locale).
func Refusal(h Host, args []string, r Result) error {
	output := lastLines(r.Stderr, 2)
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains("\n"+output, p) })
	}
	e := &SudoError{Host: h.Name(), User: h.User(), Commands: [][]string{args}, Output: output}
	switch {
	case r.Code == 127 && has("sudo"):
		e.Problem = SudoMissing
	case r.Code != 1:
		return nil
	case has("sudo: a password is required", "sudo: a terminal is required", "sudo: interactive authentication is required"):
		e.Problem = SudoPassword
	case has("\nSorry, user "+e.User, e.User+" is not in the sudoers file", e.User+" is not allowed to run sudo", "sudo: I'm sorry "+e.User):
		e.Problem = SudoDenied
	case strings.HasPrefix(output, "sudo: ") && sudoBroken.MatchString(output):
		e.Problem = SudoBroken
	default:
		return nil
	}
	return e
}

// sudoBroken matches what sudo says when it cannot work at all.
var sudoBroken = regexp.MustCompile(`must be owned by uid 0|effective uid is not 0|sorry, you must have a tty|` +
	`unable to initialize|no valid sudoers sources|error initializing audit|syntax error`)

// SudoCheck says whether args can be run as root on h without a password, by
// asking sudo and running nothing. It is nil if so, as when the login user is
// root, and otherwise a *SudoError, an *ExitError where the command does not
// exist, or the failure to ask.
func SudoCheck(ctx context.Context, h Host, args ...string) error {
	if err := checkArgs(Command{Args: args, Root: true}); err != nil {
		return err
	}
	if root, err := isRoot(ctx, h); err != nil || root {
		return err
	}
	list := func(of ...string) (Result, error) {
		r, err := h.Run(ctx, Command{Args: append([]string{"env", "LC_ALL=C", "sudo", "-n", "-l", "-l"}, of...)})
		if err != nil {
			err = fmt.Errorf("ask sudo about %s: %w", Quote(args...), err)
		}
		return r, err
	}
	r, err := list(args...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return sudoAnswer(ctx, h, args, r)
	}
	// Since 1.9.15 this shows the rule that holds, before only the command. What
	// is not in the rule may be in the defaults, which only the whole listing has.
	entries := parseSudoEntries(string(r.Stdout))
	if len(entries) > 0 && passwordless(entries, "") {
		return nil
	}
	all, err := list()
	if err != nil {
		return err
	}
	listed := string(all.Stdout)
	if len(entries) == 0 {
		program, _, _ := strings.Cut(strings.TrimSpace(string(r.Stdout)), " ")
		entries = matchingEntries(parseSudoEntries(listed), program, args)
	}
	if passwordless(entries, listed) {
		return nil
	}
	return &SudoError{
		Host: h.Name(), User: h.User(), Problem: SudoPassword,
		Commands: [][]string{fullPath(ctx, h, args)},
	}
}

// isRoot says whether the login user of h is root.
func isRoot(ctx context.Context, h Host) (bool, error) {
	if known, ok := h.(*sshHost); ok {
		return known.root(ctx)
	}
	return askRoot(ctx, h)
}

// askRoot asks h whether the login user is root.
func askRoot(ctx context.Context, h Host) (bool, error) {
	if h.User() == "root" {
		return true, nil
	}
	text, err := output(ctx, h, "id", "-u")
	if err != nil {
		return false, fmt.Errorf("ask %s who its user is: %w", h.Name(), err)
	}
	return lastLines([]byte(text), 1) == "0", nil
}

// sudoAnswer is what r, a failed sudo -l about args, says.
func sudoAnswer(ctx context.Context, h Host, args []string, r Result) error {
	output := lastLines(r.Stderr, 1)
	var refused *SudoError
	switch {
	case errors.As(Refusal(h, args, r), &refused):
	case strings.HasSuffix(output, "command not found"), strings.HasSuffix(output, "No such file or directory"):
		return r.Err(args...)
	default: // a command that no rule allows: status 1 and no word about it
		refused = &SudoError{Host: h.Name(), User: h.User(), Problem: SudoDenied, Output: output}
	}
	if refused.Problem != SudoMissing {
		refused.Commands = [][]string{fullPath(ctx, h, args)}
	}
	return refused
}

// searchPath is where a host's programs are, whatever a user's PATH says.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// fullPath is args with the program's full path, where h knows one.
func fullPath(ctx context.Context, h Host, args []string) []string {
	args = slices.Clone(args)
	if path.IsAbs(args[0]) {
		return args
	}
	r, err := h.Run(ctx, Command{Args: []string{"env", "PATH=" + searchPath, "sh", "-c", "command -v " + Quote(args[0])}})
	if found := strings.TrimSpace(lastLines(r.Stdout, 1)); err == nil && r.Code == 0 && path.IsAbs(found) {
		args[0] = found
	}
	return args
}

// sudoEntry is an entry of the long listing of sudo -l -l.
type sudoEntry struct {
	runAs    []string
	options  []string
	commands []string
}

// parseSudoEntries reads the long listing: after a line "Sudoers entry:" come
// lines "    Name: value", and the commands, each on a line that begins with a
// tab. Since 1.9.15 the listing for one command has it after "Matched:".
func parseSudoEntries(out string) []sudoEntry {
	var entries []sudoEntry
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "Sudoers entry:") || strings.HasPrefix(line, "LDAP Role:") || strings.HasPrefix(line, "SSSD Role:") {
			entries = append(entries, sudoEntry{})
			continue
		}
		if len(entries) == 0 {
			continue
		}
		e := &entries[len(entries)-1]
		if command, found := strings.CutPrefix(line, "\t"); found {
			e.commands = append(e.commands, command)
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		words := strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		switch name {
		case "RunAsUsers":
			e.runAs = words
		case "Options":
			e.options = append(e.options, words...)
		}
	}
	return entries
}

// matchingEntries returns the last of entries that names the command, the one
// that holds (sudoers(5): "the last match is used"). Where none is recognized,
// the rule being beyond what this understands, all are returned.
func matchingEntries(entries []sudoEntry, full string, args []string) []sudoEntry {
	for _, e := range slices.Backward(entries) {
		if len(e.runAs) > 0 && !slices.Contains(e.runAs, "root") && !slices.Contains(e.runAs, "ALL") && !slices.Contains(e.runAs, "#0") {
			continue
		}
		for _, rule := range e.commands {
			if ruleMatches(rule, full, args[1:]) {
				return []sudoEntry{e}
			}
		}
	}
	return entries
}

// ruleMatches says whether a command of a rule is program with args.
func ruleMatches(rule, program string, args []string) bool {
	if rule == "ALL" {
		return true
	}
	command, wanted, limited := strings.Cut(rule, " ")
	switch {
	case strings.HasPrefix(command, "!"), !strings.HasPrefix(command, "/"):
		return false
	case strings.HasSuffix(command, "/"):
		return path.Dir(program)+"/" == command
	case !fnmatch(path.Base(command), path.Base(program)):
		return false
	}
	switch {
	case !limited:
		return true
	case wanted == `""`:
		return len(args) == 0
	}
	// sudo matches the arguments as one string, and * there takes in anything.
	return fnmatch(wanted, strings.Join(args, " "))
}

// fnmatch matches as fnmatch(3) without flags does. A pattern that Go does not
// understand matches nothing.
func fnmatch(pattern, text string) bool {
	matched, err := path.Match(strings.NewReplacer("/", "\x00", "[!", "[^").Replace(pattern), strings.ReplaceAll(text, "/", "\x00"))
	return err == nil && matched
}

// passwordless says whether all of entries, from a listing, need no password.
func passwordless(entries []sudoEntry, listed string) bool {
	byDefault := false
	if defaults, _, found := strings.Cut(listed, "may run the following commands"); found {
		byDefault = strings.Contains(defaults, "!authenticate")
	}
	for _, e := range entries {
		switch {
		case slices.Contains(e.options, "!authenticate"):
		case slices.Contains(e.options, "authenticate"), !byDefault:
			return false
		}
	}
	return true
}
